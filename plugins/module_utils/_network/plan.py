# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has to be done so that a network is as declared. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import ipaddress
import typing as t

from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from . import spec
from .read import Found, World

DEFAULTS = {"forward": "nat", "address": spec.AUTO, "dhcp": spec.AUTO}
"""What a new network gets where nothing is declared; a bridge gets none of it."""


def plan(wanted: spec.Wanted, world: World) -> Plan:
    """The changes, in the order in which they are carried out.

    Raises:
        PhyllomeError: it is not possible, or would cut the network under running guests.
    """
    found = world.found
    if wanted.state == "absent":
        if found is None:
            return Plan()
        _refuse_when_used(wanted, found, "removing it")
        stop = (Change("stop", "active", True, False),) if found.active else ()
        return Plan((*stop, Change("undefine", "network", wanted.name, None)))

    values = _resolved(wanted, world)
    changes: list[Change] = []
    restart = False
    if found is None:
        changes.append(Change("define", "network", None, wanted.name, args={"values": values}))
        changes += [Change("", option, None, value) for option, value in values.items()]
    else:
        different = {option: value for option, value in values.items() if found.values[option] != value}
        if different or not found.persistent:
            live = found.active and set(different) <= {"dhcp"}
            restart = found.active and not live and bool(different)
            if restart:
                _refuse_when_used(wanted, found, f"changing {', '.join(different)}")
                changes.append(Change("stop", "active", True, False, why="a change needs a restart"))
            rows = [(option, found.values[option], value) for option, value in different.items()]
            if not found.persistent:
                rows.insert(0, ("persistent", False, True))
            # One step carries out all that differs; the other rows only say what that is.
            actions = ["dhcp" if live and different else "define", *[""] * len(rows)]
            args = {"values": different}
            changes += [Change(action, *row, args=args) for action, row in zip(actions, rows)]

    active = found is not None and found.active and not restart
    if restart or (wanted.state == "active" and not active):
        if wanted.state != "inactive":
            changes.append(Change("start", "active", False, True))
    elif wanted.state == "inactive" and active:
        _refuse_when_used(wanted, t.cast(Found, found), "stopping it")
        changes.append(Change("stop", "active", True, False))
    autostart = found is not None and found.autostart
    if wanted.autostart is not None and wanted.autostart != autostart:
        changes.append(Change("autostart", "autostart", autostart, wanted.autostart))
    return Plan(tuple(changes))


def _refuse_when_used(wanted: spec.Wanted, found: Found, doing: str) -> None:
    if found.active and found.users:
        raise PhyllomeError(
            f"Network {wanted.name} is in use by running guests ({', '.join(found.users)})",
            f"{doing} needs the network stopped, which would cut them off",
            "Stop or move these guests and run again.",
            guests=list(found.users),
        )


def _resolved(wanted: spec.Wanted, world: World) -> dict[str, t.Any]:
    """The declared values and, for a new network, the defaults, with ``auto`` replaced by what it comes to."""
    found = world.found
    before = found.values if found else {}
    values = dict(wanted.fields)
    forward = values.get("forward", before.get("forward", DEFAULTS["forward"]))
    if forward == "bridge":
        if not values.get("bridge", before.get("bridge")):
            raise PhyllomeError(
                f"Network {wanted.name} has forward 'bridge' and no bridge",
                "guests are connected to a bridge of the host",
                "Name it with the option bridge.",
            )
        for option in spec.NOT_FOR_BRIDGE:
            if option in values:
                raise PhyllomeError(
                    f"{option} does not go with network {wanted.name}, which has forward 'bridge'",
                    "the network is the one behind the host's bridge, which libvirt does not configure",
                    f"Remove {option}, or choose another forward mode.",
                )
        return {"forward": forward, **values} if found is None else values
    if before.get("forward") == "bridge" and "forward" in values and values.get("bridge") in (None, before["bridge"]):
        raise PhyllomeError(
            f"Network {wanted.name} is on the host's bridge {before.get('bridge')!r}",
            f"a network with forward {forward!r} has a bridge that libvirt makes",
            "Give that bridge a name of its own with the option bridge, for instance virbr1.",
        )
    if found is None or before.get("forward") == "bridge":
        values = {**DEFAULTS, **values}
    if "address" in values:
        values["address"] = _address(wanted, values["address"], world)
    if "dhcp" in values:
        values["dhcp"] = _dhcp(values["dhcp"], values.get("address", before.get("address")))
    elif "address" in values and before.get("dhcp", spec.NONE) != spec.NONE and values["address"] != before["address"]:
        # The range that is there belongs to the address that goes.
        values["dhcp"] = _dhcp(spec.AUTO, values["address"])
    return values


def _address(wanted: spec.Wanted, value: str, world: World) -> str:
    found = world.found
    before = found.values["address"] if found else None
    if value == spec.AUTO:
        if before and (t.cast(Found, found).active or not _clash(before, world)):
            return str(before)
        return choose(world.taken)
    clash = _clash(value, world)
    if clash and not (found and found.active and before == value):
        raise PhyllomeError(
            f"address: {value} of network {wanted.name} overlaps with {clash}",
            "the host already reaches that network by another interface, or another libvirt network has it",
            "Choose another address, or auto.",
        )
    return value


def _clash(address: str, world: World) -> ipaddress.IPv4Network | None:
    own = ipaddress.IPv4Interface(address).network
    return next((network for network in world.taken if network.overlaps(own)), None)


def choose(taken: t.Sequence[ipaddress.IPv4Network]) -> str:
    """The first address of the first candidate that overlaps with nothing that is taken.

    Raises:
        PhyllomeError: everything is taken.
    """
    for candidate in spec.CANDIDATES:
        if not any(network.overlaps(candidate) for network in taken):
            return f"{candidate.network_address + 1}/{candidate.prefixlen}"
    raise PhyllomeError(
        "address: auto finds no free network",
        "the host has routes to all of 192.168.122-253, 10.122 and 172.30",
        "Give an address, for instance 198.18.0.1/24.",
    )


def _dhcp(value: str, address: str | None) -> str:
    if value == spec.NONE:
        return value
    if address is None:
        raise PhyllomeError(
            f"dhcp: {value} needs an address",
            "addresses are leased out of the network that the host has an address in",
            "Give the option address.",
        )
    interface = ipaddress.IPv4Interface(address)
    network = interface.network
    first, last = network.network_address + 1, network.broadcast_address - 1
    if value == spec.AUTO:
        sides = ((first, interface.ip - 1), (interface.ip + 1, last))
        first, last = max(sides, key=lambda side: int(side[1]) - int(side[0]))
        return f"{first}-{last}"
    start, end = (ipaddress.IPv4Address(part) for part in value.split("-"))
    if not first <= start <= end <= last or start <= interface.ip <= end:
        raise PhyllomeError(
            f"dhcp: {value} does not fit in {network}",
            f"first to last address lie in the network, in this order, and leave out {interface.ip}, the host's own",
            f"Choose a range between {first} and {last}, or auto.",
        )
    return value
