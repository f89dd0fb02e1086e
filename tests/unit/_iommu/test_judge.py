# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups and devices of composed machines, and what JMESPath selects from them."""

from __future__ import annotations

import json
import os
import typing as t

import jmespath
import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import apart
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.sysfs import Tree
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import PARTS, gather, gather_from
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.judge import HAZARDS
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

Facts = dict[str, t.Any]
CONSENT_WORDS = {  # design: interface, vfio_bind
    "mounted_storage", "has_data", "mgmt_nic", "nic_used", "primary_gpu", "usb_boot", "collateral", "acs_override",
    "unsafe_interrupts", "risky_unbind", "no_reset",
}  # fmt: skip


@pytest.fixture
def facts(tmp_path) -> t.Callable[[machines.Machine], Facts]:
    return lambda machine: gather(machine.write(tmp_path / str(len([*tmp_path.iterdir()]))))


def device(facts: Facts, address: str) -> Facts:
    return next(one for one in facts["devices"] if one["address"] == address)


def group(facts: Facts, number: int) -> Facts:
    return next(one for one in facts["groups"] if one["id"] == number)


def hazards(facts: Facts, address: str) -> set[str]:
    return {hazard["code"] for hazard in device(facts, address)["hazards"]}


def select(facts: Facts, query: str) -> list[str]:
    return jmespath.search(query, facts["devices"])


def test_consent_is_only_asked_for_with_the_words_of_the_interface():
    assert {word for word in HAZARDS.values() if word} == CONSENT_WORDS


def test_a_device(facts):
    found = device(facts(machines.desktop()), "0000:0b:00.0")
    assert found == {
        "address": "0000:0b:00.0",
        "identity": {
            "key": "10de:2204/1043:87d9@2",
            "serial": None,
            "slot": "2",
            "path": "pci0000:00/0000:00:03.1/0000:0b:00.0",
        },
        "vendor": "10de",
        "device": "2204",
        "subsystem": "1043:87d9",
        "revision": "a1",
        "vendor_name": "NVIDIA Corporation",
        "device_name": "GA102 [GeForce RTX 3090]",
        "class": "030000",
        "class_name": "vga",
        "header": "endpoint",
        "group": 21,
        "iommu_unit": "ivhd0",
        "driver": "nouveau",
        "driver_override": None,
        "drivers_available": ["nouveau", "nvidia", "vfio-pci"],
        "vfio_driver": "vfio-pci",
        "functions": ["0000:0b:00.1"],
        "numa_node": None,
        "boot_vga": False,
        "boot_display": None,
        "power_state": "D0",
        "link": {"speed": 16000, "width": 4, "max_speed": 16000, "max_width": 16},
        "reset_methods": ["bus"],
        "acs_path": [{"bridge": "0000:00:03.1", "cap": None, "enabled": None}],
        "sriov": None,
        "mdev": {"types": [], "model": "none"},
        "bars": [{"n": 0, "bytes": 16 << 20, "resizable": False}, {"n": 1, "bytes": 24 << 30, "resizable": False}],
        "in_use": False,
        "hazards": [],
        "runtime_bind": "risky",
        "ids_collateral": ["0000:0a:00.0"],
        "libvirt": {
            "nodedev": "pci_0000_0b_00_0",
            "address": {"domain": 0, "bus": 11, "slot": 0, "function": 0},
        },
        "unknown": ["acs_path", "numa_node"],
    }


def test_a_group(facts):
    assert group(facts(machines.desktop()), 21) == {
        "id": 21,
        "type": "DMA-FQ",
        "devices": ["0000:0b:00.0", "0000:0b:00.1"],
        "endpoints": ["0000:0b:00.0", "0000:0b:00.1"],
        "state": "bindable",
        "isolated": True,
        "bind_set": ["0000:0b:00.0", "0000:0b:00.1"],
        "reserved_regions": [{"start": 0xFEE00000, "end": 0xFEEFFFFF, "type": "msi"}],
        "reasons": [],
    }


def test_what_a_person_asks_of_a_desktop(facts):
    found = facts(machines.desktop())
    assert select(found, "[?class_name=='vga' && !hazards].address") == ["0000:0b:00.0"]
    assert select(found, "[?class_name=='nvme' && !hazards].address") == ["0000:03:00.0"]
    assert select(found, "[?class_name=='ethernet' && !hazards].address") == []
    assert select(found, "[?class_name=='usb' && !hazards].address") == ["0000:07:00.1"]
    assert select(found, "[?in_use && header=='endpoint' && class_name=='nvme'].identity.serial") == ["S5GXNX0T0"]


