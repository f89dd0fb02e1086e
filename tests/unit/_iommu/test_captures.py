# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored machines have the facts that are stored with them, wherever their tree lies."""

from __future__ import annotations

import json
import pathlib

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather
from ansible_collections.phyllome.virt.tests.unit._iommu.machines import Machine

CAPTURES = sorted((pathlib.Path(__file__).parents[1] / "captures").glob("*/tree.txt"))


@pytest.mark.parametrize("tree", CAPTURES, ids=[tree.parent.name for tree in CAPTURES])
def test_replay(tmp_path, tree):
    facts = gather(Machine.from_text(tree.read_text()).write(tmp_path / "m"))
    assert facts == json.loads((tree.parent / "facts.json").read_text())


def test_there_are_captures_and_each_says_where_it_comes_from():
    assert len(CAPTURES) >= 12
    for tree in CAPTURES:
        said = (tree.parent / "README.md").read_text()
        assert "is composed by hand" in said or "was captured from a running machine" in said


def test_a_tree_as_text_is_the_same_tree():
    machine = Machine()
    machine.directories.add("sys/kernel/iommu_groups")
    machine.file("sys/a", "one = two -> three\n\tback\\slash\\n\n")
    machine.file("sys/empty", "")
    machine.file("sys/binary", b"\0\xff\n")
    machine.link("sys/0000:00:1f.0", "sys/devices/with space")
    again = Machine.from_text(machine.text())
    assert (again.files, again.links, again.directories) == (machine.files, machine.links, machine.directories)
    stripped = "\n".join(line.rstrip() for line in machine.text().splitlines())  # as editors do
    assert Machine.from_text(stripped).files == machine.files
