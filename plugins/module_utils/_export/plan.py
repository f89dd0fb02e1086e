# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has to be done so that a guest is exported or imported, or why it cannot be. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from .._core.units import format_size
from .._guest import domain
from .read import places_here

if t.TYPE_CHECKING:
    from .read import Source, Target
    from .spec import Wanted


def export(wanted: Wanted, source: Source) -> Plan:
    """The changes that make the folder an export of the guest as it is.

    Raises:
        PhyllomeError: it cannot be done; all reasons at once.
    """
    if source.there is not None and source.there.uuid != source.guest.uuid:
        raise PhyllomeError(
            f"path: {wanted.path} is an export of guest {source.there.name} ({source.there.uuid})",
            f"guest {wanted.name} has uuid {source.guest.uuid}, and nobody else's export is replaced",
            "Choose another path.",
        )
    problems = list(_inexportable(wanted, source))
    if problems:
        raise together(f"Guest {wanted.name} cannot be exported", problems)
    if source.there is not None and source.complete and dict(source.there.source) == dict(source.mark):
        return Plan()
    why = "" if source.there is None else "the guest has changed since then, or the export is not complete"
    before = None if source.there is None else "an earlier export"
    changes = [Change("begin", wanted.path, before, f"guest {wanted.name}", why=why)]
    changes += [
        Change(
            "disk", f"disks.{part.target}", None, f"{part.format}, {format_size(part.capacity)}", args={"part": part}
        )
        for part in source.parts
    ]
    if source.nvram:
        changes.append(Change("nvram", "firmware.nvram", None, "copied"))
    if source.tpm:
        changes.append(Change("tpm", "tpm.state", None, "copied"))
    return Plan((*changes, Change("finish", "manifest", None, "written")))


def _inexportable(wanted: Wanted, source: Source) -> t.Iterator[PhyllomeError]:
    guest = source.guest
    for reason in source.identity.reasons():
        yield PhyllomeError(f"Guest {guest.name}: {reason}", "an export is whole or it is none", "Change that first.")
    if wanted.snapshot is not None:
        if not source.snapshot:
            yield PhyllomeError(
                f"snapshot: {wanted.snapshot} of guest {guest.name}",
                "there is no whole one of that name that was made by vm_snapshot",
                "Take it with vm_snapshot.",
            )
    elif guest.state != "stopped":
        yield PhyllomeError(
            f"Guest {guest.name} is {guest.state}",
            "its disks, UEFI variables and TPM change while they are copied",
            "Shut it down, or take a snapshot with vm_snapshot and export that: snapshot: NAME.",
        )
    elif guest.managed_save:
        yield PhyllomeError(
            f"Guest {guest.name} has a saved state",
            "its memory is not exported, and its disks are only whole together with it",
            "Start it and shut it down, or throw the saved state away: virsh managedsave-remove.",
        )
    if guest.migrating or domain.moving(guest.config):
        yield PhyllomeError(
            f"Guest {guest.name} is being moved", "its disks are in two places", "Let vm_migrate finish first."
        )
    for path in source.missing:
        yield PhyllomeError(
            f"Guest {guest.name}: {path}", "this host has no such file", "Is a file system not mounted?"
        )
    if source.foreign:
        yield PhyllomeError(
            f"path: {wanted.path} exists", "it is not an export, and nothing is overwritten", "Choose another path."
        )
    if source.free is None:
        yield PhyllomeError(f"path: {wanted.path}", "the folder above it does not exist", "Make it first.")
    else:
        needs = sum(part.needs for part in source.parts)
        if needs > source.free:
            yield PhyllomeError(
                f"path: {wanted.path} needs {needs // 1024**2 + 1}MiB",
                f"{source.free // 1024**2}MiB are free there",
                "Make room, or choose another path.",
            )


def bring(wanted: Wanted, target: Target) -> Plan:
    """The changes that make the guest in the folder a guest of this host, off.

    Raises:
        PhyllomeError: it cannot be done; all reasons at once.
    """
    name, what = target.identity.name, target.identity
    if target.here is not None and target.here == frozenset(drive.path for drive in what.drives):
        return Plan()
    problems = list(_unwelcome(wanted, target))
    if problems:
        raise together(f"Guest {name} cannot be imported from {wanted.path}", problems)
    here = places_here(target.manifest, what)
    changes = []
    for piece in target.manifest.pieces:
        path = here.get(piece.file)
        if path is None or path in target.done:
            continue
        args = {"file": piece.file, "to": path}
        if piece.role == "disk":
            changes.append(Change("disk", f"disks.{piece.target}", None, path, args=args))
        elif piece.role == "nvram":
            changes.append(Change("nvram", "firmware.nvram", None, path, args=args))
        elif not any(change.action == "tpm" for change in changes):
            changes.append(Change("tpm", "tpm.state", None, str(what.tpm)))
    return Plan((*changes, Change("define", "guest", None, f"{name} ({what.uuid})")))


def _unwelcome(wanted: Wanted, target: Target) -> t.Iterator[PhyllomeError]:
    what = target.identity
    for text in target.damage:
        yield PhyllomeError(f"path: {wanted.path}/{text}", "the export is damaged", "Fetch it again.")
    for uuid, name in target.namesakes:
        same = "name" if name == what.name else "uuid"
        yield PhyllomeError(
            f"Guest {name} ({uuid}) exists",
            f"the guest in {wanted.path} would have the same {same}",
            "Import it as another guest with identity: new and a name that is free, or remove that one first.",
        )
    if target.directory is None:
        yield PhyllomeError(
            f"pool: {wanted.pool}", "this host has no such active pool with a directory", "Make it with phyllome_pool."
        )
    for text in target.clashes:
        yield PhyllomeError(text, "nothing is overwritten", "Move it away, or choose another name or pool.")
    targets = {piece.target for piece in target.manifest.of("disk")}
    for drive in what.drives:
        if drive.target not in targets:
            yield PhyllomeError(
                f"disks.{drive.label}: the export has no such disk",
                "its manifest and definition differ",
                "Export again.",
            )
    if target.free is not None:
        needs = sum(piece.size for piece in target.manifest.of("disk"))
        if needs > target.free and not target.done:
            yield PhyllomeError(
                f"pool: {wanted.pool}: {needs // 1024**2 + 1}MiB are needed at most",
                f"{target.free // 1024**2}MiB are free in {target.directory}",
                "Make room, or choose another pool.",
            )


def together(what: str, problems: t.Sequence[PhyllomeError]) -> PhyllomeError:
    """All reasons as one error."""
    told = [{"what": problem.what, "why": problem.why, "remedy": problem.remedy} for problem in problems]
    if len(problems) == 1:
        return PhyllomeError(problems[0].what, problems[0].why, problems[0].remedy, problems=told)
    listed = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
    return PhyllomeError(what, f"there are {len(problems)} reasons: {listed}", "Nothing was changed.", problems=told)
