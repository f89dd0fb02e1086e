# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is there and what is wanted to the plan, or to all reasons against it."""

from __future__ import annotations

import copy
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import domain, read_host
from ansible_collections.phyllome.virt.plugins.module_utils._guest.domain import Marker, Volume
from ansible_collections.phyllome.virt.plugins.module_utils._guest.storage import Image

GIB = 1024**3
IMAGES = "/var/lib/libvirt/images"
ROOT = f"{IMAGES}/web-root.qcow2"
ISO = "/isos/a.iso"
DISK = {"id": "root", "size": "1GiB"}
LAN = {"id": "lan", "network": "default"}
AS_CAPTURED = {
    # what the captured guest "linux" was declared as
    "memory": "256MiB",
    "disks": [
        {"id": "root", "size": "1GiB", "source": {"path": "/root/counter.qcow2"}},
        {"id": "data", "size": "1GiB", "bus": "scsi", "format": "raw"},
    ],
    "networks": [LAN, {"id": "wan", "network": "default", "model": "e1000e"}],
    "cdroms": [{"id": "cd"}],
    "graphics": {"type": "spice"},
    "tpm": {"model": "tpm-tis"},
    "firmware": {"secure_boot": True},
}


def said(lab, there=None, **options):
    with pytest.raises(PhyllomeError) as caught:
        lab.decide(there, **options)
    assert caught.value.remedy
    return str(caught.value)


# A new guest


def test_a_new_guest_is_defined_then_gets_its_disks_then_starts(lab):
    decision = lab.decide(disks=[DISK], networks=[LAN], autostart=True)
    actions = list(dict.fromkeys(change.action for change in decision.plan))
    assert actions == ["config", "volume.create", "autostart", "start"]
    assert ("state", "absent", "running") in lab.seen(decision)
    assert ("disks.root.size", None, "1GiB") in lab.seen(decision)
    assert ("memory", None, "2GiB") in lab.seen(decision)
    assert all(change.when == "live" for change in decision.plan)
    assert decision.pending == []
    assert "emulated" in decision.warnings[0]
    assert lab.marker(decision.config) == Marker("linux", False, ("root", "lan"), (Volume("root", ROOT, made=False),))


def test_a_new_guest_keeps_its_variables_under_its_uuid(lab):
    config = lab.decide(uuid="3fa85f64-5717-4562-b3fc-2c963f66afa6").config
    assert config.findtext("uuid") == "3fa85f64-5717-4562-b3fc-2c963f66afa6"
    assert config.findtext("os/nvram").endswith("/nvram/3fa85f64-5717-4562-b3fc-2c963f66afa6_VARS.fd")


def test_variables_that_an_earlier_guest_left_are_told(lab):
    uuid = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
    left = {"exists": {f"/var/lib/libvirt/qemu/nvram/{uuid}_VARS.fd": True}}
    assert any("an earlier guest" in text for text in lab.decide(uuid=uuid, world=left).warnings)
    assert not any("an earlier guest" in text for text in lab.decide(uuid=uuid, profile="legacy", world=left).warnings)


def test_state_present_leaves_a_new_guest_off(lab):
    assert "state" not in {change.path for change in lab.decide(state="present").plan}


def test_windows_gets_what_windows_wants(lab):
    config = lab.decide(profile="windows11", vcpus=4).config
    assert [found.get("name") for found in config.findall("os/firmware/feature[@enabled='yes']")] == [
        "secure-boot",
        "enrolled-keys",
    ]
    assert config.find("features/smm").get("state") == "on"
    assert config.find("devices/tpm").get("model") == "tpm-crb"
    assert config.find("clock").get("offset") == "localtime"
    assert dict(config.find("cpu/topology").attrib) == {"sockets": "1", "dies": "1", "cores": "4", "threads": "1"}
    assert config.find("features/hyperv") is None, "enlightenments are KVM's"


def kvm(lab, hyperv):
    return {"host": read_host.Host(**{**vars(lab.host), "type": "kvm", "hyperv": hyperv})}


def enlightened(lab, hyperv, **options):
    config = lab.decide(profile="windows11", world=kvm(lab, hyperv), **options).config
    found = config.find("features/hyperv")
    return config, [] if found is None else [child.tag for child in found]


def test_windows_on_kvm_gets_the_enlightenments_that_are_offered_and_what_they_need(lab):
    config, names = enlightened(lab, frozenset({"relaxed", "spinlocks", "vpindex", "synic", "stimer", "evmcs", "ipi"}))
    assert names == ["relaxed", "spinlocks", "vpindex", "synic", "stimer", "ipi"]
    assert config.find("features/hyperv/spinlocks").get("retries") == "8191"
    assert config.find("features/hyperv/stimer/direct").get("state") == "on"
    assert config.find("clock/timer[@name='hypervclock']").get("present") == "yes"
    assert config.get("type") == "kvm"
    assert config.find("cpu").get("mode") == "host-model"
    assert enlightened(lab, frozenset({"synic", "stimer", "tlbflush"}))[1] == []
    assert enlightened(lab, None)[1] == ["relaxed", "vapic", "spinlocks"]


def test_kvm_needs_no_warning(lab):
    assert lab.decide(world=kvm(lab, frozenset())).warnings == []


