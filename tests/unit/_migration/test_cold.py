# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cold moves that die before each of their steps, between two hosts that are played; the fleet does it for real."""

from __future__ import annotations

import hashlib
import os
import random
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt, xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import (
    copying,
    devices,
    files,
    journal,
    move,
    plan,
    policy,
    read,
    read_guest,
    read_offer,
    stream,
)
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read_way import Way
from ansible_collections.phyllome.virt.tests.unit._migration.world import UUID, Domain, Error, Killed, Snapshot, World

KIB = 1024
SIZE = 1000 * KIB


class Play:
    """A guest on alpha, and orders to move it."""

    def __init__(self, folder: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world = World(folder)
        monkeypatch.setattr(virt, "libvirt", world.lib)
        monkeypatch.setattr(virt, "session", world.session)
        monkeypatch.setattr(read, "_knock", lambda uri: None)
        monkeypatch.setattr(read_offer, "way", lambda pair: Way((7002000, 7002000), (9000000, 9000000), "", ""))
        monkeypatch.setattr(journal, "LOCKS", str(folder / "run"))
        monkeypatch.setattr(stream, "SEGMENT", 256 * KIB)
        monkeypatch.setattr(stream, "CHUNK", 128 * KIB)
        monkeypatch.setattr(files, "SNAPSHOTS", str(world.snapshots))
        for module in (copying, read_offer):
            monkeypatch.setattr(module, "NVRAM", str(world.nvram))
        monkeypatch.setattr(files, "boot", lambda connection, op: connection.boot)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        self.journal = folder / "journal"
        monkeypatch.setattr(move, "Journal", lambda: journal.Journal(str(self.journal)))
        for where, name in ((os, "rename"), (os, "unlink")):
            monkeypatch.setattr(where, name, self._stepping(getattr(where, name)))
        self.disk = world.images / "web.raw"
        with self.disk.open("wb") as file:
            file.truncate(SIZE)
            for start in range(0, SIZE, 300 * KIB):
                file.seek(start)
                file.write(os.urandom(70 * KIB))
        self.digest = self.summed(self.disk)
        self.chance, self.writes = random.Random(6), False
        self.seed = world.images / "web-cloud-init-0123456789ab.iso"
        self.seed.write_text("secrets")
        self.domain = world.hosts["alpha"].defineXML(
            f"<domain type='kvm'><name>web</name><uuid>{UUID}</uuid><memory>1024</memory><metadata>"
            f"<p:guest xmlns:p='{xml.GUEST_NS}'><p:volume id='cloud-init' path='{self.seed}' made='yes'/></p:guest>"
            "</metadata><devices>"
            f"<disk type='file'><driver type='raw'/><source file='{self.disk}'/><target dev='vda'/></disk>"
            f"<disk type='file' device='cdrom'><source file='{self.seed}' startupPolicy='optional'/><target dev='sda'/></disk>"
            "</devices></domain>"
        )
        self.domain.starts, self.domain.snapshots = 1, ["first", "second"]

    def write(self) -> None:
        """The guest runs, and writes something, empties something, or makes its file longer."""
        if not self.domain.running or self.world.hosts["alpha"].domains.get(UUID) is not self.domain:
            return
        size = self.disk.stat().st_size
        with self.disk.open("r+b") as file:
            file.seek(self.chance.randrange(0, size - 9000))
            file.write(self.chance.choice([b"w" * 100, os.urandom(9000), bytes(5000)]))
            if self.chance.random() < 0.2 and size < 2 * SIZE:
                file.truncate(size + self.chance.randrange(300 * KIB))

    def _stepping(self, call: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def stepping(*paths: t.Any) -> t.Any:
            self.world.step()
            return call(*paths)

        return stepping

    def summed(self, path: t.Any) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def look(self, **more: t.Any) -> dict[str, t.Any]:
        """What the module would do; no step is taken."""
        found = self.run(0, check=True, **more)
        assert found is not None
        return found

    def run(self, last: int | None = None, check: bool = False, **more: t.Any) -> dict[str, t.Any] | None:
        """Run the module up to a step; None when it died there."""
        self.world.steps, self.world.last = 0, last
        parameters = {
            "name": "web", "uuid": None, "source": "alpha", "destination": "beta", "migrate_address": None,
            "destination_uri": "qemu+tls://beta/system", "uri": "qemu:///system", "state": "migrated", "mode": "auto",
            "convergence": None, "bandwidth_mib": 0, "timeout": 0, "parallel": 0, "storage": "copy", "source_disks": "retain", "source_is_dead": False,
            "verify": "stream", "power_after": "same", "shutdown": {"timeout": 1, "then": "fail"}, "hostdevs": None,
            "allow": None, "chain": "keep", "truth": None, "on_split_brain": "fail",
        }  # fmt: skip
        try:
            return move.move({**parameters, **more}, check)
        except Killed:
            return None
        finally:
            self.world.last = None

    def at(self, host: str) -> list[str]:
        """Files of a host that are no retained copies."""
        folder = self.world.hosts[host].path(str(self.world.images))
        return [name for name in sorted(os.listdir(folder)) if "retained" not in name]

    def where(self) -> list[str]:
        return [name for name, host in self.world.hosts.items() if host.domains]

    def startable(self) -> list[str]:
        return [n for n, host in self.world.hosts.items() if any(one.startable() for one in host.domains.values())]

    def arrived(self, running: bool) -> None:
        """The guest is at beta, whole, and alpha has put everything away."""
        (domain,) = self.world.hosts["beta"].domains.values()
        assert self.where() == ["beta"] == self.startable()
        there = self.summed(self.world.hosts["beta"].path(str(self.disk)))
        if self.writes:  # then it has what it had when it was stopped
            (kept,) = self.world.images.glob("web.raw.phyllome-retained-*")
            self.digest = self.summed(kept)
        assert there == self.digest
        assert (self.at("alpha"), self.at("beta")) == ([], ["web.raw"])
        assert (domain.running, domain.starts, domain.snapshots) == (running, 1, ["first", "second"])

    def restored(self, running: bool) -> None:
        """The guest is at alpha, as it was."""
        (domain,) = self.world.hosts["alpha"].domains.values()
        assert self.where() == ["alpha"] == self.startable()
        assert self.writes or self.summed(self.disk) == self.digest
        assert (self.at("alpha"), self.at("beta")) == ([self.seed.name, "web.raw"], [])
        assert self.seed.read_text() == "secrets"
        assert (domain.running, domain.starts, domain.snapshots) == (running, 1, ["first", "second"])


def one_after_another(folder: t.Any, kind: type[Play]) -> t.Iterator[t.Callable[[], Play]]:
    """Makes a new play; the one before is over then."""
    made: list[pytest.MonkeyPatch] = []

    def new() -> Play:
        if made:
            made[-1].undo()
        place = folder / str(len(made))
        place.mkdir()
        made.append(pytest.MonkeyPatch())
        return kind(place, made[-1])

    yield new
    made[-1].undo()


@pytest.fixture
def plays(tmp_path):
    yield from one_after_another(tmp_path, Play)


@pytest.fixture
def play(plays):
    return plays()


def running(play: Play) -> list[str]:
    return [name for name, host in play.world.hosts.items() if any(one.running for one in host.domains.values())]


@pytest.mark.parametrize("then", ["migrated", "rolled_back"])
@pytest.mark.parametrize("runs", [False, True])
def test_a_move_that_died_before_any_of_its_steps_is_finished_or_taken_back(plays, runs, then):
    mode = {"mode": "cold"} if runs else {}
    step, ended = 0, None
    while ended is None:
        play = plays()
        play.domain.running = runs
        ended = play.run(step, **mode)
        assert len(running(play)) <= 1 and (running(play) or len(play.startable()) <= 1), f"step {step}"
        if then == "rolled_back" and ended is None:
            try:
                play.run(state="rolled_back")
                play.restored(runs)
                then_on = False
            except PhyllomeError as exc:  # the destination has it already: only forward from here
                assert "Finish it with state: migrated" in str(exc) or "is not taken back while it is" in str(exc)
                then_on = True
        else:
            then_on = True
        if then_on:
            again = play.run(**mode)
            assert again is not None and again["classification"] == 2, f"step {step}"
            play.arrived(runs)
        step += 1
    assert step > 20
    assert play.run(**mode)["changed"] is False


@pytest.mark.parametrize("then", ["migrated", "rolled_back"])
def test_a_warm_move_of_a_guest_that_writes_died_before_any_of_its_steps(plays, monkeypatch, then):
    monkeypatch.setattr(policy, "SMALL", 0)
    monkeypatch.setattr(policy, "SHRINKS", 9)
    monkeypatch.setattr(policy, "ROUNDS", 3)
    step, ended = 0, None
    while ended is None:
        play = plays()
        play.chance.seed(step)
        play.domain.running, play.world.meanwhile, play.writes = True, play.write, True
        ended = play.run(step, mode="warm")
        assert len(running(play)) <= 1 and (running(play) or len(play.startable()) <= 1), f"step {step}"
        if then == "rolled_back" and ended is None:
            try:
                play.run(state="rolled_back")
                play.restored(True)
            except PhyllomeError as exc:
                assert "Finish it with state: migrated" in str(exc) or "is not taken back while it is" in str(exc)
        again = play.run(mode="warm", verify="full")
        assert again is not None and again["classification"] == 2, f"step {step}"
        play.arrived(True)
        if ended is not None:
            (disk,) = ended["disks"]
            assert (ended["mode_used"], ended["stats"]["rounds"]) == ("warm", 3)
            assert ended["stats"]["transferred"] == disk["bytes_sent"]
            assert ended["stats"]["downtime_ms"] >= 0
        step += 1 + step // 4
    assert step > 40
    assert play.run(mode="warm")["changed"] is False


def test_a_guest_that_is_moved_warm_is_not_fenced_while_it_is_copied(play):
    play.domain.running = True
    step = 0
    while not (play.journal.exists() and any('"start": 0' in f.read_text() for f in play.journal.glob("*.notes"))):
        assert play.run(step, mode="warm") is None
        step += 1
    assert running(play) == ["alpha"]
    play.domain.running = False  # its host fell over
    assert play.startable() == ["alpha"] and play.domain.starts == 1
    assert play.run()["mode_used"] == "warm"  # it goes on, though the guest is off now
    play.arrived(True)


def test_it_is_fenced_again_when_it_goes_on_after_that(plays):
    step, seen = 0, ""
    while 'fenced="yes"' not in seen:
        play = plays()
        play.domain.running = True
        assert play.run(step, mode="warm") is None
        seen = play.domain.XMLDesc()
        step += 1
    assert running(play) == ["alpha"]
    play.run(mode="warm")
    play.arrived(True)


def test_what_the_guest_emptied_after_it_was_copied_does_not_stay_full(play, monkeypatch):
    monkeypatch.setattr(plan, "SLACK", 0)

    def empty() -> None:
        if play.domain.running and any(f.read_text().count('"start"') > 3 for f in play.journal.glob("*.notes")):
            os.truncate(play.disk, 100 * KIB)
            os.truncate(play.disk, SIZE)
            play.digest = play.summed(play.disk)

    play.domain.running, play.world.meanwhile = True, empty
    (disk,) = play.run(mode="warm")["disks"]
    assert disk["allocated_after"] <= disk["allocated_before"] < 200 * KIB
    play.arrived(True)


def test_what_was_copied_warm_is_not_sent_again_where_no_digests_are_wanted(play):
    play.domain.running = True
    (disk,) = play.run(mode="warm", verify="none")["disks"]
    assert disk["bytes_sent"] <= disk["allocated_before"]
    play.arrived(True)


def test_auto_takes_the_first_allowed_mode_that_nothing_stands_against(play):
    play.domain.running = True
    for allow in (None, ["live"]):
        with pytest.raises(PhyllomeError, match="libvirt does not move while it runs"):
            play.run(allow=allow)
    result = play.run(allow=["live", "warm"])
    assert result["mode_used"] == "warm"
    play.arrived(True)


def test_what_arrived_is_told(play):
    result = play.run(verify="full")
    (disk,) = result["disks"]
    assert disk["target"] == "vda" and disk["verified"] == "full" and disk["digest"].startswith("sha256-chunks:")
    assert disk["bytes_sent"] <= disk["allocated_before"] * 1.05
    assert result["leftovers"] == [f"{path}.phyllome-retained-{result['op_id']}" for path in (play.disk, play.seed)]


def test_a_clock_that_is_wrong_is_told(play):
    play.world.hosts["beta"].ahead = -90
    *dummy, said = play.run()["warnings"]
    assert "The clock of beta is 90 s behind the one of alpha" in said


def test_a_full_disk_at_the_destination_leaves_all_as_it_was(play):
    play.world.hosts["beta"].full = 600 * KIB
    with pytest.raises(PhyllomeError, match="No space left on device") as error:
        play.run()
    assert error.value.facts["phase"] == "rolled_back"
    play.restored(False)
    play.world.hosts["beta"].full = None
    assert play.run()["classification"] == 2
    play.arrived(False)


@pytest.mark.parametrize(
    ("boots", "streams"),
    [
        (("first", "first"), 5),  # of four parts two were there, and after these and each of the others it is cut
        (("first", "second"), 8),  # what it had may be lost with its power
        ((None, None), 5),
    ],
)
def test_a_copy_goes_on_after_the_last_part_that_was_confirmed(plays, boots, streams):
    step, noted = 0, ""
    while '"start": 262144' not in noted:
        play = plays()
        play.world.hosts["beta"].boot = boots[0]
        assert play.run(step) is None
        noted = "".join(file.read_text() for file in play.journal.glob("*.notes"))
        step += 1
    beta = play.world.hosts["beta"]
    beta.boot, beta.streams = boots[1], 0
    assert play.run()["classification"] == 2
    play.arrived(False)
    assert beta.streams == streams


@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_what_a_file_system_keeps_behind_the_end_of_a_file_that_grew_is_not_kept_in_its_holes(plays, monkeypatch, mode):
    monkeypatch.setattr(plan, "SLACK", 64 * KIB)
    step, ended = 0, None
    while ended is None:
        play = plays()
        play.domain.running, play.world.hosts["beta"].behind = True, 100 * KIB
        ended = play.run(step, mode=mode)
        assert play.run(mode=mode, verify="full")["classification"] == 2
        play.arrived(True)
        step += 1 + step // 2
    (disk,) = ended["disks"]
    assert disk["bytes_sent"] <= disk["allocated_before"] + stream.SEGMENT  # only its first part goes twice


def test_a_file_that_changed_after_the_interruption_is_copied_anew(play):
    step = 0
    while not (play.journal.exists() and any('"start": 0' in f.read_text() for f in play.journal.glob("*.notes"))):
        assert play.run(step) is None
        step += 1
    with play.disk.open("r+b") as file:
        file.write(b"somebody started it all the same")
    os.utime(play.disk, ns=(1, 1))
    play.digest = play.summed(play.disk)
    assert play.run()["classification"] == 2
    play.arrived(False)


def test_a_guest_that_does_not_shut_down_runs_on(play, monkeypatch):
    play.domain.running = True
    monkeypatch.setattr(type(play.domain), "shutdownFlags", lambda self, way: None)
    with pytest.raises(PhyllomeError, match="did not shut down within 0 s"):
        play.run(mode="cold", shutdown={"timeout": 0, "then": "fail"})
    assert running(play) == ["alpha"]
    play.restored(True)
    play.run(mode="cold", shutdown={"timeout": 0, "then": "destroy"})
    play.arrived(True)


@pytest.mark.parametrize(("was", "after", "runs"), [(True, "off", False), (False, "running", True)])
def test_the_power_that_was_asked_for(play, was, after, runs):
    play.domain.running = was
    assert play.run(power_after=after)["mode_used"] == "cold"
    play.arrived(runs)


def test_a_finished_move_is_taken_back_and_what_is_left_there_is_cleaned_up(plays):
    step, ended = 0, None
    while ended is None:
        play = plays()
        assert play.run()["classification"] == 2
        there = play.world.hosts["beta"].path(str(play.seed))
        there.write_text("phyllome_vm has made it again")
        ended = play.run(step, state="rolled_back")
        assert len(play.startable()) <= 1, f"step {step}"
        assert play.run(state="rolled_back")["phase"] == "rolled_back"
        play.restored(False)
        step += 1
    assert step > 8
    beta = play.world.hosts["beta"].path(str(play.world.images))
    assert len(os.listdir(beta)) == 2
    assert play.run(state="cleaned")["changed"] is True
    assert os.listdir(beta) == [] == os.listdir(play.journal)
    assert play.run(state="cleaned")["changed"] is False
    assert play.run()["classification"] == 2
    play.arrived(False)


def test_a_guest_that_runs_at_the_destination_is_not_taken_back(play):
    play.domain.running = True
    play.run(mode="cold")
    with pytest.raises(PhyllomeError, match="is not taken back while it is running"):
        play.run(state="rolled_back")
    play.arrived(True)


def test_a_committed_move_leaves_nothing(play):
    play.run()
    assert play.run(state="committed")["phase"] == "committed"
    assert os.listdir(play.world.images) == [] == os.listdir(play.journal)
    assert play.run(state="committed")["changed"] is False
    with pytest.raises(PhyllomeError, match="alpha has no retained copy"):
        play.run(state="rolled_back")


def test_no_secret_is_left_behind_where_nothing_is_retained(plays):
    step, ended = 0, None
    while ended is None:
        play = plays()
        ended = play.run(step, source_disks="purge")
        assert play.run(source_disks="purge")["classification"] == 2
        play.arrived(False)
        assert os.listdir(play.world.images) == [] == os.listdir(play.journal), f"step {step}"
        step += 1
    planned = {(change["path"], change["to"]) for change in ended["plan"] if change["from"] == str(play.seed)}
    assert planned == {("alpha.seed", None)}


def test_a_seed_that_both_hosts_have_stays_where_it_is(play):
    shared = play.world.shared / "web.raw"
    shared.write_bytes(play.disk.read_bytes())
    seed = play.world.shared / play.seed.name
    seed.write_text("secrets")
    text = play.domain.XMLDesc()
    for before, after in ((play.disk, shared), (play.seed, seed)):
        text = text.replace(str(before), str(after))
    play.world.hosts["alpha"].defineXML(text)
    assert play.run(storage="shared")["leftovers"] == []
    assert sorted(path.name for path in play.world.shared.iterdir()) == [play.seed.name, "web.raw"]


def test_a_file_that_the_guest_has_no_more_stays_and_is_told(play):
    former = play.world.images / "web-data.raw"
    former.touch()
    volume = f"<p:volume id='data' path='{former}' made='yes'/></p:guest>"
    play.world.hosts["alpha"].defineXML(play.domain.XMLDesc().replace("</p:guest>", volume))
    for dummy, result in (("check mode", play.look()), ("", play.run())):
        (said,) = [line for line in result["warnings"] if str(former) in line]
        assert "stays where it is: web had it as a disk and has it no more" in said
    assert play.at("alpha") == [former.name]
    assert not any("web-data" in line for line in result["leftovers"])


@pytest.fixture
def identity(play, monkeypatch):
    """Paths of the guest's UEFI variables, of its TPM's state and of what vm_snapshot keeps of it."""
    world = play.world
    monkeypatch.setattr(read_guest, "SWTPM", str(world.swtpm))
    paths = {
        "nvram": world.nvram / "web_VARS.fd",
        "tpm": world.swtpm / UUID / "tpm2" / "tpm2-00.permall",
        "snapshots": world.snapshots / UUID / "one" / "memory",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"its own")
    xml.child(xml.ensure(play.domain.root, "os"), "nvram", str(paths["nvram"]))
    tpm = xml.child(xml.ensure(play.domain.root, "devices"), "tpm", model="tpm-crb")
    xml.child(tpm, "backend", type_="emulator", version="2.0")
    return paths


@pytest.mark.parametrize("what", ["nvram", "tpm", "snapshots", "hook", "mode"])
def test_what_is_in_the_way_is_said_before_the_guest_is_shut_down(play, monkeypatch, identity, what):
    play.domain.running = True
    monkeypatch.setattr(Domain, "shutdownFlags", lambda *dummy: pytest.fail("it was shut down"))
    if what == "hook":
        play.world.hook.unlink()
    elif what == "mode":
        play.world.hook.chmod(0o644)
    else:
        there = play.world.hosts["beta"].path(str(identity[what]))
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(b"of a guest that was removed")
    words, code = (
        (f"beta has a file {identity[what]} already", "disk_exists")
        if what in identity
        else ("lacks the hook phyllome-fence", "no_fence")
    )
    for check, mode in ((True, "cold"), (True, "warm"), (False, "cold"), (False, "warm")):
        with pytest.raises(PhyllomeError, match=words) as error:
            play.run(check=check, mode=mode)
        assert [one["code"] for one in error.value.facts["blockers"]] == [code]
        assert error.value.facts["phase"] == "blocked" and running(play) == play.where() == ["alpha"]
    assert play.at("beta") == [] and play.domain.starts == 1


def test_a_live_move_is_blocked_by_these_files_too_and_takes_no_hook(play, identity):
    play.domain.running, play.domain.snapshots = True, []
    identity["snapshots"].unlink()
    play.world.hook.unlink()
    assert play.look(mode="live")["blockers"] == []
    for what in ("nvram", "tpm"):
        there = play.world.hosts["beta"].path(str(identity[what]))
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(b"of a guest that was removed")
        with pytest.raises(PhyllomeError, match=f"beta has a file {identity[what]} already"):
            play.look(mode="live")
        there.unlink()


def test_a_move_that_goes_on_is_not_blocked_by_its_own_files(plays, monkeypatch):
    step, seen, ended = 0, set(), None
    while ended is None:
        play = plays()
        variables = play.world.nvram / "web_VARS.fd"
        variables.parent.mkdir()
        variables.write_bytes(b"its own")
        xml.child(xml.ensure(play.domain.root, "os"), "nvram", str(variables))
        play.domain.running = True
        ended = play.run(step, mode="cold")
        seen.update(os.listdir(play.world.hosts["beta"].path(str(play.world.nvram))))
        assert play.look(mode="cold")["blockers"] == [], f"step {step}"
        step += 1
    assert [name[-len("web_VARS.fd.partial") :] for name in sorted(seen)] == ["web_VARS.fd.partial", "web_VARS.fd"]


def test_a_destination_whose_libvirt_does_not_ask_the_hook_gets_nothing(play, monkeypatch):
    monkeypatch.setattr(play.world.fence, "refusal", lambda *dummy: None)
    with pytest.raises(PhyllomeError, match="does not ask before it starts a guest"):
        play.run()
    assert running(play) == []
    assert play.where() == ["alpha", "beta"]
    monkeypatch.undo()
    play.run(state="rolled_back")
    play.restored(False)


def test_a_move_that_is_made_again_after_it_was_taken_back_counts_anew(play):
    for dummy in range(2):
        (disk,) = play.run()["disks"]
        assert disk["bytes_sent"] <= disk["allocated_before"] * 1.05
        assert play.run(state="rolled_back")["phase"] == "rolled_back"


KEPT = {
    "one/manifest.json": "{}",
    "one/memory": "memory" * 99999,
    "one/nvram.fd": "variables",
    "tpm/domain.xml": "<domain/>",
}
"""What vm_snapshot keeps of two snapshots, one of which is called tpm."""


@pytest.fixture
def kept(play):
    folder = play.world.snapshots / UUID
    for name, text in KEPT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "reverted.json").write_text("what the files of this host looked like")
    return folder


def there(folder):
    """What is kept there of snapshots."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*/*") if path.is_file()}


def test_snapshots_of_vm_snapshot_keep_a_guest_that_runs_here_until_they_are_removed(play, kept):
    play.domain.running, play.domain.snapshots = True, []
    for check in (True, False):  # also where libvirt has forgotten them
        with pytest.raises(PhyllomeError, match="it has snapshots of vm_snapshot.*mode: cold.*state: absent") as error:
            play.run(check=check, mode="live")
        assert [one["code"] for one in error.value.facts["blockers"]] == ["snapshots"]
    assert play.where() == ["alpha"] == play.startable() and play.at("beta") == []


def test_snapshots_of_vm_snapshot_go_with_a_guest_that_is_off_and_come_back(play, kept):
    beta = play.world.hosts["beta"]
    assert {"snapshots", "alpha.snapshots"} <= {change["path"] for change in play.look()["plan"]}
    result = play.run()
    assert result["classification"] == 2 and sorted(result["identity"]["snapshots"]["files"]) == sorted(KEPT)
    assert there(beta.path(str(kept))) == KEPT and not kept.exists()
    assert {path.stat().st_mode & 0o777 for path in beta.path(str(kept)).rglob("*") if path.is_dir()} == {0o700}
    play.run(state="rolled_back")
    assert there(kept) == KEPT and not beta.path(str(kept)).exists()
    play.run(state="cleaned")
    assert list(beta.path(str(play.world.snapshots)).iterdir()) == []


def test_snapshots_of_vm_snapshot_survive_a_move_that_is_cut_off_anywhere(play, kept, tmp_path):
    beta, last = play.world.hosts["beta"], 0
    while play.run(last) is None:
        here = kept if kept.exists() else next(kept.parent.glob(f"{UUID}.*"))
        assert there(here) == KEPT
        last += 1
    assert there(beta.path(str(kept))) == KEPT and not kept.exists()
    assert os.listdir(beta.path(str(play.world.nvram))) == []


def test_a_move_that_is_taken_back_leaves_no_snapshots_at_the_destination(play, kept):
    beta, last = play.world.hosts["beta"], 0
    while play.run(last) is None:
        try:
            play.run(state="rolled_back")
        except PhyllomeError as error:
            assert "Finish it with state: migrated" in error.remedy
            play.run()
            play.run(state="rolled_back")
        play.run(state="cleaned")
        assert there(kept) == KEPT
        assert not beta.path(str(kept)).exists() and os.listdir(beta.path(str(play.world.nvram))) == []
        last += 1


def test_what_snapshots_keep_needs_space_at_the_destination(play, kept, monkeypatch):
    monkeypatch.setattr(plan, "grown", lambda size: size + 2 * 1024**4 * (size < 1024**2))
    with pytest.raises(PhyllomeError, match="of space left in .*/nvram, where what the guest's snapshots keep arrives"):
        play.run()
    assert play.where() == ["alpha"] and play.at("beta") == []


def test_a_source_that_cannot_be_undefined_is_told_without_a_word_of_post_copy(play, monkeypatch):
    def refuse(flags):
        raise Error(1, "busy")

    play.domain.running = True
    monkeypatch.setattr(play.domain, "undefineFlags", refuse)
    with pytest.raises(PhyllomeError, match="Cannot undefine web on alpha: busy") as error:
        play.run(mode="cold")
    assert "post-copy" not in str(error.value)
    assert play.startable() != ["alpha"]


def test_a_raw_disk_is_no_overlay_whatever_its_guest_writes_there(play):
    play.domain.running, play.domain.snapshots = True, []
    with play.disk.open("r+b") as file:
        file.write(b"QFI\xfb" + bytes(3) + b"\3" + bytes(7) + b"\x68")
    assert play.look(mode="live")["changed"]


def test_a_snapshot_outside_of_the_disks_is_named_with_what_to_do(play, monkeypatch):
    text = "<domainsnapshot><name>first</name><memory snapshot='external' file='/images/memory'/></domainsnapshot>"
    monkeypatch.setattr(Snapshot, "getXMLDesc", lambda self, flags=0: text)
    play.domain.snapshots = ["first"]
    with pytest.raises(
        PhyllomeError, match="its snapshot first is not inside of its disks.*virsh snapshot-delete web first"
    ):
        play.run()
    assert play.where() == ["alpha"] and play.at("beta") == []


CARD = """<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>
 <alias name='ua-gpu'/></hostdev>"""
STICK = "<hostdev mode='subsystem' type='usb'><source><vendor id='0x46f4'/><product id='0x0001'/></source></hostdev>"


def test_what_is_defined_is_exchanged_and_what_is_only_plugged_in_does_not_matter(play, monkeypatch):
    """The card waits for the next start, and a USB stick is in the running guest alone."""
    offered = lambda connection, uuid, listed, wanted: {one.id: devices.Offered("vfio-pci") for one in listed}  # noqa: E731
    monkeypatch.setattr(read_offer.devices, "offered", offered)
    play.domain.running = True
    live = play.domain.XMLDesc().replace("</devices>", f"{STICK}</devices>")
    play.domain.root = xml.parse(play.domain.XMLDesc().replace("</devices>", f"{CARD}</devices>"))
    told, lib = play.domain.XMLDesc, play.world.lib
    monkeypatch.setattr(
        play.domain, "XMLDesc", lambda flags=0: live if flags == lib.VIR_DOMAIN_XML_MIGRATABLE else told()
    )
    with pytest.raises(PhyllomeError) as caught:
        play.look(mode="cold")
    assert [one["what"] for one in caught.value.facts["blockers"]] == ["it has 0000:01:00.0 of this host (gpu)"]
    # a snapshot has the devices of its time
    monkeypatch.setattr(
        Snapshot,
        "getXMLDesc",
        lambda self, flags=0: (
            f"<domainsnapshot><name>{self._name}</name><domain><devices>{CARD}</devices></domain></domainsnapshot>"
        ),
    )
    monkeypatch.setattr(Domain, "snapshotCreateXML", lambda self, text, flags: self.snapshots.append(text))
    play.run(hostdevs={"gpu": "0000:41:00.0"})
    (moved,) = play.world.hosts["beta"].domains.values()
    of = lambda root: [(one.id, one.now) for one in devices.of(root)]  # noqa: E731
    assert of(moved.root) == [("gpu", "0000:41:00.0")]
    assert [of(xml.parse(text).find("domain")) for text in moved.snapshots] == [[("gpu", "0000:41:00.0")]] * 2


def test_a_begun_move_whose_devices_are_gone_is_taken_back(play, monkeypatch):
    """It is off and fenced then; the playbooks name no devices any more."""
    offered = lambda connection, uuid, listed, wanted: {one.id: devices.Offered("vfio-pci") for one in listed}  # noqa: E731
    monkeypatch.setattr(read_offer.devices, "offered", offered)
    play.domain.root = xml.parse(play.domain.XMLDesc().replace("</devices>", f"{CARD}</devices>"))
    play.domain.running = True
    assert play.run(6, hostdevs={"gpu": "0000:41:00.0"}) is None
    assert not running(play) and not play.startable()
    with pytest.raises(PhyllomeError, match="Say which one of beta it gets"):
        play.run()
    play.restored(running=True)


@pytest.mark.parametrize("state", ["cleaned", "committed"])
@pytest.mark.parametrize("known", [{}, {"name": None, "uuid": UUID}])
def test_what_is_left_of_a_guest_that_is_gone_is_cleaned_up(play, state, known):
    play.run()
    play.world.hosts["beta"].domains.clear()  # it was removed there, or moved on
    planned = play.look(state=state, **known)
    assert planned["changed"] is True and len(planned["plan"]) == 2 == len(os.listdir(play.world.images))
    result = play.run(state=state, **known)
    assert result["changed"] is True and result["plan"] == planned["plan"]
    assert os.listdir(play.world.images) == [] == os.listdir(play.journal)
    assert play.run(state=state, **known)["changed"] is False
    with pytest.raises(PhyllomeError, match="There is no guest"):
        play.run(**known)


def test_of_a_guest_that_is_gone_in_the_middle_of_a_move_all_is_kept(play):
    assert play.run(12) is None
    (record,) = play.journal.glob("*.json")
    assert '"started"' in record.read_text()
    for host in play.world.hosts.values():
        host.domains.clear()
    with pytest.raises(PhyllomeError, match="There is no guest web"):
        play.run(state="cleaned")
    assert record.exists()


def test_what_is_left_of_a_guest_that_has_another_name_now_is_kept(play):
    play.run()
    (guest,) = play.world.hosts["beta"].domains.values()
    guest.root.find("name").text = "www"
    with pytest.raises(PhyllomeError, match="There is no guest web"):
        play.run(state="cleaned")
    assert len(os.listdir(play.world.images)) == 2


def test_of_several_guests_that_had_a_name_the_uuid_says_which_is_cleaned_up(play):
    play.run()
    play.world.hosts["beta"].domains.clear()
    (record,) = play.journal.glob("*.json")
    other = record.with_name("other.json")
    other.write_text(record.read_text().replace(UUID, "22222222-1111-4111-8111-111111111111"))
    with pytest.raises(PhyllomeError, match="There were several guests web"):
        play.run(state="cleaned")
    assert len(os.listdir(play.world.images)) == 2
    assert play.run(state="cleaned", name=None, uuid=UUID)["changed"] is True
    assert os.listdir(play.world.images) == [] and os.listdir(play.journal) == [other.name]


@pytest.mark.parametrize("host", ["alpha", "beta"])
def test_what_is_left_of_a_guest_is_no_matter_of_another_one_that_has_its_name_now(play, host):
    text = play.domain.XMLDesc().replace(UUID, "22222222-1111-4111-8111-111111111111")
    play.run()
    play.world.hosts["beta"].domains.clear()
    play.world.hosts[host].defineXML(text)
    assert play.run(state="cleaned")["changed"] is False
    kept = [name for name in os.listdir(play.world.images) if "retained" in name]
    assert len(kept) == 2
    assert play.run(state="cleaned", name=None, uuid=UUID)["changed"] is True
    assert not set(kept) & set(os.listdir(play.world.images))


def test_what_is_left_is_kept_where_a_guest_has_it(play):
    text = play.domain.XMLDesc()
    result = play.run()
    play.world.hosts["beta"].domains.clear()
    kept, dummy = result["leftovers"]
    text = text.replace(UUID, "22222222-1111-4111-8111-111111111111").replace(str(play.disk), kept)
    rescued = play.world.hosts["alpha"].defineXML(text.replace("<name>web", "<name>rescued"))
    for check in (True, False):
        with pytest.raises(PhyllomeError, match=f"the guest rescued has {kept}"):
            play.run(state="cleaned", check=check)
    assert len(os.listdir(play.world.images)) == 2
    rescued.undefineFlags(0)
    assert play.run(state="cleaned")["changed"] is True
