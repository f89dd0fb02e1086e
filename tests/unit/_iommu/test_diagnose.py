# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why the IOMMU is off: every branch of the decision tree, from a composed machine to the words."""

from __future__ import annotations

import gzip
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather
from ansible_collections.phyllome.virt.tests.unit._iommu import machines


@pytest.fixture
def facts(tmp_path) -> t.Callable[[machines.Machine], dict[str, t.Any]]:
    return lambda machine: gather(machine.write(tmp_path / "machine"), ["host", "iommu"])


@pytest.fixture
def iommu(facts) -> t.Callable[[machines.Machine], dict[str, t.Any]]:
    return lambda machine: facts(machine)["iommu"]


def amd(**host: t.Any) -> machines.Machine:
    return machines.bare(vendor="AuthenticAMD", flags="svm", **host)


def test_on(iommu):
    found = iommu(machines.server())
    assert (found["state"], found["causes"], found["remedy"]) == ("on", [], None)
    assert found["evidence"] == ["11 groups", "dmar0", "dmar1"]
    assert found["units"][0] == {
        "name": "dmar0",
        "type": "intel",
        "address": "0xfed91000",
        "cap": "0xd2008c40660462",
        "ecap": "0xf050da",
        "features": None,
        "version": None,
        "interrupt_remapping": True,
    }
    assert found["cmdline"]["running"] == ["intel_iommu=on", "iommu=pt"]
    assert found["interrupt_remapping"] == "enabled"


def test_an_amd_unit(iommu):
    unit = iommu(machines.desktop())["units"][0]
    assert (unit["type"], unit["cap"], unit["interrupt_remapping"]) == ("amd", "0xd2008c40660462", None)


def test_no_firmware_table(iommu):
    found = iommu(amd())
    assert found["causes"] == ["no_firmware_table"]
    assert found["firmware"]["table"] is None
    assert found["evidence"] == ["/sys/firmware/acpi/tables has none of DMAR, IVRS, IORT, VIOT"]
    assert "AMD-Vi" in found["remedy"] and "ASRock X570 Taichi P5.00" in found["remedy"]
    assert "cannot do it" in found["remedy"]  # it may as well be hardware without one


def test_a_machine_without_acpi(iommu):
    machine = amd()
    machine.remove("sys/firmware/acpi")
    found = iommu(machine)
    assert found["causes"] == ["no_firmware_table"]
    assert found["evidence"][0].startswith("this machine has no ACPI")


def test_an_empty_iommu_groups_is_no_evidence(iommu):
    found = iommu(machines.guest())
    assert found["state"] == "off"
    assert found["causes"] == ["guest_without_viommu", "kernel_without_driver"]
    assert "<iommu model='intel'/>" in found["remedy"]
    assert "CONFIG_INTEL_IOMMU or CONFIG_VIRTIO_IOMMU" in found["remedy"]


def test_a_guest_with_a_table_is_like_a_machine(iommu):
    found = iommu(machines.bare(flags="vmx hypervisor", sys_vendor="QEMU", tables=["DMAR"]))
    assert found["causes"] == ["needs_intel_iommu_on"]


def test_kernel_without_driver(iommu):
    found = iommu(amd(tables=["IVRS"], config={"AMD_IOMMU": "n"}))
    assert found["causes"] == ["kernel_without_driver"]
    assert found["remedy"] == "Boot a kernel that is built with CONFIG_AMD_IOMMU."


def test_all_causes_are_named_not_only_the_first(iommu):
    found = iommu(amd(config={"AMD_IOMMU": "n"}, cmdline="amd_iommu=off"))
    assert found["causes"] == ["no_firmware_table", "kernel_without_driver", "disabled_on_cmdline"]
    assert len(found["evidence"]) == 3


@pytest.mark.parametrize("argument", ["iommu=off", "iommu=soft,off", "amd_iommu=off"])
def test_disabled_on_the_command_line_amd(iommu, argument):
    found = iommu(amd(tables=["IVRS"], cmdline=argument))
    assert (found["state"], found["causes"]) == ("off", ["disabled_on_cmdline"])
    assert found["remedy"] == f"Take {argument} off the kernel command line and reboot."