def test_the_same_hazards_for_all_of_a_group(facts):
    found = facts(machines.desktop())
    sound = device(found, "0000:0a:00.1")
    assert [(one["code"], one["device"]) for one in sound["hazards"]] == [
        ("primary_gpu", "0000:0a:00.0"),
        ("opened", "0000:0a:00.0"),
    ]
    assert sound["in_use"] is False
    assert group(found, 20)["state"] == "blocked"
    assert {reason["device"] for reason in group(found, 20)["reasons"]} == {"0000:0a:00.0"}


def test_a_hazard_says_what_and_who_and_which_word_lifts_it(facts):
    found = {one["code"]: one for one in device(facts(machines.desktop()), "0000:01:00.0")["hazards"]}
    assert found["root_fs"] == {
        "code": "root_fs",
        "severity": "never",
        "consent": None,
        "via": ["/ on nvme0n1p2"],
        "device": "0000:01:00.0",
    }
    assert (found["boot_disk"]["severity"], found["boot_disk"]["consent"]) == ("refuse", "mounted_storage")
    assert found["swap"]["via"] == ["swap /swapfile on nvme0n1p2"]


def test_a_disk_behind_vmd_and_the_controller_go_together(facts):
    found = facts(machines.laptop())
    nvme = device(found, "10000:e1:00.0")
    assert nvme["libvirt"] == {
        "nodedev": "pci_10000_e1_00_0",
        "address": {"domain": 0x10000, "bus": 0xE1, "slot": 0, "function": 0},
    }
    assert nvme["identity"]["path"] == "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0"
    assert nvme["identity"]["key"] == "144d:a80b/1849:ffff@0000:00/0e.0/06.0/00.0"
    assert {"root_fs", "bus_parent"} <= hazards(found, "10000:e1:00.0") & hazards(found, "0000:00:0e.0")
    assert (group(found, 5)["isolated"], group(found, 5)["state"]) == (False, "blocked")
    assert [one["address"] for one in found["devices"]][-1] == "10000:e1:00.0"  # sorted as numbers


def test_sound_on_the_chipset_is_stuck_with_the_smbus(facts):
    found = facts(machines.laptop())
    assert hazards(found, "0000:00:1f.3") == {"platform", "no_reset"}
    assert group(found, 11)["endpoints"] == ["0000:00:1f.3"]
    assert ("platform", "0000:00:1f.4") in {(one["code"], one["device"]) for one in group(found, 11)["reasons"]}


def test_a_server(facts):
    found = facts(machines.server())
    assert select(found, "[?!hazards].address") == ["0000:5e:00.0", "0000:5e:01.0"]
    shared = group(found, 60)
    assert (shared["state"], shared["isolated"], shared["bind_set"]) == (
        "shared",
        False,
        ["0000:5e:00.0", "0000:5e:01.0"],
    )
    assert device(found, "0000:18:00.0")["sriov"] == {
        "totalvfs": 8,
        "numvfs": 0,
        "autoprobe": True,
        "vfs": [],
        "physfn": None,
    }
    assert device(found, "0000:18:00.0")["numa_node"] == 0  # not the same as unknown


def test_bridges_and_the_drivers_of_ports_do_not_block_a_group(facts):
    machine = machines.desktop()
    bridge = machine.path_of("0000:00:03.1")
    machine.remove("sys/kernel/iommu_groups/4")
    machine.link(f"{bridge}/iommu_group", "sys/kernel/iommu_groups/21")
    machine.link("sys/kernel/iommu_groups/21/devices/0000:00:03.1", bridge)
    found = group(facts(machine), 21)
    assert found["state"] == "bindable"
    assert found["endpoints"] == found["bind_set"] == ["0000:0b:00.0", "0000:0b:00.1"]
    machine.link(f"{bridge}/driver", "sys/bus/pci/drivers/other")
    machine.file(f"{bridge}/uevent", "DRIVER=other\nPCI_SLOT_NAME=0000:00:03.1\n")
    judged = facts(machine)
    assert group(judged, 21)["state"] == "blocked"
    assert hazards(judged, "0000:0b:00.0") == {"bridge_driver"}


def bind(machine: machines.Machine, address: str, driver: str | None) -> None:
    path = machine.path_of(address)
    machine.remove(f"{path}/driver")
    lines = machine.files[f"{path}/uevent"].decode().splitlines()
    lines = [line for line in lines if not line.startswith("DRIVER=")]
    if driver:
        machine.link(f"{path}/driver", f"sys/bus/pci/drivers/{driver}")
        lines.insert(0, f"DRIVER={driver}")
    machine.file(f"{path}/uevent", "\n".join(lines) + "\n")


