# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vfio_bind on machines that are directories: there, and exactly back."""

from __future__ import annotations

import itertools
import json
import pathlib
import stat
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import files
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._vfio import apply, spec
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.ledger import LEDGER
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.persistence import RULES
from ansible_collections.phyllome.virt.tests.unit._iommu import machines
from ansible_collections.phyllome.virt.tests.unit._vfio.sim import DEFAULTS, HOOK, IMAGES, PowerCut, Sim, capture

SRIOV, VFS = "0000:0c:00.0", ["0000:0c:00.1", "0000:0c:00.2"]
NIC, NVME, GPU, AUDIO = "0000:01:00.0", "0000:0b:00.0", "0000:04:00.0", "0000:04:00.1"
OLD = ["0000:06:01.0", "0000:06:02.0"]


@pytest.fixture
def q35(tmp_path: pathlib.Path) -> Sim:
    """The machine of the metal lab."""
    return Sim(tmp_path / "root", capture("emulated-q35"))


def test_there_and_back(q35: Sim) -> None:
    before = q35.snapshot()
    done = q35.do(devices=[NIC])
    assert done["changed"]
    assert done["devices"] == [
        {
            "address": NIC,
            "identity": "8086:10d3/8086:0000@0",
            "group": 12,
            "driver_before": "e1000e",
            "driver_after": "vfio-pci",
            "result": "bound",
        }
    ]
    assert done["hostdevs"] == [{"id": "pci-0000-01-00-0", "pci": NIC}]
    assert done["next_boot"] == [
        {"address": NIC, "driver": "vfio-pci", "held": True, "source": "udev", "initramfs": True, "certain": True}
    ]
    assert not done["reboot_required"]
    assert q35.driver(NIC) == "vfio-pci"
    assert all("made with" in q35.path(image).read_text() for image in IMAGES)
    assert stat.S_IMODE(q35.path(LEDGER).stat().st_mode) == 0o600

    q35.do(devices=[NIC], state="original")
    assert q35.snapshot() == before


def test_the_override_is_written_before_the_driver_lets_go(q35: Sim) -> None:
    q35.do(devices=[NIC])
    there = f"sys/bus/pci/devices/{NIC}"
    assert q35.did[:4] == [
        "modprobe -- vfio-pci",
        f"{there}/driver_override = 'vfio-pci'",
        f"{there}/driver/unbind = '{NIC}'",
        f"sys/bus/pci/drivers_probe = '{NIC}'",
    ]


def test_a_second_run_does_nothing(q35: Sim) -> None:
    q35.do(devices=[NIC])
    before = q35.snapshot()
    q35.did.clear()
    done = q35.do(devices=[NIC])
    assert (done["changed"], done["plan"], done["diff"], q35.did) == (False, [], [], [])
    assert done["devices"][0]["result"] == "already"
    assert q35.snapshot() == before


def test_check_mode_says_the_same_and_writes_nothing(q35: Sim) -> None:
    before = q35.snapshot()
    said = q35.do(True, devices=[NIC, *OLD])
    assert (q35.snapshot(), q35.did) == (before, [])
    assert q35.do(devices=[NIC, *OLD]) == said


def test_by_identity_and_by_selection(q35: Sim) -> None:
    by_key = q35.do(True, devices=["8086:10d3/8086:0000@0"])
    selected = q35.do(True, select="[?class_name=='ethernet' && !hazards && driver=='e1000e'].address", expect_count=3)
    assert [each["address"] for each in by_key["devices"]] == [NIC]
    assert [each["address"] for each in selected["devices"]] == [NIC, "0000:09:00.0", "0000:0a:00.0"]


def test_the_rule_survives_a_boot_and_so_does_the_way_back(q35: Sim) -> None:
    before = q35.snapshot()
    q35.do(devices=[NIC, NVME])
    q35.reboot()
    assert {q35.driver(NIC), q35.driver(NVME)} == {"vfio-pci"}
    assert not q35.do(devices=[NIC, NVME])["changed"]
    q35.do(state="original")
    q35.reboot()
    assert q35.snapshot() == before


