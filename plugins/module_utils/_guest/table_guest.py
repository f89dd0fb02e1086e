# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fields of a guest itself: one row each.

Paths and meanings are those of https://libvirt.org/formatdomain.html; what changes while a guest runs is research/guests.md 5.5.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.fields import MEMORY, ON_OFF, YES_NO, Field, Flag
from .._core.units import parse_scaled
from . import values

if t.TYPE_CHECKING:
    from .._core.xml import Element

LOCAL = "127.0.0.1"
_AGENT = "org.qemu.guest_agent.0"
_SPICE = "com.redhat.spice.0"


def _size(found: Element | None) -> int:
    return 0 if found is None or found.text is None else parse_scaled(found.text, found.get("unit"))


def _plugged(root: Element) -> int:
    """Bytes of memory devices: libvirt counts them into ``memory``."""
    return sum(_size(found) for found in root.findall("devices/memory/target/size"))


class _Memory(Field):
    """What the guest has at its start: the sum of its NUMA cells where it has some, without memory devices."""

    def read(self, root: Element) -> t.Any:
        cells = root.findall("cpu/numa/cell")
        if cells:
            return sum(parse_scaled(cell.get("memory", "0"), cell.get("unit")) for cell in cells)
        total = super().read(root)
        return None if total is None else total - _plugged(root)

    def write(self, root: Element, value: t.Any) -> None:
        cells = root.findall("cpu/numa/cell")
        if len(cells) > 1:
            raise PhyllomeError(
                f"memory: {MEMORY.show(value)} is to be shared out among {len(cells)} NUMA cells",
                "each cell has memory of its own",
                "Declare vcpus.numa with the memory of each cell.",
            )
        if cells:
            cells[0].set("memory", MEMORY.format(value))
            cells[0].set("unit", "KiB")
        super().write(root, value + _plugged(root))
        # libvirt sets it anew from the size when it is not there.
        xml.drop(root, "currentMemory")


class _Balloon(Field):
    def waiting(self, live: Element, config: Element) -> tuple[t.Any, t.Any] | None:
        """A running guest is given more and less all the time; nothing waits for its next start."""
        return None


class _Vcpus(Field):
    """How many the guest has. Without a maximum of its own that is the maximum as well."""

    def read(self, root: Element) -> t.Any:
        found = xml.first(root, self.path)
        text = None if found is None else found.get("current") or found.text
        return None if text is None else int(text)

    def write(self, root: Element, value: t.Any) -> None:
        found = xml.ensure(root, self.path)
        if found.get("current") is None or value > int(found.text or 0):
            found.text = str(value)
        found.attrib.pop("current", None)
        if value != int(found.text or 0):
            found.set("current", str(value))

    def fits(self, live: Element, value: t.Any) -> bool:
        return bool(value <= int(live.findtext(self.path) or 0))


class _MaxVcpus(Field):
    def write(self, root: Element, value: t.Any) -> None:
        found = xml.ensure(root, self.path)
        current = min(int(found.get("current") or found.text or value), value)
        found.text = str(value)
        found.attrib.pop("current", None)
        if current < value:
            found.set("current", str(current))


class _Numa(Field):
    def read(self, root: Element) -> t.Any:
        return tuple(
            (
                values.cpu_list(values.cpus(cell.get("cpus", "0"))),
                parse_scaled(cell.get("memory", "0"), cell.get("unit")),
            )
            for cell in root.findall("cpu/numa/cell")
        )

    def write(self, root: Element, value: t.Any) -> None:
        numa = xml.ensure(root, "cpu/numa")
        cells = numa.findall("cell")
        for cell in cells[len(value) :]:
            numa.remove(cell)
        for number, (cpus, size) in enumerate(value):
            cell = cells[number] if number < len(cells) else xml.child(numa, "cell", id=str(number))
            cell.set("cpus", cpus)
            cell.set("memory", MEMORY.format(size))
            cell.set("unit", "KiB")


class _Pins(Field):
    """``path`` is the element, the key its attribute ``vcpu`` or ``iothread``."""

    @property
    def _key(self) -> str:
        return self.path.rpartition("/")[2][: -len("pin")]

    def read(self, root: Element) -> t.Any:
        return {
            pin.get(self._key, ""): values.cpu_list(values.cpus(pin.get("cpuset", "0")))
            for pin in root.findall(self.path)
        }

    def write(self, root: Element, value: t.Any) -> None:
        for key, cpus in value.items():
            xml.ensure(root, f"{self.path}[@{self._key}='{key}']").set("cpuset", cpus)