@pytest.mark.parametrize("driver", ["vfio-pci", "mlx5_vfio_pci", "nvgrace-gpu-vfio-pci"])
def test_a_group_that_is_ready(facts, driver):
    machine = machines.desktop()
    for function in (0, 1):
        bind(machine, f"0000:0b:00.{function}", driver)
    found = facts(machine)
    assert (group(found, 21)["state"], group(found, 21)["bind_set"]) == ("ready", [])
    assert found["bindings"]["live"] == [
        {"address": "0000:0b:00.0", "driver": driver},
        {"address": "0000:0b:00.1", "driver": driver},
    ]
    assert device(found, "0000:0b:00.0")["runtime_bind"] == "safe"


def test_half_a_group_is_not_ready(facts):
    machine = machines.desktop()
    bind(machine, "0000:0b:00.0", "vfio-pci")
    bind(machine, "0000:0b:00.1", None)
    assert group(facts(machine), 21)["bind_set"] == ["0000:0b:00.1"]


def test_the_acs_override_makes_every_verdict_untrusted(facts):
    machine = machines.desktop()
    machine.file("proc/cmdline", "quiet pcie_acs_override=downstream\n")
    found = facts(machine)
    assert {one["state"] for one in found["groups"]} == {"untrusted"}
    assert {one["isolated"] for one in found["groups"]} == {None}
    assert all("acs_override" in {hazard["code"] for hazard in one["hazards"]} for one in found["devices"])
    assert select(found, "[?!hazards]") == []


def test_rmrr(facts):
    machine = machines.server()
    text = "0x00000000000f0000 0x00000000000fffff {}\n0x00000000fee00000 0x00000000feefffff msi\n"
    machine.file("sys/kernel/iommu_groups/60/reserved_regions", text.format("direct-relaxable"))
    assert select(facts(machine), "[?!hazards].address") == ["0000:5e:00.0", "0000:5e:01.0"]
    machine.file("sys/kernel/iommu_groups/60/reserved_regions", text.format("direct"))
    found = facts(machine)
    assert hazards(found, "0000:5e:00.0") == {"rmrr"}
    assert group(found, 60)["reserved_regions"][0] == {"start": 0xF0000, "end": 0xFFFFF, "type": "direct"}


def test_virtual_functions(facts):
    found = facts(machines.sriov())
    assert hazards(found, "0000:5e:00.0") == {"vf_parent"} == hazards(found, "0000:5e:01.0")
    assert device(found, "0000:5e:00.0")["sriov"]["vfs"] == ["0000:5e:10.0", "0000:5e:10.1"]
    assert device(found, "0000:5e:10.0")["sriov"]["physfn"] == "0000:5e:00.0"
    assert hazards(found, "0000:5e:10.0") == set()
    assert hazards(found, "0000:5e:10.1") == {"other_guest"}
    assert group(found, 71)["state"] == "blocked"


def test_mediated_devices(facts):
    machine = machines.desktop()
    path = machine.path_of("0000:0b:00.0")
    machine.directories.add(f"{path}/mdev_supported_types/nvidia-63")
    assert device(facts(machine), "0000:0b:00.0")["mdev"] == {"types": ["nvidia-63"], "model": "mdev"}
    machine.directories.add(f"{path}/c2177883-f1bb-47f0-914d-32a22e3a8804")
    assert hazards(facts(machine), "0000:0b:00.0") == {"vf_parent"}


def test_before_the_iommu_is_on_no_group_is_known(facts):
    found = facts(machines.bare(tables=["DMAR"]))
    assert found["groups"] == []
    assert all("unknown_group" in hazards(found, one["address"]) for one in found["devices"])
    assert {one["group"] for one in found["devices"]} == {None}


def test_a_disk_to_start_from_behind_usb(facts):
    machine = machines.desktop()
    machine.disk("sdb", "0000:07:00.1", "8:16", {"sdb1": "vfat"})
    machine.mount("8:17", "/boot", "vfat", "/dev/sdb1")
    found = {one["code"]: one["consent"] for one in device(facts(machine), "0000:07:00.1")["hazards"]}
    assert found == {"usb_boot": "usb_boot", "has_data": "has_data"}


@pytest.mark.parametrize(
    "parameter", ["vfio/parameters/enable_unsafe_noiommu_mode", "vfio_iommu_type1/parameters/allow_unsafe_interrupts"]
)
def test_an_unsafe_vfio_is_a_hazard_of_everything(facts, parameter):
    machine = machines.desktop()
    machine.file(f"sys/module/{parameter}", "Y\n")
    assert select(facts(machine), "[?!hazards]") == []


def test_in_a_container_nothing_is_free(facts):
    machine = machines.desktop()
    machine.links["proc/4242/ns/pid"] = "pid:[4026532700]"
    found = facts(machine)
    assert found["host"]["container"] is True
    assert select(found, "[?!hazards]") == []


# the display