def test_legacy_boots_from_a_bios_and_generic_needs_no_drivers(lab):
    legacy = lab.decide(profile="legacy", disks=[DISK]).config
    assert legacy.find("os").get("firmware") is None
    assert legacy.find("os/nvram") is None
    generic = lab.decide(profile="generic", disks=[DISK], networks=[LAN]).config
    assert generic.find("devices/disk/target").get("bus") == "sata"
    assert generic.find("devices/interface/model").get("type") == "e1000e"


def test_declared_firmware_goes_over_the_profile(lab):
    config = lab.decide(profile="windows11", firmware={"secure_boot": False}).config
    features = {found.get("name"): found.get("enabled") for found in config.findall("os/firmware/feature")}
    assert features == {"secure-boot": "no"}
    config = lab.decide(firmware={"secure_boot": True}).config
    features = {found.get("name"): found.get("enabled") for found in config.findall("os/firmware/feature")}
    assert features == {"secure-boot": "yes", "enrolled-keys": "yes"}
    config = lab.decide(profile="windows11", firmware={"type": "bios"}).config
    assert config.find("os/firmware") is None


def test_an_empty_disk_leads_to_the_installer(lab):
    config = lab.decide(cdroms=[{"id": "cd", "path": ISO}], disks=[DISK, {"id": "b", "size": "1GiB"}]).config
    assert [found.find("boot").get("order") for found in config.findall("devices/disk")] == ["1", "2", "3"]
    assert config.findall("devices/disk")[2].get("device") == "cdrom"
    config = lab.decide(cdroms=[{"id": "cd", "path": ISO, "boot": 1}], disks=[DISK]).config
    assert [found.find("boot") is not None for found in config.findall("devices/disk")] == [False, True]


def test_without_a_display_there_is_no_card(lab):
    config = lab.decide(graphics={"type": "none"}).config
    assert config.find("devices/graphics") is None
    assert config.find("devices/video") is None


def test_devices_on_many_buses_get_names_of_their_own(lab):
    disks = [{"id": f"d{number}", "size": "1GiB"} for number in range(28)]
    config = lab.decide(disks=[*disks, {"id": "s", "size": "1GiB", "bus": "scsi"}], cdroms=[{"id": "cd"}]).config
    names = [found.get("dev") for found in config.findall("devices/disk/target")]
    assert len(set(names)) == 30
    assert names[25:30] == ["vdz", "vdaa", "vdab", "sda", "sdb"]
    assert config.find("devices/controller[@type='scsi']").get("model") == "virtio-scsi"


# Once it is there


@pytest.mark.parametrize("live", [None, "linux-live"])
def test_what_is_there_already_needs_nothing(lab, live):
    there = lab.guest("linux", live=live)
    decision = lab.decide(there, state="present", **AS_CAPTURED)
    assert lab.seen(decision) == []
    assert xml.dump(decision.config) == xml.dump(there.config)


def test_only_what_is_declared_is_touched(lab):
    there = lab.guest("hand")
    decision = lab.decide(there, name="hand", state="present", adopt=True, vcpus=4)
    assert lab.seen(decision) == [("vcpus", 1, 4), ("owner", None, "phyllome.virt")]
    before, after = copy.deepcopy(there.config), copy.deepcopy(decision.config)
    for root in (before, after):
        for path in (f"metadata/{{{xml.GUEST_NS}}}guest", "vcpu", "cpu/topology"):
            xml.drop(root, path)
    assert xml.dump(before) == xml.dump(after)
    assert decision.config.find("cpu/topology").get("cores") == "2"


def test_vcpus_that_do_not_fit_the_topology_are_refused(lab):
    assert "vcpus: 3 does not fit the guest's CPU topology" in said(lab, lab.guest("hand"), name="hand", vcpus=3)


def test_a_change_of_a_running_guest_waits(lab):
    decision = lab.decide(lab.guest("linux", live="linux-live"), memory="1GiB", autostart=True)
    assert [(change.path, change.when) for change in decision.plan] == [("memory", "next_boot"), ("autostart", "live")]
    assert decision.pending == [{"path": "memory", "from": "256MiB", "to": "1GiB"}]
    assert decision.config.find("currentMemory") is None


def test_a_guest_that_is_stopped_waits_for_nothing(lab):
    decision = lab.decide(lab.guest("linux", live="linux-live"), memory="1GiB", state="stopped")
    assert decision.pending == []


def test_a_disc_is_changed_while_the_guest_runs(lab):
    there = lab.guest("linux", live="linux-live")
    decision = lab.decide(there, cdroms=[{"id": "cd", "path": ISO}])
    (change,) = decision.plan
    assert (change.action, change.path, change.when, change.after) == ("config", "cdroms.cd.path", "live", ISO)
    assert change.args["device"].find("source").get("file") == ISO
    assert change.args["device"].find("alias").get("name") == "ua-cd"
    assert decision.pending == []
    after = lab.of(decision.config, there.live)
    (again,) = lab.decide(after, cdroms=[{"id": "cd", "path": ISO}]).plan
    assert again.action == "live", "the definition is right, the running guest is not yet"


