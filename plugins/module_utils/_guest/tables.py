# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fields of a guest: one row each. Argument spec, comparison, edit, diff and pending come from here.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.fields import INT, MEMORY, STR, YES_NO, Field, Kind
from .._core.names import check_name, check_path

if t.TYPE_CHECKING:
    from .._core.xml import Element

ALIAS = "ua-"
"""libvirt keeps an alias only when it begins so (https://libvirt.org/formatdomain.html#devices)."""

LOCAL = "127.0.0.1"
_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd"}


def _mac(value: str, option: str) -> str:
    lower = value.lower()
    if not _MAC.match(lower) or int(lower[:2], 16) & 1:
        raise PhyllomeError(
            f"{option}: {value!r} is not a MAC address of a network card",
            "it has six pairs of hexadecimal digits, and the first pair is even (unicast)",
            "Leave it out to get a stable one, or write for instance 52:54:00:12:34:56.",
        )
    return lower


def _positive(value: int, option: str) -> int:
    if value < 1:
        raise PhyllomeError(f"{option}: {value} is too small", "it counts from 1", "Write 1 or more.")
    return value


def _media(value: str, option: str) -> str:
    return check_path(value, option) if value else ""


MAC = dataclasses.replace(STR, accept=_mac, parse=lambda text, unit: text.lower())
COUNT = dataclasses.replace(INT, accept=_positive)
NAME = dataclasses.replace(STR, accept=check_name)
PATH = Kind("path", accept=check_path)
MEDIA = Kind("path", accept=_media)


class _Memory(Field):
    def write(self, root: Element, value: t.Any) -> None:
        """libvirt sets ``currentMemory`` anew from the size when it is not there."""
        super().write(root, value)
        xml.drop(root, "currentMemory")