def test_a_second_card_that_shows_a_picture_is_in_use(facts):
    machine = machines.desktop()
    machine.file(f"{machine.path_of('0000:0b:00.0')}/drm/card1/card1-DP-2/enabled", "enabled\n")
    found = facts(machine)
    assert device(found, "0000:0b:00.0")["hazards"][0]["via"] == ["card1-DP-2"]
    assert hazards(found, "0000:0b:00.1") == {"primary_gpu"}


def test_the_only_graphics_card_is_the_screen_whatever_boot_vga_says(facts):
    machine = machines.server()
    machine.file(f"{machine.path_of('0000:02:00.0')}/boot_vga", "0\n")
    assert hazards(facts(machine), "0000:02:00.0") == {"primary_gpu"}


def test_boot_display_counts_without_boot_vga(facts):
    machine = machines.desktop()
    machine.file(f"{machine.path_of('0000:0b:00.0')}/drm/card1/boot_display", "1\n")
    assert "primary_gpu" in hazards(facts(machine), "0000:0b:00.0")


def test_a_card_at_vfio_is_nobodys_screen(facts):
    machine = machines.desktop()
    for function in (0, 1):
        bind(machine, f"0000:0a:00.{function}", "vfio-pci")
    machine.remove("proc/700")
    for made_by_its_driver in (f"{machine.path_of('0000:0a:00.0')}/drm", "sys/class/graphics/fb0"):
        machine.remove(made_by_its_driver)
    assert hazards(facts(machine), "0000:0a:00.0") == set()


def test_a_driver_that_hides_its_connectors(facts):
    machine = machines.desktop()
    machine.remove(f"{machine.path_of('0000:0b:00.0')}/drm")
    assert hazards(facts(machine), "0000:0b:00.0") == {"unknown_display"}


def test_a_card_for_computing_has_no_screen(facts):
    machine = machines.server()
    machine.pci("0000:5e:02.0", "10de:20b0", "030200", behind="0000:5d:00.0", group=61, driver="nvidia")
    assert hazards(facts(machine), "0000:5e:02.0") == set()


# reset


def test_without_a_way_to_reset(facts):
    machine = machines.desktop()
    machine.remove(f"{machine.path_of('0000:07:00.1')}/reset_method")
    assert hazards(facts(machine), "0000:07:00.1") == {"no_reset"}


def test_a_bus_that_is_all_in_one_group_can_be_reset_as_a_whole(facts):
    machine = machines.desktop()
    machine.remove(f"{machine.path_of('0000:0b:00.0')}/reset_method")
    found = facts(machine)
    assert device(found, "0000:0b:00.0")["reset_methods"] == []
    assert hazards(found, "0000:0b:00.0") == set()


def test_an_old_kernel_that_does_not_name_its_ways_to_reset(facts):
    machine = machines.desktop()
    path = machine.path_of("0000:07:00.1")
    machine.remove(f"{path}/reset_method")
    machine.file(f"{path}/reset", "")
    found = device(facts(machine), "0000:07:00.1")
    assert (found["reset_methods"], found["hazards"]) == (None, [])
    assert "reset_methods" in found["unknown"]


# drivers, names and access control


def test_the_vfio_driver_made_for_a_device(facts):
    found = device(facts(machines.server()), "0000:18:00.0")
    assert (found["drivers_available"], found["vfio_driver"]) == (["mlx5_core", "mlx5_vfio_pci"], "mlx5_vfio_pci")


def test_drivers_that_are_built_in(facts):
    machine = machines.server()
    path = f"usr/lib/modules/{machines.KERNEL}/modules.builtin.modinfo"
    machine.file(path, b"igb.description=x\0igb.alias=pci:v00008086d00001521sv*sd*bc*sc*i*\0igb.license=GPL\0")
    assert device(facts(machine), "0000:5e:00.0")["drivers_available"] == ["igb", "vfio-pci"]


def test_without_module_aliases_drivers_are_unknown(facts):
    machine = machines.server()
    machine.remove("usr/lib/modules")
    found = device(facts(machine), "0000:18:00.0")
    assert (found["drivers_available"], found["vfio_driver"]) == (None, None)
    assert {"drivers_available", "vfio_driver"} <= {*found["unknown"]}
    assert found["hazards"] == device(facts(machines.server()), "0000:18:00.0")["hazards"]


def test_names_are_never_needed(facts):
    machine = machines.desktop()
    machine.remove("usr/share")
    found, named = device(facts(machine), "0000:0b:00.0"), device(facts(machines.desktop()), "0000:0b:00.0")
    assert found == {**named, "vendor_name": None, "device_name": None}


def test_access_control_on_the_way(facts):
    machine = machines.desktop()
    machine.acs("0000:00:03.1", 0b1011101)
    machine.acs("0000:00:01.1", None)
    found = facts(machine)
    assert device(found, "0000:0b:00.0")["acs_path"] == [
        {"bridge": "0000:00:03.1", "cap": True, "enabled": ["SV", "RR", "CR", "UF", "DT"]}
    ]
    assert device(found, "0000:0a:00.0")["acs_path"] == [{"bridge": "0000:00:01.1", "cap": False, "enabled": []}]
    assert device(found, "0000:00:03.1")["acs_path"] == []


