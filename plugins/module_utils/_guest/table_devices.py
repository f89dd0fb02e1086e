# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lists of a guest's devices and the fields of each device: one row each.

Paths and meanings are those of https://libvirt.org/formatdomain.html; what changes while a guest runs is research/guests.md 5.5.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core import xml
from .._core.fields import ON_OFF, YES_NO, Field, Flag
from . import luks, values

if t.TYPE_CHECKING:
    from .._core.xml import Element

ALIAS = "ua-"
"""libvirt keeps an alias only when it begins so (https://libvirt.org/formatdomain.html#devices)."""

_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd"}


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """One list option: devices with an ``id``.

    Attributes:
        option: the list's name.
        tag: the element below ``devices``.
        device: the element's ``device`` attribute, where the tag alone does not say what it is.
        rows: its fields.
        likeness: fields by which a device that has no id yet is recognised when a guest is adopted.
        fallback: path of what identifies a device that is not ours.
        one_of: options of which at most one is given.
        needed: options of which a new device needs one.
        told: options that say what it is, in one word.
        doubted: whether a declared device that is like none of an adopted guest's is a mistake rather than a new one.
    """

    option: str
    tag: str
    device: str | None
    rows: tuple[Field, ...]
    likeness: tuple[str, ...]
    fallback: Field
    one_of: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    doubted: bool = False

    def elements(self, root: Element) -> list[Element]:
        """The devices of this kind in a domain's element."""
        return [found for found in root.findall(f"devices/{self.tag}") if self.is_one(found)]

    def is_one(self, found: Element) -> bool:
        """Whether an element of the kind's tag is of the kind."""
        return self.device is None or found.get("device", "disk") == self.device

    def label(self, device: Element) -> str:
        """The id of a device, or what identifies it when it is not ours."""
        return device_id(device) or str(self.fallback.read(device) or "")

    def row(self, option: str) -> Field:
        """The row of that name."""
        return next(row for row in self.rows if row.option == option)


def device_id(device: Element) -> str | None:
    """The id that stands in a device's user alias."""
    alias = xml.first(device, "alias")
    name = "" if alias is None else alias.get("name", "")
    return name[len(ALIAS) :] if name.startswith(ALIAS) else None


class _Bus(Field):
    def write(self, root: Element, value: t.Any) -> None:
        """Another bus means another device in the guest: new address, new target name."""
        super().write(root, value)
        xml.drop(root, "address")
        target, devices = xml.ensure(root, "target"), root.getparent()
        siblings = [] if devices is None else [found for found in devices.findall("disk/target") if found is not target]
        taken = {found.get("dev") for found in siblings}
        target.set("dev", free_name(value, taken))


class _Media(Field):
    def write(self, root: Element, value: t.Any) -> None:
        xml.drop(root, "source")
        root.set("type", "file")
        if value:
            super().write(root, value)


class _Block(Field):
    """A device of the host: the disk's type says what ``source`` means."""

    def write(self, root: Element, value: t.Any) -> None:
        root.set("type", "block")
        xml.drop(root, "source")
        super().write(root, value)


class _Encryption(Field):
    def read(self, root: Element) -> t.Any:
        found = luks.encryption(root)
        return None if found is None else found.get("format")


class _Link(Field):
    """``network``, ``bridge`` or ``direct``: the interface's type says which of them ``source`` means.

    The running guest shows both: the network, and the bridge that this network stands for.
    """

    def read(self, root: Element) -> t.Any:
        return super().read(root) if root.get("type") == self.option else None

    def write(self, root: Element, value: t.Any) -> None:
        source = xml.first(root, "source")
        mode = "bridge" if source is None else source.get("mode", "bridge")
        root.set("type", self.option)
        xml.drop(root, "source")
        super().write(root, value)
        if self.option == "direct":
            root.find("source").set("mode", mode)  # type: ignore[union-attr]


class _User(Field):
    def read(self, root: Element) -> t.Any:
        return root.get("type") == "user"

    def write(self, root: Element, value: t.Any) -> None:
        if value:
            root.set("type", "user")
            xml.drop(root, "source")


