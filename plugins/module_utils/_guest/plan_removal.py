# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for the end of a guest: order, flags from what exists, only files that are ours and that nobody uses. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from . import domain, luks
from .domain import Volume
from .draft import Decision, together
from .media import RESERVED
from .plan_power import POWER, POWER_RESULT
from .tables import DISKS, DOMAIN

if t.TYPE_CHECKING:
    from .read import Guest
    from .spec import Wanted
    from .world import World


_UNDEFINE = {
    "managed_save": 1,
    "snapshots_metadata": 2,
    "nvram": 4,
    "keep_nvram": 8,
    "checkpoints_metadata": 16,
    "tpm": 32,
    "keep_tpm": 64,
}
"""virDomainUndefineFlagsValues; the last two since libvirt 8.9.0."""

_TPM_FLAGS_SINCE = 8009000


def removal(wanted: Wanted, there: Guest | None, world: World) -> Decision:
    """The plan for a guest that shall be gone.

    Raises:
        PhyllomeError: it is not ours, protected, or a file of it is not to be deleted.
    """
    if there is None:
        return Decision(Plan())
    ours = domain.marker(there.config)
    if ours is None and not wanted.adopt:
        raise PhyllomeError(
            f"Guest {there.name} was not made by phyllome.virt",
            "only what is ours is removed",
            "Say adopt: true to remove it all the same.",
        )
    if wanted.protected or (wanted.protected is None and ours is not None and ours.protected):
        raise PhyllomeError(
            f"Guest {there.name} is protected",
            "a protected guest is not removed",
            "Say protected: false to remove it.",
        )
    problems: list[PhyllomeError] = []
    changes: list[Change] = []
    if there.live is not None:
        steps = POWER.get((there.state, "stopped"), ("shutdown",))
        before = there.state
        for step in steps:
            changes.append(Change(step, "state", before, POWER_RESULT[step]))
            before = POWER_RESULT[step]
    for volume in ours.volumes if ours is not None else ():
        if volume.id in RESERVED:
            args = {"id": volume.id, "file": volume.path}
            changes.append(Change("volume.remove", f"cdroms.{volume.id}.path", volume.path, None, args=args))
        elif wanted.delete_disks:
            problems.extend(_in_use(volume, there, world))
            changes.append(
                Change(
                    "volume.remove",
                    f"disks.{volume.id}.path",
                    volume.path,
                    None,
                    args={"id": volume.id, "file": volume.path},
                )
            )
            secret = luks.secret_uuid(there.uuid, volume.id)
            if world.secrets.get(secret, luks.NONE) != luks.NONE:
                option = f"disks.{volume.id}.encryption.passphrase"
                changes.append(Change("secret.remove", option, "(not shown)", None, args={"uuid": secret}))
    if wanted.delete_disks and world.snapshots is not None:
        changes.append(
            Change("snapshots.remove", "snapshots", "memory and state", None, args={"folder": world.snapshots})
        )
    if wanted.keep_snapshots and (there.snapshots != 0 or there.checkpoints):
        problems.append(
            PhyllomeError(
                "delete.snapshots: refuse",
                f"the guest has {'snapshots' if there.snapshots != 0 else 'checkpoints'}",
                "Delete them first, or say delete.snapshots: metadata.",
            )
        )
    flags: set[str] = set()
    if there.managed_save:
        flags.add("managed_save")
    if there.snapshots != 0:
        flags.add("snapshots_metadata")
    if there.checkpoints:
        flags.add("checkpoints_metadata")
    store = there.config.find("os/nvram")
    if DOMAIN["firmware"][0].read(there.config) == "uefi":
        flags.add("nvram" if wanted.delete_nvram else "keep_nvram")
        if wanted.delete_nvram:
            name = "libvirt's own" if store is None or store.text is None else store.text
            changes.append(Change("store.remove", "firmware.nvram", name, None, args={"file": name}))
    if there.config.find("devices/tpm/backend[@type='emulator']") is not None:
        if world.libvirt >= _TPM_FLAGS_SINCE:
            flags.add("tpm" if wanted.delete_tpm else "keep_tpm")
        elif not wanted.delete_tpm:
            problems.append(
                PhyllomeError(
                    "delete.tpm: false",
                    "libvirt before 8.9 removes the state of a TPM together with its guest",
                    "Say delete.tpm: true, or keep the guest.",
                )
            )
        if wanted.delete_tpm:
            changes.append(Change("part", "tpm.state", there.uuid, None))
    plan = Plan((*changes, Change("undefine", "state", "stopped", "absent", args={"flags": _bits(flags)})))
    if problems:
        raise together(there.name, problems, plan)
    return Decision(plan, warnings=list(_left(there, changes)))


def _left(there: Guest, changes: t.Sequence[Change]) -> t.Iterator[str]:
    """Overlays of what is deleted: snapshots made them, so they are not ours, and nothing is in them without their base."""
    doomed = {change.args["id"]: change.before for change in changes if change.action == "volume.remove"}
    for found in DISKS.elements(there.config):
        path, base = DISKS.row("path").read(found), doomed.get(DISKS.label(found))
        if base and path and path != base:
            yield f"Guest {there.name}: {path} stays, an overlay of {base} that is of no use without it."


def _bits(flags: t.Iterable[str]) -> int:
    return sum(_UNDEFINE[flag] for flag in flags)


def _in_use(volume: Volume, there: Guest, world: World) -> t.Iterator[PhyllomeError]:
    users = world.users.get(volume.path)
    if users is None or users:
        yield PhyllomeError(
            f"disks.{volume.id}: {volume.path} is used by {', '.join(users or ('guests that could not be read',))}",
            "what another guest uses is not deleted",
            "Say delete.disks: none, or take it out of that guest.",
        )
    found = domain.device(DISKS, there.config, volume.id)
    for tag in ("shareable", "readonly"):
        if found is not None and found.find(tag) is not None:
            yield PhyllomeError(
                f"disks.{volume.id}: {volume.path} is {tag}",
                "shared and read-only files may be somebody else's",
                f"Say delete.disks: none, or remove <{tag}/> from the disk.",
            )