@pytest.mark.parametrize("config", [b"", b"\xff" * 64, b"\xff" * 4096, b"\0" * 256])
def test_access_control_of_a_bridge_that_does_not_say(facts, config):
    machine = machines.desktop()
    machine.file(f"{machine.path_of('0000:00:03.1')}/config", config)
    cap = device(facts(machine), "0000:0b:00.0")["acs_path"][0]["cap"]
    assert cap is (False if config == b"\0" * 256 else None)


def test_a_chain_of_capabilities_in_a_circle_ends(facts):
    machine = machines.desktop()
    machine.file(f"{machine.path_of('0000:00:03.1')}/config", b"\0" * 256 + bytes([1, 0, 0, 0x10]) + b"\0" * 3836)
    assert device(facts(machine), "0000:0b:00.0")["acs_path"][0]["cap"] is False


def test_a_sleeping_bridge_is_not_woken_up(facts):
    machine = machines.desktop()
    machine.acs("0000:00:03.1", 0xFF)
    machine.file(f"{machine.path_of('0000:00:03.1')}/power_state", "D3cold\n")
    assert device(facts(machine), "0000:0b:00.0")["acs_path"][0]["cap"] is None


LINK = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")


@pytest.mark.parametrize(
    ("said", "link", "known"),
    [
        (("2.5 GT/s PCIe", "0", "8.0 GT/s PCIe", "4"), (2500, 0, 8000, 4), True),  # a port with nothing in it
        (("32.0 GT/s PCIe", "16", "64.0 GT/s PCIe", "32"), (32000, 16, 64000, 32), True),
        (("5 GT/s", "1", "5 GT/s", "1"), (5000, 1, 5000, 1), True),  # older kernels
        (("Unknown", "0", "Unknown", "255"), None, True),  # a part of the chipset has no link
        (("Unknown speed", "0", "Unknown speed", "0"), None, True),
        (("Unknown", "63", "16.0 GT/s PCIe", "16"), (None, 63, 16000, 16), True),
        ((None, "8", "16.0 GT/s PCIe", "16"), (None, 8, 16000, 16), False),
        ((None, None, None, ""), None, False),
        (("x", "-1", "", "1e3"), None, True),
    ],
)
def test_a_link(facts, said, link, known):
    machine = machines.desktop()
    path = machine.path_of("0000:0b:00.0")
    for name, text in zip(LINK, said, strict=True):
        machine.file(f"{path}/{name}", f"{text}\n")
        if text is None:
            machine.remove(f"{path}/{name}")
    found = device(facts(machine), "0000:0b:00.0")
    keys = ("speed", "width", "max_speed", "max_width")
    assert found["link"] == (dict(zip(keys, link, strict=True)) if link else None)
    assert ("link" in found["unknown"]) is not known
    assert found["hazards"] == []


@pytest.mark.parametrize("state", ["D3hot", "D3cold", "unknown"])
def test_a_sleeping_device_is_not_woken_up_for_its_link(facts, state):
    machine = machines.desktop()
    machine.file(f"{machine.path_of('0000:0b:00.0')}/power_state", f"{state}\n")
    found = device(facts(machine), "0000:0b:00.0")
    assert (found["link"], found["power_state"]) == (None, state)
    assert "link" in found["unknown"]
    assert device(facts(machine), "0000:03:00.0")["link"] is None  # has none
    assert "link" not in device(facts(machine), "0000:03:00.0")["unknown"]


@pytest.mark.parametrize(("text", "revision"), [("0xA1", "a1"), ("a1", None), ("0x1", None), ("", None)])
def test_a_revision(facts, text, revision):
    machine = machines.desktop()
    machine.file(f"{machine.path_of('0000:0b:00.0')}/revision", f"{text}\n")
    found = device(facts(machine), "0000:0b:00.0")
    assert found["revision"] == revision
    assert ("revision" in found["unknown"]) == (revision is None)


# what does not answer


