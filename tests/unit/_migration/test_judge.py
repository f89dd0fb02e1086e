# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every combination of what two hosts can say: few are known, and none may lose the guest."""

from __future__ import annotations

import itertools

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._migration import judge

EVERYTHING = list(itertools.product(judge.SOURCES, judge.DESTINATIONS, judge.JOBS, judge.MARKS, (False, True)))


def matches(row, source, destination, job, mark, committed):
    return (
        source in row.source
        and (not row.destination or destination in row.destination)
        and (not row.job or job in row.job)
        and (not row.mark or mark in row.mark)
        and row.committed in (None, committed)
    )


def test_rows_exclude_each_other_and_classify_finds_them():
    for state in EVERYTHING:
        rows = [row for row in judge.TABLE if matches(row, *state)]
        assert len(rows) <= 1, (state, rows)
        assert judge.classify(*state) is (rows[0] if rows else None)


def test_rows_name_only_states_that_exist():
    for row in judge.TABLE:
        assert row.source, row
        assert row.source <= set(judge.SOURCES)
        assert row.destination <= set(judge.DESTINATIONS)
        assert row.job <= set(judge.JOBS)
        assert row.mark <= set(judge.MARKS)
        assert any(matches(row, *state) for state in EVERYTHING), row


@pytest.mark.parametrize(
    ("source", "destination", "job", "mark", "committed", "number", "action"),
    [
        ("running", "absent", "none", "none", False, 1, "start"),
        ("paused", "absent", "none", "none", False, 1, "start"),
        ("off", "absent", "none", "none", False, 1, "start"),
        ("running", "absent", "none", "moving", False, 1, "start"),
        ("absent", "running", "none", "none", False, 2, "none"),
        ("absent", "off", "none", "done", False, 2, "none"),
        ("absent", "paused", "none", "none", False, 2, "none"),
        ("running", "incoming", "outgoing", "moving", False, 3, "wait"),
        ("running", "absent", "outgoing", "moving", False, 3, "wait"),
        ("switching", "paused", "outgoing", "moving", False, 3, "wait"),
        ("running", "incoming", "none", "moving", False, 3, "wait"),
        ("crashed", "incoming", "none", "moving", False, 3, "wait"),
        ("running", "paused", "none", "moving", False, 4, "discard"),
        ("paused", "paused", "none", "moving", False, 4, "discard"),
        ("running", "off", "none", "moving", False, 4, "discard"),
        ("running", "running", "none", "moving", False, 5, "refuse"),
        ("running", "running", "none", "none", False, 5, "refuse"),
        ("running", "paused", "none", "moving", True, 5, "refuse"),
        ("migrated", "paused", "none", "moving", False, 6, "finish"),
        ("absent", "paused", "none", "moving", False, 6, "finish"),
        ("gone", "paused", "none", "moving", False, 6, "finish"),
        ("off", "paused", "none", "moving", True, 6, "finish"),
        ("migrated", "running", "none", "moving", True, 7, "finish"),
        ("off", "running", "none", "done", False, 7, "finish"),
        ("crashed", "running", "none", "moving", True, 7, "finish"),
        ("absent", "running", "none", "done", True, 7, "finish"),
        ("switching", "running", "none", "moving", False, 8, "destroy_source"),
        ("switching", "absent", "none", "moving", False, 9, "resume_source"),
        ("switching", "paused", "none", "moving", False, 9, "resume_source"),
        ("postcopy", "postcopy", "outgoing", "none", False, 10, "refuse"),
        ("postcopy", "incoming", "outgoing", "moving", False, 10, "wait"),
        ("postcopy", "postcopy", "outgoing", "moving", True, 10, "wait"),
        ("postcopy", "running", "none", "moving", True, 10, "wait"),
        ("migrated", "postcopy", "none", "moving", True, 10, "wait"),
        ("postcopy", "off", "none", "moving", True, 10, "refuse"),
        ("broken", "broken", "outgoing", "moving", True, 10, "recover"),
        ("postcopy", "broken", "outgoing", "moving", False, 10, "recover"),
        ("broken", "running", "none", "moving", True, 10, "recover"),
        ("broken", "broken", "outgoing", "other", True, 10, "refuse"),
        ("broken", "off", "outgoing", "moving", True, 10, "refuse"),
        ("migrated", "broken", "none", "moving", True, 10, "wait"),
        ("unreachable", "broken", "none", "moving", False, 10, "refuse"),
        ("crashed", "broken", "none", "moving", True, 10, "refuse"),
        ("off", "off", "none", "moving", True, 7, "finish"),
        ("crashed", "absent", "none", "moving", False, 11, "start"),
        ("unreachable", "paused", "none", "moving", False, 12, "finish"),
        ("unreachable", "running", "none", "done", False, 12, "none"),
        ("off", "absent", "none", "copying", False, 14, "start"),
        ("crashed", "absent", "none", "copying", False, 14, "start"),
        ("running", "absent", "none", "copying", False, 14, "start"),
        ("off", "off", "none", "arriving", False, 15, "hand_over"),
        ("off", "off", "none", "arriving", True, 15, "finish"),
        ("absent", "off", "none", "arriving", True, 15, "finish"),
        ("off", "running", "none", "arriving", False, 15, "finish"),
        ("running", "off", "none", "arriving", False, 4, "discard"),
        ("running", "off", "none", "arriving", True, 5, "refuse"),
        ("running", "paused", "none", "arriving", False, 5, "refuse"),
        ("unreachable", "off", "none", "arriving", False, 12, "finish"),
        ("absent", "off", "none", "returning", False, 16, "take_back"),
        ("off", "off", "none", "returning", False, 16, "take_back"),
        ("running", "off", "none", "none", False, 13, "refuse"),
        ("off", "off", "none", "other", False, 13, "refuse"),
    ],
)
def test_known_states(source, destination, job, mark, committed, number, action):
    row = judge.classify(source, destination, job, mark, committed)
    assert row is not None
    assert (row.number, row.action) == (number, action)


