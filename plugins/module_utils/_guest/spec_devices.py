# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wanted of one device: options in, checked and canonical dataclass out.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core import fields
from .._core.errors import PhyllomeError
from .._core.names import check_id, check_name, check_path
from .._core.units import parse_size
from . import plug
from . import values as kinds
from .media import RESERVED
from .tables import HOSTDEVS, DeviceKind

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")

METHODS = ("full", "reflink", "linked")
"""How a disk is made from an image, see ``storage.create``."""

DEVICE_OPTIONS: dict[str, dict[str, t.Any]] = {
    "disks": {
        "size": {"type": "str"},
        "pool": {"type": "str"},
        "source": {
            "type": "dict",
            "options": {
                "path": {"type": "path", "required": True},
                "checksum": {"type": "str"},
                "method": {"type": "str", "choices": list(METHODS)},
            },
        },
    },
    "hostdevs": {
        "plug": {"type": "bool"},
        "usb": {"type": "dict", "options": {"serial": {"type": "str"}, "port": {"type": "str"}}},
    },
}
"""Options of a device that are no field of its XML."""


@dataclasses.dataclass(frozen=True)
class Source:
    """An image to make a new disk from; the checksum is ``sha256:<hex>``, the method one of ``METHODS``."""

    path: str
    checksum: str | None
    method: str = "full"


@dataclasses.dataclass(frozen=True)
class Device:
    """A declared device.

    Attributes:
        kind: its row table.
        id: its identity.
        values: canonical values of declared rows.
        size: of a disk, in bytes.
        pool: of a disk: libvirt storage pool that a new file is put into.
        source: of a disk.
        passphrase: of a disk that is encrypted.
        rule: of a USB device that is given to the guest whenever it is plugged in; it has no values then.
    """

    kind: DeviceKind
    id: str
    values: t.Mapping[str, t.Any]
    size: int | None = None
    pool: str | None = None
    source: Source | None = None
    passphrase: str | None = dataclasses.field(default=None, repr=False)
    rule: plug.Rule | None = None

    @property
    def path(self) -> str:
        """How messages and plans name it."""
        return f"{self.kind.option}.{self.id}"


def accept_device(kind: DeviceKind, entry: t.Mapping[str, t.Any]) -> Device:
    """Check one entry of a list.

    Args:
        kind: of the device.
        entry: its options, without what is not managed.

    Raises:
        PhyllomeError: the first rule that is broken.
    """
    name = check_id(entry["id"], f"{kind.option}.id")
    if name in RESERVED:
        raise PhyllomeError(
            f"{kind.option}.id: {name!r} is taken",
            "the drive for what cloud_init and install bring has this id",
            "Choose another id.",
        )
    prefix = f"{kind.option}.{name}."
    values = fields.accept(kind.rows, entry, prefix)
    given = [option for option in kind.one_of if entry.get(option) is not None]
    if len(given) > 1:
        raise PhyllomeError(
            f"{kind.option}.{name}: {given[0]} and {given[1]} are both given",
            "each of them says where it belongs",
            "Keep one of them.",
        )
    for check in _CHECKS.get(kind.option, ()):
        check(f"{kind.option}.{name}", {**entry, **values})
    rule = _rule(name, entry, values) if kind is HOSTDEVS else None
    if rule is not None:
        return Device(kind=kind, id=name, values={}, rule=rule)
    source = entry.get("source") if kind.option == "disks" else None
    return Device(
        kind=kind,
        id=name,
        values=values,
        size=None if entry.get("size") is None else _disk_size(entry["size"], f"{prefix}size"),
        pool=None if entry.get("pool") is None else check_name(entry["pool"], f"{prefix}pool"),
        source=None if source is None else _source(source, f"{prefix}source."),
        passphrase=(entry.get("encryption") or {}).get("passphrase") if kind.option == "disks" else None,
    )


def _check_disk(path: str, disk: t.Mapping[str, t.Any]) -> None:
    for option in ("size", "source", "encryption"):
        if disk.get("block") is not None and disk.get(option) is not None:
            raise PhyllomeError(
                f"{path}.{option}: given beside block",
                "a device of the host is used as it is",
                f"Leave {option} out, or make a file.",
            )
    if disk.get("shareable") and disk.get("format") != "raw":
        raise PhyllomeError(
            f"{path}.shareable: true",
            "only a raw disk keeps nothing in memory that another guest would have to know",
            "Say format: raw.",
        )
    method = (disk.get("source") or {}).get("method")
    if method == "linked" and disk.get("format") == "raw":
        raise PhyllomeError(f"{path}.source.method: linked", "a raw disk has no backing file", "Say format: qcow2.")
    if method == "reflink" and disk.get("encryption"):
        raise PhyllomeError(
            f"{path}.source.method: reflink with encryption",
            "blocks that are shared with a plain image are plain",
            "Say method: full, or linked, where only what the guest writes is encrypted.",
        )
    if disk.get("bus") == "nvme" and len(disk.get("serial") or "") > 20:
        raise PhyllomeError(
            f"{path}.serial: {disk['serial']} with bus: nvme", "NVMe has serial numbers of up to 20", "Shorten it."
        )
    if disk.get("bus", "virtio") != "virtio":
        for option in ("queues", "iothread"):
            if disk.get(option) is not None:
                raise PhyllomeError(
                    f"{path}.{option}: given with bus: {disk['bus']}", "only virtio disks have it", "Leave it out."
                )


