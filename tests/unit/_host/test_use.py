# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host uses, from a composed machine down to the PCI function. Every trap has a machine of its own."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.sysfs import Tree
from ansible_collections.phyllome.virt.plugins.module_utils._host.judge import HostUse, judge_use
from ansible_collections.phyllome.virt.plugins.module_utils._host.read import read_nodes, read_use
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

DISK = "0000:00:17.0"
NIC = "0000:00:1f.6"


@pytest.fixture
def judge(tmp_path) -> t.Callable[..., HostUse]:
    def judged(machine: machines.Machine, protect: t.Sequence[str] = ()) -> HostUse:
        tree = Tree(machine.write(tmp_path / str(len([*tmp_path.iterdir()]))), "sysfs_root")
        return judge_use(read_use(tree), ["0000:01:00.0"], read_nodes(tree, protect))

    return judged


@pytest.fixture
def second(judge) -> machines.Machine:
    """A bare machine with a second disk at 0000:01:00.0 that has one partition, nvme0n1p1, and is not used."""
    machine = machines.bare()
    machine.pci("0000:01:00.0", "144d:a80a", "010802", driver="nvme")
    machine.disk("nvme0n1", "0000:01:00.0", "259:0", {"nvme0n1p1": "ext4"})
    return machine


def codes(use: HostUse, address: str = "0000:01:00.0") -> set[str]:
    return {*use.hazards.get(address, {})}


def test_nothing_is_unknown_on_a_readable_machine(judge, second):
    use = judge(second)
    assert use.unknown == {}
    assert codes(use) == {"has_data"}
    assert use.hazards[DISK]["root_fs"] == ["/ on sda1"]
    assert use.hazards[NIC]["mgmt_nic"] == ["default route on eno1"]


def test_an_empty_disk_has_no_hazard(judge):
    machine = machines.bare()
    machine.pci("0000:01:00.0", "144d:a80a", "010802", driver="nvme")
    machine.disk("nvme0n1", "0000:01:00.0", "259:0")
    assert codes(judge(machine)) == set()


@pytest.mark.parametrize("point", ["/", "/usr", "/var", "/sysroot"])
def test_what_the_running_system_cannot_be_without(judge, second, point):
    second.mount("259:1", point, "ext4", "/dev/nvme0n1p1")
    assert "root_fs" in codes(judge(second))


@pytest.mark.parametrize(("point", "code"), [("/boot", "boot_disk"), ("/boot/efi", "boot_disk"), ("/data", "mounted")])
def test_mounts(judge, second, point, code):
    second.mount("259:1", point, "vfat", "/dev/nvme0n1p1")
    assert code in codes(judge(second))


def test_a_mount_with_a_space_in_its_name(judge, second):
    second.mount("259:1", r"/my\040disk", "ext4", "/dev/nvme0n1p1")
    assert judge(second).hazards["0000:01:00.0"]["mounted"] == ["/my disk on nvme0n1p1"]


def test_down_through_lvm_luks_and_md(judge, second):
    second.stacked("md0", "9:0", ["nvme0n1p1"])
    second.stacked("dm-0", "253:0", ["md0"], "luks")
    second.stacked("dm-1", "253:1", ["dm-0"], "vg-data")
    second.mount("253:1", "/data", "xfs", "/dev/mapper/vg-data")
    use = judge(second)
    assert use.hazards["0000:01:00.0"]["mounted"] == ["/data on dm-1 on dm-0 on md0 on nvme0n1p1"]
    assert "claimed" in codes(use)


def test_a_volume_that_is_not_mounted_claims_its_disk(judge, second):
    second.stacked("dm-0", "253:0", ["nvme0n1p1"], "vg-data")
    assert "claimed" in codes(judge(second))


def test_a_stack_in_a_circle_ends(judge, second):
    second.stacked("dm-0", "253:0", ["nvme0n1p1"])
    second.stacked("dm-1", "253:1", ["dm-0"])
    second.link("sys/devices/virtual/block/dm-0/slaves/dm-1", "sys/devices/virtual/block/dm-1")
    second.mount("253:1", "/data", "xfs", "/dev/dm-1")
    assert "mounted" in codes(judge(second))


