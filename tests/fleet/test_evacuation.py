"""Three hosts: one is emptied and filled again, and all are upgraded, under guests that do not notice."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
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
        there = {host.name: self.guests(host.name) for host in self.fleet.hosts}
        return {
            guest["name"]: [host for host, names in there.items() if guest["name"] in names]
            for guest in self.guests_declared
        }

    def boots(self) -> dict[str, int]:
        """How often each running guest was booted."""
        return {
            name: self.counted(host.name, name).boots
            for host in self.fleet.hosts
            for name in self.virsh(host.name, "list", "--name", "--state-running").split()
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


def killed(three: Three) -> list[int]:
    """Begin to empty alpha, and kill the controller when the first guest has left; its workers, which live on."""
    process = subprocess.Popen(
        ["ansible-playbook", "-i", str(three.inventory(three.guests_declared)), "phyllome.virt.evacuate", "-e", "host=alpha"],
        env=runner.environment(), stdin=subprocess.DEVNULL, stdout=(three.folder / "killed.log").open("wb"),
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while len(three.guests("alpha")) == 12:
        assert process.poll() is None and time.monotonic() < deadline, (three.folder / "killed.log").read_text()
        time.sleep(0.1)
    workers = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    alive = [int(worker) for worker in workers if pathlib.Path(f"/proc/{worker}").exists()]
    assert alive
    return alive


def test_a_host_is_emptied_as_check_mode_said_and_stays_empty(three: Three) -> None:
    before = three.boots()
    check = three.play("evacuate", "-e", "host=alpha", "--check", "--diff").ok()
    assert len(three.guests("alpha")) == 12
    workers = killed(three)
    run = three.play("evacuate", "-e", "host=alpha").ok()
    for worker in workers:  # nobody reads what they have to say, so the last of them may wait for ever
        with contextlib.suppress(OSError):
            if str(three.folder) in pathlib.Path(f"/proc/{worker}/cmdline").read_text():
                os.kill(worker, signal.SIGKILL)
    assert three.guests("alpha") == set()
    homes = three.homes()
    assert all(len(where) == 1 for where in homes.values())
    # nobody went to two hosts in turn: all are where the record says, which was written before the first one went
    record = json.loads(three.fleet.host("alpha").read(RECORD))
    assert record["destinations"] == {name: where[0] for name, where in homes.items() if name != "other"}
    [said] = [diff[0]["after"] for dummy, task, diff in check.changes() if task.startswith("Record which")]
    assert json.loads(said) == record and not any(
        task.startswith("Record") for dummy, task, dummy_diff in run.changes()
    )
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


def test_hosts_are_upgraded_one_by_one_under_guests_that_never_stop(three: Three) -> None:
    three.remove(*[f"g{number}" for number in range(1, 11)])
    Three.guests_declared = [one for one in three.guests_declared if one["name"] in ("g0", "off", "other")]
    before = three.boots()
    for host in ("alpha", "beta"):
        three.fleet.host(host).run(["touch", "/run/reboot-required"])
    three.virsh("alpha", "net-autostart", "--disable", "default")
    booted = {host.name: host.read("/proc/sys/kernel/random/boot_id") for host in three.fleet.hosts}

    stopped = three.play("upgrade")
    assert stopped.status and "network default is not active any more" in stopped.messages()
    assert three.running("g0") != ["alpha"] and three.where("off") == ["alpha"]
    after = {host.name: host.read("/proc/sys/kernel/random/boot_id") for host in three.fleet.hosts}
    assert {name for name, boot in after.items() if boot != booted[name]} == {"alpha"}

    three.virsh("alpha", "net-start", "default")
    three.play("upgrade").ok()
    after = {host.name: host.read("/proc/sys/kernel/random/boot_id") for host in three.fleet.hosts}
    assert {name for name, boot in after.items() if boot != booted[name]} == {"alpha", "beta"}
    assert three.running("g0") == ["alpha"] and three.running("other") == ["beta"]
    assert three.boots() == before
    assert three.play("upgrade").ok().changed == NONE
