# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the destination has of a file, chunk by chunk, as the notes of its move say.

A note is written when the destination has confirmed what it tells of. Before something that was noted is overwritten,
another note says so, on disk: what it names is sent again if nothing comes after it.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from . import stream

Stamp = t.Optional[t.Sequence[int]]
"""Size and time of change of a file that nobody wrote to while it was read; None where somebody may have."""

_UNKNOWN = "?"


class Manifest:
    """The chunks of one file.

    Attributes:
        entries: of the chunks from the file's beginning on, see ``stream.entry_of``.
        end: the byte up to which they go.
        sent: bytes of the file that went over the network, in all runs and rounds.

    Args:
        path: of the file at the source.
        note: writes a note; with True as a second argument it is on disk afterwards.
        notes: those that there are, of all files.
    """

    def __init__(
        self, path: str, note: t.Callable[[dict[str, t.Any], bool], None], notes: t.Iterable[t.Mapping[str, t.Any]] = ()
    ) -> None:
        self.entries: list[str] = []
        self.end = self.sent = 0
        self._path, self._note = path, note
        self._stamps: list[Stamp] = []
        for said in notes:
            if said.get("path") == path:
                self._play(said)

    def _play(self, said: t.Mapping[str, t.Any]) -> None:
        if said.get("anew"):
            self.entries, self._stamps, self.end = [], [], 0
            return
        if "cut" in said:
            self.end = said["cut"]
            del self.entries[self.end // stream.CHUNK :], self._stamps[self.end // stream.CHUNK :]
        for number, mask in said.get("open", {}).items():
            if int(number) < len(self.entries):
                self.entries[int(number)], self._stamps[int(number)] = f"{mask:04x}{_UNKNOWN}", None
        first, found = said.get("start", 0) // stream.CHUNK, said.get("entries", ())
        if found and first <= len(self.entries):  # else what is before it was lost
            self.entries[first : first + len(found)] = found
            self._stamps[first : first + len(found)] = [said["stamp"]] * len(found)
            self.end = max(self.end, said["end"])
        self.sent += said.get("sent", 0)

    def anew(self) -> None:
        """The destination has nothing of the file."""
        self._say({"anew": True})

    def grow(self, size: int) -> int:
        """The byte from which on the destination has nothing, now that the file has that size."""
        if self.end < size and self.end % stream.CHUNK:
            self._say({"cut": self.end - self.end % stream.CHUNK}, True)
        return self.end

    def same(self, start: int, end: int, stamp: Stamp) -> bool:
        """Whether that part was sent from a file that was at rest, and is the same still."""
        return stamp is not None and all(one == stamp for one in self._stamps[_span(start, end)])

    @property
    def summed(self) -> bool:
        """Whether there are chunks with a digest: then what is here has to be summed to tell what changed."""
        return any(entry and not entry.endswith(("-", _UNKNOWN)) for entry in self.entries)

    def unsummed(self, stamp: Stamp) -> bool:
        """Whether there are chunks without a digest which are not known to be the same still."""
        return any(entry.endswith("-") and known != stamp for entry, known in zip(self.entries, self._stamps))

    def changed(self, found: t.Sequence[stream.Chunk]) -> list[stream.Chunk]:
        """Those of which the destination has something else."""
        return [one for one in found if self.entries[one.start // stream.CHUNK] != one.entry]

    def was(self, one: stream.Chunk) -> int:
        """Which blocks of a chunk are not empty at the destination."""
        return stream.mask_of(self.entries[one.start // stream.CHUNK])

    def open(self, found: t.Sequence[stream.Chunk]) -> None:
        """These are about to be overwritten."""
        masks = {str(one.start // stream.CHUNK): self.was(one) | stream.mask_of(one.entry) for one in found}
        self._say({"open": masks}, True)

    def done(self, start: int, end: int, entries: t.Sequence[str], stamp: Stamp, sent: int) -> None:
        """The destination has that part, for which so many bytes were sent."""
        self._say({"start": start, "end": end, "entries": list(entries), "stamp": stamp, "sent": sent})

    def _say(self, said: dict[str, t.Any], sync: bool = False) -> None:
        said = {"path": self._path, **said}
        self._note(said, sync)
        self._play(said)


def _span(start: int, end: int) -> slice:
    return slice(start // stream.CHUNK, -(-end // stream.CHUNK))