def test_a_card_is_reconnected_while_the_guest_runs(lab):
    decision = lab.decide(lab.guest("linux", live="linux-live"), networks=[{"id": "lan", "bridge": "br0"}])
    (change,) = decision.plan
    assert (change.path, change.before, change.after) == ("networks.lan.bridge", None, "br0")
    assert change.args["device"].get("type") == "bridge"
    assert change.args["device"].find("mac").get("address") == "52:54:00:63:3b:7b"


def test_another_bus_is_another_address(lab):
    decision = lab.decide(lab.guest("linux"), state="present", disks=[{"id": "root", "bus": "sata"}])
    disk = lab.device("disks", decision.config, "root")
    assert disk.find("address") is None
    assert disk.find("target").get("dev") == "sdc"


def test_a_new_disk_of_an_old_guest_follows_its_profile_and_order_is_left_alone(lab):
    decision = lab.decide(lab.guest("linux"), state="present", disks=[{"id": "more", "size": "2GiB"}])
    disk = lab.device("disks", decision.config, "more")
    assert disk.find("target").get("dev") == "vdb"
    assert disk.find("boot") is None
    assert lab.marker(decision.config).volume("more") == Volume("more", f"{IMAGES}/web-more.qcow2", made=False)


def test_tpm_and_display_come_and_go(lab):
    off = lab.decide(lab.guest("linux"), state="present", tpm={"model": "none"}, graphics={"type": "none"}).config
    assert off.find("devices/tpm") is None
    assert off.find("devices/graphics") is None
    on = lab.decide(lab.of(off), state="present", tpm={"model": "tpm-crb"}, graphics={"type": "vnc"}).config
    assert on.find("devices/tpm/backend").get("type") == "emulator"
    assert on.find("devices/graphics").get("listen") == "127.0.0.1"
    assert len(on.findall("devices/video")) == 1


def test_a_display_without_a_card_gets_one(lab):
    there = lab.guest("linux")
    xml.drop(there.config, "devices/video")
    config = lab.decide(there, state="present", graphics={"type": "vnc"}).config
    assert config.find("devices/video/model").get("type") == "vga"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"firmware": {"type": "bios"}}, "firmware.type: bios is declared, the guest has uefi"),
        ({"firmware": {"secure_boot": False}}, "firmware.secure_boot: False is declared, the guest has True"),
        ({"disks": [{"id": "root", "format": "raw"}]}, "disks.root.format: raw is declared, the guest has qcow2"),
        ({"disks": [{"id": "root", "path": "/else.qcow2"}]}, "disks.root.path: /else.qcow2 is declared, the guest has"),
        ({"disks": [{"id": "root", "size": "512MiB"}]}, "disks.root.size: 512MiB is less than the 1GiB that it has"),
        ({"profile": "windows11"}, "profile: windows11 is declared, guest web was made from linux"),
        (
            {"networks": [{"id": "root", "network": "default"}]},
            "networks.root: the id is taken by one of the guest's disks",
        ),
        ({"disks": [{"id": "lan", "size": "1GiB"}]}, "disks.lan: the id is taken by one of the guest's networks"),
        ({"networks": [{"id": "new"}]}, "networks.new: it is connected to nothing"),
        ({"networks": [{"id": "lan", "network": "dmz"}]}, "networks.lan.network: dmz: this host has no such network"),
        ({"networks": [{"id": "lan", "bridge": "br9"}]}, "networks.lan.bridge: br9: this host has no such bridge"),
        ({"memory": "64GiB"}, "memory: 64GiB is more than this host has"),
        ({"cdroms": [{"id": "cd", "boot": 1}]}, "cdroms.cd.boot: 1 is the order of disks.root as well"),
        ({"disks": [{"id": "new"}]}, "disks.new: its size is not known"),
        (
            {"disks": [{"id": "new", "size": "1GiB", "pool": "fast"}]},
            "disks.new.pool: fast: this host has no such storage pool",
        ),
    ],
)
def test_what_an_existing_guest_cannot_become(lab, options, text):
    over = {
        "networks": {"default": True, "dmz": None},
        "bridges": {"br9": None},
        "pools": {"fast": None},
        "chains": {ROOT: (ROOT,)},
    }
    assert text in said(lab, lab.guest("linux"), state="present", world=over, **options)


def test_a_missing_disc_is_said_when_it_is_declared_and_when_the_guest_starts(lab):
    over = {"exists": {ISO: False}}
    assert f"cdroms.cd.path: {ISO}: this host has no such file" in said(
        lab, lab.guest("linux"), world=over, cdroms=[{"id": "cd", "path": ISO}]
    )


def test_when_one_change_is_refused_none_is_done_and_the_plan_says_so(lab):
    with pytest.raises(PhyllomeError) as caught:
        lab.decide(
            lab.guest("linux"),
            state="present",
            vcpus=3,
            firmware={"type": "bios"},
            disks=[{"id": "root", "size": "512MiB"}],
        )
    assert [(change["path"], change["when"]) for change in caught.value.facts["plan"]] == [
        ("vcpus", "refused"),
        ("firmware.type", "refused"),
        ("disks.root.size", "refused"),
    ]
    assert len(caught.value.facts["problems"]) == 2
    assert "there are 2 reasons: (1) firmware.type" in str(caught.value)


# Disks


