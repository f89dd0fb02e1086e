# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has to be done so that a guest's snapshots are as declared, or why it cannot be. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import copy
import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from .._guest import domain

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .read import Kept, World
    from .spec import Wanted

_UP = ("running", "paused")


def plan(wanted: Wanted, world: World) -> Plan:
    """The changes, in the order in which they are carried out.

    Raises:
        PhyllomeError: it cannot be done; all reasons at once.
    """
    _guard(world)
    if wanted.state == "reverted":
        return _revert(wanted, world)
    changes: list[Change] = []
    doomed: list[str] = []
    there = world.find(wanted.snapshot)
    if wanted.state == "absent":
        if there is not None:
            doomed.append(there.name)
        elif wanted.snapshot in world.foreign:
            raise PhyllomeError(
                f"Snapshot {wanted.snapshot} of guest {world.guest.name} was not made by phyllome.virt",
                "only what is ours is removed",
                f"Remove it with virsh snapshot-delete {world.guest.name} {wanted.snapshot}.",
            )
    elif wanted.snapshot is not None:
        changes += _present(wanted, there, world)
    takes = any(change.action == "take" for change in changes)
    if wanted.retention is not None:
        doomed += _outlived(wanted, world, takes)
    # What was cut off holds space and the name; the one that is taken now is cleaned up by taking it.
    unfinished = [name for name in world.begun if not (takes and name == wanted.snapshot)]
    for name in (*unfinished, *doomed):
        why = "an earlier run was cut off" if name in unfinished else ""
        changes.append(Change("remove", f"snapshots.{name}", name, None, why=why, args={"name": name}))
    return Plan(tuple(_at_rest(changes, world)))


def _guard(world: World) -> None:
    guest = world.guest
    if guest.migrating or domain.moving(guest.config) or (guest.live is not None and domain.moving(guest.live)):
        raise PhyllomeError(
            f"Guest {guest.name} is being moved to another host",
            "its disks are in two places",
            "Let vm_migrate finish: run the playbook that moves it again.",
        )
    if not guest.persistent:
        raise PhyllomeError(
            f"Guest {guest.name} is transient",
            "libvirt forgets it, and its snapshots, when it stops",
            "Define it first.",
        )


def _present(wanted: Wanted, there: Kept | None, world: World) -> list[Change]:
    name = t.cast(str, wanted.snapshot)
    path = f"snapshots.{name}"
    if there is None:
        problems = _untakeable(name, world)
        if problems:
            raise _together(f"No snapshot of guest {world.guest.name} can be taken", problems)
        parts = _parts(world)
        state = _state(world)
        return [
            Change(
                "take", path, None, parts, args={"name": name, "description": wanted.description or "", "state": state}
            ),
            Change("register", f"{path}.libvirt", None, "known", args={"name": name}),
        ]
    if there.missing:
        raise PhyllomeError(
            f"Snapshot {name} of guest {world.guest.name} is damaged",
            f"{', '.join(there.missing)} is gone or has no such snapshot in it",
            "Remove it with state: absent, and take another.",
        )
    changes = []
    if wanted.description is not None and wanted.description != there.description:
        changes.append(
            Change(
                "describe",
                f"{path}.description",
                there.description,
                wanted.description,
                args={"name": name, "description": wanted.description},
            )
        )
    if changes or not there.registered:
        before = "known" if there.registered else None
        changes.append(Change("register", f"{path}.libvirt", before, "known", args={"name": name}))
    return changes


def _state(world: World) -> str:
    return "running" if world.at_rest else world.guest.state


def _parts(world: World) -> str:
    """What a snapshot taken now will hold, for people."""
    parts = [f"disks {', '.join(drive.label for drive in world.identity.drives)}"]
    if _state(world) in _UP:
        parts.append("memory")
    if world.identity.nvram:
        parts.append("UEFI variables")
    if world.identity.tpm:
        parts.append("TPM")
    return ", ".join(parts)


