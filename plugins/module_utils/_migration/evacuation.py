# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the guests of a host can go when it has to be empty. Pure.

Each guest moves once, and no guest of another host moves to make room. Either there is a place for all, or none moves.
What was chosen by a run that was cut off stays chosen: a move that has begun goes on without it.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import typing as t

from .._host import equals
from .._host.compare import guest_reasons
from .placement import reserved_devices, unfinished
from .plan import grown, shown_size

Facts = t.Mapping[str, t.Any]
Room = dict[str, int]

OVERHEAD = 64 << 20
"""Bytes that a QEMU takes besides its guest's memory."""
TRIES = 20_000
"""Placements that are tried before the search gives up: with the most difficult guests first it rarely takes one each."""


@dataclasses.dataclass(frozen=True)
class _Unit:
    """Guests that go together.

    Attributes:
        names: of the guests.
        needs: what they take, by destination.
        against: what stands against each other host, in words.
    """

    names: tuple[str, ...]
    needs: t.Mapping[str, Room]
    against: t.Mapping[str, tuple[str, ...]]

    @property
    def memory(self) -> int:
        return max((need.get("memory", 0) for need in self.needs.values()), default=0)


def evacuate(
    host: str,
    found: t.Mapping[str, t.Sequence[Facts] | None],
    facts: t.Mapping[str, Facts | None],
    together: t.Sequence[t.Sequence[str]] = (),
    apart: t.Sequence[t.Sequence[str]] = (),
    running_only: bool = False,
    devices: t.Mapping[str, Facts | None] | None = None,
    inventory: t.Sequence[Facts] = (),
) -> dict[str, t.Any]:
    """Who goes where.

    Args:
        host: the one to empty.
        found: guests by host, as phyllome_vm_info told; None for a host that did not answer.
        facts: ``phyllome_host`` by host; None likewise.
        together: groups of guests that are never to be on different hosts.
        apart: groups of guests of which no two are ever to be on one host.
        running_only: leave guests that are off where they are.
        devices: ``phyllome_iommu`` by host; None for a host that did not tell, and where it was not asked for.
        inventory: the inventory's guests: what they are declared with at a host nobody else gets there.

    Returns:
        ``moves`` by destination ({guest, source, destination, hostdevs}; the biggest first), ``guests`` (names of all that
        go, sorted), ``bytes`` of their disks, ``rechosen`` (why a guest does not go where the record of a run that
        was cut off says) and ``problems``; with a problem nothing moves.
    """
    here = found.get(host)
    if here is None:
        return _nothing([f"{host} did not answer, so its guests are not known. Repair it, and run again."])
    problems: list[str] = []
    goers = [guest for guest in here if not (running_only and guest["state"] in ("stopped", "crashed"))]
    free = {
        other: room(one)
        for other, one in facts.items()
        if other != host and one is not None and found.get(other) is not None and one.get("evacuated") is None
    }
    exchange = equals.Exchange(found, devices, reserved_devices(inventory))
    own = facts.get(host)
    kept: dict[str, str] = ((own or {}).get("evacuated") or {}).get("destinations") or {}
    pinned: dict[str, str] = {}
    for guest in goers:
        pin = _pinned(guest, host, found, free, kept.get(guest["name"]), problems)
        if pin is None and own is not None and _gone(guest, own):
            pin = kept.get(guest["name"])
        if pin:
            pinned[guest["name"]] = pin
    # what these get is nobody else's; where they find nothing any more vm_migrate knows what became of them
    gets = {guest["name"]: _given(exchange, guest, host, pinned, []) for guest in goers if guest["name"] in pinned}
    for other, one in free.items():
        one.update(exchange.room(other))
    there = {
        name: other
        for other, guests in found.items()
        if other != host
        for name in (one["name"] for one in guests or ())
    }
    if goers and not free and not pinned:
        problems.append(
            f"There is no other host that answers and is not evacuated, so the guests of {host} have nowhere to go."
        )
    rest = [guest for guest in goers if guest["name"] not in pinned]
    there.update(pinned)
    if own is None and rest:
        problems.append(f"What {host} is could not be found out. Run this as root, and phyllome.virt.site first.")
    if problems or own is None:
        return _nothing(problems) if problems or rest else _answer(pinned, goers, host, exchange, [], gets)
    units = [_unit(members, host, facts, free, exchange, there, together, apart) for members in _joined(rest, together)]
    calm = {other: _unclaimed(facts[other] or {}) for other in free}
    chosen = _search(units, free, calm, apart, kept, problems)
    if problems:
        return _nothing(problems)
    rechosen = [
        f"{name} goes to {chosen[name]} now and not to {kept[name]}: {_why(unit, kept[name], free, found, facts)}."
        for unit in units
        for name in unit.names
        if kept.get(name, chosen[name]) != chosen[name]
    ]
    return _answer({**pinned, **chosen}, goers, host, exchange, rechosen, gets)


