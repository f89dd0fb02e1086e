# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows of a guest's memory and processors.

Paths and meanings are those of https://libvirt.org/formatdomain.html; what changes while a guest runs is research/guests.md 5.5.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.fields import MEMORY, ON_OFF, Field, Flag
from .._core.units import parse_scaled
from . import values

if t.TYPE_CHECKING:
    from .._core.xml import Element


def size_of(found: Element | None) -> int:
    return 0 if found is None or found.text is None else parse_scaled(found.text, found.get("unit"))


def _plugged(root: Element) -> int:
    """Bytes of memory devices: libvirt counts them into ``memory``."""
    return sum(size_of(found) for found in root.findall("devices/memory/target/size"))


class Memory(Field):
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


class _Maximum(Field):
    def write(self, root: Element, value: t.Any) -> None:
        super().write(root, value)
        found = xml.ensure(root, self.path)
        found.set("slots", found.get("slots", _SLOTS))


_SLOTS = "16"
"""libvirt wants a number of DIMMs beside the maximum, also where memory comes as virtio-mem alone."""


class _Balloon(Field):
    def waiting(self, live: Element, config: Element) -> tuple[t.Any, t.Any] | None:
        """A running guest is given more and less all the time; nothing waits for its next start."""
        return None


class Vcpus(Field):
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
        if isinstance(value, values.Whole):
            # not taken out: off is off even if the model has it
            stale = [name for name, policy in self.read(root).items() if policy in values.ON and name not in value]
            value = {**value, **dict.fromkeys(stale, "disable")}
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


VIRTIO_MEM = "devices/memory[@model='virtio-mem']"


class _VirtioMem(Field):
    """A part of the memory that is plugged in pieces. The device is made by its size, and 0 takes it away."""

    def write(self, root: Element, value: t.Any) -> None:
        before = _plugged(root)
        if self.option.endswith(".size") and not value:
            xml.drop(root, VIRTIO_MEM)
        else:
            target = f"{VIRTIO_MEM}/target"
            made = xml.first(root, VIRTIO_MEM) is None
            super().write(root, value)
            if made:
                for name, text in (("node", "0"), ("block", "2048"), ("requested", "0")):
                    found = xml.ensure(root, f"{target}/{name}")
                    found.text = found.text or text
                    if name != "node":
                        found.set("unit", "KiB")
        total, more = xml.first(root, "memory"), _plugged(root) - before
        if total is not None and more:
            total.text = MEMORY.format(size_of(total) + more)
            total.set("unit", "KiB")
            xml.drop(root, "currentMemory")

    def fits(self, live: Element, value: t.Any) -> bool:
        """Only how much of the device is plugged can change."""
        return xml.first(live, VIRTIO_MEM) is not None and value <= size_of(
            xml.first(live, f"{VIRTIO_MEM}/target/size")
        )


VCPUS = (
    _MaxVcpus("maximum", "vcpu", values.COUNT),
    Field("topology.sockets", "cpu/topology/@sockets", values.COUNT),
    Field("topology.dies", "cpu/topology/@dies", values.COUNT, default=1),
    Field("topology.cores", "cpu/topology/@cores", values.COUNT),
    Field("topology.threads", "cpu/topology/@threads", values.COUNT),
    _Numa("numa", "", values.CELLS),
    Field("iothreads", "iothreads", values.NUMBER, default=0),
    _Pins("pins", "cputune/vcpupin", values.PINS, when="live", same=values.within, call="pinVcpuFlags"),
    _Pins("iothread_pins", "cputune/iothreadpin", values.PINS, when="live", same=values.within, call="pinIOThread"),
    Field("emulator_pins", "cputune/emulatorpin/@cpuset", values.CPUS, when="live", call="pinEmulator"),
)
"""What ``vcpus`` holds."""

MEMORIES = (
    # maxMemory: room for memory devices; the guest's own memory is part of it.
    _Maximum("maximum", "maxMemory", MEMORY),
    Field("slots", "maxMemory/@slots", values.between(1, 256)),
    _VirtioMem("virtio_mem.size", f"{VIRTIO_MEM}/target/size", values.MEMORY_OR_NONE, default=0),
    _VirtioMem(
        "virtio_mem.requested",
        f"{VIRTIO_MEM}/target/requested",
        values.MEMORY_OR_NONE,
        when="live",
        default=0,
        call="virtio_mem",
    ),
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
)
"""What ``memory`` holds."""

CPU = (
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
)
"""What ``cpu`` holds."""