class _CpuMode(Field):
    def write(self, root: Element, value: t.Any) -> None:
        super().write(root, value)
        cpu = root.find("cpu")
        for name in ("match", "check"):
            cpu.attrib.pop(name, None)  # type: ignore[union-attr]
        if value != "custom":
            for name in ("model", "vendor"):
                xml.drop(root, f"cpu/{name}")
        if value not in ("host-passthrough", "maximum"):
            cpu.attrib.pop("migratable", None)  # type: ignore[union-attr]

    def waiting(self, live: Element, config: Element) -> tuple[t.Any, t.Any] | None:
        """libvirt shows a running guest the model that host-model stood for when it started."""
        if self.read(config) == "host-model" and self.read(live) == "custom":
            return None
        return super().waiting(live, config)


class _CpuModel(Field):
    def write(self, root: Element, value: t.Any) -> None:
        super().write(root, value)
        # Another model than the one that was asked for would be a silent change.
        root.find("cpu/model").set("fallback", "forbid")  # type: ignore[union-attr]
        root.find("cpu").set("match", "exact")  # type: ignore[union-attr]

    def waiting(self, live: Element, config: Element) -> tuple[t.Any, t.Any] | None:
        return None if self.read(config) is None else super().waiting(live, config)


class _Features(Field):
    def read(self, root: Element) -> t.Any:
        return {found.get("name"): found.get("policy", "require") for found in root.findall("cpu/feature")}

    def write(self, root: Element, value: t.Any) -> None:
        for name, policy in value.items():
            xml.ensure(root, f"cpu/feature[@name='{name}']").set("policy", policy)

    def waiting(self, live: Element, config: Element) -> tuple[t.Any, t.Any] | None:
        """libvirt adds those of the model to a running guest's, and says require where force was said."""
        now, then = self.read(live), self.read(config)
        on = {"force": True, "require": True, "disable": False, "forbid": False}
        changed = {name for name, policy in then.items() if policy in on and on.get(now.get(name)) is not on[policy]}
        told = {name for name in changed if name in now or on[then[name]]}
        return ({name: now.get(name) for name in told}, {name: then[name] for name in told}) if told else None


class _Shared(Field):
    def read(self, root: Element) -> t.Any:
        access = xml.first(root, self.path)
        return access is not None and access.get("mode") == "shared"

    def write(self, root: Element, value: t.Any) -> None:
        if not value:
            xml.drop(root, self.path)
            return
        xml.ensure(root, self.path).set("mode", "shared")
        if xml.first(root, "memoryBacking/source") is None and xml.first(root, "memoryBacking/hugepages") is None:
            xml.ensure(root, "memoryBacking/source").set("type", "memfd")


