# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An overlay that becomes one file at the destination: all that its guest sees arrives, whatever dies on the way."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import storage
from ansible_collections.phyllome.virt.plugins.module_utils._migration import flatten, read_guest
from ansible_collections.phyllome.virt.plugins.module_utils._migration.definition import set_mark
from ansible_collections.phyllome.virt.plugins.module_utils._migration.journal import Journal, Mark, Record, op_id
from ansible_collections.phyllome.virt.tests.unit._migration.test_cold import Play, one_after_another, running
from ansible_collections.phyllome.virt.tests.unit._migration.world import UUID

TOP = b"QFI\xfb\0\0\0\3\0\0\0\0\0\0\2\0 what was written since"


class Chained(Play):
    """The guest's disk is an overlay, and what qemu-img would do is played: a flat file is the base with the overlay's name for it."""

    def __init__(self, folder: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, monkeypatch)
        self.base = self.world.images / "base.qcow2"
        self.disk.rename(self.base)
        self.disk.write_bytes(TOP)
        self.flat = self.base.read_bytes() + TOP
        self.differs = False
        self.layers: list[dict[str, t.Any]] = [{"filename": str(self.disk)}, {"filename": str(self.base)}]
        disk = self.domain.root.find("devices/disk")
        disk.find("driver").set("type", "qcow2")
        xml.child(xml.child(disk, "backingStore", type_="file"), "source", file=str(self.base))
        marker = self.domain.root.find("metadata")[0]
        xml.child(marker, f"{{{xml.GUEST_NS}}}volume", None, id="below", path=str(self.base), made="yes")
        self.domain.snapshots = []
        monkeypatch.setattr(
            read_guest,
            "run",
            lambda argv, **dummy: json.dumps({"required": len(self.flat)} if "measure" in argv else self.layers),
        )
        monkeypatch.setattr(flatten, "run", self.qemu_img)

    def qemu_img(self, argv: list[str], timeout: float, remedy: str) -> str:
        self.world.step()
        top, made = argv[-2:]
        assert top == str(self.disk) and timeout > 0
        if argv[1] == "convert":
            assert os.stat(made).st_mode & 0o777 == 0o600
            with open(made, "wb") as file:  # a process of its own, which dies with the run
                file.write(self.flat[:1000])
                file.flush()
                self.world.step()
                file.write(self.flat[1000:])
        elif self.differs or pathlib.Path(made).read_bytes() != self.flat:
            raise PhyllomeError("qemu-img failed", "Content mismatch at offset 0", remedy)
        return ""

    def run(self, last: int | None = None, check: bool = False, **more: t.Any) -> dict[str, t.Any] | None:
        return super().run(last, check, **{"mode": "cold", "chain": "flatten", **more})

    def at(self, host: str) -> list[str]:
        return [name for name in super().at(host) if name != "base.qcow2" or host == "beta"]


@pytest.fixture
def plays(tmp_path):
    yield from one_after_another(tmp_path, Chained)


@pytest.fixture
def play(plays):
    return plays()


def arrived(play: Chained, runs: bool) -> None:
    (domain,) = play.world.hosts["beta"].domains.values()
    assert play.where() == ["beta"] == play.startable()
    assert play.world.hosts["beta"].path(str(play.disk)).read_bytes() == play.flat
    assert "backingStore" not in domain.XMLDesc() and (domain.running, domain.starts) == (runs, 1)
    assert (play.at("alpha"), play.at("beta")) == ([], ["web.raw"])


def restored(play: Chained, runs: bool) -> None:
    (domain,) = play.world.hosts["alpha"].domains.values()
    assert play.where() == ["alpha"] == play.startable()
    assert play.disk.read_bytes() == TOP and play.base.read_bytes() + TOP == play.flat
    assert "backingStore" in domain.XMLDesc() and (domain.running, domain.starts) == (runs, 1)
    assert (play.at("alpha"), play.at("beta")) == ([play.seed.name, "web.raw"], [])


@pytest.mark.parametrize("then", ["migrated", "rolled_back"])
def test_it_died_before_any_of_its_steps_and_is_finished_or_taken_back(plays, then):
    step, ended = 0, None
    while ended is None:
        play = plays()
        play.domain.running = bool(step % 2)
        ended = play.run(step)
        assert len(running(play)) <= 1 and (running(play) or len(play.startable()) <= 1), f"step {step}"
        back = then == "rolled_back" and ended is None
        if back:
            try:
                play.run(state="rolled_back")
                restored(play, bool(step % 2))
            except PhyllomeError as exc:
                assert "Finish it with state: migrated" in str(exc) or "is not taken back while it is" in str(exc)
        again = play.run()
        assert again is not None and again["classification"] == 2, f"step {step}"
        arrived(play, bool(step % 2))
        assert play.base.exists() is False
        step += 1
    assert step > 25
    assert play.run()["changed"] is False