def test_a_disk_grows_at_once_and_never_shrinks(lab):
    grown = [{"id": "root", "size": "4GiB"}]
    (change,) = lab.decide(lab.guest("linux"), state="present", disks=grown).plan
    assert (change.action, change.before, change.after) == ("volume.grow", "1GiB", "4GiB")
    assert change.args["target"] is None
    (change,) = lab.decide(lab.guest("linux", live="linux-live"), disks=grown).plan
    assert (change.args["target"], change.args["size"], change.when) == ("vda", 4 * GIB, "live")


def test_a_copy_is_as_big_as_its_source_at_least(lab):
    source = {"path": "/img"}
    decision = lab.decide(disks=[{"id": "root", "source": source}])
    assert ("disks.root.size", None, "1GiB") in lab.seen(decision)
    assert "disks.root.size: 512MiB is less than the 1GiB of its source" in said(
        lab, disks=[{"id": "root", "size": "512MiB", "source": source}]
    )


def test_a_file_that_is_there_is_used_when_it_is_named_and_stays_somebody_elses(lab):
    over = {"exists": {"/data/x.raw": True}, "images": {"/data/x.raw": Image("raw", 2 * GIB, GIB)}}
    decision = lab.decide(disks=[{"id": "root", "path": "/data/x.raw", "size": "3GiB"}], world=over)
    assert ("disks.root.format", None, "raw") in lab.seen(decision)
    assert ("disks.root.size", "2GiB", "3GiB") in lab.seen(decision)
    assert decision.marker.volumes == ()
    assert "disks.root.format: qcow2: /data/x.raw is raw" in said(
        lab, disks=[{"id": "root", "path": "/data/x.raw", "format": "qcow2"}], world=over
    )


@pytest.mark.parametrize("disk", [DISK, {"id": "root", "path": ROOT, "source": {"path": "/img"}}])
def test_nothing_is_overwritten(lab, disk):
    text = said(lab, disks=[disk], world={"exists": {ROOT: True}})
    assert f"disks.root: {ROOT} exists already: it is not ours" in text


def unfinished(lab, made=False):
    """The captured guest, cut off before its first disk was complete."""
    there = lab.guest("linux", blocks={"sda": (GIB, 0)})
    marker = lab.marker(there.config)
    volumes = tuple(Volume(volume.id, volume.path, made or volume.id != "root") for volume in marker.volumes)
    domain.set_marker(there.config, Marker(marker.profile, False, marker.devices, volumes))
    return there


def test_a_run_that_was_cut_off_before_the_disk_was_complete_is_made_good(lab):
    decision = lab.decide(unfinished(lab), world={"exists": {ROOT: False}}, **AS_CAPTURED)
    assert [change.action for change in decision.plan] == ["volume.create", "start"]
    assert decision.plan.changes[0].args["source"] == "/root/counter.qcow2"


def test_a_run_that_was_cut_off_right_after_is_made_good(lab):
    decision = lab.decide(
        unfinished(lab), world={"exists": {ROOT: True}, "images": {ROOT: Image("qcow2", GIB, 0)}}, **AS_CAPTURED
    )
    assert [change.action for change in decision.plan] == ["volume.finish", "start"]


def test_a_file_of_another_place_does_not_complete_the_one_that_was_cut_off(lab):
    there = unfinished(lab)
    disk = lab.device("disks", there.config, "root")
    disk.getparent().remove(disk)  # by a person, who then declares another file for it
    other = {"id": "root", "path": "/srv/other.qcow2"}
    world = {"exists": {"/srv/other.qcow2": True}, "images": {"/srv/other.qcow2": Image("qcow2", GIB, 0)}}
    decision = lab.decide(there, world=world, **{**AS_CAPTURED, "disks": [other]})
    assert "volume.finish" not in [change.action for change in decision.plan]
    assert lab.marker(decision.config).volume("root") == Volume("root", ROOT, made=False)


def test_a_disk_that_has_vanished_is_not_made_anew(lab):
    text = said(lab, unfinished(lab, made=True), world={"exists": {ROOT: False}}, **AS_CAPTURED)
    assert f"disks.root: its file {ROOT} is gone: it was there before" in text


def test_an_undeclared_disk_that_has_vanished_stops_the_start_only(lab):
    over = {"exists": {ROOT: False}}
    assert lab.seen(lab.decide(lab.guest("linux"), state="present", world=over)) == []
    assert f"disks.root.path: {ROOT}: this host has no such file" in said(lab, lab.guest("linux"), world=over)


def test_the_base_of_an_external_snapshot_is_what_was_declared(lab):
    there = lab.guest("hand-overlay")
    domain.DISKS.elements(there.config)[0].append(xml.element("alias", None, name="ua-root"))
    domain.set_marker(there.config, Marker("linux", devices=("root",)))
    overlay, base = f"{IMAGES}/hand.s1", f"{IMAGES}/hand.qcow2"
    options = {"name": "hand", "state": "present", "disks": [{"id": "root", "path": base}]}
    assert lab.seen(lab.decide(there, world={"chains": {overlay: (overlay, base)}}, **options)) == []
    assert "disks.root.path" in said(lab, there, world={"chains": {overlay: (overlay,)}}, **options)


