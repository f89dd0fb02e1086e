# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every field of a guest: written, read back, refused.

``domains/everything.xml`` is what libvirt 9.0.0 made of ``EVERYTHING``, validated against its schema.
"""

from __future__ import annotations

import copy
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import read_host, spec, values
from ansible_collections.phyllome.virt.plugins.module_utils._guest.passthrough import Devices
from ansible_collections.phyllome.virt.plugins.module_utils._guest.profiles import PROFILES
from ansible_collections.phyllome.virt.plugins.module_utils._guest.tables import DOMAIN, KINDS

GIB = 1024**3
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
EVERYTHING: dict[str, typing.Any] = {
    "name": "all",
    "state": "present",
    "profile": "linux-desktop",
    "memory": {
        "size": "256MiB",
        "maximum": "4GiB",
        "slots": 4,
        "virtio_mem": {"size": "1GiB", "requested": "128MiB"},
        "locked": False,
        "nodes": "0",
        "nodes_mode": "strict",
    },
    "vcpus": {
        "current": 2,
        "maximum": 4,
        "topology": {"sockets": 1, "threads": 2},
        "iothreads": 2,
        "pins": {"0": "0", "1": "0-1"},
        "emulator_pins": "0-1",
        "iothread_pins": {"1": "1"},
    },
    "cpu": {"mode": "custom", "model": "Nehalem", "features": {"vme": False, "pcid": "disable"}},
    "firmware": {"secure_boot": True},
    "tpm": {"model": "tpm-crb"},
    "graphics": {"type": "spice", "listen": "127.0.0.1", "port": "5950", "password": "s3cr3t-word", "gl": "none"},
    "video": {"model": "virtio", "heads": 2, "accel3d": False},
    "sound": {"model": "ich9"},
    "rng": {"backend": "random", "source": "/dev/random", "rate": {"bytes": 1024, "period": 1000}},
    "watchdog": {"model": "i6300esb", "action": "poweroff"},
    "vsock": {"cid": "auto"},
    "channels": ["agent", "spice"],
    "boot": {"menu": True, "timeout": 3000},
    "metadata": {"title": "All there is", "description": "line one\nline two <&>"},
    "inputs": [
        {"id": "pen", "type": "tablet"},
        {"id": "kbd", "type": "keyboard", "bus": "virtio"},
        {
            "id": "ev",
            "type": "evdev",
            "path": "/dev/null",
            "grab": "all",
            "grab_toggle": "scrolllock",
            "repeat": True,
        },
        {"id": "pass", "type": "passthrough", "path": "/dev/zero"},
    ],
    "filesystems": [
        {"id": "share", "source": "/srv"},
        {"id": "old", "source": "/srv", "tag": "nine", "driver": "9p", "readonly": True},
    ],
    "hostdevs": [
        {"id": "gpu", "pci": "0000:00:01.0", "rom": {"bar": False}},
        {"id": "blue", "usb": {"vendor": "0x8087", "product": "0x0A2B"}, "startup_policy": "optional"},
    ],
    "disks": [
        {
            "id": "root",
            "size": "1GiB",
            "cache": "none",
            "io": "native",
            "detect_zeroes": "unmap",
            "iothread": 1,
            "queues": 2,
            "serial": "S1",
            "iotune": {"total_bytes_sec": "10MiB", "read_iops_sec": 500},
        },
        {"id": "data", "size": "1GiB", "format": "raw", "bus": "scsi", "shareable": True, "cache": "none"},
        {"id": "ro", "size": "1GiB", "bus": "usb", "discard": "ignore"},
        {"id": "dev", "block": "/dev/null", "bus": "scsi", "readonly": True},
        {"id": "base", "size": "1GiB", "source": {"path": "/root/counter.qcow2", "method": "linked"}},
    ],
    "cdroms": [{"id": "cd"}],
    "networks": [
        {
            "id": "lan",
            "network": "default",
            "queues": 2,
            "mtu": 1400,
            "link": "down",
            "filter": "clean-traffic",
            "bandwidth": {"inbound": {"average": 1000, "peak": 5000, "burst": 1024}, "outbound": {"average": 128}},
        },
        {"id": "mac", "direct": "host0", "model": "e1000e", "vlan": 42},
        {"id": "usr", "user": True, "model": "rtl8139"},
        {"id": "usr2", "user": True},
    ],
    "xml": {
        "guest": f'<domain xmlns:qemu="{QEMU}"><features><vmcoreinfo state="on"/></features><qemu:commandline>'
        '<qemu:arg value="-name"/><qemu:arg value="x"/></qemu:commandline></domain>',
        "devices": {
            "root": '<disk><driver error_policy="stop"/></disk>',
            "data": "<disk><product>x</product></disk>",
        },
    },
}


def said(lab, there=None, **options):
    with pytest.raises(PhyllomeError) as caught:
        lab.decide(there, **options)
    assert caught.value.remedy
    return str(caught.value)


# Rows


def samples(row):
    """Values that the row can have, canonical."""
    if row.choices:
        return list(row.choices)
    if row.kind.ansible == "bool":
        return [True, False, True]
    if row.kind.ansible == "int":
        return [1, 3]
    named = {
        "memory": [GIB, 3 * GIB],
        "channels": [("agent",), ("agent", "spice"), ()],
        "numa": [(("0", GIB), ("1", 2 * GIB)), (("0-1", GIB),)],
        "features": [{"vme": "disable"}, {"vme": "require"}],
        "hugepages": [2 * 1024**2, 0, GIB],
        "cid": ["auto", "7", "none", "auto"],
        "port": ["auto", "5901", "auto"],
        "listen": ["0.0.0.0", "none", "::1"],
        "mac": ["52:54:00:00:00:01"],
        "pci": ["0000:01:00.0", "0000:0a:1f.7"],
        "mdev": ["c2177883-f1bb-47f0-914d-32a22e3a8804"],
        "usb.vendor": ["0x8087"],
        "usb.product": ["0x0a2b"],
        "model": ["Nehalem"],
        "title": ["A title"],
        "description": ["two\nlines"],
    }
    if row.option in named:
        return named[row.option]
    if row.kind is values.PINS:
        return [{"0": "0-1"}, {"0": "1", "1": "0"}]
    if row.kind is values.CPUS:
        return ["0-1", "3"]
    if row.kind is values.BYTES or row.kind.unit:
        return [GIB, 2 * GIB]
    return ["/path/a"] if row.kind.ansible == "path" else ["word", "other"]


@pytest.mark.parametrize(
    ("group", "row"),
    [(group, row) for group, rows in DOMAIN.items() for row in rows],
    ids=lambda value: str(value)[:30],
)
def test_what_is_written_is_read(group, row):
    root = xml.parse(
        "<domain><memory/><vcpu>4</vcpu><os/><devices><graphics type='vnc'/><rng model='virtio'>"
        "<backend model='random'/></rng><watchdog model='i6300esb'/><video><model type='vga'/></video></devices></domain>"
    )
    for value in samples(row):
        if row.option == "virtio_mem.requested":
            DOMAIN["memory"][2].write(root, 4 * GIB)
        row.write(root, value)
        found = row.read(root)
        assert row.same(found, value), (group, row.option, found, value)
        once = xml.canonical(root)
        row.write(root, value)
        assert xml.canonical(root) == once, "writing it again changes nothing"
        assert row.shown(value) is not None


@pytest.mark.parametrize(
    ("kind", "row"),
    [(kind, row) for kind in KINDS for row in kind.rows],
    ids=lambda value: getattr(value, "option", None),
)
def test_what_is_written_into_a_device_is_read(kind, row):
    devices = xml.element("devices")
    root = xml.child(devices, kind.tag)
    if kind.option == "inputs" and row.option != "type":
        root.set("type", "evdev")
    if row.option == "mode":
        root.set("type", "direct")
    for value in samples(row):
        row.write(root, value)
        if value is not False or row.option != "user":
            assert row.read(root) == value
        once = xml.dump(root)
        row.write(root, value)
        assert xml.dump(root) == once


def test_every_option_is_tried():
    """``EVERYTHING`` has each option, but for those that cannot stand beside another one."""
    left = set()
    for group, rows in DOMAIN.items():
        given = EVERYTHING.get(group, {}) if group else {"memory": 1, "vcpus": 1, "channels": 1}
        left |= {f"{group}.{row.option}" for row in rows if row.option.split(".")[0] not in given}
    for kind in KINDS:
        names = {name for device in EVERYTHING[kind.option] for name in device}
        left |= {f"{kind.option}.{row.option}" for row in kind.rows if row.option.split(".")[0] not in names}
    assert left == {
        "vcpus.numa",
        "memory.current",
        "memory.hugepages",
        "memory.shared",
        "cpu.migratable",
        "firmware.type",
        "firmware.enrolled_keys",
        "disks.path",
        "disks.encryption",  # test_luks
        "disks.boot",
        "cdroms.bus",
        "cdroms.path",
        "cdroms.boot",
        "networks.bridge",
        "networks.mode",
        "networks.mac",
        "networks.boot",
        "networks.acpi_index",
        "hostdevs.mdev",
        "hostdevs.managed",
        "hostdevs.display",
        "hostdevs.boot",
    }


def test_what_libvirt_made_of_everything_needs_nothing(lab):
    there = lab.guest("everything")
    decision = lab.decide(there, **EVERYTHING)
    assert lab.seen(decision) == []
    assert xml.dump(decision.config) == xml.dump(there.config)


def test_a_new_guest_with_everything_is_complete_at_once(lab):
    decision = lab.decide(**EVERYTHING)
    assert lab.seen(lab.decide(lab.after(decision), **EVERYTHING)) == []
    assert "s3cr3t-word" not in str(decision.plan.as_list())
    assert "s3cr3t-word" in xml.dump(decision.config)


# Memory and vCPUs


def test_short_and_long_forms_are_the_same(lab):
    there = lab.guest("linux")
    short = lab.decide(there, state="present", memory="1GiB", vcpus=2)
    long = lab.decide(there, state="present", memory={"size": "1GiB"}, vcpus={"current": 2})
    assert lab.seen(short) == lab.seen(long) != []


def test_memory_with_a_maximum_gets_the_cell_that_libvirt_asks_for(lab):
    config = lab.decide(memory={"size": "1GiB", "maximum": "4GiB"}, vcpus=3).config
    (cell,) = config.findall("cpu/numa/cell")
    assert dict(cell.attrib) == {"id": "0", "cpus": "0-2", "memory": str(GIB // 1024), "unit": "KiB"}
    there = lab.of(config)
    more = lab.decide(there, state="present", memory="2GiB", vcpus=4).config
    assert dict(more.find("cpu/numa/cell").attrib) == {
        "id": "0",
        "cpus": "0-3",
        "memory": str(2 * GIB // 1024),
        "unit": "KiB",
    }
    assert more.findtext("memory") == str(2 * GIB // 1024)


def test_memory_devices_are_not_the_guests_own_memory(lab):
    there = lab.guest("everything")
    assert DOMAIN[""][0].read(there.config) == GIB // 4
    config = lab.decide(there, name="all", state="present", memory="512MiB").config
    assert config.findtext("memory") == str((GIB + GIB // 2) // 1024)
    config = lab.decide(there, name="all", state="present", memory={"virtio_mem": {"size": "0"}}).config
    assert config.findtext("memory") == str(GIB // 4 // 1024)
    assert config.find("devices/memory") is None


def test_vcpus_within_their_maximum_change_at_once(lab):
    decision = lab.decide(vcpus={"current": 1, "maximum": 4}, state="present")
    vcpu = decision.config.find("vcpu")
    assert (vcpu.text, vcpu.get("current")) == ("4", "1")
    there = lab.of(decision.config, copy.deepcopy(decision.config))
    (change,) = lab.decide(there, vcpus=3).plan
    assert (change.path, change.when, change.args["call"], change.args["value"]) == ("vcpus", "live", "vcpus", 3)
    decision = lab.decide(there, vcpus=6)
    assert [(change.path, change.when) for change in decision.plan] == [("vcpus", "next_boot")]
    assert {"path": "vcpus", "from": 1, "to": 6} in decision.pending


def test_a_topology_gets_the_cores_that_are_missing(lab):
    config = lab.decide(vcpus={"current": 8, "topology": {"sockets": 2, "threads": 2}}).config
    assert config.find("cpu/topology").get("cores") == "2"
    config = lab.decide(profile="windows11", vcpus={"current": 2, "maximum": 6}).config
    assert config.find("cpu/topology").get("cores") == "6"


def test_cells_are_the_memory(lab):
    cells = [{"cpus": "0-1", "memory": "1GiB"}, {"cpus": "2-3", "memory": "2GiB"}]
    decision = lab.decide(vcpus={"current": 4, "numa": cells})
    assert ("memory", None, "3GiB") in lab.seen(decision)
    assert [cell.get("cpus") for cell in decision.config.findall("cpu/numa/cell")] == ["0-1", "2-3"]
    there = lab.of(decision.config)
    assert "memory: 4GiB is to be shared out among 2 NUMA cells" in said(lab, there, state="present", memory="4GiB")


def test_virtiofs_switches_shared_memory_on_and_says_so(lab):
    share = [{"id": "share", "source": "/srv"}]
    there = lab.guest("linux", live="linux-live")
    decision = lab.decide(there, filesystems=share)
    told = {change.path: change.when for change in decision.plan}
    assert told["memory.shared"] == "next_boot"
    assert told["filesystems.share.source"] == "next_boot"
    assert decision.config.find("memoryBacking/source").get("type") == "memfd"
    assert "memory.shared: false with filesystems.share" in said(lab, memory={"shared": False}, filesystems=share)
    shared = lab.of(decision.config)
    assert "memory.shared: false: the guest has a virtiofs" in said(lab, shared, memory={"shared": False})


# Display


def test_a_password_is_compared_and_never_shown(lab):
    there = lab.guest("everything", live=None)
    (change,) = lab.decide(there, name="all", state="present", graphics={"password": "another"}).plan
    assert (change.path, change.before, change.after) == ("graphics.password", "(not shown)", "(not shown)")
    live = lab.of(there.config, copy.deepcopy(there.config))
    (change,) = lab.decide(live, name="all", graphics={"password": "another"}).plan
    assert change.when == "live"
    assert change.args["device"].get("passwd") == "another"
    assert spec.GUEST_OPTIONS["graphics"]["options"]["password"]["no_log"]
    assert "password" in spec.SECRET


def test_words_for_people_change_at_once(lab):
    there = lab.guest("linux", live="linux-live")
    decision = lab.decide(there, metadata={"title": "Shop"})
    (change,) = decision.plan
    assert (change.when, change.args["call"], change.args["value"]) == ("live", "title", "Shop")
    assert decision.pending == []


def test_a_limit_is_told_to_a_running_guest_with_all_the_others(lab):
    there = lab.guest("linux", live="linux-live")
    decision = lab.decide(there, disks=[{"id": "root", "iotune": {"read_iops_sec": 10, "write_iops_sec": 20}}])
    assert [change.when for change in decision.plan] == ["live", "live"]
    target, limits = decision.plan.changes[-1].args["value"]
    assert target == "vda"
    assert {name: value for name, value in limits.items() if value} == {"read_iops_sec": 10, "write_iops_sec": 20}
    assert decision.pending == []


def test_host_model_that_was_expanded_waits_for_nothing(lab):
    config = lab.decide(cpu={"mode": "host-model"}).config
    live = copy.deepcopy(config)
    live.find("cpu").set("mode", "custom")
    xml.child(live.find("cpu"), "model", "EPYC")
    xml.child(live.find("cpu"), "feature", policy="require", name="x2apic")
    there = lab.of(config, live)
    assert lab.decide(there, cpu={"mode": "host-model"}).pending == []
    other = lab.decide(there, cpu={"mode": "custom", "model": "Nehalem"})
    assert {"path": "cpu.model", "from": "EPYC", "to": "Nehalem"} in other.pending


# Secure Boot and its variables


def test_secure_boot_changes_together_with_its_variables(lab):
    there = lab.guest("linux")
    file = there.config.findtext("os/nvram")
    decision = lab.decide(there, state="present", firmware={"secure_boot": False, "nvram": "reset"})
    assert [(change.action, change.path) for change in decision.plan] == [
        ("store.reset", "firmware.nvram"),
        ("config", "firmware.secure_boot"),
    ]
    assert decision.plan.changes[0].args["file"] == file
    assert decision.config.find("os/firmware/feature[@name='enrolled-keys']") is None
    again = lab.of(decision.config)
    assert lab.seen(lab.decide(again, state="present", firmware={"secure_boot": False, "nvram": "reset"})) == []
    assert "firmware.secure_boot: the guest runs" in said(
        lab, lab.guest("linux", live="linux-live"), firmware={"secure_boot": False, "nvram": "reset"}
    )


def test_variables_of_an_earlier_guest_are_set_aside_when_that_is_said(lab):
    uuid = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
    left = {"exists": {f"/var/lib/libvirt/qemu/nvram/{uuid}_VARS.fd": True}}
    decision = lab.decide(uuid=uuid, firmware={"nvram": "reset"}, world=left)
    assert decision.plan.changes[0].action == "store.reset"
    assert not any("earlier guest" in text for text in decision.warnings)


# Profiles


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_is_complete_at_once(lab, profile):
    options = {"profile": profile, "disks": [{"id": "root", "size": "1GiB"}], "networks": [{"id": "lan", "user": True}]}
    decision = lab.decide(**options)
    assert lab.seen(lab.decide(lab.after(decision), **options)) == []
    root = decision.config
    assert root.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None
    assert (root.find("devices/channel[@type='spicevmc']") is not None) == (profile == "linux-desktop")
    assert (root.find("devices/tpm") is not None) == (profile == "windows11")
    assert (root.find("devices/sound") is not None) == (profile in ("linux-desktop", "windows10", "windows11"))
    assert root.find("clock").get("offset") == ("localtime" if "windows" in profile else "utc")


def test_a_desktop_without_spice_has_no_channel_of_it(lab):
    config = lab.decide(profile="linux-desktop", graphics={"type": "vnc"}).config
    assert config.find("devices/channel[@type='spicevmc']") is None


def test_cards_are_numbered_and_keep_their_numbers(lab):
    cards = [{"id": "a", "user": True}, {"id": "b", "user": True, "model": "rtl8139"}, {"id": "c", "user": True}]
    config = lab.decide(networks=cards, state="present").config
    found = config.findall("devices/interface")
    assert [card.find("acpi").get("index") if card.find("acpi") is not None else None for card in found] == [
        "1",
        None,
        "2",
    ]
    there = lab.of(config)
    more = lab.decide(there, state="present", networks=[{"id": "z", "user": True}]).config
    assert [card.get("index") for card in more.findall("devices/interface/acpi")] == ["1", "2", "3"]


# The host


@pytest.mark.parametrize(
    ("options", "world", "text"),
    [
        ({"vcpus": 300}, {}, "vcpus: 300: this host's QEMU gives a guest at most 288"),
        ({"vcpus": {"current": 2, "maximum": 300}}, {}, "vcpus: 300: this host's QEMU"),
        ({"vcpus": {"pins": {"0": "8"}}}, {}, "vcpus.pins.0: 8: this host has no CPU 8"),
        ({"vcpus": {"emulator_pins": "0-9"}}, {}, "vcpus.emulator_pins: 0-9: this host has no CPU 4"),
        ({"memory": {"hugepages": "1GiB"}}, {}, "memory.hugepages: 1GiB: this host has pages of 2MiB"),
        ({"memory": {"size": "1GiB", "hugepages": "2MiB"}}, {}, "512 pages of 2MiB are needed: 100 are free"),
        ({"cpu": {"mode": "host-passthrough"}}, {}, "cpu.mode: host-passthrough: this host offers custom, maximum"),
        ({"cpu": {"mode": "custom", "model": "EPYC"}}, {}, "cpu.model: EPYC: this host offers Nehalem"),
        ({"video": {"model": "qxl"}}, {}, "video.model: qxl: this host offers vga, virtio"),
        ({"graphics": {"type": "vnc", "gl": "headless"}}, {}, "graphics.gl: headless: this host's QEMU has no egl"),
        (
            {"disks": [{"id": "d", "size": "1GiB", "bus": "usb"}]},
            {},
            "disks.d.bus: usb: this host offers sata, scsi, virtio",
        ),
        (
            {"disks": [{"id": "d", "block": "/dev/sdz"}]},
            {"exists": {"/dev/sdz": False}},
            "disks.d.block: /dev/sdz: this host has no such",
        ),
        (
            {"filesystems": [{"id": "s", "source": "/no"}]},
            {"exists": {"/no": False}},
            "filesystems.s.source: /no: this host has no such",
        ),
        (
            {"networks": [{"id": "n", "direct": "eth9"}]},
            {"exists": {"/sys/class/net/eth9": False}},
            "networks.n.direct: eth9: this host has no such",
        ),
        (
            {"inputs": [{"id": "e", "type": "evdev", "path": "/dev/input/x"}]},
            {"exists": {"/dev/input/x": False}},
            "inputs.e.path: /dev/input/x: this host has no such",
        ),
        (
            {"hostdevs": [{"id": "g", "pci": "01:00.0"}]},
            {"passthrough": Devices(there={"pci 0000:01:00.0": False})},
            "hostdevs.g: pci 0000:01:00.0: this host has no such device",
        ),
        (
            {"hostdevs": [{"id": "g", "pci": "01:00.0"}]},
            {"passthrough": Devices(there={"pci 0000:01:00.0": True}, owners={"pci 0000:01:00.0": ("win",)})},
            "hostdevs.g: pci 0000:01:00.0: the device belongs to guest win",
        ),
        (
            {"hostdevs": [{"id": "u", "usb": {"vendor": "0x8087", "product": "0x0a2b"}}]},
            {"passthrough": Devices(there={"usb 0x8087:0x0a2b": False})},
            "hostdevs.u: usb 0x8087:0x0a2b: the device is not plugged in",
        ),
    ],
)
def test_what_the_host_does_not_have_is_said(lab, options, world, text):
    host = read_host.Host(
        **{
            **vars(lab.host),
            "vcpus": 288,
            "offers": {
                "cpu.mode": frozenset({"custom", "maximum"}),
                "cpu.model": frozenset({"Nehalem"}),
                "video.model": frozenset({"vga", "virtio"}),
                "disk.bus": frozenset({"virtio", "scsi", "sata"}),
            },
        }
    )
    around = {"host": host, "cpus": 4, "hugepages": {2 * 1024**2: 100}, **world}
    assert text in said(lab, world=around, **options)


def test_room_for_memory_has_slots(lab):
    """libvirt refuses maxMemory without them."""
    there = lab.after(lab.decide(memory={"size": "1GiB", "maximum": "4GiB"}))
    assert there.config.find("maxMemory").get("slots") == "16"
    more = lab.decide(there, memory={"maximum": "8GiB", "slots": 2})
    assert lab.decide(lab.after(more, there), memory={"maximum": "9GiB"}).config.find("maxMemory").get("slots") == "2"


def test_huge_pages_of_a_guest_that_is_restarted_are_free_for_it(lab):
    """It gives them back before it starts again, so all of the host's may be its own."""
    declared = {"memory": {"size": "1GiB", "hugepages": "2MiB"}}
    around = {"hugepages": {2 * 1024**2: 512}}
    there = lab.after(lab.decide(world=around, **declared))
    left = {"hugepages": {2 * 1024**2: 8}}
    bigger = {**declared, "memory": {"size": "1040MiB", "hugepages": "2MiB"}, "apply": "restart"}
    assert "shutdown" in [change.action for change in lab.decide(there, world=left, **bigger).plan]
    bigger["memory"] = {"size": "1042MiB", "hugepages": "2MiB"}
    assert "521 pages of 2MiB are needed: 520 are free" in said(lab, there, world=left, **bigger)