def _untakeable(name: str, world: World) -> list[PhyllomeError]:
    guest, what = world.guest, world.identity
    problems = [
        PhyllomeError(f"Guest {guest.name}: {reason}", "a snapshot is whole or it is none", "Change that in the guest.")
        for reason in what.reasons()
    ]
    if not what.drives:
        problems.append(PhyllomeError(f"Guest {guest.name} has no disk", "there is nothing to keep", "Give it one."))
    for drive in what.drives:
        if drive.format == "raw" and not drive.odd:
            problems.append(
                PhyllomeError(
                    f"disks.{drive.label}: {drive.path} is raw",
                    "only qcow2 images can hold snapshots",
                    "Convert it: qemu-img convert -O qcow2, with the guest off.",
                )
            )
        elif drive.path and drive.format == "qcow2" and drive.path not in world.tags:
            problems.append(
                PhyllomeError(f"disks.{drive.label}: {drive.path}", "this host has no such file", "Put it there first.")
            )
        elif drive.path and name in world.tags.get(drive.path, ()) and name not in world.begun:
            problems.append(
                PhyllomeError(
                    f"disks.{drive.label}: {drive.path} has a snapshot {name} already",
                    "it is not ours, and nothing is overwritten",
                    f"Choose another name, or remove it: qemu-img snapshot -d {name} {drive.path}.",
                )
            )
    if name in world.foreign:
        problems.append(
            PhyllomeError(
                f"snapshot: {name} exists and was not made by phyllome.virt",
                "nothing is overwritten",
                "Choose another name.",
            )
        )
    if not world.at_rest:
        problems += _busy(world)
    return problems


def _busy(world: World) -> t.Iterator[PhyllomeError]:
    """What stands against putting the guest to rest."""
    guest = world.guest
    if guest.state not in (*_UP, "stopped"):
        yield PhyllomeError(
            f"Guest {guest.name} is {guest.state}",
            "it is on its way to another state",
            "Run again when it has come to rest.",
        )
    elif guest.state == "stopped" and guest.managed_save:
        yield PhyllomeError(
            f"Guest {guest.name} has a saved state",
            "it was put aside with virsh managedsave while it ran",
            "Start it, or throw the saved state away: virsh managedsave-remove.",
        )
    if guest.live is None:
        return
    for found, what in (("hostdev", "a passed-through device"), ("filesystem", "a shared folder")):
        if guest.live.find(f"devices/{found}") is not None:
            yield PhyllomeError(
                f"Guest {guest.name} runs with {what}",
                "the state of that cannot be saved with the memory",
                "Shut the guest down first; then the snapshot is one of its disks.",
            )
    if world.memory is not None and world.free is not None and world.memory > world.free:
        yield PhyllomeError(
            f"Memory of guest {guest.name} takes up to {world.memory // 1024**2}MiB",
            f"{world.free // 1024**2}MiB are free where it is saved",
            "Make room, or shut the guest down first.",
        )


def _outlived(wanted: Wanted, world: World, takes: bool) -> list[str]:
    rule = wanted.retention
    if rule is None:
        return []
    subject = [kept for kept in world.kept if rule.about(kept.name)]  # oldest first
    doomed: list[str] = []
    if rule.max_age is not None:
        doomed += [kept.name for kept in subject if world.now - kept.created > rule.max_age]
    if rule.keep is not None:
        new = int(takes and rule.about(t.cast(str, wanted.snapshot)))
        surplus = len(subject) + new - rule.keep
        doomed += [kept.name for kept in subject[: max(0, surplus)] if kept.name not in doomed]
    # What is declared present stays, however old it is.
    return [name for name in doomed if name != wanted.snapshot]


def _at_rest(changes: list[Change], world: World) -> list[Change]:
    """qemu-img changes an image only while no guest uses it: the guest rests meanwhile, and goes on where it was."""
    working = [change for change in changes if change.action in ("take", "remove")]
    rest = [change for change in changes if change.action not in ("take", "remove")]
    ordered = sorted(working, key=lambda change: change.action != "take")
    if world.at_rest:
        return [*ordered, Change("resume", "state", "saved", "running", why="an earlier run was cut off"), *rest]
    settled = (
        [Change("settle", "state.resume", "noted", None, why="an earlier run was cut off")] if world.resume else []
    )
    if not ordered or world.guest.state not in _UP:
        return [*ordered, *settled, *rest]
    problems = [] if any(change.action == "take" for change in ordered) else list(_busy(world))
    if problems:
        raise _together(f"Snapshots of guest {world.guest.name} cannot be removed while it runs", problems)
    state = world.guest.state
    why = "its memory is saved and loaded again while the images are worked on"
    return [
        Change("save", "state", state, "saved", why=why),
        *ordered,
        Change("resume", "state", "saved", state),
        *rest,
    ]


