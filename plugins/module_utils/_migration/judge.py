# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the state of both hosts means: the table that every decision of a move comes from.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

Source = t.Literal[
    "absent",
    "running",
    "paused",  # by somebody's wish
    "stuck",  # paused by an error, or asleep
    "switching",  # paused by a migration
    "postcopy",  # its memory is being fetched by the destination
    "broken",  # and that was cut off
    "off",
    "migrated",  # off, and libvirt says that it went away by migration
    "crashed",
    "gone",  # its process is dead, and libvirt is still tidying up
    "unreachable",  # and somebody said that it is dead; otherwise silence is an error
]
Destination = t.Literal["absent", "running", "paused", "incoming", "off", "stuck", "postcopy", "broken"]
Job = t.Literal["none", "outgoing", "other"]
Marked = t.Literal["none", "moving", "copying", "arriving", "done", "returning", "other"]
"""Whose move the guest's mark tells of: nobody's, this one (moving; of a cold one copying, and arriving once the
destination has all of it; done; returning while it is taken back), or another unfinished one.
It is the mark at the destination, or at the source while the destination has no guest."""
Action = t.Literal[
    "none",
    "start",
    "wait",
    "discard",
    "hand_over",
    "finish",
    "destroy_source",
    "resume_source",
    "take_back",
    "recover",
    "decide",
    "refuse",
]

SOURCES: tuple[str, ...] = t.get_args(Source)
DESTINATIONS: tuple[str, ...] = t.get_args(Destination)
JOBS: tuple[str, ...] = t.get_args(Job)
MARKS: tuple[str, ...] = t.get_args(Marked)

ALIVE = frozenset({"running", "paused", "stuck"})
_OFF = frozenset({"off", "migrated", "crashed"})
_ANY: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Row:
    """One meaning of the state of both hosts.

    An empty set means any value. The numbers are those of the failure matrix in the
    documentation; several rows may share one.

    Attributes:
        number: what the module returns as ``classification``.
        source: states of the guest at the source.
        destination: states of the guest at the destination.
        job: jobs at the source.
        mark: whose mark it bears.
        committed: whether the record says that the source has given the guest up; None for any.
        meaning: for people.
        action: what brings it forward.
    """

    number: int
    source: frozenset[str]
    destination: frozenset[str]
    job: frozenset[str]
    mark: frozenset[str]
    committed: bool | None
    meaning: str
    action: Action


def _row(
    number: int,
    source: t.AbstractSet[str],
    destination: t.AbstractSet[str],
    mark: t.AbstractSet[str],
    meaning: str,
    action: Action,
    job: t.AbstractSet[str] = frozenset({"none"}),
    committed: bool | None = False,
) -> Row:
    return Row(
        number,
        frozenset(source),
        frozenset(destination),
        frozenset(job),
        frozenset(mark),
        committed,
        meaning,
        action,
    )


_HERE = {"running", "paused", "off", "stuck"}
_IN_FLIGHT = {"running", "paused", "stuck", "switching"}
BROKEN = "a post-copy migration was cut off; each host has a part of the guest's memory"
LOST = "the guest crashed in the middle of a post-copy migration: one host has lost its part of the guest's memory"

