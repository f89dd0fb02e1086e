# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of a guest, and libvirt's decision about it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._migration import process

UUID = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def qemu(tmp_path, monkeypatch):
    """A process that waits to be killed, as libvirt's files tell of it."""
    monkeypatch.setattr(process, "RUN", str(tmp_path))
    waits = [sys.executable, "-c", "print('x', flush=True); input()", UUID]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline()
        (tmp_path / "web.pid").write_text(f"{child.pid}\n")
        yield child
        child.kill()


def test_a_process_that_lives_and_is_killed(qemu):
    seen = process.Qemu("web", UUID)
    assert seen.known and seen.pid == qemu.pid and seen.owner() == os.getuid()
    assert not seen.is_gone()
    seen.kill()
    while not seen.is_gone():  # a zombie until it is waited for
        pass
    qemu.wait()
    assert seen.is_gone() and seen.owner() is None
    seen.kill()
    seen.close()
    seen.close()


def test_the_process_of_another_guest_is_not_touched(qemu):
    other = process.Qemu("web", UUID.replace("2", "3"))
    assert not other.known and other.owner() is None
    other.kill()
    other.close()
    assert qemu.poll() is None
    assert not process.Qemu("db", UUID).known


@pytest.mark.parametrize(
    ("job", "given_up"),
    [
        ("<job type='none' async='migration out' phase='confirm3' flags='0x1106b'>", True),
        ("<job type='none' async='migration out' phase='confirm3_cancelled' flags='0x1106b'>", False),
        ("<job type='none' async='migration out' phase='perform3_done' flags='0x1106b'>", False),
        ("<metadata>phase='confirm3'</metadata>", False),
        (None, False),
    ],
)
def test_what_libvirt_has_decided(tmp_path, monkeypatch, job, given_up):
    monkeypatch.setattr(process, "RUN", str(tmp_path))
    if job is not None:
        (tmp_path / "web.xml").write_text(f"<domstatus state='paused'>\n  {job}\n</domstatus>\n")
    assert process.Qemu("web", UUID).is_given_up() is given_up


def test_what_libvirt_decides_while_it_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "RUN", str(tmp_path))
    seen = process.Qemu("web", UUID)
    for phase, given_up in (("perform3_done", False), ("perform3_done", False), ("confirm3", True)):
        (tmp_path / "new").write_text(f"<domstatus><job type='none' async='migration out' phase='{phase}'></domstatus>")
        (tmp_path / "new").rename(tmp_path / "web.xml")
        assert [seen.is_given_up(), seen.is_given_up()] == [given_up, False]  # the file that was read is not read again
