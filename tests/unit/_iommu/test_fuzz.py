# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is missing from a tree or garbled in it: no traceback, and no refusal that becomes a permission.

A tree is written once; each example spoils it in a few places and puts it right again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import typing as t

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

MACHINES = ("desktop", "laptop", "server", "sriov", "multipath", "usb_boot", "one_group", "arm", "emulated")
# Hazards with more than one witness, or whose only witness is missed when it is not there. Not among
# them: those where a missing witness is a different and possible machine, such as one where a process
# has ended, or a keyboard was unplugged.
GUARDED = {
    "platform", "root_fs", "boot_disk", "mounted", "swap", "claimed", "mgmt_nic", "nic_used", "primary_gpu", "bus_parent",
    "acs_override",
}  # fmt: skip


class Spoilt:
    """A tree that can be spoilt and put right."""

    def __init__(self, machine: machines.Machine, root: pathlib.Path) -> None:
        self.root = root / "tree"
        self.aside = root / "aside"
        self.aside.mkdir(parents=True)
        machine.write(self.root)
        self.files = sorted(machine.files)
        every = {*machine.files, *machine.links, *machine.directories}
        for path in tuple(every):
            every |= {parent.as_posix() for parent in pathlib.PurePosixPath(path).parents}
        self.paths = sorted(every - {".", "sys"})
        self.before = gather(str(self.root))
        self.hazardous = {
            device["address"] for device in self.before["devices"]
            if GUARDED & {hazard["code"] for hazard in device["hazards"]}
        }  # fmt: skip

    @contextlib.contextmanager
    def spoilt(self, missing: t.Iterable[str], garbled: t.Mapping[str, bytes]) -> t.Iterator[str]:
        undo: list[t.Callable[[], t.Any]] = []
        try:
            for path, content in garbled.items():
                file = self.root / path
                undo.append(functools.partial(file.write_bytes, file.read_bytes()))
                file.write_bytes(content)
            for number, path in enumerate(missing):
                source, target = self.root / path, self.aside / str(number)
                if os.path.lexists(source):
                    source.rename(target)
                    undo.append(functools.partial(target.rename, source))
            yield str(self.root)
        finally:
            for step in reversed(undo):
                step()


@pytest.fixture(scope="module", params=MACHINES)
def spoilt(request, tmp_path_factory) -> Spoilt:
    return Spoilt(getattr(machines, request.param)(), tmp_path_factory.mktemp(request.param))


def check(spoilt: Spoilt, root: str) -> None:
    facts = gather(root)
    assert json.loads(json.dumps(facts)) == facts
    free = {device["address"] for device in facts["devices"] if not device["hazards"]}
    assert not free & spoilt.hazardous
    for group in facts["groups"]:
        if group["state"] in ("bindable", "ready", "shared"):
            assert not {*group["endpoints"]} & spoilt.hazardous


def content(before: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.just(b""),
        st.integers(0, len(before)).map(lambda cut: before[:cut]),
        st.binary(max_size=40),
        st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace") + b"\n"),
    )


RELAXED = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@RELAXED
@given(data=st.data())
def test_a_few_things_missing(spoilt, data):
    missing = data.draw(st.lists(st.sampled_from(spoilt.paths), min_size=1, max_size=4, unique=True))
    with spoilt.spoilt(missing, {}) as root:
        check(spoilt, root)


@RELAXED
@given(data=st.data())
def test_a_few_things_garbled(spoilt, data):
    names = data.draw(st.lists(st.sampled_from(spoilt.files), min_size=1, max_size=4, unique=True))
    garbled = {name: data.draw(content((spoilt.root / name).read_bytes())) for name in names}
    with spoilt.spoilt([], garbled) as root:
        check(spoilt, root)


@settings(RELAXED, max_examples=10)
@given(garbage=st.binary(max_size=100), every=st.integers(1, 5), missing=st.data())
def test_a_ruin_raises_nothing(spoilt, garbage, every, missing):
    gone = missing.draw(st.lists(st.sampled_from(spoilt.paths), max_size=20))
    with spoilt.spoilt(gone, dict.fromkeys(spoilt.files[::every], garbage)) as root:
        facts = gather(root)
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("name", ["laptop", "server"])
def test_everything_once(tmp_path, name):
    """Not by chance: each file, link and directory missing, each file empty."""
    spoilt = Spoilt(getattr(machines, name)(), tmp_path)
    cases: list[tuple[list[str], dict[str, bytes]]] = [([path], {}) for path in spoilt.paths]
    cases += [([], {path: b""}) for path in spoilt.files]
    for missing, garbled in cases:
        with spoilt.spoilt(missing, garbled) as root:
            facts = gather(root, ["devices"])
        free = {device["address"] for device in facts["devices"] if not device["hazards"]}
        assert not free & spoilt.hazardous, (missing, garbled)
