# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files of a guest on their way: each is brought up to date at the destination, however often, and proved.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError
from . import files, stream
from .apply import Mover
from .journal import Record
from .manifest import Manifest, Stamp
from .plan import grown
from .read import NVRAM, TPM_STATES
from .read_guest import Guest
from .transfer import too_slow


@dataclasses.dataclass(frozen=True)
class Item:
    """A file that is carried over.

    Attributes:
        name: in a plan, for instance ``disks.vda`` or ``disks.vda.1`` for what is below it.
        path: the same on both hosts.
        staged: where it lies at the destination until the guest is there.
        size: bytes, holes included.
        changed: when it last was, in nanoseconds.
        allocated: bytes that it takes.
        local: what is read here; another file than at the path where the disk was flattened.
    """

    name: str
    path: str
    staged: str
    size: int
    changed: int
    allocated: int
    local: str

    @property
    def stamp(self) -> list[int]:
        """What tells that it is still the same."""
        return [self.size, self.changed]

    @property
    def identity(self) -> bool:
        """Whether it is the guest's UEFI variables or TPM."""
        return self.name in ("nvram", "tpm")


def items_of(
    guest: Guest, op: str, staged: t.Mapping[str, str], flat: t.Mapping[str, str] | None = None
) -> t.Iterator[Item]:
    """The files of a guest, bases before their overlays; only what is there.

    Args:
        guest: that is moved.
        op: the name of the move.
        staged: where some of them lie at the destination already.
        flat: the files that were made of disks and what is below them.
    """
    made = flat or {}
    named = []
    for disk in guest.disks:
        layers = () if disk.path in made else disk.backing
        below = [(f"disks.{disk.target}.{number}", layer.path) for number, layer in enumerate(layers, 1)]
        named += [*reversed(below), (f"disks.{disk.target}", disk.path)]
    seen = set()
    for name, path in named:
        if path not in seen:  # disks may stand on the same base
            seen.add(path)
            yield _item(name, path, staged.get(path) or files.staged(path, op), made.get(path, path))
    if guest.nvram and os.path.exists(guest.nvram):
        yield _item("nvram", guest.nvram, files.staged(guest.nvram, op))
    for state in TPM_STATES if guest.tpm else ():
        path = os.path.join(guest.tpm or "", state)
        if os.path.exists(path):
            yield _item("tpm", path, files.staged(path, op, NVRAM))
    for path in files.below(guest.snapshots) if guest.snapshots else ():
        name = os.path.relpath(path, guest.snapshots)
        yield _item(f"snapshots.{name}", path, files.staged(name.replace("/", "-"), op, NVRAM))


def _item(name: str, path: str, staged: str, local: str = "") -> Item:
    status = os.stat(local or path)
    return Item(name, path, staged, status.st_size, status.st_mtime_ns, status.st_blocks * 512, local or path)