def test_a_loop_device_lies_on_the_disk_of_its_file(judge, second):
    second.mount("259:1", "/data", "ext4", "/dev/nvme0n1p1")
    second.stacked("loop0", "7:0", [])
    second.file("sys/devices/virtual/block/loop0/loop/backing_file", "/data/images/a.img\n")
    second.mount("7:0", "/mnt", "squashfs", "/dev/loop0")
    use = judge(second)
    assert "/mnt on loop0 on nvme0n1p1" in use.hazards["0000:01:00.0"]["mounted"]
    assert use.unknown == {}


@pytest.mark.parametrize("path", ["/dev/nvme0n1p1", "/data/swapfile"])
def test_swap(judge, second, path):
    second.mount("259:1", "/data", "ext4", "/dev/nvme0n1p1")
    second.swap(path)
    assert "swap" in codes(judge(second))


def test_swap_by_its_mapper_name(judge, second):
    second.stacked("dm-0", "253:0", ["nvme0n1p1"], "vg-swap")
    second.swap("/dev/mapper/vg-swap")
    assert "swap" in codes(judge(second))


def test_swap_that_is_nowhere_is_unknown(judge, second):
    second.swap("/dev/sdz1")
    assert judge(second).unknown["unknown_storage"][0] == "storage"


def test_a_btrfs_of_two_disks(judge, second):
    # mountinfo shows an anonymous device, and one source only.
    second.disk("sdb", DISK, "8:16", content="btrfs")
    for name in ("sdb", "nvme0n1p1"):
        second.link(f"sys/fs/btrfs/6a1f/devices/{name}", f"sys/class/block/{name}")
    second.mount("0:45", "/data", "btrfs", "/dev/sdb")
    use = judge(second)
    assert "mounted" in codes(use)
    assert use.unknown == {}


def test_a_btrfs_whose_disks_are_not_there_is_unknown(judge, second):
    second.mount("0:45", "/data", "btrfs", "/dev/sdb")
    assert "unknown_storage" in judge(second).unknown


@pytest.mark.parametrize("fstype", ["tmpfs", "nfs4", "overlay", "cgroup2"])
def test_a_file_system_without_a_disk(judge, second, fstype):
    second.mount("0:45", "/data", fstype, "somewhere")
    assert judge(second).unknown == {}


def test_mounted_in_another_namespace(judge, second):
    second.directories.add("sys/fs/ext4/nvme0n1p1")
    second.file("sys/fs/ext4/features/x", "")
    assert judge(second).hazards["0000:01:00.0"]["mounted"] == ["ext4 on nvme0n1p1"]


def test_zfs(judge):
    machine = machines.bare()
    machine.pci("0000:01:00.0", "144d:a80a", "010802", driver="nvme")
    machine.disk("nvme0n1", "0000:01:00.0", "259:0", {"nvme0n1p1": "zfs_member"})
    assert codes(judge(machine)) == {"has_data"}
    machine.mount("0:50", "/tank", "zfs", "tank")
    use = judge(machine)
    assert codes(use) == {"has_data", "claimed"}
    assert use.unknown == {}


def test_zfs_whose_disks_are_not_known(judge):
    machine = machines.bare()
    machine.mount("0:50", "/tank", "zfs", "tank")
    assert "unknown_storage" in judge(machine).unknown


def test_root_on_zfs(judge):
    machine = machines.bare()
    machine.remove("proc/4242/mountinfo")
    machine.pci("0000:01:00.0", "144d:a80a", "010802", driver="nvme")
    machine.disk("nvme0n1", "0000:01:00.0", "259:0", {"nvme0n1p1": "zfs_member"})
    machine.mount("0:50", "/", "zfs", "rpool/ROOT")
    assert "root_fs" in codes(judge(machine))
    assert "root_fs" not in codes(judge(machine), DISK)


