# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the other end after any interruption: never more than what is there."""

from __future__ import annotations

import json

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._migration import policy, stream
from ansible_collections.phyllome.virt.plugins.module_utils._migration.manifest import Manifest

MIB = 1024**2
STAMP = [4 * MIB, 17]


def chunk(number, data=b"x"):
    return stream.Chunk(number * MIB, len(data), data, stream.entry_of(data), True)


@pytest.fixture
def notes():
    return []


@pytest.fixture
def manifest(notes):
    def note(said, sync):
        notes.append(json.loads(json.dumps({**said, "synced": sync})))

    made = Manifest("/a", note)
    made.anew()
    made.done(0, 2 * MIB, ["1111aa", ""], STAMP, 70)
    made.done(2 * MIB, 3 * MIB + 5, ["0001bb", "0001cc"], STAMP, 30)
    return made


def again(notes):
    return Manifest("/a", lambda said, sync: None, notes)


def test_what_was_confirmed_is_known_again(manifest, notes):
    found = again([{"boot": "x"}, *notes, {"path": "/b", "anew": True}])
    assert (found.entries, found.end, found.sent) == (["1111aa", "", "0001bb", "0001cc"], 3 * MIB + 5, 100)
    assert found.same(0, 3 * MIB + 5, STAMP) and not found.same(0, 3 * MIB, [4 * MIB, 18])
    assert not found.same(0, MIB, None)
    assert again([*notes, {"path": "/a", "anew": True}]).entries == []


def test_what_was_being_overwritten_is_sent_again(manifest, notes):
    one = chunk(1)
    assert manifest.changed([one]) == [one] and manifest.was(one) == 0
    manifest.open([one, chunk(0)])
    assert notes[-1]["synced"] is True
    found = again(notes)
    assert found.entries[:2] == ["1111?", "0001?"] and not found.same(0, MIB, STAMP)
    assert found.changed([one]) == [one] and found.was(one) == 1
    assert found.was(chunk(0)) == 0x1111  # what may be there is overwritten, also by zeros
    manifest.done(0, 2 * MIB, [chunk(0).entry, one.entry], STAMP, 1)
    assert again(notes).changed([one]) == []


def test_a_file_that_grew_is_sent_from_its_last_whole_chunk_on(manifest, notes):
    assert manifest.grow(3 * MIB + 5) == 3 * MIB + 5
    assert manifest.grow(4 * MIB) == 3 * MIB == manifest.end
    assert notes[-1] == {"path": "/a", "cut": 3 * MIB, "synced": True}
    assert again(notes).entries == ["1111aa", "", "0001bb"]
    assert manifest.grow(5 * MIB) == 3 * MIB


def test_a_note_after_one_that_was_lost_says_nothing(manifest, notes):
    assert again([notes[0], notes[2]]).entries == []


def test_without_digests_only_an_untouched_file_is_known(manifest):
    manifest.done(0, MIB, ["0001-"], STAMP, 1)
    assert manifest.summed
    manifest.anew()
    manifest.done(0, MIB, ["0001-"], STAMP, 1)
    assert not manifest.summed
    assert manifest.unsummed([4 * MIB, 18]) and not manifest.unsummed(STAMP)


@pytest.mark.parametrize(
    ("sent", "enough"),
    [
        ([], False),
        ([policy.SMALL + 1], False),
        ([policy.SMALL], True),
        ([1000 * MIB, 500 * MIB], False),
        ([1000 * MIB, 500 * MIB, 400 * MIB], True),
        ([2**60 // 2**number for number in range(10)], True),
        ([2**60 // 2**number for number in range(9)], False),
    ],
)
def test_rounds_end_when_little_is_left_or_they_do_not_help(sent, enough):
    assert policy.enough(sent) is enough
