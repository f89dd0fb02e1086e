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
from .._core.sysfs import MANAGED_DMA, is_vfio

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
        return "pci", _address(address)
    return "other", element.get("type") or "device"


def _address(element: xml.Element) -> str:
    numbers = [int(element.get(name) or "0", 0) for name in ("domain", "bus", "slot", "function")]
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


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


@dataclasses.dataclass(frozen=True)
class Offered:
    """A device of the destination.

    Attributes:
        driver: that has it, empty without one; for what is no PCI device its kind.
        guests: others that have it, running or not.
        hosted: PCI devices of its IOMMU group that a driver of the host has.
    """

    driver: str
    guests: tuple[str, ...] = ()
    hosted: tuple[str, ...] = ()


def offered(
    connection: t.Any, uuid: str, devices: t.Sequence[Device], wanted: t.Mapping[str, str]
) -> dict[str, Offered | None]:
    """What is at the destination of the devices that a guest shall get, by id; None for no device.

    Args:
        uuid: the guest's.

    Raises:
        libvirt.libvirtError: it does not say.
    """
    found: dict[str, Offered | None] = {}
    plugged = _plugged(connection) if any(device.kind == "usb" for device in devices) else set()
    owners = _owners(connection, uuid) if any(device.id in wanted for device in devices) else {}
    for device in devices:
        new = wanted.get(device.id, device.now)
        if device.kind == "usb":
            found[device.id] = Offered("usb") if new in plugged else None
            continue
        if device.kind == "mdev":
            name = "mdev_" + new.replace("-", "_")
            nodes = connection.listAllDevices(virt.libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV)
            there = any(node.name().startswith(name) for node in nodes)
            found[device.id] = Offered("mdev", owners.get(new, ())) if there else None
            continue
        node = _node(connection, new)
        if node is None:
            found[device.id] = None
            continue
        group = [_address(one) for one in node.findall("capability/iommuGroup/address")]
        drivers = {one: _driver(_node(connection, one)) for one in group if one != new}
        guests = {name: None for one in (new, *group) for name in owners.get(one, ())}
        found[device.id] = Offered(
            _driver(node), tuple(guests), tuple(filter(lambda one: _hosted(drivers[one]), drivers))
        )
    return found


def _hosted(driver: str) -> bool:
    """Whether a group with such a driver in it can have no guest: those of bridges do no harm."""
    return driver not in ("", *MANAGED_DMA) and not is_vfio(driver)


def _node(connection: t.Any, address: str) -> xml.Element | None:
    node = virt.found(
        lambda: connection.nodeDeviceLookupByName("pci_" + re.sub(r"[^0-9a-f]", "_", address)),
        virt.libvirt.VIR_ERR_NO_NODE_DEVICE,
    )
    return None if node is None else xml.parse(node.XMLDesc())


def _driver(node: xml.Element | None) -> str:
    return "" if node is None else node.findtext("driver/name") or ""


def _owners(connection: t.Any, uuid: str) -> dict[str, tuple[str, ...]]:
    """Names of the other guests that have a device, running or defined, by what it is."""
    owners: dict[str, tuple[str, ...]] = {}
    for domain, texts in virt.domains(connection, 0, virt.libvirt.VIR_DOMAIN_XML_INACTIVE):
        if domain.UUIDString() != uuid:
            for now in {device.now for text in texts for device in of(xml.parse(text))}:
                owners[now] = (*owners.get(now, ()), domain.name())
    return owners


def _plugged(connection: t.Any) -> set[str]:
    """USB devices of a host, as vendor and product."""
    ids = set()
    for node in connection.listAllDevices(virt.libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV):
        root = xml.parse(node.XMLDesc())
        vendor, product = root.find("capability/vendor"), root.find("capability/product")
        if vendor is not None and product is not None:
            ids.add(f"{vendor.get('id', '')[2:]}:{product.get('id', '')[2:]}")
    return ids