@pytest.mark.parametrize("fstype", ["overlay", "tmpfs"])
def test_a_root_without_a_disk_may_be_made_of_any(judge, second, fstype):
    second.remove("proc/4242/mountinfo")
    second.mount("0:50", "/", fstype, fstype)
    second.mount("259:1", "/run/live/medium", "iso9660", "/dev/nvme0n1p1")
    assert "root_fs" in codes(judge(second))


def test_a_root_that_comes_over_the_network(judge, second):
    second.remove("proc/4242/mountinfo")
    second.mount("0:50", "/", "nfs4", "192.168.0.9:/root")
    assert judge(second).unknown["unknown_storage"] == ("storage", "/ comes over the network (nfs4)")


def test_a_disk_that_comes_over_the_network(judge):
    machine = machines.bare()
    path = "sys/devices/platform/host5/session1/target5:0:0/5:0:0:0/block/sdz"
    machine._block(path, "65:144", "E:ID_FS_TYPE=xfs\n")
    machine.directories.add(f"{path}/slaves")
    machine.mount("65:144", "/data", "xfs", "/dev/sdz")
    assert "unknown_storage" in judge(machine).unknown


def test_a_disk_that_is_no_pci_device(judge):
    machine = machines.bare()
    path = "sys/devices/platform/soc/fe330000.mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0"
    machine._block(path, "179:0", "E:ID_FS_TYPE=ext4\n")
    machine.directories.add(f"{path}/slaves")
    machine.mount("179:0", "/data", "ext4", "/dev/mmcblk0")
    assert judge(machine).unknown == {}


def test_nvme_multipath(judge):
    machine = machines.bare()
    below = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    for number in (0, 1):
        path = machine.pci(f"0000:0{number + 1}:00.0", "144d:a80a", "010802", driver="nvme")
        machine.directories.add(f"{path}/nvme/nvme{number}/power")
        machine.link(f"{below}/nvme{number}", f"{path}/nvme/nvme{number}")
    machine._block(f"{below}/nvme0n1", "259:0", "")
    machine.directories.add(f"{below}/nvme0n1/slaves")
    machine.mount("259:0", "/", "xfs", "/dev/nvme0n1")
    use = judge(machine)
    assert codes(use, "0000:01:00.0") == codes(use, "0000:02:00.0") == {"root_fs"}
    assert use.unknown == {}


def test_behind_vmd_every_function_on_the_way_is_in_use(judge):
    use = judge(machines.laptop())
    for address in ("0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"):
        assert {"root_fs", "boot_disk"} <= codes(use, address)


def test_a_part_of_a_stack_that_is_missing(judge, second):
    second.disk("sdb", DISK, "8:16")
    second.stacked("md0", "9:0", ["nvme0n1p1", "sdb"])
    second.mount("9:0", "/data", "xfs", "/dev/md0")
    second.remove("sys/class/block/nvme0n1p1")
    assert judge(second).unknown["unknown_storage"] == ("storage", "what md0 lies on could not be read")


def test_holders_that_cannot_be_read(judge, second):
    second.remove(f"{second.path_of('0000:01:00.0')}/nvme/nvme0/nvme0n1/nvme0n1p1/holders")
    assert "unknown_claims" in codes(judge(second))


def test_a_virtual_disk_that_stands_on_nothing_known(judge, second):
    second.stacked("drbd0", "147:0", [])
    second.mount("147:0", "/data", "ext4", "/dev/drbd0")
    assert judge(second).unknown["unknown_storage"] == ("storage", "what drbd0 lies on could not be read")


def test_a_mount_of_an_unknown_number(judge, second):
    second.mount("259:9", "/data", "ext4", "/dev/nvme0n1p9")
    assert judge(second).unknown["unknown_storage"] == ("storage", "what /data lies on was not found")


def test_what_udev_does_not_say_is_unknown(judge, second):
    second.remove("run/udev")
    assert "unknown_data" in codes(judge(second))


def test_a_disk_open_in_a_guest(judge, second):
    second.process(800, "qemu-system-x86", ["/dev/nvme0n1"])
    assert judge(second).hazards["0000:01:00.0"]["guest_disk"] == [
        "/dev/nvme0n1 opened by qemu-system-x86 (800) on nvme0n1"
    ]