def test_what_is_not_persistent_is_gone_after_a_boot(q35: Sim) -> None:
    done = q35.do(devices=[NIC], persist=False)
    assert not q35.path(RULES).exists()
    assert done["next_boot"][0]["driver"] is None
    q35.reboot()
    assert q35.driver(NIC) == "e1000e"
    assert q35.do(devices=[NIC], persist=False)["changed"]


def test_persistence_can_be_taken_back_alone(q35: Sim) -> None:
    q35.do(devices=[NIC])
    done = q35.do(devices=[NIC], persist=False)
    assert done["changed"] and not q35.path(RULES).exists() and not q35.path(HOOK).exists()
    assert q35.driver(NIC) == "vfio-pci"
    assert all(q35.path(image).read_text() == "stock" for image in IMAGES)


def test_another_card_at_the_address_is_not_taken(q35: Sim) -> None:
    q35.do(devices=[NIC])
    q35.ids(NIC, "8086:1533")
    q35.native[NIC] = "igb"
    q35.path("sys/bus/pci/drivers/igb").mkdir()
    q35.reboot()
    assert q35.driver(NIC) == "igb"
    before = q35.snapshot()
    refused = q35.fails(devices=[NIC])
    assert [each["hazard"] for each in refused.facts["refused"]] == ["identity_changed"]
    assert "8086:1533/8086:0000@0 is there" in str(refused)
    assert q35.snapshot() == before
    done = q35.do(devices=[NIC], state="original")
    assert "is not there any more" in done["warnings"][0]
    assert q35.driver(NIC) == "igb" and not q35.path(RULES).exists()
    assert q35.do(devices=[NIC])["devices"][0]["result"] == "bound"


def test_a_disk_with_another_serial_number_is_not_taken(q35: Sim) -> None:
    q35.do(devices=[NVME], persist=False)
    q35.reboot()
    serials = list(q35.path("sys/bus/pci/devices", NVME, "nvme").glob("*/serial"))
    serials[0].write_text("ANOTHER\n")
    assert "identity_changed" in str(q35.fails(devices=[NVME]))


def test_a_group_is_not_taken_in_part(q35: Sim) -> None:
    refused = q35.fails(devices=OLD[:1])
    assert refused.facts["refused"][0]["hazard"] == "partial_group"
    assert f"{OLD[1]}, driven by e1000" in str(refused)
    assert q35.fails(devices=OLD[:1], group_policy="companions").facts["refused"][0]["hazard"] == "partial_group"
    done = q35.do(devices=OLD[:1], group_policy="whole_group")
    assert [(each["address"], each["result"]) for each in done["devices"]] == [(one, "bound") for one in OLD]


def test_a_group_that_the_host_has_taken_a_part_of_again_is_not_called_bound(q35: Sim) -> None:
    q35.do(devices=OLD, persist=False)
    q35._set(OLD[1], "e1000")
    assert q35.fails(devices=OLD[:1], persist=False).facts["refused"][0]["hazard"] == "partial_group"
    assert q35.do(devices=OLD, persist=False)["devices"][1]["result"] == "bound"


def test_companions_come_along_and_wait_together_for_the_next_boot(q35: Sim) -> None:
    options: dict[str, t.Any] = {"devices": [GPU], "group_policy": "companions", "consent": ["primary_gpu"]}
    done = q35.do(**options)
    assert [(each["address"], each["result"]) for each in done["devices"]] == [(GPU, "deferred"), (AUDIO, "deferred")]
    assert done["reboot_required"] and done["changed"]
    assert q35.driver(GPU) == "bochs-drm"
    again = q35.do(**options)
    assert again["reboot_required"] and not again["changed"]
    q35.reboot()
    done = q35.do(**options)
    assert {each["result"] for each in done["devices"]} == {"already"}
    assert not done["reboot_required"]


def test_runtime_force_does_not_wait(q35: Sim) -> None:
    done = q35.do(devices=[GPU, AUDIO], consent=["primary_gpu"], runtime="force")
    assert {each["result"] for each in done["devices"]} == {"bound"}


