# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at guests. Decides nothing.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from .._core import virt, xml
from . import domain, storage
from .tables import DISKS, TARGET

if t.TYPE_CHECKING:
    from .._core.xml import Element

STATES = {
    0: "unknown",
    1: "running",
    2: "running",
    3: "paused",
    4: "stopping",
    5: "stopped",
    6: "crashed",
    7: "suspended",
}
"""virDomainState (https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainState)."""

_REASONS = {
    "running": (
        "unknown",
        "booted",
        "migrated",
        "restored",
        "snapshot",
        "unpaused",
        "migration canceled",
        "save canceled",
        "wakeup",
        "crashed",
        "postcopy",
        "postcopy failed",
    ),
    "paused": (
        "unknown",
        "user",
        "migration",
        "save",
        "dump",
        "ioerror",
        "watchdog",
        "snapshot",
        "shutting down",
        "taking snapshot",
        "crashed",
        "starting up",
        "postcopy",
        "postcopy failed",
        "api error",
    ),
    "stopped": (
        "unknown",
        "shutdown",
        "destroyed",
        "crashed",
        "migrated",
        "saved",
        "failed",
        "snapshot",
        "daemon",
    ),
}

_MIGRATION_JOBS = (5, 6)
"""virDomainJobOperation: MIGRATION_IN and MIGRATION_OUT."""


@dataclasses.dataclass(frozen=True, eq=False)
class Guest:
    """A domain, as it was when we looked.

    Attributes:
        state: a word of ``STATES``.
        reason: libvirt's reason for it.
        config: element of the definition.
        live: element of the running guest; None when it is off.
        blocks: bytes of capacity and of allocation, by target name; a disk whose file cannot be read is not there.
        migrating: whether libvirt is moving it right now.
        chained: target names of disks that are overlays of other files.
    """

    name: str
    uuid: str
    state: str
    reason: str
    persistent: bool
    autostart: bool
    config: Element
    live: Element | None
    blocks: t.Mapping[str, tuple[int, int]]
    managed_save: bool
    snapshots: int | None
    checkpoints: int | None
    migrating: bool
    chained: frozenset[str] = frozenset()


def guest(found: t.Any, secrets: bool = True) -> Guest:
    """One domain.

    Args:
        found: a ``libvirt.virDomain``.
        secrets: whether passwords are read; they must be where the definition is to be written back, and cannot be
            over a read-only connection.

    Raises:
        PhyllomeError: libvirt does not tell.
    """
    libvirt = virt.libvirt
    name = found.name()
    with virt.saying(f"Cannot read guest {name}"):
        flags = libvirt.VIR_DOMAIN_XML_SECURE if secrets else 0
        code, reason = found.state()
        state = STATES.get(code, "unknown")
        persistent = bool(found.isPersistent())
        config = xml.parse(found.XMLDesc(flags | (libvirt.VIR_DOMAIN_XML_INACTIVE if persistent else 0)))
        active = state != "stopped"
        live = xml.parse(found.XMLDesc(flags)) if active else None
        reasons = _REASONS.get(state, ())
        return Guest(
            name=name,
            uuid=found.UUIDString(),
            state=state,
            reason=reasons[reason] if reason < len(reasons) else "unknown",
            persistent=persistent,
            autostart=persistent and bool(found.autostart()),
            config=config,
            live=live,
            blocks=dict(_blocks(found, config, live)),
            managed_save=persistent and bool(found.hasManagedSaveImage()),
            snapshots=found.snapshotNum(),
            checkpoints=_checkpoints(found),
            migrating=active and _migrating(found),
            chained=frozenset(_chained(config if live is None else live)),
        )


def _chained(root: Element) -> t.Iterator[str]:
    for disk in DISKS.elements(root):
        path = DISKS.row("path").read(disk)
        if path and DISKS.row("format").read(disk) == "qcow2" and storage.based(path):
            yield TARGET.read(disk)


def _blocks(found: t.Any, config: Element, live: Element | None) -> t.Iterator[tuple[str, tuple[int, int]]]:
    """By the names of the definition; libvirt wants those of the running guest, and the same name may be another disk."""
    for running, defined in domain.matched(DISKS, config if live is None else live, config):
        if running is not None and defined is not None:
            with contextlib.suppress(virt.libvirt.libvirtError):
                capacity, allocation, dummy = found.blockInfo(TARGET.read(running))
                yield TARGET.read(defined), (capacity, allocation)


def _checkpoints(found: t.Any) -> int | None:
    try:
        return len(found.listAllCheckpoints())
    except virt.libvirt.libvirtError:
        return None


def _migrating(found: t.Any) -> bool:
    try:
        job = found.jobStats()
    except virt.libvirt.libvirtError:
        return False
    return bool(job.get("type")) and job.get("operation") in _MIGRATION_JOBS


def linked(connection: t.Any) -> dict[str, tuple[str, ...]]:
    """Names of the linked clones on this host, by uuid of the guest whose disks they are based on.

    Raises:
        PhyllomeError: libvirt does not tell.
    """
    based: dict[str, tuple[str, ...]] = {}
    with virt.saying("Cannot list the guests"):
        for found, (text,) in virt.domains(connection):
            ours = domain.marker(xml.parse(text))
            if ours is not None and ours.origin is not None and ours.origin.method == "linked":
                based[ours.origin.uuid] = (*based.get(ours.origin.uuid, ()), found.name())
    return based