@pytest.mark.parametrize(
    ("arguments", "causes"),
    [
        ("intel_iommu=off", ["disabled_on_cmdline"]),
        ("intel_iommu=on intel_iommu=off", ["disabled_on_cmdline"]),  # the last one counts
        ("intel_iommu=off intel_iommu=on,sm_on", ["init_failed"]),
        ("intel-iommu=on", ["init_failed"]),  # to the kernel - and _ are the same
        ("intel_iommu=on", ["init_failed"]),
        ("intel_iommu=sm_on", ["needs_intel_iommu_on"]),
        ("amd_iommu=off", ["needs_intel_iommu_on"]),  # none of this machine's business
        ("iommu=pt", ["needs_intel_iommu_on"]),  # pt is about the host's own devices
        ('x="iommu=off intel_iommu=off"', ["needs_intel_iommu_on"]),
    ],
)
def test_the_command_line_of_an_intel_machine(iommu, arguments, causes):
    assert iommu(machines.bare(tables=["DMAR"], cmdline=arguments))["causes"] == causes


def test_needs_intel_iommu_on(iommu):
    found = iommu(machines.bare(tables=["DMAR"]))
    assert found["causes"] == ["needs_intel_iommu_on"]
    assert found["remedy"] == "Add intel_iommu=on to the kernel command line and reboot."
    assert found["kernel_config"]["INTEL_IOMMU_DEFAULT_ON"] == "n"
    assert found["firmware"] == {"table": "DMAR", "opt_in": False, "intr_remap": True}


@pytest.mark.parametrize("default", ["INTEL_IOMMU_DEFAULT_ON", "INTEL_IOMMU_DEFAULT_ON_INTGPU_OFF"])
def test_nothing_is_needed_where_the_kernel_switches_it_on(iommu, default):
    machine = machines.bare(tables=["DMAR"], config={default: "y"})
    assert iommu(machine)["causes"] == ["init_failed"]


@pytest.mark.parametrize(
    ("driver", "cause", "remedy"),
    [
        ("n", "kernel_without_driver", "Boot a kernel that is built with CONFIG_VIRTIO_IOMMU."),
        ("m", "init_failed", "The kernel tried and failed"),
    ],
)
def test_a_virtio_iommu_needs_its_own_driver(iommu, driver, cause, remedy):
    found = iommu(machines.bare(tables=["VIOT"], config={"VIRTIO_IOMMU": driver}))
    assert found["causes"] == [cause]
    assert found["remedy"].startswith(remedy)


def test_platform_opt_in(iommu):
    machine = machines.bare(tables=["DMAR"])
    machine.table("DMAR", flags=0b100)
    found = iommu(machine)
    assert found["causes"] == ["init_failed"]
    assert found["firmware"] == {"table": "DMAR", "opt_in": True, "intr_remap": False}


def test_flags_of_a_table_that_cannot_be_read_are_unknown(facts):
    machine = machines.bare(tables=["DMAR"])
    machine.file("sys/firmware/acpi/tables/DMAR", b"DMAR")
    found = facts(machine)
    assert found["iommu"]["firmware"] == {"table": "DMAR", "opt_in": None, "intr_remap": None}
    assert {"iommu.firmware.opt_in", "iommu.firmware.intr_remap"} <= {*found["unknown"]}
    assert {"path": "/sys/firmware/acpi/tables/DMAR", "why": "not a table DMAR"} in found["unread"]


ENTRY = "title Fedora\nversion 6.12\nlinux /vmlinuz\noptions root=UUID=x ro $kernelopts\noptions {}\n"


def test_reboot_pending(iommu):
    machine = machines.bare(tables=["DMAR"], cmdline="iommu=pt")
    machine.file("boot/loader/entries/a-6.12.conf", ENTRY.format("intel_iommu=on"))
    machine.file("boot/loader/entries/a-0-rescue.conf", ENTRY.format("quiet"))
    machine.file("boot/grub2/grubenv", "# GRUB Environment Block\nkernelopts=iommu=pt quiet\n####")
    found = iommu(machine)
    assert found["causes"] == ["needs_intel_iommu_on", "reboot_pending"]
    assert found["cmdline"] == {
        "running": ["iommu=pt"],
        "next_boot": ["iommu=pt", "intel_iommu=on"],
        "reboot_pending": True,
    }
    assert found["remedy"].endswith("Reboot: the next boot has it on its command line already.")


