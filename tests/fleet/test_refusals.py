"""Bad input and bad luck: one clear message, nothing half done, the other guests converge all the same."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, SITE, Site
from ansible_collections.phyllome.virt.tests.fleet.moves import IMAGES, Drive, drives, move, order, other
from ansible_collections.phyllome.virt.tests.lab.errors import LabError

FOREIGN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
</domain>
"""


def files(site: Site) -> list[str]:
    """What is stored on both hosts."""
    look = ["find", "/var/lib/libvirt/images", "/var/lib/libvirt/qemu/nvram", "-type", "f", "-printf", "%p %s\n"]
    return [host.run(look).stdout for host in site.fleet.hosts]


def define(site: Site, host: str, name: str) -> None:
    site.fleet.host(host).write("/tmp/foreign.xml", FOREIGN.format(name=name))
    site.virsh(host, "define", "/tmp/foreign.xml")


driver = pytest.fixture(scope="module")(drives)

FENCE = "/etc/libvirt/hooks/qemu.d/phyllome-fence"
DISK = {"id": "root", "size": "64MiB"}
FULL = "/srv/full"

#: What is wrong with a guest, and what its message has to say.
BAD: list[tuple[dict[str, t.Any], str]] = [
    ({"disks": [{**DISK, "source": {"path": "/srv/missing.qcow2"}}]}, "/srv/missing.qcow2"),
    ({"disks": [{**DISK, "source": {"path": IMAGE, "checksum": "sha256:" + "0" * 64}}]}, "checksum"),
    ({"disks": [{**DISK, "source": {"path": "/etc/hostname"}}]}, "/etc/hostname"),
    ({"disks": [{"id": "root", "size": "1MiB", "source": {"path": IMAGE}}]}, "cut off"),
    ({"networks": [{"id": "lan", "network": "nowhere"}]}, "nowhere"),
    ({"memory": "lots"}, "not a size"),
    ({"memory": "4000GiB"}, "memory"),
    ({"firmware": {"type": "bios", "secure_boot": True}}, "secure_boot"),
    ({"disks": [DISK, DISK]}, "root"),
    ({"memroy": "64MiB"}, "memroy"),
    ({"hostdevs": [{"id": "card", "pci": "0000:ff:1f.7"}]}, "this host has no such device"),
    ({"hostdevs": [{"id": "card", "pci": "ffff:ffff/-@nowhere"}]}, "this host has no such device"),
    ({"hostdevs": [{"id": "one", "usb": {"port": "9-1"}}]}, "the device belongs to guest"),
    ({"hostdevs": [{"id": "two", "usb": {"port": "9-1"}}]}, "the device belongs to guest"),
    ({"disks": [{**DISK, "path": f"{FULL}/root.qcow2"}]}, f"are needed in {FULL}"),
    (
        {"disks": [{**DISK, "bus": "nvme"}]},
        "libvirt emulates it from 11.5 on, if QEMU has it; this host has libvirt 9.0",
    ),
    ({"profile": "amiga"}, "profile must be one of"),
    ({"memory": {"size": "1GiB", "hugepages": "2MiB"}}, "512 pages of 2MiB are needed"),
    (
        {"filesystems": [{"id": "share", "source": "/srv"}], "memory": {"size": "64MiB", "shared": False}},
        "memory.shared: false with filesystems.share",
    ),
    ({"vsock": {"cid": "auto"}}, "this host has no /dev/vhost-vsock"),
    (
        {"graphics": {"type": "vnc", "gl": "headless"}, "video": {"accel3d": True}},
        "video.accel3d: true with video.model",
    ),
    ({"graphics": {"type": "vnc", "gl": "headless"}, "video": {"model": "virtio", "accel3d": True}}, "/dev/dri"),
    ({"xml": {"devices": {"root": "<disk><driver kache='none'/></disk>"}}}, "cannot be defined"),
    ({"xml": {"guest": "<domain><features><acpy/></features></domain>"}}, "cannot be defined"),
    ({"name": "../../etc/passwd"}, "not a valid name"),
    ({"name": "a<b>"}, "not a valid name"),
    ({"name": "x" * 300}, "not a valid name"),
]


@dataclasses.dataclass
class Refused:
    """Two runs, check mode first, over one good guest and all the bad ones."""

    good_was_there: bool
    before: list[str]
    after_check: list[str]
    after: list[str]
    errors: list[dict[str, str]]


