"""iommu_facts on live machines, compared with what QEMU was told to build."""

from __future__ import annotations

import dataclasses
import typing as t

import jmespath
import pytest

from ansible_collections.phyllome.virt.tests.metal.conftest import MACHINES, Bare, Machines

#: What must share a group, since nothing keeps it apart; everything else is in a group alone.
TOGETHER = (
    {"gpu", "gpu-audio"},
    {"bridge", "old-1", "old-2"},
    {"switch-1", "far-1"},
    {"switch-2", "far-2"},
    {"0000:00:1f.0", "0000:00:1f.2", "0000:00:1f.3"},
)
#: What a guest could have, where there is an IOMMU: nothing stands against it.
FREE = {"nic", "vnic", "usb", "old-1", "old-2", "far-1", "far-2", "ssd", "sriov"}


@dataclasses.dataclass(frozen=True)
class Seen:
    """One machine: what QEMU has in it, and what the module says of it."""

    name: str
    bare: Bare
    hardware: dict[str, dict[str, t.Any]]
    facts: dict[str, t.Any]

    @classmethod
    def of(cls, name: str, bare: Bare) -> Seen:
        """Look at a machine from both sides."""
        hardware = {device["address"]: device for device in bare.machine.devices()}
        return cls(name, bare, hardware, bare.facts())

    def called(self, address: str) -> str:
        """What the lab calls a device; a chip that is part of the board is called by its address."""
        return self.hardware[address]["qdev_id"] or address

    def device(self, name: str) -> dict[str, t.Any]:
        """What the module says of a device."""
        return next(device for device in self.facts["devices"] if self.called(device["address"]) == name)

    def hazards(self, name: str) -> dict[str, dict[str, t.Any]]:
        """Everything against giving a device away, by its code."""
        return {hazard["code"]: hazard for hazard in self.device(name)["hazards"]}

    def select(self, query: str) -> set[str]:
        """Names of the devices whose addresses a JMESPath over the facts yields."""
        return {self.called(address) for address in jmespath.search(query, self.facts)}


@pytest.fixture(scope="module", params=MACHINES)
def seen(request: pytest.FixtureRequest, machines: Machines) -> t.Iterator[Seen]:
    yield Seen.of(request.param, machines[request.param])
    if request.param != "intel":
        machines.down(request.param)


only_the_saved = pytest.mark.parametrize("seen", ["intel"], indirect=True)


def test_every_device_is_there_with_its_ids_and_class(seen: Seen) -> None:
    built = {
        address: (
            f"{device['id']['vendor']:04x}",
            f"{device['id']['device']:04x}",
            f"{device['class_info']['class']:04x}",
        )
        for address, device in seen.hardware.items()
    }
    found = {
        device["address"]: (device["vendor"], device["device"], device["class"][:4]) for device in seen.facts["devices"]
    }
    assert found == built


def test_the_windows_of_every_device_have_their_sizes(seen: Seen) -> None:
    rom = 6
    built = {
        address: {region["bar"]: region["size"] for region in device["regions"] if region["bar"] != rom}
        for address, device in seen.hardware.items()
    }
    found = {device["address"]: {bar["n"]: bar["bytes"] for bar in device["bars"]} for device in seen.facts["devices"]}
    assert found == built


def test_the_state_of_the_iommu_and_why(seen: Seen) -> None:
    kind, iommu = MACHINES[seen.name], seen.facts["iommu"]
    assert (iommu["state"], iommu["causes"]) == (kind.state, list(kind.causes))
    assert iommu["evidence"]
    assert bool(iommu["remedy"]) == bool(kind.causes)
    assert iommu["firmware"]["table"] == kind.table
    assert tuple(unit["type"] for unit in iommu["units"]) == kind.units


def test_interrupt_remapping(seen: Seen) -> None:
    assert seen.facts["iommu"]["interrupt_remapping"] == MACHINES[seen.name].remapping


def test_the_running_command_line_and_the_next_are_told_apart(seen: Seen) -> None:
    """Words that the lab gives the kernel are not in the boot loader's configuration."""
    running = (MACHINES[seen.name].cmdline or "").split()
    assert seen.facts["iommu"]["cmdline"] == {
        "running": running,
        "next_boot": [],
        "reboot_pending": bool(running),
    }


def test_groups_are_as_the_machine_is_wired(seen: Seen) -> None:
    # AMD's IOMMU is a PCI function itself, and in no group
    names = {
        seen.called(address) for address, device in seen.hardware.items() if device["class_info"]["class"] != 0x0806
    }
    alone = names.difference(*TOGETHER)
    wired = {frozenset(group) for group in (*TOGETHER, *({name} for name in alone))}
    found = {frozenset(map(seen.called, group["devices"])) for group in seen.facts["groups"]}
    assert found == (wired if seen.facts["iommu"]["state"] == "on" else set())
    by_device = {device["address"]: device["group"] for device in seen.facts["devices"]}
    by_group = {address: group["id"] for group in seen.facts["groups"] for address in group["devices"]}
    assert by_device == {address: by_group.get(address) for address in seen.hardware}


def test_each_device_names_the_unit_it_is_behind(seen: Seen) -> None:
    units = {unit["name"] for unit in seen.facts["iommu"]["units"]}
    found = {device["iommu_unit"] for device in seen.facts["devices"] if device["group"] is not None}
    assert found == units
    assert len(units) == (seen.facts["iommu"]["state"] == "on")


