# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is asked for of whatever machine: nothing is taken that was not consented to, and a second run does nothing."""

from __future__ import annotations

import functools
import pathlib
import tempfile
import typing as t

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.sysfs import Tree, is_vfio
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.judge import HAZARDS
from ansible_collections.phyllome.virt.plugins.module_utils._vfio import spec
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.plan import Todo, plan
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.read import World, read
from ansible_collections.phyllome.virt.tests.unit._vfio.sim import CAPTURES, DEFAULTS, Sim, capture

NAMES = sorted(path.name for path in CAPTURES.iterdir() if path.is_dir())


@functools.cache
def world(name: str) -> World:
    """A captured machine, read once."""
    with tempfile.TemporaryDirectory() as folder:
        return read(Tree(capture(name).write(pathlib.Path(folder)), "sysfs_root"))


def asking(addresses: t.Sequence[str]) -> st.SearchStrategy[dict[str, t.Any]]:
    """Options."""
    return st.fixed_dictionaries(
        {
            "devices": st.lists(st.sampled_from(addresses), min_size=1, max_size=4),
            "state": st.sampled_from(["bound", "bound", "unbound"]),
            "group_policy": st.sampled_from(["refuse_partial", "companions", "whole_group"]),
            "consent": st.lists(st.sampled_from(spec.CONSENT), unique=True) | st.just(list(spec.CONSENT)),
            "persist": st.booleans(),
            "runtime": st.sampled_from(["auto", "never", "force"]),
        }
    )


def planned(found: World, options: dict[str, t.Any]) -> Todo | None:
    """What would be done; None where the machine has no IOMMU that is on."""
    try:
        return plan(spec.wanted({**DEFAULTS, **options}, True), found)
    except PhyllomeError as exc:
        assert "the IOMMU is not on" in exc.what
        return None


@settings(max_examples=200)
@given(st.data())
def test_nothing_is_taken_with_a_hazard_that_was_not_consented_to(data: st.DataObject) -> None:
    found = world(data.draw(st.sampled_from(NAMES)))
    options = data.draw(asking(sorted(found.devices)))
    todo = planned(found, options)
    if todo is None or todo.refused:
        return
    for row in todo.rows:
        if row.result in ("already", "deferred") and todo.waiting:
            continue
        if row.result not in ("bound", "unbound", "deferred"):
            continue
        for hazard in found.devices[row.address]["hazards"]:
            if options["state"] == "unbound" and hazard["device"] != row.address:
                continue
            assert HAZARDS.get(hazard["code"]) in options["consent"], (row, hazard)
        if options["state"] == "bound":
            group = next(each for each in found.facts["groups"] if each["id"] == row.group)
            taken = {each.address for each in todo.rows}
            for other in group["endpoints"]:
                driver = found.devices[other]["driver"]
                assert other in taken or driver is None or is_vfio(driver), (row, other)
            assert row.result == "deferred" or options["runtime"] != "never"
    assert not any(found.devices[each.address]["header"] == "bridge" for each in todo.rows if each.result == "bound")


@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))  # making an example smaller takes minutes
@given(st.data())
def test_a_second_run_has_nothing_to_do_and_the_undo_is_exact(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["emulated-q35", "amd-desktop-two-gpus", "server-bond-lvm"]))
    free = [each["address"] for each in world(name).facts["devices"] if not each["hazards"]]
    with tempfile.TemporaryDirectory() as folder:
        sim = Sim(pathlib.Path(folder) / "root", capture(name))
        options = data.draw(asking(free))
        before = sim.snapshot()
        try:
            done = sim.do(**options)
        except PhyllomeError as exc:
            assert exc.facts["refused"]
            assert sim.snapshot() == before
            return
        again = sim.do(**options)
        assert (again["changed"], again["plan"]) == (False, [])
        if data.draw(st.booleans()):
            sim.reboot()
            later = sim.do(**options)
            assert not (done["changed"] and options["persist"] and later["changed"])
        sim.do(state="original")
        assert sim.snapshot() == before


@given(st.sampled_from(NAMES), st.sampled_from(sorted(spec.CONSENT)))
def test_no_word_lifts_what_the_host_cannot_be_without(name: str, word: str) -> None:
    found = world(name)
    for address, device in found.devices.items():
        never = [each for each in device["hazards"] if each["severity"] != "refuse"]
        if never:
            todo = planned(found, {"devices": [address], "group_policy": "whole_group", "consent": [word]})
            assert todo is None or todo.waiting or todo.refused or {each.result for each in todo.rows} == {"already"}