@pytest.mark.parametrize(
    ("disk", "world", "text"),
    [
        ({"size": "1GiB"}, {"pools": {"images": None}}, "disks.root.pool: images: this host has no such storage pool"),
        ({"size": "1GiB"}, {"pools": {"images": read_host.Pool("dir", IMAGES, False)}}, "images: it is not active"),
        (
            {"size": "1GiB"},
            {"pools": {"images": read_host.Pool("logical", "/dev/vg", True)}},
            "images: its type is logical",
        ),
        ({"size": "1GiB"}, {"pools": {"images": read_host.Pool("rbd", None, True)}}, "images: it has no directory"),
        ({"size": "1GiB", "path": "/no/x.qcow2"}, {}, "disks.root: /no is not a directory"),
        ({"size": "1GiB"}, {"free": {IMAGES: 1024}}, f"disks: 4MiB are needed in {IMAGES}: 0MiB are free there"),
        (
            {"source": {"path": "/img"}},
            {"exists": {"/img": False}},
            "disks.root.source.path: /img: this host has no such file",
        ),
        ({"source": {"path": "/img"}}, {"free": {IMAGES: 200 * 1024**2}}, "disks: 304MiB are needed"),
        (
            {"source": {"path": "/img"}},
            {"images": {"/img": PhyllomeError("/img is not a disk image", "it is an xz archive", "Unpack it.")}},
            "disks.root.source: /img is not a disk image: it is an xz archive",
        ),
        (
            {"source": {"path": "/img"}},
            {"images": {"/img": Image("qcow2", GIB, 1, refers="/base")}},
            "disks.root.source.path: /img refers to another file",
        ),
        ({}, {}, "disks.root: its size is not known"),
    ],
)
def test_what_keeps_a_disk_from_being_made(lab, disk, world, text):
    assert text in said(lab, disks=[{"id": "root", **disk}], world=world)


def test_a_linked_disk_takes_no_room_and_may_link_to_a_link(lab):
    source = {"path": "/img", "method": "linked"}
    over = {"images": {"/img": Image("qcow2", GIB, 300 * 1024**2, refers="/base")}, "free": {IMAGES: 10 * 1024**2}}
    decision = lab.decide(disks=[{"id": "root", "source": source}], world=over)
    (made,) = [change for change in decision.plan if change.action == "volume.create"]
    assert (made.args["method"], made.args["source"]) == ("linked", "/img")
    raw = {"id": "root", "format": "raw", "source": {"path": "/img", "method": "reflink"}}
    assert "disks.root.source.method: reflink: it shares the blocks of a qcow2 image" in said(lab, disks=[raw])


def test_an_existing_file_that_is_no_image_is_said(lab):
    over = {
        "exists": {"/x": True},
        "images": {"/x": PhyllomeError("/x is not a disk image", "it is HTML", "Fetch it.")},
    }
    assert "/x is not a disk image" in said(lab, disks=[{"id": "root", "path": "/x"}], world=over)


def test_everything_that_is_wrong_is_said_at_once(lab):
    text = said(
        lab,
        memory="64GiB",
        disks=[{"id": "root", "source": {"path": "/img"}}],
        cdroms=[{"id": "cd", "path": ISO}],
        networks=[{"id": "lan", "network": "dmz"}, {"id": "wan", "bridge": "br9"}],
        world={
            "exists": {"/img": False, ISO: False},
            "networks": {"dmz": None},
            "bridges": {"br9": None},
            "host": read_host.Host(**{**vars(lab.host), "uefi": False}),
        },
    )
    for part in ("6 reasons", "memory", "/img", ISO, "dmz", "br9", "firmware.type: uefi"):
        assert part in text


@pytest.mark.parametrize(
    ("host", "options", "text"),
    [
        (
            {"secure_boot": False},
            {"profile": "windows11"},
            "firmware.secure_boot: true: this host's UEFI firmware has no",
        ),
        ({"tpm": frozenset()}, {"profile": "windows11"}, "tpm.model: tpm-crb: this host cannot emulate it"),
        (
            {"graphics": frozenset({"vnc"})},
            {"graphics": {"type": "spice"}},
            "graphics.type: spice: this host's QEMU offers vnc",
        ),
    ],
)
def test_what_the_host_does_not_offer_is_said(lab, host, options, text):
    assert text in said(lab, world={"host": read_host.Host(**{**vars(lab.host), **host})}, **options)


# Who may be changed


def test_a_foreign_guest_is_left_alone_until_it_is_adopted(lab):
    there = lab.guest("hand")
    options = {"name": "hand", "state": "present"}
    assert lab.seen(lab.decide(there, **options)) == []
    assert "Guest hand was not made by phyllome.virt: memory would have to change" in said(
        lab, there, memory="1GiB", **options
    )
    assert "state would have to change" in said(lab, there, name="hand")
    assert lab.seen(lab.decide(there, adopt=True, **options)) == [("owner", None, "phyllome.virt")]


def test_devices_of_an_adopted_guest_are_recognised(lab):
    there = lab.guest("hand")
    options = {
        "name": "hand",
        "state": "present",
        "adopt": True,
        "disks": [{"id": "root", "path": f"{IMAGES}/hand.qcow2"}],
        "networks": [LAN, {"id": "user", "mac": "52:54:00:AA:BB:CD"}],
        "cdroms": [{"id": "cd", "path": ""}],
    }
    decision = lab.decide(there, world={"chains": {}}, **options)
    assert {change.path for change in decision.plan} == {
        "disks.root.id",
        "networks.lan.id",
        "networks.user.id",
        "cdroms.cd.id",
        "owner",
    }
    assert decision.marker.volumes == (), "its disks are not ours"
    assert lab.seen(lab.decide(lab.after(decision, there), **options)) == []


