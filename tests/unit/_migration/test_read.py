# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a domain's XML, marks and the kernel say, without libvirt."""

from __future__ import annotations

import contextlib
import dataclasses
import types

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import files, read, read_guest, read_offer
from ansible_collections.phyllome.virt.plugins.module_utils._migration.journal import (
    Journal,
    Mark,
    Record,
    op_id,
)
from ansible_collections.phyllome.virt.plugins.module_utils._migration.policy import Policy
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read_way import Way
from ansible_collections.phyllome.virt.plugins.module_utils._migration.spec import Order
from ansible_collections.phyllome.virt.tests.unit._migration.world import Lib

UUID = "22222222-2222-4222-8222-222222222222"
DOMAIN = f"""
<domain type='qemu'>
  <name>web</name><uuid>{UUID}</uuid><memory unit='KiB'>262144</memory>
  <os{{os}}><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>{{firmware}}</os>
  {{cpu}}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/web.qcow2'/><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/isos/a.iso'/><target dev='sdb'/><readonly/></disk>
    <disk type='file' device='disk'><driver type='raw'/><source file='/images/tools.img'/><target dev='vdb'/><readonly/></disk>
    <interface type='network'><source network='default' bridge='virbr0'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    {{devices}}
  </devices>
</domain>
"""


def guest(devices="", firmware="", cpu="", os=""):
    text = DOMAIN.format(devices=devices, firmware=firmware, cpu=cpu, os=os)
    return read_guest.parse_guest(xml.parse(text))


def test_what_may_stay_behind_keeps_nobody():
    optional = """<disk type='file' device='cdrom'><source file='/images/web-cloud-init-0.iso' startupPolicy='optional'/>
    <target dev='sdc'/></disk>"""
    assert guest(devices=optional).media == guest().media


def test_a_plain_guest():
    found = guest()
    assert found.disks == (read_guest.Disk("vda", "/images/web.qcow2", "qcow2", 0, 0),)
    assert found.media == ("/isos/a.iso", "/images/tools.img")
    assert (found.networks, found.bridges) == (("default",), ("br0",))
    assert (found.memory, found.machine, found.cpu) == (256 * 1024**2, "pc-q35-7.2", None)
    assert (found.nvram, found.tpm) == (None, None)


@pytest.mark.parametrize(
    ("firmware", "os", "path"),
    [
        ("<nvram template='/t.fd'>/n/web_VARS.fd</nvram>", "", "/n/web_VARS.fd"),
        ("<nvram type='file'><source file='/n/web_VARS.fd'/></nvram>", "", "/n/web_VARS.fd"),
        ("", " firmware='efi'", "/var/lib/libvirt/qemu/nvram/web_VARS.fd"),
        ("", "", None),
    ],
)
def test_nvram(firmware, os, path):
    assert guest(firmware=firmware, os=os).nvram == path


def test_what_its_memory_and_its_cpus_need_of_the_host():
    more = "<memoryBacking><hugepages><page size='2048' unit='KiB'/></hugepages></memoryBacking>"
    pins = (
        "<vcpu cpuset='0-3,^12'>2</vcpu><cputune><vcpupin vcpu='0' cpuset='4'/><emulatorpin cpuset='9,0-1'/></cputune>"
    )
    found = guest(firmware=f"</os>{more}{pins}<os>")
    assert (found.pages, found.last_cpu) == ((2048,), 9)
    assert (guest().pages, guest().last_cpu) == ((), None)


def test_firmware_details():
    found = guest(firmware="<loader>/c.fd</loader><nvram template='/t.fd' format='qcow2'>/n.fd</nvram>")
    assert (found.loader, found.nvram_template, found.nvram_format) == ("/c.fd", "/t.fd", "qcow2")


@pytest.mark.parametrize(
    ("backend", "tpm"),
    [
        ("<backend type='emulator' version='2.0'/>", f"/var/lib/libvirt/swtpm/{UUID}/tpm2"),
        ("<backend type='emulator' version='1.2'/>", f"/var/lib/libvirt/swtpm/{UUID}/tpm1.2"),
        ("<backend type='passthrough'/>", None),
        ("<backend type='emulator'><source type='dir' path='/x'/></backend>", None),
    ],
)
def test_tpm(backend, tpm):
    assert guest(devices=f"<tpm model='tpm-crb'>{backend}</tpm>").tpm == tpm


