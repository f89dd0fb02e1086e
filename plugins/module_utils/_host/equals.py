# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which devices of another host are equal to those that a guest has: what iommu_facts tells of both hosts decides. Pure.

Two PCI functions are equal when vendor, device and card are: what ``identity.key`` says before the place. What shares a slot
at the source shares one at the destination, function by function, but for virtual functions: each of them stands for itself.
Nothing is equal to what holds data: a guest that finds a drive of another one has lost its own.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import collections
import re
import typing as t

Facts = t.Mapping[str, t.Any]

DEVICES = "free VFIO devices"
_PCI = "pci "
_STORAGE = "01"
"""The base class of NVMe drives and of controllers of others (PCI Code and ID Assignment Specification)."""
_SHORT = re.compile(r"[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_UNUSABLE = frozenset({"bridge_driver", "platform", "noiommu", "unknown_group"})
"""What iommu_facts says of a group that no guest can have, though all that it could have of it is with VFIO."""


class Unequal(Exception):
    """There is no device for one that the guest has; what stands against it, in words."""


def of(guest: Facts) -> dict[str, str]:
    """Addresses of the PCI devices in a guest's definition, by what ``vm_migrate`` calls them.

    Args:
        guest: as phyllome_vm_info tells of it.
    """
    found = ((one["id"], address) for one, address in _held(guest) if one["defined"])
    return {str(name or address): address for name, address in found}


def _held(guest: Facts) -> t.Iterator[tuple[Facts, str]]:
    """PCI devices that a guest has, or gets when it starts, with their addresses."""
    for one in guest.get("hostdevs") or ():
        if (one["device"] or "").startswith(_PCI):
            yield one, one["device"][len(_PCI) :]


def exchangeable(guest: Facts) -> bool:
    """Whether a guest has devices of its host, and all are such that another host can have their equals.

    Those that were only plugged into the running guest do not count: it is shut down for the move.
    """
    held = [one["device"] or "" for one in guest.get("hostdevs") or () if one["defined"]]
    return bool(held) and all(one.startswith(_PCI) for one in held)


def kinds(had: t.Mapping[str, str], here: Facts | None) -> dict[str, str]:
    """Of what kind devices are that a guest has, by the same names.

    Args:
        had: their addresses, as ``of`` tells.
        here: ``phyllome_iommu`` of its host with devices and groups; None when it is not known.

    Raises:
        Unequal: that is not known of one of them, or nothing is equal to it.
    """
    known = {} if here is None else {one["address"]: one for one in here["devices"]}
    for name, address in had.items():
        if here is None:
            raise Unequal("what devices its host has is not known")
        if _kind(known.get(address)) is None:
            raise Unequal(f"its host has no {address} at the moment ({name}), so nobody knows what is equal to it")
        if known[address]["class"].startswith(_STORAGE):
            raise Unequal(
                f"{name} ({address}) is a drive or has drives, and what is on them would stay behind: "
                "declare in phyllome_guests, for the host where it goes, which one it gets"
            )
    return {name: str(_kind(known[address])) for name, address in had.items()}


def _kind(device: Facts | None) -> str | None:
    key = None if device is None else device["identity"]["key"]
    return None if key is None else str(key.partition("@")[0])


def free(there: Facts | None, guests: t.Iterable[Facts], besides: str = "") -> dict[str, Facts]:
    """Devices of a host that are with VFIO, with their whole group, and with no guest.

    Args:
        there: ``phyllome_iommu`` of the host; None when it is not known.
        guests: those that it has, as phyllome_vm_info tells of them.
        besides: uuid of one that does not count.
    """
    if there is None:
        return {}
    groups = {one["id"]: one for one in there["groups"]}
    drivers = {one["address"]: one["driver"] for one in there["devices"]}
    held = {address for guest in guests if guest["uuid"] != besides for dummy, address in _held(guest)}
    found = {}
    for device in there["devices"]:
        group = groups.get(device["group"])
        if group is None or device["address"] not in group["endpoints"]:
            continue
        if not _UNUSABLE.isdisjoint(one["code"] for one in group["reasons"]):
            continue
        hosted = any(drivers[address] is not None for address in group["bind_set"])
        if device["address"] not in group["bind_set"] and not hosted and held.isdisjoint(group["endpoints"]):
            found[device["address"]] = device
    return found


def choose(
    guest: Facts,
    here: Facts | None,
    there: Facts | None,
    devices: t.Mapping[str, Facts],
    said: t.Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The devices that a guest gets at another host, as ``hostdevs`` of ``vm_migrate``.

    Args:
        guest: as phyllome_vm_info tells of it.
        here: ``phyllome_iommu`` of its host.
        there: that of the other one.
        devices: those that it may get, as ``free`` tells.
        said: which ones are declared, by id: addresses or identities at the other host.

    Raises:
        Unequal: not all of them have an equal one there.
    """
    had = of(guest)
    chosen = {name: _named(name, value, there) for name, value in (said or {}).items() if name in had}
    rest = {name: address for name, address in sorted(had.items()) if name not in chosen}
    if not rest:
        return chosen
    wanted = kinds(rest, here)
    if here is None or there is None:
        raise Unequal("what devices it has is not known")
    virtual = {one["address"] for one in here["devices"] if _virtual(one)}
    slots: dict[str, list[str]] = {}
    for name, address in rest.items():
        slots.setdefault(address if address in virtual else _slot(address), []).append(name)
    # where more has to be at one place there is less choice
    for names in sorted(slots.values(), key=lambda names: (-len(names), names)):
        left = {
            address: device
            for address, device in devices.items()
            if address not in chosen.values() and _virtual(device) == (rest[names[0]] in virtual)
        }
        place = next(_places({rest[name]: wanted[name] for name in names}, left), None)
        if place is None:
            what = " with ".join(f"{wanted[name]} ({name})" for name in names)
            raise Unequal(f"it has no {what} that is with VFIO and free")
        chosen.update({name: place[rest[name]] for name in names})
    return chosen


def _virtual(device: Facts) -> bool:
    return bool((device["sriov"] or {}).get("physfn"))


def _slot(address: str) -> str:
    return address.rpartition(".")[0]


def _places(wanted: t.Mapping[str, str], left: t.Mapping[str, Facts]) -> t.Iterator[dict[str, str]]:
    """Where functions of a slot could be: the kinds that are wanted, by address at the source, to addresses of these.

    One alone, the second port of a card for instance, may become any other function.
    """
    for slot in left if len(wanted) == 1 else dict.fromkeys(map(_slot, left)):
        place = {one: slot if len(wanted) == 1 else f"{slot}.{one.rpartition('.')[2]}" for one in wanted}
        if all(_kind(left.get(address)) == wanted[one] for one, address in place.items()):
            yield place


def _named(name: str, value: str, there: Facts | None) -> str:
    """The address of a device that is named by its address or its identity."""
    if "@" not in value:
        return place(value)
    if there is None:
        raise Unequal("what devices it has is not known")
    found = [one["address"] for one in there["devices"] if one["identity"]["key"] == value]
    if len(found) != 1:
        many = f"{len(found)} devices" if found else "no device"
        raise Unequal(f"it has {many} {value}, as which hostdevs.{name}.pci is declared")
    return found[0]


def place(value: str) -> str:
    """An address, however it is written, as iommu_facts writes it; an identity as it is."""
    low = value.lower()
    return value if "@" in value else f"0000:{low}" if _SHORT.fullmatch(low) else low


def told(devices: t.Mapping[str, t.Any] | None) -> dict[str, Facts | None] | None:
    """``phyllome_iommu`` by host, with None for whatever is something else."""
    if devices is None:
        return None
    return {host: one if isinstance(one, t.Mapping) and "devices" in one else None for host, one in devices.items()}


class Exchange:
    """What all hosts have, and what of it was given away in one plan.

    Args:
        found: the guests of every host, as phyllome_vm_info tells of them; None for a host that did not answer.
        devices: ``phyllome_iommu`` by host; None for a host that did not tell.
        declared: addresses and identities of devices that guests are declared with, by host and name of the guest: nobody
            else gets them.
    """

    def __init__(
        self,
        found: t.Mapping[str, t.Sequence[Facts] | None],
        devices: t.Mapping[str, Facts | None] | None,
        declared: t.Mapping[str, t.Mapping[str, t.Collection[str]]] | None = None,
    ) -> None:
        self.found, self.devices, self.declared = found, devices or {}, declared or {}
        self.given: dict[str, list[str]] = collections.defaultdict(list)
        self._free: dict[str, dict[str, Facts]] = {}

    def free(self, host: str, guest: Facts | None = None) -> dict[str, Facts]:
        """What a guest can get there, which may have some of it there already."""
        there, guests = self.devices.get(host), self.found.get(host) or ()
        if host not in self._free:
            self._free[host] = free(there, guests)
        found = self._free[host]
        if guest is not None and any(one["uuid"] == guest["uuid"] for one in guests):
            found = free(there, guests, guest["uuid"])
        taken = {*self.given[host]}
        for name, places in self.declared.get(host, {}).items():
            taken.update(() if guest is not None and guest["name"] == name else map(place, places))
        every = there["devices"] if there is not None and taken else ()
        groups = {one["group"] for one in every if one["address"] in taken or one["identity"]["key"] in taken}
        return {address: device for address, device in found.items() if device["group"] not in groups}

    def room(self, host: str) -> dict[str, int]:
        """How many there are of each kind, by words for it."""
        return _counted(map(_kind, self.free(host).values()))

    def needs(self, guest: Facts, host: str) -> dict[str, int]:
        """How many a guest needs of each kind, by the same words.

        Raises:
            Unequal: nobody knows.
        """
        return _counted(kinds(of(guest), self.devices.get(host)).values())

    def against(self, guest: Facts, source: str, destination: str) -> str | None:
        """Why the guest cannot have its devices' equals there, were it the next one to go; None when it can."""
        try:
            self._chosen(guest, source, destination, {})
        except Unequal as reason:
            return str(reason)
        return None

    def give(
        self, guest: Facts, source: str, destination: str, said: t.Mapping[str, str] | None = None
    ) -> dict[str, t.Any]:
        """``hostdevs`` of the guest's move, nothing for one without; nobody else gets them then.

        There is nothing either for one whose move was begun and finds no equals any more: it may be off and fenced, and
        vm_migrate, which knows how far it came, ends the move or takes it back.

        Args:
            guest: as phyllome_vm_info tells of it at the source.
            said: as for ``choose``.

        Raises:
            Unequal: as from ``choose``.
        """
        if not of(guest):
            return {}
        try:
            chosen = self._chosen(guest, source, destination, said or {})
        except Unequal:
            if (guest.get("migration") or {"phase": "done"})["phase"] == "done":
                raise
            return {}
        self.given[destination] += chosen.values()
        return {"hostdevs": chosen}

    def _chosen(self, guest: Facts, source: str, destination: str, said: t.Mapping[str, str]) -> dict[str, str]:
        # where its move was begun it has some already
        begun = next((one for one in self.found.get(destination) or () if one["uuid"] == guest["uuid"]), {})
        here, there = self.devices.get(source), self.devices.get(destination)
        return choose(guest, here, there, self.free(destination, guest), {**said, **of(begun)})


def _counted(found: t.Iterable[str | None]) -> dict[str, int]:
    return dict(collections.Counter(f"{DEVICES} {kind}" for kind in found if kind))
