# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role passthrough makes of facts and results."""

from __future__ import annotations

import pathlib

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from ansible_collections.phyllome.virt.plugins.module_utils._iommu.diagnose import REMEDIES
from ansible_collections.phyllome.virt.plugins.module_utils._vfio import spec as vfio_spec

from .test_hypervisor import load

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "passthrough"
DEFAULTS = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
SPEC = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]["main"]


def template(name, **variables):
    known = {**load(ROLE / "vars" / "main.yml"), **variables}
    return Templar(loader=DataLoader(), variables=known).template(known[name])


def looked(table="DMAR", running=(), next_boot=(), state="off", causes=()):
    iommu = {
        "state": state,
        "causes": list(causes),
        "firmware": {"table": table},
        "cmdline": {"running": list(running), "next_boot": None if next_boot is None else list(next_boot)},
    }
    return {"__passthrough_looked": {"ansible_facts": {"phyllome_iommu": {"iommu": iommu}}}}


def test_variables_are_documented():
    assert sorted(DEFAULTS) == sorted(SPEC["options"])
    assert {name: option["default"] for name, option in SPEC["options"].items()} == DEFAULTS
    readme = (ROLE / "README.md").read_text(encoding="utf-8")
    assert [name for name in DEFAULTS if f"`{name}`" not in readme] == []


def test_every_option_of_an_entry_reaches_vfio_bind():
    task = yaml.safe_load((ROLE / "tasks" / "bind.yml").read_text(encoding="utf-8"))[0]["block"][0]
    given = dict(task["phyllome.virt.vfio_bind"])
    options = set(SPEC["options"]["phyllome_passthrough"]["options"])
    assert options == set(vfio_spec.ARGUMENTS) - {"sysfs_root", "initramfs"}
    assert "'later'" in given.pop("initramfs")  # the last of them makes it
    assert set(given) == options - {"select", "expect_count"}  # what they choose are devices
    assert "item.select" in given.pop("devices")
    assert all(text == f"{{{{ item.{name} | default(omit) }}}}" for name, text in given.items())


@pytest.mark.parametrize(
    ("facts", "args", "absent"),
    [
        ({"running": ["intel_iommu=off"]}, {"intel_iommu": "on"}, []),
        ({"running": ["iommu=off", "intel_iommu=on"]}, {"intel_iommu": "on"}, ["iommu"]),
        ({"running": ["iommu=pt"], "next_boot": ["iommu=soft,off"]}, {"intel_iommu": "on"}, ["iommu"]),
        ({"running": ["iommu=pt", "amd_iommu=off"]}, {"intel_iommu": "on"}, []),
        ({"running": [], "next_boot": None}, {"intel_iommu": "on"}, []),
        ({"table": "IVRS", "running": ["amd_iommu=off", "iommu=off"]}, {}, ["amd_iommu", "iommu"]),
        ({"table": "IVRS", "running": ["amd_iommu=fullflush", "iommu=offline"]}, {}, []),
    ],
)
def test_arguments_that_switch_the_iommu_on(facts, args, absent):
    assert template("__passthrough_args", **looked(**facts)) == args
    assert list(template("__passthrough_absent", **looked(**facts))) == absent


def test_only_what_an_argument_or_a_reboot_does_away_with_is_tried():
    for cause in REMEDIES:
        left = template("__passthrough_incurable", **looked(causes=[cause]))
        assert left == ([] if cause in ("disabled_on_cmdline", "needs_intel_iommu_on", "reboot_pending") else [cause])


@pytest.mark.parametrize(
    ("facts", "fading"),
    [
        ({"running": ["intel_iommu=on"], "next_boot": []}, True),
        ({"running": ["intel_iommu=on"], "next_boot": ["intel_iommu=on"]}, False),
        ({"running": ["intel_iommu=on"], "next_boot": None}, False),
        ({"running": [], "next_boot": []}, False),
    ],
)
def test_an_argument_that_the_next_boot_would_not_have_is_set_again(facts, fading):
    assert template("__passthrough_fading", **looked(state="on", **facts)) is fading


def result(addresses, **arguments):
    module_args = {"state": "bound", "persist": True, **arguments}
    return {
        "item": {},
        "invocation": {"module_args": module_args},
        "devices": [{"address": address, "result": "bound"} for address in addresses],
    }


def test_proof_is_asked_of_what_was_bound_and_of_what_is_to_last():
    bound = {"results": [result(["a", "b"]), result(["c"], persist=False), result(["d"], state="original")]}
    proof = {
        "live": [{"address": "a"}, {"address": "c"}, {"address": "x"}],
        "persistent": [{"address": "b"}, {"address": None}],
    }
    known = {
        "__passthrough_bound": bound,
        "__passthrough_proof": {"ansible_facts": {"phyllome_iommu": {"bindings": proof}}},
    }
    assert template("__passthrough_lost", **known) == ["b"]
    assert template("__passthrough_fleeting", **known) == ["a"]
    assert template("__passthrough_amiss", **known) == ["not bound to VFIO: b", "not bound at the next boot: a"]
    assert template("__passthrough_amiss", **known, __passthrough_lost=[], __passthrough_fleeting=[]) == []


def test_guests_that_are_neither_off_nor_crashed_run():
    states = ["running", "paused", "stopped", "crashed", "suspended", "stopping"]
    guests = {"guests": [{"name": state, "state": state} for state in states]}
    assert sorted(template("__passthrough_running", __passthrough_guests=guests)) == [
        "paused",
        "running",
        "stopping",
        "suspended",
    ]
    assert template("__passthrough_running", __passthrough_guests={"failed": True}) == []