def test_what_phyllome_vm_calls_not_migratable_is_refused():
    devices = "<devices><hostdev mode='subsystem' type='usb'/><shmem name='x'/></devices>"
    root = xml.parse(f"<domain>{devices}</domain>")
    assert [code for code, *dummy in read_guest.obstacles(root, 1, 0, True)] == [
        "hostdevs",
        "shared_memory",
        "snapshots",
    ]
    assert [code for code, *dummy in read_guest.obstacles(root, 0, 1, True)] == [
        "hostdevs",
        "shared_memory",
        "checkpoints",
    ]
    # what is in the files of a guest that is off goes with them
    assert [code for code, *dummy in read_guest.obstacles(root, 2, 1, False)] == ["hostdevs"]


@pytest.mark.parametrize(
    ("cpu", "known"),
    [
        ("<cpu mode='custom'><model>qemu64</model></cpu>", True),
        ("<cpu><model>qemu64</model></cpu>", True),
        ("<cpu mode='host-passthrough'/>", False),
        ("<cpu mode='maximum'/>", False),
    ],
)
def test_only_a_named_cpu_can_be_compared(cpu, known):
    assert (guest(cpu=cpu).cpu is not None) is known


ORDER = Order(
    "web", None, "alpha", "beta", "qemu+tls://beta/system", False, "beta", None, "auto", Policy(), 0, 0, False, False, "x:///"
)  # fmt: skip
MOVING = Mark(op_id(UUID, "beta", 3), "alpha", "beta", 3, "moving", "running", True)
DONE = dataclasses.replace(MOVING, phase="done", epoch=4)
ELSEWHERE = Mark(op_id(UUID, "gamma", 3), "alpha", "gamma", 3, "moving", "running", True)
ARRIVED = Mark(op_id(UUID, "alpha", 2), "beta", "alpha", 3, "done", "running", True)
FROM_GAMMA = dataclasses.replace(MOVING, source="gamma")


def relate(tmp_path, source, destination):
    def sight(host, mark):
        if mark is Ellipsis:
            return read.Sight(host, "absent")
        return read.Sight(host, "running", "", "web", UUID, True, mark=mark)

    pair = read.Pair(ORDER, Journal(str(tmp_path)))
    return pair._relate(sight("alpha", source), sight("beta", destination))


@pytest.mark.parametrize(
    ("source", "destination", "told", "epoch"),
    [
        (None, ..., "none", 0),
        (MOVING, ..., "moving", 3),
        (ARRIVED, ..., "none", 3),
        (ELSEWHERE, ..., "other", 3),
        (MOVING, MOVING, "moving", 3),
        (MOVING, DONE, "done", 3),
        (MOVING, None, "none", 3),
        (None, MOVING, "other", 0),
        (MOVING, FROM_GAMMA, "other", 3),
        (..., MOVING, "moving", 3),
        (..., DONE, "done", 3),
        (..., None, "none", 0),
        (..., FROM_GAMMA, "other", 3),
        (..., ARRIVED, "none", 2),
        (ARRIVED, DONE, "none", 3),
    ],
)
def test_whose_move_the_marks_tell_of(tmp_path, source, destination, told, epoch):
    view = relate(tmp_path, source, destination)
    assert (view.mark, view.epoch) == (told, epoch)


def test_the_record_of_the_move_is_found(tmp_path):
    record = Record(MOVING.op_id, UUID, "web", "alpha", "beta", "committed")
    Journal(str(tmp_path)).save(record)
    view = relate(tmp_path, ..., MOVING)
    assert view.record == record
    assert view.committed
    Journal(str(tmp_path)).save(dataclasses.replace(record, phase="done"))
    assert not relate(tmp_path, ..., DONE).committed


@pytest.mark.parametrize(
    ("log", "migrated"),
    [
        ("starting up libvirt version: 9\nx: shutting down, reason=migrated\n", True),
        ("x: shutting down, reason=destroyed\nx: shutting down, reason=migrated\n", True),
        ("x: shutting down, reason=migrated\nx: shutting down, reason=crashed\n", False),
        ("x: shutting down, reason=migrated\nx: starting up libvirt version: 9\n", False),
        ("", False),
        (None, False),
    ],
)
def test_libvirt_s_log_remembers_why_a_guest_stopped(tmp_path, monkeypatch, log, migrated):
    monkeypatch.setattr(read, "LOGS", str(tmp_path))
    if log is not None:
        (tmp_path / "web.log").write_text(log)
    assert read._log_says_migrated("web") is migrated