def _revert(wanted: Wanted, world: World) -> Plan:
    guest, name = world.guest, t.cast(str, wanted.snapshot)
    kept = world.find(name)
    if kept is None:
        names = ", ".join(each.name for each in world.kept) or "none"
        why = "it was not made by phyllome.virt" if name in world.foreign else f"there is {names}"
        raise PhyllomeError(
            f"Guest {guest.name} cannot be reverted to snapshot {name}", why, "Name one that was made by this module."
        )
    problems = []
    if kept.missing:
        problems.append(
            PhyllomeError(
                f"Snapshot {name} is damaged",
                f"{', '.join(kept.missing)} is gone or has no such snapshot in it",
                "Choose another one.",
            )
        )
    then, now = set(kept.disks), {(drive.target, drive.path or "") for drive in world.identity.drives}
    if then != now:
        changed = ", ".join(sorted(f"{target} ({path})" for target, path in then ^ now))
        problems.append(
            PhyllomeError(
                f"Guest {guest.name} has other disks than when snapshot {name} was taken",
                f"these are not in both: {changed}",
                "Give it the disks of that time first: detach what was added, attach what was removed.",
            )
        )
    if world.clones:
        problems.append(
            PhyllomeError(
                f"Guest {guest.name} is the base of linked clones",
                f"the disks of {', '.join(world.clones)} are only what differs from its own as they are now",
                "Remove these first.",
            )
        )
    if guest.state not in (*_UP, "stopped", "crashed", "suspended"):
        problems.append(PhyllomeError(f"Guest {guest.name} is {guest.state}", "it is on its way", "Run again later."))
    if problems:
        raise _together(f"Guest {guest.name} cannot be reverted to snapshot {name}", problems)
    if _is_there(kept, world):
        return Plan()
    return Plan(tuple(_reverting(kept, world)))


def _is_there(kept: Kept, world: World) -> bool:
    """Whether the guest is off, and nothing has written to it since it was reverted to this."""
    return (
        kept.memory is None
        and world.guest.state == "stopped"
        and not world.guest.managed_save
        and world.reverted == {"snapshot": kept.name, "created": kept.created, "stamp": world.stamp}
        and same_definition(kept.config, world.guest.config)
    )


def _reverting(kept: Kept, world: World) -> t.Iterator[Change]:
    guest, args = world.guest, {"name": kept.name}
    if guest.state != "stopped":
        yield Change("destroy", "state", guest.state, "stopped", why="what it did since then is given up")
    if guest.managed_save:
        yield Change("discard", "state.saved", "saved", None, why="what it did since then is given up")
    yield Change("revert", "reverted", None, kept.name, args=args)
    for target, path in kept.disks:
        label = next((drive.label for drive in world.identity.drives if drive.target == target), target)
        yield Change("disk", f"disks.{label}", None, kept.name, args={**args, "file": path})
    if kept.nvram is not None:
        there = kept.name if kept.nvram else None
        yield Change("nvram", "firmware.nvram", None if there else "there", there, args=args)
    if kept.tpm is not None:
        there = kept.name if kept.tpm else None
        yield Change("tpm", "tpm.state", None if there else "there", there, args=args)
    if not same_definition(kept.config, guest.config) or xml.first(guest.config, "genid") is not None:
        # The marker says what is ours today; a new generation id tells the guest that its time has jumped.
        yield Change("define", "definition", "today's", kept.name, args=args)
    if kept.memory is not None:
        yield Change("restore", "state", "stopped", kept.state, args=args)
    yield Change("stamp", "reverted", None, kept.name, args=args)


def same_definition(one: Element, other: Element) -> bool:
    """Whether two definitions are the same but for our marker and the generation id."""
    return _bare(one) == _bare(other)


def _bare(root: Element) -> str:
    bare = copy.deepcopy(root)
    xml.drop(bare, "metadata")
    xml.drop(bare, "genid")
    return xml.dump(bare)


def _together(what: str, problems: t.Sequence[PhyllomeError]) -> PhyllomeError:
    told = [{"what": problem.what, "why": problem.why, "remedy": problem.remedy} for problem in problems]
    if len(problems) == 1:
        return PhyllomeError(problems[0].what, problems[0].why, problems[0].remedy, problems=told)
    listed = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
    return PhyllomeError(what, f"there are {len(problems)} reasons: {listed}", "Nothing was changed.", problems=told)


def shown(world: World) -> list[dict[str, t.Any]]:
    """The snapshots as users see them, oldest first."""
    ours = [
        {
            "name": kept.name,
            "owned": True,
            "whole": not kept.missing,
            "description": kept.description,
            "created": int(kept.created),
            "state": kept.state,
            "memory": kept.memory,
        }
        for kept in world.kept
    ]
    return ours + [
        {
            "name": name,
            "owned": False,
            "whole": None,
            "description": None,
            "created": None,
            "state": None,
            "memory": None,
        }
        for name in world.foreign
    ]