def test_what_arrived_is_told_and_check_mode_has_said_it(play):
    plan = play.look()["plan"]
    (copy,) = [change for change in plan if str(change["to"]).startswith("beta:")]
    assert "with the 1 file(s) below it in one" in copy["why"]
    assert play.disk.read_bytes() == TOP and len(os.listdir(play.world.images)) == 3
    result = play.run(verify="full")
    (disk,) = result["disks"]
    assert (disk["path"], disk["verified"]) == (str(play.disk), "full") and disk["bytes_sent"] <= len(play.flat)
    assert len(result["leftovers"]) == 3
    arrived(play, False)
    play.run(state="rolled_back")
    restored(play, False)


def test_a_base_that_others_need_stays(play, monkeypatch):
    monkeypatch.setattr(read_guest, "needed_by_others", lambda *dummy: {str(play.base)})
    play.run()
    arrived(play, False)
    assert play.base.exists()


def test_it_is_made_anew_when_the_guest_was_started_in_between(plays):
    step = 0
    while True:
        play = plays()
        assert play.run(step) is None
        if any(name.endswith(".flat") for name in os.listdir(play.world.images)):
            break
        step += 1
    play.base.write_bytes(b"changed" + play.base.read_bytes()[7:])
    os.utime(play.base, ns=(1, 1))
    play.flat = play.base.read_bytes() + TOP
    play.run()
    arrived(play, False)


def test_a_flat_file_that_is_not_the_same_goes_nowhere(play):
    play.differs = True
    with pytest.raises(PhyllomeError, match="web.raw is not what it was made of: Content mismatch.* say chain: keep"):
        play.run()
    restored(play, False)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("inside", r"has snapshots inside \(first\), which flattening would lose.* say chain: keep"),
        ("known", r"it has 1 snapshot\(s\), which flattening would lose"),
        ("checkpoints", r"it has 1 checkpoint\(s\), which flattening would lose"),
        ("layer", "base.qcow2 is encrypted, and what is flattened would not be"),
        ("disk", "disk vda is encrypted, and what is flattened would not be"),
        ("space", "has less than 0 MiB of space left for flat copies.* Make room there"),
        ("warm", "chain: flatten was asked for, and a warm move copies files as they are.* mode: live or mode: cold"),
    ],
)
def test_what_cannot_be_flattened_is_refused_and_nothing_is_touched(play, monkeypatch, change, what):
    play.layers[0]["snapshots"] = [{"name": "first"}] if change == "inside" else []
    play.layers[1]["encrypted"] = change == "layer"
    play.domain.snapshots = ["first"] if change == "known" else []
    play.domain.running = change == "warm"
    if change == "checkpoints":
        monkeypatch.setattr(type(play.domain), "listAllCheckpoints", lambda self, flags=0: [None])
    if change == "disk":
        xml.child(play.domain.root.find("devices/disk"), "encryption", format="luks")
    if change == "space":
        monkeypatch.setattr(storage, "free", lambda folder: 0)
    for check in (True, False):
        with pytest.raises(PhyllomeError, match=what) as error:
            play.run(check=check, mode="warm" if change == "warm" else "cold")
        assert error.value.facts["phase"] in ("blocked", "rolled_back")
    play.domain.running = False
    assert play.where() == ["alpha"] == play.startable() and play.at("beta") == []
    assert sorted(os.listdir(play.world.images)) == ["base.qcow2", play.seed.name, "web.raw"]


def test_a_guest_that_runs_may_go_flattened_by_libvirt_itself(play):
    play.domain.running = True
    xml.drop(play.domain.root.find("devices/disk"), "backingStore")  # which libvirt finds out by itself
    with pytest.raises(PhyllomeError, match=r"has a backing file.* Or say chain: flatten"):
        play.run(check=True, mode="live", chain="keep")
    play.domain.snapshots = ["first"]
    with pytest.raises(PhyllomeError, match=r"it has 1 snapshot\(s\)") as error:
        play.run(mode="live")
    assert error.value.facts["phase"] == "blocked" and play.domain.running and play.at("beta") == []
    play.domain.snapshots = []
    plan = play.run(check=True, mode="live")["plan"]
    assert ["with the 1 file(s) below it in one" in str(change.get("why")) for change in plan].count(True) == 1
    assert {change["path"] for change in plan} > {"alpha.disks.vda", "alpha.disks.vda.1"}


def test_what_is_below_at_the_destination_is_not_this_move_s_to_sweep(play):
    mark = Mark(op_id(UUID, "beta", 0), "alpha", "beta", 0, "moving", "running", True, fenced=True)
    set_mark(play.domain.root, mark)
    play.domain.running = True
    pieces = {"disks.vda": str(play.disk), "disks.vda.1": str(play.base)}
    Journal(str(play.journal)).save(Record(mark.op_id, UUID, "web", "alpha", "beta", pieces=pieces))
    beta = play.world.hosts["beta"]
    for path in pieces.values():
        beta.path(path).write_bytes(b"")
    play.run(state="rolled_back")
    assert play.at("beta") == ["base.qcow2"]