def test_waiting_needs_persistence(q35: Sim) -> None:
    refused = q35.fails(devices=[NIC], runtime="never", persist=False)
    assert refused.facts["refused"][0]["hazard"] == "not_persistent"


def test_unbound_leaves_a_device_without_driver(q35: Sim) -> None:
    before = q35.snapshot()
    done = q35.do(devices=OLD[:1], state="unbound")
    assert done["devices"][0]["result"] == "unbound" and done["hostdevs"] == []
    assert q35.driver(OLD[0]) is None
    q35.reboot()
    assert q35.driver(OLD[0]) is None
    assert not q35.do(devices=OLD[:1], state="unbound")["changed"]
    assert q35.do(devices=OLD[1:])["devices"][0]["result"] == "bound"  # the group is viable with it
    q35.do(state="original")
    assert q35.snapshot() == before


@pytest.mark.parametrize(
    ("name", "address", "hazard", "consent"),
    [
        ("emulated-q35", "0000:00:02.0", "root_fs", None),
        ("emulated-q35", "0000:00:03.0", "mgmt_nic", "mgmt_nic"),
        ("emulated-q35", "0000:00:04.0", "platform", None),
        ("server-bond-lvm", "0000:18:00.0", "mgmt_nic", "mgmt_nic"),
        ("server-bond-lvm", "0000:3c:00.0", "root_fs", None),
        ("amd-desktop-two-gpus", "0000:02:00.0", "has_data", "has_data"),
        ("amd-desktop-two-gpus", "0000:0a:00.0", "primary_gpu", "primary_gpu"),
        ("amd-desktop-two-gpus", "0000:07:00.3", "usb_input", "risky_unbind"),
        ("usb-boot", "0000:00:15.0", "root_fs", None),
        ("sriov-in-use", "0000:5e:00.0", "vf_parent", "collateral"),
        ("acs-override", "0000:03:00.0", "acs_override", "acs_override"),
        ("nvme-multipath-root", "0000:22:00.0", "root_fs", None),
    ],
)
def test_refusals(tmp_path: pathlib.Path, name: str, address: str, hazard: str, consent: str | None) -> None:
    sim = Sim(tmp_path / "root", capture(name))
    before = sim.snapshot()
    refused = sim.fails(devices=[address], group_policy="whole_group")
    found = [each for each in refused.facts["refused"] if each["address"] == address and each["hazard"] == hazard]
    assert [each["consent"] for each in found] == [consent]
    assert found[0]["evidence"]
    assert str(refused).startswith("Nothing was changed: ")
    if consent:
        assert f"consent: {consent} lifts; then {spec.LOST[consent]}" in str(refused)
    else:  # no word helps
        everything = sim.fails(devices=[address], group_policy="whole_group", consent=list(spec.CONSENT))
        assert hazard in {each["hazard"] for each in everything.facts["refused"]}
    assert sim.snapshot() == before


def test_consent_to_the_acs_override_says_what_is_lost(tmp_path: pathlib.Path) -> None:
    sim = Sim(tmp_path / "root", capture("acs-override"))
    done = sim.do(devices=["0000:03:00.0"], consent=["acs_override"])
    assert done["warnings"] == [f"consent acs_override: {spec.LOST['acs_override']}"]
    assert "reach the memory of the host" in done["warnings"][0]


def test_functions_are_made_and_bound_and_removed_again(q35: Sim) -> None:
    before = q35.snapshot()
    options: dict[str, t.Any] = {"functions": [{"device": SRIOV, "count": 2}]}
    said = q35.do(True, **options)
    assert q35.snapshot() == before
    done = q35.do(**options)
    assert [(each["address"], each["result"], each["driver_after"]) for each in done["devices"]] == [
        (one, "bound", "vfio-pci") for one in VFS
    ]
    assert [each["address"] for each in said["devices"]] == VFS
    assert [each["path"] for each in said["plan"]][-3:] == [
        f"functions.{SRIOV}.count", *(f"devices.{one}.driver" for one in VFS)
    ]  # fmt: skip
    assert [each["pci"] for each in done["hostdevs"]] == VFS
    assert q35.driver(SRIOV) == "nvme" and not q35.do(**options)["changed"]
    assert not any(each.startswith("update-initramfs") for each in q35.did)  # no driver of the host has them early
    q35.reboot()
    assert [q35.driver(one) for one in VFS] == ["vfio-pci"] * 2
    assert not q35.do(**options)["changed"]
    fewer = q35.do(functions=[{"device": SRIOV, "count": 1}])
    assert [each["address"] for each in fewer["devices"]] == VFS[:1] and VFS[1] not in q35.addresses()
    assert VFS[1] not in q35.path(RULES).read_text()
    q35.do(state="original")
    assert q35.snapshot() == before


