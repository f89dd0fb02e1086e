# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that several guests stand on: nobody loses them, and nobody is sent what is there already."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import storage
from ansible_collections.phyllome.virt.plugins.module_utils._migration import read_guest
from ansible_collections.phyllome.virt.tests.unit._migration.test_cold import SIZE, Play, one_after_another
from ansible_collections.phyllome.virt.tests.unit._migration.world import UUID


class Standing(Play):
    """The guest's disk is an overlay of an image, which is nobody's."""

    def __init__(self, folder: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, monkeypatch)
        self.golden = self.world.images / "golden.raw"
        self.disk.replace(self.golden)
        over(self.golden, self.disk)
        self.digest = self.summed(self.disk)
        self.domain.root.find("devices/disk/driver").set("type", "qcow2")
        self.there = self.world.hosts["beta"].path(str(self.golden))
        """The image at the destination."""

    def at(self, host: str) -> list[str]:
        return [name for name in super().at(host) if name != "golden.raw"]


def over(below: pathlib.Path, top: pathlib.Path, form: str = "raw") -> None:
    """Make an overlay."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", form, top, str(SIZE)], check=True
    )


@pytest.fixture
def plays(tmp_path):
    yield from one_after_another(tmp_path, Standing)


@pytest.fixture
def play(plays):
    return plays()


@pytest.mark.parametrize("disks", ["retain", "purge"])
def test_the_image_stays_and_goes(play, disks):
    (image,) = (one for one in play.look(source_disks=disks)["plan"] if one["path"] == "disks.vda.1")
    assert image["why"].endswith("below vda, and stays here")
    moved = play.run(source_disks=disks)
    assert not [name for name in moved["leftovers"] if "golden" in name]
    play.arrived(False)
    assert play.golden.exists() and play.summed(play.there) == play.summed(play.golden)


def test_it_is_used_where_the_destination_has_it(play):
    play.there.write_bytes(play.golden.read_bytes())
    was = play.there.stat().st_ino
    moved = play.run()
    assert [one["path"] for one in moved["disks"]] == [str(play.disk)]
    play.arrived(False)
    assert play.run(state="rolled_back")["changed"] and play.there.stat().st_ino == was
    assert play.run()["changed"]
    play.arrived(False)
    assert play.there.stat().st_ino == was


@pytest.mark.parametrize("same", [True, False])
def test_the_move_of_another_guest_brings_it_at_the_same_time(play, same):
    def meanwhile() -> None:
        if play.world.hosts["beta"].domains and not play.there.exists():
            play.there.write_bytes(play.golden.read_bytes() if same else b"another")

    play.world.meanwhile = meanwhile
    if same:
        play.run()
        play.arrived(False)
    else:
        with pytest.raises(PhyllomeError, match=r"beta has another .*golden.raw"):
            play.run()
        play.restored(False)
    assert play.there.read_bytes() == (play.golden.read_bytes() if same else b"another")


@pytest.mark.parametrize("longer", [b"", b"x"])
@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_another_one_of_that_name_refuses_before_the_guest_is_shut_down(play, longer, mode):
    play.domain.running = True
    play.there.write_bytes(bytes(SIZE) + longer)
    with pytest.raises(PhyllomeError, match=r"beta has another .*golden.raw") as error:
        play.run(mode=mode)
    assert "Say chain: flatten" in str(error.value.remedy) and error.value.facts["phase"] == "rolled_back"
    play.restored(True)
    assert play.there.stat().st_size == SIZE + len(longer)


@pytest.mark.parametrize("found", [False, True], ids=["it went along", "it was there"])
def test_a_move_that_died_before_any_of_its_steps_is_finished(plays, found):
    for step in itertools.count(1):
        play = plays()
        if found:
            play.there.write_bytes(play.golden.read_bytes())
        if play.run(step) is not None:
            assert step > 10
            return
        play.run()
        play.arrived(False)
        assert play.golden.exists() and play.there.exists()


@pytest.mark.parametrize("below", [False, True], ids=["has it as well", "stands on it"])
@pytest.mark.parametrize("mode", ["cold", "live"])
def test_a_disk_that_another_guest_needs_does_not_leave(play, mode, below):
    clone, text = play.world.images / "clone.raw", play.domain.XMLDesc()
    if below:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", play.disk, "-F", "qcow2", clone], check=True)
        text = text.replace("web.raw", "clone.raw")
    play.world.hosts["alpha"].defineXML(text.replace(UUID, UUID[:-1] + "9").replace("<name>web", "<name>clone"))
    play.domain.running = mode == "live"
    for call in (play.look, play.run):
        with pytest.raises(PhyllomeError, match="clone first, with chain: flatten, or remove it") as error:
            call(mode=mode)
        found = [one["what"] for one in error.value.facts["blockers"] if one["code"] == "linked_clones"]
        assert found == [f"the guest clone has {play.disk} as well, as a disk or below one, and would lose it"]
    assert play.disk.exists() and play.at("beta") == []


@pytest.mark.parametrize("clone", ["has it as well", "stands on it", "stands on one that does"])
def test_a_disk_that_another_guest_needs_does_not_leave_by_being_taken_back_either(play, clone):
    play.run()
    beta = play.world.hosts["beta"]
    text = beta.lookupByUUIDString(UUID).XMLDesc().replace(UUID, UUID[:-1] + "9").replace("<name>web", "<name>clone")
    if clone != "has it as well":
        over(beta.path(str(play.disk)), beta.path(str(play.world.images / "clone.raw")), "qcow2")
        text = text.replace("web.raw", "clone.raw")
    if clone == "stands on one that does":
        over(beta.path(str(play.world.images / "clone.raw")), beta.path(str(play.world.images / "third.raw")), "qcow2")
        text = text.replace("clone.raw", "third.raw")
    made = beta.defineXML(text)
    for call in (play.look, play.run):
        with pytest.raises(PhyllomeError) as error:
            call(state="rolled_back")
        assert str(error.value) == (
            f"web cannot be taken back from beta: there the guest clone has {play.disk} as well, or stands on it. "
            "Move clone away first, with chain: flatten, or remove it; or keep web on beta."
        )
        assert error.value.facts["phase"] == "refused"
    made.undefineFlags(0)
    assert play.where() == ["beta"] == play.startable()
    assert play.run(state="rolled_back")["changed"] and play.where() == ["alpha"]


def test_what_a_guest_has_written_into_a_raw_disk_keeps_nobody_from_being_taken_back(play):
    play.run()
    beta = play.world.hosts["beta"]
    over(beta.path(str(play.disk)), beta.path(str(play.world.images / "other.raw")), "qcow2")
    text = beta.lookupByUUIDString(UUID).XMLDesc().replace(UUID, UUID[:-1] + "9").replace("<name>web", "<name>other")
    beta.defineXML(
        text.replace("web.raw", "other.raw").replace('type="qcow2"', 'type="raw"').replace("type='qcow2'", "type='raw'")
    )
    assert play.run(state="rolled_back")["changed"]


def test_clones_of_a_base_cost_no_process_each(play, monkeypatch):
    """QEMU says what is below a base that is an overlay itself, once; a base that is none is in the header."""
    asked: list[str] = []
    chain = storage.chain

    def counting(path: str, form: str | None) -> tuple[str, ...]:
        asked.append(path)
        return chain(path, form)

    monkeypatch.setattr(storage, "chain", counting)
    middle = play.world.images / "middle.qcow2"
    over(play.golden, middle)
    for number in range(6):
        disk = play.world.images / f"clone{number}.qcow2"
        below, form = (("middle.qcow2", "qcow2"), ("golden.raw", "raw"))[number % 2]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", form, disk], check=True)
        text = play.domain.XMLDesc().replace("web", f"clone{number}").replace(".raw", ".qcow2")
        play.world.hosts["alpha"].defineXML(text.replace(UUID, UUID[:-1] + "abcdef"[number]))
    needed = read_guest.needed_by_others(play.world.hosts["alpha"], UUID)
    assert len(asked) == 1
    images = {str(play.golden), str(middle), *(str(play.world.images / f"clone{number}.qcow2") for number in range(6))}
    assert images <= set(needed)