class _Limit(Field):
    """0 takes the limit away; libvirt drops what is 0, and an element that says nothing."""

    def write(self, root: Element, value: t.Any) -> None:
        head, dummy, last = self.path.rpartition("/")
        if value:
            super().write(root, value)
        elif last.startswith("@"):
            found = xml.first(root, head)
            if found is not None:
                found.attrib.pop(last[1:], None)
                if "average" not in found.attrib:
                    xml.drop(root, head)
        else:
            xml.drop(root, self.path)
        parent = xml.first(root, self.path.partition("/")[0])
        if parent is not None and not len(parent):
            root.remove(parent)


class _Filter(Field):
    def write(self, root: Element, value: t.Any) -> None:
        xml.drop(root, "filterref")
        if value:
            super().write(root, value)


class _Vlan(Field):
    """One tag; 0 takes it away."""

    def write(self, root: Element, value: t.Any) -> None:
        xml.drop(root, "vlan")
        if value:
            super().write(root, value)


class _HostDevice(Field):
    """What of the host is meant; ``path`` is below ``source``, the option's first word is the type."""

    @property
    def _type(self) -> str:
        return self.option.partition(".")[0]

    def read(self, root: Element) -> t.Any:
        return super().read(root) if root.get("type") == self._type else None

    def write(self, root: Element, value: t.Any) -> None:
        if root.get("type") != self._type:
            root.set("type", self._type)
            xml.drop(root, "source")
            for name in ("managed", "model", "display"):
                root.attrib.pop(name, None)
        root.set("mode", "subsystem")
        if self._type == "mdev":
            root.set("model", root.get("model", "vfio-pci"))
        self._put(root, value)

    def _put(self, root: Element, value: t.Any) -> None:
        super().write(root, value)


class _Pci(_HostDevice):
    def read(self, root: Element) -> t.Any:
        found = xml.first(root, "source/address") if root.get("type") == "pci" else None
        if found is None:
            return None
        domain, bus, slot, function = (int(found.get(name, "0"), 0) for name in ("domain", "bus", "slot", "function"))
        return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"

    def _put(self, root: Element, value: t.Any) -> None:
        # Not managed: vfio_bind has asked whether the host can do without it; libvirt would take it without a question.
        root.set("managed", root.get("managed", "no"))
        domain, bus, rest = value.split(":")
        slot, function = rest.split(".")
        address = xml.ensure(root, "source/address")
        for name, text in (("domain", domain), ("bus", bus), ("slot", slot), ("function", function)):
            address.set(name, f"0x{text}")


class _HostDeviceName(Field):
    def read(self, root: Element) -> t.Any:
        return host_device(root)


class _Driver9p(Field):
    _WORDS: t.ClassVar[dict[str, str]] = {"path": "9p"}

    def read(self, root: Element) -> t.Any:
        found = xml.first(root, "driver")
        word = "path" if found is None else found.get("type", "path")
        return self._WORDS.get(word, word)

    def write(self, root: Element, value: t.Any) -> None:
        xml.ensure(root, "driver").set("type", "path" if value == "9p" else value)
        # Both see the files with the ids that they have on the host; mapped would hide them in attributes.
        root.set("accessmode", "passthrough")


class _InputPath(Field):
    """libvirt has two words for it: ``evdev`` where the guest gets the whole device, ``dev`` where its events."""

    def read(self, root: Element) -> t.Any:
        source = xml.first(root, "source")
        return None if source is None else source.get("evdev") or source.get("dev")

    def write(self, root: Element, value: t.Any) -> None:
        xml.ensure(root, "source").set("evdev" if root.get("type") == "passthrough" else "dev", value)


def host_device(root: Element) -> str | None:
    """The device of the host that a ``hostdev`` or an ``interface`` of a guest is, as ``pci 0000:01:00.0``."""
    for option in ("pci", "usb.vendor", "mdev"):
        row = HOSTDEVS.row(option)
        found = PCI_OF_CARD.read(root) if root.tag == "interface" and root.get("type") == "hostdev" else row.read(root)
        if found:
            product = HOSTDEVS.row("usb.product").read(root) if option == "usb.vendor" else None
            return f"{option.partition('.')[0]} {found}{':' + product if product else ''}"
    return None


def free_name(bus: str, taken: t.Container[str | None]) -> str:
    """The first target name of a bus that is not taken."""
    return next(name for name in _device_names(bus) if name not in taken)