def test_digest(tmp_path):
    assert files.digest(str(tmp_path / "none")) is None
    (tmp_path / "empty").write_bytes(b"")
    assert files.digest(str(tmp_path / "empty")).startswith("e3b0c44298fc1c14")


NO_FILE: dict[str, bytes] = {"swappiness": b"60"}


@pytest.mark.parametrize(
    ("qemu", "libvirt", "settings", "allowed"),
    [
        (7002000, 9000000, {"unprivileged_userfaultfd": b"0\n"}, False),
        (7002000, 9000000, {"unprivileged_userfaultfd": b"1\n"}, True),
        (7002000, 9000000, NO_FILE, True),
        (7002000, 9000000, {}, None),
        (8000000, 9000000, {"unprivileged_userfaultfd": b"0\n"}, False),
        (7002000, 10001000, {"unprivileged_userfaultfd": b"0\n"}, False),
        (8000000, 10001000, {"unprivileged_userfaultfd": b"0\n"}, True),
    ],
)
def test_whether_qemu_may_handle_page_faults(monkeypatch, qemu, libvirt, settings, allowed):
    @contextlib.contextmanager
    def folder(dummy, path, op):
        assert (path, op) == ("/proc/sys/vm", UUID)
        yield settings

    monkeypatch.setattr(read_offer.files, "folder", folder)
    monkeypatch.setattr(read_offer.files, "read", lambda dummy, volume: volume)
    monkeypatch.setattr(read_offer.virt, "libvirt", Lib())
    between = Way((7002000, qemu), (9000000, libvirt), "", "")
    assert read_offer._faults(None, UUID, between) is allowed


@pytest.mark.parametrize(
    ("state", "reason", "meant"),
    [
        ("RUNNING", "VIR_DOMAIN_RUNNING_BOOTED", "running"),
        ("RUNNING", "VIR_DOMAIN_RUNNING_POSTCOPY", "postcopy"),
        ("RUNNING", "VIR_DOMAIN_RUNNING_POSTCOPY_FAILED", "broken"),
        ("PAUSED", "VIR_DOMAIN_PAUSED_USER", "paused"),
        ("PAUSED", "VIR_DOMAIN_PAUSED_POSTCOPY", "postcopy"),
        ("PAUSED", "VIR_DOMAIN_PAUSED_POSTCOPY_FAILED", "broken"),
    ],
)
def test_states_of_post_copy(monkeypatch, state, reason, meant):
    lib = Lib()
    monkeypatch.setattr(read.virt, "libvirt", lib)
    codes = [getattr(lib, f"VIR_DOMAIN_{state}"), getattr(lib, reason)]
    assert read._state(types.SimpleNamespace(state=lambda: codes), True)[0] == meant


def lost(monkeypatch, ends, silent=40.0):
    """A side whose daemon goes away while it is asked, which is known after ``silent`` seconds, and is back at ``ends``."""
    now = [0.0]

    @contextlib.contextmanager
    def session(uri, keep_alive):
        if 0 < now[0] < ends:
            raise PhyllomeError("Cannot connect", "refused", "Is it there?")
        opened = now[0]
        yield types.SimpleNamespace(isAlive=lambda: int(now[0] < silent or opened >= ends))

    def question(connection):
        if now[0] >= ends:
            return "answer"
        now[0] = silent
        raise Lib.libvirtError(1, "end of file")

    monkeypatch.setattr(read.virt, "libvirt", Lib())
    monkeypatch.setattr(read.virt, "session", session)
    monkeypatch.setattr(read.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(read.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return read.Side("qemu:///system", "beta"), question


def test_a_daemon_is_waited_for_from_when_it_is_known_to_be_gone(monkeypatch):
    side, question = lost(monkeypatch, ends=60.0)
    assert side.ask(question) == "answer"


@pytest.mark.parametrize("patience", [0.0, read.PATIENCE])
def test_it_is_not_waited_for_for_ever(monkeypatch, patience):
    side, question = lost(monkeypatch, ends=1000.0)
    with pytest.raises(PhyllomeError if patience else Lib.libvirtError):
        side.ask(question, patience)
    assert patience <= read.time.monotonic() - 40 < patience + 1


def test_what_it_answers_at_once_is_not_asked_again(monkeypatch):
    side, dummy = lost(monkeypatch, ends=0.0)

    def question(connection):
        raise Lib.libvirtError(1, "no such guest")

    with pytest.raises(Lib.libvirtError):
        side.ask(question)
    assert read.time.monotonic() == 0
