"""Bare machines for the tests of this folder, and Ansible to run on them."""

from __future__ import annotations

import dataclasses
import pathlib
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.lab.metal import Machine


@dataclasses.dataclass(frozen=True)
class Bare:
    """A machine and its inventory."""

    machine: Machine
    inventory: pathlib.Path

    def facts(self, **arguments: t.Any) -> dict[str, t.Any]:
        """What iommu_facts says of the machine as it is now."""
        done = runner.module("phyllome.virt.iommu_facts", self.machine.record.name, self.inventory, arguments)
        assert "ansible_facts" in done, done.get("msg", done)
        return t.cast("dict[str, t.Any]", done["ansible_facts"]["phyllome_iommu"])


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """What is tested is the tarball, installed, as a user has it."""
    runner.install()


@pytest.fixture(scope="session")
def bring_up(tmp_path_factory: pytest.TempPathFactory) -> t.Callable[..., Bare]:
    """A function that brings a machine up, as Machine.up does; whoever calls it takes it down."""

    def up(iommu: str, cmdline: str | None = None) -> Bare:
        machine = Machine.up(iommu, cmdline=cmdline)
        return Bare(machine, machine.inventory(tmp_path_factory.mktemp("metal") / "inventory.yml"))

    return up