@pytest.mark.parametrize(
    ("options", "file"),
    [({"vsock": {"cid": "auto"}}, "/dev/vhost-vsock"), ({"graphics": {"type": "vnc", "gl": "headless"}}, "/dev/dri")],
)
def test_what_a_start_needs_of_the_host_is_said(lab, options, file):
    host = read_host.Host(**{**vars(lab.host), "graphics": frozenset({"vnc", "spice", "egl-headless"})})
    around = {"host": host, "exists": {file: False}}
    assert f"this host has no {file}" in said(lab, world=around, **options)
    assert lab.decide(world=around, state="present", **options).plan.changed


def test_a_usb_device_that_may_be_missing_does_not_stop_the_start(lab):
    blue = {"id": "u", "usb": {"vendor": "0x8087", "product": "0x0a2b"}}
    around = {"passthrough": Devices(there={"usb 0x8087:0x0a2b": False})}
    assert lab.decide(world=around, state="present", hostdevs=[blue]).plan.changed
    assert lab.decide(world=around, hostdevs=[{**blue, "startup_policy": "optional"}]).plan.changed


# Raw XML


@pytest.mark.parametrize(
    ("overlay", "text"),
    [
        ({"guest": "<domain>"}, "xml.guest: this XML cannot be read"),
        ({"guest": "<disk/>"}, "xml.guest: its outermost element is <disk>"),
        ({"guest": "<domain/>"}, "xml.guest: it says nothing"),
        ({"guest": "<domain><name>x</name></domain>"}, "xml.guest: <name> is not for an overlay: declare name"),
        ({"guest": "<domain><devices/></domain>"}, "xml.guest: <devices> is not for an overlay"),
        ({"guest": "<domain><metadata/></domain>"}, "xml.guest: <metadata> is not for an overlay"),
        ({"guest": '<!DOCTYPE a [<!ENTITY b "c">]><domain/>'}, "document type"),
        ({"guest": "<domain><a><b x='1'/><b x='2'/></a></domain>"}, "<b> is in <a> more than once"),
        ({"devices": {"root": "<disk><alias name='ua-x'/></disk>"}}, "xml.devices.root: <alias> is not for an overlay"),
        ({"devices": {"none": "<disk a='b'/>"}}, "xml.devices.none: the guest has no device of this id"),
        ({"devices": {"root": "<interface a='b'/>"}}, "xml.devices.root: its outermost element is <interface>"),
        ({"devices": {"a/b": "<disk a='b'/>"}}, "xml.devices: 'a/b' is not a valid id"),
        (
            {"devices": {"root": "<disk><driver cache='none'/></disk>"}},
            "xml.devices.root: driver/@cache is declared as disks.root.cache as well",
        ),
        ({"guest": "<domain><memory>1</memory></domain>"}, "xml.guest: memory is declared as memory as well"),
    ],
)
def test_raw_xml_that_is_refused(lab, overlay, text):
    disk = {"id": "root", "size": "1GiB", "cache": "none"}
    assert text in said(lab, disks=[disk], memory="1GiB", xml=overlay)


