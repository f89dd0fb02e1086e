"""Machines: what they are made of, their records, and what QEMU says of their devices."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.phyllome.virt.tests.lab import hardware, image, metal
from ansible_collections.phyllome.virt.tests.lab.errors import LabError
from ansible_collections.phyllome.virt.tests.lab.metal import Machine, Record
from ansible_collections.phyllome.virt.tests.lab.process import Process

DEAD = Process(os.getpid(), 1)  # this pid, but of a process that started with the machine


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setattr(metal, "MACHINES", tmp_path)
    return Record("bench", "intel", "/cache/metal-disk", metal.boot_id(), Process.current())


def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    record.save()
    kept = dataclasses.replace(record, name="kept", owner=None)
    kept.save()
    assert metal.records() == [record, kept]


def test_a_record_of_another_version_is_not_read(record: Record) -> None:
    record.save()
    (record.folder / "machine.json").write_text('{"name": "bench", "something": "new"}')
    assert metal.records() == []


@pytest.mark.parametrize(
    ("change", "abandoned"),
    [({}, False), ({"owner": None}, False), ({"owner": DEAD}, True), ({"boot": "another"}, True)],
)
def test_who_abandons_a_machine(record: Record, change: dict[str, t.Any], abandoned: bool) -> None:
    assert dataclasses.replace(record, **change).abandoned is abandoned


@pytest.mark.parametrize(("name", "iommu", "said"), [("No", "intel", "no name"), ("yes", "xen", "no IOMMU 'xen'")])
def test_a_machine_that_cannot_be_is_refused_before_anything_is_made(
    record: Record, name: str, iommu: str, said: str
) -> None:
    with pytest.raises(LabError, match=said):
        Machine.create(iommu, name=name)
    assert not list(metal.MACHINES.iterdir())


@pytest.mark.parametrize("cmdline", [None, "", "iommu=off", "xiommu=pt"])
def test_a_boot_that_is_known_to_stall_is_refused(record: Record, cmdline: str | None) -> None:
    with pytest.raises(LabError, match="needs iommu=pt"):
        Machine(dataclasses.replace(record, iommu="amd")).boot(cmdline)


def devices(iommu: str) -> list[dict[str, str]]:
    """The devices of a command line, in order, each with its properties."""
    words = hardware.command(iommu, hardware.Files(Path("/m")))
    found = []
    for option, value in zip(words[1:], words[2:], strict=False):
        if option == "-device":
            driver, *properties = value.split(",")
            found.append({"driver": driver, **dict(item.split("=", 1) for item in properties)})
    return found


@pytest.mark.parametrize(("iommu", "driver"), [("intel", "intel-iommu"), ("amd", "amd-iommu")])
def test_the_iommu_comes_before_every_pci_device(iommu: str, driver: str) -> None:
    drivers = [device["driver"] for device in devices(iommu) if device["driver"] != "nvme-subsys"]
    assert drivers.index(driver) == 0


def test_a_machine_without_an_iommu_has_none() -> None:
    assert not [device for device in devices("none") if "iommu" in device["driver"]]


def test_every_device_has_its_own_name_and_a_bus_that_is_there() -> None:
    every: list[t.Mapping[str, object]] = [*devices("virtio"), *hardware.LATE]
    names = [str(device["id"]) for device in every if "id" in device]
    assert len(set(names)) == len(names)
    for device in every:
        bus = str(device.get("bus", "pcie.0"))
        assert bus == "pcie.0" or bus.removesuffix(".0") in names, device


def test_two_devices_of_a_bus_have_two_places() -> None:
    places = [(device["bus"], int(device["addr"], 16)) for device in devices("virtio") if device.get("bus") == "pcie.0"]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--target=device", "/"], "/dev/vda2"),
        (["--device", "/dev/vda2", "--target=fs_uuid"], image.ROOT_UUID),
        (["-t", "fs_uuid", "-d", "/dev/vda2"], image.ROOT_UUID),
        (["--device", "/dev/vda2", "--target=partmap"], "gpt"),
        (["--device", "/dev/vda2", "--target=abstraction"], ""),
    ],
)
def test_grub_is_told_of_the_disk_it_will_start_from(tmp_path: Path, arguments: list[str], answer: str) -> None:
    script = tmp_path / "grub-probe"
    script.write_text(image.PROBE)
    done = subprocess.run(["sh", str(script), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer


def test_the_partitions_leave_room_for_the_table_at_the_end() -> None:
    assert image.ROOT_AT % image.MIB == 0
    assert image.ROOT_AT + image.ROOT_BLOCKS * image.BLOCK + image.MIB == image.SIZE


class Bus:
    """Answers as QEMU does to query-pci: a root port with a bridge behind it, and a device behind that."""

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *dummy: object) -> None:
        pass

    def execute(self, command: str) -> list[dict[str, t.Any]]:
        assert command == "query-pci"
        card = {"bus": 2, "slot": 31, "function": 7, "qdev_id": "card"}
        bridge = {
            "bus": 1,
            "slot": 0,
            "function": 0,
            "qdev_id": "bridge",
            "pci_bridge": {"bus": {"number": 1, "secondary": 2, "subordinate": 2}, "devices": [card]},
        }
        port = {
            "bus": 0,
            "slot": 4,
            "function": 0,
            "qdev_id": "port",
            "pci_bridge": {"bus": {"number": 0, "secondary": 1, "subordinate": 2}, "devices": [bridge]},
        }
        empty = {"bus": 0, "slot": 5, "function": 0, "qdev_id": "empty", "pci_bridge": {"bus": {"secondary": 3}}}
        return [{"bus": 0, "devices": [port, empty]}]


def test_devices_have_the_address_that_linux_gives_them(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "qmp", lambda self: Bus())
    found = {device["qdev_id"]: device["address"] for device in Machine(record).devices()}
    assert found == {
        "port": "0000:00:04.0",
        "bridge": "0000:01:00.0",
        "card": "0000:02:1f.7",
        "empty": "0000:00:05.0",
    }