@pytest.mark.parametrize(
    ("option", "device", "text"),
    [
        ("disks", {"id": "root", "size": "1GiB"}, "disks.root: which of the guest's disks is meant is not clear"),
        ("networks", {"id": "lan", "model": "virtio"}, "networks.lan: which of the guest's networks is meant"),
        ("cdroms", {"id": "cd"}, "cdroms.cd: which of the guest's cdroms is meant"),
    ],
)
def test_an_adopted_device_that_is_not_clear_is_refused(lab, option, device, text):
    message = said(lab, lab.guest("hand"), name="hand", adopt=True, **{option: [device]})
    assert text in message
    assert "reasons" not in message


def test_names_and_uuids_of_others_are_refused(lab):
    other = "11111111-1111-4111-8111-111111111111"
    mine = "22222222-2222-4222-8222-222222222222"
    assert f"Guest web: another guest of this name has uuid {other}" in said(
        lab, world={"namesake": (other, "web")}, uuid=mine
    )
    assert f"its uuid {mine} belongs to guest old already" in said(lab, world={"namesake": (mine, "old")}, uuid=mine)


@pytest.mark.parametrize(
    "over",
    [
        {"migrating": True},
        {"state": "paused", "reason": "migration"},
        {"reason": "postcopy"},
        {"reason": "postcopy failed"},
    ],
)
@pytest.mark.parametrize("state", ["running", "present", "absent"])
def test_a_guest_that_is_being_moved_is_left_alone(lab, over, state):
    there = lab.guest("linux", live="linux-live", **over)
    assert "Guest web is being moved to another host" in said(lab, there, state=state)


def test_an_unfinished_move_that_is_noted_counts_as_well(lab):
    for phase, moving in (("moving", True), ("done", False)):
        there = lab.guest("linux")
        mark = xml.parse(
            f'<m:migration xmlns:m="{xml.MIGRATION_NS}" op_id="42" source="alpha" destination="beta" phase="{phase}"/>'
        )
        there.config.find("metadata").append(mark)
        if moving:
            assert "move 42, phase moving, from alpha to beta; it is not started meanwhile" in said(lab, there)
        else:
            assert lab.seen(lab.decide(there)) == [("state", "stopped", "running")]


def test_a_transient_guest_is_left_alone(lab):
    assert "Guest web is transient" in said(lab, lab.guest("linux", live="linux-live", persistent=False))


# Removal of devices


def test_a_device_that_is_ours_and_no_longer_declared_is_pruned_when_that_is_said(lab):
    there = lab.guest("linux", live="linux-live")
    foreign = copy.deepcopy(domain.NETWORKS.elements(there.config)[0])
    xml.ensure(foreign, "alias").set("name", "ua-foreign")
    there.config.find("devices").append(foreign)
    kept = {"disks": [{"id": "root"}], "networks": [{"id": "wan"}]}
    assert lab.seen(lab.decide(there, **kept)) == []
    decision = lab.decide(there, unmanaged_devices="prune", **kept)
    assert [(change.path, change.before, change.after, change.when) for change in decision.plan] == [
        ("disks.data", f"{IMAGES}/web-data.raw", None, "live"),
        ("networks.lan", "default", None, "live"),
    ]
    assert {"data", "lan"} <= set(decision.marker.devices), "ours until the running guest has let go of them"
    marker = lab.decide(lab.of(there.config), unmanaged_devices="prune", **kept).marker
    assert set(marker.devices) == {"root", "wan", "cd"}
    assert marker.volume("data").made, "its file is still ours"


def test_a_pruned_disk_comes_back_with_its_file(lab):
    kept = {"state": "present", "disks": [{"id": "root"}]}
    there = lab.of(lab.decide(lab.guest("linux"), unmanaged_devices="prune", **kept).config)
    file, back = (
        f"{IMAGES}/web-data.raw",
        {"state": "present", "disks": [{"id": "data", "bus": "scsi", "size": "1GiB"}]},
    )
    decision = lab.decide(there, world={"exists": {file: True}, "images": {file: Image("raw", GIB, 0)}}, **back)
    assert lab.seen(decision) == [
        ("disks.data.bus", None, "scsi"),
        ("disks.data.path", None, file),
        ("disks.data.format", None, "raw"),
        ("disks.data.discard", None, "unmap"),
    ]
    assert f"disks.data: its file {file} is gone" in said(lab, there, world={"exists": {file: False}}, **back)


def test_a_protected_guest_loses_no_disk(lab):
    there = lab.guest("linux")
    options = {"state": "present", "disks": [{"id": "root"}], "unmanaged_devices": "prune"}
    assert "disks.data: it is no longer declared, and the guest is protected" in said(
        lab, there, protected=True, **options
    )
    remembered = lab.decide(there, state="present", protected=True)
    assert lab.seen(remembered) == [("protected", False, True)]
    assert "protected" in said(lab, lab.after(remembered, there), **options)
    assert lab.decide(lab.after(remembered, there), protected=False, **options).plan.changed