@pytest.fixture(scope="module")
def refused(site: Site) -> t.Iterator[Refused]:
    good = site.guest("good", "alpha", state="stopped")
    site.fleet.host("alpha").limit(FULL, "6M")  # room for one disk
    disks = good["disks"]
    bad = [{**site.guest(f"bad{number}", "alpha"), **guest} for number, (guest, dummy) in enumerate(BAD)]
    site.make(good)
    guests = list(bad)
    guests.insert(next(place for place, guest in enumerate(bad) if FULL in str(guest)), good)
    states = [files(site)]
    errors = []
    for flags in (["--check"], []):
        good["memory"] = "80MiB"
        good["disks"] = [*disks, {"id": "more", "size": "1MiB", "path": f"{FULL}/more.qcow2"}]
        run = site.run(guests, *flags)
        assert run.status != 0
        results = [
            item
            for dummy, dummy, result in run.results()
            for item in result.get("results", [])
            if isinstance(item, dict) and str(item.get("name")) in {guest["name"] for guest in bad}
        ]
        errors.append({item["name"]: item["msg"] for item in results if item["failed"]})
        states.append(files(site))
    there = "81920" in site.virsh("alpha", "dominfo", "good")
    assert site.guests("alpha") & {guest["name"] for guest in bad} == set()
    before, after_check, after = states
    yield Refused(there, before, after_check, after, errors)
    site.remove("good")
    site.fleet.host("alpha").unlimit(FULL)


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_guest_is_refused_with_a_clear_message(refused: Refused, number: int) -> None:
    guest, words = BAD[number]
    for errors in refused.errors:
        assert words in errors[guest.get("name", f"bad{number}")]


def test_bad_guests_leave_nothing_and_do_not_stop_the_good_one(refused: Refused) -> None:
    assert refused.before == refused.after_check == refused.after
    assert refused.good_was_there


def test_a_shrunk_disk_is_refused(site: Site) -> None:
    guest = site.guest("shrink", "alpha", state="stopped")
    site.make(guest)
    guest["disks"] = [{"id": "root", "size": "32MiB"}]
    before = files(site)
    run = site.run([guest])
    assert run.status != 0 and "shrink" in run.messages()
    assert files(site) == before
    site.remove("shrink")


@pytest.mark.parametrize("other", ["alpha", "beta"])
def test_a_name_that_belongs_to_a_foreign_guest(site: Site, other: str) -> None:
    define(site, other, "clash")
    xml = site.virsh(other, "dumpxml", "clash", "--inactive")
    run = site.run([site.guest("clash", "alpha"), site.guest("good", "alpha", state="stopped")])
    assert run.status != 0
    assert "another guest of that name" in run.messages()
    assert "good" in site.guests("alpha")
    assert site.where("clash") == [other]
    assert site.virsh(other, "dumpxml", "clash", "--inactive") == xml
    site.virsh(other, "undefine", "clash")
    site.remove("good")


def twice(site: Site, driver: Drive, source: str) -> dict[str, t.Any]:
    """Have a live move die when the guest has arrived, and start it behind its back on both hosts; the order of the move."""
    asked = order(site, "twin", source)
    assert driver(source, "resume", asked) is None
    site.virsh(other(source), "resume", "twin")
    unfenced(site, source)
    return asked


def unfenced(site: Site, host: str) -> None:
    """Start the guest there as if there were no fence."""
    site.fleet.host(host).run(["chmod", "644", FENCE])
    site.virsh(host, "start", "twin")
    site.fleet.host(host).run(["chmod", "755", FENCE])


