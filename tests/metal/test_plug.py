"""A USB device that belongs to a guest: the guest has it whenever both are there, whatever else happens."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.metal.conftest import Bare
from ansible_collections.phyllome.virt.tests.metal.host import Host

ROLE, ROOM = "roles/hypervisor/files", "plugins/module_utils/_guest"
#: What the role hypervisor writes onto a host; tests/fleet has the role do it.
PROGRAM = {
    f"{ROOM}/plug.py": "/usr/local/lib/phyllome/plug.py",
    f"{ROLE}/phyllome-plug.rules": "/etc/udev/rules.d/phyllome-plug.rules",
    f"{ROLE}/phyllome-plug@.service": "/etc/systemd/system/phyllome-plug@.service",
}
#: QEMU's own stick.
RULE = {"id": "stick", "usb": {"vendor": "0x46f4", "product": "0x0001"}, "plug": True}
#: Paused: nobody is in it who would do anything with the stick, and what looks for a system to boot costs a processor.
GUEST = {"name": "player", "state": "paused", "profile": "legacy", "memory": "64MiB", "vcpus": 1, "hostdevs": [RULE]}
_HAS = "virsh -q dumpxml player | grep -c ua-stick || true"
_GETS = "until virsh -q dumpxml player | grep -q ua-stick; do sleep 3; done"
_LOSES = "while virsh -q dumpxml player | grep -q ua-stick; do sleep 3; done"


@pytest.fixture
def host(intel: Bare) -> t.Iterator[Host]:
    host = Host(intel)
    host.sh("mkdir -p /usr/local/lib/phyllome")
    for path, place in PROGRAM.items():
        intel.machine.put(runner.ROOT / path, place)
    yield host
    host.sh("virsh -q destroy player; virsh -q undefine player; rm " + " ".join(PROGRAM.values()))


def test_a_stick_goes_to_its_guest_at_every_plug(host: Host) -> None:
    machine = host.bare.machine
    medium = machine.record.folder / "plugged.raw"
    with medium.open("wb") as file:
        file.truncate(1 << 20)
    with machine.qmp() as qmp:
        node = {"driver": "raw", "node-name": "plugged", "file": {"driver": "file", "filename": str(medium)}}
        qmp.execute("blockdev-add", node)
    stick = {"driver": "usb-storage", "id": "plugged", "bus": "usb.0", "drive": "plugged"}

    made = host.module("phyllome_vm", GUEST)
    assert not made.get("failed"), made["msg"]
    assert host.sh(_HAS) == "0\n"
    machine.plug(stick)
    host.sh(_GETS)
    host.sh("systemctl restart libvirtd")
    assert host.sh(_HAS) == "1\n"
    assert not host.module("phyllome_vm", GUEST)["changed"]
    machine.unplug("plugged")
    host.sh(_LOSES)
    # what comes while there is no libvirt waits for it
    host.sh("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd")
    machine.plug(stick)
    host.sh("systemctl start libvirtd")
    host.sh(_GETS)
    # and a guest that starts has what is there
    host.sh("virsh -q destroy player")
    started = host.module("phyllome_vm", GUEST)
    assert started["changed"] and not started.get("failed"), started
    assert host.sh(_HAS) == "1\n"
    machine.unplug("plugged")
    host.sh(_LOSES)
