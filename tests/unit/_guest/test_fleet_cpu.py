# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cpu: fleet``: the same CPU wherever the guest is, and another one only at a power cycle."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import plan, spec
from ansible_collections.phyllome.virt.plugins.module_utils._guest.read_host import Host

BEFORE: dict[str, t.Any] = {"model": "EPYC", "features": {"avx2": "require", "clwb": "require", "sha-ni": "disable"}}
AFTER: dict[str, t.Any] = {"model": "EPYC", "features": {"avx2": "require", "sha-ni": "disable", "la57": "require"}}


def decide(lab, there, everywhere, world=None, **options):
    wanted = spec.accept({"name": "web", "cpu": "fleet", **options}, everywhere)
    return plan.decide(wanted, there, lab.world(wanted, there, **(world or {})))


def features(root):
    return {one.get("name"): one.get("policy") for one in root.findall("cpu/feature")}


def test_a_new_guest_gets_exactly_what_every_host_can_do(lab):
    decision = decide(lab, None, BEFORE)
    cpu = decision.config.find("cpu")
    assert (cpu.get("mode"), cpu.findtext("model"), cpu.get("match")) == ("custom", "EPYC", "exact")
    assert features(decision.config) == BEFORE["features"]
    assert not decide(lab, lab.after(decision), BEFORE).plan


def test_another_cpu_waits_for_the_next_power_cycle_and_leaves_nothing_of_the_old_one_on(lab):
    there = lab.after(decide(lab, None, BEFORE))
    decision = decide(lab, there, AFTER)
    assert [(change.path, change.when) for change in decision.plan] == [("cpu.features", "next_boot")]
    assert features(decision.config) == {**AFTER["features"], "clwb": "disable"}

    waiting = lab.of(decision.config, there.live)
    again = decide(lab, waiting, AFTER)
    assert not again.plan
    assert [pending["path"] for pending in again.pending] == ["cpu.features"]


def test_a_feature_that_only_went_away_waits_as_well(lab):
    there = lab.after(decide(lab, None, BEFORE))
    less: dict[str, t.Any] = {"model": "EPYC", "features": {"avx2": "require", "sha-ni": "disable"}}
    decision = decide(lab, there, less)
    assert features(decision.config)["clwb"] == "disable"
    assert [pending["path"] for pending in decide(lab, lab.of(decision.config, there.live), less).pending] == [
        "cpu.features"
    ]


def test_the_hosts_list_of_usable_models_does_not_stand_against_it(lab, monkeypatch):
    host = Host(**{**vars(lab.host), "offers": {"cpu.model": frozenset({"qemu64"}), "cpu.mode": frozenset({"custom"})}})
    assert decide(lab, None, BEFORE, {"host": host}).plan
    with pytest.raises(PhyllomeError, match="cpu.model: EPYC: this host offers qemu64"):
        wanted = spec.accept({"name": "web", "cpu": {"mode": "custom", "model": "EPYC"}})
        plan.decide(wanted, None, lab.world(wanted, None, host=host))


@pytest.mark.parametrize(
    ("cpu", "everywhere", "message"),
    [
        ("fleet", None, "cpu: fleet is declared, and fleet_cpu is not given: .*Run the playbook phyllome.virt.site"),
        ({"mode": "fleet", "model": "EPYC"}, BEFORE, "cpu.model: EPYC with cpu.mode: fleet: .*Leave model out"),
        ({"mode": "fleet", "features": {"vme": True}}, BEFORE, "cpu.features: .* with cpu.mode: fleet"),
        ("fleets", BEFORE, "value of mode must be one of: .*fleet, got: fleets"),
        ("fleet", {"model": "EPYC", "features": {"a'b": "require"}}, "is not the name of a CPU feature"),
    ],
)
def test_what_is_refused(cpu, everywhere, message):
    with pytest.raises(PhyllomeError, match=message):
        spec.accept({"name": "web", "cpu": cpu}, everywhere)


def test_the_short_form_is_the_mode():
    assert spec.accept({"name": "web", "cpu": "host-model"}).fields["cpu"] == {"mode": "host-model"}