def test_raw_xml_is_merged_and_shown(lab):
    there = lab.guest("linux")
    overlay = {"devices": {"root": "<disk><driver io='threads'/><transient/></disk>"}}
    decision = lab.decide(there, state="present", xml=overlay)
    assert lab.seen(decision) == [
        ("xml.devices.root.driver/@io", None, "threads"),
        ("xml.devices.root.transient", False, True),
    ]
    assert lab.seen(lab.decide(lab.of(decision.config), state="present", xml=overlay)) == []


# Refused before anything is looked at


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"memory": {"siez": "1GiB"}}, "siez"),
        ({"memory": {"size": "1GiB", "current": "2GiB"}}, "memory.current: 2GiB is more than memory.size"),
        ({"memory": {"hugepages": "3MiB"}}, "memory.hugepages: '3MiB' is not a page size"),
        ({"memory": {"nodes": "a"}}, "memory.nodes: 'a' is not a list of CPUs"),
        ({"memory": {"slots": 1000}}, "memory.slots: 1000 is too big"),
        ({"vcpus": {"current": 4, "maximum": 2}}, "vcpus.current: 4 is more than vcpus.maximum: 2"),
        ({"vcpus": {"pins": {"a": "1"}}}, "vcpus.pins: 'a' is not a number"),
        ({"vcpus": {"pins": {"0": "5-2"}}}, "vcpus.pins.0: '5-2' is not a list of CPUs"),
        ({"vcpus": {"numa": []}}, "vcpus.numa: its 0 cells have no memory"),
        (
            {"memory": "2GiB", "vcpus": {"numa": [{"cpus": "0", "memory": "1GiB"}]}},
            "vcpus.numa: its 1 cells have 1GiB",
        ),
        ({"cpu": {"model": "EPYC"}}, "cpu.model: EPYC with cpu.mode: None"),
        ({"cpu": {"mode": "custom"}}, "cpu.model: None with cpu.mode: custom"),
        ({"cpu": {"mode": "host-model", "migratable": False}}, "cpu.migratable: False with cpu.mode: host-model"),
        ({"cpu": {"mode": "fast"}}, "value of mode must be one of"),
        ({"cpu": {"features": {"a'b": "require"}}}, "is not the name of a CPU feature"),
        ({"cpu": {"features": {"vme": "maybe"}}}, "cpu.features.vme: 'maybe' is not a policy"),
        ({"graphics": {"listen": "everywhere"}}, "graphics.listen: 'everywhere' is not an address"),
        ({"graphics": {"port": "80"}}, "graphics.port: '80' is not a display port"),
        ({"graphics": {"password": "a\nb"}}, "graphics.password: it is not a password"),
        ({"graphics": {"type": "none", "port": "auto"}}, "graphics.port: given beside graphics.type: none"),
        ({"rng": {"backend": "none", "source": "/dev/random"}}, "rng.source: given beside rng.backend: none"),
        ({"watchdog": {"model": "none", "action": "reset"}}, "watchdog.action: given beside watchdog.model: none"),
        ({"vsock": {"cid": "2"}}, "vsock.cid: '2' is not a context id"),
        ({"channels": ["agent", "vmware"]}, "channels: 'vmware' is not known"),
        ({"boot": {"timeout": -1}}, "boot.timeout: -1 is too small"),
        ({"metadata": {"title": "two\nlines"}}, "metadata.title: 'two\\nlines' is not one line of text"),
        ({"metadata": {"description": "\x01"}}, "metadata.description"),
        ({"disks": [{"id": "d", "block": "/dev/sdb", "size": "1GiB"}]}, "disks.d.size: given beside block"),
        ({"disks": [{"id": "d", "block": "/dev/sdb", "path": "/a"}]}, "disks.d: path and block are both given"),
        ({"disks": [{"id": "d", "size": "1GiB", "shareable": True}]}, "disks.d.shareable: true"),
        ({"disks": [{"id": "d", "size": "1GiB", "serial": "a b"}]}, "disks.d.serial: 'a b' is not a serial number"),
        ({"disks": [{"id": "d", "size": "1GiB", "bus": "scsi", "queues": 2}]}, "disks.d.queues: given with bus: scsi"),
        (
            {"disks": [{"id": "d", "format": "raw", "source": {"path": "/a", "method": "linked"}}]},
            "disks.d.source.method: linked",
        ),
        ({"networks": [{"id": "n", "user": False}]}, "networks.n.user: false"),
        ({"networks": [{"id": "n", "network": "a", "mode": "vepa"}]}, "networks.n.mode: vepa"),
        ({"networks": [{"id": "n", "network": "a", "user": True}]}, "networks.n: network and user are both given"),
        ({"networks": [{"id": "n", "vlan": 4095}]}, "networks.n.vlan: 4095 is too big"),
        ({"networks": [{"id": "n", "bandwidth": {"inbound": {"peak": 1}}}]}, "bandwidth.inbound.average of networks.n"),
        (
            {"networks": [{"id": "n", "user": True, "mac": "52:54:00:12:34:56\n"}]},
            "is not a MAC address of a network card",
        ),
        (
            {"networks": [{"id": "n", "acpi_index": 1}, {"id": "m", "acpi_index": 1}]},
            "networks: acpi_index 1 is used twice",
        ),
        ({"hostdevs": [{"id": "g", "pci": "1:0"}]}, "hostdevs.g.pci: '1:0' is not a PCI address"),
        ({"hostdevs": [{"id": "g", "pci": "01:00.0\n"}]}, "is not a PCI address"),
        ({"hostdevs": [{"id": "g", "usb": {"vendor": "0x8087"}}]}, "vendor and product together"),
        ({"hostdevs": [{"id": "g", "usb": {"vendor": "8087", "product": "0x1"}}]}, "is not a USB identifier"),
        ({"hostdevs": [{"id": "g", "mdev": "x"}]}, "hostdevs.g.mdev: 'x' is not a UUID"),
        ({"hostdevs": [{"id": "g", "pci": "01:00.0", "startup_policy": "optional"}]}, "given without usb"),
        (
            {"hostdevs": [{"id": "g", "pci": "01:00.0"}, {"id": "h", "pci": "0000:01:00.0"}]},
            "hostdevs: pci '0000:01:00.0' is used twice",
        ),
        ({"filesystems": [{"id": "s", "source": "/a", "tag": "a b"}]}, "filesystems.s.tag: 'a b' is not a mount tag"),
        ({"filesystems": [{"id": "s", "source": "../a"}]}, "filesystems.s.source"),
        ({"filesystems": [{"id": "s", "source": "/a", "readonly": True}]}, "readonly: true with driver: virtiofs"),
        ({"inputs": [{"id": "i", "type": "evdev"}]}, "inputs.i.path: None with type: evdev"),
        ({"inputs": [{"id": "i", "type": "mouse", "path": "/dev/x"}]}, "inputs.i.path: /dev/x with type: mouse"),
        ({"inputs": [{"id": "i", "type": "mouse", "grab": "all"}]}, "inputs.i.grab: given without type: evdev"),
        ({"inputs": [{"id": "i", "type": "tablet", "bus": "ps2"}]}, "inputs.i.bus: ps2 with type: tablet"),
        (
            {"disks": [{"id": "d", "source": {"path": "/a", "checksum": f"sha256:{'0' * 64}\n"}}]},
            "is not a checksum",
        ),
    ],
)
def test_bad_options_are_refused_one_by_one(options, text):
    with pytest.raises(PhyllomeError) as caught:
        spec.accept({"name": "web", **options})
    assert text in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vcpus": {"topology": {"threads": 2}, "current": 3}}, "vcpus: 3 does not fit the guest's CPU topology"),
        ({"vcpus": {"topology": {"cores": 2, "threads": 2}, "current": 2}}, "multiply to 4"),
        ({"vcpus": {"current": 2, "numa": [{"cpus": "0", "memory": "1GiB"}]}}, "vcpus.numa: its cells have 1 vCPUs"),
        ({"vcpus": {"current": 2, "pins": {"2": "0"}}}, "vcpus.pins: there is no 2"),
        ({"vcpus": {"iothread_pins": {"1": "0"}}}, "vcpus.iothread_pins: there is no 1"),
        ({"disks": [{"id": "d", "size": "1GiB", "iothread": 1}]}, "disks: iothread 1 is used: the guest has 0"),
        ({"memory": {"virtio_mem": {"size": "1GiB"}}}, "memory.virtio_mem: the guest has no room for it"),
        (
            {"memory": {"size": "1GiB", "maximum": "1GiB", "virtio_mem": {"size": "1GiB"}}},
            "memory.maximum: 1GiB is less than the 2GiB",
        ),
        (
            {"memory": {"maximum": "8GiB", "virtio_mem": {"size": "1GiB", "requested": "2GiB"}}},
            "memory.virtio_mem.requested: 2GiB is more than its size, 1GiB",
        ),
        ({"video": {"accel3d": True}}, "video.accel3d: true: nobody draws for it"),
        ({"graphics": {"type": "spice", "gl": "local"}}, "graphics.gl: local"),
        ({"graphics": {"password": "more than eight"}}, "graphics.password: it is too long"),
        ({"channels": ["spice"]}, "channels: spice with graphics.type: vnc"),
        ({"networks": [{"id": "n", "user": True, "mtu": 1400}]}, "networks.n.mtu: 1400: a card of type user"),
        ({"networks": [{"id": "n", "user": True, "filter": "clean"}]}, "networks.n.filter: clean: a card of type user"),
        (
            {"networks": [{"id": "n", "user": True, "bandwidth": {"inbound": {"average": 1}}}]},
            "networks.n.bandwidth.inbound.average: 1: a card of type user",
        ),
        ({"networks": [{"id": "n", "direct": "eth0", "filter": "clean"}]}, "filter: clean: a card of type direct"),
        (
            {"networks": [{"id": "n", "network": "default", "model": "e1000e", "queues": 2}]},
            "networks.n.queues: 2: only virtio cards have queues, and this is e1000e",
        ),
        ({"hostdevs": [{"id": "g"}]}, "hostdevs.g: what it is is not said"),
        ({"filesystems": [{"id": "s"}]}, "filesystems.s: what it is is not said"),
        ({"inputs": [{"id": "i"}]}, "inputs.i: what it is is not said"),
    ],
)
def test_what_does_not_belong_together_is_said(lab, options, text):
    assert text in said(lab, **options)


# Values


@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_of_cpus_are_written_as_short_as_libvirt_does(numbers):
    text = values.cpu_list(tuple(sorted(numbers)))
    assert values.cpus(text) == tuple(sorted(numbers))
    assert len(text) <= len(",".join(map(str, numbers)))


def test_exclusions_are_understood():
    assert values.cpus("0-3,^2") == (0, 1, 3)
    with pytest.raises(PhyllomeError):
        values.cpus("0,^0")
    with pytest.raises(PhyllomeError):
        values.cpus("9999999")
