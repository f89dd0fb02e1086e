# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A captured machine gives the same facts, and gives nothing else away."""

from __future__ import annotations

import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import apart
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._iommu import capture as capturing
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.capture import capture, save
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

SCRIPT = pathlib.Path(__file__).parents[3] / "scripts" / "capture.py"
MAC = "3c:ec:ef:12:34:56"
SECRETS = {
    "environment": "TOKEN=hunter2",
    "password": "grub.pbkdf2.sha512.10000.ABCDEF",
    "log": "usb 1-2: SerialNumber: 0123456789",
    "server": "nas.example.com",
    "serial": "S5GXNX0T123456A",
    "mac": MAC,
    "interface": "enx3cecef123456",
    "address": "3eeceffffe123456",
    "host": "zaphod",
    "file": "/home/zaphod/diary.txt",
    "disk": "WDC_WD40EFRX-68WT0N0_WD-WCC4E",
    "command line": "rd.luks.uuid=luks-5",
    "registers": "c0ffee00",
}


def replay(tmp_path: pathlib.Path, root: str) -> dict:
    return gather(capture(root)[0].write(str(tmp_path / "again")))


def told() -> machines.Machine:
    """A machine that has all of SECRETS in the files that are read."""
    m = machines.server()
    m.file("proc/sys/kernel/hostname", "zaphod.example.org\n")
    m.file("proc/4242/environ", f"{SECRETS['environment']}\0SSH_CONNECTION=fe80::3eec:efff:fe12:3456 5 10.0.0.1 22\0")
    m.more(
        "proc/net/ipv6_route",
        f"fe80000000000000{SECRETS['address']} 80 {'0' * 32} 00 {'0' * 32} 0 1 0 1 {SECRETS['interface']}\n",
    )
    m.more("proc/4242/mountinfo", f"31 1 0:55 /x /srv rw shared:2 - nfs4 {SECRETS['server']}:/srv rw,addr=1\n")
    m.more("dev/kmsg", f"6,1,2,-;{SECRETS['log']}\n6,2,3,-;DMAR: host {MAC}\n")
    m.file(
        "boot/grub2/grub.cfg",
        f"password_pbkdf2 root {SECRETS['password']}\n linux /vmlinuz {SECRETS['command line']} iommu=pt\n",
    )
    m.file("proc/cmdline", f"BOOT_IMAGE=/vmlinuz {SECRETS['command line']} intel_iommu=on\n")
    m.more("run/udev/data/b259:0", f"E:ID_SERIAL={SECRETS['disk']}\n")
    m.interface(SECRETS["interface"], "0000:18:00.1")
    m.file("sys/devices/virtual/block/dm-0/dm/name", "vg_zaphod-root\n")
    m.file(
        "proc/4242/mountinfo",
        m.files["proc/4242/mountinfo"].replace(b"/dev/mapper/vg-root", b"/dev/mapper/vg_zaphod-root"),
    )
    m.process(900, "tail", [SECRETS["file"], "/dev/mapper/vg_zaphod-root"])
    for number, address in enumerate(("0000:3b:00.0", "0000:3c:00.0")):  # two controllers of one disk
        m.file(f"{m.path_of(address)}/nvme/nvme{number}/serial", f"{SECRETS['serial']}   \n")
    m.acs("0000:17:00.0", 0x1D)
    config = bytearray(m.files[f"{m.path_of('0000:17:00.0')}/config"])
    config[0x104:0x108] = bytes.fromhex(SECRETS["registers"])
    m.file(f"{m.path_of('0000:17:00.0')}/config", bytes(config))
    return m  # fmt: skip


@pytest.mark.parametrize("name", machines.CAPTURES)
def test_replay(tmp_path, name):
    root = machines.CAPTURES[name]().write(tmp_path / "m")
    taken, wanted = capture(root)
    assert taken.replays
    assert gather(taken.write(str(tmp_path / "again"))) == wanted
    facts = gather(root)
    for one in (facts, wanted):  # what is replaced, and nothing else, is different
        for device in one["devices"]:
            device["identity"]["key"] = device["identity"]["serial"] = None
    assert facts == wanted


def test_a_machine_without_serial_numbers_has_exactly_its_facts(tmp_path):
    root = machines.laptop().write(tmp_path / "m")
    assert replay(tmp_path, root) == gather(root)


def test_a_capture_of_a_capture_is_the_same(tmp_path):
    first = capture(told().write(tmp_path / "m"))[0]
    second = capture(first.write(str(tmp_path / "again")))[0]
    assert (second.files, second.links, second.unread) == (first.files, first.links, first.unread)
    assert first.replays and second.replays


def test_secrets_stay_where_they_are(tmp_path):
    root = told().write(tmp_path / "m")
    before = "\n".join(
        [content.hex() + content.decode("latin-1") for content in told().files.values()]
        + [*told().links, *told().links.values()]
    )
    assert [name for name, secret in SECRETS.items() if secret not in before] == []
    taken = capture(root)[0]
    assert taken.replays
    found = []
    with tarfile.open(fileobj=io.BytesIO(taken.archive())) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            content = file.read() if file else b""
            found.append(f"{member.name} {member.linkname} {content.hex()} {content.decode('latin-1')}")
    text = "\n".join(found)
    assert [name for name, secret in SECRETS.items() if secret in text] == []


