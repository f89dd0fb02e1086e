# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ssh that carries a move."""

from __future__ import annotations

import os
import stat

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import tunnel

OP = "0f1f6c0b-50a2-5a63-9f6f-8c3ad0f34f40"


def test_sockets_of_a_move_have_short_names():
    paths = tunnel.sockets(OP)
    assert paths == tunnel.Sockets(
        "/var/lib/libvirt/qemu/phyllome-0f1f6c0b-50a2-memory", "/var/lib/libvirt/qemu/phyllome-0f1f6c0b-50a2-disks"
    )
    assert max(map(len, (paths.memory, paths.disks))) < 108


def test_the_command():
    argv = tunnel.command("qemu+ssh://ad%20min@beta:2222/system?keyfile=/root/k&no_tty=1", tunnel.Sockets("/m", "/d"))
    assert argv[-9:] == ["-i", "/root/k", "-p", "2222", "-l", "ad min", "--", "beta", "cat"]
    assert argv[-13:-9] == ["-L", "/m:/m", "-L", "/d:/d"]
    assert "BatchMode=yes" in argv and not any("StrictHostKeyChecking" in one for one in argv)
    assert tunnel.command("qemu+ssh://beta/system", tunnel.Sockets("/m", "/d"))[-3:] == ["--", "beta", "cat"]


def program(folder, monkeypatch, text):
    path = folder / "ssh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_sockets_belong_to_qemu_and_go_with_the_move(tmp_path, monkeypatch):
    paths = tunnel.Sockets(str(tmp_path / "m"), str(tmp_path / "d"))
    stale = tmp_path / "m"
    stale.write_text("of a run that was killed")
    program(tmp_path, monkeypatch, f"umask 177; : > {paths.memory}; : > {paths.disks}; exec cat")
    with tunnel.through("qemu+ssh://beta/system", paths, os.getuid()):
        assert stale.read_text() == "" and stat.S_IMODE(stale.stat().st_mode) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ssh"]


def test_what_ssh_says_is_said(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "echo 'Host key verification failed.' >&2; exit 255")
    paths = tunnel.Sockets(str(tmp_path / "m"), str(tmp_path / "d"))
    with (
        pytest.raises(PhyllomeError, match="Host key verification failed.*ssh there has to work without a question"),
        tunnel.through("qemu+ssh://beta/system", paths, None),
    ):
        pytest.fail("it was not refused")


def test_ssh_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    paths = tunnel.Sockets(str(tmp_path / "m"), str(tmp_path / "d"))
    with (
        pytest.raises(PhyllomeError, match="No such file"),
        tunnel.through("qemu+ssh://beta/system", paths, None),
    ):
        pytest.fail("it was not refused")