@pytest.fixture
def silent(tmp_path, monkeypatch) -> t.Callable[..., Facts]:
    """Facts of a machine whose kernel does not answer when some of its files are read."""
    monkeypatch.setattr(apart, "FLAGS", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def gathered(machine: machines.Machine, *paths: str) -> Facts:
        root = machine.write(tmp_path / str(len([*tmp_path.iterdir()])))
        for path in paths:
            os.unlink(f"{root}/{path}")
            os.mkfifo(f"{root}/{path}")
        return gather_from(Tree(root, "sysfs_root", 0.1))

    return gathered


@pytest.mark.parametrize("name", ["uevent", "driver_override", "current_link_width"])
def test_a_device_that_does_not_answer_is_left_alone(silent, name):
    machine = machines.desktop()
    path = f"{machine.path_of('0000:0b:00.1')}/{name}"
    if name not in ("uevent", "driver_override"):
        machine.file(path, "0\n")
    found = silent(machine, path)
    assert {"path": f"/{path}", "why": "the kernel does not answer"} in found["unread"]
    audio = device(found, "0000:0b:00.1")
    hazard = next(one for one in audio["hazards"] if one["code"] == "unknown_driver")
    assert hazard["via"] == ["the kernel does not answer about it, as while a driver does not let go of it"]
    assert {"driver", "driver_override"} <= {*audio["unknown"]}
    assert (audio["vendor"], audio["device"], audio["class_name"], audio["group"]) == ("10de", "1aef", "audio", 21)
    assert "unknown_driver" in hazards(found, "0000:0b:00.0")  # they can only be given away together
    assert group(found, 21)["state"] == "blocked"
    assert select(found, "[?!hazards].address") == ["0000:03:00.0", "0000:07:00.1"]


def test_devices_that_do_not_answer_do_not_hide_the_others(silent):
    machine = machines.desktop()
    for address in ("0000:00:01.1", "0000:00:03.1"):
        machine.acs(address, 0b1011101)
    paths = [f"{machine.path_of(address)}/uevent" for address in ("0000:00:00.0", "0000:05:00.0", "0000:0b:00.1")]
    found = silent(machine, *paths, f"{machine.path_of('0000:00:01.1')}/config")
    usual = silent(machine)
    assert [one["address"] for one in found["devices"]] == [one["address"] for one in usual["devices"]]
    assert device(found, "0000:03:00.0") == device(usual, "0000:03:00.0")
    assert device(found, "0000:0a:00.0")["acs_path"] == [{"bridge": "0000:00:01.1", "cap": None, "enabled": None}]
    assert device(found, "0000:0b:00.0")["acs_path"] == device(usual, "0000:0b:00.0")["acs_path"]


def test_virtual_functions_that_cannot_be_counted_are_not_none(silent):
    machine = machines.server()
    found = silent(machine, f"{machine.path_of('0000:18:00.0')}/sriov_numvfs")
    assert {"unknown_vfs", "unknown_driver"} <= hazards(found, "0000:18:00.0")


# what cannot be read


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("class", "unknown_class"),
        ("uevent", "unknown_driver"),
        ("driver", "unknown_driver"),
        ("iommu_group", "unknown_group"),
        ("boot_vga", "unknown_display"),
        ("drm/card1/card1-DP-2/enabled", "unknown_display"),
    ],
)
def test_a_fact_that_is_missing_is_a_hazard(facts, name, code):
    machine = machines.desktop()
    path = f"{machine.path_of('0000:0b:00.0')}/{name}"
    machine.remove(path)
    machine.directories.add(path.rpartition("/")[0])
    assert code in hazards(facts(machine), "0000:0b:00.0")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("sys/kernel/iommu_groups/21/devices", "unknown_group"),
        ("sys/kernel/iommu_groups/21/devices/0000:0b:00.1", "unknown_group"),
        ("sys/bus/pci/devices/0000:0b:00.1", "unknown_group"),
        ("sys/kernel/iommu_groups/21", "unknown_group"),
        ("sys/kernel/iommu_groups/21/reserved_regions", "unknown_reserved_regions"),
        ("proc/cmdline", "unknown_acs_override"),
        ("proc/4242/ns", "unknown_host_use"),
    ],
)
def test_a_fact_of_the_group_or_the_machine_that_is_missing_is_a_hazard(facts, path, code):
    machine = machines.desktop()
    machine.remove(path)
    assert code in hazards(facts(machine), "0000:0b:00.0")


def test_a_member_that_is_no_pci_device(facts):
    machine = machines.desktop()
    machine.link("sys/kernel/iommu_groups/21/devices/INTC1234:00", "sys/devices/platform/INTC1234:00")
    found = facts(machine)
    assert hazards(found, "0000:0b:00.0") == {"other_member"}
    assert group(found, 21)["devices"][0] == "INTC1234:00"


def test_a_nic_whose_interface_is_elsewhere(facts):
    machine = machines.server()
    machine.remove("sys/class/net/ens1")
    assert "unknown_interfaces" in hazards(facts(machine), "0000:5e:00.0")


def test_a_controller_whose_subsystem_is_not_known(facts):
    """Root has two ways to its disk, of which one does not show."""
    machine = machines.multipath()
    machine.remove("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme1")
    found = facts(machine)
    assert hazards(found, "0000:42:00.0") == {"unknown_storage"}
    assert "root_fs" in hazards(found, "0000:22:00.0")


