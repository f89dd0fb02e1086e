# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines about a move, and what becomes of its answer, on the controller."""

from __future__ import annotations

import multiprocessing
import signal
import time
import unittest.mock

import pytest

from ansible_collections.phyllome.virt.plugins.action import vm_migrate

TOLD = {"name": "web", "source": "alpha", "destination": "beta", "phase": "copying memory", "answer": None}
FIGURES = {"percent": 43, "mib_s": 112.0, "remaining_mib": 80.5, "dirty_mib_s": 8.1, "downtime_ms": 35}


def test_a_line_says_what_is_known():
    assert vm_migrate.line(TOLD) == "web: alpha -> beta, copying memory"
    assert vm_migrate.line({**TOLD, **FIGURES, "slowed_percent": 20}) == (
        "web: alpha -> beta, copying memory, 43 %, 112.0 MiB/s, 80.5 MiB left, guest writes 8.1 MiB/s, "
        "slowed down by 20 %, downtime about 35 ms"
    )


@pytest.mark.parametrize(
    ("told", "before", "seconds", "news"),
    [
        (TOLD, None, 0, True),
        (TOLD, TOLD, 3, False),
        (TOLD, TOLD, 10, True),
        ({**TOLD, "phase": "finishing"}, TOLD, 0, True),
        ({**TOLD, "percent": 52}, {**TOLD, "percent": 43}, 2, False),
        ({**TOLD, "percent": 53}, {**TOLD, "percent": 43}, 2, True),
    ],
)
def test_what_is_worth_a_line(told, before, seconds, news):
    assert vm_migrate.is_news(told, before, seconds) is news


class Host:
    """A host that answers from a list, and the display of a controller."""

    def __init__(self, *answers):
        self.answers, self.asked, self.lines = list(answers), [], []

    def display(self, text, stderr):
        assert stderr
        self.lines.append(text)

    def reset(self):
        self.lines.append("reset")

    def ask(self, command, sudoable):
        assert sudoable
        self.asked.append(command)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"stdout": answer}


def follow(host):
    plugin = vm_migrate.ActionModule.__new__(vm_migrate.ActionModule)
    vars(plugin).update(_display=host, _connection=host, _low_level_execute_command=host.ask)
    return plugin._follow(WAY)


WAY = {"pid": 77, "progress": "/run/phyllome/a b.progress"}


def test_a_move_is_followed_to_its_end():
    host = Host(
        '124\n{"name": "web", "source": "alpha", "destination": "beta", "phase": "copying disks", "percent": 3}',
        '124\n{"name": "web", "source": "alpha", "destination": "beta", "phase": "copying disks", "percent": 4}',
        '0\n{"answer": {"result": {"changed": true, "warnings": ["w"]}}}\n',
    )
    assert follow(host) == {"changed": True, "warnings": ["w"]}
    assert host.lines == ["web: alpha -> beta, copying disks, 3 %"]
    assert "--pid=77 " in host.asked[0] and host.asked[0].endswith("cat '/run/phyllome/a b.progress'")


def test_a_quick_move_is_silent():
    host = Host('0\n{"answer": {"error": {"facts": {"phase": "blocked"}}, "msg": "No."}}')
    assert follow(host) == {"failed": True, "msg": "No.", "phase": "blocked"}
    assert host.lines == []


@pytest.mark.parametrize("text", ['0\n{"answer": null}', "0\n", "1\ncat: no such file", ""])
def test_a_process_without_an_answer_was_killed(text):
    result = follow(Host(text))
    assert result["failed"] and "was killed" in result["msg"] and "Run it again" in result["msg"]


def test_a_process_that_crashed_says_where():
    result = follow(Host('0\n{"answer": {"crash": "Traceback\\nKeyError: 1"}}'))
    assert result["failed"] and "KeyError: 1" in result["exception"] and "Run it again" in result["msg"]
    assert "KeyError: 1" in result["msg"] and "killed" not in result["msg"]


def test_a_lost_connection_does_not_end_it(monkeypatch):
    monkeypatch.setattr(vm_migrate, "WAIT", 0)
    lost = vm_migrate.AnsibleConnectionFailure("gone")
    host = Host(lost, '0\n{"answer": {"result": {"changed": true}}}')
    assert follow(host) == {"changed": True}
    assert host.lines == ["The host does not answer; the move goes on without us.", "reset"]
    monkeypatch.setattr(vm_migrate, "PATIENCE", -1)
    with pytest.raises(vm_migrate.AnsibleConnectionFailure):
        follow(Host(lost))


def worker(told):
    action = vm_migrate.ActionModule.__new__(vm_migrate.ActionModule)
    told.send(vm_migrate.orphaned())
    told.recv()
    deadline = time.monotonic() + 60
    while not vm_migrate.orphaned() and time.monotonic() < deadline:
        time.sleep(0.01)
    with unittest.mock.patch.object(vm_migrate.ActionBase, "run", return_value={}):
        told.send(action.run())


def controller(told):
    multiprocessing.get_context("fork").Process(target=worker, args=(told,)).start()
    signal.pause()


def test_a_worker_whose_controller_was_killed_moves_nothing_more():
    assert not vm_migrate.orphaned()
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    parent = fork.Process(target=controller, args=(theirs,))
    parent.start()
    assert ours.poll(60) and ours.recv() is False
    parent.kill()
    parent.join()
    ours.send("go on")
    assert ours.poll(60)
    said = ours.recv()
    assert said["failed"] and "Nothing more is moved" in said["msg"]
