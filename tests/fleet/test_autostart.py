"""Guests that start with their host in an order: after a reboot of the host, and after a move to another one."""

from __future__ import annotations

import re
import time
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet.conftest import Site

OFF = {"timeout": 1, "then": "destroy"}
UNIT = "phyllome-autostart.service"
MIGRATION = "https://phyllome.org/xmlns/virt/migration/1"
MARK = "<migration op_id='1' source='alpha' destination='beta' epoch='1' phase='moving' power='off' autostart='no'/>"
ORDERS: dict[str, t.Any] = {
    "second": {"order": 2},
    "first": {"order": 1, "delay": 1},
    "moving": {"order": 1},
    "never": False,
}


def marked(site: Site, *arguments: str) -> None:
    marking = ["virsh", "metadata", "moving", "--uri", MIGRATION, "--config", *arguments]
    site.fleet.host("beta").run(marking, check=arguments != ("--remove",))


@pytest.fixture
def ordered(site: Site) -> t.Iterator[list[dict[str, t.Any]]]:
    guests = []
    for name, autostart in ORDERS.items():
        guest = site.guest(name, "beta", state="stopped", networks=[], autostart=autostart, shutdown=OFF)
        del guest["host"]
        guests.append(guest)
    yield guests
    marked(site, "--remove")
    site.remove(*ORDERS)


def test_guests_start_in_their_order_and_where_they_are(site: Site, ordered: list[dict[str, t.Any]]) -> None:
    beta = site.fleet.host("beta")
    made = site.module("phyllome_vm", "beta", {"guests": ordered})
    assert not made.get("failed"), made["msg"]
    again = site.module("phyllome_vm", "beta", {"guests": ordered})
    assert again["changed"] is False
    told = {result["name"]: result["guest"]["autostart"] for result in again["results"]}
    assert told == {"second": True, "first": True, "moving": True, "never": False}
    assert "disable" in site.virsh("beta", "dominfo", "first"), "libvirt's own flag is off"
    marked(site, "--key", "migration", "--set", MARK)

    def boot() -> str:
        site.fleet.reboot("beta")
        deadline = time.monotonic() + 300
        while (state := beta.run(["systemctl", "is-active", UNIT], check=False).stdout.strip()) in (
            "inactive",
            "activating",
            "",
        ):
            assert time.monotonic() < deadline, state
            time.sleep(0.5)
        return beta.run(["journalctl", "--boot", "--unit", UNIT, "--output=cat", "--no-pager"]).stdout

    said = boot()
    assert re.findall(r"guest (\w+) \(order \d\) is started", said) == ["first", "second"]
    assert "guest moving (order 1) is not started: it is on its way to another host" in said
    assert set(site.virsh("beta", "list", "--name").split()) == {"first", "second"}

    marked(site, "--remove")
    uri = f"qemu+tls://{site.fleet.host('alpha').address}/system"
    moved = site.module("vm_migrate", "beta", {"name": "first", "destination": "alpha", "destination_uri": uri})
    assert not moved.get("failed"), moved["msg"]
    assert moved["identity"]["autostart"] is True
    there = site.module("phyllome_vm", "alpha", {**ordered[1], "state": "running"}, "--check")
    assert (there["changed"], there["guest"]["autostart_order"]) == (False, {"order": 1, "delay": 1})
    site.virsh("beta", "destroy", "second")  # it would not hear that the host wants to shut down
    assert re.findall(r"guest (\w+) \(order \d\) is started", boot()) == ["moving", "second"]
    assert site.running("first") == ["alpha"] and site.where("first") == ["alpha"]
