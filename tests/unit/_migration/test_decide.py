# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two guests where there was one: nothing is touched until somebody says which is the truth, and then nothing is lost."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration.definition import set_mark
from ansible_collections.phyllome.virt.plugins.module_utils._migration.journal import Journal, Mark, Record, op_id
from ansible_collections.phyllome.virt.tests.unit._migration.test_cold import Play, one_after_another
from ansible_collections.phyllome.virt.tests.unit._migration.world import UUID

HERE, THERE = b"written at alpha" * 100, b"written at beta" * 100


class Split(Play):
    """All moves are cold."""

    def run(self, last=None, check=False, **more):
        return super().run(last, check, **{"mode": "cold", **more})


@pytest.fixture
def plays(tmp_path):
    yield from one_after_another(tmp_path, Split)


def split(play: Play, step: int | None) -> bool:
    """Kill a move of a running guest before a step, and start the guest on both hosts behind its back, if both have it."""
    there = play.world.hosts["beta"].path(str(play.disk))
    play.domain.running = True
    if step is None:  # what libvirt itself makes of a live move whose last reply is lost
        mark = Mark(op_id(UUID, "beta", 0), "alpha", "beta", 0, "moving", "running", True)
        set_mark(play.domain.root, mark)
        play.world.hosts["beta"].defineXML(play.domain.XMLDesc())
        set_mark(play.domain.root, dataclasses.replace(mark, fenced=True))
        play.domain.starts, play.domain.snapshots = 0, []
        shutil.copy(play.disk, there)
        pieces = {"disks.vda": str(play.disk)}
        Journal(str(play.journal)).save(Record(mark.op_id, UUID, "web", "alpha", "beta", pieces=pieces))
    else:
        play.run(step)
    alpha, beta = (play.world.hosts[name].domains.get(UUID) for name in ("alpha", "beta"))
    if alpha is None or beta is None or not play.disk.exists() or not there.exists():
        return False
    alpha.running = beta.running = True
    for path, text in ((play.disk, HERE), (there, THERE)):
        with path.open("r+b") as file:
            file.write(text)
    return True


def running(play: Play) -> int:
    return sum(one.running for host in play.world.hosts.values() for one in host.domains.values())


