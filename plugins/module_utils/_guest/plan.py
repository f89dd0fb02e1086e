# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what is there and what is wanted to what has to be done, or to all reasons why it cannot be. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import PhyllomeError
from . import (
    autostart,
    domain,
    plan_devices,
    plan_disks,
    plan_fields,
    plan_first,
    plan_overlay,
    plan_passthrough,
    plan_power,
    plan_removal,
)
from .draft import Decision, Draft
from .tables import BOOT, KINDS, device_id

if t.TYPE_CHECKING:
    from .read import Guest
    from .spec import Wanted
    from .world import World


def decide(wanted: Wanted, there: Guest | None, world: World, waits: t.Collection[str] = ()) -> Decision:
    """The plan for one guest.

    Args:
        wanted: what is declared.
        there: what is there; None when the guest does not exist.
        world: what it depends on.
        waits: paths that the running guest has just refused to change.

    Raises:
        PhyllomeError: it cannot be done; all reasons at once, as far as they can be known.
    """
    _guard(wanted, there, world)
    if wanted.state == "absent":
        return plan_removal.removal(wanted, there, world)
    draft = Draft(plan_passthrough.found(wanted, world), there, world, waits)
    if there is None:
        plan_fields.new(draft)
    plan_fields.fields(draft)
    plan_passthrough.rules(draft)
    for kind in KINDS:
        plan_devices.devices(draft, kind)
    plan_overlay.overlays(draft)
    plan_fields.together(draft)
    plan_disks.disks(draft)
    plan_disks.secrets(draft)
    plan_first.first_boot(draft)
    autostart.plan(draft)
    _own(draft)
    _boot_orders(draft)
    plan_power.power(draft)
    plan_power.cycle(draft)
    plan_passthrough.check(draft)
    return draft.decision()


def _guard(wanted: Wanted, there: Guest | None, world: World) -> None:
    if world.namesake is not None:
        uuid, name = world.namesake
        if name == wanted.name:
            raise PhyllomeError(
                f"Guest {name}: another guest of this name has uuid {uuid}",
                f"{wanted.uuid} is declared, and a uuid is never changed",
                "Rename one of the two, or declare the uuid that is there.",
            )
        raise PhyllomeError(
            f"Guest {wanted.name}: its uuid {uuid} belongs to guest {name} already",
            "guests are not renamed, and no two have the same uuid",
            f"Rename {name} back with virsh domrename, or declare another uuid.",
        )
    if there is None:
        return
    if (
        there.migrating
        or there.reason == "migration"
        or there.reason.startswith("postcopy")
        or domain.moving(there.config)
        or (there.live is not None and domain.moving(there.live))
    ):
        mark = domain.migration(there.config) or {}
        raise PhyllomeError(
            f"Guest {there.name} is being moved to another host",
            f"state {there.state} ({there.reason}), move {mark.get('op_id', 'not ours')}, phase {mark.get('phase', '?')}"
            + (
                f", from {mark['source']} to {mark['destination']}; it is not started meanwhile"
                if "source" in mark
                else ""
            ),
            "Let vm_migrate finish: run the playbook that moves it again.",
        )
    if not there.persistent:
        raise PhyllomeError(
            f"Guest {there.name} is transient",
            "libvirt has no definition of it and forgets it when it stops",
            "Stop it, and declare it again; or define it from its XML first.",
        )
    ours = domain.marker(there.config)
    origin = ours.origin if ours else None
    if origin is not None and not origin.done and wanted.state != "absent":
        raise PhyllomeError(
            f"Guest {there.name} is a clone of {origin.guest} that is not complete",
            "the run that made it was cut off",
            f"Declare clone_from: {{guest: {origin.guest}}} again, which finishes it, or remove it.",
        )
    if ours and ours.profile and wanted.profile and ours.profile != wanted.profile:
        raise PhyllomeError(
            f"profile: {wanted.profile} is declared, guest {there.name} was made from {ours.profile}",
            "a profile only says what a new guest gets",
            f"Declare profile {ours.profile} and the single settings that shall differ.",
        )


def _own(draft: Draft) -> None:
    if draft.wanted.protected is not None and draft.wanted.protected != draft.marker.protected:
        before = draft.marker.protected if draft.ours else None
        draft.marker = dataclasses.replace(draft.marker, protected=draft.wanted.protected)
        draft.note("config", "protected", before, draft.wanted.protected)
    if draft.adopting and draft.wanted.adopt:
        draft.note("config", "owner", None, "phyllome.virt")
    # A device that the running guest has not let go of yet is still ours.
    roots = (draft.root, None if draft.there is None else draft.there.live)
    there = {device_id(found) for root in roots if root is not None for found in root.findall("devices/*")}
    devices = tuple(name for name in draft.marker.devices if name in there)
    draft.marker = dataclasses.replace(draft.marker, devices=devices)
    domain.set_marker(draft.root, draft.marker)


def _boot_orders(draft: Draft) -> None:
    seen: dict[int, str] = {}
    for kind in KINDS:
        for found in kind.elements(draft.root):
            order, path = BOOT.read(found), f"{kind.option}.{kind.label(found)}"
            if order in seen:
                draft.problem(
                    f"{path}.boot: {order} is the order of {seen[order]} as well",
                    "each device has its own place",
                    "Declare boot for both.",
                )
            elif order is not None:
                seen[order] = path