def test_functions_that_are_in_use_stand_against_another_number(q35: Sim) -> None:
    q35.do(functions=[{"device": SRIOV, "count": 1}])
    link = q35.path("proc/3000/fd/0")
    link.parent.mkdir(parents=True)
    link.symlink_to("/dev/vfio/901")
    q35.path("proc/3000/comm").write_text("qemu-system-x86\n")
    for options in ({"functions": [{"device": SRIOV, "count": 2}]}, {"state": "original"}):
        refused = q35.fails(**options)
        assert [each["hazard"] for each in refused.facts["refused"]] == ["function_in_use"]
        assert "removes all of them" in str(refused)
    assert q35.driver(VFS[0]) == "vfio-pci"


@pytest.mark.parametrize(
    ("device", "count", "said"),
    [
        (SRIOV, 3, "it has 2 at most"),
        (SRIOV, 0, "a count is 1 or more"),
        (NIC, 1, "it has no virtual functions"),
        ("0000:77:00.0", 1, "is not on this host"),
    ],
)
def test_functions_that_cannot_be(q35: Sim, device: str, count: int, said: str) -> None:
    assert said in str(q35.fails(functions=[{"device": device, "count": count}]))


def test_a_card_that_is_with_vfio_itself_makes_no_functions(q35: Sim) -> None:
    q35.do(devices=[SRIOV])
    assert "only a driver of the host" in str(q35.fails(functions=[{"device": SRIOV, "count": 1}]))


