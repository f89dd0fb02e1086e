# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where guests are, where they belong, and what stands against bringing the two together.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import collections
import typing as t

from .._core.names import guest_uuid
from .._host import equals

Guest = t.Mapping[str, t.Any]


class Problem(Exception):
    """This one guest cannot be placed; the others can."""


def place(
    declared: t.Sequence[Guest],
    found: t.Mapping[str, t.Sequence[Guest] | None],
    evacuated: t.Container[str] = (),
    keep_cpu: bool = False,
    devices: t.Mapping[str, Guest | None] | None = None,
    reserved: t.Sequence[Guest] | None = None,
) -> dict[str, t.Any]:
    """What every host has to do so that each guest is where its ``host`` says.

    Args:
        declared: the inventory's ``phyllome_guests``.
        found: the guests that ``phyllome_vm_info`` returned, by host; None for a host that did not answer.
        evacuated: hosts that are to stay empty: a guest that belongs there stays where it is.
        keep_cpu: what the fleet's CPUs have in common is not known now, so a guest that has it keeps what it has.
        devices: ``phyllome_iommu`` by host; None for a host that did not tell. Without it nobody's devices are exchanged.
        reserved: guests whose declared devices nobody else gets; those that are ``declared`` where it is not said.

    Returns:
        By host: ``moves`` ({guest, destination}, at the guest's source, with ``hostdevs`` where it gets other devices),
        ``guests`` (what ``phyllome_vm`` gets: a guest is handled where it is, a new one where it belongs; which devices it
        has of a host is declared for the one where it belongs) and ``problems`` (one message for each guest that is left
        alone).
    """
    exchange = equals.Exchange(found, devices, reserved_devices(declared if reserved is None else reserved))
    work: dict[str, t.Any] = {host: {"moves": [], "guests": [], "problems": []} for host in found}
    seen: dict[str, dict[str, Guest]] = {}
    for host, guests in found.items():
        for guest in guests or ():
            seen.setdefault(guest["name"], {})[host] = guest
            seen.setdefault(guest["uuid"], {})[host] = guest
    times = collections.Counter(str(guest.get("name")) for guest in declared)
    for guest in declared:
        wanted = str(guest.get("host"))
        try:
            if times[str(guest.get("name"))] > 1:
                raise Problem("it is declared more than once. Keep one entry in phyllome_guests.")
            where = _locate(guest, found, seen, evacuated)
            source, destination = where or (wanted, wanted)
            if source != destination:
                move = {"guest": guest["name"], "destination": destination}
                if devices is not None:
                    move.update(_exchanged(exchange, seen[guest["name"]][source], source, destination, _named(guest)))
                work[source]["moves"].append(move)
            if source != destination or guest.get("state") != "absent" or where:
                kept = {"host", "cpu"} if keep_cpu and where and of_fleet(guest.get("cpu")) else {"host"}
                if source != wanted:
                    kept.add("hostdevs")
                entry = {key: value for key, value in guest.items() if key not in kept}
                work[source]["guests"].append(entry)
        except Problem as problem:
            # a host that does not answer cannot tell
            answering = [host for host, guests in found.items() if guests is not None]
            teller = wanted if wanted in answering else next(iter(answering or work))
            work[teller]["problems"].append(f"Guest {guest.get('name')} is left alone: {problem}")
    return work


def _locate(
    guest: Guest,
    found: t.Mapping[str, t.Sequence[Guest] | None],
    seen: t.Mapping[str, t.Mapping[str, Guest]],
    evacuated: t.Container[str],
) -> tuple[str, str] | None:
    """The host that has the guest and the host that shall have it; None when nobody has it.

    Raises:
        Problem: a host is unknown or silent, a foreign guest has the name, or two hosts have the guest.
    """
    wanted = str(guest.get("host"))
    if wanted not in found:
        raise Problem(
            f"host: {guest.get('host')!r} is not a host of the group phyllome_hosts ({', '.join(found)}). Correct the entry."
        )
    if found[wanted] is None:
        raise Problem(f"its host {wanted} did not answer. Repair the host and run again.")
    uuid = str(guest.get("uuid") or guest_uuid(guest["name"])).lower()
    here = {**seen.get(guest["name"], {}), **seen.get(uuid, {})}
    for host, other in here.items():
        if other["name"] != guest["name"]:
            raise Problem(
                f"its uuid {uuid} belongs to the guest {other['name']} on {host}. Give one of them another uuid."
            )
        adopted = guest.get("adopt") and host == wanted and not guest.get("uuid")
        if other["uuid"] != uuid and not adopted:
            raise Problem(
                f"on {host} there is another guest of that name with uuid {other['uuid']} (ours would be {uuid}). "
                "Rename one of them, or take it over where it is with adopt: true."
            )
        if not other["owned"] and not guest.get("adopt"):
            raise Problem(
                f"on {host} there is a guest of that name that phyllome.virt did not make. "
                "Rename one of them, or take it over where it is with adopt: true."
            )
    if not here:
        silent = [host for host, guests in found.items() if guests is None]
        if silent:
            raise Problem(
                f"it was found nowhere, but it may be on {', '.join(silent)}, which did not answer. "
                "Repair the host, or remove it from the inventory when it is gone for good."
            )
        if wanted in evacuated and guest.get("state") != "absent":
            raise Problem(
                f"its host {wanted} is evacuated, and nothing new is put there. Run phyllome.virt.restore first."
            )
        return None
    journal = next((other["migration"] for other in here.values() if unfinished(other)), None)
    if journal and journal["source"] in here and (len(here) > 1 or journal["destination"] == wanted):
        return journal["source"], journal["destination"]
    if len(here) > 1:
        raise Problem(
            f"it is on {' and '.join(sorted(here))}, and no move of ours explains that. "
            "Look which one is right and undefine the other one; nothing was touched."
        )
    host = next(iter(here))
    if guest.get("state") == "absent" or wanted in evacuated:
        return host, host
    return host, wanted