def begins(path) -> bytes:
    return path.read_bytes()[: len(HERE)]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The first, one in the middle and the last of the steps at which a killed cold move can leave two guests; None: a live one."""
    found: list[int] = []
    for new in one_after_another(tmp_path_factory.mktemp("steps"), Split):
        step, over = 0, False
        while not over:
            play = new()
            if split(play, step):
                found.append(step)
            over = bool(found) and play.where() == ["beta"]
            step += 1
    return None, found[0], found[len(found) // 2], found[-1]


def decided(play: Play, truth: str) -> None:
    """The guest that was said to be right is at beta and runs; what the other one has written is kept until it is cleaned up."""
    (domain,) = play.world.hosts["beta"].domains.values()
    assert play.where() == ["beta"] == play.startable() and domain.running and domain.starts == 1
    there = play.world.hosts["beta"].path(str(play.disk))
    (kept,) = (play.world.images if truth == "destination" else there.parent).glob("web.raw.phyllome-retained-*")
    right, other = (HERE, THERE) if truth == "source" else (THERE, HERE)
    assert begins(there).startswith(right[:500]) and begins(kept).startswith(other[:500])
    assert (play.at("alpha"), play.at("beta")) == ([], ["web.raw"])


def test_a_copy_whose_disk_another_guest_needs_is_not_given_up(plays):
    play = plays()
    split(play, None)
    beta = play.world.hosts["beta"]
    text = beta.lookupByUUIDString(UUID).XMLDesc()
    clone = beta.defineXML(text.replace(UUID, UUID[:-1] + "9").replace("<name>web", "<name>clone"))
    files = play.at("alpha"), play.at("beta")
    for call in (play.look, play.run):
        with pytest.raises(
            PhyllomeError, match="there the guest clone has .* as well, or stands on it. Move clone away"
        ) as error:
            call(truth="source")
        assert error.value.facts["phase"] == "refused"
        assert running(play) == 2 and files == (play.at("alpha"), play.at("beta"))
        assert beta.lookupByUUIDString(UUID).XMLDesc() == text
    clone.undefineFlags(0)
    play.run(truth="source")
    decided(play, "source")


@pytest.mark.parametrize("truth", ["source", "destination"])
def test_the_truth_is_said_in_any_state_with_two_guests(plays, steps, truth):
    for step in steps:
        play = plays()
        split(play, step)
        files = play.at("alpha"), play.at("beta")
        with pytest.raises(PhyllomeError, match="Nothing was touched. Look .* say truth: source or truth: destination"):
            play.run()
        assert running(play) == 2
        assert files == (play.at("alpha"), play.at("beta"))
        plan = play.look(truth=truth)["plan"]
        assert plan[0]["path"] == ("beta.guest" if truth == "source" else "alpha.guest"), f"step {step}"
        assert any(str(change["to"]).startswith("beta:") for change in plan) is (truth == "source")
        assert running(play) == 2
        result = play.run(truth=truth)
        decided(play, truth)
        assert len(result["leftovers"]) == (3 if truth == "source" else 2), f"step {step}"
        assert play.run(truth=truth)["changed"] is False, f"step {step}"
        play.run(state="cleaned")
        for host in play.world.hosts.values():
            assert not list(host.path(str(play.world.images)).glob("*retained*")), f"step {step}"


@pytest.mark.parametrize("truth", ["source", "destination"])
@pytest.mark.parametrize("cold", [False, True])
def test_a_decision_that_died_before_any_of_its_steps_is_carried_out(plays, steps, truth, cold):
    step, after = 0, 0
    while after < 3:  # what comes then is an ordinary move, or its ordinary end
        play = plays()
        split(play, steps[cold])
        seen: list[int] = []
        play.world.meanwhile = lambda: seen.append(running(play))  # noqa: B023
        play.run(step, truth=truth)
        beta = play.world.hosts["beta"].domains
        after += not beta if truth == "source" else not play.domain.isActive()
        play.run(truth=truth)
        play.world.meanwhile = lambda: None
        assert 2 not in seen[seen.index(1) :], f"step {step}: stopped, and both ran again"
        decided(play, truth)
        step += 1
    assert step > 5


@pytest.mark.parametrize("cold", [False, True])
def test_a_mind_may_be_changed_as_long_as_none_of_the_two_is_off(plays, steps, cold):
    step, changed = 0, 0
    while True:
        play = plays()
        split(play, steps[cold])
        play.run(step, truth="source")
        if not play.world.hosts["beta"].domains[UUID].isActive():
            break
        changed += "returning" in play.world.hosts["beta"].domains[UUID].XMLDesc()
        play.run(truth="destination")
        decided(play, "destination")
        step += 1
    assert changed > 2


@pytest.mark.parametrize("truth", ["source", "destination"])
def test_both_are_suspended_when_that_is_asked_for_and_the_right_one_goes_on(plays, steps, truth):
    for step in steps:
        play = plays()
        split(play, step)
        with pytest.raises(PhyllomeError, match="Where it ran it is suspended now"):
            play.run(on_split_brain="suspend_both")
        assert all(one.paused for host in play.world.hosts.values() for one in host.domains.values())
        with pytest.raises(PhyllomeError, match="say truth: source"):  # and no copy counts as one that never ran
            play.run(on_split_brain="suspend_both")
        play.run(truth=truth)
        decided(play, truth)


def test_both_are_suspended_when_they_come_up_in_the_middle_of_a_run(plays):
    play = plays()

    def started() -> None:
        beta = play.world.hosts["beta"].domains.get(UUID)
        if beta is not None and not play.domain.paused:
            play.domain.running = beta.running = True

    play.domain.running, play.world.meanwhile = True, started
    with pytest.raises(PhyllomeError, match="Where it ran it is suspended now"):
        play.run(on_split_brain="suspend_both")
    assert running(play) == 0


def test_check_mode_suspends_nothing(plays):
    play = plays()
    split(play, None)
    with pytest.raises(PhyllomeError, match="Nothing was touched"):
        play.look(on_split_brain="suspend_both")
    assert running(play) == 2


def test_two_guests_that_no_move_has_made_are_for_people(plays):
    play = plays()
    split(play, None)
    for host in play.world.hosts.values():
        set_mark(host.domains[UUID].root, None)
    with pytest.raises(PhyllomeError, match="truth does not help.* Nothing was touched.* stop or undefine the other"):
        play.run(truth="source")
    assert running(play) == 2
    with pytest.raises(PhyllomeError, match="is suspended now"):
        play.run(on_split_brain="suspend_both")
    assert running(play) == 0
    with pytest.raises(PhyllomeError, match="that this move did not bring"):
        play.run()


def test_a_decision_whose_move_fails_does_not_forget_what_it_has_put_aside(plays):
    play = plays()
    split(play, None)
    play.world.hosts["beta"].full = 600 * 1024
    with pytest.raises(PhyllomeError, match="No space left on device"):
        play.run(truth="source")
    assert play.where() == ["alpha"] and play.domain.running
    play.run(state="cleaned")
    assert not list(play.world.hosts["beta"].path(str(play.world.images)).glob("*retained*"))


def test_the_word_does_not_count_where_there_is_one_guest(plays):
    play = plays()
    play.domain.running = True
    assert play.run(truth="destination")["classification"] == 2
    play.arrived(True)


def cut_off(play: Play, here: str, there: str) -> None:
    """A live move that was committed, and what libvirt says of the guest on each host since."""
    split(play, None)
    play.world.hosts["alpha"].domains[UUID].running = here != "off"
    journal = Journal(str(play.journal))
    journal.save(dataclasses.replace(journal.load(op_id(UUID, "beta", 0)), phase="committed"))
    lib = play.world.lib
    reasons = {"postcopy": lib.VIR_DOMAIN_PAUSED_POSTCOPY, "broken": lib.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED}
    for host, state in (("alpha", here), ("beta", there)):
        domain = play.world.hosts[host].domains[UUID]
        domain.running, domain.paused, domain.lost = False, state in reasons, reasons.get(state)


@pytest.mark.parametrize(("here", "there"), [("broken", "off"), ("off", "broken")])
def test_what_crashed_in_the_middle_of_a_post_copy_move_starts_anew_from_the_destination_s_disks(plays, here, there):
    step, over = 0, False
    while not over:
        play = plays()
        cut_off(play, here, there)
        with pytest.raises(PhyllomeError, match="one host has lost its part .* Say truth: destination") as error:
            play.run()
        assert error.value.facts["classification"] == 10 and play.world.steps == 0
        assert [change["path"] for change in play.look(truth="destination")["plan"]][:2] == [
            "beta.guest",
            "alpha.guest",
        ]
        seen: list[int] = []
        play.world.meanwhile = lambda: seen.append(running(play))  # noqa: B023
        over = play.run(step, truth="destination") is not None
        play.world.meanwhile = lambda: None
        result = play.run(truth="destination")
        assert result["classification"] == 2, f"step {step}"
        decided(play, "destination")
        step += 1
    assert step > 5


@pytest.mark.parametrize("truth", [None, "destination"])
def test_what_the_source_had_given_up_goes_on_there_once_the_other_one_is_gone_and_somebody_says_so(plays, truth):
    play = plays()
    split(play, None)
    with pytest.raises(PhyllomeError, match="is suspended now"):
        play.run(on_split_brain="suspend_both")
    del play.world.hosts["beta"].domains[UUID]
    with pytest.raises(PhyllomeError, match="the destination has none any more.* say truth: source"):
        play.run(truth=truth)
    assert play.domain.paused
    assert play.look(truth="source")["plan"][0]["path"] == "alpha.guest"

    # what lies at the destination is nobody's to remove; the guest runs
    with pytest.raises(PhyllomeError, match="beta has a file .*web.raw already") as error:
        play.run(truth="source")
    assert error.value.facts["phase"] == "blocked" and play.domain.running
    assert begins(play.world.hosts["beta"].path(str(play.disk))).startswith(THERE[:500])

    play.world.hosts["beta"].path(str(play.disk)).unlink()
    assert play.run()["classification"] == 2


def test_the_copy_that_is_left_at_the_destination_needs_no_word(plays):
    play = plays()
    split(play, None)
    with pytest.raises(PhyllomeError, match="is suspended now"):
        play.run(on_split_brain="suspend_both")
    del play.world.hosts["alpha"].domains[UUID]
    assert play.run()["classification"] == 2
    (domain,) = play.world.hosts["beta"].domains.values()
    assert domain.running and play.where() == ["beta"]


def test_a_libvirt_that_holds_the_job_of_a_dead_qemu_has_to_be_restarted(plays, monkeypatch):
    play = plays()
    cut_off(play, "off", "broken")
    lib = play.world.lib

    def held(flags: int) -> None:
        raise lib.libvirtError(lib.VIR_ERR_OPERATION_TIMEOUT, "cannot acquire state change lock")

    with monkeypatch.context() as patched:
        patched.setattr(play.domain, "undefineFlags", held)
        with pytest.raises(PhyllomeError, match="state change lock.* restart it there .* and run again"):
            play.run(truth="destination")
    assert play.world.hosts["beta"].domains[UUID].running
    assert play.run()["classification"] == 2
    decided(play, "destination")
