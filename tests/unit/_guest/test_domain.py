# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest's XML tells, on captured definitions."""

from __future__ import annotations

import copy

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._guest import domain, migratable
from ansible_collections.phyllome.virt.plugins.module_utils._guest.domain import Marker, Volume

PAIRS = [(name, f"{name}-live") for name in ("linux", "windows11", "hand", "moved")]


def test_the_marker_survives_a_round_trip_and_leaves_other_metadata_alone(lab):
    root = lab.xml("hand")
    marker = Marker("linux", True, ("root", "lan"), (Volume("root", "/a", True), Volume("data", "/b", False)))
    domain.set_marker(root, marker)
    domain.set_marker(root, marker)
    again = xml.parse(xml.dump(root))
    assert lab.marker(again) == marker
    assert len(again.findall(f"metadata/{{{xml.GUEST_NS}}}guest")) == 1
    assert again.find("metadata/{http://libosinfo.org/xmlns/libvirt/domain/1.0}libosinfo") is not None
    assert "ns0:" not in xml.dump(root)


def test_a_made_volume_is_remembered():
    marker = Marker("linux", volumes=(Volume("a", "/a", False), Volume("b", "/b", False)))
    assert [volume.made for volume in marker.made({"a"}).volumes] == [True, False]
    assert marker.fragment().tag == "guest"


def test_a_foreign_guest_has_no_marker(lab):
    assert lab.marker(lab.xml("hand")) is None
    assert lab.marker(lab.xml("linux")).profile == "linux"


@pytest.mark.parametrize(("phase", "moving"), [("moving", True), ("done", False), (None, False)])
def test_a_move_counts_until_it_is_done(lab, phase, moving):
    root = lab.xml("linux")
    if phase:
        mark = xml.parse(f'<m:migration xmlns:m="{xml.MIGRATION_NS}" op_id="1" phase="{phase}" source="a"/>')
        root.find("metadata").append(mark)
        assert domain.migration(root) == {"op_id": "1", "phase": phase, "source": "a"}
    assert domain.moving(root) is moving


@pytest.mark.parametrize(("config", "live"), PAIRS)
def test_nothing_waits_right_after_a_start(lab, config, live):
    assert domain.pending(lab.xml(live), lab.xml(config)) == []


def test_nothing_waits_for_a_guest_that_is_off(lab):
    assert domain.pending(None, lab.xml("linux")) == []


def test_what_differs_waits(lab):
    config = lab.xml("linux")
    config.find("memory").text = str(512 * 1024)
    disk = lab.device("disks", config, "data")
    disk.getparent().remove(disk)
    lab.device("networks", config, "lan").find("model").set("type", "e1000e")
    cards = domain.NETWORKS.elements(config)
    other = copy.deepcopy(cards[0])
    xml.ensure(other, "alias").set("name", "ua-third")
    xml.ensure(other, "mac").set("address", "52:54:00:00:00:01")
    cards[-1].addnext(other)
    assert domain.pending(lab.xml("linux-live"), config) == [
        {"path": "memory", "from": "256MiB", "to": "512MiB"},
        {"path": "disks.data", "from": "/var/lib/libvirt/images/web-data.raw", "to": None},
        {"path": "networks.lan.model", "from": "virtio", "to": "e1000e"},
        {"path": "networks.third", "from": None, "to": "default"},
    ]


def test_a_device_that_was_given_its_id_while_it_ran_is_still_the_same(lab):
    config = lab.xml("hand")
    domain.DISKS.elements(config)[0].append(xml.element("alias", None, name="ua-root"))
    assert domain.pending(lab.xml("hand-live"), config) == []


@pytest.mark.parametrize("name", ["linux", "linux-live", "windows11", "windows11-live"])
def test_new_guests_have_fourteen_free_ports(lab, name):
    assert domain.slots_free(lab.xml(name)) == 14


def test_a_guest_that_was_moved_still_tells_its_firmware(lab):
    assert lab.xml("moved-live").find("os/firmware") is None
    told = domain.report(lab.guest("moved", live="moved-live"), [])
    assert told["firmware"] == {"type": "uefi", "secure_boot": True, "enrolled_keys": True}


def test_the_report_of_a_running_guest(lab):
    told = domain.report(lab.guest("linux", live="linux-live"), ["10.0.0.2"])
    assert {name: told[name] for name in ("name", "state", "owned", "migration", "vcpus", "memory")} == {
        "name": "web",
        "state": "running",
        "owned": True,
        "migration": None,
        "vcpus": 2,
        "memory": 256 * 1024**2,
    }
    assert told["firmware"] == {"type": "uefi", "secure_boot": True, "enrolled_keys": True}
    assert [disk["id"] for disk in told["disks"]] == ["root", "data"]
    assert told["disks"][1]["format"] == "raw"
    assert told["networks"][0] == {
        "id": "lan",
        "network": "default",
        "bridge": None,
        "mac": "52:54:00:63:3b:7b",
        "model": "virtio",
    }
    assert told["addresses"] == ["10.0.0.2"]
    assert told["migratable"] == {"possible": True, "reasons": []}
    assert told["owner"]["volumes"] == [
        "/var/lib/libvirt/images/web-root.qcow2",
        "/var/lib/libvirt/images/web-data.raw",
    ]


