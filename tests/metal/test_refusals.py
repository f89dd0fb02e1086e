"""What vfio_bind refuses on a live machine, with its evidence, and a driver that does not let go."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.metal.conftest import Bare
from ansible_collections.phyllome.virt.tests.metal.host import Host

#: A drive that is a physical volume: what LVM makes of it is a table of the device mapper.
_VOLUME = """
until drive=$(cd "/sys/bus/pci/devices/$1/nvme" && ls -d nvme*/nvme*n1) && drive="/dev/${drive#*/}" && [ -b "$drive" ]
do sleep 0.2; done
dmsetup create vg-data --uuid LVM-phyllome --table "0 $(blockdev --getsz "$drive") linear $drive 0"
mke2fs -q -F /dev/mapper/vg-data
mount /dev/mapper/vg-data /srv
"""
#: Interfaces above cards. The VLAN has a default route, if not the best.
_INTERFACES = """
name() { ls "/sys/bus/pci/devices/$1/net"; }
ip link add bond7 type bond mode active-backup
ip link set "$(name "$1")" down; ip link set "$(name "$1")" master bond7; ip link set bond7 up
ip link add br7 type bridge; ip link set "$(name "$2")" master br7; ip link set br7 up
ip link set "$(name "$3")" up; ip link add link "$(name "$3")" name vlan7 type vlan id 7; ip link set vlan7 up
ip address add 192.0.2.7/24 dev vlan7; ip route add default via 192.0.2.1 dev vlan7 metric 9999
ip link add br8 type bridge; ip link set "$(name "$4")" master br8; ip link set "$(name "$4")" up; ip link set br8 up
ip address add 198.51.100.7/24 dev br8
"""
#: The card of the connection goes below a bond, and that below a bridge, which takes its address over.
_CONNECTION = """
systemctl stop systemd-networkd.socket systemd-networkd
card=$(ls "/sys/bus/pci/devices/$1"/virtio*/net)
mac=$(cat "/sys/class/net/$card/address")
ip link add bond0 address "$mac" type bond mode active-backup
ip link add br0 address "$mac" type bridge
ip link set br0 type bridge forward_delay 0
ip address flush dev "$card"; ip link set "$card" down; ip link set "$card" master bond0; ip link set bond0 master br0
ip link set "$card" up; ip link set bond0 up; ip link set br0 up
ip address add 10.0.2.15/24 dev br0; ip route replace default via 10.0.2.2 dev br0
"""
#: A stick that is booted from; and the keyboard of the board is gone, so that one on USB is the only one.
_USB = """
until stick=$(ls "/sys/bus/pci/devices/$1"/usb*/*/*/host*/target*/*/block); do sleep 0.2; done
mke2fs -q -F "/dev/$stick"
mount "/dev/$stick" /boot
cd /sys/bus/serio/drivers/atkbd
for port in serio*; do echo "$port" > unbind; done
udevadm settle
"""
#: A guest that has a virtual function.
_GUEST = """
IFS=:. read -r domain bus slot function << .
$1
.
virsh -q create --paused /dev/stdin << .
<domain type="kvm"><name>owner</name><memory>65536</memory><os><type>hvm</type></os><devices><hostdev mode="subsystem"
type="pci"><source><address domain="0x$domain" bus="0x$bus" slot="0x$slot" function="$function"/></source></hostdev></devices></domain>
.
"""
#: What keeps snd_hda_intel from letting go: it waits until whoever has its card open closes it.
_HOLD = """
card=$(basename "$(ls -d "/sys/bus/pci/devices/$1"/sound/card*)")
sleep infinity < "/dev/snd/controlC${card#card}" > /dev/null 2>&1 & echo $!
"""


@pytest.fixture(scope="module")
def host(bring_up: t.Callable[..., Bare]) -> t.Iterator[Host]:
    bare = bring_up("intel")
    yield Host(bare)
    bare.machine.down()


@pytest.fixture(scope="module")
def holder(host: Host) -> str:
    """The process that has the sound card open."""
    return host.sh(_HOLD, *host.at("gpu-audio")).strip()


def test_what_the_host_stands_on_is_refused_with_its_evidence(host: Host, holder: str) -> None:
    sriov = host.places["sriov"]
    made = host.bind(functions=[{"device": sriov, "count": 2}], persist=False)
    assert [*host.results(made).values()] == ["bound", "bound"]
    function = made["devices"][0]["address"]
    host.sh(_GUEST, function)
    host.sh(_VOLUME, *host.at("ssd"))
    host.sh(_INTERFACES, *host.at("nic", "far-1", "far-2", "old-2"))
    machine = host.bare.machine
    stick = machine.record.folder / "stick.raw"
    with stick.open("wb") as file:
        file.truncate(8 << 20)
    with machine.qmp() as qmp:
        node = {"driver": "raw", "node-name": "stick", "file": {"driver": "file", "filename": str(stick)}}
        qmp.execute("blockdev-add", node)
    machine.plug({"driver": "usb-storage", "id": "stick", "bus": "usb.0", "drive": "stick"})
    host.sh(_USB, *host.at("usb"))
    before = host.drivers()
    names = ("root-disk", "management-nic", "nic", "far-1", "far-2", "ssd", "sriov", "usb", "old-1", "gpu", "port-1")
    found = host.refused(
        host.bind(devices=host.at(*names, "gpu-audio"), functions=[{"device": sriov, "count": 1}]),
    )

    def evidence(name: str, hazard: str) -> str:
        assert hazard in found[name], found[name]
        return str(found[name][hazard]["evidence"])

    assert evidence("root-disk", "root_fs") == "/ on vda2" and "boot_disk" in found["root-disk"]
    assert found["root-disk"]["root_fs"]["consent"] is None
    assert "default route" in evidence("management-nic", "mgmt_nic")
    assert "part of bond7" in evidence("nic", "nic_used") and "part of br7" in evidence("far-1", "nic_used")
    assert "default route on vlan7" in evidence("far-2", "mgmt_nic")
    assert "/srv on dm-0" in evidence("ssd", "mounted") and "held by dm-0" in evidence("ssd", "claimed")
    assert evidence("sriov", "vf_parent") == "2 virtual functions"
    assert "opened by qemu-system-x86" in evidence(function, "function_in_use")
    assert "/boot on sd" in evidence("usb", "usb_boot") and "no keyboard but" in evidence("usb", "usb_input")
    # what uses one of a group stands against the other
    assert "old-2" not in found and "partial_group" in found["old-1"] and "part of br8" in evidence("old-1", "nic_used")
    assert "primary_gpu" in found["gpu"] and f"({holder})" in evidence("gpu-audio", "opened")
    assert "platform" in found["port-1"]
    assert host.drivers() == before


def test_so_is_the_card_of_the_connection_below_a_bond_and_a_bridge(host: Host) -> None:
    host.sh(_CONNECTION, *host.at("management-nic"))
    refused = host.refused(host.bind(devices=host.at("management-nic")))
    evidence = refused["management-nic"]["mgmt_nic"]["evidence"]
    assert "bond0" in evidence and "br0" in evidence


def test_a_driver_that_does_not_let_go_is_left_alone(host: Host, holder: str) -> None:
    before, pair = host.drivers(), host.at("gpu", "gpu-audio")
    options = {"devices": pair, "runtime": "force", "timeout": 10, "persist": False}
    stuck = host.bind(**options, consent=["primary_gpu", "risky_unbind"])
    assert stuck["failed"] and stuck["reboot_required"], stuck
    assert host.results(stuck) == {"gpu": "rolled_back", "gpu-audio": "stuck"}
    assert "snd_card_free" in stuck["msg"] and "disk sleep" in stuck["msg"]
    again = host.bind(**options)
    assert {*host.refused(again)["gpu-audio"]} == {"stuck"} and again["reboot_required"]
    assert not again["changed"] and again["plan"] == []
    host.sh('kill "$1"; while [ -e "/sys/bus/pci/devices/$2/driver" ]; do sleep 0.2; done', holder, pair[1])
    assert host.results(host.bind(state="original", devices=pair)) == {"gpu-audio": "restored"}
    assert host.drivers() == before
