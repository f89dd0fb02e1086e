# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's migration itself, and the moment at which the guest changes hosts.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError
from . import policy, progress
from .judge import classify
from .process import Qemu
from .read import View

if t.TYPE_CHECKING:
    from .apply import Mover

POLL = 0.1
LOOK = 0.5
"""Seconds between two looks at a migration: the policy counts a round without progress at most once in each."""
_MISSED = 0.05
"""Seconds after which the destination is asked, should its event have been lost."""
_UNDOES = 15.0
"""Seconds that libvirt gets to undo a failed migration once it knows."""


def settle() -> float:
    """Seconds that libvirt gets to undo a failed migration; it may have to find out first that the other host is gone."""
    interval, count = virt.patience()
    return interval * (count + 1) + _UNDOES


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

    def run(self, timeout: int, monitor: Monitor) -> None:
        """Migrate.

        Raises:
            PhyllomeError: what libvirt says, or that it took too long and was aborted.
        """
        threading.Thread(target=self._work, name="migration", daemon=True).start()
        deadline = time.monotonic() + (timeout or float("inf"))
        name = self._domain.name()
        pause = POLL  # the first look is an early one: the limit of the downtime has to be set
        while not self._ended.wait(pause):
            monitor.look()
            if monitor.stuck:
                monitor.give_up()
            pause = LOOK
            if (time.monotonic() < deadline and not monitor.aborted) or monitor.fetches:
                continue
            with contextlib.suppress(virt.libvirt.libvirtError):
                self._domain.abortJob()
            self._ended.wait(settle())
            if not self._ended.is_set() or self._error is not None:
                raise stalled(name) if monitor.aborted else too_slow(name, timeout, "it was aborted")
        if self._error is not None:
            raise PhyllomeError(
                f"The migration of {name} failed",
                self._error.get_error_message() or str(self._error),
                "Remove the cause and run again.",
                libvirt_code=self._error.get_error_code(),
            )


class Monitor:
    """Looks at a migration now and then: tells how far it is, and does what the policy says.

    Args:
        mover: the steps.
        view: both hosts.
        domain: the guest at the source; None to look it up at each look.
        runs: whether it is a guest of this move whose CPUs run: otherwise there is nothing to be decided.
    """

    def __init__(self, mover: Mover, view: View, domain: t.Any, runs: bool) -> None:
        self._mover, self._view, self._domain, self._runs = mover, view, domain, runs
        self._history: tuple[policy.Sample, ...] = ()
        self._limit = policy.Policy().downtime_ms  # QEMU's own
        self._looked = 0.0
        self._before: tuple[int, int] | None = None
        self._figures: t.Any = None
        self._moved = time.monotonic()
        self.aborted = False
        self.fetches = "postcopy" in (view.source.state, view.destination.state) or view.source.state == "broken"
        """Whether the guest runs at the destination already, so that nothing can be aborted any more."""

    @property
    def stuck(self) -> bool:
        """Whether a guest's memory is being fetched and none has come for so long that its connection must be dead."""
        return self.fetches and time.monotonic() - self._moved > settle()

    def give_up(self) -> None:
        """Have QEMU give up the connection, which keeps what each side has: then libvirt can resume through another one."""
        self._moved = time.monotonic()
        with contextlib.suppress(virt.libvirt.libvirtError, AttributeError):  # libvirt 8.5
            domain = self._domain or self._mover.pair.source.connection.lookupByUUIDString(self._view.uuid)
            domain.abortJobFlags(virt.libvirt.VIR_DOMAIN_ABORT_JOB_POSTCOPY)

    def look(self) -> None:
        """Look, if it is time to. A migration that begins or ends just now has nothing to say."""
        if self._mover.switching or time.monotonic() - self._looked < POLL:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(virt.libvirt.libvirtError):
            domain = self._domain or self._mover.pair.source.connection.lookupByUUIDString(self._view.uuid)
            stats = domain.jobStats()
            if not stats.get("type"):
                return
            phase, figures = progress.figures(stats, self._before)
            self._before = progress.rate_of(stats)
            if self._figures != (self._before[1], stats.get("memory_remaining")):
                self._figures, self._moved = (self._before[1], stats.get("memory_remaining")), time.monotonic()
            self._mover.progress.say(phase, **figures)
            if "slowed_percent" in figures:
                self._mover.told.stats["slowed_percent"] = figures["slowed_percent"]
            if self._runs:
                self._decide(domain, stats)

    def _decide(self, domain: t.Any, stats: dict[str, t.Any]) -> None:
        sample = policy.Sample(int(stats.get("memory_iteration") or 0), int(stats.get("memory_remaining") or 0))
        self._history = policy.extended(self._history, sample)
        verdict = policy.decide(self._mover.order.policy, self._history)
        if verdict.downtime_ms != self._limit:
            domain.migrateSetMaxDowntime(verdict.downtime_ms)
            self._mover.told.stats["downtime_limit_ms"] = self._limit = verdict.downtime_ms
        if verdict.last_resort == "abort":
            self.aborted = True
        elif verdict.last_resort == "post_copy" and not self.fetches:
            domain.migrateStartPostCopy()
            self.fetches = True
            record = self._mover.pair.journal.load(self._view.op_id)
            self._mover.commit(dataclasses.replace(self._view, record=record), sync=True)
            self._mover.told.stats["post_copy"] = True
        elif verdict.last_resort == "suspend" and domain.state()[0] == virt.libvirt.VIR_DOMAIN_RUNNING:
            self._mover.progress.suspend(self._view.uuid, self._view.op_id)
            domain.suspend()
            self._mover.told.stats["suspended"] = True


