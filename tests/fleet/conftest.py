"""Fleets of two hosts that `phyllome.virt.site` has made Phyllome hosts, for all tests of this folder."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import pathlib
import time
import typing as t

import pytest
import yaml

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.lab import counter
from ansible_collections.phyllome.virt.tests.lab.errors import LabError
from ansible_collections.phyllome.virt.tests.lab.fleet import Fleet
from ansible_collections.phyllome.virt.tests.lab.host import UNBOOTED, Counter

SITE = "phyllome.virt.site"
IMAGE = "/srv/counter.qcow2"
#: Files of tests in the order in which they begin; the short ones come last, so that nobody works alone at the end.
LONGEST = (
    "test_site.py",
    "test_faults.py",
    "test_evacuation.py",
    "test_cold.py",
    "test_refusals.py",
    "test_first_boot.py",
    "test_lifecycle.py",
    "test_live.py",
    "test_guest.py",
)
BUILT = pytest.StashKey["Site"]()


@dataclasses.dataclass
class Site:
    """The fleet, its inventory, and the playbook that converges it."""

    fleet: Fleet
    folder: pathlib.Path
    checksum: str

    def guest(self, name: str, host: str, **more: t.Any) -> dict[str, t.Any]:
        """A guest that counts (BIOS, 64 MiB of memory, one disk)."""
        return {
            "name": name,
            "host": host,
            "profile": "legacy",
            "memory": "64MiB",
            "vcpus": 1,
            "disks": [{"id": "root", "size": "64MiB", "source": {"path": IMAGE, "checksum": self.checksum}}],
            "networks": [{"id": "lan", "network": "default"}],
            **more,
        }

    def inventory(self, guests: list[dict[str, t.Any]], **more: t.Any) -> pathlib.Path:
        """Write the inventory with these guests declared, and with more variables."""
        inventory = yaml.safe_load(self.fleet.inventory_text())
        inventory["phyllome_hosts"]["vars"] |= {
            "phyllome_guests": guests,
            "hypervisor_allow_emulation": True,
            "hypervisor_pki_dir": str(self.folder / "pki"),
            **more,
        }
        path = self.folder / "inventory.yml"
        path.write_text(yaml.safe_dump(inventory))
        return path

    def whole(self, guests: list[dict[str, t.Any]], *arguments: str, core: str | None = None) -> runner.Run:
        """Run the whole playbook with these guests declared."""
        return runner.playbook(SITE, self.inventory(guests), *arguments, core=core)

    def run(self, guests: list[dict[str, t.Any]], *arguments: str) -> runner.Run:
        """Run what the playbook does about guests, with these declared."""
        return self.whole(guests, "--tags", "guests", *arguments)

    def module(self, name: str, host: str, arguments: dict[str, t.Any], *flags: str) -> dict[str, t.Any]:
        """Run one module of the collection on one host, without Ansible around it."""
        return runner.direct(self.fleet.host(host), name, arguments, *flags)

    def ansible(self, name: str, host: str, arguments: dict[str, t.Any], *flags: str) -> dict[str, t.Any]:
        """The same through the whole of Ansible, for a test that is about what the controller does or shows."""
        return runner.module(f"phyllome.virt.{name}", host, self.inventory([]), arguments, *flags)

    def make(self, guest: dict[str, t.Any]) -> None:
        """Have a guest where it is declared to be, for a test that is not about how it comes there."""
        declared = {option: value for option, value in guest.items() if option != "host"}
        result = self.module("phyllome_vm", guest["host"], declared)
        assert not result.get("failed"), result["msg"]

    def virsh(self, host: str, *arguments: str) -> str:
        """What virsh prints on a host."""
        return self.fleet.host(host).run(["virsh", *arguments]).stdout

    def guests(self, host: str) -> set[str]:
        """Names of the guests that are defined on a host."""
        return set(self.virsh(host, "list", "--all", "--name").split())

    def where(self, name: str) -> list[str]:
        """Hosts on which a guest is defined."""
        return [host.name for host in self.fleet.hosts if name in self.guests(host.name)]

    def running(self, name: str) -> list[str]:
        """Hosts on which a guest runs; paused is not running."""
        listed = ("list", "--name", "--state-running")
        return [host.name for host in self.fleet.hosts if name in self.virsh(host.name, *listed).split()]

    def disk(self, host: str, name: str) -> str:
        """Path of a guest's first disk."""
        listed = self.virsh(host, "domblklist", name, "--details").splitlines()
        return next(line.split()[3] for line in listed if " disk " in line)

    def counted(self, host: str, name: str) -> Counter:
        """What a guest has counted on its disk."""
        return self.fleet.host(host).counter(self.disk(host, name))

    def counts(self, host: str, name: str, beyond: Counter = UNBOOTED) -> Counter:
        """Wait until a guest has counted beyond a value on its disk, and return how far. A counter never goes back."""
        deadline = time.monotonic() + 120
        seen: object = None
        while time.monotonic() < deadline:
            try:
                if (seen := self.counted(host, name)) > beyond:
                    return seen
            except LabError as error:  # there is no counter on its disk before it has booted for the first time
                seen = error
            time.sleep(0.2)
        raise AssertionError(f"{name} does not count at {host}: {seen}")

    def remove(self, *names: str) -> None:
        """Remove guests with their disks, wherever they are."""
        for host in self.fleet.hosts:
            doomed = [{"name": name} for name in names if name in self.guests(host.name)]
            if doomed:
                # the guests of these tests have nobody in them who would hear the power button
                gone = {
                    "state": "absent",
                    "delete": {"disks": "owned"},
                    "shutdown": {"timeout": 1, "then": "destroy"},
                }
                result = self.module("phyllome_vm", host.name, {"guests": doomed, "defaults": gone})
                assert not result.get("failed"), result["msg"]