def test_a_volume_open_in_a_process(judge, second):
    second.stacked("dm-0", "253:0", ["nvme0n1p1"], "vg-data")
    second.process(800, "mysqld", ["/dev/mapper/vg-data"])
    assert "opened" in codes(judge(second))


def test_nodes_of_sound_usb_and_nvidia(judge):
    machine = machines.bare()
    sound = machine.pci("0000:00:1f.3", "8086:a0c8", "040300", driver="snd_hda_intel")
    machine.node("char", "116:2", f"{sound}/sound/card0/controlC0")
    machine.file(f"{sound}/sound/card0/controlC0/dev", "116:2\n")
    usb = machine.pci("0000:00:14.0", "8086:a0ed", "0c0330", driver="xhci_hcd")
    machine.file(f"{usb}/usb1/busnum", "1\n")
    machine.link("sys/bus/usb/devices/usb1", f"{usb}/usb1")
    machine.pci("0000:01:00.0", "10de:2204", "030000", driver="nvidia")
    machine.pci("0000:02:00.0", "1002:73bf", "030000", driver="amdgpu")
    machine.process(900, "pipewire", ["/dev/snd/controlC0", "/dev/bus/usb/001/004", "/dev/nvidia-uvm", "/dev/kfd"])
    use = judge(machine)
    for address in ("0000:00:1f.3", "0000:00:14.0", "0000:01:00.0", "0000:02:00.0"):
        assert codes(use, address) == {"opened"}, address


def test_a_device_of_a_running_guest(judge):
    use = judge(machines.sriov())
    assert codes(use, "0000:5e:10.1") == {"other_guest"}


def test_a_mediated_device_of_a_running_guest(judge):
    machine = machines.bare()
    path = machine.pci("0000:00:02.0", "8086:3e98", "030000", driver="i915")
    uuid = "c2177883-f1bb-47f0-914d-32a22e3a8804"
    machine.directories.add(f"{path}/{uuid}")
    machine.link(f"sys/kernel/iommu_groups/90/devices/{uuid}", f"{path}/{uuid}")
    machine.process(800, "qemu-kvm", ["/dev/vfio/90"])
    assert codes(judge(machine), "0000:00:02.0") == {"other_guest"}


def test_nobody_elses_processes_can_be_seen(judge, second):
    second.remove("proc/1")
    assert judge(second).unknown["unknown_openers"][0] == "any"


def test_a_process_whose_files_cannot_be_seen(judge, second):
    second.file("proc/77/fd", "not a directory")
    assert "unknown_openers" in judge(second).unknown


def test_a_serial_console(judge):
    machine = machines.bare()
    path = machine.pci("0000:03:00.0", "1415:c158", "070002", driver="serial")
    machine.link("sys/class/tty/ttyS4", f"{path}/tty/ttyS4")
    machine.file(f"{path}/tty/ttyS4/dev", "4:68\n")
    machine.more("proc/consoles", "ttyS4                -W- (EC  p a)    4:68\n")
    assert codes(judge(machine), "0000:03:00.0") == {"console"}


def test_the_only_keyboard(judge):
    machine = machines.desktop()
    assert "usb_input" in codes(judge(machine), "0000:07:00.3")


def test_a_second_keyboard_elsewhere(judge):
    machine = machines.desktop()
    machine.keyboard(9, "sys/devices/platform/i8042/serio0")
    assert "usb_input" not in codes(judge(machine), "0000:07:00.3")


def test_a_mouse_is_no_keyboard(judge):
    machine = machines.desktop()
    path = f"{machine.path_of('0000:07:00.3')}/usb1/1-2/1-2:1.0/0003:046D:C31C.0001/input/input3"
    machine.file(f"{path}/capabilities/key", "1f0000 0 0 0 0\n")
    assert "usb_input" not in codes(judge(machine), "0000:07:00.3")


# network


