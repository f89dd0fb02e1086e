"""A guest with a drive and a network card of its host goes to another one, and uses their equals there."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import time
import typing as t

import pytest
import yaml

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.lab import image, nested
from ansible_collections.phyllome.virt.tests.metal.conftest import Bare
from ansible_collections.phyllome.virt.tests.metal.host import Host

IMAGES = "/var/lib/libvirt/images"
FENCE = "/etc/libvirt/hooks/qemu.d/phyllome-fence"
#: What the drives hold; only the destination's is read there.
HERE, THERE = (hashlib.sha256(word).digest() * 16 for word in (b"here", b"there"))
#: What of the role hypervisor a move needs; tests/fleet has the role do it. $1 is the host's name.
_READY = f"""
hostnamectl hostname "$1"
chmod 755 {FENCE}
echo 'host_uuid = "'$(cat /proc/sys/kernel/random/uuid)'"' >> /etc/libvirt/libvirtd.conf
systemctl restart libvirtd
virsh -q pool-create-as images dir --target {IMAGES}
"""
#: $1 is the other's name, $2 the outer machine's port that leads to it.
_SSH = f"""
chmod 600 /root/.ssh/lab
printf 'Host %s\\nHostName {image.GATEWAY}\\nPort %s\\nHostKeyAlias {image.NAME}\\nIdentityFile /root/.ssh/lab\\n' "$1" "$2" \\
    > /root/.ssh/config
"""
#: A guest that has a drive, and is off; its address in four parts.
_OWNER = """
virsh -q define /dev/stdin << .
<domain type="kvm"><name>owner</name><memory>65536</memory><os><type>hvm</type></os><devices><hostdev mode="subsystem"
type="pci"><source><address domain="0x$1" bus="0x$2" slot="0x$3" function="0x$4"/></source></hostdev></devices></domain>
.
"""
_MAC = 'cat "/sys/bus/pci/devices/$1"/net/*/address'


@pytest.fixture(scope="module")
def hosts(bring_up: t.Callable[..., Bare]) -> t.Iterator[tuple[Host, Host]]:
    """Two machines, the first of which reaches the second by ssh."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # a machine's power goes with the thread that switched it on
        names = [f"{name}-{os.getpid()}" for name in ("here", "there")]
        coming = [pool.submit(_up, bring_up, name) for name in names]
        try:
            here, there = (future.result() for future in coming)
            disk = here.bare.machine.image
            for source, place in ((disk.key, "lab"), (disk.known_hosts, "known_hosts")):
                here.bare.machine.put(source, f"/root/.ssh/{place}")
            here.sh(_SSH, there.bare.machine.record.name, str(there.bare.machine.port))
            yield here, there
        finally:
            for future in coming:
                if not future.exception():
                    future.result().bare.machine.down()


def _up(bring_up: t.Callable[..., Bare], name: str) -> Host:
    bare = bring_up("intel", name=name)
    bare.machine.keep_compiled()
    bare.machine.put(nested.initrd(), "/srv/initrd")
    hook = (runner.ROOT / "roles/hypervisor/files/fence.py").read_text()
    bare.machine.run(["mkdir", "-p", os.path.dirname(FENCE)])
    bare.machine.run(["sh", "-c", f"cat > {FENCE}"], input=f"#!/usr/bin/python3\n{hook}")
    host = Host(bare)
    host.sh(_READY, name)
    return host


