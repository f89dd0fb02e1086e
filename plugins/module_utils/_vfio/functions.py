# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Virtual functions: how many of them a card is to have, and which addresses they get. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import PhyllomeError
from .._core.plan import Change
from .._core.sysfs import PCI_ADDRESS, is_vfio
from .groups import Refusal, refusal
from .ledger import Functions, Ledger
from .read import World
from .spec import Wanted, find

Device = t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Made:
    """What becomes of the virtual functions that are asked for.

    Attributes:
        there: addresses of those that are there as they are to be.
        coming: addresses of those that will be made; empty for cards that do not say.
        changes: of numbers.
        entries: of the ledger, by address of the physical function.
        refused: what stands against it.
    """

    there: tuple[str, ...] = ()
    coming: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    entries: t.Mapping[str, Functions] = dataclasses.field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()


def make(wanted: Wanted, world: World) -> Made:
    """Compare the numbers of virtual functions with those that are there.

    Raises:
        PhyllomeError: a card has none to offer, or not as many.
    """
    made = Made()
    for name, count in wanted.functions:
        device = world.devices[find(name, world.facts)]
        address, sriov = device["address"], device["sriov"]
        _check(device, count)
        old = world.ledger.functions.get(address)
        ids = f"{device['vendor']}:{device['device']}" + (f"/{device['subsystem']}" if device["subsystem"] else "")
        entry = Functions(
            device["identity"]["key"],
            ids,
            count,
            wanted.persist,
            old.number if old else sriov["numvfs"],
            old.autoprobe if old else sriov["autoprobe"],
        )
        made = dataclasses.replace(made, entries={**made.entries, address: entry})
        if sriov["numvfs"] == count:
            made = dataclasses.replace(made, there=(*made.there, *sriov["vfs"]))
            continue
        coming = _addresses(address, count, world)
        args = {"address": address, "count": count, "autoprobe": False}
        change = Change("functions", f"functions.{address}.count", sriov["numvfs"], count, "live", args=args)
        made = dataclasses.replace(
            made,
            coming=(*made.coming, *coming),
            changes=(*made.changes, change),
            refused=(*made.refused, *in_use(sriov["vfs"], world)),
        )
    return made


def _check(device: Device, count: int) -> None:
    address, sriov = device["address"], device["sriov"]
    if sriov is None or sriov["totalvfs"] is None:
        why = "it is a virtual function itself" if sriov and sriov["physfn"] else "it has no virtual functions"
        raise PhyllomeError(f"functions: {address}", why, "Name the physical function of a card with SR-IOV.")
    if count > sriov["totalvfs"]:
        raise PhyllomeError(f"functions: {count} of {address}", f"it has {sriov['totalvfs']} at most", "Ask for fewer.")
    if sriov["numvfs"] is None:
        raise PhyllomeError(f"functions: {address}", "how many it has now could not be read", "Run this as root.")
    if device["driver"] is None or is_vfio(device["driver"]):
        raise PhyllomeError(
            f"functions: {address}",
            f"its driver is {device['driver'] or 'none'}, and only a driver of the host makes virtual functions",
            "Give it back to the host first.",
        )


def in_use(addresses: t.Iterable[str], world: World) -> t.Iterator[Refusal]:
    """Changing the number goes through 0 (https://docs.kernel.org/PCI/pci-iov-howto.html): all of them must be idle."""
    for address in addresses:
        device = world.devices.get(address)
        if device is None:
            yield refusal(address, "unknown_vfs", ["it could not be read"])
        elif device["in_use"] is not False:
            found = [line for hazard in device["hazards"] for line in hazard["via"] if hazard["device"] == address]
            evidence = [*found, "changing the number of virtual functions removes all of them"]
            yield refusal(address, "function_in_use", evidence)


def _addresses(address: str, count: int, world: World) -> list[str]:
    """Where virtual functions will be (PCI Express base specification 9.2.1.2); before they are there, as the card says."""
    match = PCI_ADDRESS.match(address)
    if match is None or address not in world.spans:
        return []
    domain, bus, slot, function = match.groups()
    first = (int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)) + world.spans[address][0]
    numbers = [first + number * world.spans[address][1] for number in range(count)]
    return [f"{domain}:{one >> 8 & 0xFF:02x}:{one >> 3 & 0x1F:02x}.{one & 7}" for one in numbers]


@dataclasses.dataclass(frozen=True)
class Unmade:
    """What becomes of the virtual functions that are to be as they were.

    Attributes:
        changes: of numbers.
        gone: addresses of virtual functions whose own undo is not needed any more.
        entries: of the ledger that stay.
        refused: what stands against it.
        warnings: what is left alone.
    """

    changes: tuple[Change, ...]
    gone: tuple[str, ...]
    entries: t.Mapping[str, Functions]
    refused: tuple[Refusal, ...]
    warnings: tuple[str, ...]


def unmake(names: t.Collection[str] | None, world: World, never: bool) -> Unmade:
    """Take numbers of virtual functions back.

    Args:
        names: addresses or identities of physical functions; None for all.
        never: whether only the next boot is to see it.
    """
    ledger: Ledger = world.ledger
    changes: list[Change] = []
    gone: list[str] = []
    refused: list[Refusal] = []
    warnings: list[str] = []
    entries = dict(ledger.functions)
    for address, entry in sorted(ledger.functions.items()):
        if names is not None and not {address, entry.key} & {*names}:
            continue
        device = world.devices.get(address)
        sriov = device["sriov"] if device else None
        if device is None or sriov is None or device["identity"]["key"] != entry.key:
            del entries[address]
            continue
        if never and sriov["numvfs"] != entry.number:
            entries[address] = dataclasses.replace(entry, persist=False)
            continue
        del entries[address]
        if sriov["numvfs"] == entry.number:
            continue
        if sriov["numvfs"] != entry.count:
            warnings.append(f"{address} is left alone: it has {sriov['numvfs']} virtual functions, not {entry.count}")
            continue
        refused += in_use(sriov["vfs"], world)
        gone += sriov["vfs"]
        args = {"address": address, "count": entry.number, "autoprobe": entry.autoprobe}
        changes.append(Change("functions", f"functions.{address}.count", entry.count, entry.number, "live", args=args))
    return Unmade(tuple(changes), tuple(gone), entries, tuple(refused), tuple(warnings))