# Power


@pytest.mark.parametrize(
    ("state", "wanted", "steps"),
    [
        ("stopped", "running", ["start"]),
        ("stopped", "paused", ["start_paused"]),
        ("running", "running", []),
        ("running", "paused", ["suspend"]),
        ("running", "stopped", ["shutdown"]),
        ("paused", "running", ["resume"]),
        ("paused", "stopped", ["resume", "shutdown"]),
        ("suspended", "running", ["wakeup"]),
        ("suspended", "paused", ["wakeup", "suspend"]),
        ("suspended", "stopped", ["wakeup", "shutdown"]),
        ("crashed", "running", ["destroy", "start"]),
        ("crashed", "paused", ["destroy", "start_paused"]),
        ("crashed", "stopped", ["destroy"]),
        ("stopping", "stopped", ["shutdown"]),
        *((state, "present", []) for state in ("stopped", "running", "paused", "crashed", "stopping", "unknown")),
    ],
)
def test_power(lab, state, wanted, steps):
    live = None if state == "stopped" else "linux-live"
    decision = lab.decide(lab.guest("linux", live=live, state=state), state=wanted)
    assert [change.action for change in decision.plan] == steps
    if steps:
        assert (decision.plan.changes[0].before, decision.plan.changes[-1].after) == (state, wanted)


@pytest.mark.parametrize("state", ["stopping", "unknown"])
def test_a_state_that_is_no_rest_is_waited_for(lab, state):
    there = lab.guest("linux", live="linux-live", state=state)
    assert f"state: running is declared, the guest is {state}" in said(lab, there)


def test_a_guest_does_not_start_without_its_network(lab):
    there = lab.guest("linux")
    over = {"networks": {"default": False}}
    assert "the network is not active" in said(lab, there, world=over)
    assert lab.seen(lab.decide(there, state="present", world=over)) == []


def test_a_saved_state_is_warned_of(lab):
    decision = lab.decide(lab.guest("linux", managed_save=True))
    assert "managedsave" in decision.warnings[0]


# Absent


def test_a_guest_that_is_not_there_is_absent(lab):
    assert lab.seen(lab.decide(state="absent")) == []


def removal(lab, there, **options):
    plan = lab.decide(there, state="absent", **options).plan
    return [change.action for change in plan], plan.changes[-1].args.get("flags")


def test_removal_is_stop_then_disks_then_definition(lab):
    users = {"users": {ROOT: (), f"{IMAGES}/web-data.raw": ()}}
    actions, flags = removal(lab, lab.guest("linux", live="linux-live"), delete={"disks": "owned"}, world=users)
    assert actions == ["shutdown", "volume.remove", "volume.remove", "store.remove", "part", "undefine"]
    assert flags == 4 | 32
    actions, flags = removal(lab, lab.guest("linux"))
    assert (actions, flags) == (["undefine"], 8 | 64)


def test_removal_knows_what_there_is(lab):
    everything = {"managed_save": True, "snapshots": 2, "checkpoints": 1}
    assert removal(lab, lab.guest("linux", **everything), delete={"nvram": True, "tpm": True})[1] == 1 | 2 | 4 | 16 | 32
    assert removal(lab, lab.guest("hand", snapshots=None, checkpoints=None), name="hand", adopt=True)[1] == 2


def test_an_older_libvirt_cannot_keep_a_tpm(lab):
    old, new = ({"world": {"libvirt": version}} for version in (8008999, 8009000))
    assert "delete.tpm: false: libvirt before 8.9 removes" in said(lab, lab.guest("linux"), state="absent", **old)
    assert removal(lab, lab.guest("linux"), **new)[1] == 8 | 64
    assert removal(lab, lab.guest("linux"), delete={"tpm": True}, **old)[1] == 8


@pytest.mark.parametrize(
    ("users", "text"),
    [
        ({ROOT: ("clone",), f"{IMAGES}/web-data.raw": ()}, f"disks.root: {ROOT} is used by clone"),
        ({f"{IMAGES}/web-data.raw": ()}, f"disks.root: {ROOT} is used by guests that could not be read"),
    ],
)
def test_what_another_guest_uses_is_not_deleted(lab, users, text):
    assert text in said(lab, lab.guest("linux"), state="absent", delete={"disks": "owned"}, world={"users": users})


@pytest.mark.parametrize("tag", ["shareable", "readonly"])
def test_what_may_be_somebody_elses_is_not_deleted(lab, tag):
    there = lab.guest("linux")
    lab.device("disks", there.config, "root").append(xml.element(tag))
    users = {"users": {ROOT: (), f"{IMAGES}/web-data.raw": ()}}
    text = said(lab, there, state="absent", delete={"disks": "owned"}, world=users)
    assert f"disks.root: {ROOT} is {tag}" in text


def test_who_may_not_be_removed(lab):
    assert "Guest hand was not made by phyllome.virt" in said(lab, lab.guest("hand"), name="hand", state="absent")
    assert "Guest web is protected" in said(lab, lab.guest("linux"), state="absent", protected=True)
    there = lab.after(lab.decide(lab.guest("linux"), state="present", protected=True), lab.guest("linux"))
    assert "Guest web is protected" in said(lab, there, state="absent")
    assert removal(lab, there, protected=False)[0] == ["undefine"]