def test_bridge_on_vlan_on_bond(judge):
    use = judge(machines.server())
    for function in (0, 1):
        assert use.hazards[f"0000:18:00.{function}"]["mgmt_nic"] == [
            f"default route on br0 on bond0.100 on bond0 on eno{function + 1}"
        ]
    assert codes(use, "0000:5e:00.0") == set()  # has no link
    assert use.unknown == {}


def test_a_part_of_a_bond_that_is_missing(judge):
    machine = machines.server()
    machine.remove("sys/class/net/eno2")
    assert judge(machine).unknown["unknown_mgmt_nic"][0] == "network"


@pytest.mark.parametrize("witness", ["lower", "upper", "master", "slaves"])
def test_one_witness_of_a_bond_is_enough(judge, witness):
    machine = machines.server()
    bond = "sys/devices/virtual/net/bond0"
    for name, function in (("eno1", 0), ("eno2", 1)):
        nic = f"{machine.path_of(f'0000:18:00.{function}')}/net/{name}"
        every = {"lower": f"{bond}/lower_{name}", "upper": f"{nic}/upper_bond0", "master": f"{nic}/master"}
        for other, path in {**every, "slaves": f"{bond}/bonding"}.items():
            if other != witness:
                machine.remove(path)
    use = judge(machine)
    assert "mgmt_nic" in codes(use, "0000:18:00.0") & codes(use, "0000:18:00.1")


def test_a_virtio_nic_ends_below_its_function(judge):
    machine = machines.bare()
    path = machine.pci("0000:02:00.0", "1af4:1041", "020000", driver="virtio-pci")
    machine.link("sys/class/net/eth9", f"{path}/virtio3/net/eth9")
    machine.file(f"{path}/virtio3/net/eth9/operstate", "up\n")
    machine.link(f"{path}/virtio3/net/eth9/device", f"{path}/virtio3")
    machine.route("eth9")
    assert {"mgmt_nic", "nic_used"} <= codes(judge(machine), "0000:02:00.0")


def test_a_usb_nic_belongs_to_its_controller(judge):
    machine = machines.bare()
    path = machine.pci("0000:00:14.0", "8086:a0ed", "0c0330", driver="xhci_hcd")
    machine.link("sys/class/net/enx1", f"{path}/usb1/1-2/1-2:1.0/net/enx1")
    machine.file(f"{path}/usb1/1-2/1-2:1.0/net/enx1/operstate", "up\n")
    machine.route("enx1")
    assert "mgmt_nic" in codes(judge(machine), "0000:00:14.0")


def test_a_tunnel_hides_what_it_goes_through(judge):
    machine = machines.bare()
    machine.interface("wg0", state="unknown")
    machine.route("wg0")
    assert judge(machine).unknown["unknown_mgmt_nic"][0] == "network"


def test_a_default_route_of_ipv6(judge):
    machine = machines.bare()
    machine.pci("0000:02:00.0", "8086:1521", "020000", driver="igb")
    machine.interface("ens6", "0000:02:00.0")
    machine.more("proc/net/ipv6_route", f"{'0' * 32} 00 {'0' * 32} 00 {'f' * 32} 00000400 1 0 00000003     ens6\n")
    assert "mgmt_nic" in codes(judge(machine), "0000:02:00.0")


def test_a_rejecting_route_is_none(judge):
    machine = machines.bare()
    machine.interface("dummy0")
    machine.route("dummy0", flags="0200")
    assert "unknown_mgmt_nic" not in judge(machine).unknown


def test_a_default_route_in_another_table(judge):
    machine = machines.bare()
    machine.more("proc/net/fib_trie", "Id 100:\n  |-- 0.0.0.0\n     /0 universe UNICAST\n")
    assert judge(machine).unknown["unknown_mgmt_nic"][1] == "there is a default route in a further table"