def test_it_gets_equal_devices_at_the_other_host(hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    machine, other = here.bare.machine, there.bare.machine
    for one, known in ((machine, HERE), (other, THERE)):
        with one.files.ssd.open("r+b") as drive:
            drive.write(known)
    (card,) = there.at("far-1")
    mac = there.sh(_MAC, card).strip()
    for host, names in ((here, ("ssd", "nic")), (there, ("ssd", "far-1"))):
        bound = host.bind(devices=host.at(*names), persist=False)
        assert not bound.get("failed"), bound["msg"]
    given = [{"id": name, "pci": here.places[name]} for name in ("ssd", "nic")]
    kernel = "<kernel>/vmlinuz</kernel><initrd>/srv/initrd</initrd><cmdline>quiet</cmdline>"
    guest = {"name": "user", "state": "stopped", "profile": "legacy", "memory": "256MiB", "vcpus": 1, "hostdevs": given}
    guest["disks"] = [{"id": "root", "size": "8MiB"}]
    made = here.module("phyllome_vm", {**guest, "xml": {"guest": f"<domain><os>{kernel}</os></domain>"}})
    assert not made.get("failed"), made["msg"]
    here.sh("virsh -q snapshot-create-as user before")
    here.sh("virsh -q start user")

    # what is wrong with devices that are named by hand, all at once
    there.sh(_OWNER, *re.split(r"[:.]", there.places["ssd"]))
    order = {"name": "user", "source": machine.record.name, "destination": other.record.name}
    order["destination_uri"] = f"qemu+ssh://root@{other.record.name}/system"
    wrong = {"ssd": there.places["ssd"], "nic": there.places["gpu"]}
    said = here.module("vm_migrate", {**order, "hostdevs": wrong}, "--check")
    assert {one["code"]: one["what"].partition(f" of {other.record.name}")[0] for one in said["blockers"]} == {
        "hostdev_taken": wrong["ssd"],
        "hostdev_used": wrong["nic"],
        "hostdev_group": f"{other.record.name} itself uses others of the IOMMU group of {wrong['nic']}: {there.places['gpu-audio']}",
    }
    there.sh("virsh -q undefine owner")

    fleet = {}
    for host in hosts:
        group = yaml.safe_load(host.bare.machine.inventory_text())["phyllome_hosts"]
        ((name, words),) = group["hosts"].items()
        fleet[name] = {**words, **group["vars"], "hypervisor_migration_address": name, "migration_transport": "ssh"}
    # nothing is equal to a drive: it is declared
    declared = {"name": "user", "host": other.record.name, "hostdevs": [{"id": "ssd", "pci": there.places["ssd"]}]}
    group = {"hosts": fleet, "vars": {"phyllome_guests": [declared]}}
    here.bare.inventory.write_text(yaml.safe_dump({"phyllome_hosts": group}))
    moved = runner.playbook(
        "phyllome.virt.migrate", here.bare.inventory, "-e", "guest=user", "-e", f"to={other.record.name}",
        "-e", '{"migration_shutdown": {"timeout": 1, "then": "destroy"}}', timeout=1800,
    )  # fmt: skip
    (result,) = (one for dummy, task, one in moved.ok().results() if task.endswith("Move guests away from this host"))
    (result,) = result["results"]
    assert {one["path"].rpartition(".")[2]: one["to"] for one in result["plan"] if ".hostdevs." in one["path"]} == {
        "ssd": there.places["ssd"],
        "nic": card,
    }
    here.sh("! virsh -q dominfo user 2> /dev/null")
    assert there.sh("virsh -q domstate user").strip() == "running"
    # its snapshot would have it start with them as well
    source = r"<source>\s*<address domain='0x(\w+)' bus='0x(\w+)' slot='0x(\w+)' function='0x(\w)'/>"
    kept = re.findall(source, there.sh("virsh snapshot-dumpxml user before"))
    assert {"{}:{}:{}.{}".format(*each) for each in kept} == {there.places["ssd"], card}
    sector = b""
    deadline = time.monotonic() + 1200
    while not sector.startswith(b"read") and time.monotonic() < deadline:
        time.sleep(1)
        sector = other.files.ssd.read_bytes()[512:1024]
    words = rb"read %s sent by (52:54:00[0-9a-f:]{9})\n\0*" % hashlib.md5(THERE).hexdigest().encode()
    found = re.fullmatch(words, sector)
    assert found and found[1].decode() == mac, sector
    assert machine.files.ssd.read_bytes()[:512] == HERE[:512]
