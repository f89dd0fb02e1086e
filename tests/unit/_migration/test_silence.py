# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The destination does not answer: what that means is for the source to say, and nothing is touched."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import read
from ansible_collections.phyllome.virt.plugins.module_utils._migration.definition import set_mark
from ansible_collections.phyllome.virt.plugins.module_utils._migration.journal import Journal, Mark, Record, op_id
from ansible_collections.phyllome.virt.tests.unit._migration.test_cold import Play
from ansible_collections.phyllome.virt.tests.unit._migration.world import UUID

MARK = Mark(op_id(UUID, "beta", 0), "alpha", "beta", 0, "moving", "running", True, fenced=True)


@pytest.fixture
def play(tmp_path, monkeypatch):
    made = Play(tmp_path, monkeypatch)
    knock = PhyllomeError("The libvirt of beta cannot be reached", "no route", "Run again when it is.")

    def refuse(uri: str) -> None:
        if "beta" in uri:
            raise knock

    monkeypatch.setattr(read, "_knock", refuse)
    return made


def said(play, state, phase, **more):
    """What a run says, which has touched nothing."""
    codes = [getattr(play.world.lib, f"VIR_DOMAIN_{one}") for one in state]
    play.domain.state = lambda: codes
    if phase:
        set_mark(play.domain.root, MARK)
        Journal(str(play.journal)).save(Record(MARK.op_id, UUID, "web", "alpha", "beta", phase))
    with pytest.raises(PhyllomeError) as error:
        play.run(**more)
    assert play.world.steps == 0 and play.where() == ["alpha"]
    return str(error.value)


@pytest.mark.parametrize("reason", ["PAUSED_POSTCOPY", "PAUSED_POSTCOPY_FAILED"])
def test_in_the_middle_of_a_post_copy_move(play, reason):
    text = said(play, ("PAUSED", reason), "committed")
    assert text.startswith(
        "The libvirt of beta cannot be reached, in the middle of a post-copy migration of web: no route; it is paused"
    )
    assert "the part of its memory that is still here" in text and "whether beta still has it is not known" in text
    assert "neither start it nor stop it here or there" in text and "back and run again" in text
    assert "it goes on where it was cut off, or it is said what is left of it" in text


def test_after_the_source_gave_it_up(play):
    text = said(play, ("SHUTOFF", "SHUTOFF_MIGRATED"), "committed")
    assert text.startswith("The libvirt of beta cannot be reached, and web is there: no route; alpha has given it up")
    assert "Do not start it on alpha. Run again when it is." in text


@pytest.mark.parametrize("phase", [None, "started"])
def test_while_the_source_still_has_it(play, phase):
    text = said(play, ("RUNNING", "RUNNING_BOOTED"), phase)
    assert text == "The libvirt of beta cannot be reached: no route; web is running on alpha. Run again when it is."


def test_where_the_source_says_nothing_of_it(play):
    assert said(play, ("RUNNING", "RUNNING_BOOTED"), None, name="other") == (
        "The libvirt of beta cannot be reached: no route. Run again when it is."
    )
