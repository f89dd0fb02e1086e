# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads that never come back; a named pipe that nobody writes to takes the place of a device that is locked for good."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import apart
from ansible_collections.phyllome.virt.plugins.module_utils._core.apart import Apart, Job, Silent

Outcome = bytes | int


@pytest.fixture
def blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "FLAGS", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[list[int]]:
    """Processes that were left behind; here they can be ended, and are."""
    pids: list[int] = []

    def leave(pid: int, ended: bool) -> None:
        if ended:
            os.waitpid(pid, 0)
        else:
            pids.append(pid)

    monkeypatch.setattr(apart, "_leave", leave)
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def jobs(folder: pathlib.Path, *names: str) -> list[Job]:
    return [Job(name.partition("/")[0], str(folder / name), 4096) for name in names]


def outcome(reader: Apart, job: Job) -> Outcome:
    """What was read, or the errno."""
    try:
        return reader.ask(job)
    except OSError as exc:
        return exc.errno or 0


def write(folder: pathlib.Path, **files: bytes) -> None:
    for name, content in files.items():
        path = folder / name[:1] / name[1:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("ahead", [True, False])
def test_all_is_read_and_refused_as_it_is_here(tmp_path: pathlib.Path, ahead: bool) -> None:
    write(tmp_path, ax=b"one\n", ay=b"", az=b"x" * 4097, bx=b"\0\xff" * 2000)
    wanted = [*jobs(tmp_path, "a/x", "a/y", "a/z", "a/missing", "b/x", "b"), Job("c", str(tmp_path / "a/x"), None)]
    reader = Apart()
    if ahead:
        reader.begin(wanted)
    assert [outcome(reader, job) for job in wanted] == [
        b"one\n",
        b"",
        errno.EFBIG,
        errno.ENOENT,
        b"\0\xff" * 2000,
        errno.EISDIR,
        b"",
    ]
    assert [outcome(reader, job) for job in reversed(wanted[:2])] == [b"", b"one\n"]


def test_more_than_a_pipe_holds(tmp_path: pathlib.Path) -> None:
    names = [f"a/{number}" for number in range(200)]
    (tmp_path / "a").mkdir()
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number]) * 4096)
    reader = Apart()
    reader.begin(jobs(tmp_path, *names))
    assert [reader.ask(job)[:1] for job in jobs(tmp_path, *names)] == [bytes([number]) for number in range(200)]


def test_what_was_asked_for_ahead_is_done_by_one_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ax=b"1", ay=b"2", bx=b"3")
    forks, fork = [], os.fork

    def counted() -> int:
        forks.append(os.getpid())
        return fork()

    monkeypatch.setattr(apart.os, "fork", counted)
    reader = Apart()
    wanted = jobs(tmp_path, "a/x", "a/y", "b/x")
    reader.begin(wanted)
    assert [reader.ask(job) for job in (wanted[1], wanted[0], wanted[2])] == [b"2", b"1", b"3"]
    assert len(forks) == 1


def test_a_place_that_does_not_answer_is_left_alone_and_the_others_are_read(
    tmp_path: pathlib.Path, blocking: None, left: list[int]
) -> None:
    write(tmp_path, ax=b"1", by=b"2", cx=b"3")
    os.mkfifo(tmp_path / "b" / "x")
    wanted = jobs(tmp_path, "a/x", "b/x", "b/y", "c/x")
    reader = Apart(0.1)
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        reader.begin(wanted)
        assert [outcome(reader, job) for job in wanted] == [b"1", errno.ETIMEDOUT, errno.ETIMEDOUT, b"3"]
    assert len(left) == 1
    held = {os.readlink(f"/proc/{left[0]}/fd/{name}") for name in os.listdir(f"/proc/{left[0]}/fd")}
    assert {name for name in held if not name.startswith("pipe:")} == {"/dev/null"}  # nobody waits for its output
    assert os.getsid(left[0]) == left[0]
    assert reader.silent == {"b"}
    with pytest.raises(Silent, match="the kernel does not answer"):
        reader.ask(jobs(tmp_path, "b/y")[0])
    assert len(left) == 1


def test_every_place_that_does_not_answer_costs_less(
    tmp_path: pathlib.Path, blocking: None, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(*arguments: t.Any) -> tuple[list[int], list[int], list[int]]:
        waits.append(arguments[-1])
        return [], [], []

    monkeypatch.setattr(apart.select, "select", wait)
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "x")
    wanted = jobs(tmp_path, *(f"{name}/x" for name in "abcdefgh"))
    reader = Apart(32)
    monkeypatch.setattr(apart, "state", lambda dummy: "D")
    reader.begin(wanted)
    assert {outcome(reader, job) for job in wanted} == {errno.ETIMEDOUT}
    assert waits == [32, 16, 8, 4, 2, 1, 1, 1]


def test_who_runs_gets_more_time(tmp_path: pathlib.Path, blocking: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "x")

    def state(dummy: int) -> str:
        (tmp_path / "a" / "x").write_bytes(b"late")
        return "R"

    monkeypatch.setattr(apart, "state", state)
    assert Apart(0.05).ask(jobs(tmp_path, "a/x")[0]) == b"late"


def test_who_runs_for_ever_is_left_all_the_same(
    tmp_path: pathlib.Path, blocking: None, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "x")
    monkeypatch.setattr(apart, "state", lambda dummy: "R")
    assert outcome(Apart(0.01), jobs(tmp_path, "a/x")[0]) == errno.ETIMEDOUT


def test_the_state_of_a_process() -> None:
    assert apart.state(os.getpid()) == "R"
    assert apart.state(0) == ""


def test_a_read_that_ends_its_process_costs_its_place_only(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the kernel stumbles over it."""
    write(tmp_path, ax=b"1", bx=b"2", cx=b"3")
    content = apart.content

    def stumble(path: str, limit: int) -> bytes:
        if path.endswith("b/x"):
            os.kill(os.getpid(), signal.SIGKILL)
        return content(path, limit)

    monkeypatch.setattr(apart, "content", stumble)
    reader = Apart()
    wanted = jobs(tmp_path, "a/x", "b/x", "c/x")
    reader.begin(wanted)
    assert [outcome(reader, job) for job in wanted] == [b"1", errno.ETIMEDOUT, b"3"]


def test_no_process_can_be_started(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    write(tmp_path, ax=b"1", bx=b"2")
    monkeypatch.setattr(apart.os, "fork", fork)
    reader = Apart()
    wanted = jobs(tmp_path, "a/x", "b/x")
    reader.begin(wanted)
    assert [outcome(reader, job) for job in wanted] == [errno.EAGAIN, errno.EAGAIN]


def test_what_is_left_behind_is_ended_if_it_can_be(
    tmp_path: pathlib.Path, blocking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "x")
    kill = os.kill
    ended: list[tuple[int, int]] = []

    def killed(pid: int, number: int) -> None:
        ended.append((pid, number))
        kill(pid, number)

    monkeypatch.setattr(apart.os, "kill", killed)
    monkeypatch.setattr(apart.os, "waitpid", lambda pid, flags: ended.append((pid, flags)))
    assert outcome(Apart(0.05), jobs(tmp_path, "a/x")[0]) == errno.ETIMEDOUT
    monkeypatch.undo()
    pid = ended[0][0]
    assert ended == [(pid, signal.SIGKILL), (pid, os.WNOHANG)]
    os.waitpid(pid, 0)
