# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What taking a move back, committing it and cleaning up after it would do, and when each is refused."""

from __future__ import annotations

import dataclasses

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import judge, undo
from ansible_collections.phyllome.virt.plugins.module_utils._migration.journal import Mark, Record
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read import Sight, View

UUID = "11111111-1111-4111-8111-111111111111"
OP = "0f1f6c0b-50a2-5a63-9f6f-8c3ad0f34f40"
PATH = "/images/web.qcow2"
KEPT = f"{PATH}.phyllome-retained-{OP}"
DONE = Record(
    OP, UUID, "web", "alpha", "beta", "done", {"disks.vda": PATH}, {PATH: KEPT}, definition="<domain/>"
)  # fmt: skip


def plan(state, source, destination, mark, record=None, committed=False, records=()):
    row = judge.classify(source, destination, "none", mark, committed)
    assert row is not None
    here = Sight("alpha", source, source, None if source == "absent" else "web", UUID, source != "absent")
    there = Sight("beta", destination, destination, "web", UUID, True)
    return undo.plan(state, View(here, there, OP, 0, mark, record), row, records or ([record] if record else []))


def shown(changes):
    return [(change.action, change.path, change.before, change.after) for change in changes]


@pytest.mark.parametrize("source", ["running", "off"])
def test_a_guest_that_was_not_moved_is_left_as_it_is(source):
    assert not plan("rolled_back", source, "absent", "none")


@pytest.mark.parametrize(
    ("source", "destination", "mark", "committed"),
    [
        ("running", "absent", "moving", False),
        ("running", "paused", "moving", False),
        ("off", "absent", "copying", False),
        ("running", "absent", "copying", False),
        ("off", "off", "arriving", False),
        ("off", "off", "arriving", True),
        ("switching", "absent", "moving", False),
    ],
)
def test_a_move_that_is_not_finished_is_taken_back(source, destination, mark, committed):
    changes = plan("rolled_back", source, destination, mark, committed=committed)
    assert shown(changes) == [("roll_back", "alpha.move", OP, None)]


def test_a_move_that_is_finished_is_taken_back_from_the_retained_copy():
    changes = plan("rolled_back", "absent", "off", "done", DONE)
    assert shown(changes) == [("move", "host", "beta", "alpha"), ("put_back", "alpha.disks.vda", KEPT, PATH)]


@pytest.mark.parametrize(
    ("destination", "record", "committed", "what"),
    [
        ("running", DONE, False, "is not taken back while it is running on beta"),
        ("off", None, False, "alpha has no retained copy"),
        ("off", dataclasses.replace(DONE, phase="handed"), True, "it is not finished"),
    ],
)
def test_what_would_lose_something_is_refused(destination, record, committed, what):
    with pytest.raises(PhyllomeError, match=what):
        plan("rolled_back", "absent", destination, "done", record, committed)


def test_a_guest_that_was_started_there_already_is_not_taken_back():
    with pytest.raises(PhyllomeError, match="cannot be taken back"):
        plan("rolled_back", "off", "running", "arriving")


def test_committing_deletes_the_retained_copy_of_this_move_alone():
    older = dataclasses.replace(DONE, op_id="older", retained={PATH: f"{PATH}.phyllome-retained-older"})
    changes = plan("committed", "absent", "running", "done", DONE, records=[older, DONE])
    assert shown(changes) == [("purge", "alpha.retained", KEPT, None)]
    assert not plan("committed", "absent", "running", "done")


def test_a_move_that_is_not_finished_is_not_committed():
    with pytest.raises(PhyllomeError, match="not finished: a cold move was interrupted"):
        plan("committed", "off", "absent", "copying")


def test_cleaning_forgets_all_moves():
    left = dataclasses.replace(DONE, op_id="left", phase="started", retained={})
    changes = plan("cleaned", "off", "absent", "none", records=[left, DONE])
    assert shown(changes) == [("purge", "alpha.retained", KEPT, None), ("forget", "alpha.journal", "left", None)]


@pytest.mark.parametrize(("source", "mark"), [("off", "copying"), ("running", "moving")])
def test_nothing_of_a_move_under_way_is_cleaned(source, mark):
    with pytest.raises(PhyllomeError, match="one is not finished"):
        plan("cleaned", source, "absent", mark)


def test_a_mark_that_is_taken_back_keeps_count_of_the_moves_before():
    mark = Mark(OP, "alpha", "beta", 0, "copying", "running", True, fenced=True, files={"/a": "/b"})
    assert mark.undone() is None
    undone = dataclasses.replace(mark, epoch=3).undone()
    assert undone == Mark(OP, "beta", "alpha", 3, "done", "running", True)