def test_what_the_host_stands_on_is_guarded(seen: Seen) -> None:
    disk, nic = seen.hazards("root-disk"), seen.hazards("management-nic")
    assert disk["root_fs"]["severity"] == "never"
    assert "boot_disk" in disk  # the EFI partition is mounted
    assert "mgmt_nic" in nic
    assert seen.device("root-disk")["in_use"]
    assert seen.device("management-nic")["in_use"]


def test_only_what_is_free_and_has_a_group_can_be_selected(seen: Seen) -> None:
    assert seen.select("devices[?!hazards].address") == (FREE if seen.facts["iommu"]["state"] == "on" else set())


def test_a_bare_machine_is_not_taken_for_a_virtual_one(seen: Seen) -> None:
    assert seen.facts["host"]["virtualization"] == "none"
    assert seen.facts["host"]["container"] is False


@only_the_saved
@pytest.mark.parametrize(
    ("member", "state", "isolated", "bind"),
    [
        ("nic", "bindable", True, {"nic"}),
        ("far-1", "bindable", True, {"far-1"}),
        ("old-1", "shared", False, {"old-1", "old-2"}),
        ("gpu", "blocked", True, {"gpu", "gpu-audio"}),
        ("root-disk", "blocked", True, {"root-disk"}),
        ("port-1", "blocked", None, set()),
    ],
)
def test_the_verdict_on_a_group(seen: Seen, member: str, state: str, isolated: bool | None, bind: set[str]) -> None:
    number = seen.device(member)["group"]
    group = next(group for group in seen.facts["groups"] if group["id"] == number)
    assert (group["state"], group["isolated"], set(map(seen.called, group["bind_set"]))) == (state, isolated, bind)


@only_the_saved
def test_the_sound_of_a_graphics_card_shares_its_hazards(seen: Seen) -> None:
    gpu, audio = seen.hazards("gpu"), seen.hazards("gpu-audio")
    assert "primary_gpu" in gpu
    assert audio["primary_gpu"]["device"] == seen.device("gpu")["address"]
    assert seen.device("gpu-audio")["functions"] == [seen.device("gpu")["address"]]


@only_the_saved
def test_classes_have_names(seen: Seen) -> None:
    expected = {"ssd": "nvme", "usb": "usb", "gpu": "display", "gpu-audio": "audio", "nic": "ethernet"}
    assert {name: seen.device(name)["class_name"] for name in expected} == expected
    assert seen.select("devices[?class_name=='nvme' && !hazards].address") == {"ssd", "sriov"}


@only_the_saved
def test_virtual_functions_that_are_switched_on(seen: Seen) -> None:
    before = seen.device("sriov")
    assert (before["sriov"]["totalvfs"], before["sriov"]["numvfs"], before["sriov"]["vfs"]) == (2, 0, [])
    assert seen.device("ssd")["sriov"] is None
    folder = f"/sys/bus/pci/devices/{before['address']}"
    script = 'echo 0 > "$0/sriov_drivers_autoprobe" && echo 2 > "$0/sriov_numvfs"'
    seen.bare.machine.run(["sh", "-c", script, folder])
    try:
        now = Seen.of(seen.name, seen.bare)
    finally:
        script = 'echo 0 > "$0/sriov_numvfs" && echo 1 > "$0/sriov_drivers_autoprobe"'
        seen.bare.machine.run(["sh", "-c", script, folder])

    functions = sorted(set(now.hardware) - set(seen.hardware))
    parent = now.device("sriov")
    assert len(functions) == 2
    assert (parent["sriov"]["numvfs"], parent["sriov"]["vfs"]) == (2, functions)
    assert "vf_parent" in now.hazards("sriov")
    groups = {tuple(group["devices"]) for group in now.facts["groups"]}
    for address in functions:
        device = now.device(address)
        assert (device["vendor"], device["device"]) == (parent["vendor"], parent["device"])
        assert device["sriov"]["physfn"] == parent["address"]
        assert (address,) in groups


def test_a_device_that_is_locked_for_good_does_not_hold_the_facts_up(intel: Bare) -> None:
    """The sound of the graphics card is open, so its driver does not let go of it, and the kernel keeps it locked."""
    audio = next(one["address"] for one in intel.machine.devices() if one["qdev_id"] == "gpu-audio")
    driver = "/sys/bus/pci/drivers/snd_hda_intel"
    hang = """
    sound=$(basename "$(ls -d "$1/$2"/sound/card*)")
    sleep infinity < "/dev/snd/controlC${sound#card}" > /dev/null 2>&1 &
    echo $!
    (echo "$2" > "$1/unbind") > /dev/null 2>&1 &
    until grep -q snd_card_free "/proc/$!/wchan"; do sleep 0.1; done
    """
    holder = intel.machine.run(["sh", "-ec", hang, "sh", driver, audio]).stdout.strip()
    try:
        facts = intel.facts()
    finally:
        free = 'kill "$3"; until [ -e "$1/$2" ]; do echo "$2" > "$1/bind"; sleep 0.1; done'
        intel.machine.run(["sh", "-c", free, "sh", driver, audio, holder])
    found = {one["address"]: one for one in facts["devices"]}
    path = f"/sys/devices/{found[audio]['identity']['path']}"
    silent = {one["path"] for one in facts["unread"] if one["why"] == "the kernel does not answer"}
    assert silent and silent <= {f"{path}/uevent", f"{path}/driver_override"}
    assert "unknown_driver" in {one["code"] for one in found[audio]["hazards"]}
    assert found[audio]["class_name"] == "audio"
