# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bytes of a file of this host on their way into a volume of another one: what is empty is not sent, what is sent is summed.

A file is cut into chunks. An entry says what of a chunk was sent: which of its blocks are not zeros, and their digest.
It is always made of the very bytes that go, so a guest may write to the file meanwhile: what it changes later has
another entry. Zeros have the same entry whether they are written or left out.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import errno
import hashlib
import os
import time
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError

SEGMENT = 64 * 1024**2
CHUNK = 1024**2
BLOCK = 64 * 1024
PAGE = 4096
_SEND = 256 * 1024
_ZEROS = bytes(BLOCK)
_READERS = min(4, os.cpu_count() or 1)
_AHEAD = 32

EMPTY = ""
"""The entry of a chunk of zeros."""

Piece = tuple[int, bytes]


class Chunk(t.NamedTuple):
    """A chunk as it was read; ``dense`` when it has no holes, ``data`` is empty when it is a hole."""

    start: int
    size: int
    data: bytes
    entry: str
    dense: bool

    def pieces(self, was: int = 0) -> list[Piece]:
        """What has to be written where blocks were not empty that ``was`` has a bit for.

        What is left out is zero, and zero there: so what is written makes the chunk what its entry says.
        """
        mask = mask_of(self.entry)
        found: list[Piece] = []
        if not mask | was:
            return found
        data = self.data or bytes(self.size)
        runs: list[tuple[int, int]] = []
        for number, begin in enumerate(range(0, self.size, BLOCK)):
            end = min(begin + BLOCK, self.size)
            if was >> number & 1 or (mask >> number & 1 and self.dense):
                runs.append((begin, end))
            elif mask >> number & 1:
                runs += [(at, min(at + PAGE, end)) for at in range(begin, end, PAGE)
                         if data[at : min(at + PAGE, end)].strip(b"\0")]  # fmt: skip
        for begin, end in _joined(runs):
            found.append((self.start + begin, data if end - begin == len(data) else data[begin:end]))
        return found


def _joined(runs: t.Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in runs:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def mask_of(entry: str) -> int:
    """Which blocks of a chunk are not empty, one bit each."""
    return int(entry[:4], 16) if entry else 0


def entry_of(data: bytes, sums: bool = True) -> str:
    """What is said of a chunk with these bytes; without sums it has no digest."""
    mask, full = 0, []
    for number, begin in enumerate(range(0, len(data), BLOCK)):
        end = min(begin + BLOCK, len(data))
        if not data.startswith(_ZEROS if end - begin == BLOCK else bytes(end - begin), begin):  # compares in place
            mask |= 1 << number
            full.append((begin, end))
    if not mask:
        return EMPTY
    if not sums:
        return f"{mask:04x}-"
    summed, view = hashlib.sha256(), memoryview(data)
    for begin, end in _joined(full):
        summed.update(view[begin:end])
    return f"{mask:04x}{summed.hexdigest()[:32]}"


def extents(descriptor: int, start: int, end: int) -> t.Iterator[tuple[int, int]]:
    """Parts of a file that are not holes (lseek(2), SEEK_DATA and SEEK_HOLE)."""
    while start < end:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        if start >= end:
            return
        stop = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        yield start, stop
        start = stop


def root(size: int, entries: t.Sequence[str]) -> str:
    """The digest of a file, of its chunks'."""
    summed = hashlib.sha256(f"{size}\n".encode())
    for number, entry in enumerate(entries):
        if entry:
            summed.update(f"{number} {entry}\n".encode())
    return f"sha256-chunks:{summed.hexdigest()}"


def chunks(descriptor: int, begin: int, end: int, sums: bool = True) -> t.Generator[Chunk, None, None]:
    """The chunks of a part of a file, in order, read and summed ahead by several at once.

    Args:
        descriptor: of the file.
        begin: a multiple of CHUNK.
        end: of the part.
        sums: compute digests.

    Raises:
        PhyllomeError: the file is shorter.
    """
    waiting: collections.deque[concurrent.futures.Future[Chunk] | Chunk] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        try:
            for start, size, dense in _holes(descriptor, begin, end):
                if dense is None:
                    waiting.append(Chunk(start, size, b"", EMPTY, False))
                else:
                    waiting.append(readers.submit(_read, descriptor, start, size, dense, sums))
                if len(waiting) >= _AHEAD:
                    yield _ready(waiting.popleft())
            while waiting:
                yield _ready(waiting.popleft())
        finally:
            for one in waiting:
                if not isinstance(one, Chunk):
                    one.cancel()


def _ready(one: concurrent.futures.Future[Chunk] | Chunk) -> Chunk:
    return one if isinstance(one, Chunk) else one.result()


def _holes(descriptor: int, begin: int, end: int) -> t.Iterator[tuple[int, int, bool | None]]:
    """Start and size of each chunk, and whether it has no holes; None when it is one."""
    known: tuple[int, int] = (begin, begin)
    for start in range(begin, end, CHUNK):
        stop = min(start + CHUNK, end)
        if known[1] <= start:
            known = next(extents(descriptor, start, end), (end, end))
        yield start, stop - start, None if known[0] >= stop else known[0] <= start and known[1] >= stop


def _read(descriptor: int, start: int, size: int, dense: bool, sums: bool) -> Chunk:
    data = os.pread(descriptor, size, start)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), start + len(data))
        if not more:
            raise PhyllomeError(
                "A disk became shorter while it was copied", f"at byte {start + len(data)}", "Run again."
            )
        data += more
    return Chunk(start, size, data, entry_of(data, sums), dense)


