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
from .._core.fields import MEMORY, YES_NO, Field
from . import values
from .table_cpu import CPU, MEMORIES, VCPUS, Memory, Vcpus

if t.TYPE_CHECKING:
    from .._core.xml import Element

LOCAL = "127.0.0.1"
_AGENT = "org.qemu.guest_agent.0"
_SPICE = "com.redhat.spice.0"


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
        Memory("memory", "memory", MEMORY),
        Vcpus("vcpus", "vcpu", values.COUNT, when="live", call="vcpus"),
        _Channels("channels", "", values.CHANNELS),
    ),
    "vcpus": VCPUS,
    "memory": MEMORIES,
    "cpu": CPU,
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
