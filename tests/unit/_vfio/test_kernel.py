# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes that may never come back; a named pipe that nobody reads from takes the place of a driver that does not let go."""

from __future__ import annotations

import errno
import os
import pathlib
import signal

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._vfio.kernel import Hung, Kernel


@pytest.fixture
def kernel(tmp_path: pathlib.Path) -> Kernel:
    found = Kernel()
    found.root = str(tmp_path)
    return found


def test_a_write_that_does_not_come_back_is_left_behind(kernel: Kernel, tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "unbind")
    with (tmp_path / "ours").open("w") as ours, pytest.raises(Hung) as hung:
        os.set_inheritable(ours.fileno(), True)
        kernel.patiently("unbind", "0000:01:00.0", 1)
    pid = hung.value.pid
    try:
        assert f"process {pid} did not come back" in str(hung.value)
        assert "state: " in str(hung.value)
        held = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
        assert {name for name in held if not name.startswith("pipe:")} == {"/dev/null"}  # nobody waits for its output
        assert os.getsid(pid) == pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_write_that_comes_back(kernel: Kernel, tmp_path: pathlib.Path) -> None:
    (tmp_path / "unbind").write_text("")
    kernel.patiently("unbind", "0000:01:00.0", 30)
    assert (tmp_path / "unbind").read_text() == "0000:01:00.0"


def test_a_write_that_is_refused(kernel: Kernel, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="Is a directory") as refused:
        kernel.patiently("", "0000:01:00.0", 30)
    assert refused.value.errno == errno.EISDIR