def test_the_same_is_replaced_by_the_same(tmp_path):
    again = replay(tmp_path, told().write(tmp_path / "m"))
    serials = {device["identity"]["serial"] for device in again["devices"] if device["class_name"] == "nvme"}
    assert serials == {"SERIAL-1"}
    nic = next(device for device in again["devices"] if device["address"] == "0000:18:00.1")
    assert any("enx020000000001" in via for hazard in nic["hazards"] for via in hazard["via"])
    assert any(
        "fe80::ff:fe00:1" in via for one in again["devices"] for hazard in one["hazards"] for via in hazard["via"]
    )
    assert any("/dev/mapper/vg_host-root opened by tail" in via for one in again["devices"] for hazard in one["hazards"] for via in hazard["via"])  # fmt: skip


def test_only_what_was_looked_at_is_in_it(tmp_path):
    machine = machines.laptop()
    for path in ("sys/class/leds/x", "etc/shadow", "proc/kallsyms", f"{machine.path_of('0000:00:02.0')}/rom"):
        machine.file(path, "nobody asked\n")
    taken = capture(machine.write(tmp_path / "m"))[0]
    assert not any(path.endswith(("leds/x", "shadow", "kallsyms", "rom")) for path in taken.paths())
    assert {path for path, content in taken.files.items() if content} <= {*machine.files}


def test_what_could_not_be_read_cannot_be_read_again(tmp_path):
    machine = machines.laptop()
    machine.remove("proc/consoles")
    machine.directories |= {"proc/consoles", "proc/77/fd"}
    machine.remove("proc/cmdline")
    machine.links["proc/cmdline"] = "cmdline"
    root = machine.write(tmp_path / "m")
    facts = gather(root)
    assert {one["path"] for one in facts["unread"]} >= {"/proc/consoles", "/proc/cmdline"}
    assert replay(tmp_path, root) == facts


def test_what_did_not_answer_does_not_when_it_is_replayed(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "FLAGS", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # so that a named pipe blocks
    monkeypatch.setattr(capturing, "Recorder", functools.partial(capturing.Recorder, patience=0.1))
    machine = machines.laptop()
    root = machine.write(tmp_path / "m")
    path = machine.path_of("0000:00:14.3")
    os.unlink(f"{root}/{path}/uevent")
    os.mkfifo(f"{root}/{path}/uevent")
    taken, wanted = capture(root)
    assert taken.replays
    assert taken.unread[f"{path}/uevent"] == "the kernel does not answer"
    assert f"{path}/vendor" in taken.files and f"{path}/modalias" not in taken.files  # no more than was looked at
    assert gather(taken.write(str(tmp_path / "again"))) == wanted
    assert any("unknown_driver" in {one["code"] for one in device["hazards"]} for device in wanted["devices"])


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', "{", '{"proc/cmdline": ["x"]}', "\0"])
def test_a_spoilt_list_of_what_could_not_be_read(tmp_path, content):
    machine = machines.laptop()
    expected = gather(machine.write(tmp_path / "m"))
    machine.file("unread.json", content)
    assert gather(machine.write(tmp_path / "n")) == expected


def test_that_list_is_believed(tmp_path):
    machine = machines.laptop()
    machine.file("unread.json", json.dumps({"proc/cmdline": "Permission denied"}))
    facts = gather(machine.write(tmp_path / "m"))
    assert facts["unread"] == [{"path": "/proc/cmdline", "why": "Permission denied"}]
    assert all("unknown_acs_override" in {one["code"] for one in device["hazards"]} for device in facts["devices"])


def test_the_archive_stays_in_its_directory_and_is_the_same_each_time(tmp_path):
    root = told().write(tmp_path / "m")
    data = capture(root)[0].archive()
    assert data == capture(root)[0].archive()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
    assert len(names) == len({*names})
    assert not any(name.startswith(("/", "..")) or "/../" in name for name in names)


def test_saving(tmp_path):
    root = machines.bare().write(tmp_path / "m")
    dest = tmp_path / "bare.tar.gz"
    assert save(root, str(dest), check_mode=True)["changed"] is True
    assert not dest.exists()
    done = save(root, str(dest))
    assert (done["changed"], done["replays"], done["bytes"]) == (True, True, dest.stat().st_size)
    assert save(root, str(dest))["changed"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.tar.gz", "m"]


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("dest", ["folder", "nowhere/x.tar.gz"])
def test_a_place_that_cannot_be_written_is_told_in_check_mode_too_and_nothing_is_left(tmp_path, dest, check_mode):
    root, place = machines.bare().write(tmp_path / "m"), tmp_path / "place"
    (place / "folder").mkdir(parents=True)
    with pytest.raises(PhyllomeError, match="dest: .* cannot be written"):
        save(root, str(place / dest), check_mode)
    assert [path.name for path in place.iterdir()] == ["folder"]


def test_nowhere_to_save(tmp_path):
    root = machines.bare().write(tmp_path / "m")
    with pytest.raises(PhyllomeError, match="dest: .* cannot be written"):
        save(root, str(tmp_path / "nowhere" / "x.tar.gz"))
    with pytest.raises(PhyllomeError, match="sysfs_root: .* is not the root of a machine"):
        save(str(tmp_path / "nowhere"), str(tmp_path / "x.tar.gz"))


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Without site-packages: with nothing but Python's own library."""
    command = [sys.executable, "-I", "-S", "-B", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_needs_no_ansible(tmp_path):
    root = told().write(tmp_path / "m")
    done = script("--root", root, str(tmp_path / "x.tar.gz"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.tar.gz").read_bytes() == capture(root)[0].archive()


def test_the_script_says_what_is_wrong(tmp_path):
    done = script("--root", str(tmp_path), str(tmp_path / "x.tar.gz"))
    assert done.returncode == 1
    assert "is not the root of a machine" in done.stderr
