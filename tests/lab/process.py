"""Processes by identity: a pid alone may belong to somebody else by the time it is used."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` started, None if it is gone (proc(5), stat field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Process:
    """One process for as long as the machine is up: pid and start time."""

    pid: int
    started: int

    @classmethod
    def current(cls) -> Process:
        """The process this code runs in."""
        return cls(os.getpid(), start_time(os.getpid()) or 0)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return start_time(self.pid) == self.started

    @contextmanager
    def _handle(self) -> Iterator[int | None]:
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield fd if self.alive else None
        finally:
            os.close(fd)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to this process and to no other; False if it has ended already."""
        with self._handle() as fd:
            if fd is None:
                return False
            try:
                signal.pidfd_send_signal(fd, number)
            except ProcessLookupError:
                return False
            return True