def test_a_controller_without_disks_next_to_a_disk_of_two_controllers(facts):
    machine = machines.multipath()
    path = machine.pci("0000:62:00.0", "144d:a824", "010802", group=31, driver="nvme")
    machine.link("sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme2", f"{path}/nvme/nvme2")
    machine.directories.add(f"{path}/nvme/nvme2")
    assert hazards(facts(machine), "0000:62:00.0") == set()


def test_unknown_mounts_concern_what_may_carry_a_disk(facts):
    machine = machines.desktop()
    machine.remove("proc/4242/mountinfo")
    found = facts(machine)
    assert "unknown_mounts" in hazards(found, "0000:03:00.0") & hazards(found, "0000:07:00.1")
    assert select(found, "[?!hazards].address") == ["0000:0b:00.0", "0000:0b:00.1"]


def test_ids_from_their_own_files(facts):
    machine = machines.desktop()
    machine.file(f"{machine.path_of('0000:0b:00.0')}/uevent", "PCI_SLOT_NAME=0000:0b:00.0\nPCI_ID=garbage\n")
    found = device(facts(machine), "0000:0b:00.0")
    assert (found["vendor"], found["device"], found["subsystem"]) == ("10de", "2204", "1043:87d9")


def test_garbage_in_a_device_is_null_and_listed(facts):
    machine = machines.desktop()
    path = machine.path_of("0000:0b:00.1")
    for name in ("resource", "class", "uevent", "vendor", "numa_node"):
        machine.file(f"{path}/{name}", b"\xff\0garbage\n")
    found = device(facts(machine), "0000:0b:00.1")
    assert {"bars", "class", "class_name", "header", "driver", "vendor", "numa_node"} <= {*found["unknown"]}
    assert (found["class"], found["vendor"], found["bars"]) == (None, None, None)


def test_names_that_are_not_ascii_come_through(facts):
    machine = machines.desktop()
    machine.remove("sys/bus/pci/slots")
    machine.file("sys/bus/pci/slots/Steckplatz Ä 2/address", "0000:0b:00\n")
    found = facts(machine)
    assert device(found, "0000:0b:00.0")["identity"]["slot"] == "Steckplatz Ä 2"
    assert json.loads(json.dumps(found)) == found


# the whole


def test_parts(tmp_path):
    root = machines.desktop().write(tmp_path / "m")
    always = {"schema_version", "unknown", "unread"}
    for part in PARTS:
        assert set(gather(root, [part])) == {part, *always}
    assert set(gather(root, ["all"])) == {*PARTS, *always} == set(gather(root))


def test_protect(tmp_path):
    root = machines.desktop().write(tmp_path / "m")
    found = gather(root, ["devices"], ["0000:0b:00.1", "nvme2n1"])
    assert select(found, "[?!hazards && header=='endpoint'].address") == ["0000:07:00.1"]
    assert {"protected"} == hazards(found, "0000:0b:00.0") == hazards(found, "0000:03:00.0")


def test_protecting_what_is_not_there_is_refused(tmp_path):
    root = machines.desktop().write(tmp_path / "m")
    with pytest.raises(PhyllomeError, match="protect: 'eth9' protects nothing here"):
        gather(root, ["host"], ["eth9"])
    with pytest.raises(PhyllomeError, match="protect: '0000:99:00.0' protects nothing here"):
        gather(root, ["devices"], ["0000:99:00.0"])


def test_a_machine_without_pci(facts):
    machine = machines.bare()
    machine.remove("sys/bus")
    found = facts(machine)
    assert (found["devices"], found["groups"]) == ([], [])


def test_the_order_of_devices_and_groups_is_stable(facts):
    found = facts(machines.sriov())
    addresses = [one["address"] for one in found["devices"]]
    assert addresses == sorted(addresses)
    assert [one["id"] for one in found["groups"]] == sorted(one["id"] for one in found["groups"])


# identity and bindings


@pytest.mark.parametrize("own", [None, "00-11-22-ff-fe-33-44-55"])
def test_the_key_is_the_same_whatever_drives_the_device(facts, own):
    machine = machines.desktop()
    path = machine.path_of("0000:03:00.0")
    if own:
        machine.file(f"{path}/serial_number", f"{own}\n")
    before = device(facts(machine), "0000:03:00.0")["identity"]
    machine.remove(f"{path}/nvme")
    bind(machine, "0000:03:00.0", "vfio-pci")
    after = device(facts(machine), "0000:03:00.0")["identity"]
    assert before["serial"] == (own or "S5GXNX0T2")
    assert after["key"] == before["key"] == f"144d:a80a/1849:ffff@{own or '0000:00/01.4/00.0'}"


