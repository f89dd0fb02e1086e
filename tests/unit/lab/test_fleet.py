"""Names, numbers, records and inventories of fleets."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import yaml

from ansible_collections.phyllome.virt.tests.lab import fleet
from ansible_collections.phyllome.virt.tests.lab.errors import LabError
from ansible_collections.phyllome.virt.tests.lab.fleet import Record
from ansible_collections.phyllome.virt.tests.lab.process import Process

DEAD = Process(os.getpid(), 1)  # this pid, but of a process that started with the machine


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setattr(fleet, "STATE", tmp_path)
    return Record(3, "move", "ready", ("/b/ready", "/b/bare"), ("alpha", "beta"), fleet.boot_id(), Process.current())


@pytest.mark.parametrize("names", [["Alpha"], ["a b"], [""], ["9lives"], ["a/b"], ["a" * 33], ["alpha", "alpha"]])
def test_bad_names_are_refused(names: list[str]) -> None:
    with pytest.raises(LabError):
        fleet.checked_names(names)


def test_good_names_keep_their_order() -> None:
    assert fleet.checked_names(["beta", "alpha", "node-2"]) == ["beta", "alpha", "node-2"]


@pytest.mark.parametrize(("taken", "free"), [(set(), 0), ({0, 1, 3}, 2), ({1}, 0)])
def test_the_lowest_free_number_is_taken(taken: set[int], free: int) -> None:
    assert fleet.free_number(taken) == free


def test_numbers_end() -> None:
    with pytest.raises(LabError, match="255 fleets"):
        fleet.free_number(set(range(255)))


def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    record.save()
    unowned = dataclasses.replace(record, number=1, name="stays", owner=None)
    unowned.save()
    assert fleet.records() == [unowned, record]


def test_a_record_of_another_version_is_left_alone(record: Record) -> None:
    record.save()
    (record.folder / "fleet.json").write_text('{"number": 3, "something": "new"}')
    assert fleet.records() == []
    assert fleet.recorded() == {3: None}
    assert not fleet.abandoned(fleet.recorded(), 3)


def test_who_is_abandoned(record: Record) -> None:
    known = {
        0: record,
        1: dataclasses.replace(record, owner=None),
        2: dataclasses.replace(record, owner=DEAD),
        3: dataclasses.replace(record, owner=None, boot="an earlier one"),
    }
    assert [number for number in range(5) if fleet.abandoned(known, number)] == [2, 3, 4]


def test_inventory_is_yaml_that_ansible_takes() -> None:
    text = fleet.render_inventory(
        {"alpha": "10.78.0.1", "beta": "10.78.0.2"}, Path("/s/key"), ["-o", "ControlPath=/s/ssh/%h-%p-%r"]
    )
    group = yaml.safe_load(text)["phyllome_hosts"]
    assert group["hosts"] == {"alpha": {"ansible_host": "10.78.0.1"}, "beta": {"ansible_host": "10.78.0.2"}}
    assert group["vars"] == {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": "/s/key",
        "ansible_ssh_args": "-o ControlPath=/s/ssh/%h-%p-%r",
        "ansible_pipelining": True,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
