# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that both hosts have: they are proved to be the same, and no step of a move touches them."""

from __future__ import annotations

import os

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import read_shared
from ansible_collections.phyllome.virt.tests.unit._migration.test_cold import Play, one_after_another, running

DATA = b"data" * 40000


class Shared(Play):
    """The guest has a second disk, on storage that both hosts have."""

    def __init__(self, folder, monkeypatch):
        super().__init__(folder, monkeypatch)
        monkeypatch.setattr(read_shared, "_PATIENCE", 0)
        self.data = self.world.shared / "data.raw"
        self.data.write_bytes(DATA)
        disk = xml.parse(
            f"<disk type='file'><driver type='raw'/><source file='{self.data}'/><target dev='vdb'/><alias name='ua-data'/></disk>"
        )
        self.domain.root.find("devices").append(disk)

    def kept(self):
        """It is as and where it was, and nothing is beside it."""
        return self.data.read_bytes() == DATA and os.listdir(self.world.shared) == ["data.raw"]


@pytest.fixture
def plays(tmp_path):
    yield from one_after_another(tmp_path, Shared)


@pytest.mark.parametrize(
    ("storage", "disks", "then"),
    [({"data": "shared"}, "purge", "migrated"), ({"vdb": "shared", "vda": "copy"}, "retain", "rolled_back")],
)
def test_a_move_that_died_before_any_of_its_steps_never_touches_a_shared_disk(plays, storage, disks, then):
    asked = {"storage": storage, "source_disks": disks, "mode": "cold"}
    step, ended = 0, None
    while ended is None:
        play = plays()
        play.domain.running = True
        ended = play.run(step, **asked)
        assert len(running(play)) <= 1 and play.data.read_bytes() == DATA, f"step {step}"
        if then == "rolled_back" and ended is None:
            try:
                play.run(state="rolled_back")
                play.restored(True)
            except PhyllomeError as exc:
                assert "Finish it with state: migrated" in str(exc) or "is not taken back while it is" in str(exc)
        again = play.run(**asked)
        assert again is not None and again["classification"] == 2, f"step {step}"
        play.arrived(True)
        assert play.kept(), f"step {step}"
        step += 1
    assert step > 20
    assert play.run(**asked)["changed"] is False


def test_what_the_second_run_says_does_not_count_once_the_guest_is_given_up(plays):
    """The mark that travels knows what is shared, also when the journal of the source is lost."""
    step, found = 0, False
    while not found:
        play = plays()
        done = play.run(step, storage={"data": "shared"})
        assert done is None, "no step was found at which the source had given the guest up"
        found = any('"committed"' in path.read_text() for path in play.journal.glob("*.json"))
        step += 1
    play.run()
    assert play.where() == ["beta"] and play.kept()


def test_a_move_with_nothing_but_shared_disks_leaves_nothing_and_is_not_taken_back(plays):
    play = plays()
    play.seed.unlink()
    play.domain.root.find("devices").remove(play.domain.root.find("devices/disk"))
    plan = play.look(storage="shared")
    assert [change["path"] for change in plan["plan"]] == ["host", "disks.vdb", "beta.autostart", "alpha.definition"]
    assert any("proved when the guest moves" in said for said in plan["warnings"])
    moved = play.run(storage="shared")
    assert moved["classification"] == 2 and not moved["leftovers"] and play.kept()
    with pytest.raises(PhyllomeError, match="alpha has no retained copy"):
        play.run(state="rolled_back")


def test_a_finished_move_is_taken_back_with_the_shared_disk_as_it_is(plays):
    play = plays()
    play.run(storage={"data": "shared"})
    assert play.run(state="rolled_back")["phase"] == "rolled_back"
    play.restored(False)
    assert play.kept()


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        (lambda there: None, "is not there"),
        (lambda there: there.write_bytes(b"other"), "begins with something else there"),
        (
            lambda there: there.write_bytes(DATA),
            "is on another storage there: what this host writes beside it does not appear",
        ),
    ],
)
def test_storage_that_is_not_the_same_is_found_out(plays, breaks, why):
    play = plays()
    play.world.mounted.clear()
    there = play.world.beta / str(play.data)[1:]
    there.parent.mkdir()
    breaks(there)
    with pytest.raises(PhyllomeError, match=f"disk vdb is not the same on beta: {play.data} {why}") as caught:
        play.run(storage={"data": "shared"})
    assert caught.value.facts["blockers"][0]["code"] == "not_shared"
    assert "say storage: copy for it" in caught.value.remedy
    play.restored(False)
    assert play.kept()


def test_a_link_may_lead_elsewhere(plays):
    play = plays()
    real = play.data.rename(play.data.with_name("real.raw"))
    play.data.symlink_to(real)
    with pytest.raises(PhyllomeError, match="is a symbolic link, which may lead elsewhere there"):
        play.run(storage={"data": "shared"})


def test_a_folder_that_cannot_be_written_to_proves_nothing(plays, monkeypatch):
    play = plays()

    def refused(path, *more):
        if ".phyllome-proof-" in str(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, *more)

    opened = os.open
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PhyllomeError, match="cannot be proved to be the same there: .*Permission denied"):
        play.run(storage={"data": "shared"})


def test_a_disk_that_the_guest_has_not_is_named(plays):
    play = plays()
    with pytest.raises(PhyllomeError, match="it has no disk logs, which storage names"):
        play.run(storage={"logs": "shared"})


def test_a_shared_disk_that_is_copied_is_in_the_way_and_the_way_out_is_named(plays):
    play = plays()
    with pytest.raises(PhyllomeError, match="has a file .*data.raw already") as caught:
        play.run()
    assert "say storage: shared" in caught.value.remedy
    assert play.kept()