GPUS = ["0000:0a:00.0", "0000:0b:00.0"]


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("etc/driverctl.d/0000:0b:00.0", "vfio-pci\n", [("0000:0b:00.0", "driverctl")]),
        ("etc/driverctl.d/0000:0b:00.0", "nouveau\n", []),
        ("etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:2204,10DE:1aef disable_vga=1\n",
         [(address, "modprobe") for address in ("0000:0a:00.0", "0000:0a:00.1", "0000:0b:00.0", "0000:0b:00.1")]),
        ("usr/lib/modprobe.d/vfio.conf", "#options vfio-pci ids=10de:2204\noptions vfio_pci ids=\n", [(None, "modprobe")]),
        ("etc/modprobe.d/vfio.conf", "softdep nouveau pre: vfio-pci\n", []),
        ("etc/udev/rules.d/9-x.rules", 'ACTION=="add", KERNEL=="0000:0b:00.0", \\\n ATTR{driver_override}="vfio-pci"\n', [("0000:0b:00.0", "udev")]),
        ("etc/udev/rules.d/9-x.rules", 'ATTR{vendor}=="0x10de", ATTR{driver_override}="vfio-pci"\n', [(None, "udev")]),
        ("etc/udev/rules.d/9-x.rules", '# KERNEL=="0000:0b:00.0", ATTR{driver_override}="vfio-pci"\n', []),
        ("proc/cmdline", "quiet vfio-pci.ids=10de:2204:1043\n", [(address, "cmdline") for address in GPUS]),
        ("proc/cmdline", "quiet\n", []),
    ],
)  # fmt: skip
def test_what_will_be_bound_at_the_next_boot(facts, path, content, expected):
    machine = machines.desktop()
    machine.file(path, content)
    found = facts(machine)
    persistent = found["bindings"]["persistent"]
    assert [(one["address"], one["source"]) for one in persistent] == expected
    assert all(one["driver"] == "vfio-pci" for one in persistent)
    assert "bindings.persistent" not in found["unknown"]


def test_the_next_boot_counts_not_this_one(facts):
    machine = machines.desktop()
    machine.file("proc/cmdline", "quiet vfio-pci.ids=10de:2204\n")
    machine.file("boot/grub/grub.cfg", "linux /vmlinuz root=/dev/sda1 quiet\n")
    assert facts(machine)["bindings"]["persistent"] == []


@pytest.mark.parametrize("path", ["etc/modprobe.d", "etc/driverctl.d/0000:0b:00.0", "etc/udev/rules.d/9.rules"])
def test_bindings_that_cannot_be_read_are_unknown(facts, path):
    machine = machines.desktop()
    if path == "etc/modprobe.d":
        machine.file(path, "no directory")
        machine.file("unread.json", '{"etc/modprobe.d": "Permission denied"}')
    else:
        machine.directories.add(path)
    found = facts(machine)
    assert found["bindings"]["persistent"] is None
    assert "bindings.persistent" in found["unknown"]


def test_ten_thousand_devices(tmp_path):
    """All listed, in order, and nothing guarded is free; each says so little that a file of it is cheap to make."""
    machine = machines.server()
    before = {one["address"] for one in gather(machine.write(tmp_path / "small"))["devices"] if not one["hazards"]}
    more = [f"{number >> 13:04x}:{number >> 5 & 255:02x}:{number & 31:02x}.0" for number in range(1 << 13, 18192)]
    for address in more:
        path = f"sys/devices/pci{address[:7]}/{address}"
        machine.link(f"sys/bus/pci/devices/{address}", path)
        machine.file(f"{path}/class", "0x020000\n")
    found = gather(machine.write(tmp_path / "large"))["devices"]
    addresses = [one["address"] for one in found]
    assert len(more) == 10_000
    assert {*more} < {*addresses}
    assert addresses == sorted(addresses, key=lambda address: address.zfill(16))
    assert {one["address"] for one in found if not one["hazards"]} <= before


class Dying(Tree):
    """A tree out of which something is pulled at some moment."""

    def __init__(self, root: str, doomed: str, when: int) -> None:
        self.doomed, self.left = doomed, when
        super().__init__(root, "sysfs_root")

    def _real(self, path: str) -> str | None:
        self.left -= 1
        if not self.left:
            os.rename(f"{self.root}/{self.doomed}", f"{self.root}/gone")
        return super()._real(path)


def test_devices_that_go_away_while_they_are_read(tmp_path):
    machine = machines.bare(tables=["DMAR"])
    machine.iommu_on()
    pulled = 0
    for when in range(1, 400, 7):
        tree = Dying(machine.write(tmp_path / str(when)), machine.path_of("0000:00:17.0"), when)
        found = gather_from(tree)
        assert json.loads(json.dumps(found)) == found
        assert not [one for one in found["devices"] if one["address"] == "0000:00:17.0" and not one["hazards"]]
        pulled += tree.left <= 0
    assert pulled > 15