def test_functions_that_cannot_be_bound_are_not_left_there(q35: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    before = q35.snapshot()
    q35.path("dev/kmsg").unlink(missing_ok=True)
    made = q35._functions

    def in_one_group(parent: str, count: int) -> None:
        made(parent, count)
        for address in VFS[:count]:
            (q35.path("sys/bus/pci/devices", address) / "iommu_group").unlink()

    monkeypatch.setattr(q35, "_functions", in_one_group)
    refused = q35.fails(functions=[{"device": SRIOV, "count": 2}])
    assert {each["hazard"] for each in refused.facts["refused"]} == {"unknown_group"}
    assert q35.snapshot() == before


def test_a_machine_without_iommu_binds_nothing(tmp_path: pathlib.Path) -> None:
    sim = Sim(tmp_path / "root", capture("disabled-on-cmdline"))
    assert "Take amd_iommu=off off the kernel command line" in str(sim.fails(devices=["0000:00:1f.6"]))


def test_devices_wait_for_an_iommu_that_the_next_boot_has(tmp_path: pathlib.Path) -> None:
    machine = capture("disabled-on-cmdline")
    sim = Sim(tmp_path / "root", machine)  # whose boot loader has no amd_iommu=off any more
    sim.path("boot/grub/grub.cfg").write_text("menuentry 'D' {\n\tlinux /vmlinuz root=/dev/sda1 ro\n}\n")
    done = sim.do(devices=["0000:00:1f.6"])
    assert (done["changed"], done["reboot_required"]) == (False, True)
    assert done["devices"][0]["result"] == "deferred"
    assert "groups are not known before" in done["warnings"][0]
    assert sim.did == []


def test_a_driver_that_hangs_is_left_alone(q35: Sim) -> None:
    q35.hangs = {OLD[1]}
    stuck = q35.fails(devices=OLD)
    assert [(each["address"], each["result"]) for each in stuck.facts["devices"]] == [
        (OLD[0], "rolled_back"),
        (OLD[1], "stuck"),
    ]
    assert stuck.facts["reboot_required"]
    assert "did not let go of 0000:06:02.0 within 30 s" in str(stuck) and "state: d" in str(stuck)
    assert q35.driver(OLD[0]) == "e1000"
    q35.did.clear()
    for options in ({"devices": OLD}, {"state": "original"}):
        again = q35.fails(**options)
        assert [each["hazard"] for each in again.facts["refused"]] == ["stuck"]
        assert again.facts["reboot_required"]
    assert q35.did == []
    q35.reboot()
    assert {q35.driver(one) for one in OLD} == {"vfio-pci"}
    assert {each["result"] for each in q35.do(devices=OLD)["devices"]} == {"already"}


def test_a_hang_without_persistence_leaves_the_next_boot_as_it_was(q35: Sim) -> None:
    q35.hangs = {OLD[1]}
    q35.fails(devices=OLD, persist=False)
    q35.reboot()
    assert {q35.driver(one) for one in OLD} == {"e1000"}


def test_a_group_whose_member_fails_gets_back_what_it_had(q35: Sim) -> None:
    before = q35.snapshot()
    q35.refuses = {OLD[1]}
    failed = q35.fails(devices=OLD)
    assert "0000:06:02.0 cannot be given to vfio-pci" in str(failed)
    assert {each["result"] for each in failed.facts["devices"]} == {"rolled_back"}
    assert q35.snapshot() == before


def test_groups_that_were_done_before_a_failure_stay(q35: Sim) -> None:
    q35.refuses = {OLD[1]}
    failed = q35.fails(devices=[NIC, *OLD, NVME])
    results = {each["address"]: each["result"] for each in failed.facts["devices"]}
    assert results == {NIC: "bound", OLD[0]: "rolled_back", OLD[1]: "rolled_back"}
    assert q35.driver(NVME) == "nvme"
    assert OLD[0] not in q35.path(RULES).read_text() and NVME not in q35.path(RULES).read_text()
    assert not q35.do(devices=[NIC])["changed"]


def test_somebody_elses_change_is_left_alone_by_the_undo(q35: Sim) -> None:
    q35.do(devices=[NIC])
    q35.path(RULES).write_text("# mine now\n")
    done = q35.do(state="original")
    assert done["warnings"] == [f"/{RULES} is left alone: somebody else has changed it"]
    assert q35.path(RULES).read_text() == "# mine now\n"
    assert q35.driver(NIC) == "e1000e"


def test_a_device_that_got_another_driver_meanwhile_is_left_alone_by_the_undo(q35: Sim) -> None:
    q35.do(devices=[NIC])
    q35._set(NIC, "uio_pci_generic")
    q35.path("sys/bus/pci/devices", NIC, "driver_override").write_text("uio_pci_generic\n")
    done = q35.do(state="original")
    assert "has the driver uio_pci_generic now" in done["warnings"][0]
    assert q35.driver(NIC) == "uio_pci_generic" and not q35.path(LEDGER).exists()


def test_the_undo_does_not_take_a_device_from_a_guest_and_a_selection_still_yields_it(q35: Sim) -> None:
    free: dict[str, t.Any] = {
        "select": "[?class_name=='ethernet' && vendor=='8086' && device=='10d3' && !hazards].address",
        "expect_count": 3,
    }
    q35.do(False, **free)
    group = q35.path("dev/vfio")
    for number, name in enumerate(("12", "vfio")):
        link = q35.path("proc/3000/fd", str(number))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/dev/vfio/{name}")
    q35.path("proc/3000/comm").write_text("qemu-system-x86\n")
    refused = q35.fails(state="original")
    assert {each["hazard"] for each in refused.facts["refused"]} == {"other_guest"}
    assert "stop the guest first" in str(refused)
    assert not q35.do(devices=[NIC])["changed"] and not group.exists()
    again = q35.do(False, **free)
    assert not again["changed"] and {each["result"] for each in again["devices"]} == {"already"}


def test_an_undo_without_anything_to_undo_changes_nothing(q35: Sim) -> None:
    before = q35.snapshot()
    assert not q35.do(state="original")["changed"]
    assert not q35.do(state="original", devices=[NIC])["changed"]
    assert q35.snapshot() == before


def test_an_undo_that_waits_for_the_next_boot(q35: Sim) -> None:
    before = q35.snapshot()
    q35.do(devices=[NIC])
    done = q35.do(state="original", runtime="never")
    assert done["reboot_required"] and done["changed"] and q35.driver(NIC) == "vfio-pci"
    assert not q35.do(state="original", runtime="never")["changed"]
    q35.reboot()
    q35.do(state="original")
    assert q35.snapshot() == before


def test_an_initramfs_that_others_made_since_is_made_anew_by_the_undo(q35: Sim) -> None:
    q35.do(devices=[NIC])
    q35.run(["update-initramfs"])
    q35.path(IMAGES[0]).write_text("made by a new kernel")
    q35.do(state="original")
    assert all(q35.path(image).read_text() == "made without" for image in IMAGES)


def test_the_initramfs_is_made_once_for_several_devices(q35: Sim) -> None:
    q35.do(devices=[NIC, NVME, *OLD])
    assert [each for each in q35.did if each.startswith("update-initramfs")] == ["update-initramfs -u -k all"]


def test_a_host_whose_initramfs_is_unknown_is_told_so(tmp_path: pathlib.Path) -> None:
    sim = Sim(tmp_path / "root", machines.desktop(), initramfs=False)
    done = sim.do(devices=["0000:03:00.0"])
    assert "What makes the initramfs of this host is not known" in done["warnings"][0]
    assert done["next_boot"][0]["initramfs"] is False


def test_what_others_bind_at_boot_is_left_to_them(q35: Sim) -> None:
    q35.path("etc/driverctl.d").mkdir(parents=True)
    q35.path("etc/driverctl.d", f"pci-{NIC}").write_text("vfio-pci\n")
    done = q35.do(devices=[NIC])
    assert not q35.path(RULES).exists()
    assert done["next_boot"][0]["source"] == "driverctl"
    assert not q35.do(devices=[NIC])["changed"]


def test_a_card_that_was_moved_is_followed(q35: Sim) -> None:
    q35.do(devices=[NIC])
    kept = json.loads(q35.path(LEDGER).read_text())
    kept["devices"]["0000:7f:00.0"] = kept["devices"].pop(NIC)
    q35.path(LEDGER).write_text(json.dumps(kept))
    q35.do(devices=["8086:10d3/8086:0000@0"])
    assert list(json.loads(q35.path(LEDGER).read_text())["devices"]) == [NIC]
    assert "0000:7f" not in q35.path(RULES).read_text()


def test_a_ledger_that_cannot_be_read_is_no_reason_to_start_anew(q35: Sim) -> None:
    q35.do(devices=[NIC])
    q35.path(LEDGER).write_text("{")
    assert "can then no longer be undone" in str(q35.fails(devices=[NVME]))


def _cut_too(sim: Sim) -> t.Callable[..., None]:
    """Writing a file, as an effect in which the power may be cut."""

    def write(root: str, path: str, content: str | None, mode: int = 0o644) -> None:
        try:
            sim._effect(path)
        except PowerCut:
            if content is not None:
                aside = sim.path(f"{path}.phyllome-new")
                aside.parent.mkdir(parents=True, exist_ok=True)
                aside.write_text(content[: len(content) // 2])
            raise
        files.write(root, path, content, mode)

    return write


def test_a_power_cut_or_a_kill_between_any_two_steps(q35: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every effect on the kernel, by a program and on a file, of binding and of undoing."""

    monkeypatch.setattr(apply, "write", _cut_too(q35))
    before = q35.snapshot()
    binding, undoing = {"devices": [NIC, *OLD]}, {"state": "original"}
    was_cut = True
    for cut in itertools.count():
        if not was_cut:
            break
        was_cut = False
        for options in (binding, undoing):
            q35.cut = cut
            try:
                q35.do(**options)
            except PowerCut:
                was_cut = True
            q35.cut = None
            if cut % 2:
                q35.reboot()
            q35.do(**options)
            assert not q35.do(**options)["changed"]
            if options is binding:
                assert {q35.driver(one) for one in (NIC, *OLD)} == {"vfio-pci"}
        assert q35.snapshot() == before
    assert cut > 15


def test_one_initramfs_for_several_runs(q35: Sim) -> None:
    before = q35.snapshot()
    makes = "update-initramfs -u -k all"
    left = q35.do(devices=[NIC], initramfs="later")
    assert "initramfs" not in {each["path"] for each in left["plan"]}
    assert not left["next_boot"][0]["initramfs"]
    assert not q35.do(devices=[NIC], initramfs="later")["changed"]
    q35.do(devices=OLD, initramfs="later")
    assert makes not in q35.did
    assert q35.do(initramfs="only", check=True)["changed"]
    made = q35.do(initramfs="only")
    assert [each["path"] for each in made["plan"]] == ["initramfs"] and made["devices"] == []
    assert q35.did.count(makes) == 1
    assert NIC in q35.path(IMAGES[0]).read_text() and OLD[1] in q35.path(IMAGES[1]).read_text()
    assert not q35.do(initramfs="only")["changed"]
    assert not q35.do(devices=[NIC, *OLD])["changed"]
    q35.do(state="original", initramfs="later")
    assert q35.path(LEDGER).exists() and NIC in q35.path(IMAGES[0]).read_text()
    q35.do(initramfs="only")
    assert q35.snapshot() == before


def test_an_initramfs_that_was_left_and_is_not_needed_any_more_is_not_made(q35: Sim) -> None:
    before = q35.snapshot()
    q35.do(devices=[NIC], initramfs="later")
    q35.do(state="original")
    assert q35.snapshot() == before and "update-initramfs -u -k all" not in q35.did
    assert not q35.do(initramfs="only")["changed"]


def test_a_binding_that_was_cut_anywhere_is_undone_without_being_finished(
    q35: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte: an initramfs is only made anew when ours were."""
    monkeypatch.setattr(apply, "write", _cut_too(q35))
    before = q35.snapshot()
    for cut in itertools.count():
        q35.cut = cut
        try:
            q35.do(devices=[NIC, *OLD])
            break
        except PowerCut:
            q35.cut = None
        if cut % 2:
            q35.reboot()
        q35.do(state="original")
        assert q35.snapshot() == before
    assert cut > 15


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing is asked for"),
        ({"devices": [NIC], "select": "[].address"}, "Leave one of them out"),
        ({"devices": ["0000:77:00.0"]}, "no PCI device has this address"),
        ({"devices": ["8086:10d3/8086:0000@77"]}, "is not on this host"),
        ({"select": "[?vendor=='ffff'].address"}, "nothing would be bound"),
        ({"select": "[?class_name=='nvme'].address", "expect_count": 1}, "yields 2 devices"),
        ({"select": "[?"}, "is no JMESPath"),
        ({"select": "[].vendor"}, "yields no addresses"),
        ({"devices": [NIC], "expect_count": 1}, "there is nothing to count"),
        ({"devices": [NIC], "driver": "e1000e"}, "not a driver of VFIO"),
        ({"devices": [NIC], "timeout": 0}, "a second or more"),
        ({"devices": [NIC], "initramfs": "only"}, "Leave everything else out"),
        ({"state": "original", "initramfs": "only"}, "Leave everything else out"),
        ({"devices": [NIC], "protect": ["nothing0"]}, "protects nothing here"),
    ],
)
def test_options_that_make_no_sense(q35: Sim, options: dict, said: str) -> None:
    assert said in str(q35.fails(**options))


def test_what_is_protected_is_not_taken(q35: Sim) -> None:
    refused = q35.fails(devices=[NIC], protect=[NIC])
    assert [each["hazard"] for each in refused.facts["refused"]] == ["protected"]


def test_a_captured_machine_can_only_be_looked_at(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PhyllomeError, match="Use check mode"):
        spec.wanted({**DEFAULTS, "devices": [NIC], "sysfs_root": str(tmp_path)}, False)
    assert spec.wanted({**DEFAULTS, "devices": [NIC], "sysfs_root": str(tmp_path)}, True).root == str(tmp_path)
