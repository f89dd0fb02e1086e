# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of iommu_facts says what it returns, and its examples select what they say."""

from __future__ import annotations

import pathlib
import re
import typing as t

import jmespath
import pytest
import yaml

from ansible_collections.phyllome.virt.plugins.module_utils._host import judge as host_judge
from ansible_collections.phyllome.virt.plugins.module_utils._iommu import judge
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.diagnose import REMEDIES
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather
from ansible_collections.phyllome.virt.plugins.modules import iommu_facts
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

RETURN = yaml.safe_load(iommu_facts.RETURN)["ansible_facts"]["contains"]["phyllome_iommu"]
TYPES = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict}


def differences(documented: dict[str, t.Any], value: t.Any, path: str) -> t.Iterator[str]:
    """Where a value is not as documented; null is allowed everywhere."""
    if value is None:
        return
    kind = TYPES[documented["type"]]
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        yield f"{path} is documented as {documented['type']} and is {value!r}"
        return
    if isinstance(value, list):
        for one in value:
            yield from differences({**documented, "type": documented["elements"]}, one, f"{path}[]")
    elif isinstance(value, dict) and "contains" in documented:
        yield from (f"{path}.{key} is not documented" for key in value.keys() - documented["contains"].keys())
        yield from (f"{path}.{key} is not there" for key in documented["contains"].keys() - value.keys())
        for key in value.keys() & documented["contains"].keys():
            yield from differences(documented["contains"][key], value[key], f"{path}.{key}")


@pytest.mark.parametrize("name", ["desktop", "laptop", "sriov", "guest"])
def test_all_that_is_returned_is_documented_and_the_other_way_round(tmp_path, name):
    facts = gather(getattr(machines, name)().write(tmp_path / "m"))
    assert sorted({*differences(RETURN, facts, "phyllome_iommu")}) == []


def test_all_hazards_and_causes_are_documented():
    words = {*re.findall(r"V\((\w+)\)", iommu_facts.RETURN)}
    source = "".join(pathlib.Path(module.__file__ or "").read_text() for module in (judge, host_judge))
    unknown = {*re.findall(r'"(unknown_[a-z_]+)"', source)} | {"unknown_unsafe_interrupts", "unknown_noiommu"}
    assert {*judge.HAZARDS, *REMEDIES, *unknown} <= words


@pytest.mark.parametrize(
    ("task", "selected"),
    [
        ("Graphics cards that a guest can have", ["0000:0b:00.0"]),
        ("NVMe disks that only have data on them in the way", ["144d:a80a/1849:ffff@0000:00/01.3/00.0"]),
        ("What stands against the network card in slot 3", [["mgmt_nic", "default route on enp5s0"], ["nic_used", "enp5s0 is up, routes go through enp5s0"]]),
        ("Groups that could be bound as a whole, and what to bind", [
            {"group": 21, "bind": ["0000:0b:00.0", "0000:0b:00.1"]},
            {"group": 24, "bind": ["0000:03:00.0"]},
            {"group": 27, "bind": ["0000:07:00.1"]},
        ]),
    ],
)  # fmt: skip
def test_the_examples_select_what_they_say(tmp_path, task, selected):
    machine = machines.desktop()
    machine.file("sys/bus/pci/slots/3/address", "0000:05:00\n")
    facts = gather(machine.write(tmp_path / "m"))
    example = next(one for one in yaml.safe_load(iommu_facts.EXAMPLES) if one["name"] == task)
    match = re.search(
        r'phyllome_iommu\.(\w+)\s*\| community.general.json_query\("(.*)"\)', example["ansible.builtin.debug"]["msg"]
    )
    assert match
    assert jmespath.search(match.group(2), facts[match.group(1)]) == selected