# fmt: off
TABLE: tuple[Row, ...] = (
    _row(1, {"running", "paused", "stuck", "off"}, {"absent"}, {"none", "moving"}, "not started, or rolled back", "start",
         job={"none", "other"}),
    _row(2, {"absent"}, _HERE, {"none", "done"}, "the guest is at the destination", "none"),
    _row(3, _IN_FLIGHT, {"absent", "incoming"}, _ANY, "a migration is on its way", "wait", job={"outgoing"}),
    _row(3, _IN_FLIGHT, {"paused"}, {"moving"}, "a migration is about to end", "wait", job={"outgoing"}),
    _row(3, {"switching"}, {"running"}, _ANY, "a migration is about to end", "wait", job={"outgoing"}, committed=None),
    _row(3, _IN_FLIGHT | _OFF, {"incoming"}, _ANY, "a migration that failed is being undone by libvirt", "wait",
         job={"none", "other"}, committed=None),
    _row(4, ALIVE, {"paused", "off", "stuck"}, {"moving"},
         "the guest never left the source; its copy at the destination never ran", "discard", job={"none", "other"}),
    _row(5, ALIVE, {"running"}, _ANY, "the guest runs twice", "refuse", job=_ANY, committed=None),
    _row(5, ALIVE, {"paused", "off", "stuck"}, {"moving"},
         "the source gave the guest up and was started again", "refuse", job=_ANY, committed=True),
    _row(6, {"absent", "migrated", "gone"}, {"paused"}, {"moving"},
         "the guest has left the source and was not resumed at the destination", "finish", committed=None),
    _row(6, {"off", "crashed"}, {"paused"}, {"moving"},
         "the guest has left the source and was not resumed at the destination", "finish", committed=True),
    _row(7, {"absent"} | _OFF, {"running"}, {"moving"},
         "the guest runs at the destination and was not cleaned up at the source", "finish", committed=None),
    _row(7, {"absent", "migrated"}, {"off", "stuck"}, {"moving"},
         "the guest is at the destination and was not cleaned up at the source", "finish", committed=None),
    _row(7, {"off", "crashed"}, {"off", "stuck"}, {"moving"},
         "the guest is at the destination and was not cleaned up at the source", "finish", committed=True),
    _row(7, _OFF, _HERE, {"done"},
         "the guest is at the destination and was not cleaned up at the source", "finish", committed=None),
    _row(7, {"absent"}, _HERE, {"done"},
         "the guest is at the destination and its files at the source were not put away", "finish", committed=True),
    _row(8, {"switching"}, {"running"}, {"moving"},
         "the guest runs at the destination; the source was not told", "destroy_source", committed=None),
    _row(9, {"switching"}, {"absent", "paused"}, {"moving"},
         "the migration was cut off at its very end; the source is the truth", "resume_source"),
    _row(10, {"postcopy"}, {"postcopy", "running", "incoming"}, {"moving"},
         "the guest runs at the destination, which fetches its memory", "wait", job=_ANY, committed=None),
    _row(10, {"migrated", "gone", "switching", "absent"}, {"postcopy", "broken"}, {"moving"},
         "the guest runs at the destination, which has fetched its memory", "wait", job=_ANY, committed=None),
    _row(10, {"postcopy"}, _ANY, frozenset(MARKS) - {"moving"}, "a post-copy migration, which is not ours", "refuse",
         job=_ANY, committed=None),
    _row(10, {"broken"}, {"postcopy", "broken", "running", "incoming"}, {"moving"}, BROKEN, "recover", job=_ANY,
         committed=None),
    _row(10, {"postcopy"}, {"broken"}, {"moving"}, BROKEN, "recover", job=_ANY, committed=None),
    _row(10, {"postcopy", "broken"}, {"absent", "paused", "off", "stuck"}, {"moving"}, LOST, "refuse", job=_ANY,
         committed=None),
    _row(10, {"off", "crashed", "unreachable"}, {"postcopy", "broken"}, {"moving"}, LOST, "refuse", job=_ANY,
         committed=None),
    _row(10, {"broken"}, _ANY, frozenset(MARKS) - {"moving"}, BROKEN, "refuse", job=_ANY, committed=None),
    _row(10, {"off", "crashed", "migrated", "gone", "switching", "absent"}, {"broken"}, frozenset(MARKS) - {"moving"},
         BROKEN, "refuse", job=_ANY, committed=None),
    _row(10, {"off", "crashed"}, {"postcopy"}, frozenset(MARKS) - {"moving"}, BROKEN, "refuse", job=_ANY,
         committed=None),
    _row(10, ALIVE, {"postcopy", "broken"}, _ANY, BROKEN, "refuse", job=_ANY, committed=None),
    _row(10, {"migrated", "gone", "switching", "absent"}, {"postcopy"}, frozenset(MARKS) - {"moving"},
         "a post-copy migration, which is not ours", "refuse", job=_ANY, committed=None),
    _row(11, {"crashed"}, {"absent"}, {"none", "moving"}, "the guest crashed at the source; nothing moved", "start"),
    _row(12, {"unreachable"}, _HERE, {"moving"}, "the source is dead; the guest is at the destination", "finish"),
    _row(12, {"unreachable"}, _HERE, {"done"}, "the source is dead; the guest is at the destination", "none"),
    _row(12, {"unreachable"}, _HERE, {"arriving"}, "the source is dead; the destination has all of the guest", "finish"),
    _row(14, {"off", "crashed"}, {"absent"}, {"copying"}, "a cold move was interrupted before all was copied", "start"),
    _row(14, ALIVE, {"absent"}, {"copying"}, "a cold move has begun and the guest is not off yet", "start",
         job={"none", "other"}),
    _row(15, {"off", "crashed"}, {"off"}, {"arriving"},
         "the destination has all of the guest, and was not given it yet", "hand_over"),
    _row(15, {"absent"} | _OFF, {"off"}, {"arriving"},
         "the guest was given to the destination, and this was not finished", "finish", committed=True),
    _row(15, {"absent"} | _OFF, {"running", "paused", "stuck"}, {"arriving"},
         "the guest was started at the destination before the move was finished", "finish", committed=None),
    _row(4, ALIVE, {"off"}, {"arriving"},
         "the guest was started at the source; its copy at the destination never ran", "discard", job={"none", "other"}),
    _row(5, ALIVE, {"paused", "stuck"}, {"arriving", "returning"}, "the guest was started on both hosts", "refuse",
         job=_ANY, committed=None),
    _row(5, ALIVE, {"off"}, {"arriving"}, "the source gave the guest up and was started again", "refuse", job=_ANY,
         committed=True),
    _row(16, {"absent"} | _OFF | ALIVE, {"off"}, {"returning"}, "the move is being taken back", "take_back",
         job={"none", "other"}),
    _row(13, ALIVE | _OFF, {"paused", "off", "stuck"}, {"none", "other"},
         "the destination has a guest with this uuid that this move did not bring", "refuse", job=_ANY, committed=None),
    _row(13, ALIVE, {"paused", "off", "stuck"}, {"done"},
         "the destination has a guest with this uuid that this move did not bring", "refuse", job=_ANY, committed=None),
)
# fmt: on
"""The table. A combination that no row covers is unknown: nothing is touched."""

