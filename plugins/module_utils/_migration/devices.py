# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices of a host that a guest has, and those that it gets at the destination.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core import virt, xml

_ALIAS = "ua-"
_PCI = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of the source that a guest has.

    Attributes:
        id: as in ``phyllome_vm``; what it is now, for a device without one.
        kind: ``pci``, ``usb`` (by what it is, not where it is plugged in), ``mdev``, or ``other``.
        now: which one it is, for instance ``0000:01:00.0`` or ``8087:0a2b``.
    """

    id: str
    kind: str
    now: str


def of(root: xml.Element) -> tuple[Device, ...]:
    """A guest's devices of its host. Pure."""
    return tuple(_device(element) for element in _elements(root))


def _elements(root: xml.Element) -> list[xml.Element]:
    return [*root.findall("devices/hostdev"), *root.findall("devices/interface[@type='hostdev']")]


def _device(element: xml.Element) -> Device:
    kind, now = _which(element)
    return Device(id_of(element) or now, kind, now)


def id_of(element: xml.Element) -> str:
    """The id that a device has in ``phyllome_vm``, empty without. Pure."""
    alias = element.find("alias")
    name = "" if alias is None else alias.get("name", "")
    return name[len(_ALIAS) :] if name.startswith(_ALIAS) else ""


def _which(element: xml.Element) -> tuple[str, str]:
    address = element.find("source/address")
    vendor, product = element.find("source/vendor"), element.find("source/product")
    if vendor is not None and product is not None:
        return "usb", f"{vendor.get('id', '')[2:]}:{product.get('id', '')[2:]}"
    if address is not None and address.get("uuid"):
        return "mdev", address.get("uuid", "")
    if address is not None and address.get("slot"):
        numbers = [int(address.get(name) or "0", 0) for name in ("domain", "bus", "slot", "function")]
        return "pci", "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)
    return "other", element.get("type") or "device"


def exchange(root: xml.Element, wanted: t.Mapping[str, str]) -> None:
    """Give the guest other devices, in place.

    Args:
        root: its definition.
        wanted: by id.
    """
    for element in _elements(root):
        device = _device(element)
        new, address = wanted.get(device.id), element.find("source/address")
        if new is None or address is None:
            continue
        found = _PCI.fullmatch(new)
        if device.kind == "pci" and found:
            for name, value in zip(("domain", "bus", "slot", "function"), found.groups()):
                address.set(name, f"0x{value}")
        elif device.kind == "mdev":
            address.set("uuid", new)


def offered(connection: t.Any, devices: t.Iterable[Device], wanted: t.Mapping[str, str]) -> dict[str, str | None]:
    """What is at the destination of the devices that a guest shall get, by id: the driver it has, None for no device.

    Raises:
        libvirt.libvirtError: it does not say.
    """
    found: dict[str, str | None] = {}
    plugged: set[str] | None = None
    for device in devices:
        new = wanted.get(device.id, device.now)
        if device.kind == "usb":
            plugged = _plugged(connection) if plugged is None else plugged
            found[device.id] = "usb" if new in plugged else None
            continue
        if device.kind == "mdev":
            name = "mdev_" + new.replace("-", "_")
            nodes = connection.listAllDevices(virt.libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV)
            found[device.id] = "mdev" if any(node.name().startswith(name) for node in nodes) else None
            continue
        name = "pci_" + re.sub(r"[^0-9a-f]", "_", new)
        node = virt.found(
            lambda name=name: connection.nodeDeviceLookupByName(name),  # type: ignore[misc]
            virt.libvirt.VIR_ERR_NO_NODE_DEVICE,
        )
        found[device.id] = None if node is None else xml.parse(node.XMLDesc()).findtext("driver/name") or ""
    return found


def _plugged(connection: t.Any) -> set[str]:
    """USB devices of a host, as vendor and product."""
    ids = set()
    for node in connection.listAllDevices(virt.libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV):
        root = xml.parse(node.XMLDesc())
        vendor, product = root.find("capability/vendor"), root.find("capability/product")
        if vendor is not None and product is not None:
            ids.add(f"{vendor.get('id', '')[2:]}:{product.get('id', '')[2:]}")
    return ids