def _nothing(problems: list[str]) -> dict[str, t.Any]:
    return {"moves": {}, "guests": [], "bytes": 0, "rechosen": [], "problems": problems}


def _given(
    exchange: equals.Exchange, guest: Facts, host: str, where: t.Mapping[str, str], problems: list[str]
) -> dict[str, t.Any]:
    """The devices that a guest gets where it goes."""
    name, other = guest["name"], where[guest["name"]]
    try:
        return exchange.give(guest, host, other)
    except equals.Unequal as reason:
        problems.append(f"Guest {name} would go to {other}, which cannot give it equal devices: {reason}.")
        return {}


def _answer(
    where: t.Mapping[str, str],
    goers: t.Sequence[Facts],
    host: str,
    exchange: equals.Exchange,
    rechosen: list[str],
    gets: t.Mapping[str, t.Mapping[str, t.Any]],
) -> dict[str, t.Any]:
    """The moves: first those that were begun, then the biggest, so that the last one does not take the longest."""
    moves: dict[str, list[dict[str, t.Any]]] = {}
    problems: list[str] = []
    for guest in sorted(goers, key=lambda one: (one["name"] not in gets, -_bytes(one), one["name"])):
        name, other = guest["name"], where[guest["name"]]
        more = gets[name] if name in gets else _given(exchange, guest, host, where, problems)
        moves.setdefault(other, []).append({"guest": name, "source": host, "destination": other, **more})
    if problems:
        return _nothing(problems)
    return {
        "moves": moves,
        "guests": sorted(where),
        "bytes": sum(map(_bytes, goers)),
        "rechosen": rechosen,
        "problems": [],
    }


def _bytes(guest: Facts) -> int:
    return sum(_size(disk) for disk in guest["disks"])


def _size(disk: Facts) -> int:
    return int(disk.get("allocation") or disk.get("capacity") or 0)


def _pinned(
    guest: Facts,
    host: str,
    found: t.Mapping[str, t.Sequence[Facts] | None],
    free: t.Container[str],
    kept: str | None,
    problems: list[str],
) -> str | None:
    """Where a move that was begun goes: it may be under way still, though whoever began it is gone.

    It may also begin and end between the looks at the two hosts, which then both have the guest; the record tells.
    """
    name, journal = guest["name"], guest.get("migration") or {}
    others = [
        other
        for other, guests in found.items()
        if other != host and any(one["uuid"] == guest["uuid"] for one in guests or ())
    ]
    if unfinished(guest) and journal["source"] == host and (others or journal["destination"] in free):
        destination = str(journal["destination"])
        if found.get(destination) is None:
            problems.append(
                f"A move of {name} to {destination} was begun, and {destination} does not answer. Repair it, and run again."
            )
        return destination
    if unfinished(guest) and others:
        problems.append(f"A move of {name} from {journal['source']} to {journal['destination']} was begun and is not finished. "
                        f"Finish it: phyllome.virt.migrate -e guest={name} -e to={journal['destination']}.")  # fmt: skip
    elif others == [kept]:
        return kept
    elif others:
        problems.append(f"Guest {name} is on {host} and on {', '.join(others)}, and no move of ours explains that.")
    return None


def _gone(guest: Facts, own: Facts) -> bool:
    """Whether a guest that was on the host when it was asked for its guests had left when it was asked what they claim."""
    claims = own["capacity"]["guests"]
    return claims is not None and all(claim["uuid"] != guest["uuid"] for claim in claims)


