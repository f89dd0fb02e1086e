"""Bare machines for the tests of this folder, and Ansible to run on them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.lab.errors import LabError
from ansible_collections.phyllome.virt.tests.lab.metal import Machine, records
from ansible_collections.phyllome.virt.tests.lab.process import Process


@dataclasses.dataclass(frozen=True)
class Kind:
    """A machine, and what has to be said of its IOMMU."""

    iommu: str
    cmdline: str | None  #: more words for the kernel; None for the saved machine, booted by its boot loader
    state: str
    table: str | None
    units: tuple[str, ...] = ()
    remapping: str = "disabled"
    causes: tuple[str, ...] = ()


MACHINES = {
    "intel": Kind("intel", None, "on", "DMAR", ("intel",), remapping="enabled"),
    "amd": Kind("amd", "iommu=pt", "on", "IVRS", ("amd",)),
    # interrupts are remapped all the same
    "switched-off": Kind(
        "intel", "intel_iommu=off", "off", "DMAR", remapping="enabled", causes=("disabled_on_cmdline", "reboot_pending")
    ),
    "none": Kind("none", "", "off", None, causes=("no_firmware_table",)),
    # Debian 12 has no driver for this one
    "virtio": Kind("virtio", "", "off", "VIOT", causes=("kernel_without_driver",)),
}
#: What of a Debian those have that are there to be looked at only; the rest of it doubles the time to boot.
FEW = "systemd.unit=ssh.service systemd.wants=systemd-networkd.service"
#: How many machines boot at a time. Each keeps one processor busy, hardly ever both of its own.
SIDE_BY_SIDE = 2


@dataclasses.dataclass(frozen=True)
class Bare:
    """A machine and its inventory."""

    machine: Machine
    inventory: pathlib.Path

    def facts(self, **arguments: t.Any) -> dict[str, t.Any]:
        """What iommu_facts says of the machine as it is now."""
        done = runner.direct(self.machine, "iommu_facts", arguments, timeout=1800)
        assert "ansible_facts" in done, done.get("msg", done)
        return t.cast("dict[str, t.Any]", done["ansible_facts"]["phyllome_iommu"])


class Machines:
    """Machines of MACHINES, brought up ahead of the tests that want them."""

    def __init__(self, folder: pathlib.Path, wanted: t.Iterable[str]) -> None:
        self.folder = folder
        # A machine's power goes with the thread that switched it on, so these stay until the end.
        self.pool = concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE)
        self.coming = {name: self.pool.submit(self._up, name) for name in wanted}

    def _up(self, name: str) -> Bare:
        kind = MACHINES[name]
        cmdline = None if kind.cmdline is None else f"{kind.cmdline} {FEW}"
        machine = Machine.up(kind.iommu, cmdline=cmdline, name=f"{name}-{os.getpid()}")
        return Bare(machine, machine.inventory(self.folder / f"{name}.yml"))

    def __getitem__(self, name: str) -> Bare:
        return self.coming[name].result()

    def down(self, name: str) -> None:
        """Remove a machine that no test wants any more."""
        self.coming.pop(name).result().machine.down()

    def end(self) -> None:
        """Remove all that are there, and those that are still coming."""
        for future in self.coming.values():
            future.cancel()
        for future in self.coming.values():
            if not future.cancelled() and not future.exception():
                future.result().machine.down()
        self.pool.shutdown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> t.Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say of every machine of this run how it is when a test fails: whether it was the machine that failed."""
    report = yield
    if report.failed:
        for record in records():
            if record.owner == Process.current():
                with contextlib.suppress(OSError, LabError):  # it may go off meanwhile
                    report.sections.append((f"machine {record.name}", Machine(record).condition()))
    return report


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """What is tested is the tarball, installed, as a user has it."""
    runner.install()


@pytest.fixture(scope="session")
def machines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, installed: None
) -> t.Iterator[Machines]:
    """The machines that the chosen tests want; `intel` is always among them."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {"intel", *(param["seen"] for param in params if "seen" in param)}
    found = Machines(tmp_path_factory.mktemp("metal"), [name for name in MACHINES if name in wanted])
    yield found
    found.end()


@pytest.fixture(scope="session")
def intel(machines: Machines) -> Bare:
    """The saved machine, for tests that leave it as it was."""
    return machines["intel"]


@pytest.fixture(scope="session")
def bring_up(tmp_path_factory: pytest.TempPathFactory) -> t.Callable[..., Bare]:
    """A function that brings up a machine for one test alone, as Machine.up does; whoever calls it takes it down."""

    def up(iommu: str, cmdline: str | None = None, name: str | None = None) -> Bare:
        machine = Machine.up(iommu, cmdline=cmdline, name=name)
        return Bare(machine, machine.inventory(tmp_path_factory.mktemp("metal") / "inventory.yml"))

    return up
