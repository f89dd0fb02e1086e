"""Whatever dies in the middle of a move: one guest that runs, and running again finishes the job."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import SITE, Site
from ansible_collections.phyllome.virt.tests.lab.errors import LabError

QEMU = "qemu-system-x86_64.*guest=mover"
SLOW = 1  # MiB/s: long enough to break something in the middle


class Watch:
    """Samples on which hosts a guest executes, all through a test."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.twice: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self._stop.wait(0.2):
            states = {}
            for host in self.site.fleet.hosts:
                with contextlib.suppress(LabError):  # it may be off just now
                    done = host.run(["virsh", "-r", "domstate", self.name], check=False)
                    states[host.name] = done.stdout.strip()
            if list(states.values()).count("running") > 1:
                self.twice.append(str(states))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        assert not self.twice, f"{self.name} ran on two hosts at once: {self.twice}"


def start_move(site: Site, guests: list[dict[str, t.Any]]) -> subprocess.Popen[bytes]:
    """Start the playbook and return when the memory or disks of the guest are on their way."""
    process = subprocess.Popen(
        ["ansible-playbook", "-i", str(site.inventory(guests)), SITE, "--tags", "guests"],
        env=runner.environment(),
        stdin=subprocess.DEVNULL,
        stdout=(site.folder / "move.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while "Outgoing" not in site.fleet.host("alpha").run(["virsh", "domjobinfo", "mover"], check=False).stdout:
        assert process.poll() is None, (site.folder / "move.log").read_text()
        assert time.monotonic() < deadline, "the move did not begin"
        time.sleep(0.05)
    return process


@pytest.fixture
def mover(site: Site) -> t.Iterator[dict[str, t.Any]]:
    """A guest on alpha with enough on its disk for a slow move."""
    guest = site.guest("mover", "alpha", autostart=True)
    site.run([guest]).ok()
    disk = site.disk("alpha", "mover")
    site.virsh("alpha", "destroy", "mover")
    site.fleet.host("alpha").run(["qemu-io", "-f", "qcow2", "-c", "write -P 90 16M 24M", disk])
    site.virsh("alpha", "start", "mover")
    deadline = time.monotonic() + 60
    while site.counted("alpha", "mover").boots < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert site.counted("alpha", "mover").boots == 2
    yield guest
    site.remove("mover")


def leftovers(site: Site, host: str) -> list[str]:
    """Files of the guest that no definition on this host accounts for, the retained ones aside."""
    names = site.fleet.host(host).run(["ls", "-A", "/var/lib/libvirt/images"]).stdout.split()
    return [name for name in names if "mover" in name and "retained" not in name]


def finish(site: Site, guest: dict[str, t.Any]) -> None:
    """Run again: the guest is at beta, once, it went on counting, and nothing is left at alpha."""
    moved = {**guest, "host": "beta"}
    site.run([moved]).ok()
    assert site.where("mover") == ["beta"] == site.running("mover")
    assert leftovers(site, "alpha") == []
    assert "enable" in site.virsh("beta", "dominfo", "mover").split("Autostart:")[1].split("\n")[0]
    assert site.run([moved]).ok().changed == {"alpha": 0, "beta": 0}


@contextlib.contextmanager
def moving(
    site: Site, mover: dict[str, t.Any], mib: int = SLOW, restarts: int = 0
) -> t.Iterator[subprocess.Popen[bytes]]:
    """A slow move to beta under way; afterwards, at full speed, a run has finished it and nothing was lost.

    Args:
        site: the fleet.
        mover: the guest.
        mib: speed in MiB a second.
        restarts: how often it has to be started again, because its memory was lost with its host.
    """
    before = site.counted("alpha", "mover")
    site.virsh("alpha", "migrate-setspeed", "mover", str(mib))
    with Watch(site, "mover"):
        process = start_move(site, [{**mover, "host": "beta"}])
        yield process
        site.fleet.host("alpha").run(["virsh", "migrate-setspeed", "mover", "1000"], check=False)
        process.wait(timeout=240)
        finish(site, mover)
    deadline = time.monotonic() + 60
    while (after := site.counted("beta", "mover")).boots < before.boots + restarts and time.monotonic() < deadline:
        time.sleep(0.2)
    assert after.boots == before.boots + restarts and after.count >= before.count


def strike(site: Site, host: str, victim: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process as soon as it is there."""
    deadline = time.monotonic() + 30
    while not site.fleet.host(host).processes(victim):
        assert time.monotonic() < deadline, f"{victim} was not to be seen at {host}"
        time.sleep(0.05)
    site.fleet.host(host).kill(victim, number)


@pytest.mark.parametrize(
    ("host", "victim"),
    [
        ("beta", "/usr/sbin/libvirtd"),
        ("alpha", "/usr/sbin/libvirtd"),
        ("beta", QEMU),
        ("alpha", "^/usr/bin/python3$"),
    ],
    ids=["libvirtd at the destination", "libvirtd at the source", "QEMU at the destination", "the unit"],
)
def test_something_dies_in_the_middle(site: Site, mover: dict[str, t.Any], host: str, victim: str) -> None:
    with moving(site, mover):
        strike(site, host, victim)


def test_a_hanging_qemu_at_the_destination_is_removed(site: Site, mover: dict[str, t.Any]) -> None:
    """libvirt there cannot undo the migration: it waits for a QEMU that answers no more."""
    with moving(site, mover):
        strike(site, "beta", QEMU, signal.SIGSTOP)
        strike(site, "beta", "/usr/sbin/libvirtd")


UNITS = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active", "phyllome-mig-*"]


def test_the_controller_dies_in_the_middle(site: Site, mover: dict[str, t.Any]) -> None:
    """The move goes on in its unit, and the next run attaches to it."""
    with moving(site, mover, mib=2) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        unit = site.fleet.host("alpha").run(UNITS).stdout.split()[0]
        uri = f"qemu+tls://{site.fleet.host('beta').address}/system"
        moved = {"name": "mover", "destination": "beta", "destination_uri": uri, "source": "alpha"}
        attached = site.module("vm_migrate", "alpha", moved)
        assert attached["changed"] and unit == f"phyllome-mig-{attached['op_id']}.scope"
        assert attached["mode_used"] == "live" and attached["stats"]["migrate_ms"]
    assert site.fleet.host("alpha").run(UNITS).stdout == ""


def test_the_last_reply_is_lost(site: Site, mover: dict[str, t.Any]) -> None:
    """What makes stock libvirt run a guest twice: the destination's answer to Finish never arrives."""
    with moving(site, mover, mib=8) as process, site.fleet.dropping("beta", "alpha", 16514, side="sport"):
        process.wait(timeout=240)
        assert site.running("mover") in (["alpha"], ["beta"])
