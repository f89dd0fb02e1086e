"""Three hosts: one is emptied and filled again, under guests that do not notice."""

from __future__ import annotations

import os
import pathlib
import time
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site, checksum
from ansible_collections.phyllome.virt.tests.lab import counter
from ansible_collections.phyllome.virt.tests.lab.fleet import Fleet

NONE = {"alpha": 0, "beta": 0, "gamma": 0}
RECORD = "/etc/phyllome/evacuated.json"


class Three(Site):
    """The fleet of this file, and what is declared on it."""

    guests_declared: t.ClassVar[list[dict[str, t.Any]]] = []

    def inventory(self, guests: list[dict[str, t.Any]], **more: t.Any) -> pathlib.Path:
        """As for any site, with what is to be together and apart."""
        return super().inventory(guests, phyllome_together=[["g0", "g1"]], phyllome_apart=[["g2", "g3"]], **more)

    def play(self, name: str, *arguments: str) -> runner.Run:
        """Run a playbook of the collection with the guests of this file declared."""
        return runner.playbook(f"phyllome.virt.{name}", self.inventory(self.guests_declared), *arguments)

    def homes(self) -> dict[str, list[str]]:
        """Where each guest is, by name."""
        return {guest["name"]: self.where(guest["name"]) for guest in self.guests_declared}

    def boots(self) -> dict[str, int]:
        """How often each running guest was booted."""
        return {
            guest["name"]: self.counted(host, guest["name"]).boots
            for guest in self.guests_declared
            for host in self.running(guest["name"])
        }


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, installed: None) -> t.Iterator[Three]:
    """Three Phyllome hosts; twelve guests on alpha, one of them off, and one on beta."""
    name = f"three-{os.getpid()}"  # the two hosts of all other tests are up meanwhile
    with Fleet.create(["alpha", "beta", "gamma"], name=name, base="ready") as fleet:
        for host in fleet.hosts:
            host.put(counter.images() / "counter.qcow2", IMAGE)
        site = Three(fleet, tmp_path_factory.mktemp("three"), checksum())
        declared = [site.guest(f"g{number}", "alpha", networks=[], cpu="fleet") for number in range(11)]
        declared.append(site.guest("off", "alpha", networks=[], state="stopped"))
        declared.append(site.guest("other", "beta", networks=[]))
        Three.guests_declared = declared
        site.whole(declared).ok()
        deadline = time.monotonic() + 120
        while set(site.boots().values()) != {1} and time.monotonic() < deadline:
            time.sleep(0.5)
        yield site


def test_guests_have_the_cpu_of_the_fleet_and_keep_it(three: Three) -> None:
    xml = three.virsh("alpha", "dumpxml", "--inactive", "g0")
    assert "mode='custom'" in xml and "fallback='forbid'" in xml and "<feature policy='require'" in xml
    found = three.module("phyllome_vm_info", "alpha", {"names": ["g0"]})["guests"][0]
    assert found["pending"] == [] and found["migratable"]["possible"]


def test_a_host_is_emptied_as_check_mode_said_and_stays_empty(three: Three) -> None:
    before = three.boots()
    check = three.play("evacuate", "-e", "host=alpha", "--check", "--diff").ok()
    assert len(three.guests("alpha")) == 12
    run = three.play("evacuate", "-e", "host=alpha", "--diff").ok()
    assert sorted(check.changes(), key=repr) == sorted(run.changes(), key=repr)
    assert three.guests("alpha") == set()
    homes = three.homes()
    assert all(len(where) == 1 for where in homes.values())
    assert homes["g0"] == homes["g1"] and homes["g2"] != homes["g3"]
    assert {where[0] for where in homes.values()} == {"beta", "gamma"}
    assert three.boots() == before and three.running("off") == []

    again = three.play("evacuate", "-e", "host=alpha").ok()
    assert again.changed == NONE
    # who declares guests there does not fight with it
    assert three.run(three.guests_declared).ok().changed == NONE
    assert three.homes() == homes


def test_a_host_is_filled_again_as_check_mode_said(three: Three) -> None:
    before = three.boots()
    check = three.play("restore", "-e", "host=alpha", "--check", "--diff").ok()
    assert three.guests("alpha") == set()
    run = three.play("restore", "-e", "host=alpha", "--diff").ok()
    assert sorted(check.changes(), key=repr) == sorted(run.changes(), key=repr)
    assert {name: where[0] for name, where in three.homes().items()} == {
        guest["name"]: guest["host"] for guest in three.guests_declared
    }
    assert three.boots() == before
    assert three.play("restore", "-e", "host=alpha").ok().changed == NONE
    assert three.fleet.host("alpha").run(["test", "-e", RECORD], check=False).returncode == 1


def test_named_guests_move_and_what_cannot_move_stops_all(three: Three) -> None:
    refused = three.play("evacuate", "-e", "host=nowhere")
    assert refused.status and "Say which host" in refused.messages()
    refused = three.play("migrate", "-e", "guest=g4,none", "-e", "to=beta")
    assert refused.status and "Guest none is on none of" in refused.messages()
    assert three.where("g4") == ["alpha"]
    check = three.play("migrate", "-e", "guest=g4,g5", "-e", "to=gamma", "--check", "--diff").ok()
    run = three.play("migrate", "-e", "guest=g4,g5", "-e", "to=gamma", "--diff").ok()
    assert check.changes() == run.changes() and len(run.changes()) == 2
    assert three.where("g4") == three.where("g5") == ["gamma"]
    assert "declares g4, g5 at another host" in run.text
    assert three.play("migrate", "-e", "guest=g4,g5", "-e", "to=gamma").ok().changed == NONE
