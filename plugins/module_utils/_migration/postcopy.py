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
"""Seconds before each try: QEMU may still have to notice that its connection is dead, and at the source each of the two
threads that use it has to. One that had not, when QEMU 7.2 was told to resume, left it waiting for the other side for ever."""


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
    given_up = False
    before = (view.source.state, view.destination.state)
    while before == (view.source.state, view.destination.state):
        time.sleep(_AGAIN)
        try:
            mover.migrate(view, domain, guest, running=True, resume=True)
            _went_on(mover)
            return
        except PhyllomeError as exc:
            monitor.look()
            if monitor.stuck:
                if given_up:
                    raise PhyllomeError(
                        f"The post-copy migration of {view.name} cannot be resumed",
                        exc.why,
                        f"Nothing is lost yet: neither start it nor stop it on either host. Remove the cause and run again. Only if that "
                        f"cannot be: virsh destroy {view.name} on {view.destination.host}, and run again with truth: destination.",
                        **exc.facts,
                    ) from exc
                monitor.give_up()
                given_up = True
        view = pair.view()
    # seen with libvirt 9.0: the answer to a call that has resumed it was that it failed, which was still so of the one before
    if view.destination.state == "running":
        _went_on(mover)


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