class Pace:
    """How fast bytes may go, and how long.

    Args:
        bandwidth: bytes a second; 0 for no limit.
        timeout: seconds; 0 for no limit.
    """

    def __init__(self, bandwidth: int, timeout: int) -> None:
        self._bandwidth, self._timeout = bandwidth, timeout
        self._began, self.sent = time.monotonic(), 0

    def figures(self, total: int) -> dict[str, t.Any]:
        """How far it is, for people, when about so many bytes are to go."""
        mib, passed = 1024**2, time.monotonic() - self._began
        return {
            "percent": min(99, 100 * self.sent // max(1, total)),
            "remaining_mib": round(max(0, total - self.sent) / mib, 1),
            "mib_s": round(self.sent / mib / max(0.001, passed), 1),
        }

    def tell(self, count: int) -> None:
        """So many more bytes went.

        Raises:
            TimeoutError: it takes too long.
        """
        self.sent += count
        passed = time.monotonic() - self._began
        if self._timeout and passed > self._timeout:
            raise TimeoutError
        if self._bandwidth and self.sent / self._bandwidth > passed:
            time.sleep(min(1.0, self.sent / self._bandwidth - passed))


@contextlib.contextmanager
def _opened(connection: t.Any, volume: t.Any, offset: int, length: int, flags: int) -> t.Iterator[t.Any]:
    """An upload into a part of a volume, which the other host has confirmed afterwards."""
    stream = connection.newStream()
    try:
        volume.upload(stream, offset, length, flags)
        yield stream
        ended, stream = stream, None
        ended.finish()
    finally:
        if stream is not None:
            with contextlib.suppress(virt.libvirt.libvirtError):
                stream.abort()


def _push(stream: t.Any, data: bytes, pace: Pace) -> None:
    for begin in range(0, len(data), _SEND):
        part = data[begin : begin + _SEND] if len(data) > _SEND else data
        sent = 0
        while sent < len(part):
            sent += stream.send(part[sent:] if sent else part)
        pace.tell(len(part))


def append(
    connection: t.Any, volume: t.Any, coming: t.Iterable[Chunk], begin: int, end: int, last: bool, pace: Pace
) -> int:
    """Send a part of a file into a volume that is empty from there on; how many bytes went.

    Holes are sent as holes, and each makes the other end as long as it is there, and not longer (virFDStreamThreadDoWrite).

    Args:
        connection: the other host's.
        volume: there.
        coming: the chunks of the part.
        begin: of the part.
        end: of the part.
        last: the file ends with it, so the other one has to be as long.
        pace: of all files together.

    Raises:
        libvirt.libvirtError: the other host does not take it.
        TimeoutError: it takes too long.
    """
    at, count = begin, 0
    with contextlib.ExitStack() as stack:
        stream: t.Any = None

        def opened() -> t.Any:
            sparse = virt.libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM
            return stream or stack.enter_context(_opened(connection, volume, begin, end - begin, sparse))

        for chunk in coming:
            for offset, data in chunk.pieces():
                stream = opened()
                if offset > at:
                    stream.sendHole(offset - at)
                _push(stream, data, pace)
                at, count = offset + len(data), count + len(data)
        if at < end and (last or stream is not None):
            stream = opened()
            stream.sendHole(end - at)
    return count


def cut(connection: t.Any, volume: t.Any, end: int) -> None:
    """Make a volume end there, whatever an interrupted run or its file system has put after it, or holes up to there."""
    sparse = virt.libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM
    with _opened(connection, volume, end - 1, 1, sparse) as stream:
        stream.sendHole(1)


def fill(connection: t.Any, volume: t.Any, coming: t.Iterable[Chunk], end: int, pace: Pace) -> int:
    """As ``append``, slower, where a file system keeps room behind the end of a file that grows, as XFS does.

    The volume is made longer first: what is written before its end then takes no more room than it needs.
    """
    cut(connection, volume, end)
    return patch(connection, volume, [piece for one in coming for piece in one.pieces()], pace)


def patch(connection: t.Any, volume: t.Any, pieces: t.Sequence[Piece], pace: Pace) -> int:
    """Overwrite parts of a volume; how many bytes went.

    Raises:
        libvirt.libvirtError: the other host does not take it.
        TimeoutError: it takes too long.
    """
    count = done = 0
    while done < len(pieces):
        start, end = pieces[done][0], pieces[done][0]
        run = []
        while done < len(pieces) and pieces[done][0] == end:
            run.append(pieces[done][1])
            end += len(pieces[done][1])
            done += 1
        with _opened(connection, volume, start, end - start, 0) as stream:
            for data in run:
                _push(stream, data, pace)
        count += end - start
    return count


def read_back(connection: t.Any, volume: t.Any, size: int) -> t.Iterator[str]:
    """The entries of a volume's chunks, from what the other host reads of its own disk.

    Raises:
        libvirt.libvirtError: it cannot be read.
    """
    for start in range(0, size, SEGMENT):
        length = min(SEGMENT, size - start)
        whole = _download(connection, volume, start, length)
        for inner in range(0, length, CHUNK):
            yield EMPTY if whole is None else entry_of(bytes(whole[inner : min(inner + CHUNK, length)]))


def _download(connection: t.Any, volume: t.Any, start: int, length: int) -> bytearray | None:
    """A part of a volume; None when it is a hole."""
    whole, at, filled = bytearray(length), 0, False

    def fill(dummy: t.Any, data: bytes, opaque: t.Any) -> None:
        nonlocal at, filled
        whole[at : at + len(data)] = data
        at, filled = at + len(data), True

    def skip(dummy: t.Any, count: int, opaque: t.Any) -> None:
        nonlocal at
        at += count

    stream = connection.newStream()
    volume.download(stream, start, length, virt.libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
    stream.sparseRecvAll(fill, skip, None)
    stream.finish()
    return whole if filled else None
