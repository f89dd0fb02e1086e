"""Bad input and bad luck: one clear message, nothing half done, the other guests converge all the same."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet.conftest import Site

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


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        ({"disks": [{"id": "root", "size": "64MiB", "source": {"path": "/srv/missing.qcow2"}}]}, "/srv/missing.qcow2"),
        (
            {"disks": [{"id": "root", "size": "64MiB", "source": {"path": "/srv/counter.qcow2", "checksum": "sha256:" + "0" * 64}}]},
            "checksum",
        ),
        ({"disks": [{"id": "root", "size": "64MiB", "source": {"path": "/etc/hostname"}}]}, "/etc/hostname"),
        ({"disks": [{"id": "root", "size": "900TiB"}]}, "space"),
        ({"networks": [{"id": "lan", "network": "nowhere"}]}, "nowhere"),
        ({"memory": "lots"}, "not a size"),
        ({"memory": "4000GiB"}, "memory"),
        ({"profile": "legacy", "firmware": {"type": "bios", "secure_boot": True}}, "secure_boot"),
        ({"disks": [{"id": "root", "size": "1GiB"}, {"id": "root", "size": "2GiB"}]}, "root"),
        ({"name": "../../etc/passwd"}, "not a valid name"),
        ({"name": "a<b>"}, "not a valid name"),
        ({"name": "x" * 300}, "not a valid name"),
    ],
)  # fmt: skip
def test_a_bad_guest_is_refused_and_the_good_one_is_made(site: Site, guest: dict[str, t.Any], words: str) -> None:
    good = site.guest("good", "alpha", state="stopped")
    bad = site.guest("bad", "alpha", **guest)
    site.run([good]).ok()
    before = files(site)
    for flags in (["--check"], []):
        run = site.run([bad, good], *flags, "--tags", "guests")
        assert run.status != 0
        assert words in run.messages()
        assert files(site) == before
        assert site.guests("alpha") >= {"good"}
        assert bad["name"] not in site.guests("alpha")
    site.remove("good")


def test_a_shrunk_disk_is_refused(site: Site) -> None:
    guest = site.guest("shrink", "alpha", state="stopped")
    site.run([guest]).ok()
    guest["disks"] = [{"id": "root", "size": "32MiB"}]
    before = files(site)
    run = site.run([guest], "--tags", "guests")
    assert run.status != 0 and "shrink" in run.messages()
    assert files(site) == before
    site.remove("shrink")


@pytest.mark.parametrize("other", ["alpha", "beta"])
def test_a_name_that_belongs_to_a_foreign_guest(site: Site, other: str) -> None:
    define(site, other, "clash")
    xml = site.virsh(other, "dumpxml", "clash", "--inactive")
    run = site.run([site.guest("clash", "alpha"), site.guest("good", "alpha", state="stopped")], "--tags", "guests")
    assert run.status != 0
    assert "another guest of that name" in run.messages()
    assert "good" in site.guests("alpha")
    assert site.where("clash") == [other]
    assert site.virsh(other, "dumpxml", "clash", "--inactive") == xml
    site.virsh(other, "undefine", "clash")
    site.remove("good")


def test_a_guest_that_is_on_two_hosts(site: Site) -> None:
    guest = site.guest("twin", "alpha", state="stopped")
    site.run([guest]).ok()
    xml = site.virsh("alpha", "dumpxml", "twin", "--inactive")
    site.fleet.host("beta").write("/tmp/twin.xml", xml)
    site.virsh("beta", "define", "/tmp/twin.xml")
    run = site.run([guest], "--tags", "guests")
    assert run.status != 0
    assert "it is on alpha and beta" in run.messages()
    assert site.virsh("alpha", "dumpxml", "twin", "--inactive") == xml
    site.virsh("beta", "undefine", "twin")
    site.remove("twin")


def test_too_little_space_at_the_destination(site: Site) -> None:
    guest = site.guest("big", "alpha")
    site.run([guest]).ok()
    beta = site.fleet.host("beta")
    beta.limit("/var/lib/libvirt/images", "64K")
    try:
        for flags in (["--check"], []):
            run = site.run([{**guest, "host": "beta"}], *flags, "--tags", "guests")
            assert run.status != 0
            assert "space" in run.messages()
            assert site.running("big") == ["alpha"] and site.where("big") == ["alpha"]
    finally:
        beta.unlimit("/var/lib/libvirt/images")
    site.run([{**guest, "host": "beta"}], "--tags", "guests").ok()
    assert site.running("big") == ["beta"]
    site.remove("big")


def test_an_unreachable_destination_leaves_the_guest_where_it_is(site: Site) -> None:
    guest = site.guest("stay", "alpha")
    site.run([guest]).ok()
    # only the libvirt port, so that Ansible still reaches both hosts
    with site.fleet.dropping("alpha", "beta", 16514):
        run = site.run([{**guest, "host": "beta"}], "--tags", "guests")
    assert run.status != 0
    assert "beta" in run.messages()
    assert site.running("stay") == ["alpha"] and site.where("stay") == ["alpha"]
    site.remove("stay")


def test_a_host_that_does_not_answer_stops_only_its_own_guests(site: Site) -> None:
    guests = [site.guest("here", "alpha", state="stopped")]
    site.run(guests).ok()
    beta = site.fleet.host("beta")
    beta.close_ssh()
    beta.link(up=False)
    try:
        guests[0]["memory"] = "80MiB"
        run = site.run([*guests, site.guest("there", "beta"), site.guest("fresh", "alpha")], "--tags", "guests")
        assert run.status != 0
        assert "its host beta did not answer" in run.messages()
        assert "it may be on beta" in run.messages()
        assert "81920" in site.virsh("alpha", "dominfo", "here")
        assert site.guests("alpha") & {"there", "fresh"} == set()
    finally:
        beta.link(up=True)
        beta.close_ssh()
    site.remove("here")
