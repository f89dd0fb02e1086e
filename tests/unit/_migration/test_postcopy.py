# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A post-copy migration that was cut off: QEMU is let go on by itself, and is resumed where it does not."""

from __future__ import annotations

import dataclasses
import types
import typing as t
import unittest.mock

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import postcopy, transfer
from ansible_collections.phyllome.virt.plugins.module_utils._migration.journal import Mark, Record
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read import Sight, View
from ansible_collections.phyllome.virt.tests.unit._migration.world import Lib

MARK = Mark("op", "alpha", "beta", 0, "moving", "running", True, fenced=True)
CUT = View(
    Sight("alpha", "broken", "paused (post-copy failed)", "web", "uuid", mark=MARK),
    Sight("beta", "broken", "running (post-copy failed)", "web", "uuid", mark=MARK),
    "op", 0, "moving", Record("op", "uuid", "web", "alpha", "beta", "committed"),
)  # fmt: skip
OVER = dataclasses.replace(CUT, source=Sight("alpha", "migrated"), destination=Sight("beta", "running"))
STILL = PhyllomeError("The migration of web failed", "QEMU reports migration is still running", "Run again.")


class Play:
    """Both hosts: what libvirt says to each try, and what is seen after it."""

    def __init__(self, tries: list[PhyllomeError | None], views: list[View]) -> None:
        self.tries, self.views = list(tries), list(views)
        self.domain = unittest.mock.Mock()
        self.domain.jobStats.return_value = {"type": 2, "data_processed": 7}
        connection = types.SimpleNamespace(lookupByUUIDString=lambda uuid: self.domain)
        source = types.SimpleNamespace(name="alpha", connection=connection)
        self.pair = types.SimpleNamespace(source=source, view=lambda: self.views.pop(0) if self.views else CUT)
        self.progress = types.SimpleNamespace(say=lambda phase, **figures: None)
        self.told = types.SimpleNamespace(mode=None, stats={})
        self.switching = False
        self.committed: list[View] = []

    def commit(self, view: View, sync: bool) -> None:
        self.committed.append(view)

    def migrate(self, view: View, domain: t.Any, guest: t.Any, running: bool, resume: bool) -> None:
        assert running and resume
        failed = self.tries.pop(0) if self.tries else STILL
        if failed is not None:
            raise failed

    def recover(self, view: View = CUT) -> None:
        postcopy.recover(t.cast("t.Any", self), view)

    @property
    def given_up(self) -> int:
        return self.domain.abortJobFlags.call_count


class Monitor:
    """What the source's QEMU says."""

    status: str | None = "postcopy-paused"

    def qemuMonitorCommand(self, domain: t.Any, command: str, flags: int) -> str:
        assert command == '{"execute": "query-migrate"}' and flags == 0
        if self.status is None:
            raise Lib.libvirtError(1)
        return f'{{"return": {{"status": "{self.status}"}}}}'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Everything has been silent for long."""
    monkeypatch.setattr(virt, "libvirt", Lib())
    monkeypatch.setattr(postcopy, "_AGAIN", 0)
    monkeypatch.setattr(postcopy, "_NOTICES", -1.0)
    monkeypatch.setattr(postcopy, "_SEES", -1.0)
    monkeypatch.setattr(virt, "libvirt_qemu", Monitor())
    monkeypatch.setattr(postcopy, "read_guest", lambda *dummy, **more: None)
    monkeypatch.setattr(transfer, "settle", lambda: -1.0)


def test_it_is_resumed_and_the_source_never_takes_the_guest_back():
    play = Play([None], [])
    play.recover(dataclasses.replace(CUT, record=None))
    assert play.told.stats == {"post_copy": True, "resumed": True} and not play.given_up
    assert len(play.committed) == 1


def test_a_connection_that_brings_nothing_any_more_is_given_up_and_resumed():
    play = Play([STILL, None], [])
    play.recover()
    assert play.given_up == 1 and play.told.stats["resumed"] and not play.committed


def test_qemu_that_goes_on_by_itself_is_let_go_on(monkeypatch):
    monkeypatch.setattr(transfer, "settle", lambda: 600.0)
    play = Play([STILL, STILL], [CUT, OVER])
    play.recover()
    assert not play.given_up and play.told.stats["resumed"] and not play.domain.destroy.called


def test_what_goes_on_by_itself_is_not_told_to(monkeypatch):
    monkeypatch.setattr(transfer, "settle", lambda: 600.0)
    virt.libvirt_qemu.status = "postcopy-active"
    play = Play([], [CUT, OVER])
    migrate = unittest.mock.Mock()
    monkeypatch.setattr(play, "migrate", migrate)
    play.recover()
    assert not migrate.called and play.told.stats["resumed"]


def test_a_qemu_that_does_not_say_is_tried():
    virt.libvirt_qemu.status = None
    play = Play([None], [])
    play.recover()
    assert play.told.stats["resumed"]


def test_an_end_that_libvirt_has_not_seen_is_an_error_with_the_way_out():
    virt.libvirt_qemu.status = "completed"
    with pytest.raises(PhyllomeError, match="libvirt on alpha has not seen that") as error:
        Play([], []).recover()
    assert "systemctl restart libvirtd" in error.value.remedy


def test_what_died_meanwhile_was_not_resumed(monkeypatch):
    monkeypatch.setattr(transfer, "settle", lambda: 600.0)
    play = Play([STILL], [dataclasses.replace(CUT, destination=Sight("beta", "off"))])
    play.recover()
    assert not play.told.stats


def test_what_cannot_be_resumed_is_left_as_it_is():
    play = Play([], [])
    with pytest.raises(PhyllomeError, match="cannot be resumed: QEMU reports migration is still running") as error:
        play.recover()
    assert "neither start it nor stop it on either host. Remove the cause and run again." in error.value.remedy
    assert "virsh destroy web on beta, and run again with truth: destination" in error.value.remedy
    assert play.given_up == 1 and not play.domain.destroy.called and not play.domain.resume.called


def test_a_copy_that_is_gone_with_its_definition():
    said = postcopy.lost(dataclasses.replace(CUT, destination=Sight("beta", "absent")))
    assert "alpha: paused (post-copy failed); beta: absent" in said.why
    assert "Its disks on beta are the right ones" in said.remedy and "make it anew there" in said.remedy
