# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a move tells while it goes on, and what its process leaves to those who wait for it."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import types

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import journal, move, progress, unit
from ansible_collections.phyllome.virt.plugins.module_utils._migration.progress import Progress

UUID = "11111111-1111-4111-8111-111111111111"
GUEST = {"name": "web", "source": "alpha", "destination": "beta"}
MIB = 1024**2


@pytest.mark.parametrize(
    ("stats", "phase", "told"),
    [
        ({"type": 2}, "copying memory", {}),
        (
            {
                "data_total": 400 * MIB,
                "data_remaining": 100 * MIB,
                "disk_remaining": 90 * MIB,
                "time_elapsed": 1500,
                "data_processed": 20 * MIB,
            },
            "copying disks",
            {"percent": 75, "remaining_mib": 100.0, "mib_s": 8.0},
        ),
        (
            {
                "data_total": 400 * MIB,
                "data_remaining": 1,
                "memory_processed": 5,
                "memory_dirty_rate": 256,
                "memory_page_size": 4096,
                "downtime": 35,
                "time_elapsed": 1000,
                "data_processed": 16 * MIB,
            },
            "copying memory",
            {"percent": 99, "remaining_mib": 0.0, "dirty_mib_s": 1.0, "downtime_ms": 35},
        ),
        ({"data_total": 400 * MIB, "data_remaining": 0}, "copying memory", {}),  # disks are there, memory is next
        ({"memory_processed": 5, "auto_converge_throttle": 40}, "copying memory", {"slowed_percent": 40}),
    ],
)
def test_figures(stats, phase, told):
    assert progress.figures(stats, (1000, 16 * MIB)) == (phase, told)
    assert "mib_s" not in progress.figures(stats, None)[1]


def test_the_file_is_roots_and_says_the_last_word_only(tmp_path):
    begun = []
    told = Progress(str(tmp_path / "run"), lambda *said: begun.append(said))
    told.say("nobody asked yet")
    told.begin(UUID, "op", **GUEST)
    path = tmp_path / "run" / f"{UUID}.progress"
    assert begun == [(str(path), "op", "moving web from alpha to beta")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    told.say("copying disks", percent=3)
    told.say("finishing")
    assert json.loads(path.read_text()) == {
        "op_id": "op", "pid": os.getpid(), **GUEST, "phase": "finishing", "answer": None,
    }  # fmt: skip


def test_who_comes_second_waits_and_gets_the_answer_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LOCKS", str(tmp_path))
    records = journal.Journal(str(tmp_path))
    first = Progress(str(tmp_path))
    began, go = threading.Event(), threading.Event()

    def work():
        with records.alone(UUID):
            first.begin(UUID, "op", **GUEST)
            began.set()
            assert go.wait(10)
            first.end({"result": {"changed": True}})

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(10)
    second = Progress(str(tmp_path), lambda *said: go.set())
    assert second.attend(UUID, "op", records, journal.Busy("a", "b", "c")) == {"result": {"changed": True}}
    thread.join()


def test_who_comes_second_with_another_move_is_refused(tmp_path):
    Progress(str(tmp_path)).begin(UUID, "op", **GUEST)
    busy = journal.Busy("Another run is moving the guest", "it holds a lock", "Wait for its end.")
    with pytest.raises(PhyllomeError, match="Another run"):
        Progress(str(tmp_path)).attend(UUID, "other", journal.Journal(str(tmp_path)), busy)


def test_nobody_tells_who_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_APPEARS", 0.1)
    old = Progress(str(tmp_path))
    old.begin(UUID, "op", **GUEST)
    old.end({"result": {}})
    busy = journal.Busy("Another run is moving the guest", "it holds a lock", "Wait for its end.")
    with pytest.raises(journal.Busy):
        Progress(str(tmp_path)).attend(UUID, "op", journal.Journal(str(tmp_path)), busy)


def test_what_was_suspended_is_known_by_its_move(tmp_path):
    told = Progress(str(tmp_path))
    assert not told.suspended(UUID, "op")
    told.suspend(UUID, "op")
    assert told.suspended(UUID, "op") and not told.suspended(UUID, "other")
    told.unsuspend(UUID)
    told.unsuspend(UUID)
    assert not told.suspended(UUID, "op")


def asked(**more):
    return {"name": "web", "uuid": None, "_detach": False, **more}


def instead(monkeypatch, body):
    monkeypatch.setattr(unit, "move", body)
    monkeypatch.setattr(unit, "_SYSTEMD", "/nowhere")


def test_check_mode_starts_nothing(monkeypatch):
    instead(monkeypatch, lambda params, check_mode: {"check": check_mode, "pid": os.getpid()})
    assert unit.apart(asked(), True) == {"check": True, "pid": os.getpid()}


def test_the_result_comes_from_another_process_and_session(monkeypatch):
    def body(params, check_mode, told):
        return {"pid": os.getpid(), "session": os.getsid(0), "name": params["name"]}

    instead(monkeypatch, body)
    result = unit.apart(asked(), False)
    assert result["name"] == "web" and result["pid"] == result["session"] != os.getpid()


def test_its_error_is_told_as_it_is(monkeypatch):
    def body(params, check_mode, told):
        raise PhyllomeError("What", "why", "Remedy.", blockers=[{"code": "x"}])

    instead(monkeypatch, body)
    with pytest.raises(PhyllomeError, match=r"^What: why\. Remedy\.$") as caught:
        unit.apart(asked(), False)
    assert caught.value.facts == {"blockers": [{"code": "x"}]}


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch):
    instead(monkeypatch, lambda *given: os.environ["PHYLLOME_NOTHING"])
    with pytest.raises(RuntimeError, match="KeyError: 'PHYLLOME_NOTHING'"):
        unit.apart(asked(), False)


