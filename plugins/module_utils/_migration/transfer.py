# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's migration itself, and the moment at which the guest changes hosts.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError
from .judge import classify
from .read import View, process_is_gone, qemu_pid

if t.TYPE_CHECKING:
    from .apply import Mover

POLL = 0.1
SETTLE = 45.0
"""Seconds that libvirt gets to undo a failed migration: keep-alives take 30 of them."""


class Job:
    """virDomainMigrateToURI3, which blocks, in a thread of its own, so that it can be timed out."""

    def __init__(self, domain: t.Any, uri: str, params: dict[str, t.Any], flags: int) -> None:
        self._domain, self._uri, self._params, self._flags = domain, uri, params, flags
        self._error: t.Any = None
        self._ended = threading.Event()
        self.seconds = 0.0

    def _work(self) -> None:
        began = time.monotonic()
        try:
            self._domain.migrateToURI3(self._uri, self._params, self._flags)
        except virt.libvirt.libvirtError as exc:
            self._error = exc
        self.seconds = time.monotonic() - began
        self._ended.set()

    def run(self, timeout: int, downtime_ms: int | None) -> None:
        """Migrate.

        Raises:
            PhyllomeError: what libvirt says, or that it took too long and was aborted.
        """
        threading.Thread(target=self._work, name="migration", daemon=True).start()
        deadline = time.monotonic() + timeout if timeout else None
        while downtime_ms is not None and not self._ended.wait(POLL):
            with contextlib.suppress(virt.libvirt.libvirtError):  # there is a moment before the job
                self._domain.migrateSetMaxDowntime(downtime_ms)
                break
        ended = self._ended.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        name = self._domain.name()
        if not ended:
            with contextlib.suppress(virt.libvirt.libvirtError):
                self._domain.abortJob()
            self._ended.wait(SETTLE)
            if not self._ended.is_set() or self._error is not None:
                raise too_slow(name, timeout, "it was aborted")
        if self._error is not None:
            raise PhyllomeError(
                f"The migration of {name} failed",
                self._error.get_error_message() or str(self._error),
                "Remove the cause and run again.",
                libvirt_code=self._error.get_error_code(),
            )


class Handover:
    """Resumes the guest at the destination as soon as the source's QEMU is dead.

    The dead process is the proof that the source has given the guest up. libvirt says so 0.2 s
    later, which would be most of the downtime (virProcessKillPainfullyDelay looks every 0.2 s). Where this does
    not come about, the next look at both hosts finds row 6, and the guest is resumed then.
    """

    def __init__(self, mover: Mover, view: View, domain: t.Any) -> None:
        self._mover, self._view = mover, view
        self._connection = mover.pair.source.connection
        self._stopped, self._over = threading.Event(), False
        self._stopped_at = 0.0
        self._number = self._connection.domainEventRegisterAny(
            domain, virt.libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._note, None
        )
        self._thread = threading.Thread(target=self._work, name="handover", daemon=True)
        self._thread.start()

    def _note(self, dummy: t.Any, dummy_domain: t.Any, event: int, detail: int, dummy_opaque: t.Any) -> None:
        lib = virt.libvirt
        if event == lib.VIR_DOMAIN_EVENT_SUSPENDED and detail == lib.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED:
            self._stopped_at = time.monotonic()
            self._stopped.set()
        elif event == lib.VIR_DOMAIN_EVENT_RESUMED:  # the source goes on: from now on its death proves nothing
            self._over = True

    def end(self) -> None:
        """The migration is over: stop looking."""
        self._over = True
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(virt.libvirt.libvirtError):
            self._connection.domainEventDeregisterAny(self._number)

    def _work(self) -> None:
        pid = qemu_pid(self._view.name, self._view.uuid)
        self._stopped.wait()
        if pid is None or not self._stopped_at:
            return
        with contextlib.suppress(virt.libvirt.libvirtError, PhyllomeError):
            domain = self._mover.pair.destination.connection.lookupByUUIDString(self._view.uuid)
            waiting = [virt.libvirt.VIR_DOMAIN_PAUSED, virt.libvirt.VIR_DOMAIN_PAUSED_USER]
            while domain.state() != waiting and not self._over:
                time.sleep(0.002)
            view = self._mover.pair.with_source_gone(self._view)  # asked ahead: each question costs downtime
            row = classify(view.source.state, view.destination.state, view.source.job, view.mark, view.committed)
            if row is None or row.action != "finish":
                return
            while not process_is_gone(pid):
                if self._over:
                    return
                time.sleep(0.001)
            self._mover.commit(view, sync=False)
            domain.resume()
            self._mover.told.stats["downtime_ms"] = ms(time.monotonic() - self._stopped_at)


def too_slow(name: str, timeout: int, what: str) -> PhyllomeError:
    return PhyllomeError(
        f"timeout: the migration of {name} took longer than {timeout} s",
        what,
        "Give it more time (timeout), less to do (convergence.auto_converge) or a faster network.",
    )


def ms(seconds: float) -> int:
    """Whole milliseconds."""
    return round(seconds * 1000)