CLASH = Row(13, _ANY, _ANY, _ANY, _ANY, None, "the name or the uuid belongs to another guest", "refuse")

ALONE = Row(
    1, _ANY, _ANY, _ANY, _ANY, None, "the source gave the guest up, and the destination has none any more", "refuse"
)

GONE = Row(
    2, _ANY, _ANY, _ANY, _ANY, None, "the guest has finished its moves, and neither host has it any more", "none"
)

_TWO = frozenset({"moving", "arriving", "done", "returning"})
_EITHER = frozenset({"source", "destination"})


def words(row: Row | None, source: str, destination: str, mark: str, job: str) -> frozenset[str]:
    """Which copy a person may say is the guest. Pure.

    Either one where both hosts have a copy of this move that may have run; the destination's where the memory is lost
    on one of them, since its disks are the newer ones; and the source's where the guest was given up, and the
    destination has none any more.
    """
    if row is CLASH:
        return _ANY
    if row is not None and row.number in (5, 13):
        return _EITHER if source in ALIVE and mark in _TWO and job == "none" else _ANY
    if row is not None and row.number == 10 and mark == "moving" and source not in ALIVE:
        parts = {"postcopy", "broken"}
        known = row.meaning == LOST or (source in parts and destination == "running")
        known = known or (destination == "broken" and source not in parts)
        return frozenset({"destination"}) if known and destination != "absent" else _ANY
    alone = row is None and destination == "absent" and mark == "moving" and job == "none"
    return frozenset({"source"}) if alone and source in ALIVE | {"off", "crashed"} else _ANY


def classify(source: str, destination: str, job: str, mark: str, committed: bool) -> Row | None:
    """The row that the state of both hosts belongs to, or None for one that is not known.

    Pure. That the rows exclude each other is what the tests prove.
    """
    for row in TABLE:
        if (
            source in row.source
            and (not row.destination or destination in row.destination)
            and (not row.job or job in row.job)
            and (not row.mark or mark in row.mark)
            and row.committed in (None, committed)
        ):
            return row
    return None
