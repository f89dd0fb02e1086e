# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mark that travels with the guest, and the record that stays."""

from __future__ import annotations

import dataclasses
import os
import stat
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import journal

UUID = "11111111-1111-4111-8111-111111111111"

marks = st.builds(
    journal.Mark,
    op_id=st.uuids().map(str),
    source=st.from_regex(r"\A[a-z][a-z0-9.<&\"' -]{0,20}\Z"),
    destination=st.from_regex(r"\A[a-z][a-z0-9.-]{0,20}\Z"),
    epoch=st.integers(0, 10**6),
    phase=st.sampled_from(["moving", "copying", "arriving", "done"]),
    power=st.sampled_from(["running", "paused", "off"]),
    autostart=st.booleans(),
    fenced=st.booleans(),
    files=st.dictionaries(st.from_regex(r"\A/[a-z<'\" .]{1,20}\Z"), st.just("/staged")),
)


@given(marks)
def test_a_mark_is_read_as_it_was_written(mark):
    assert journal.parse_mark(mark.dump()) == mark


def test_no_mark():
    assert journal.parse_mark(None) is None


@pytest.mark.parametrize(
    "text",
    [
        "<migration/>",
        '<migration op_id="a" source="b" destination="c" epoch="x" phase="done" power="off" autostart="no"/>',
        '<migration op_id="a" source="b" destination="c" epoch="1" phase="new" power="off" autostart="no"/>',
    ],
)
def test_a_mark_that_is_not_understood_is_an_error(text):
    with pytest.raises(PhyllomeError, match="mark cannot be read"):
        journal.parse_mark(text)


def test_op_id_depends_on_guest_destination_and_epoch_alone():
    first = journal.op_id(UUID, "beta", 0)
    assert first == journal.op_id(UUID, "beta", 0)
    assert str(uuid.UUID(first)) == first
    others = {
        journal.op_id(UUID, "beta", 1),
        journal.op_id(UUID, "gamma", 0),
        journal.op_id(UUID[::-1], "beta", 0),
    }
    assert len(others | {first}) == 4


def record(**values):
    given = {
        "op_id": "op",
        "uuid": UUID,
        "name": "web",
        "source": "alpha",
        "destination": "beta",
        "pieces": {"disks.vda": "/images/web.qcow2"},
        "allocated": {"vda": 4096},
    }
    return journal.Record(**{**given, **values})


def test_a_record_is_read_as_it_was_written_and_only_by_root(tmp_path):
    there = journal.Journal(str(tmp_path / "migrations"))
    assert there.load("op") is None
    there.save(record())
    assert there.load("op") == record()
    there.save(record(phase="committed"), sync=False)
    assert there.load("op") == record(phase="committed")
    path = tmp_path / "migrations" / "op.json"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
    there.note("op", {"path": "/a", "start": 0})
    there.note("op", {"path": "/a", "start": 64})
    with open(tmp_path / "migrations" / "op.notes", "a", encoding="utf-8") as stream:
        stream.write('{"path": "/a", "st')
    assert [note["start"] for note in there.notes("op")] == [0, 64]
    assert there.notes("other") == []
    there.remove("op")
    there.remove("op")
    assert there.load("op") is None
    assert not list(path.parent.iterdir())


def test_records_of_a_guest(tmp_path):
    there = journal.Journal(str(tmp_path))
    assert journal.Journal(str(tmp_path / "none")).of_guest(UUID) == []
    there.save(record())
    there.save(dataclasses.replace(record(), op_id="op2"))
    there.save(dataclasses.replace(record(), op_id="op3", uuid="other"))
    assert [one.op_id for one in there.of_guest(UUID)] == ["op", "op2"]


@pytest.mark.parametrize("text", ["", "{}", '{"pieces": 1, "what": 2}'])
def test_a_broken_record_is_an_error_and_not_an_absent_one(tmp_path, text):
    (tmp_path / "op.json").write_text(text)
    with pytest.raises(PhyllomeError, match="cannot be read"):
        journal.Journal(str(tmp_path)).load("op")


def test_a_record_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PhyllomeError, match="cannot be written"):
        journal.Journal(str(tmp_path / "file" / "below")).save(record())


def test_only_one_run_moves_a_guest(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LOCKS", str(tmp_path / "run"))
    there = journal.Journal(str(tmp_path))
    with there.alone(UUID):
        with there.alone("other"):
            pass
        with pytest.raises(PhyllomeError, match="Another run is moving"), there.alone(UUID):
            pass
    with there.alone(UUID):
        pass