def _named(guest: Guest) -> dict[str, str]:
    """The PCI devices that are declared of a guest, by id."""
    listed = [one for one in guest.get("hostdevs") or () if isinstance(one, t.Mapping)]
    return {str(one["id"]): str(one["pci"]) for one in listed if one.get("id") and one.get("pci")}


def reserved_devices(declared: t.Sequence[Guest]) -> dict[str, dict[str, list[str]]]:
    """The devices that guests are declared with, by host and guest."""
    found: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    for guest in declared:
        if guest.get("state") != "absent":
            found[str(guest.get("host"))][str(guest.get("name"))] = [*_named(guest).values()]
    return found


def _exchanged(
    exchange: equals.Exchange, guest: Guest, source: str, destination: str, said: t.Mapping[str, str]
) -> dict[str, t.Any]:
    """The devices of its host that a guest gets.

    Raises:
        Problem: the host has no equal of one.
    """
    try:
        return exchange.give(guest, source, destination, said)
    except equals.Unequal as reason:
        raise Problem(
            f"it has devices of {source}, and {destination} cannot give it equal ones: {reason}. "
            f"List them in phyllome_passthrough of {destination} and run phyllome.virt.site, or take them out of the guest."
        ) from reason


def of_fleet(cpu: t.Any) -> bool:
    """Whether a guest's ``cpu`` says that it is what the whole fleet can do."""
    return "fleet" in (cpu, cpu.get("mode") if isinstance(cpu, t.Mapping) else None)


def moves(
    names: t.Sequence[str],
    to: str,
    found: t.Mapping[str, t.Sequence[Guest] | None],
    declared: t.Sequence[Guest] | None = None,
    evacuated: t.Collection[str] = (),
    devices: t.Mapping[str, Guest | None] | None = None,
    inventory: t.Sequence[Guest] | None = None,
) -> dict[str, t.Any]:
    """What every host has to do so that the named guests are at one host.

    Args:
        names: of the guests, whoever made them.
        to: the host.
        found: as for ``place``.
        declared: the inventory's guests when these have gone away and come back: one that is declared elsewhere goes
            there, one that does not exist any more is nobody's loss. None when each name has to be there.
        evacuated: hosts that are to stay empty.
        devices: as for ``place``.
        inventory: the inventory's guests, for the devices that they are declared with; ``declared`` where it is not said.

    Returns:
        ``moves`` ({guest, destination, hostdevs}) by source, ``problems``, and ``at`` (guest → where it belongs).
    """
    at = dict.fromkeys(names, to)
    at.update({str(one["name"]): str(one.get("host")) for one in declared or () if one.get("name") in at})
    entries, problems = [], []
    for name in dict.fromkeys(names):
        uuids = {one["uuid"] for guests in found.values() for one in guests or () if one["name"] == name}
        silent = any(guests is None for guests in found.values())
        if len(uuids) > 1:
            problems.append(
                f"Guest {name} is left alone: there are {len(uuids)} guests of that name. Rename all but one."
            )
        elif uuids:
            entries.append({"name": name, "host": at[name], "uuid": next(iter(uuids)), "adopt": True})
        elif silent:
            entries.append({"name": name, "host": at[name]})
        elif declared is None:
            problems.append(f"Guest {name} is on none of {', '.join(found)}. Correct its name.")
    known = inventory or declared or ()
    for entry in entries:
        one = next((one for one in known if one.get("name") == entry["name"]), {})
        entry["hostdevs"] = one.get("hostdevs") if one.get("host") == entry["host"] else None
    work = place(entries, found, evacuated, devices=devices, reserved=known)
    return {
        "moves": {host: todo["moves"] for host, todo in work.items()},
        "problems": problems + [problem for todo in work.values() for problem in todo["problems"]],
        "at": at,
    }


def unfinished(guest: Guest) -> bool:
    """Whether a move of the guest was begun and did not end."""
    migration = guest.get("migration")
    return migration is not None and migration["phase"] != "done"