class Handover:
    """Resumes the guest at the destination as soon as the source's QEMU is dead.

    The dead process is the proof that the source has given the guest up. libvirt says so 0.2 s
    later, which would be most of the downtime (virProcessKillPainfullyDelay looks every 0.2 s). Where this does
    not come about, the next look at both hosts finds row 6, and the guest is resumed then.
    """

    def __init__(self, mover: Mover, view: View, domain: t.Any) -> None:
        self._mover, self._view = mover, view
        self._stopped, self._arrived, self._over = threading.Event(), threading.Event(), False
        self._stopped_at = 0.0
        self._listening = [
            self._listen(mover.pair.source.connection, domain, self._note),
            self._listen(mover.pair.destination.connection, None, self._note_there),
        ]
        self._thread = threading.Thread(target=self._work, name="handover", daemon=True)
        self._thread.start()

    @staticmethod
    def _listen(connection: t.Any, domain: t.Any, note: t.Callable[..., None]) -> tuple[t.Any, int]:
        kind = virt.libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        return connection, connection.domainEventRegisterAny(domain, kind, note, None)

    def _note(self, dummy: t.Any, dummy_domain: t.Any, event: int, detail: int, dummy_opaque: t.Any) -> None:
        lib = virt.libvirt
        if event == lib.VIR_DOMAIN_EVENT_SUSPENDED and detail == lib.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED:
            self._stopped_at = time.monotonic()
            self._mover.switching = True
            self._stopped.set()
        elif event == lib.VIR_DOMAIN_EVENT_RESUMED:  # the source goes on: from now on its death proves nothing
            self._mover.switching, self._over = False, True

    def _note_there(self, dummy: t.Any, domain: t.Any, event: int, dummy_detail: int, dummy_opaque: t.Any) -> None:
        if event == virt.libvirt.VIR_DOMAIN_EVENT_SUSPENDED and domain.UUIDString() == self._view.uuid:
            self._arrived.set()

    def end(self) -> None:
        """The migration is over: stop looking."""
        self._mover.switching, self._over = False, True
        self._stopped.set()
        self._thread.join()
        for connection, number in self._listening:
            with contextlib.suppress(virt.libvirt.libvirtError):
                connection.domainEventDeregisterAny(number)

    def _work(self) -> None:
        source = Qemu(self._view.name, self._view.uuid)
        try:
            self._stopped.wait()
            if source.known and self._stopped_at:
                with contextlib.suppress(virt.libvirt.libvirtError, PhyllomeError):
                    self._hand_over(source)
        finally:
            source.close()

    def _hand_over(self, source: Qemu) -> None:
        domain = self._mover.pair.destination.connection.lookupByUUIDString(self._view.uuid)
        waiting = [virt.libvirt.VIR_DOMAIN_PAUSED, virt.libvirt.VIR_DOMAIN_PAUSED_USER]
        view = self._mover.pair.with_source_gone(self._view)  # asked ahead: each question costs downtime
        view = dataclasses.replace(view, destination=dataclasses.replace(view.destination, state="paused"))
        row = classify(view.source.state, view.destination.state, view.source.job, view.mark, view.committed)
        if row is None or row.action != "finish":
            return
        while domain.state() != waiting:
            if self._over:
                return
            self._arrived.wait(_MISSED)
            self._arrived.clear()
        committed = False
        while not source.is_gone():
            if self._over:
                return
            if not committed and source.is_given_up():
                source.kill()
                self._mover.commit(view, sync=False)
                committed = True
            time.sleep(0.0005)
        if not committed:
            self._mover.commit(view, sync=False)
        domain.resume()
        self._mover.told.stats["downtime_ms"] = ms(time.monotonic() - self._stopped_at)


def too_slow(name: str, timeout: int, what: str) -> PhyllomeError:
    return PhyllomeError(
        f"timeout: the migration of {name} took longer than {timeout} s",
        what,
        "Give it more time (timeout), less to do (convergence.auto_converge) or a faster network.",
    )


def stalled(name: str) -> PhyllomeError:
    return PhyllomeError(
        f"The migration of {name} made no progress and was aborted",
        "the guest writes faster than its memory is sent, and convergence.on_stall is abort",
        "Let it be slowed down (convergence.auto_converge) or stopped for the end (on_stall: suspend), allow more "
        "downtime (max_downtime_ms), or use a faster network.",
    )


def ms(seconds: float) -> int:
    """Whole milliseconds."""
    return round(seconds * 1000)