# Properties

SIZES = st.sampled_from(["1GiB", "2GiB", "1536MiB"])
IDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e-1", "_f", "G"]), unique=True, max_size=6)


@st.composite
def declarations(draw):
    """A guest's options, all valid."""
    ids = draw(IDS)
    options: dict[str, typing.Any] = {"disks": [], "cdroms": [], "networks": []}
    for name in ids:
        kind = draw(st.sampled_from(["disks", "cdroms", "networks"]))
        device = {"id": name}
        if kind == "disks":
            device["size"] = draw(SIZES)
            device.update(draw(st.fixed_dictionaries({}, optional={
                "bus": st.sampled_from(["virtio", "scsi", "sata", "usb"]),
                "format": st.sampled_from(["qcow2", "raw"]),
                "source": st.just({"path": "/img"}),
            })))  # fmt: skip
        elif kind == "cdroms":
            device.update(draw(st.sampled_from([{}, {"path": ISO}, {"path": ""}, {"bus": "usb"}])))
        else:
            device.update(draw(st.sampled_from([{"network": "default"}, {"bridge": "br0"}])))
            device.update(draw(st.sampled_from([{}, {"model": "e1000e"}, {"mac": f"52:54:00:00:00:0{len(ids)}"}])))
            if any(device.get("mac") and device["mac"] == other.get("mac") for other in options["networks"]):
                del device["mac"]
        options[kind].append(device)
    options.update(draw(st.fixed_dictionaries({}, optional={
        "profile": st.sampled_from(["linux", "windows11", "generic", "legacy"]),
        "memory": SIZES,
        "vcpus": st.integers(1, 64),
        "tpm": st.sampled_from([{"model": "tpm-crb"}, {"model": "tpm-tis"}, {"model": "none"}]),
        "graphics": st.sampled_from([{"type": "vnc"}, {"type": "spice"}, {"type": "none"}]),
        "state": st.sampled_from(["present", "running", "stopped", "paused"]),
        "autostart": st.booleans(),
        "protected": st.booleans(),
    })))  # fmt: skip
    return options


def identity(root):
    """Address and MAC of every device that has one."""
    found = {}
    for device in root.find("devices"):
        name = domain.device_id(device) or (device.get("type"), device.get("index"), device.get("model"))
        addresses = [dict(each.attrib) for each in device.findall("address")]
        if addresses:
            found[device.tag, name] = addresses, [each.get("address") for each in device.findall("mac")]
    return found


@settings(max_examples=40)
@given(options=declarations())
def test_once_applied_nothing_is_left_to_do(lab, options):
    decision = lab.decide(**options)
    there = lab.after(decision)
    again = lab.decide(there, **options)
    assert lab.seen(again) == []
    assert again.pending == []
    assert xml.dump(again.config) == xml.dump(there.config)


@settings(max_examples=40)
@given(options=declarations(), live=st.sampled_from([None, "linux-live"]))
def test_an_edit_of_a_captured_guest_converges_and_moves_nothing_else(lab, options, live):
    options = {**options, "state": "present"}
    options.pop("profile", None)
    there = lab.guest("linux", live=live)
    before = identity(there.config)
    decision = lab.decide(there, **options)
    after = identity(decision.config)
    for device, known in before.items():
        assert after.get(device, known) == known
    assert len(decision.config.findall("devices/controller")) - len(there.config.findall("devices/controller")) == 0
    ran = lab.after(decision, there)
    assert lab.seen(lab.decide(ran, **options)) == []


FIELDS = {
    "memory": ("1GiB", ["memory", "currentMemory"]),
    "vcpus": (4, ["vcpu"]),
    "tpm": ({"model": "tpm-crb"}, ["devices/tpm"]),
    "graphics": ({"type": "vnc"}, ["devices/graphics", "devices/audio"]),
    "disks": ([{"id": "data", "bus": "sata"}], ["devices/disk[2]/target", "devices/disk[2]/address"]),
    "cdroms": ([{"id": "cd", "path": ISO}], ["devices/disk[3]/source"]),
    "networks": ([{"id": "wan", "mac": "52:54:00:00:00:01"}], ["devices/interface[2]/mac"]),
}


@settings(max_examples=40)
@given(chosen=st.sets(st.sampled_from(sorted(FIELDS))))
def test_no_plan_touches_an_undeclared_field(lab, chosen):
    there = lab.guest("linux")
    decision = lab.decide(there, state="present", **{name: FIELDS[name][0] for name in chosen})
    assert {change.path.split(".")[0] for change in decision.plan} == chosen
    before, after = copy.deepcopy(there.config), copy.deepcopy(decision.config)
    for name in chosen:
        for path in FIELDS[name][1]:
            xml.drop(before, path)
            xml.drop(after, path)
    assert xml.dump(before) == xml.dump(after)


@settings(max_examples=40)
@given(options=declarations())
def test_planning_changes_nothing_that_was_read(lab, options):
    there = lab.guest("linux", live="linux-live")
    texts = xml.dump(there.config), xml.dump(there.live)
    lab.decide(there, **{**options, "profile": None, "state": "present"})
    assert (xml.dump(there.config), xml.dump(there.live)) == texts