def test_a_guest_that_is_on_two_hosts(site: Site, driver: Drive) -> None:
    """Made by hand; and by a move that died and hosts whose fence was taken away, until an operator says which one it is."""
    guest = site.guest("twin", "alpha", state="stopped")
    site.make(guest)
    xml = site.virsh("alpha", "dumpxml", "twin", "--inactive")
    site.fleet.host("beta").write("/tmp/twin.xml", xml)
    site.virsh("beta", "define", "/tmp/twin.xml")
    run = site.run([guest])
    assert run.status != 0
    assert "it is on alpha and beta" in run.messages()
    assert site.virsh("alpha", "dumpxml", "twin", "--inactive") == xml
    site.virsh("beta", "undefine", "twin")

    killed = order(site, "twin", "alpha", mode="cold")
    assert driver("alpha", "createWithFlags", killed) is None
    with pytest.raises(LabError, match="has arrived from alpha and is not handed over yet"):
        site.virsh("beta", "start", "twin")
    disk = site.disk("alpha", "twin")
    for host, byte in zip(site.fleet.hosts, (170, 187), strict=True):
        host.run(["qemu-io", "-f", "qcow2", "-c", f"write -P {byte} 40M 64K", disk])
        unfenced(site, host.name)
    said = move(site, "twin", "alpha")
    assert said["failed"] and said["classification"] == 5 and site.running("twin") == ["alpha", "beta"]
    assert "alpha: running; beta: running" in said["msg"] and "say truth: source or truth: destination" in said["msg"]

    told = driver("alpha", 10**6, {**killed, "mode": "live", "truth": "source"})
    assert told and told["result"]["classification"] == 2, told
    assert site.running("twin") == ["beta"] == site.where("twin")
    kept = f"{disk}.phyllome-retained-{told['result']['op_id']}"
    assert told["result"]["leftovers"] == [kept, f"beta:{kept}"]
    for path, byte in ((disk, 170), (kept, 187)):
        read = ["qemu-io", "-U", "-r", "-f", "qcow2", "-c", f"read -P {byte} 40M 64K", path]
        assert "verification failed" not in site.fleet.host("beta").run(read).stdout
    again = driver("alpha", 10**6, {**killed, "truth": "source"})
    assert again and again["result"]["changed"] is False
    cleaned = driver("alpha", 10**6, {**killed, "state": "cleaned"})
    assert cleaned and cleaned["result"]["changed"]
    for host in site.fleet.hosts:
        assert "twin-root.qcow2.phyllome" not in host.run(["ls", IMAGES]).stdout

    # live, and the destination's copy is removed by hand before it is said that the source's is right
    back = twice(site, driver, "beta")
    with pytest.raises(AssertionError, match="Where it ran it is suspended now"):
        driver("beta", 10**6, {**back, "on_split_brain": "suspend_both"})
    assert site.running("twin") == []
    site.virsh("alpha", "destroy", "twin")
    site.virsh("alpha", "undefine", "twin")
    site.fleet.host("alpha").run(["rm", disk])
    with pytest.raises(AssertionError, match="the destination has none any more.* say truth: source"):
        driver("beta", 10**6, back)
    told = driver("beta", 10**6, {**back, "truth": "source"})
    assert told and told["result"]["classification"] == 2 and told["result"]["changed"], told
    assert site.running("twin") == ["alpha"] == site.where("twin")

    # and where the destination's is right
    forth = twice(site, driver, "alpha")
    runs = site.virsh("beta", "domid", "twin")
    told = driver("alpha", 10**6, {**forth, "truth": "destination"})
    assert told and told["result"]["classification"] == 2 and len(told["result"]["leftovers"]) == 1, told
    assert site.running("twin") == ["beta"] == site.where("twin") and site.virsh("beta", "domid", "twin") == runs
    site.remove("twin")


def test_too_little_space_at_the_destination(site: Site) -> None:
    guest = site.guest("big", "alpha")
    site.make(guest)
    beta = site.fleet.host("beta")
    beta.limit("/var/lib/libvirt/images", "64K")
    try:
        for flags in (["--check"], []):
            run = site.run([{**guest, "host": "beta"}], *flags)
            assert run.status != 0
            assert "space" in run.messages()
            assert site.running("big") == ["alpha"] and site.where("big") == ["alpha"]
    finally:
        beta.unlimit("/var/lib/libvirt/images")
    site.run([{**guest, "host": "beta"}]).ok()
    assert site.running("big") == ["beta"]
    site.remove("big")


def test_an_unreachable_destination_leaves_the_guest_where_it_is(site: Site) -> None:
    guest = site.guest("stay", "alpha")
    site.make(guest)
    # only the libvirt port, so that Ansible still reaches both hosts
    with site.fleet.dropping("alpha", "beta", 16514):
        run = site.run([{**guest, "host": "beta"}])
    assert run.status != 0
    assert "cannot be reached" in run.messages()
    assert site.running("stay") == ["alpha"] and site.where("stay") == ["alpha"]
    site.remove("stay")


def test_a_host_that_does_not_answer_stops_only_its_own_guests(site: Site) -> None:
    guests = [site.guest("here", "alpha", state="stopped")]
    site.make(guests[0])
    beta = site.fleet.host("beta")
    beta.close_ssh()
    beta.link(up=False)
    try:
        guests[0]["memory"] = "80MiB"
        run = site.run([*guests, site.guest("there", "beta"), site.guest("fresh", "alpha")])
        assert run.status != 0
        assert "its host beta did not answer" in run.messages()
        assert "it may be on beta" in run.messages()
        assert "81920" in site.virsh("alpha", "dominfo", "here")
        assert site.guests("alpha") & {"there", "fresh"} == set()
    finally:
        beta.link(up=True)
        beta.close_ssh()
    site.remove("here")


def test_devices_of_a_host_without_an_iommu_are_refused_with_the_reason(site: Site) -> None:
    wanted = json.dumps({"phyllome_passthrough": [{"devices": ["0000:00:01.0"]}]})
    run = runner.playbook(SITE, site.inventory([]), "--tags", "passthrough", "--limit", "alpha", "-e", wanted)
    assert run.status and run.changed["alpha"] == 0
    assert "phyllome_passthrough: the IOMMU of this host is off" in run.messages()
