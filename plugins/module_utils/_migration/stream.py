# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bytes of a file of this host on their way into a volume of another one: what is empty is not sent, what is sent is summed.

A file is cut into segments. A segment counts when libvirt there has confirmed it, so a copy that was cut off goes on
after the last one. Its digest is that of its blocks that are not empty, so it is the same whether zeros are written
or left out.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import threading
import time
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError

SEGMENT = 64 * 1024**2
BLOCK = 64 * 1024
_READ = 1024**2
_SEND = 256 * 1024
_ZEROS = bytes(BLOCK)

Piece = tuple[int, bytes]


class Sent(t.NamedTuple):
    """A segment that the other host has: where it starts, its digest (None for an empty one), bytes that were sent."""

    start: int
    digest: str | None
    size: int


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


class Sum:
    """The digest of a segment, from its blocks in order."""

    def __init__(self) -> None:
        self._sum, self.empty = hashlib.sha256(), True

    def add(self, offset: int, block: bytes) -> bool:
        """Add a block; whether it holds anything but zeros."""
        if block == _ZEROS[: len(block)]:
            return False
        self.empty = False
        self._sum.update(offset.to_bytes(8, "big"))
        self._sum.update(block)
        return True

    def digest(self) -> str | None:
        """None when all of it is zeros."""
        return None if self.empty else self._sum.hexdigest()


def root(size: int, segments: t.Iterable[tuple[int, str | None]]) -> str:
    """The digest of a file, of its segments'."""
    summed = hashlib.sha256(f"{size}\n".encode())
    for start, digest in sorted(segments):
        if digest is not None:
            summed.update(f"{start} {digest}\n".encode())
    return f"sha256-segments:{summed.hexdigest()}"


def pieces(descriptor: int, start: int, end: int, summed: Sum) -> t.Iterator[Piece]:
    """What of a segment has to be sent, in order; every block is added to the sum.

    Args:
        descriptor: of the file.
        start: of the segment, a multiple of BLOCK.
        end: of the segment.
        summed: what the digest comes from.
    """
    done = start
    for first, last in extents(descriptor, start, end):
        at = max(done, first // BLOCK * BLOCK)
        upto = min(end, -(-last // BLOCK) * BLOCK)
        if done > first:  # the block that two parts share was read with the first of them
            yield from _cut(os.pread(descriptor, min(done, last) - first, first), first)
        while at < upto:
            read = os.pread(descriptor, min(_READ, upto - at), at)
            if not read:
                raise PhyllomeError("A disk became shorter while it was copied", f"at byte {at}", "Run again.")
            run = -1
            for inner in range(0, len(read), BLOCK):
                full = summed.add(at + inner, read[inner : inner + BLOCK])
                if full and run < 0:
                    run = inner
                elif not full and run >= 0:
                    yield from _cut(read[run:inner], at + run, first, last)
                    run = -1
            if run >= 0:
                yield from _cut(read[run:] if run else read, at + run, first, last)
            at += len(read)
        done = max(done, upto)


def _cut(data: bytes, offset: int, first: int = 0, last: int | None = None) -> t.Iterator[Piece]:
    """The part of what was read that is no hole, in pieces that libvirt takes."""
    begin = max(0, first - offset)
    end = len(data) if last is None else min(len(data), last - offset)
    for at in range(begin, end, _SEND):
        yield offset + at, data[at : min(at + _SEND, end)]


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


_End = tuple[int, int, t.Optional[str]]


def send(
    connection: t.Any,
    volume: t.Any,
    path: str,
    begin: int,
    pace: Pace,
    note: t.Callable[[Sent], None],
    sums: bool = True,
) -> None:
    """Send a file into a new, sparse volume of the same size, from a segment on.

    Holes are sent as holes, and each makes the other end as long as it is there: so segments go in order.

    Args:
        connection: the other host's.
        volume: there.
        path: of the file here.
        begin: where to start; what is before it is there.
        pace: of all files together.
        note: called for each segment that is there for sure.
        sums: compute digests.

    Raises:
        libvirt.libvirtError: the other host does not take it.
        TimeoutError: it takes too long.
        PhyllomeError: the file changes.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        coming: queue.Queue[Piece | _End | BaseException | None] = queue.Queue(maxsize=64)
        gone = threading.Event()
        reader = threading.Thread(target=_read, args=(file.fileno(), begin, size, coming, gone, sums), daemon=True)
        reader.start()
        try:
            _write(connection, volume, size, coming, pace, note)
        finally:
            gone.set()
            with contextlib.suppress(queue.Empty):
                while reader.is_alive() or not coming.empty():
                    coming.get(timeout=0.1)
            reader.join()


def _read(
    descriptor: int, begin: int, size: int, coming: queue.Queue[t.Any], gone: threading.Event, sums: bool
) -> None:
    """Read and sum ahead of what is sent."""
    try:
        for start in range(begin, size, SEGMENT):
            end = min(size, start + SEGMENT)
            summed = Sum() if sums else _NoSum()
            for piece in pieces(descriptor, start, end, summed):
                if gone.is_set():
                    return
                coming.put(piece)
            coming.put((start, end, summed.digest()))
        coming.put(None)
    except BaseException as exc:  # whatever it is, the sender must not wait for ever
        coming.put(exc)


class _NoSum(Sum):
    def add(self, offset: int, block: bytes) -> bool:
        return block != _ZEROS[: len(block)]


def _write(
    connection: t.Any, volume: t.Any, size: int, coming: queue.Queue[t.Any], pace: Pace, note: t.Callable[[Sent], None]
) -> None:
    sparse = virt.libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM
    stream: t.Any = None
    at = counted = 0
    try:
        while True:
            got = coming.get()
            if isinstance(got, BaseException):
                raise got
            if got is None:
                return
            if len(got) == 2:
                offset, data = got
                if stream is None:
                    at, counted = offset // SEGMENT * SEGMENT, 0
                    stream = connection.newStream()
                    volume.upload(stream, at, min(size, at + SEGMENT) - at, sparse)
                if offset > at:
                    stream.sendHole(offset - at)
                sent = 0
                while sent < len(data):
                    sent += stream.send(data[sent:] if sent else data)
                at, counted = offset + len(data), counted + len(data)
                pace.tell(len(data))
                continue
            start, end, digest = got
            if stream is None and end == size:  # the file ends with a hole: only this makes it long enough
                at, counted, stream = start, 0, connection.newStream()
                volume.upload(stream, start, end - start, sparse)
            if stream is not None:
                if at < end:
                    stream.sendHole(end - at)
                ended, stream = stream, None
                ended.finish()
                note(Sent(start, digest, counted))
            else:
                note(Sent(start, digest, 0))
    finally:
        if stream is not None:
            with contextlib.suppress(virt.libvirt.libvirtError):
                stream.abort()


def read_back(connection: t.Any, volume: t.Any, size: int) -> t.Iterator[tuple[int, str | None]]:
    """The digests of a volume's segments, from what the other host reads of its own disk.

    Raises:
        libvirt.libvirtError: it cannot be read.
    """
    for start in range(0, size, SEGMENT):
        whole = _download(connection, volume, start, min(SEGMENT, size - start))
        summed = Sum()
        for inner in range(0, len(whole or ()), BLOCK):
            summed.add(start + inner, bytes((whole or b"")[inner : inner + BLOCK]))
        yield start, summed.digest()


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
