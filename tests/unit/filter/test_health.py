"""What a host has lost, as a playbook asks for it."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.filter.health import FilterModule, health
from ansible_collections.phyllome.virt.tests.unit._host.hosts import host


@pytest.mark.parametrize("silent", [None, {}, {"evacuated": None}])
def test_a_host_that_does_not_answer_is_not_well(silent):
    assert health(host("alpha"), silent) == ["it does not answer"]


def test_a_host_that_has_lost_a_network():
    before, after = host("alpha"), host("alpha")
    assert FilterModule().filters()["health"](before, after) == []
    before["manifest"]["networks"] = {"default": {}, "lan": {}}
    after["manifest"]["networks"] = {"lan": {}}
    assert health(before, after) == ["network default is not active any more"]