def _check_network(path: str, card: t.Mapping[str, t.Any]) -> None:
    if card.get("user") is False:
        raise PhyllomeError(f"{path}.user: false", "it says nothing", "Say what the card is connected to.")
    if card.get("mode") and card.get("direct") is None:
        raise PhyllomeError(f"{path}.mode: {card['mode']}", "it belongs to direct", "Give direct, or leave mode out.")
    for direction in ("inbound", "outbound"):
        limits = {name: card.get(f"bandwidth.{direction}.{name}") for name in ("average", "peak", "burst")}
        if (limits["peak"] or limits["burst"]) and not limits["average"]:
            raise PhyllomeError(
                f"bandwidth.{direction}.average of {path}: missing", "peak and burst go over it", "Declare average."
            )


def usb_identity(device: Device) -> str | None:
    """By what a USB device of the host is named."""
    if device.rule is not None:
        return str(device.rule)
    vendor = device.values.get("usb.vendor")
    return None if vendor is None else str(plug.Rule("", vendor, device.values["usb.product"]))


def _rule(name: str, entry: t.Mapping[str, t.Any], given: t.Mapping[str, t.Any]) -> plug.Rule | None:
    """The plug-in rule that is declared; libvirt knows neither serial numbers nor ports, so those make one."""
    usb = entry.get("usb") or {}
    serial, port = usb.get("serial"), usb.get("port")
    if not (entry.get("plug") or serial or port):
        return None
    if port is not None:
        port = kinds.usb_port(port, f"hostdevs.{name}.usb.port")
    return plug.Rule(name, given.get("usb.vendor"), given.get("usb.product"), serial, port)


def _check_hostdev(path: str, device: t.Mapping[str, t.Any]) -> None:
    usb = device.get("usb") or {}
    ids = {name for name in ("vendor", "product") if usb.get(name) is not None}
    named = {name for name in ("serial", "port") if usb.get(name)}
    if len(ids) == 1 or ("serial" in named and not ids):
        raise PhyllomeError(f"{path}.usb: {dict(usb)}", "vendor and product together say which it is", "Give both.")
    if device.get("usb") is not None and not ids and "port" not in named:
        raise PhyllomeError(f"{path}.usb: {dict(usb)}", "it says no device", "Give vendor and product, or port.")
    if device.get("plug") is not None and device.get("usb") is None:
        raise PhyllomeError(f"{path}.plug: given without usb", "only usb devices are plugged in", "Leave plug out.")
    if device.get("plug") is False and named:
        raise PhyllomeError(
            f"{path}.plug: false with usb.{min(named)}",
            "libvirt knows neither serial numbers nor ports; plugging in goes by them",
            "Leave plug out, or name the device by vendor and product alone.",
        )
    for option in ("startup_policy", "boot"):
        if (device.get("plug") or named) and device.get(option) is not None:
            raise PhyllomeError(
                f"{path}.{option}: given for a device that comes and goes",
                "the guest starts without it, and is given it when it is there",
                f"Leave {option} out.",
            )
    for option, kind in (("managed", "pci"), ("rom", "pci"), ("startup_policy", "usb"), ("display", "mdev")):
        if device.get(option) is not None and device.get(kind) is None:
            raise PhyllomeError(
                f"{path}.{option}: given without {kind}", f"only {kind} devices have it", f"Leave {option} out."
            )


def _check_filesystem(path: str, share: t.Mapping[str, t.Any]) -> None:
    if share.get("readonly") and share.get("driver", "virtiofs") == "virtiofs":
        raise PhyllomeError(
            f"{path}.readonly: true with driver: virtiofs",
            "libvirt before 11.0 cannot do it",
            "Say driver: 9p, or share a directory that is mounted read-only.",
        )


def _check_input(path: str, device: t.Mapping[str, t.Any]) -> None:
    of_host = device.get("type") in ("evdev", "passthrough")
    if device.get("type") and of_host != (device.get("path") is not None):
        raise PhyllomeError(
            f"{path}.path: {device.get('path')} with type: {device['type']}",
            "evdev and passthrough are devices of the host, the others are not",
            "Give the path of the device, such as /dev/input/by-id/NAME-event-kbd." if of_host else "Leave path out.",
        )
    for option in ("grab", "grab_toggle", "repeat"):
        if device.get(option) is not None and device.get("type") != "evdev":
            raise PhyllomeError(f"{path}.{option}: given without type: evdev", "only evdev has it", "Leave it out.")
    fits = {"evdev": (None,), "passthrough": (None, "virtio"), "tablet": (None, "usb", "virtio")}
    if device.get("bus") not in fits.get(device.get("type") or "", (None, "usb", "virtio", "ps2")):
        raise PhyllomeError(
            f"{path}.bus: {device['bus']} with type: {device['type']}", "there is no such device", "Leave bus out."
        )


_CHECKS: dict[str, tuple[t.Callable[[str, t.Mapping[str, t.Any]], None], ...]] = {
    "disks": (_check_disk,),
    "networks": (_check_network,),
    "hostdevs": (_check_hostdev,),
    "filesystems": (_check_filesystem,),
    "inputs": (_check_input,),
}


def _disk_size(value: str, option: str) -> int:
    size = parse_size(value, option)
    if size % 512:
        raise PhyllomeError(
            f"{option}: {value!r} is not a multiple of 512 bytes",
            "disks consist of sectors",
            "Round it up, for instance to a whole MiB.",
        )
    return size


def _source(source: t.Mapping[str, t.Any], prefix: str) -> Source:
    checksum = source.get("checksum")
    if checksum is not None:
        checksum = checksum.lower()
        if not _CHECKSUM.fullmatch(checksum):
            raise PhyllomeError(
                f"{prefix}checksum: {checksum!r} is not a checksum",
                "it is 'sha256:' and 64 hexadecimal digits",
                "sha256sum prints the digits.",
            )
    return Source(check_path(source["path"], f"{prefix}path"), checksum, source.get("method") or "full")