class _Vcpus(Field):
    def write(self, root: Element, value: t.Any) -> None:
        """A topology has to have room for exactly the maximum of vCPUs, or libvirt refuses the guest."""
        super().write(root, value)
        root.find("vcpu").attrib.pop("current", None)  # type: ignore[union-attr]
        topology = xml.first(root, "cpu/topology")
        if topology is None:
            return
        others = 1
        for name in ("sockets", "dies", "clusters", "threads"):
            others *= int(topology.get(name, "1"))
        if value % others:
            raise PhyllomeError(
                f"vcpus: {value} does not fit the guest's CPU topology",
                f"its sockets, dies and threads multiply to {others}",
                f"Choose a multiple of {others}, or take <topology> out of the guest with virsh edit.",
            )
        topology.set("cores", str(value // others))


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
    def read(self, root: Element) -> t.Any:
        feature = super().read(root)
        loader = xml.first(root, "os/loader")
        return loader.get("secure") == "yes" if feature is None and loader is not None else feature


class _Tpm(Field):
    def write(self, root: Element, value: t.Any) -> None:
        if value == "none":
            xml.drop(root, "devices/tpm")
            return
        super().write(root, value)
        if xml.first(root, "devices/tpm/backend") is None:
            xml.child(xml.ensure(root, "devices/tpm"), "backend", type_="emulator", version="2.0")


class _Graphics(Field):
    def read(self, root: Element) -> t.Any:
        shown = [found.get("type") for found in root.findall("devices/graphics")]
        return next((kind for kind in shown if kind in self.choices), "none")

    def write(self, root: Element, value: t.Any) -> None:
        for kind in self.choices:
            xml.drop(root, f"devices/graphics[@type='{kind}']")
        if value == "none":
            return
        devices = xml.ensure(root, "devices")
        made = xml.child(devices, "graphics", type_=value, autoport="yes", listen=LOCAL)
        xml.child(made, "listen", type_="address", address=LOCAL)
        if xml.first(devices, "video") is None:
            # A display without a card: vga is the one that every firmware and guest knows.
            xml.child(xml.child(devices, "video"), "model", type_="vga")


class _Bus(Field):
    def write(self, root: Element, value: t.Any) -> None:
        """Another bus means another device in the guest: new address, new target name."""
        super().write(root, value)
        xml.drop(root, "address")
        target, devices = xml.ensure(root, "target"), root.getparent()
        siblings = [] if devices is None else [found for found in devices.findall("disk/target") if found is not target]
        taken = {found.get("dev") for found in siblings}
        target.set("dev", next(name for name in _device_names(_PREFIX[value]) if name not in taken))


class _Media(Field):
    def write(self, root: Element, value: t.Any) -> None:
        xml.drop(root, "source")
        root.set("type", "file")
        if value:
            super().write(root, value)


class _Link(Field):
    """``network`` or ``bridge``: the interface's type says which of them ``source`` means.

    The running guest shows both: the network, and the bridge that this network stands for.
    """

    def read(self, root: Element) -> t.Any:
        return super().read(root) if root.get("type") == self.option else None

    def write(self, root: Element, value: t.Any) -> None:
        root.set("type", self.option)
        xml.drop(root, "source")
        super().write(root, value)


def _device_names(prefix: str) -> t.Iterator[str]:
    number = 0
    while True:
        rest, name = number, ""
        while rest >= 0:
            name = chr(ord("a") + rest % 26) + name
            rest = rest // 26 - 1
        yield prefix + name
        number += 1


DOMAIN: dict[str, tuple[Field, ...]] = {
    "": (
        _Memory("memory", "memory", MEMORY),
        _Vcpus("vcpus", "vcpu", COUNT),
    ),
    "firmware": (
        # Another firmware needs another variable store: the guest's boot entries and keys would be lost.
        _FirmwareType("type", "os/@firmware", when="refused", choices=("uefi", "bios")),
        _SecureBoot("secure_boot", "os/firmware/feature[@name='secure-boot']/@enabled", YES_NO, when="refused"),
        Field("enrolled_keys", "os/firmware/feature[@name='enrolled-keys']/@enabled", YES_NO, when="refused"),
    ),
    "tpm": (_Tpm("model", "devices/tpm/@model", default="none", choices=("tpm-crb", "tpm-tis", "none")),),
    "graphics": (_Graphics("type", "", choices=("vnc", "spice", "none")),),
}
"""Rows of the guest itself, by the option that holds them; the empty name is the top level."""


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
    """

    option: str
    tag: str
    device: str | None
    rows: tuple[Field, ...]
    likeness: tuple[str, ...]
    fallback: Field

    def elements(self, root: Element) -> list[Element]:
        """The devices of this kind in a domain's element."""
        return [
            found
            for found in root.findall(f"devices/{self.tag}")
            if self.device is None or found.get("device", "disk") == self.device
        ]

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


TARGET = Field("target", "target/@dev")
BOOT = Field("boot", "boot/@order", COUNT)

DISKS = DeviceKind(
    option="disks",
    tag="disk",
    device="disk",
    rows=(
        _Bus("bus", "target/@bus", choices=("virtio", "scsi", "sata", "usb")),
        Field("path", "source/@file", PATH, when="refused"),
        Field("format", "driver/@type", when="refused", choices=("qcow2", "raw")),
        BOOT,
    ),
    likeness=("path",),
    fallback=TARGET,
)
CDROMS = DeviceKind(
    option="cdroms",
    tag="disk",
    device="cdrom",
    rows=(
        _Bus("bus", "target/@bus", choices=("sata", "scsi", "usb")),
        _Media("path", "source/@file", MEDIA, when="live", default=""),
        BOOT,
    ),
    likeness=("path",),
    fallback=TARGET,
)
NETWORKS = DeviceKind(
    option="networks",
    tag="interface",
    device=None,
    rows=(
        _Link("network", "source/@network", NAME, when="live"),
        _Link("bridge", "source/@bridge", NAME, when="live"),
        Field("mac", "mac/@address", MAC),
        Field("model", "model/@type", choices=("virtio", "e1000e", "e1000", "rtl8139")),
        BOOT,
    ),
    likeness=("mac", "network", "bridge"),
    fallback=Field("mac", "mac/@address", MAC),
)
KINDS = (DISKS, CDROMS, NETWORKS)