def _device_names(bus: str) -> t.Iterator[str]:
    number = 0
    while True:
        if bus == "nvme":
            yield f"nvme{number}n1"  # a controller for each disk, which then has a serial number of its own
            number += 1
            continue
        rest, name = number, ""
        while rest >= 0:
            name = chr(ord("a") + rest % 26) + name
            rest = rest // 26 - 1
        yield _PREFIX[bus] + name
        number += 1


class _PciOfCard(_Pci):
    def read(self, root: Element) -> t.Any:
        copied = xml.element("hostdev", type_="pci")
        source = xml.first(root, "source/address")
        if source is not None:
            xml.child(xml.child(copied, "source"), "address", **{str(k): str(v) for k, v in source.attrib.items()})
        return super().read(copied)


PCI_OF_CARD = _PciOfCard("pci", "source/address", values.PCI)
TARGET = Field("target", "target/@dev")
BOOT = Field("boot", "boot/@order", values.COUNT)


def _throttle(name: str, kind: t.Any) -> Field:
    return _Limit(f"iotune.{name}", f"iotune/{name}", kind, when="live", default=0, call="iotune")


def _bandwidth(direction: str) -> tuple[Field, ...]:
    return tuple(
        _Limit(
            f"bandwidth.{direction}.{name}",
            f"bandwidth/{direction}/@{name}",
            values.NUMBER,
            when="live",
            default=0,
        )
        for name in ("average", "peak", "burst")
    )