class Copier:
    """Brings files to the destination.

    Args:
        mover: the steps that all moves have.
        record: of the move.
        rests: nobody writes to the files any more. Otherwise what is sent of them may be torn, and is sent again.
        boot: of the destination: what came before another one may be lost.
    """

    def __init__(self, mover: Mover, record: Record, rests: bool, boot: str) -> None:
        self.mover, self.pair, self.order, self.record, self.rests = mover, mover.pair, mover.order, record, rests
        self.pace = stream.Pace(self.order.bandwidth_mib * 1024**2, self.order.timeout)
        self._notes: list[dict[str, t.Any]] = []
        known = None
        for said in self.pair.journal.notes(record.op_id):
            if said.get("boot", known) != known:
                self._notes, known = [], said["boot"]
            self._notes.append(said)
        if known != boot:
            self._notes = []
            self._note({"boot": boot}, False)

    def bring(self, items: t.Sequence[Item]) -> tuple[dict[str, str | None], dict[str, int]]:
        """Bring files up to date.

        Returns:
            The digest of each file, and how many bytes of it went, by path.

        Raises:
            PhyllomeError: it takes too long, a file cannot be read, changed, or did not arrive.
            libvirt.libvirtError: the destination does not take it.
        """
        digests: dict[str, str | None] = {}
        sent: dict[str, int] = {}
        for item in items:
            try:
                digests[item.path], sent[item.path] = self._bring(item)
            except TimeoutError:
                raise too_slow(self.record.name, self.order.timeout, "the copying was stopped") from None
            except OSError as exc:
                raise PhyllomeError(f"Cannot read {item.path}", str(exc), "Repair it and run again.") from exc
        return digests, sent

    def _bring(self, item: Item) -> tuple[str | None, int]:
        connection, op = self.pair.destination.connection, self.record.op_id
        manifest = Manifest(item.path, self._note, self._notes)
        stamp: Stamp = item.stamp if self.rests else None
        sums = self.order.verify != "none" or item.identity or not self.rests or manifest.summed
        folder, name = os.path.split(item.staged)
        with files.pool_at(connection, folder, op) as pool:
            if pool is None:
                raise PhyllomeError(
                    f"{self.pair.destination.name} has no folder {folder}", "the guest's files belong there", "Make it."
                )
            volume = virt.found(lambda: pool.storageVolLookupByName(name))
            if volume is not None and (
                not manifest.entries
                or manifest.unsummed(stamp)
                or manifest.end > item.size
                or _length(volume) > item.size
            ):
                volume.delete()
                volume = None
            fresh = volume is None
            if fresh:
                manifest.anew()
                volume = files.reserve(pool, name, item.size)
                self.mover.compare_clocks(volume)
            self._send(item, connection, volume, manifest, stamp, sums)
            if not self.rests:
                return None, manifest.sent
            if not fresh and volume.info()[2] > grown(item.allocated):  # what was there became empty here
                manifest.anew()
                volume.delete()
                volume = files.reserve(pool, name, item.size)
                self._send(item, connection, volume, manifest, stamp, sums)
            status = os.stat(item.local)
            if [status.st_size, status.st_mtime_ns] != item.stamp:
                raise PhyllomeError(
                    f"{item.path} changed while it was copied",
                    "somebody writes to it although the guest is off",
                    "Find out who does, then run again.",
                )
            self._prove(item, connection, volume, manifest.entries)
        return stream.root(item.size, manifest.entries) if sums else None, manifest.sent

    def _send(self, item: Item, connection: t.Any, volume: t.Any, manifest: Manifest, stamp: Stamp, sums: bool) -> None:
        """Send what the destination does not have."""
        with open(item.local, "rb") as file:
            if self.rests:
                os.fsync(file.fileno())  # what is retained has to be what was noted, whatever happens to this host
            known = manifest.grow(item.size)
            for start in range(0, known, stream.SEGMENT):
                end = min(start + stream.SEGMENT, known)
                if not manifest.same(start, end, stamp):
                    with contextlib.closing(stream.chunks(file.fileno(), start, end, sums)) as coming:
                        found = list(coming)
                    self._patch(connection, volume, manifest, found, stamp)
                    self._tell()
            if 0 < known < item.size:
                stream.cut(connection, volume, known)
            taken, keeps = volume.info()[2], False
            with contextlib.closing(stream.chunks(file.fileno(), known, item.size, sums)) as coming:
                for start in range(known, item.size, stream.SEGMENT):
                    end = min(start + stream.SEGMENT, item.size)
                    entries: list[str] = []
                    part = _part(coming, end, entries)
                    if keeps:
                        sent = stream.fill(connection, volume, part, end, self.pace)
                    else:
                        sent = stream.append(connection, volume, part, start, end, end == item.size, self.pace)
                    taken += sent
                    if sent and not keeps:
                        stream.cut(connection, volume, end)
                        keeps = volume.info()[2] > grown(taken)
                        if keeps:  # again, so that nothing is kept in its holes
                            stream.cut(connection, volume, max(1, start))
                            entries = []
                            with contextlib.closing(stream.chunks(file.fileno(), start, end, sums)) as again:
                                sent += stream.fill(connection, volume, _part(again, end, entries), end, self.pace)
                    manifest.done(start, end, entries, stamp, sent)
                    self._tell()

    def _patch(
        self, connection: t.Any, volume: t.Any, manifest: Manifest, found: t.Sequence[stream.Chunk], stamp: Stamp
    ) -> None:
        """Send what changed in a part that the destination has."""
        changed = manifest.changed(found)
        if not changed and not self.rests:
            return
        pieces = [piece for one in changed for piece in one.pieces(manifest.was(one))]
        if changed:
            manifest.open(changed)
        sent = stream.patch(connection, volume, pieces, self.pace)
        last = found[-1]
        manifest.done(found[0].start, last.start + last.size, [one.entry for one in found], stamp, sent)

    def _note(self, said: dict[str, t.Any], sync: bool) -> None:
        self.pair.journal.note(self.record.op_id, said, sync)

    def _tell(self) -> None:
        self.mover.progress.say("copying disks", **self.pace.figures(sum(self.record.allocated.values())))

    def _prove(self, item: Item, connection: t.Any, volume: t.Any, entries: t.Sequence[str]) -> None:
        """Compare what the destination has with what was read here.

        Raises:
            PhyllomeError: it differs.
        """
        there = self.pair.destination.name
        length, allocated = _length(volume), volume.info()[2]
        if length != item.size:
            raise PhyllomeError(
                f"The copy of {item.path} on {there} is not whole", f"{length} bytes of {item.size}", "Run again."
            )
        if allocated > grown(item.allocated):
            raise PhyllomeError(
                f"The copy of {item.path} on {there} is not sparse",
                f"it takes {allocated} bytes, {item.allocated} here",
                "The file system there has to know holes.",
            )
        if self.order.verify != "full" and not item.identity:
            return
        for number, (one, other) in enumerate(zip(entries, stream.read_back(connection, volume, item.size))):
            if one != other:
                raise PhyllomeError(
                    f"The copy of {item.path} on {there} differs",
                    f"in the {stream.CHUNK >> 10} KiB from byte {number * stream.CHUNK}",
                    "Look at the disks and the memory of both hosts.",
                )


def same(item: Item, connection: t.Any, volume: t.Any) -> bool:
    """Whether a file at the destination holds what the one here does, by the digests of their chunks.

    Raises:
        libvirt.libvirtError: it cannot be read there.
    """
    if _length(volume) != item.size:
        return False
    with open(item.local, "rb") as file, contextlib.closing(stream.chunks(file.fileno(), 0, item.size)) as coming:
        return all(one.entry == other for one, other in zip(coming, stream.read_back(connection, volume, item.size)))


def _length(volume: t.Any) -> int:
    """Bytes of a file at the destination, holes included."""
    return int(volume.infoFlags(virt.libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2])


def _part(coming: t.Iterator[stream.Chunk], end: int, entries: list[str]) -> t.Iterator[stream.Chunk]:
    """The chunks up to a byte; their entries are added."""
    for chunk in coming:
        entries.append(chunk.entry)
        yield chunk
        if chunk.start + chunk.size >= end:
            return