def test_no_reboot_helps_while_one_entry_has_it_off(iommu):
    machine = machines.bare(tables=["DMAR"])
    machine.file("boot/loader/entries/a.conf", ENTRY.format("intel_iommu=on"))
    machine.file("boot/loader/entries/b.conf", ENTRY.format("quiet"))
    found = iommu(machine)
    assert found["causes"] == ["needs_intel_iommu_on"]
    assert found["cmdline"]["next_boot"] is None


def test_a_pending_change_on_a_machine_that_is_on(facts):
    machine = machines.server()
    machine.file("boot/grub/grub.cfg", "menuentry x {\n\tlinux\t/vmlinuz root=/dev/x iommu=pt\n}\n")
    found = facts(machine)["iommu"]
    assert (found["state"], found["cmdline"]["reboot_pending"]) == ("on", True)


def test_init_failed_shows_the_log(iommu):
    machine = machines.bare(tables=["DMAR"], cmdline="intel_iommu=on")
    machine.file(
        "dev/kmsg", "6,1,0,-;usb 1-1: new\n4,2,1,-;DMAR: [Firmware Bug]: No firmware reserved region\n KEY=x\n"
    )
    found = iommu(machine)
    assert found["causes"] == ["init_failed"]
    assert found["evidence"] == ["DMAR: [Firmware Bug]: No firmware reserved region"]


def test_xen(facts):
    machine = machines.bare(tables=["DMAR"])
    machine.file("sys/hypervisor/type", "xen\n")
    machine.file("proc/xen/capabilities", "control_d\n")
    found = facts(machine)
    assert found["host"]["virtualization"] == "xen_dom0"
    assert found["iommu"]["causes"] == ["owned_by_xen"]


@pytest.mark.parametrize(("features", "answer"), [("00002910", "xen_dom0"), ("00002110", "xen"), ("?", "xen")])
def test_xen_by_its_features_alone(facts, features, answer):
    machine = machines.bare()
    machine.file("sys/hypervisor/type", "xen\n")
    machine.file("sys/hypervisor/properties/features", f"{features}\n")
    assert facts(machine)["host"]["virtualization"] == answer


def test_without_a_kernel_configuration_it_says_what_it_does_not_know(facts):
    machine = machines.bare(tables=["DMAR"])
    machine.remove(f"boot/config-{machines.KERNEL}")
    found = facts(machine)
    assert found["iommu"]["kernel_config"] is None
    assert "iommu.kernel_config" in found["unknown"]
    assert found["iommu"]["causes"] == ["needs_intel_iommu_on"]
    assert "could not be read" in found["iommu"]["evidence"][0]


@pytest.mark.parametrize("cut", [False, True])
def test_the_configuration_in_proc(facts, cut):
    machine = amd(tables=["IVRS"])
    machine.remove(f"boot/config-{machines.KERNEL}")
    packed = gzip.compress(b"CONFIG_PCI=y\nCONFIG_AMD_IOMMU=y\nCONFIG_VFIO=m\n")
    machine.file("proc/config.gz", b"garbage" if cut else packed)
    config = facts(machine)["iommu"]["kernel_config"]
    assert config is None if cut else (config["AMD_IOMMU"], config["VFIO"], config["INTEL_IOMMU"]) == ("y", "m", "n")


def test_when_nothing_can_be_read_the_cause_is_undetermined(iommu):
    machine = machines.bare()
    machine.remove("proc/cmdline")
    machine.remove("proc/cpuinfo")
    machine.remove("sys/firmware/acpi/tables")
    machine.file("sys/firmware/acpi/pm_profile", "1\n")
    found = iommu(machine)
    assert found["causes"] == ["undetermined"]
    assert found["remedy"].startswith("Run this as root")


def test_groups_that_cannot_be_read_make_the_state_unknown(facts):
    machine = machines.bare()
    machine.directories.discard("sys/kernel/iommu_groups")
    machine.file("sys/kernel/iommu_groups", "")
    found = facts(machine)
    assert found["iommu"]["state"] == "unknown"
    assert "iommu.state" in found["unknown"]


