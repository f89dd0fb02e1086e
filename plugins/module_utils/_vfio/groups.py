# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole groups, and what stands against taking one from the host. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core.sysfs import is_vfio
from .ledger import Entry
from .read import World
from .spec import LOST, Wanted

Device = t.Mapping[str, t.Any]
Refusal = dict[str, t.Any]
# Who has these open takes it amiss when the device goes back to the host.
_GUESTS = ("other_guest", "opened", "unknown_openers", "unknown_host_use", "vf_parent")


def refusal(address: str, hazard: str, evidence: t.Sequence[str], consent: str | None = None) -> Refusal:
    """An entry of ``refused[]``."""
    return {
        "address": address,
        "hazard": hazard,
        "evidence": list(evidence),
        "consent": consent,
        "lost": LOST.get(consent or ""),
    }


def said(refused: t.Iterable[Refusal]) -> str:
    """Refusals in words, each once."""
    words: dict[str, list[str]] = {}
    for one in refused:
        text = f"{one['hazard']} ({', '.join(one['evidence'])})"
        if one["consent"]:
            text += f", which consent: {one['consent']} lifts; then {one['lost']}"
        words.setdefault(text, []).append(one["address"])
    return "; ".join(f"{', '.join(dict.fromkeys(addresses))}: {text}" for text, addresses in words.items())


def sets(asked: t.Sequence[str], wanted: Wanted, world: World) -> t.Iterator[tuple[int | None, list[str]]]:
    """Group by group, the devices to be driven: those that are asked for, and those that the policy adds."""
    endpoints = {group["id"]: group["endpoints"] for group in world.facts["groups"]}
    by_group: dict[t.Any, list[str]] = {}
    for address in asked:
        number = world.devices[address]["group"]
        by_group.setdefault(address if number is None else number, []).append(address)
    for members in by_group.values():
        number = world.devices[members[0]]["group"]
        if wanted.state == "bound" and number is not None:
            slots = {address.rpartition(".")[0] for address in members}
            for address in endpoints.get(number, ()):
                if wanted.group_policy == "whole_group" or (
                    wanted.group_policy == "companions" and address.rpartition(".")[0] in slots
                ):
                    members.append(address)
        yield number, sorted({*members})


def incomplete(
    number: int | None, members: t.Sequence[str], asked: t.Container[str], wanted: Wanted, world: World
) -> t.Iterator[Refusal]:
    """A group is a guest's only when the host drives nothing in it (https://docs.kernel.org/driver-api/vfio.html)."""
    if wanted.state != "bound" or number is None:
        return
    endpoints: list[str] = next((group["endpoints"] for group in world.facts["groups"] if group["id"] == number), [])
    left = [
        f"{address}, driven by {world.devices[address]['driver']}"
        for address in endpoints
        if address not in members and world.devices[address]["driver"] and not is_vfio(world.devices[address]["driver"])
    ]
    if left:
        remedy = "group_policy: whole_group takes it too, companions only other functions of the same card"
        for address in members:
            if address in asked:
                yield refusal(address, "partial_group", [f"group {number} has {'; '.join(left)}", remedy])


def strange(device: Device, world: World) -> list[Refusal]:
    """What stands against touching a device at all, whether it is bound or not."""
    found = stuck(device, world)
    entry = world.ledger.devices.get(device["address"])
    if device["identity"]["key"] is None:
        found.append(refusal(device["address"], "unknown_identity", ["its ids could not be read"]))
    elif entry is not None and identity_changed(device, entry):
        now = f"{device['identity']['key']}{_serial(device['identity']['serial'])} is there"
        then = f"{entry.key}{_serial(entry.serial)} was there when it was bound"
        undo = f"state: original with devices: [{device['address']}] forgets that one"
        found.append(refusal(device["address"], "identity_changed", [now, then, undo]))
    return found


def _serial(serial: str | None) -> str:
    return f" (serial {serial})" if serial else ""


def identity_changed(device: Device, entry: Entry) -> bool:
    """Whether another card is at the address."""
    serials = {serial for serial in (entry.serial, device["identity"]["serial"]) if serial}
    return device["identity"]["key"] != entry.key or len(serials) > 1


def stuck(device: Device, world: World) -> list[Refusal]:
    """Whether an earlier unbind of the device still hangs: whoever touches it now hangs too."""
    entry = world.ledger.devices.get(device["address"])
    if entry is None or entry.stuck is None or entry.stuck.pid not in world.hanging:
        return []
    evidence = [f"process {entry.stuck.pid} waits for {entry.stuck.driver or 'its driver'}", "a reboot ends that"]
    return [refusal(device["address"], "stuck", evidence)]


def hazards(device: Device, wanted: Wanted) -> t.Iterator[Refusal]:
    """What stands against taking a device from the host and was not consented to."""
    for hazard in device["hazards"]:
        own = hazard["device"] == device["address"]
        if wanted.state == "unbound" and not own:  # companions keep their drivers
            continue
        if hazard["severity"] != "refuse" or hazard["consent"] not in wanted.consent:
            where = [] if own else [f"of {hazard['device']}, which is in its group"]
            yield refusal(device["address"], hazard["code"], [*hazard["via"], *where], hazard["consent"])


def given_up(todo: t.Iterable[str], wanted: Wanted, world: World) -> t.Iterator[str]:
    """Consents that concern more than a device, said once in every run that makes use of them."""
    words = {
        hazard["consent"]
        for address in todo
        for hazard in world.devices[address]["hazards"]
        if hazard["consent"] in ("acs_override", "unsafe_interrupts")
    }
    return (f"consent {word}: {LOST[word]}" for word in sorted(words & wanted.consent))


def defers(todo: t.Iterable[str], wanted: Wanted, world: World) -> bool:
    """Whether a group waits for the next boot: as soon as one of its members does."""
    if wanted.runtime == "never":
        return True
    return wanted.runtime == "auto" and any(world.devices[address]["runtime_bind"] != "safe" for address in todo)


def not_persistent(todo: t.Iterable[str], wanted: Wanted, world: World) -> t.Iterator[Refusal]:
    """A device that waits for the next boot, while nothing is to be done there."""
    for address in todo:
        device = world.devices[address]
        why = (
            "runtime is never"
            if wanted.runtime == "never"
            else f"{device['driver']} of a {device['class_name']} is not taken away while the system runs"
        )
        yield refusal(address, "not_persistent", [why, "persist is false", "runtime: force does it now"])


def used_by_guest(device: Device) -> list[Refusal]:
    """Who uses a device that is about to go back to the host."""
    return [
        refusal(device["address"], hazard["code"], [*hazard["via"], "stop the guest first"])
        for hazard in device["hazards"]
        if hazard["code"] in _GUESTS
    ]