@pytest.mark.parametrize("where", ["4242", "300"])
@pytest.mark.parametrize(
    "connection", [b"192.168.7.5 50000 192.168.7.1 22", b"::ffff:192.168.7.5 50000 ::ffff:192.168.7.1 22"]
)
def test_the_connection_we_came_through(judge, where, connection):
    machine = machines.bare()
    machine.pci("0000:02:00.0", "8086:1521", "020000", driver="igb")
    machine.interface("ens6", "0000:02:00.0")
    machine.route("ens6", "0007A8C0", "00FFFFFF", "0001")
    # sudo hides the variable from us, not from who looks at our ancestors.
    machine.file("proc/4242/stat", "4242 (python3 (x)) S 300 4242 4242 0 -1\n")
    machine.file("proc/300/stat", "300 (sudo) S 1 300 300 0 -1\n")
    machine.file("proc/300/environ", b"A=1\0")
    machine.file("proc/300/comm", "sudo\n")
    machine.directories.add("proc/300/fd")
    machine.file(f"proc/{where}/environ", b"HOME=/root\0SSH_CONNECTION=" + connection + b"\0")
    use = judge(machine)
    assert "our connection to " in use.hazards["0000:02:00.0"]["mgmt_nic"][0]
    assert use.unknown == {}


def test_a_connection_from_nowhere(judge):
    machine = machines.bare()
    machine.remove("proc/net/route")
    machine.file("proc/net/route", "Iface\tDestination\n")
    machine.file("proc/4242/environ", b"SSH_CONNECTION=192.168.7.5 50000 192.168.7.1 22\0")
    assert judge(machine).unknown["unknown_connection"][0] == "network"


def test_ancestors_that_hide_their_environment(judge):
    machine = machines.bare()
    machine.remove("proc/4242/environ")
    assert "unknown_connection" in judge(machine).unknown


@pytest.mark.parametrize(("state", "used"), [("up", True), ("unknown", True), ("dormant", True), ("down", False)])
def test_an_idle_nic_is_free(judge, state, used):
    machine = machines.bare()
    machine.pci("0000:02:00.0", "8086:1521", "020000", driver="igb")
    machine.interface("ens6", "0000:02:00.0", state=state)
    assert codes(judge(machine), "0000:02:00.0") == ({"nic_used"} if used else set())


def test_a_port_of_open_vswitch_is_used(judge):
    machine = machines.bare()
    machine.pci("0000:02:00.0", "8086:1521", "020000", driver="igb")
    machine.interface("ens6", "0000:02:00.0", state="down", master="ovs-system")
    assert codes(judge(machine), "0000:02:00.0") == {"nic_used"}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("proc/4242/mountinfo", "unknown_mounts"),
        ("proc/swaps", "unknown_swaps"),
        ("sys/class/block", "unknown_storage"),
        ("sys/class/net", "unknown_interfaces"),
        ("proc/net/route", "unknown_routes"),
        ("proc/net/ipv6_route", "unknown_routes"),
        ("proc/net/fib_trie", "unknown_routes"),
        ("proc/4242/stat", "unknown_connection"),
        ("proc/consoles", "unknown_consoles"),
        ("sys/class/input", "unknown_keyboards"),
    ],
)
def test_what_cannot_be_read_is_unknown(judge, path, code):
    machine = machines.bare()
    machine.remove(path)
    assert code in judge(machine).unknown


@pytest.mark.parametrize("path", ["proc/4242/mountinfo", "proc/net/route", "proc/net/ipv6_route", "proc/net/fib_trie"])
@pytest.mark.parametrize("content", [b"", b"half a line", b"\xff\xfe\n", b"a b c\n"])
def test_garbage_is_unknown(judge, path, content):
    machine = machines.bare()
    machine.file(path, content)
    code = "unknown_mounts" if path.endswith("mountinfo") else "unknown_routes"
    assert code in judge(machine).unknown


def test_without_ipv6_nothing_is_unknown(judge):
    machine = machines.bare()
    machine.remove("proc/net/ipv6_route")
    machine.remove("proc/net/if_inet6")
    assert judge(machine).unknown == {}


# protect


@pytest.mark.parametrize("item", ["0000:01:00.0", "nvme0n1", "nvme0n1p1", "/dev/nvme0n1", "/dev/disk/by-id/nvme-1"])
def test_protect(judge, second, item):
    second.links["dev/disk/by-id/nvme-1"] = "../../nvme0n1p1"
    assert judge(second, [item]).hazards["0000:01:00.0"]["protected"] == [
        f"protect: {'/dev/nvme0n1p1' if 'by-id' in item else item}"
    ]