def room(facts: Facts) -> Room:
    """What a host has left, by resource: bytes of memory and of each file system with pools, numbers of huge pages."""
    capacity = facts["capacity"]
    left: Room = {"memory": capacity["memory"]["free"] or 0}
    for pages in capacity["hugepages"]:
        left[f"pages of {pages['size']} KiB"] = pages["free"]
    for pool in capacity["pools"] or ():
        key = _space(pool)
        left[key] = min(left.get(key, pool["available"]), pool["available"])
    return left


def _unclaimed(facts: Facts) -> int:
    """Bytes of memory that no running guest claims: unlike what is free at the moment, the same when it is looked at again."""
    memory = facts["capacity"]["memory"]
    return int(memory["total"] or 0) - int(memory["claimed"] or 0)


def _space(pool: Facts) -> str:
    return f"space of file system {pool['filesystem'] or pool['name']}"


def needs(guest: Facts, claim: Facts, target: Facts) -> Room:
    """What a guest takes of a host, by resource as in ``room``."""
    want: Room = collections.Counter()
    if claim["active"]:
        page = claim["hugepage"]
        want["memory"] += OVERHEAD + (0 if page else claim["memory"])
        if page:
            want[f"pages of {page} KiB"] += -(-claim["memory"] // (page * 1024))
    pools = {pool["path"]: pool for pool in target["capacity"]["pools"] or ()}
    for disk in guest["disks"]:
        pool = pools.get(os.path.dirname(disk["path"] or ""))
        if pool:
            want[_space(pool)] += grown(_size(disk))
    return dict(want)


def _joined(guests: t.Sequence[Facts], together: t.Sequence[t.Sequence[str]]) -> list[list[Facts]]:
    """The guests in groups of those that must not be separated."""
    group = {guest["name"]: {guest["name"]} for guest in guests}
    for names in together:
        members = [name for name in names if name in group]
        merged = {name for member in members for name in group[member]}
        for name in merged:
            group[name] = merged
    by_name = {guest["name"]: guest for guest in guests}
    sets = {id(members): sorted(members) for members in group.values()}
    return [[by_name[name] for name in members] for members in sorted(sets.values())]


def _unit(
    members: t.Sequence[Facts],
    host: str,
    facts: t.Mapping[str, Facts | None],
    others: t.Collection[str],
    exchange: equals.Exchange,
    there: t.Mapping[str, str],
    together: t.Sequence[t.Sequence[str]],
    apart: t.Sequence[t.Sequence[str]],
) -> _Unit:
    names = {guest["name"] for guest in members}
    partners = {there[name] for group in together if names & {*group} for name in group if name in there}
    against: dict[str, tuple[str, ...]] = {}
    want: dict[str, Room] = {}
    own = facts[host] or {}
    claims = {claim["uuid"]: claim for claim in own["capacity"]["guests"] or ()}
    inside = [f"{one} and {other} are to be apart and together" for one, other in _enemies(names, names, apart)]
    for other in others:
        target = facts[other] or {}
        said = [*inside]
        if partners and partners != {other}:
            said.append(f"who belongs together with it is on {', '.join(sorted(partners))}")
        present = [name for name, where in there.items() if where == other]
        said += [f"{two} is there, from which {one} is to be apart" for one, two in _enemies(names, present, apart)]
        total: Room = collections.Counter()
        for guest in members:
            exchanged = equals.exchangeable(guest)
            reasons = guest_reasons(guest, own, target)
            said += [one["what"] for one in reasons if not (exchanged and one["code"] == "hostdevs")]
            claim = claims.get(guest["uuid"])
            if claim:
                total.update(needs(guest, claim, target))
            unequal = exchange.against(guest, host, other) if exchanged else None
            if unequal:
                said.append(unequal)
            elif exchanged:
                total.update(exchange.needs(guest, host))
        against[other] = tuple(dict.fromkeys(said))
        want[other] = dict(total)
    return _Unit(tuple(sorted(names)), want, against)


def _enemies(
    names: t.Collection[str], others: t.Collection[str], apart: t.Sequence[t.Sequence[str]]
) -> t.Iterator[tuple[str, str]]:
    for group in apart:
        for one in sorted({*names} & {*group}):
            for other in sorted({*others} & {*group}):
                if one < other or (one != other and other not in names):
                    yield one, other


def _fits(need: Room, left: Room) -> bool:
    return all(left.get(key, 0) >= amount for key, amount in need.items())


def _search(
    units: t.Sequence[_Unit],
    free: t.Mapping[str, Room],
    unclaimed: t.Mapping[str, int],
    apart: t.Sequence[t.Sequence[str]],
    kept: t.Mapping[str, str],
    problems: list[str],
) -> dict[str, str]:
    """A host for each guest. Depth first, the most difficult unit first, on the host with the most memory unclaimed.

    A choice that was ``kept`` comes before that.
    """
    for unit in units:
        if all(unit.against[other] or not _fits(unit.needs[other], free[other]) for other in free):
            problems.append(_hopeless(unit, free))
    if problems or not units:
        return {}
    order = sorted(units, key=lambda unit: (sum(not said for said in unit.against.values()), -unit.memory, unit.names))
    left = {other: dict(room) for other, room in free.items()}
    calm = dict(unclaimed)
    chosen: list[str] = []
    tries = 0

    def place(number: int) -> bool:
        nonlocal tries
        if number == len(order):
            return True
        unit = order[number]
        wished = [kept[name] for name in unit.names if name in kept]
        for other in sorted(left, key=lambda name: (name not in wished, -calm[name], name)):
            tries += 1
            if tries > TRIES:
                return False
            present = [name for done, where in zip(order, chosen) if where == other for name in done.names]
            if unit.against[other] or not _fits(unit.needs[other], left[other]):
                continue
            if next(_enemies(unit.names, present, apart), None):
                continue
            for key, amount in unit.needs[other].items():
                left[other][key] -= amount
            calm[other] -= unit.needs[other].get("memory", 0)
            chosen.append(other)
            if place(number + 1):
                return True
            chosen.pop()
            for key, amount in unit.needs[other].items():
                left[other][key] += amount
            calm[other] += unit.needs[other].get("memory", 0)
        return False

    if place(0):
        return {name: where for unit, where in zip(order, chosen) for name in unit.names}
    total = sum(unit.memory for unit in units)
    rooms = ", ".join(f"{other} {shown_size(one.get('memory', 0))}" for other, one in sorted(free.items()))
    problems.append(
        f"Each guest could go somewhere, but no place was found for all of them at once: they need {shown_size(total)} of memory, "
        f"free are {rooms}. Shut some down, make room, or loosen phyllome_together and phyllome_apart."
    )
    return {}


def _hopeless(unit: _Unit, free: t.Mapping[str, Room]) -> str:
    said = [f"{other}: {'; '.join(_against(unit, other, left))}" for other, left in sorted(free.items())]
    return f"Guest {' with '.join(unit.names)} has nowhere to go. {'. '.join(said)}."


def _against(unit: _Unit, other: str, left: Room) -> list[str]:
    """What stands against one host, in words; nothing when the unit could go there."""
    return list(unit.against[other]) or [
        f"it has {_amount(key, left.get(key, 0))} of {key}, {_amount(key, amount)} are needed"
        for key, amount in unit.needs[other].items()
        if left.get(key, 0) < amount
    ]


def _why(
    unit: _Unit,
    other: str,
    free: t.Mapping[str, Room],
    found: t.Mapping[str, t.Sequence[Facts] | None],
    facts: t.Mapping[str, Facts | None],
) -> str:
    """Why a choice of the run that was cut off does not hold any more."""
    if other in free:
        return "; ".join(_against(unit, other, free[other])) or "with it not all of the others would have a place"
    if other not in facts:
        return "that is not in the group phyllome_hosts any more"
    if found.get(other) is None or facts[other] is None:
        return "that does not answer"
    return "that is to stay empty itself"


def _amount(key: str, amount: int) -> str:
    return str(amount) if key.startswith(("pages", equals.DEVICES)) else shown_size(amount)