def checksum() -> str:
    """That of the guest that counts."""
    image = counter.images() / "counter.qcow2"
    return f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}"


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """What is tested is the tarball, installed, as a user has it."""
    runner.install()


@contextlib.contextmanager
def hosts(base: str, folder: pathlib.Path) -> t.Iterator[Site]:
    """Two hosts that stand on a base of the lab."""
    with Fleet.create(["alpha", "beta"], name=f"{base}-{os.getpid()}", base=base) as fleet:
        for host in fleet.hosts:
            host.put(counter.images() / "counter.qcow2", IMAGE)
        yield Site(fleet, folder, checksum())


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory, installed: None) -> t.Iterator[Site]:
    """Two hosts with a Debian and nothing else."""
    with hosts("bare", tmp_path_factory.mktemp("bare")) as site:
        yield site


@dataclasses.dataclass
class Checkup:
    """A run of the check-up, and what it wrote."""

    run: runner.Run
    report: dict[str, t.Any]
    page: str


def checkup(site: Site) -> Checkup:
    """Check the fleet up, with a host in the inventory that is not there."""
    inventory = yaml.safe_load(site.inventory([]).read_text())
    inventory["phyllome_hosts"]["hosts"]["gone"] = {"ansible_host": "127.0.0.1", "ansible_ssh_args": "-o Port=9"}
    path, folder = site.folder / "checkup.yml", site.folder / "checkup"
    path.write_text(yaml.safe_dump(inventory))
    run = runner.playbook("phyllome.virt.checkup", path, "-e", f"checkup_dir={folder}")
    return Checkup(run, json.loads((folder / "checkup.json").read_text()), (folder / "checkup.html").read_text())


@dataclasses.dataclass
class Built:
    """The first runs on the bare hosts."""

    checkup: Checkup
    web: dict[str, t.Any]
    check: runner.Run
    packages_before: list[str]
    packages_after_check: list[str]
    first: runner.Run
    second: runner.Run


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, bare: Site) -> Built:
    """The check-up and check mode on the bare hosts, then two real runs with one guest on alpha."""
    checked = checkup(bare)
    web = bare.guest("web", "alpha", autostart=True)
    fleet_files = ["sh", "-c", "dpkg -l | sort; find /etc /srv /root -xdev -type f | sort | xargs md5sum"]

    def everything() -> list[str]:
        return [host.run(fleet_files).stdout for host in bare.fleet.hosts]

    before = everything()
    check = bare.whole([web], "--check", "--diff")
    after = everything()
    first = bare.whole([web], "--diff")
    if first.status == 0:
        request.config.stash[BUILT] = bare
    return Built(checked, copy.deepcopy(web), check, before, after, first, bare.whole([web]))


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, installed: None) -> t.Iterator[Site]:
    """Two Phyllome hosts: those of test_site, where they are there already, else two that had their packages before."""
    there = request.config.stash.get(BUILT, None)
    if there:
        yield there
        return
    with hosts("ready", tmp_path_factory.mktemp("site")) as site:
        site.whole([]).ok()
        yield site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first two files go to the two who work side by side: one makes bare hosts Phyllome hosts, and goes on with those."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