def test_protect_an_interface_with_all_that_is_below_it(judge):
    use = judge(machines.server(), ["bond0"])
    assert "protected" in codes(use, "0000:18:00.0") & codes(use, "0000:18:00.1")


@pytest.mark.parametrize("item", ["eth7", "/dev/sdz", "lo", "0000:00:00", ""])
def test_protecting_nothing_is_refused(judge, second, item):
    with pytest.raises(PhyllomeError, match=r"protect: .* protects nothing here: .* Correct the name"):
        judge(second, [item])


# what lies on disks that nobody has mounted


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("free\n", None),
        ("claimed\n", "claimed"),
        ("", "unknown_claims"),
        ("?\n", "unknown_claims"),
        (None, "unknown_claims"),
    ],
)
def test_a_disk_that_cannot_be_opened_for_exclusive_use(judge, second, said, code):
    second.disk("sdb", DISK, "8:16")
    second.remove("dev/sdb")
    if said is not None:
        second.file("dev/sdb", said)
    found = codes(judge(second), DISK) & {"claimed", "unknown_claims"}
    assert found == ({code} if code else set())


def test_a_claim_that_has_its_reason_is_said_once(judge, second):
    second.disk("sdb", DISK, "8:16", {"sdb1": "ext4"})
    second.mount("8:17", "/data", "ext4", "/dev/sdb1")
    second.file("dev/sdb", "claimed\n")
    assert "claimed" not in codes(judge(second), DISK)


def test_the_partition_that_the_boot_loader_came_from(judge, second):
    second.disk("sdb", DISK, "8:16", {"sdb1": "vfat"})
    second.more("run/udev/data/b8:17", "E:ID_PART_ENTRY_UUID=0a1b2c3d-0000\n")
    name = "sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    second.file(name, b"\6\0\0\0" + "0A1B2C3D-0000\0".encode("utf-16-le"))
    assert judge(second).hazards[DISK]["boot_disk"] == ["the boot loader on sdb1"]
    second.file(name, b"\6\0\0\0" + "0A1B2C3D-0001\0".encode("utf-16-le"))
    assert "boot_disk" not in codes(judge(second), DISK)


@pytest.mark.parametrize(
    ("path", "definition", "used"),
    [
        ("qemu/win.xml", "<domain><disk type='block'><source dev='/dev/disk/by-id/x'/></disk></domain>", True),
        ("qemu/win.xml", "<domain><interface type='direct'><source dev='eth0'/></interface></domain>", False),
        ("qemu/win.xml", "<domain><disk type='block'><source dev='/dev/gone'/></disk></domain>", False),
        ("storage/vg.xml", "<pool type='disk'><source><device path='/dev/sdb'/></source></pool>", True),
        ("storage/vg.xml", "<pool type='dir'><target><path>/srv</path></target></pool>", False),
    ],
)
def test_a_disk_that_libvirt_has_defined(judge, second, path, definition, used):
    second.disk("sdb", DISK, "8:16")
    second.links["dev/disk/by-id/x"] = "../../sdb"
    second.file(f"etc/libvirt/{path}", definition)
    use = judge(second)
    assert ("guest_disk" in codes(use, DISK)) == used
    assert use.unknown == {}


@pytest.mark.parametrize(
    "definition",
    ["", "<domain>", "no xml", "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><d><source dev='/dev/sdb'/></d>"],
)
def test_a_definition_that_cannot_be_understood_is_unknown(judge, second, definition):
    second.disk("sdb", DISK, "8:16")
    second.file("etc/libvirt/qemu/win.xml", definition)
    assert "unknown_definitions" in judge(second).unknown


# screens


MEMORY = """\
00000000-00000fff : Reserved
c0000000-febfffff : PCI Bus 0000:00
  d0000000-dfffffff : PCI Bus 0000:01
    d0000000-dfffffff : 0000:01:00.0
      d0000000-d07fffff : {}
  e0000000-e00fffff : 0000:00:17.0
"""