class _Pages(Field):
    def read(self, root: Element) -> t.Any:
        if xml.first(root, self.path) is None:
            return 0
        page = xml.first(root, f"{self.path}/page")
        # Without a size it is the host's own, which this does not know.
        return None if page is None else parse_scaled(page.get("size", "0"), page.get("unit"))

    def write(self, root: Element, value: t.Any) -> None:
        xml.drop(root, self.path)
        if value:
            xml.child(xml.ensure(root, self.path), "page", size=str(value // 1024), unit="KiB")


_MEM = "devices/memory[@model='virtio-mem']"


class _VirtioMem(Field):
    """A part of the memory that is plugged in pieces. The device is made by its size, and 0 takes it away."""

    def write(self, root: Element, value: t.Any) -> None:
        before = _plugged(root)
        if self.option.endswith(".size") and not value:
            xml.drop(root, _MEM)
        else:
            target = f"{_MEM}/target"
            made = xml.first(root, _MEM) is None
            super().write(root, value)
            if made:
                for name, text in (("node", "0"), ("block", "2048"), ("requested", "0")):
                    found = xml.ensure(root, f"{target}/{name}")
                    found.text = found.text or text
                    if name != "node":
                        found.set("unit", "KiB")
        total = xml.first(root, "memory")
        if total is not None:
            size = _size(total) + _plugged(root) - before
            total.text = MEMORY.format(size)
            total.set("unit", "KiB")
            xml.drop(root, "currentMemory")


class _FirmwareType(Field):
    def read(self, root: Element) -> t.Any:
        """Newer libvirt writes the loader into the definition, older only ``firmware='efi'``."""
        loader = xml.first(root, "os/loader")
        flash = loader is not None and loader.get("type") == "pflash"
        return "uefi" if flash or root.find("os").get("firmware") == "efi" else "bios"  # type: ignore[union-attr]

    def write(self, root: Element, value: t.Any) -> None:
        system = xml.ensure(root, "os")
        system.attrib.pop("firmware", None)
        if value == "uefi":
            system.set("firmware", "efi")


class _SecureBoot(Field):
    """Loader and template of the variable store are libvirt's choice, by these features."""

    def read(self, root: Element) -> t.Any:
        feature = super().read(root)
        loader = xml.first(root, "os/loader")
        return loader.get("secure") == "yes" if feature is None and loader is not None else feature

    def write(self, root: Element, value: t.Any) -> None:
        super().write(root, value)
        xml.drop(root, "os/loader")
        store = xml.first(root, "os/nvram")
        if store is not None:
            store.attrib.pop("template", None)
        if value:
            # QEMU keeps the variables from the guest's kernel by System Management Mode.
            xml.ensure(root, "features/smm").set("state", "on")
        else:
            xml.drop(root, "os/firmware/feature[@name='enrolled-keys']")


class _Tpm(Field):
    def write(self, root: Element, value: t.Any) -> None:
        if value == "none":
            xml.drop(root, "devices/tpm")
            return
        super().write(root, value)
        if xml.first(root, "devices/tpm/backend") is None:
            xml.child(xml.ensure(root, "devices/tpm"), "backend", type_="emulator", version="2.0")


def display(root: Element) -> Element | None:
    """The display that people connect to."""
    return next((found for found in root.findall("devices/graphics") if found.get("type") in ("vnc", "spice")), None)


class _Graphics(Field):
    def read(self, root: Element) -> t.Any:
        found = display(root)
        return "none" if found is None else found.get("type")

    def write(self, root: Element, value: t.Any) -> None:
        for kind in self.choices:
            xml.drop(root, f"devices/graphics[@type='{kind}']")
        if value != "spice":
            xml.drop(root, "devices/audio[@type='spice']")
        if value == "none":
            xml.drop(root, "devices/graphics[@type='egl-headless']")
            return
        devices = xml.ensure(root, "devices")
        made = xml.child(devices, "graphics", type_=value, autoport="yes", listen=LOCAL)
        xml.child(made, "listen", type_="address", address=LOCAL)
        if xml.first(devices, "video") is None:
            # A display without a card: vga is the one that every firmware and guest knows.
            xml.child(xml.child(devices, "video"), "model", type_="vga")


class _OfDisplay(Field):
    """``path`` is an attribute of the display, if there is one."""

    def read(self, root: Element) -> t.Any:
        found = display(root)
        return None if found is None else found.get(self.path[1:])

    def write(self, root: Element, value: t.Any) -> None:
        found = display(root)
        if found is None:
            raise PhyllomeError(
                f"graphics.{self.option}: the guest has no display", "it belongs to one", "Declare graphics.type."
            )
        self._put(found, value)

    def _put(self, found: Element, value: t.Any) -> None:
        found.set(self.path[1:], value)

    def waiting(self, live: Element, config: Element) -> tuple[t.Any, t.Any] | None:
        """Without a word in the definition it is the host's default, which only the running guest tells."""
        return None if self.read(config) is None else super().waiting(live, config)


class _Listen(_OfDisplay):
    def read(self, root: Element) -> t.Any:
        found = display(root)
        if found is None:
            return None
        listen = xml.first(found, "listen")
        if listen is not None and listen.get("type") != "address":
            return listen.get("type")
        return found.get("listen") or (None if listen is None else listen.get("address"))

    def _put(self, found: Element, value: t.Any) -> None:
        xml.drop(found, "listen")
        for name in ("listen", "port", "tlsPort", "autoport"):
            if name == "listen" or value == "none":
                found.attrib.pop(name, None)
        if value == "none":
            xml.child(found, "listen", type_="none")
            return
        found.set("listen", value)
        xml.child(found, "listen", type_="address", address=value)
        if found.get("port") is None:
            found.set("autoport", "yes")


class _Port(_OfDisplay):
    def read(self, root: Element) -> t.Any:
        found = display(root)
        if found is None or found.get("port", found.get("autoport")) is None:
            return None
        return "auto" if found.get("autoport") == "yes" else found.get("port")

    def _put(self, found: Element, value: t.Any) -> None:
        for name in ("tlsPort", "websocket"):
            found.attrib.pop(name, None)
        found.set("autoport", "yes" if value == "auto" else "no")
        found.set("port", "-1" if value == "auto" else value)


class _Gl(Field):
    """Who draws 3D: nobody, the viewer's process on this host (SPICE), or the host for a display without a screen."""

    def read(self, root: Element) -> t.Any:
        if xml.first(root, "devices/graphics[@type='egl-headless']") is not None:
            return "headless"
        return "local" if xml.first(root, "devices/graphics/gl[@enable='yes']") is not None else "none"

    def write(self, root: Element, value: t.Any) -> None:
        xml.drop(root, "devices/graphics[@type='egl-headless']")
        xml.drop(root, "devices/graphics/gl")
        found = display(root)
        if value == "headless":
            xml.child(xml.ensure(root, "devices"), "graphics", type_="egl-headless")
        elif value == "local" and found is not None:
            xml.child(found, "gl", enable="yes")


class _Model(Field):
    """A device that the guest has once; ``path`` is its element, another model is another device."""

    attribute = "model"

    def read(self, root: Element) -> t.Any:
        found = xml.first(root, self.path)
        return "none" if found is None else found.get(self.attribute)

    def write(self, root: Element, value: t.Any) -> None:
        xml.drop(root, self.path)
        if value != "none":
            xml.child(xml.ensure(root, self.path.rpartition("/")[0]), self.path.rpartition("/")[2], model=value)


class _Watchdog(_Model):
    def write(self, root: Element, value: t.Any) -> None:
        found = xml.first(root, self.path)
        action = "reset" if found is None else found.get("action", "reset")
        super().write(root, value)
        if value != "none":
            root.find(self.path).set("action", action)  # type: ignore[union-attr]


class _Video(Field):
    def read(self, root: Element) -> t.Any:
        found = xml.first(root, "devices/video/model")
        return "none" if found is None else found.get("type")

    def write(self, root: Element, value: t.Any) -> None:
        found = xml.first(root, "devices/video")
        if found is None:
            found = xml.child(xml.ensure(root, "devices"), "video")
        for name in ("model", "address", "driver"):
            xml.drop(found, name)
        # libvirt gives a guest with a display a card unless it is told that there is none.
        xml.child(found, "model", type_=value)


class _Rng(Field):
    def read(self, root: Element) -> t.Any:
        return super().read(root) if xml.first(root, "devices/rng") is not None else "none"

    def write(self, root: Element, value: t.Any) -> None:
        if value == "none":
            xml.drop(root, "devices/rng")
            return
        found = xml.ensure(root, "devices/rng")
        found.set("model", found.get("model", "virtio"))
        backend = xml.ensure(found, "backend")
        backend.set("model", value)
        backend.text = "/dev/urandom" if value == "random" else None


class _Vsock(Field):
    def read(self, root: Element) -> t.Any:
        found = xml.first(root, "devices/vsock/cid")
        if found is None:
            return "none"
        return "auto" if found.get("auto") == "yes" else found.get("address")

    def write(self, root: Element, value: t.Any) -> None:
        if value == "none":
            xml.drop(root, "devices/vsock")
            return
        if xml.first(root, "devices/vsock") is None:
            xml.child(xml.ensure(root, "devices"), "vsock", model="virtio")
        xml.drop(root, "devices/vsock/cid")
        cid = xml.ensure(root, "devices/vsock/cid")
        cid.set("auto", "yes" if value == "auto" else "no")
        if value != "auto":
            cid.set("address", value)


class _Channels(Field):
    _NAMES: t.ClassVar[dict[str, tuple[str, str]]] = {"agent": ("unix", _AGENT), "spice": ("spicevmc", _SPICE)}

    def read(self, root: Element) -> t.Any:
        there = {found.get("name") for found in root.findall("devices/channel/target")}
        return tuple(word for word, (dummy, name) in self._NAMES.items() if name in there)

    def write(self, root: Element, value: t.Any) -> None:
        there = self.read(root)
        for word, (kind, name) in self._NAMES.items():
            if word in value and word not in there:
                channel = xml.child(xml.ensure(root, "devices"), "channel", type_=kind)
                xml.child(channel, "target", type_="virtio", name=name)
            elif word not in value and word in there:
                for found in root.findall("devices/channel"):
                    if xml.first(found, f"target[@name='{name}']") is not None:
                        found.getparent().remove(found)  # type: ignore[union-attr]


DOMAIN: dict[str, tuple[Field, ...]] = {
    "": (
        _Memory("memory", "memory", MEMORY),
        _Vcpus("vcpus", "vcpu", values.COUNT, when="live", call="vcpus"),
        _Channels("channels", "", values.CHANNELS),
    ),
    "vcpus": (
        _MaxVcpus("maximum", "vcpu", values.COUNT),
        Field("topology.sockets", "cpu/topology/@sockets", values.COUNT),
        Field("topology.dies", "cpu/topology/@dies", values.COUNT, default=1),
        Field("topology.cores", "cpu/topology/@cores", values.COUNT),
        Field("topology.threads", "cpu/topology/@threads", values.COUNT),
        _Numa("numa", "", values.CELLS),
        Field("iothreads", "iothreads", values.NUMBER, default=0),
        _Pins("pins", "cputune/vcpupin", values.PINS, same=values.within),
        _Pins("iothread_pins", "cputune/iothreadpin", values.PINS, same=values.within),
        Field("emulator_pins", "cputune/emulatorpin/@cpuset", values.CPUS),
    ),
    "memory": (
        # maxMemory: room for memory devices; the guest's own memory is part of it.
        Field("maximum", "maxMemory", MEMORY),
        Field("slots", "maxMemory/@slots", values.between(1, 256)),
        _VirtioMem("virtio_mem.size", f"{_MEM}/target/size", values.MEMORY_OR_NONE, default=0),
        _VirtioMem("virtio_mem.requested", f"{_MEM}/target/requested", values.MEMORY_OR_NONE, default=0),
        _Balloon("current", "currentMemory", MEMORY, when="live", call="balloon"),
        _Pages("hugepages", "memoryBacking/hugepages", values.PAGES),
        _Shared("shared", "memoryBacking/access", values.BOOL),
        Flag("locked", "memoryBacking/locked", values.BOOL),
        Field("nodes", "numatune/memory/@nodeset", values.CPUS),
        Field(
            "nodes_mode",
            "numatune/memory/@mode",
            choices=("strict", "preferred", "interleave", "restrictive"),
        ),
    ),
    "cpu": (
        _CpuMode(
            "mode",
            "cpu/@mode",
            choices=("host-model", "host-passthrough", "maximum", "custom"),
            offered="cpu.mode",
        ),
        _CpuModel("model", "cpu/model", values.CPU_MODEL, offered="cpu.model"),
        # libvirt's own default for these two modes; without it a feature may be there that no other host has.
        Field("migratable", "cpu/@migratable", ON_OFF, default=True),
        _Features("features", "", values.FEATURES, same=values.within),
    ),
    "firmware": (
        # Another firmware needs another variable store: the guest's boot entries and keys would be lost.
        _FirmwareType("type", "os/@firmware", when="refused", choices=("uefi", "bios")),
        _SecureBoot("secure_boot", "os/firmware/feature[@name='secure-boot']/@enabled", YES_NO, when="refused"),
        Field("enrolled_keys", "os/firmware/feature[@name='enrolled-keys']/@enabled", YES_NO, when="refused"),
    ),
    "tpm": (
        _Tpm(
            "model", "devices/tpm/@model", default="none", choices=("tpm-crb", "tpm-tis", "none"), offered="tpm.model"
        ),
    ),
    "graphics": (
        _Graphics("type", "", choices=("vnc", "spice", "none"), offered="graphics.type"),
        _Listen("listen", "@listen", values.LISTEN),
        _Port("port", "@port", values.PORT),
        _OfDisplay("password", "@passwd", values.SECRET, when="live", call="display"),
        _Gl("gl", "", choices=("none", "local", "headless")),
    ),
    "video": (
        _Video(
            "model",
            "",
            choices=("virtio", "vga", "qxl", "bochs", "cirrus", "ramfb", "none"),
            offered="video.model",
        ),
        Field("heads", "devices/video/model/@heads", values.between(1, 16), default=1),
        Field("accel3d", "devices/video/model/acceleration/@accel3d", YES_NO, default=False),
    ),
    "sound": (_Model("model", "devices/sound", choices=("ich9", "ich6", "ac97", "usb", "none")),),
    "rng": (
        _Rng("backend", "devices/rng/backend/@model", choices=("random", "builtin", "none"), offered="rng.backend"),
        Field("source", "devices/rng/backend", values.PATH),
        Field("rate.bytes", "devices/rng/rate/@bytes", values.COUNT),
        Field("rate.period", "devices/rng/rate/@period", values.COUNT),
    ),
    "watchdog": (
        _Watchdog("model", "devices/watchdog", choices=("i6300esb", "none")),
        Field(
            "action",
            "devices/watchdog/@action",
            choices=("reset", "shutdown", "poweroff", "pause", "none", "dump", "inject-nmi"),
        ),
    ),
    "vsock": (_Vsock("cid", "", values.CID),),
    "boot": (
        Field("menu", "os/bootmenu/@enable", YES_NO, default=False),
        Field("timeout", "os/bootmenu/@timeout", values.between(0, 65535)),
    ),
    "metadata": (
        Field("title", "title", values.TEXT, when="live", call="title"),
        Field("description", "description", values.LINES, when="live", call="description"),
    ),
}
"""Rows of the guest itself, by the option that holds them; the empty name is the top level.

``memory`` and ``vcpus`` stand at the top level because their short forms do (``memory: 2GiB``); the groups of the same
names hold what is said in the long forms.
"""


def settle(
    root: Element, wanted: t.Mapping[str, t.Mapping[str, t.Any]], changed: t.Collection[str]
) -> t.Iterator[PhyllomeError]:
    """Make fit what belongs together, or say why it does not. What is not changed is not judged.

    Args:
        root: the guest's element, with its declared fields and devices written.
        wanted: these fields.
        changed: paths of what was changed, as a plan has them.
    """
    groups = {path.partition(".")[0] for path in changed}
    if "vcpus" in groups:
        yield from _topology(root, wanted.get("vcpus", {}))
    if groups & {"vcpus", "memory"}:
        yield from _cell(root, wanted)
    if "vcpus" in groups or any(path.endswith(".iothread") for path in changed):
        yield from _counted(root)
    if groups & {"graphics", "video", "channels"}:
        yield from _display_parts(root)
    if groups & {"memory", "filesystems"}:
        yield from _shared_memory(root)


def _topology(root: Element, wanted: t.Mapping[str, t.Any]) -> t.Iterator[PhyllomeError]:
    """A topology has to have room for exactly the maximum of vCPUs, or libvirt refuses the guest."""
    topology = xml.first(root, "cpu/topology")
    if topology is None:
        return
    maximum, others = int(root.findtext("vcpu") or 1), 1
    for name in ("sockets", "dies", "clusters", "threads"):
        others *= int(topology.get(name, "1"))
    cores = wanted.get("topology.cores") or maximum // others
    if cores * others != maximum or not cores:
        product = cores * others if "topology.cores" in wanted else others
        yield PhyllomeError(
            f"vcpus: {maximum} does not fit the guest's CPU topology",
            f"its sockets, dies{', cores' if 'topology.cores' in wanted else ''} and threads multiply to {product}",
            f"Choose a multiple of {others}, or declare another vcpus.topology.",
        )
        return
    for name, value in (("sockets", "1"), ("cores", str(cores)), ("threads", "1")):
        if name == "cores" or topology.get(name) is None:
            topology.set(name, value)


def _cell(root: Element, wanted: t.Mapping[str, t.Mapping[str, t.Any]]) -> t.Iterator[PhyllomeError]:
    """Memory devices belong to NUMA cells, so a guest that may have some needs one; and all vCPUs are in the cells."""
    maximum, cells = int(root.findtext("vcpu") or 1), root.findall("cpu/numa/cell")
    if not cells and xml.first(root, "maxMemory") is not None:
        size = DOMAIN[""][0].read(root)
        cells = [
            xml.child(
                xml.ensure(root, "cpu/numa"), "cell", id="0", memory=MEMORY.format(size or 0), unit="KiB", cpus="0"
            )
        ]
    if len(cells) == 1 and "numa" not in wanted.get("vcpus", {}):
        cells[0].set("cpus", values.cpu_list(range(maximum)))
    listed = [number for cell in cells for number in values.cpus(cell.get("cpus", "0"))]
    if cells and sorted(listed) != list(range(maximum)):
        yield PhyllomeError(
            f"vcpus.numa: its cells have {len(listed)} vCPUs ({values.cpu_list(sorted(set(listed)))})",
            f"each of the guest's {maximum} vCPUs belongs to exactly one cell",
            "Correct the cells, or the number of vCPUs.",
        )
    if xml.first(root, _MEM) is not None and xml.first(root, "maxMemory") is None:
        yield PhyllomeError(
            "memory.virtio_mem: the guest has no room for it",
            "memory.maximum is not declared",
            "Declare memory.maximum: at least the guest's memory and memory.virtio_mem.size.",
        )
    room, total = xml.first(root, "maxMemory"), _size(xml.first(root, "memory"))
    if room is not None and _size(room) < total:
        yield PhyllomeError(
            f"memory.maximum: {MEMORY.show(_size(room))} is less than the {MEMORY.show(total)} that the guest has",
            "the guest's memory and its memory devices are part of it",
            "Declare more.",
        )
    size, requested = (_size(xml.first(root, f"{_MEM}/target/{name}")) for name in ("size", "requested"))
    if requested > size:
        yield PhyllomeError(
            f"memory.virtio_mem.requested: {MEMORY.show(requested)} is more than its size, {MEMORY.show(size)}",
            "the size is its limit",
            "Declare less, or a bigger size.",
        )


def _row(group: str, option: str) -> Field:
    return {row.option: row for row in DOMAIN[group]}[option]


def _counted(root: Element) -> t.Iterator[PhyllomeError]:
    threads = int(root.findtext("iothreads") or 0)
    for found in root.findall("devices/disk/driver"):
        if int(found.get("iothread", "0")) > threads:
            yield PhyllomeError(
                f"disks: iothread {found.get('iothread')} is used",
                f"the guest has {threads} I/O threads",
                "Declare vcpus.iothreads.",
            )
    for option, maximum in (("pins", int(root.findtext("vcpu") or 1)), ("iothread_pins", threads + 1)):
        beyond = [key for key in _row("vcpus", option).read(root) if int(key) >= maximum]
        if beyond:
            yield PhyllomeError(
                f"vcpus.{option}: there is no {beyond[0]}", f"the last one is {maximum - 1}", "Correct the numbers."
            )


def _display_parts(root: Element) -> t.Iterator[PhyllomeError]:
    read = {f"{group}.{row.option}": row.read(root) for group in ("graphics", "video") for row in DOMAIN[group]}
    if read["video.accel3d"] and read["graphics.gl"] == "none":
        yield PhyllomeError(
            "video.accel3d: true", "nobody draws for it: graphics.gl is none", "Declare graphics.gl: headless."
        )
    if read["video.accel3d"] and read["video.model"] != "virtio":
        yield PhyllomeError(
            f"video.accel3d: true with video.model: {read['video.model']}",
            "of these cards only virtio draws in 3D",
            "Declare video.model: virtio.",
        )
    if read["graphics.gl"] == "local" and (read["graphics.type"], read["graphics.listen"]) != ("spice", "none"):
        yield PhyllomeError(
            "graphics.gl: local",
            "QEMU hands pictures over to a SPICE viewer on this host only, and not by an address",
            "Declare graphics.type: spice and graphics.listen: none, or graphics.gl: headless.",
        )
    if read["graphics.gl"] == "headless" and read["graphics.type"] == "none":
        yield PhyllomeError("graphics.gl: headless", "the guest has no display", "Declare graphics.type.")
    if len(read["graphics.password"] or "") > 8 and read["graphics.type"] == "vnc":
        yield PhyllomeError(
            "graphics.password: it is too long", "VNC has passwords of up to 8 characters", "Shorten it, or use spice."
        )
    if xml.first(root, "devices/channel[@type='spicevmc']") is not None and read["graphics.type"] != "spice":
        yield PhyllomeError(
            f"channels: spice with graphics.type: {read['graphics.type']}",
            "the channel is a part of SPICE",
            "Take spice out of channels, or declare graphics.type: spice.",
        )


def _shared_memory(root: Element) -> t.Iterator[PhyllomeError]:
    if _row("memory", "shared").read(root) or root.findall("cpu/numa/cell[@memAccess='shared']"):
        return
    if xml.first(root, "devices/filesystem/driver[@type='virtiofs']") is not None:
        yield PhyllomeError(
            "memory.shared: false",
            "the guest has a virtiofs file system, which needs shared memory",
            "Declare memory.shared: true, or take the file system away.",
        )