DISKS = DeviceKind(
    option="disks",
    tag="disk",
    device="disk",
    rows=(
        _Bus("bus", "target/@bus", choices=("virtio", "scsi", "sata", "usb", "nvme"), offered="disk.bus"),
        Field("path", "source/@file", values.PATH, when="refused"),
        _Block("block", "source/@dev", values.PATH, when="refused"),
        Field("format", "driver/@type", when="refused", choices=("qcow2", "raw")),
        _Encryption("encryption", "source/encryption/@format", values.ENCRYPTION, when="refused"),
        BOOT,
        Field("cache", "driver/@cache", choices=("none", "writeback", "writethrough", "directsync", "unsafe")),
        Field("io", "driver/@io", choices=("native", "threads", "io_uring")),
        Field("discard", "driver/@discard", choices=("unmap", "ignore")),
        Field("detect_zeroes", "driver/@detect_zeroes", choices=("off", "on", "unmap")),
        Field("iothread", "driver/@iothread", values.COUNT),
        Field("queues", "driver/@queues", values.between(1, 1024)),
        Field("serial", "serial", values.SERIAL),
        Flag("readonly", "readonly", values.BOOL),
        Flag("shareable", "shareable", values.BOOL),
        *(_throttle(f"{what}_bytes_sec", values.BYTES) for what in ("total", "read", "write")),
        *(_throttle(f"{what}_iops_sec", values.NUMBER) for what in ("total", "read", "write")),
    ),
    likeness=("path", "block"),
    fallback=TARGET,
    one_of=("path", "pool", "block"),
    told=("path", "block"),
    doubted=True,
)
CDROMS = DeviceKind(
    option="cdroms",
    tag="disk",
    device="cdrom",
    rows=(
        _Bus("bus", "target/@bus", choices=("sata", "scsi", "usb"), offered="disk.bus"),
        _Media("path", "source/@file", values.MEDIA, when="live", default=""),
        BOOT,
    ),
    likeness=("path",),
    fallback=TARGET,
    told=("path",),
    doubted=True,
)
NETWORKS = DeviceKind(
    option="networks",
    tag="interface",
    device=None,
    rows=(
        _Link("network", "source/@network", values.NAME, when="live"),
        _Link("bridge", "source/@bridge", values.NAME, when="live"),
        _Link("direct", "source/@dev", values.NAME),
        Field("mode", "source/@mode", choices=("bridge", "vepa", "private", "passthrough")),
        _User("user", "", values.BOOL),
        Field("mac", "mac/@address", values.MAC),
        Field("model", "model/@type", choices=("virtio", "e1000e", "e1000", "rtl8139")),
        BOOT,
        Field("queues", "driver/@queues", values.between(1, 256)),
        _Vlan("vlan", "vlan/tag/@id", values.between(0, 4094), when="live", default=0),
        Field("mtu", "mtu/@size", values.between(68, 65535)),
        Field("link", "link/@state", when="live", default="up", choices=("up", "down")),
        _Filter("filter", "filterref/@filter", values.NAME_OR_NONE, when="live", default=""),
        *_bandwidth("inbound"),
        *_bandwidth("outbound"),
        Field("acpi_index", "acpi/@index", values.between(1, 16383)),
    ),
    likeness=("mac", "network", "bridge", "direct"),
    fallback=Field("mac", "mac/@address", values.MAC),
    one_of=("network", "bridge", "direct", "user"),
    needed=("network", "bridge", "direct", "user"),
    told=("network", "bridge", "direct"),
    doubted=True,
)
HOSTDEVS = DeviceKind(
    option="hostdevs",
    tag="hostdev",
    device=None,
    rows=(
        _Pci("pci", "source/address", values.PCI_DEVICE),
        _HostDevice("usb.vendor", "source/vendor/@id", values.USB_ID),
        _HostDevice("usb.product", "source/product/@id", values.USB_ID),
        _HostDevice("mdev", "source/address/@uuid", values.UUID),
        Field("managed", "@managed", YES_NO),
        Field("startup_policy", "source/@startupPolicy", choices=("mandatory", "requisite", "optional")),
        Field("rom.bar", "rom/@bar", ON_OFF, default=True),
        Field("rom.file", "rom/@file", values.PATH),
        Field("display", "@display", ON_OFF, default=False),
        BOOT,
    ),
    likeness=("pci", "usb.vendor", "mdev"),
    fallback=_HostDeviceName("device", ""),
    one_of=("pci", "usb", "mdev"),
    needed=("pci", "usb.vendor", "mdev"),
    told=("pci", "usb.vendor", "mdev"),
)
FILESYSTEMS = DeviceKind(
    option="filesystems",
    tag="filesystem",
    device=None,
    rows=(
        _Driver9p("driver", "", choices=("virtiofs", "9p")),
        Field("source", "source/@dir", values.PATH),
        Field("tag", "target/@dir", values.TAG),
        Flag("readonly", "readonly", values.BOOL),
    ),
    likeness=("tag",),
    fallback=Field("tag", "target/@dir"),
    needed=("source",),
    told=("source",),
)
INPUTS = DeviceKind(
    option="inputs",
    tag="input",
    device=None,
    rows=(
        Field("type", "@type", choices=("tablet", "mouse", "keyboard", "evdev", "passthrough")),
        Field("bus", "@bus", choices=("usb", "virtio", "ps2")),
        _InputPath("path", "", values.PATH),
        Field("grab", "source/@grab", choices=("all",)),
        Field(
            "grab_toggle",
            "source/@grabToggle",
            choices=("ctrl-ctrl", "alt-alt", "shift-shift", "meta-meta", "scrolllock", "ctrl-scrolllock"),
        ),
        Field("repeat", "source/@repeat", ON_OFF, default=False),
    ),
    likeness=("path", "type"),
    fallback=Field("type", "@type"),
    needed=("type",),
    told=("path", "type"),
)
KINDS = (DISKS, CDROMS, NETWORKS, HOSTDEVS, FILESYSTEMS, INPUTS)

NOT_FOR = {
    "user": ("mtu", "filter", "vlan", "queues", "bandwidth"),
    "direct": ("mtu", "filter"),
}
"""What libvirt 9.0 refuses, drops or does nothing about for a card of this type; each was tried."""


def unfit(kind: DeviceKind, found: Element, declared: t.Mapping[str, t.Any]) -> t.Iterator[tuple[str, str]]:
    """Declared options that would mean nothing for the device, each with the reason."""
    if kind is not NETWORKS:
        return
    for option, value in declared.items():
        if value and option.partition(".")[0] in NOT_FOR.get(found.get("type", ""), ()):
            yield option, f"a card of type {found.get('type')} has no such thing"
    model = kind.row("model").read(found)
    if declared.get("queues", 1) > 1 and model != "virtio":
        yield "queues", f"only virtio cards have queues, and this is {model}"