def test_groups_that_vfio_made_itself_are_no_iommu(iommu):
    machine = amd(tables=["IVRS"])
    machine.file("sys/kernel/iommu_groups/0/name", "vfio-noiommu\n")
    assert iommu(machine)["state"] == "off"


@pytest.mark.parametrize(
    ("chips", "answer"),
    [
        (["IR-IO-APIC"], "enabled"),
        (["IO-APIC", "PCI-MSIX-0000:00:01.0"], "disabled"),
        (["xen-pirq"], "unknown"),
        ([], "unknown"),
    ],
)
def test_interrupt_remapping(iommu, chips, answer):
    machine = machines.bare()
    machine.remove("sys/kernel/irq")
    for number, chip in enumerate(chips):
        machine.file(f"sys/kernel/irq/{number}/chip_name", f"{chip}\n")
    assert iommu(machine)["interrupt_remapping"] == answer


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ({"sys_vendor": "QEMU", "flags": "hypervisor"}, "kvm"),
        ({"sys_vendor": "VMware, Inc.", "flags": "hypervisor"}, "vmware"),
        ({"sys_vendor": "Microsoft Corporation", "flags": "hypervisor"}, "hyperv"),
        ({"sys_vendor": "Microsoft Corporation"}, "none"),  # a Surface
        ({"sys_vendor": "Nobody", "flags": "hypervisor"}, "vm"),
    ],
)
def test_virtualization(facts, host, answer):
    assert facts(machines.bare(**host))["host"]["virtualization"] == answer


def test_the_host(facts):
    assert facts(machines.laptop())["host"] == {
        "virtualization": "none",
        "container": False,
        "chassis": "laptop",
        "cpu_vendor": "intel",
        "vtx": True,
        "nested": None,
        "kernel": machines.KERNEL,
        "board": {"bios_version": "P5.00", "board_name": "20XW", "board_vendor": "LENOVO", "sys_vendor": "LENOVO"},
    }


@pytest.mark.parametrize(("text", "nested"), [("Y", True), ("1", True), ("N", False), ("0", False), ("x", None)])
@pytest.mark.parametrize("module", ["kvm_intel", "kvm_amd"])
def test_guests_of_guests(facts, module, text, nested):
    machine = machines.bare()
    machine.file(f"sys/module/{module}/parameters/nested", f"{text}\n")
    found = facts(machine)
    assert found["host"]["nested"] is nested
    assert ("host.nested" in found["unknown"]) == (nested is None)


def test_vt_x_that_is_off_does_not_hide_the_vendor(facts):
    found = facts(machines.bare(flags="", tables=["DMAR"]))
    assert (found["host"]["vtx"], found["host"]["cpu_vendor"]) == (False, "intel")
    assert found["iommu"]["causes"] == ["needs_intel_iommu_on"]


def test_a_host_that_cannot_be_read_is_unknown_not_false(facts):
    machine = machines.bare()
    for path in ("proc/cpuinfo", "proc/4242/ns", "sys/class/dmi", "proc/sys"):
        machine.remove(path)
    found = facts(machine)
    assert set(found["host"].values()) == {None}
    assert {"host.vtx", "host.container", "host.virtualization"} <= {*found["unknown"]}


def test_unsafe_settings(iommu):
    machine = machines.server()
    machine.file("proc/cmdline", "quiet intel_iommu=on pcie_acs_override=downstream,multifunction\n")
    machine.file("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n")
    machine.file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n")
    assert iommu(machine)["unsafe"] == {
        "acs_override": "pcie_acs_override=downstream,multifunction",
        "unsafe_interrupts": True,
        "noiommu": False,
    }


def test_a_vfio_that_was_built_without_its_unsafe_mode_is_safe(facts):
    machine = machines.desktop()
    machine.directories.add("sys/module/vfio")
    assert facts(machine)["iommu"]["unsafe"]["noiommu"] is False


def test_a_parameter_that_cannot_be_read_is_unknown(facts):
    machine = machines.server()
    machine.directories.add("sys/module/vfio_iommu_type1/parameters")
    found = facts(machine)
    assert found["iommu"]["unsafe"]["unsafe_interrupts"] is None
    assert "iommu.unsafe.unsafe_interrupts" in found["unknown"]
