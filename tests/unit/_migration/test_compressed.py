# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks whose data is compressed, as in most images of distributions: QEMU writes it out when it copies them."""

from __future__ import annotations

import os
import shutil
import subprocess
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import storage
from ansible_collections.phyllome.virt.plugins.module_utils._migration import apply, plan
from ansible_collections.phyllome.virt.tests.unit._migration.test_cold import Play, one_after_another
from ansible_collections.phyllome.virt.tests.unit._migration.world import Pool, Volume

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img makes the images")
MIB = 1024**2
WRITTEN = 8 * MIB
"""Bytes of a disk that can be compressed to almost nothing."""


class Compressed(Play):
    """The guest's disk is a compressed image; it runs, and its disks are all that there is of it."""

    def __init__(self, folder: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, monkeypatch)
        self.raw, self.image = self.disk, self.world.images / "web.qcow2"
        self.raw.write_bytes((b"word" * 16000 + b"and another") * (WRITTEN // 64011))
        self.convert("-c", str(self.raw), str(self.image))
        self.raw.unlink()
        disk = self.domain.root.find("devices/disk")
        disk.find("driver").set("type", "qcow2")
        disk.find("source").set("file", str(self.image))
        self.domain.running, self.domain.snapshots = True, []

    def convert(self, *what: str) -> None:
        subprocess.run(["qemu-img", "convert", "-q", "-O", "qcow2", *what], check=True)

    def took(self) -> int:
        return os.stat(self.image).st_blocks * 512

    def space(self, **more: t.Any) -> str:
        """What is said of the space at the destination, which has none."""
        with pytest.raises(PhyllomeError) as error:
            self.look(**more)
        (said,) = [one["what"] for one in error.value.facts["blockers"] if one["code"] == "space"]
        return str(said)


@pytest.fixture
def play(tmp_path):
    for new in one_after_another(tmp_path, Compressed):
        yield new()


def copied(play: Compressed, **more: t.Any) -> str:
    plan_ = play.look(**more)["plan"]
    (copy,) = [one for one in plan_ if one["path"] == "disks.vda"]
    return str(copy["why"])


def test_a_live_copy_is_expected_to_take_what_was_compressed(play, monkeypatch):
    assert play.took() < WRITTEN // 8
    assert copied(play, mode="live").startswith("at most 8 MiB of")
    monkeypatch.setattr(Pool, "info", lambda self: [0, 0, 0, plan.grown(play.took()) + MIB])
    assert play.space(mode="live").endswith("the disks need 25 MiB")  # with the slack
    assert play.look(mode="warm")["blockers"] == []  # which copies the file as it is


def test_so_is_one_of_an_overlay_that_becomes_one_file(play, monkeypatch):
    base = play.world.images / "base.qcow2"
    play.image.rename(base)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(play.image)]
    subprocess.run(argv, check=True)
    assert copied(play, mode="live", chain="flatten").startswith("at most 8 MiB of")
    monkeypatch.setattr(Pool, "info", lambda self: [0, 0, 0, plan.grown(play.took()) + MIB])
    for mode in ("live", "cold"):
        assert "the disks need 25 MiB" in play.space(mode=mode, chain="flatten")
    monkeypatch.setattr(storage, "free", lambda folder: WRITTEN // 2)
    with pytest.raises(PhyllomeError, match="of space left for flat copies"):
        play.look(mode="cold", chain="flatten")


def test_an_image_that_cannot_be_read_stands_against_it(play):
    with play.image.open("r+b") as file:
        file.seek(0x28)  # l1_table_offset
        file.write(b"\xff" * 8)
    with pytest.raises(PhyllomeError, match="disk vda cannot be read: .*Repair it: qemu-img check"):
        play.look(mode="live")


@pytest.mark.parametrize(("more", "wrong"), [(0, 0), (17 * MIB, 1)])
def test_only_what_takes_more_than_that_has_grown(play, monkeypatch, more, wrong):
    written = play.world.images / "written.qcow2"
    play.convert(str(play.image), str(written))
    arrived = [0, WRITTEN, os.stat(written).st_blocks * 512 + more]
    told: list[apply.Told] = []

    def migrate(self: apply.Mover, view: t.Any, domain: t.Any, guest: t.Any, running: bool) -> None:
        monkeypatch.setattr(Volume, "info", lambda self: arrived)
        self._count_disks(guest, self.pair.journal.load(view.op_id))
        told.append(self.told)
        raise PhyllomeError("That was all", "the rest is libvirt's", "")

    monkeypatch.setattr(apply.Mover, "migrate", migrate)
    with pytest.raises(PhyllomeError, match="That was all"):
        play.run(mode="live")
    (disk,) = told[0].disks
    assert (disk["allocated_before"], disk["allocated_after"]) == (play.took(), arrived[2])
    assert len(told[0].wrong) == wrong and all("disk vda grew from" in said for said in told[0].wrong)
