# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a move that is under way tells: a small file, for whoever asks.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import json
import os
import time
import typing as t

from .._core.errors import PhyllomeError
from . import journal
from .journal import Busy, Journal

_APPEARS = 5.0
"""Seconds within which the run that holds the lock has told who it is."""
MIB = 1024**2


class Progress:
    """The file of one guest; it dies with the host, as the run that writes it does.

    Args:
        directory: root's only.
        begun: called with the file's path as soon as there is something to be seen in it, and with
            the name and purpose of the move when it is this run that makes it.
    """

    def __init__(
        self,
        directory: str | None = None,
        begun: t.Callable[[str, str | None, str], None] = lambda path, op, what: None,
    ) -> None:
        self._directory = directory or journal.LOCKS
        self._begun = begun
        self._told: dict[str, t.Any] = {}
        self._path = ""

    def begin(self, uuid: str, op: str, **guest: str) -> None:
        """This run, which holds the guest's lock, moves it.

        Args:
            uuid: the guest's.
            op: the name of the move.
            guest: its ``name``, and names of ``source`` and ``destination``.
        """
        self._path = self._file(uuid)
        self._told = {"op_id": op, "pid": os.getpid(), **guest, "phase": "preparing", "answer": None}
        self._write()
        self._begun(self._path, op, "moving {name} from {source} to {destination}".format(**guest))

    def say(self, phase: str, **numbers: t.Any) -> None:
        """What is done now, with figures that replace all former ones."""
        if self._path:
            head = {name: self._told[name] for name in ("op_id", "pid", "name", "source", "destination", "answer")}
            self._told = {**head, "phase": phase, **numbers}
            self._write()

    def end(self, answer: dict[str, t.Any]) -> None:
        """The last word, for others who wait for this run; before the lock is given back."""
        self._told["answer"] = answer
        self._write()

    def attend(self, uuid: str, op: str, journal: Journal, busy: Busy) -> dict[str, t.Any] | None:
        """Wait until the run that moves this guest has ended.

        Returns:
            Its answer; None when it was killed.

        Raises:
            Busy: it is another move than this one.
        """
        path = self._file(uuid)
        deadline = time.monotonic() + _APPEARS
        told = self._read(path)
        while told.get("answer") is not None or "op_id" not in told:
            if time.monotonic() > deadline:
                raise busy
            time.sleep(0.05)
            told = self._read(path)
        if told["op_id"] != op:
            raise busy
        self._begun(path, None, "")
        journal.outwait(uuid)
        answer = self._read(path).get("answer")
        return t.cast("dict[str, t.Any] | None", answer)

    # -- what this collection has suspended ----------------------------------------------------

    def suspended(self, uuid: str, op: str) -> bool:
        """Whether a move has stopped the guest's CPUs so that its memory can be sent."""
        return self._read(self._stopped(uuid)).get("op_id") == op

    def suspend(self, uuid: str, op: str) -> None:
        """Remember that, before it is done."""
        self._write_to(self._stopped(uuid), {"op_id": op})

    def unsuspend(self, uuid: str) -> None:
        """Forget it."""
        if os.path.exists(self._stopped(uuid)):
            os.unlink(self._stopped(uuid))

    def _file(self, uuid: str) -> str:
        return os.path.join(self._directory, f"{uuid}.progress")

    def _stopped(self, uuid: str) -> str:
        return os.path.join(self._directory, f"{uuid}.suspended")

    def _read(self, path: str) -> dict[str, t.Any]:
        try:
            with open(path, encoding="utf-8") as stream:
                return t.cast("dict[str, t.Any]", json.load(stream))
        except (FileNotFoundError, ValueError):
            return {}

    def _write(self) -> None:
        self._write_to(self._path, self._told)

    def _write_to(self, path: str, told: dict[str, t.Any]) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump(told, stream)
        os.rename(f"{path}.new", path)


def opened(answer: dict[str, t.Any]) -> dict[str, t.Any]:
    """The result in an answer.

    Raises:
        PhyllomeError: the answer is one.
    """
    if "crash" in answer:
        raise RuntimeError(answer["crash"])
    if "error" in answer:
        error = answer["error"]
        raise PhyllomeError(error["what"], error["why"], error["remedy"], **error["facts"])
    return t.cast("dict[str, t.Any]", answer["result"])


def closed(error: PhyllomeError) -> dict[str, t.Any]:
    """An error as an answer."""
    return {
        "error": {"what": error.what, "why": error.why, "remedy": error.remedy, "facts": error.facts},
        "msg": str(error),
    }


def figures(stats: t.Mapping[str, t.Any], before: tuple[int, int] | None) -> tuple[str, dict[str, t.Any]]:
    """Phase and figures of a migration, from ``virDomainGetJobStats``. Pure.

    Args:
        stats: what libvirt says.
        before: ``time_elapsed`` and ``data_processed`` of an earlier look.

    Returns:
        The phase, and ``percent``, ``remaining_mib``, ``mib_s``, ``dirty_mib_s``, ``slowed_percent`` and
        ``downtime_ms``; what is not known is left out.
    """
    disk = int(stats.get("disk_remaining") or 0)
    sent_memory = int(stats.get("memory_processed") or 0)
    phase = "copying disks" if disk and not sent_memory else "copying memory"
    told: dict[str, t.Any] = {}
    total, remaining = int(stats.get("data_total") or 0), int(stats.get("data_remaining") or 0)
    if total and remaining:  # none is left for a moment between disks and memory, too
        told["percent"] = max(0, min(99, 100 * (total - remaining) // total))
        told["remaining_mib"] = round(remaining / MIB, 1)
    elapsed, processed = rate_of(stats)
    if before is not None and elapsed > before[0] and processed > before[1]:
        told["mib_s"] = round((processed - before[1]) / (elapsed - before[0]) * 1000 / MIB, 1)
    if stats.get("memory_dirty_rate"):
        told["dirty_mib_s"] = round(stats["memory_dirty_rate"] * stats.get("memory_page_size", 4096) / MIB, 1)
    if stats.get("auto_converge_throttle"):
        told["slowed_percent"] = int(stats["auto_converge_throttle"])
    if phase == "copying memory" and stats.get("downtime"):
        told["downtime_ms"] = int(stats["downtime"])
    return phase, told


def rate_of(stats: t.Mapping[str, t.Any]) -> tuple[int, int]:
    """What the speed is made of: milliseconds since the start, and bytes that were sent. Pure."""
    return int(stats.get("time_elapsed") or 0), int(stats.get("data_processed") or 0)
