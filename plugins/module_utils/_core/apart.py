# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel may never come back from, done by a process that can be left behind.

While a driver lets go of a device the kernel keeps the device locked. A driver that waits for its
users does so for ever, and whoever reads an attribute that takes the lock waits as well, in a state
that no signal ends. So another process reads; it holds nothing of ours open.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import struct
import typing as t

PATIENCE = 5.0
"""Seconds for one read. It takes microseconds; some tens of milliseconds where a sleeping bridge wakes up."""
# O_NONBLOCK: a named pipe in a captured tree must not hang us, and /dev/kmsg ends there.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_HEAD = struct.Struct("<ii")  # of an answer: errno, or 0; bytes that follow
_SILENT = -1  # in place of an errno
_CHUNK = 1 << 16  # what a pipe holds
_BUSY = 12  # periods of patience for a process that runs and gets nowhere


SILENCE = "the kernel does not answer"


class Silent(OSError):
    """The kernel does not come back."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, SILENCE)


class Job(t.NamedTuple):
    """Something to read.

    Attributes:
        place: what is left alone as a whole once one read of it does not come back.
        path: absolute.
        limit: bytes, see content; None to claim it, and read nothing.
    """

    place: str
    path: str
    limit: int | None


def content(path: str, limit: int) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, or (EFBIG) it is longer than limit.
        ValueError: no file can have this name.
    """
    handle = os.open(path, FLAGS)
    try:
        parts = []
        size = 0
        while size <= limit:
            try:
                part = os.read(handle, max(4096, min(limit, 1 << 20)) + 1)
            except BlockingIOError:
                break
            except BrokenPipeError:  # /dev/kmsg: records were overwritten meanwhile, the next read goes on
                continue
            if not part:
                break
            parts.append(part)
            size += len(part)
        if size > limit:
            raise OSError(errno.EFBIG, f"longer than {limit} bytes")
        return b"".join(parts)
    finally:
        os.close(handle)


def claim(path: str) -> None:
    """Open a disk as if for exclusive use, for a moment, and read nothing of it.

    Raises:
        OSError: EBUSY when the kernel has given it, or a part of it, to somebody.
    """
    os.close(os.open(path, FLAGS | os.O_EXCL))


class Apart:
    """Reads by another process.

    Attributes:
        patience: seconds without an answer after which a process is left behind; half of it with each one that is.
        silent: places that do not answer.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.silent: set[str] = set()
        self._ahead: t.Iterator[tuple[Job, bytes | OSError]] = iter(())
        self._found: dict[Job, bytes | OSError | None] = {}

    def begin(self, jobs: t.Iterable[Job]) -> None:
        """Have all of these done meanwhile; they are best asked for in this order."""
        self._found = dict.fromkeys(jobs)
        self._ahead = self._answers(tuple(self._found))

    def ask(self, job: Job) -> bytes:
        """What came of a job.

        Raises:
            OSError: as content; Silent when the place does not answer.
        """
        while job in self._found and self._found[job] is None:
            done = next(self._ahead, None)
            if done is None:  # no process could be started
                break
            self._found[done[0]] = done[1]
        found = self._found.pop(job, None)
        if not self._found:
            next(self._ahead, None)  # it ends here
        if found is None:
            [(dummy, found)] = self._answers([job])
        if isinstance(found, OSError):
            raise found
        return found

    def _answers(self, jobs: t.Sequence[Job]) -> t.Iterator[tuple[Job, bytes | OSError]]:
        """The jobs one by one, by as many processes as it takes."""
        done = 0
        while done < len(jobs):
            if jobs[done].place not in self.silent:
                for answer in self._process(jobs[done:]):
                    yield jobs[done], answer
                    done += 1
            if done < len(jobs):
                self.silent.add(jobs[done].place)
                yield jobs[done], Silent()
                done += 1

    def _process(self, jobs: t.Sequence[Job]) -> t.Iterator[bytes | OSError]:
        """The answers of one process, until it is done, dies or does not come back."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _work(jobs, self.silent, writer)
        os.close(writer)
        ended = False
        try:
            got, todo = b"", len(jobs)
            while todo:
                if not self._is_there(reader, pid):
                    return
                more = os.read(reader, _CHUNK)
                if not more:
                    ended = True
                    return
                got += more
                answers, got = _parsed(got)
                todo -= len(answers)
                yield from answers
            ended = True
        finally:
            os.close(reader)
            _leave(pid, ended)

    def _is_there(self, reader: int, pid: int) -> bool:
        """Whether an answer came; a process that runs, or would if it were let, gets more time."""
        patience = self.patience / (1 << min(len(self.silent), 5))
        for dummy in range(_BUSY):
            if select.select([reader], [], [], patience)[0]:
                return True
            if state(pid) != "R":
                return False
        return False


def state(pid: int) -> str:
    """What a process does, as a letter (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html); empty when unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def detach(keep: int) -> None:
    """Hold nothing open but one file, so that nobody who reads our output waits for this process."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for handle in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, keep}:
        with contextlib.suppress(OSError):  # that of the listing itself
            os.close(handle)


def _parsed(got: bytes) -> tuple[list[bytes | OSError], bytes]:
    """The answers in what came, and the rest of it."""
    found: list[bytes | OSError] = []
    start = 0
    while len(got) - start >= _HEAD.size:
        code, size = _HEAD.unpack_from(got, start)
        end = start + _HEAD.size + size
        if len(got) < end:
            break
        if code:
            found.append(Silent() if code == _SILENT else OSError(code, os.strerror(code)))
        else:
            found.append(got[end - size : end])
        start = end
    return found, got[start:]


def _work(jobs: t.Sequence[Job], silent: t.Collection[str], writer: int) -> t.NoReturn:
    """What the other process does."""
    try:
        detach(writer)
        for place, path, limit in jobs:
            code, found = 0, b""
            try:
                if place in silent:
                    code = _SILENT
                elif limit is None:
                    claim(path)
                else:
                    found = content(path, limit)
            except OSError as exc:
                code = exc.errno or errno.EIO
            except ValueError:
                code = errno.EINVAL
            answer = _HEAD.pack(code, len(found)) + found
            while answer:
                answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _leave(pid: int, ended: bool) -> None:
    """Wait for a process that has ended; end another one, and do not wait: it may not be able to."""
    with contextlib.suppress(OSError):
        if not ended:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0 if ended else os.WNOHANG)
