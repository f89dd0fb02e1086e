"""From devices of the host to a guest that uses them, and back: one story on one machine, each test a part of it.

The power goes in the middle of binding, in the middle of making an initramfs, and right after the undo. tests/unit/_vfio has
cuts after every single step, on a kernel that is played; each boot here is one that the story needs anyway.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import time
import typing as t

import pytest
import yaml

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.lab import nested
from ansible_collections.phyllome.virt.tests.metal.conftest import Bare
from ansible_collections.phyllome.virt.tests.metal.host import Host

GUIDE = (runner.ROOT / "docs" / "give-a-gpu.md").read_text()
#: The words of the guide, as they stand there.
WORDS = [yaml.safe_load(text) for text in re.findall(r"(?s)^```yaml\n(.+?)\n```$", GUIDE, re.MULTILINE)]
COMMANDS = [line for text in re.findall(r"(?s)^```sh\n(.+?)\n```$", GUIDE, re.MULTILINE) for line in text.splitlines()]
CHECK, SITE, SITE_AGAIN, ARGUMENTS_BACK = COMMANDS[2:]
#: The host's drivers of what the guest gets.
GIVEN = {"ssd": "nvme", "nic": "e1000e", "usb": "xhci_hcd", "gpu": "bochs-drm", "gpu-audio": "snd_hda_intel"}
#: What the drive holds before the guest has it; its second sector is empty.
KNOWN = hashlib.sha256(b"phyllome").digest() * 16
#: Keeps the IOMMU off from the next boot on; and the card's driver gets into every initramfs.
_OFF = """
sed -i 's/^GRUB_CMDLINE_LINUX="/&intel_iommu=off /' /etc/default/grub.d/lab.cfg
update-grub 2> /dev/null
echo e1000e >> /etc/initramfs-tools/modules
sync
"""
_GONE = 'while [ -e "/sys/bus/pci/devices/$1" ]; do sleep 0.2; done'
_THERE = 'until [ -e "/sys/bus/pci/devices/$1/driver" ]; do sleep 0.2; done; udevadm settle'


class Story(Host):
    """The machine of the story, on which the guide is followed."""

    def follow(self, command: str, **variables: t.Any) -> runner.Run:
        """A playbook of the guide, with variables of the host. Of the site, what it does about devices."""
        inventory = yaml.safe_load(self.bare.machine.inventory_text())
        inventory["phyllome_hosts"].setdefault("vars", {}).update(variables)
        self.bare.inventory.write_text(yaml.safe_dump(inventory))
        program, dummy, dummy, name, *flags = shlex.split(command)
        assert (program, name) == ("ansible-playbook", "phyllome.virt.site")
        return runner.playbook(name, self.bare.inventory, "--tags", "passthrough", *flags, timeout=2700).ok()

    def wanted(self, *more: str) -> list[dict[str, t.Any]]:
        """The graphics card as the guide has it, here the only screen; a drive, a card, a controller, functions of a card."""
        (card,) = WORDS[0]["phyllome_passthrough"]
        return [
            {**card, "consent": ["primary_gpu"], "runtime": "force"},
            {
                "devices": self.at("ssd", "nic", "usb", *more),
                "functions": [{"device": self.places["sriov"], "count": 2}],
            },
        ]

    def functions(self) -> list[str]:
        """The virtual functions that are there."""
        return self.sh('cd "/sys/bus/pci/devices/$1"; for one in virtfn*; do basename "$(readlink "$one")"; done',
                       *self.at("sriov")).split()  # fmt: skip


@pytest.fixture(scope="module")
def story(bring_up: t.Callable[..., Bare]) -> t.Iterator[Story]:
    bare = bring_up("intel")
    bare.machine.keep_compiled()
    yield Story(bare)
    bare.machine.down()


@pytest.fixture(scope="module")
def before(story: Story) -> tuple[str, dict[str, tuple[str, str]]]:
    """All files and drivers, on a machine that will have its IOMMU off from its next boot on."""
    story.sh(_OFF)
    drivers = story.drivers()
    assert {name: drivers[name][0] for name in GIVEN} == GIVEN
    return story.files(), drivers


def test_a_binding_that_a_power_cut_ended_is_undone(story: Story, before: tuple[str, t.Any]) -> None:
    """Files are written by then, and one device of three is bound."""
    devices = story.at("nic", "ssd", "usb")
    story.cut_during('readlink "/sys/bus/pci/devices/$1/driver" | grep -q vfio', devices[0], devices=devices)
    assert "intel_iommu=off" in story.sh("cat /proc/cmdline")
    assert story.files() != before[0]
    done = story.bind(state="original")
    assert not done.get("failed") and done["changed"], done.get("msg")
    assert story.files() == before[0]
    assert story.drivers() == before[1]


def test_the_iommu_is_switched_on_and_devices_are_bound_with_one_reboot(
    story: Story, before: tuple[str, object]
) -> None:
    foretold = story.follow(CHECK, phyllome_passthrough=story.wanted()).changes()
    assert story.files() == before[0]
    done = story.follow(SITE, phyllome_passthrough=story.wanted())
    # what else there is to do depends on the groups, which nobody knows before the reboot
    tasks = [task.rpartition(" : ")[2] for dummy, task, dummy in foretold]
    assert tasks == ["Have the kernel switch it on", "Reboot"] and foretold[0] == done.changes()[0], foretold
    results = [(task.rpartition(" : ")[2], result) for dummy, task, result in done.results()]
    assert len([task for task, result in results if task == "Reboot" and result.get("rebooted")]) == 1
    plans = [each["plan"] for task, result in results if task == "Bind" for each in result["results"]]
    assert [[change["path"] for change in plan].count("initramfs") for plan in plans] == [0, 1]
    assert "intel_iommu=on" in story.sh("cat /proc/cmdline")
    drivers, functions = story.drivers(), story.functions()
    assert {drivers[name] for name in (*GIVEN, *functions)} == {("vfio-pci", "vfio-pci")}
    assert len(functions) == 2 and drivers["sriov"][0] == "nvme"


def test_a_guest_uses_what_it_is_given(story: Story) -> None:
    """It reads from the drive, sends with the card, and writes onto the drive what came of both."""
    machine = story.bare.machine
    with machine.files.ssd.open("r+b") as drive:
        drive.write(KNOWN)
    machine.put(nested.initrd(), "/srv/initrd")
    keys = {each["address"]: each["identity"]["key"] for each in story.bare.facts(gather=["devices"])["devices"]}
    given = [{"id": name, "pci": keys[story.places[name]]} for name in GIVEN]
    given += [{"id": f"vf-{place[-1]}", "pci": place} for place in story.functions()]
    kernel = "<kernel>/vmlinuz</kernel><initrd>/srv/initrd</initrd><cmdline>quiet</cmdline>"
    guest = {"name": "user", "profile": "legacy", "memory": "256MiB", "vcpus": 1, "hostdevs": given}
    done = story.module("phyllome_vm", {**guest, "xml": {"guest": f"<domain><os>{kernel}</os></domain>"}})
    assert not done.get("failed"), done["msg"]
    sector = b""
    deadline = time.monotonic() + 1200
    while not sector.startswith(b"read") and time.monotonic() < deadline:
        time.sleep(1)
        sector = machine.files.ssd.read_bytes()[512:1024]
    said = rb"read %s sent by 52:54:00[0-9a-f:]{9}\n\0*" % hashlib.md5(KNOWN).hexdigest().encode()
    assert re.fullmatch(said, sector), sector
    refused = story.refused(story.bind(state="original"))
    assert all("opened by qemu" in refused[name]["other_guest"]["evidence"] for name in GIVEN)
    story.sh("virsh -q destroy user; virsh -q undefine user")


def test_another_card_at_the_same_address_is_left_to_the_host(story: Story) -> None:
    machine = story.bare.machine
    (nic,) = story.at("nic")
    machine.unplug("nic")
    story.sh(_GONE, nic)
    machine.plug({"driver": "e1000e", "id": "other", "bus": "port-1", "subsys": 0x1234})
    story.sh(_THERE, nic)
    drivers = story.drivers()
    assert drivers["nic"] == ("e1000e", "(null)")
    refused = story.refused(story.bind(devices=[nic, *story.at("far-1")]))
    assert {*refused} == {"nic"} and "identity_changed" in refused["nic"]
    assert story.drivers() == drivers
    machine.unplug("other")
    story.sh(_GONE, nic)
    machine.plug({"driver": "e1000e", "id": "nic", "bus": "port-1"})
    story.sh(_THERE, nic)
    # the rule knows it again; whether it is before the card's driver, loaded by then, is up to the kernel
    assert story.drivers()["nic"][1] == "vfio-pci"


def test_all_is_bound_after_a_power_cut_while_an_initramfs_was_made(story: Story) -> None:
    wanted = story.wanted("far-1")
    story.cut_during("ls /boot/initrd.img-*.new > /dev/null 2>&1", devices=wanted[1]["devices"])
    drivers = story.drivers()
    assert {drivers[name][0] for name in (*GIVEN, *story.functions())} == {"vfio-pci"}
    story.follow(SITE, phyllome_passthrough=wanted)
    assert story.drivers()["far-1"][0] == "vfio-pci"
    files = story.files()
    again = story.follow(SITE, phyllome_passthrough=wanted)
    assert again.changed[story.bare.machine.record.name] == 0 and story.files() == files


def test_all_of_it_is_undone(story: Story, before: tuple[str, dict[str, tuple[str, str]]]) -> None:
    """And what was undone is on the disk: the power goes right afterwards."""
    story.follow(SITE_AGAIN, **WORDS[3])
    assert story.drivers() == before[1]
    *dummy, name, option, argument = shlex.split(ARGUMENTS_BACK)
    assert (name, option, argument) == ("phyllome.virt.kernel_cmdline", "-a", "state=original")
    undone = story.module("kernel_cmdline", {"state": "original"})
    assert undone["changed"] and undone["reboot_required"], undone
    story.bare.machine.poweroff()
    story.boot()
    assert "intel_iommu=off" in story.sh("cat /proc/cmdline")
    assert story.drivers() == before[1]
    assert story.files() == before[0]
    assert story.drivers() == before[1]