def test_a_process_that_was_killed_says_nothing(monkeypatch):
    instead(monkeypatch, lambda *given: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(PhyllomeError, match="moved the guest web was killed: .* Run it again"):
        unit.apart(asked(), False)


def test_who_asks_for_it_is_let_go_as_soon_as_something_moves(monkeypatch, tmp_path):
    def body(params, check_mode, told):
        told._directory = str(tmp_path)
        told.begin(UUID, "op", **GUEST)
        signal.pause()

    instead(monkeypatch, body)
    way = unit.apart(asked(_detach=True), False)["under_way"]
    assert json.loads((tmp_path / f"{UUID}.progress").read_text())["pid"] == way["pid"]
    assert way["progress"] == str(tmp_path / f"{UUID}.progress")
    os.kill(way["pid"], signal.SIGKILL)
    os.waitpid(way["pid"], 0)


def test_where_systemd_does_not_take_it_the_move_goes_on_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(unit, "_SYSTEMD", str(tmp_path))

    def refuse(argv, timeout):
        assert argv[:2] == ["busctl", "call"] and unit.name("op") in argv and str(os.getpid()) in argv
        raise PhyllomeError("busctl failed", "no bus", "")

    monkeypatch.setattr(unit.program, "run", refuse)
    assert unit._enter("op", "moving web") == [
        "The move has no unit of its own, so what ends the session that began it ends it too: no bus"
    ]


def test_a_move_that_crashes_leaves_word_of_it(tmp_path):
    """Whoever follows or waits for it has nothing else to read."""
    host = types.SimpleNamespace(host="alpha")
    view = types.SimpleNamespace(uuid=UUID, op_id="op", name="web", source=host, destination=host)
    moving = object.__new__(move._Run)

    def moved():
        raise KeyError("a fault of ours")

    vars(moving).update(_view=view, _progress=Progress(str(tmp_path)), _moved=moved)
    with pytest.raises(KeyError):
        moving._alone()
    (file,) = tmp_path.glob("*.progress")
    assert "a fault of ours" in json.loads(file.read_text())["answer"]["crash"]