def test_the_report_tells_what_is_defined_and_what_is_only_plugged_in(lab):
    def card(place, bus):
        return xml.parse(
            f"<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='{bus}' slot='0' function='0'/></source>"
            f"<alias name='ua-{place}'/></hostdev>"
        )

    found = lab.guest("linux", live="linux-live")
    for root, bus in ((found.config, "0x05"), (found.live, "0x01")):
        root.find("devices").append(card("both", "0x02"))
        root.find("devices").append(card("gpu", bus))
    assert domain.report(found, [])["hostdevs"] == [
        {"id": "both", "device": "pci 0000:02:00.0", "defined": True},
        {"id": "gpu", "device": "pci 0000:01:00.0", "defined": False},
        {"id": "gpu", "device": "pci 0000:05:00.0", "defined": True},
    ]


def judged(lab, *, change=None, **over):
    root = lab.xml("linux")
    if change:
        change(root)
    values = {"persistent": True, "snapshots": 0, "checkpoints": 0, **over}
    return [reason["code"] for reason in migratable.judge(root, **values)["reasons"]]


def _device(text):
    return lambda root: root.find("devices").append(xml.parse(text))


def _in_disk(tag):
    return lambda root: root.find("devices/disk").append(xml.element(tag))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_device("<hostdev mode='subsystem' type='pci'/>"), "hostdevs"),
        (_device("<interface type='hostdev'/>"), "hostdevs"),
        (_device("<interface type='vdpa'/>"), "vdpa"),
        (_device("<filesystem type='mount'/>"), "filesystems"),
        (_device("<shmem name='x'/>"), "shared_memory"),
        (_device("<memory model='nvdimm'/>"), "host_memory"),
        (_device("<tpm model='tpm-crb'><backend type='passthrough'/></tpm>"), "tpm_kind"),
        (_device("<disk type='block' device='disk'><target dev='vdz'/></disk>"), "disk_kind"),
        (_in_disk("shareable"), "disk_kind"),
        (_in_disk("transient"), "disk_kind"),
        (_in_disk("encryption"), "encrypted"),
        (lambda root: root.find("devices/disk/driver").set("type", "vmdk"), "disk_kind"),
        (lambda root: xml.ensure(root, "devices/disk/backingStore/source"), "backing_chain"),
        (_device("<tpm model='tpm-crb'><backend type='emulator'><encryption/></backend></tpm>"), "tpm_kind"),
        (_device("<tpm model='tpm-crb'><backend type='emulator'><source/></backend></tpm>"), "tpm_kind"),
        (lambda root: root.append(xml.element("launchSecurity", None, type_="sev")), "encrypted_memory"),
        (lambda root: root.find("cpu").append(xml.element("feature", None, policy="require", name="invtsc")), "invtsc"),
        (
            lambda root: root.replace(
                root.find("cpu"), xml.element("cpu", None, mode="host-passthrough", migratable="off")
            ),
            "cpu",
        ),
    ],
)
def test_each_obstacle_to_a_move_has_its_reason(lab, change, code):
    assert judged(lab, change=change) == [code]


def test_what_only_memory_depends_on_does_not_keep_a_guest_that_is_off(lab):
    change = _device("<shmem name='x'/>")
    assert (judged(lab, change=change), judged(lab, change=change, running=False)) == (["shared_memory"], [])


def test_what_is_in_its_files_goes_with_a_guest_that_is_off(lab):
    change = _in_disk("encryption")
    told = {"snapshots": 2, "checkpoints": 1, "chained": {"vda"}}
    assert judged(lab, change=change, **told) == ["snapshots", "checkpoints", "encrypted", "backing_chain"]
    assert judged(lab, change=change, running=False, **told) == []


def test_an_overlay_is_told_although_libvirt_does_not(lab):
    assert judged(lab, chained={"vda"}) == ["backing_chain"]


def test_a_disk_that_is_only_read_is_not_copied_and_does_not_keep_it(lab):
    assert judged(lab, change=_in_disk("readonly")) == []


def test_invtsc_with_a_fixed_frequency_moves(lab):
    def change(root):
        root.find("cpu").append(xml.element("feature", None, policy="require", name="invtsc"))
        xml.child(root.find("clock"), "timer", None, name="tsc", frequency="1000000")

    assert judged(lab, change=change) == []


def test_what_is_around_the_guest_counts_too(lab):
    assert judged(lab, snapshots=2) == ["snapshots"]
    assert judged(lab, snapshots=None, checkpoints=1) == ["snapshots", "checkpoints"]
    assert judged(lab, persistent=False) == ["transient"]


def test_qemu_arguments_stand_in_the_way(lab):
    reasons = migratable.judge(lab.xml("hand"), persistent=True, snapshots=0, checkpoints=0)["reasons"]
    assert [reason["code"] for reason in reasons] == ["qemu_commandline"]
