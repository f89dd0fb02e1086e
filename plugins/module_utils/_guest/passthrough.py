# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The devices of the host that guests are given: which there are, who has them, whether they are ready.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from .._core import virt, xml
from . import plug
from .tables import HOSTDEVS, host_device

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .read import Guest
    from .spec import Device, Wanted


@dataclasses.dataclass(frozen=True)
class Function:
    """A PCI function of the host.

    Attributes:
        group: number of its IOMMU group; None where there is none.
        driver: that has it now.
        hazards: what stands against taking it from the host, as iommu_facts names it.
    """

    address: str
    key: str | None
    group: int | None
    driver: str | None
    hazards: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """An IOMMU group.

    Attributes:
        endpoints: what of it can be given to a guest.
        hosted: those that a driver of the host has.
    """

    endpoints: tuple[str, ...]
    hosted: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pci:
    """What iommu_facts tells of this host.

    Attributes:
        state: of the IOMMU.
        remedy: what to do where it is not on.
    """

    state: str
    remedy: str | None
    functions: t.Mapping[str, Function]
    groups: t.Mapping[int, Group]

    def at(self, key: str) -> list[str]:
        """Addresses of the functions with an identity key."""
        return [found.address for found in self.functions.values() if found.key == key]


@dataclasses.dataclass(frozen=True)
class Devices:
    """All that a plan for a guest's host devices depends on; None and a missing key mean that it was not looked at.

    Attributes:
        pci: see Pci.
        usb: the devices that are plugged in.
        there: whether the host has it, by ``table_devices.host_device``.
        owners: names of other guests that have it, by the same.
        claims: rules of other guests, and what they have of USB as rules.
        program: whether the host has the program that plugs devices in.
        session: whether the guest belongs to an ordinary user.
        foreseen: addresses of devices that will be bound by the time the guest is given them.
    """

    pci: Pci | None = None
    usb: tuple[plug.Device, ...] = ()
    there: t.Mapping[str, bool] = dataclasses.field(default_factory=dict)
    owners: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    claims: tuple[tuple[str, plug.Rule], ...] = ()
    program: bool | None = None
    session: bool = False
    foreseen: t.Collection[str] = ()


PROGRAM = "/usr/local/lib/phyllome/plug.py"
"""Where the role phyllome.virt.hypervisor puts ``plug.py``."""


def read_pci() -> Pci:
    """What iommu_facts tells of this host."""
    from .._iommu import facts  # only here: compiling it takes a tenth of a second of every run that needs it

    found = facts.gather("/", ("iommu", "groups", "devices"))
    functions = {
        one["address"]: Function(
            one["address"],
            one["identity"]["key"],
            one["group"],
            one["driver"],
            tuple(hazard["code"] for hazard in one["hazards"] if hazard["code"] != "other_guest"),
        )
        for one in found["devices"]
    }
    groups = {
        one["id"]: Group(
            tuple(one["endpoints"]),
            tuple(name for name in one["bind_set"] if functions[name].driver is not None),
        )
        for one in found["groups"]
    }
    return Pci(found["iommu"]["state"], found["iommu"]["remedy"], functions, groups)


def placed(wanted: Wanted, pci: Pci | None) -> Wanted:
    """The same with addresses in the place of identity keys that one function has; the others stay."""
    if pci is None:
        return wanted

    def place(device: Device) -> Device:
        found = pci.at(device.values["pci"]) if is_key(device.values.get("pci")) else []
        if len(found) != 1:
            return device
        return dataclasses.replace(device, values={**device.values, "pci": found[0]})

    listed = tuple(place(device) for device in wanted.devices[HOSTDEVS.option])
    return dataclasses.replace(wanted, devices={**wanted.devices, HOSTDEVS.option: listed})


def is_key(value: str | None) -> bool:
    """Whether a PCI device is named by its identity and not by its address."""
    return value is not None and "@" in value


def look(
    connection: t.Any, wanted: Wanted, there: Guest | None, pci: Pci | None, others: t.Sequence[Wanted], session: bool
) -> Devices:
    """What the host devices of one guest depend on.

    Args:
        connection: a ``libvirt.virConnect``.
        wanted: with all keys in their places.
        there: the guest.
        pci: as ``read_pci`` tells; None where no PCI device is declared.
        others: what is declared of other guests in the same run.
        session: whether the guest belongs to an ordinary user.
    """
    declared = wanted.devices.get(HOSTDEVS.option, ())
    held = [] if there is None else [host_device(found) for found in HOSTDEVS.elements(there.config)]
    names = {name for name in (*held, *(_named(device) for device in declared)) if name}
    if not declared:
        return Devices(there={name: _plugged_in(name) for name in names})
    owners: dict[str, tuple[str, ...]] = {}
    claims: list[tuple[str, plug.Rule]] = []
    for name, owned, rules in (*_guests(connection, there), *(_declared(other, pci) for other in others)):
        for device in owned:
            owners[device] = tuple(dict.fromkeys((*owners.get(device, ()), name)))
        claims += [(name, rule) for rule in rules if (name, rule) not in claims]
    ruled = any(device.rule for device in declared)
    return Devices(
        pci=pci,
        usb=plug.devices(),
        there={name: _plugged_in(name) for name in names},
        owners=owners,
        claims=tuple(claims),
        program=os.path.exists(PROGRAM) if ruled else None,
        session=session,
    )


_Has = tuple[str, set[str], tuple[plug.Rule, ...]]


def _guests(connection: t.Any, there: Guest | None) -> t.Iterator[_Has]:
    """Other guests, what they have, running or defined, and their rules."""
    for other, texts in virt.domains(connection, 0, virt.libvirt.VIR_DOMAIN_XML_INACTIVE):
        if there is not None and other.UUIDString() == there.uuid:
            continue
        rules: tuple[plug.Rule, ...] = ()
        owned: set[str] = set()
        for root in map(xml.parse, texts):
            rules = plug.rules(root)
            held = [*root.findall("devices/hostdev"), *root.findall("devices/interface[@type='hostdev']")]
            owned |= {name for name in map(host_device, held) if name}
        yield other.name(), owned, (*rules, *_as_rules(owned))


def _declared(other: Wanted, pci: Pci | None) -> _Has:
    """What is declared of another guest."""
    listed = placed(other, pci).devices[HOSTDEVS.option]
    owned = {name for name in map(_named, listed) if name}
    return other.name, owned, (*(device.rule for device in listed if device.rule), *_as_rules(owned))


def _as_rules(owned: t.Iterable[str]) -> t.Iterator[plug.Rule]:
    """A guest that is given a USB device by its identifiers takes any such device."""
    for name in owned:
        kind, dummy, device = name.partition(" ")
        if kind == "usb":
            yield plug.Rule("", *device.split(":"))


def _named(device: Device) -> str | None:
    if device.rule is not None or is_key(device.values.get("pci")):
        return None
    made: Element = xml.element(HOSTDEVS.tag)
    for row in HOSTDEVS.rows:
        if row.option in device.values:
            row.write(made, device.values[row.option])
    return host_device(made)


def _plugged_in(name: str) -> bool:
    """Whether the host has a device that ``host_device`` has named."""
    bus, dummy, device = name.partition(" ")
    if bus == "usb":
        return device in {f"{found.vendor}:{found.product}" for found in plug.devices()}
    return os.path.exists(f"/sys/bus/{bus}/devices/{device}")
