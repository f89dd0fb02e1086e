# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that runs at the destination while its memory is still being fetched from the source, and that was cut off.

QEMU at the source keeps what it has not sent, QEMU at the destination what has arrived, and libvirt (8.5) keeps the job: as long
as both live, the same migration may be resumed through another connection
(https://libvirt.org/kbase/internals/migration.html, "Post-copy recovery").

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import json
import time
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError
from .judge import LOST
from .read import View
from .read_guest import guest as read_guest
from .transfer import Monitor

if t.TYPE_CHECKING:
    from .apply import Mover

_AGAIN = 1.0
"""Seconds before each try: QEMU may still have to notice that its connection is dead."""
_NOTICES = 150.0
"""Seconds that the destination's QEMU gets to notice that a connection was given up: TCP may wait 120 s before it tries again
(TCP_RTO_MAX of Linux), as long as the network was away."""

_SEES = 10.0
"""Seconds that libvirt gets to see the end of a migration."""


def recover(mover: Mover, view: View) -> None:
    """Have both QEMUs go on.

    Once the network is back they may do that by themselves, since TCP tries for long; as long as they do, libvirt refuses
    to resume anything, and they are waited for. Where nothing comes forward, their connection is given up.

    Raises:
        PhyllomeError: they do not go on; both have what they had.
    """
    pair, mark = mover.pair, view.source.mark
    if not view.committed:
        mover.commit(view, sync=True)
    mover.progress.say("recovering")
    mover.told.mode = "live"
    with virt.saying(f"Cannot look at {view.name} on {pair.source.name}"):
        domain = pair.source.connection.lookupByUUIDString(view.uuid)
        both = mark.shared if mark is not None else ()
        guest = read_guest(pair.source, view.uuid, sizes=False, shares=lambda disk: disk.path in both)
    monitor = Monitor(mover, view, domain, runs=False)
    given_up = completed = 0.0
    before = (view.source.state, view.destination.state)
    why: PhyllomeError | None = None
    while before == (view.source.state, view.destination.state):
        time.sleep(_AGAIN)
        status = _status(domain)
        # libvirt 9.0 does not see the end of what goes on by itself while it is asked to resume that
        if status in (None, "postcopy-paused"):
            try:
                mover.migrate(view, domain, guest, running=True, resume=True)
            except PhyllomeError as exc:
                why = exc
            else:
                _went_on(mover)
                return
        if status == "completed":
            completed = completed or time.monotonic()
            if time.monotonic() - completed > _SEES:
                raise PhyllomeError(
                    f"All memory of {view.name} is at {view.destination.host}, and libvirt on {view.source.host} has not seen that",
                    "it still holds the guest's job",
                    "Restart it there (systemctl restart libvirtd, or virtqemud), which stops nothing, and run again.",
                )
        monitor.look()
        if monitor.stuck and not given_up:
            monitor.give_up()
            given_up = time.monotonic()
        elif monitor.stuck and time.monotonic() - given_up > _NOTICES:
            raise PhyllomeError(
                f"The post-copy migration of {view.name} cannot be resumed",
                why.why if why else f"QEMU says {status}, and nothing comes forward",
                f"Nothing is lost yet: neither start it nor stop it on either host. Remove the cause and run again. Only if that "
                f"cannot be: virsh destroy {view.name} on {view.destination.host}, and run again with truth: destination.",
                **(why.facts if why else {}),
            ) from why
        view = pair.view()
    # seen with libvirt 9.0: the answer to a call that has resumed it was that it failed, which was still so of the one before
    if view.destination.state == "running":
        _went_on(mover)


def _status(domain: t.Any) -> str | None:
    """What the source's QEMU says of its migration (MigrationStatus of its QMP); None when it does not."""
    with contextlib.suppress(virt.libvirt.libvirtError):
        told = json.loads(virt.libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-migrate"}', 0))
        return t.cast("str | None", (told.get("return") or {}).get("status"))
    return None


def _went_on(mover: Mover) -> None:
    mover.told.stats["post_copy"] = mover.told.stats["resumed"] = True


def lost(view: View) -> PhyllomeError:
    """What is said when one of both has lost its part of the guest's memory."""
    here, there = view.source, view.destination
    right = f"Its disks on {there.host} are the right ones, as after a power failure; those on {here.host} are older. "
    remedy = (
        f"Say truth: destination: what is left of it is stopped, and if it ran it is started anew on {there.host}."
        if there.state != "absent"
        else f"{there.host} has no definition of it any more: make it anew there from these disks, and remove it on {here.host}."
    )
    return PhyllomeError(
        f"The guest {view.name} cannot be moved: {LOST}",
        f"{here.host}: {here.detail or here.state}; {there.host}: {there.detail or there.state}",
        right + remedy,
    )