@pytest.mark.parametrize(
    "state",
    [
        ("migrated", "absent", "none", "moving", False),  # it left, and nobody has it
        ("off", "paused", "none", "moving", False),  # either may be the newer one
        ("off", "off", "none", "moving", False),
        ("off", "running", "none", "none", False),  # a copy that was made by hand
        ("absent", "absent", "none", "none", False),
        ("absent", "incoming", "none", "other", False),  # it comes from a third host
        ("running", "absent", "none", "other", False),  # it is on the way to a third host
        ("running", "absent", "none", "none", True),  # it was given up, and started again
        ("switching", "absent", "none", "none", False),  # somebody else's migration
        ("unreachable", "paused", "none", "none", False),
        ("off", "absent", "none", "copying", True),  # the copy that the record tells of is gone
        ("absent", "off", "none", "arriving", False),  # the source went away without giving it up
        ("absent", "absent", "none", "copying", False),
        ("absent", "running", "none", "returning", False),
    ],
)
def test_unknown_states_are_left_alone(state):
    assert judge.classify(*state) is None


def actions():
    for state in EVERYTHING:
        row = judge.classify(*state)
        if row is not None:
            yield state, row.action


def test_the_destination_is_discarded_only_while_the_source_lives_and_never_gave_up():
    for (source, destination, _job, mark, committed), action in actions():
        if action == "discard":
            assert source in {"running", "paused", "stuck"}
            assert destination != "running"
            assert mark in {"moving", "arriving"}
            assert not committed


def test_the_destination_gets_the_guest_only_when_the_source_cannot_run():
    for (source, _destination, _job, mark, _committed), action in actions():
        if action == "finish":
            assert source in {"absent", "off", "migrated", "crashed", "gone", "unreachable"}
            assert mark in {"moving", "arriving", "done"}


def test_a_source_that_is_off_is_given_up_only_with_proof():
    """The destination runs, or it was marked as done, or libvirt or the record says that it left."""
    for (source, destination, _job, mark, committed), action in actions():
        if action == "finish" and source in {"off", "crashed"}:
            ran = destination == "running" or (mark == "arriving" and destination != "off")
            assert ran or mark == "done" or committed
        if action == "hand_over":
            assert (destination, mark, committed) == ("off", "arriving", False) and source in {"off", "crashed"}


def test_the_source_is_stopped_only_when_the_destination_runs_our_move():
    for (source, destination, _job, mark, _committed), action in actions():
        if action == "destroy_source":
            assert (source, destination, mark) == ("switching", "running", "moving")


def test_nothing_starts_while_the_destination_has_anything():
    for (source, destination, job, mark, committed), action in actions():
        if action == "start":
            assert destination == "absent"
            assert source in {"running", "paused", "stuck", "off", "crashed"}
            assert job != "outgoing"
            assert mark != "other"
            assert not committed


def test_whichever_of_two_guests_is_said_to_be_the_truth_there_is_a_way_on():
    """What is seen once the other one is off, and before that, when it is only marked or suspended."""
    seen = 0
    for source, destination, job, mark, committed in EVERYTHING:
        row = judge.classify(source, destination, job, mark, committed)
        if len(judge.words(row, source, destination, mark, job)) < 2:
            continue
        seen += 1
        row = judge.classify("off", destination, "none", "done" if mark == "returning" else mark, committed)
        assert row is not None and row.action == "finish", (destination, mark, committed)
        row = judge.classify(source, "off", "none", "returning", False)
        assert row is not None and row.action == "take_back"
        for half in {destination, "paused"} - {"off"}:
            row = judge.classify(source, half, "none", "returning", committed)
            assert len(judge.words(row, source, half, "returning", "none")) == 2, (source, half)
    assert seen > 20


def test_while_each_host_has_a_part_of_its_memory_a_guest_is_neither_started_nor_stopped():
    for (source, destination, _job, mark, _committed), action in actions():
        if {source, destination} & {"postcopy", "broken"}:
            assert action in {"wait", "refuse", "recover"}, (source, destination)
        if action == "recover":
            assert "broken" in {source, destination} and source in {"broken", "postcopy"} and mark == "moving"


def test_one_copy_is_said_to_be_the_guest_only_where_the_other_one_cannot_be():
    seen: set[str] = set()
    for source, destination, job, mark, committed in EVERYTHING:
        row = judge.classify(source, destination, job, mark, committed)
        words = judge.words(row, source, destination, mark, job)
        if len(words) != 1:
            continue
        assert mark == "moving"
        seen |= words
        if words == {"source"}:  # the destination has none, and only the record stands against going on
            assert destination == "absent" and committed
            row = judge.classify(source, destination, job, mark, False)
            assert row is not None and row.action == "start"
        else:
            assert source not in {"running", "paused", "stuck"} and destination != "absent"
            assert not {"broken", "postcopy"} >= {source, destination}  # that can be recovered
            dead = source if source == "unreachable" else "off"
            row = judge.classify(dead, "running", "none", mark, dead == "off")
            assert row is not None and row.action == "finish"
    assert seen == {"source", "destination"}