@pytest.mark.parametrize(
    ("name", "used"), [("BOOTFB", True), ("efifb", True), ("simple-framebuffer.0", True), ("nvidia", False)]
)
def test_a_screen_that_the_firmware_has_set_up(judge, name, used):
    machine = machines.bare()
    machine.pci("0000:01:00.0", "10de:2204", "030000", boot_vga="0")
    machine.file("proc/iomem", MEMORY.format(name))
    use = judge(machine)
    assert codes(use, "0000:01:00.0") == ({"primary_gpu"} if used else set())
    assert use.unknown == {}


@pytest.mark.parametrize(
    "memory", [None, "", "garbage\n", "c0000000-febfffff : BOOTFB\n", "c0-d0 : 0000:01:00.0\nd1-d2 : efifb\n"]
)
def test_a_screen_that_may_be_anywhere(judge, memory):
    machine = machines.bare()
    machine.remove("proc/iomem")
    if memory is not None:
        machine.file("proc/iomem", memory)
    assert judge(machine).unknown["unknown_screens"][0] == "display"


def test_the_text_console_is_on_the_first_frame_buffer(judge):
    machine = machines.desktop()
    machine.link("sys/class/graphics/fb10", f"{machine.path_of('0000:0b:00.0')}/graphics/fb10")
    machine.file("sys/class/graphics/fbcon/name", "")
    use = judge(machine)
    assert use.hazards["0000:0a:00.0"]["primary_gpu"] == ["text console on fb0"]
    assert "primary_gpu" not in codes(use, "0000:0b:00.0")
    machine.link("sys/class/graphics/fb2", f"{machine.path_of('0000:0b:00.0')}/graphics/fb2")
    machine.remove("sys/class/graphics/fb0")
    assert judge(machine).hazards["0000:0b:00.0"]["primary_gpu"] == ["text console on fb2"]


def test_a_text_console_that_is_drawn_nowhere(judge):
    machine = machines.desktop()
    machine.file("sys/devices/virtual/vtconsole/vtcon1/bind", "0\n")
    use = judge(machine)
    assert "primary_gpu" not in codes(use, "0000:0a:00.0")
    assert "unknown_screens" not in use.unknown


@pytest.mark.parametrize("name", ["name", "bind"])
def test_a_text_console_that_does_not_say_where_it_is(judge, name):
    machine = machines.desktop()
    machine.file(f"sys/devices/virtual/vtconsole/vtcon1/{name}", "")
    use = judge(machine)
    if name == "bind":
        assert use.unknown["unknown_screens"][0] == "display"
    else:
        assert codes(use, "0000:0a:00.0") >= {"primary_gpu"}


NVIDIA = "0000:0b:00.0"


@pytest.mark.parametrize(
    ("refcnt", "holders", "found"),
    [("2", ("nvidia_uvm", "nvidia_modeset"), []), ("3", ("nvidia_uvm", "nvidia_modeset"), ["module nvidia is in use"])],
)
def test_a_driver_that_more_use_than_show_it(judge, refcnt, holders, found):
    machine = machines.desktop()
    machine.link(f"sys/bus/pci/drivers/nvidia/{NVIDIA}", machine.path_of(NVIDIA))
    machine.file("sys/module/nvidia/refcnt", f"{refcnt}\n")
    for name in holders:
        machine.link(f"sys/module/nvidia/holders/{name}", f"sys/module/{name}")
        machine.file(f"sys/module/{name}/refcnt", "0\n")
    assert judge(machine).hazards.get(NVIDIA, {}).get("opened", []) == found


def test_a_driver_that_does_not_say_how_many_use_it(judge):
    machine = machines.desktop()
    machine.file("sys/module/nvidia/refcnt", "-\n")
    assert "unknown_openers" not in judge(machine).unknown  # nothing here is driven by it
    machine.link(f"sys/bus/pci/drivers/nvidia/{NVIDIA}", machine.path_of(NVIDIA))
    assert judge(machine).unknown["unknown_openers"][0] == "any"
