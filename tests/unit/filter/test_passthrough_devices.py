# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that are chosen by what they are."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.phyllome.virt.plugins.filter.passthrough_devices import FilterModule

choose = FilterModule().filters()["passthrough_devices"]
CAPTURES = pathlib.Path(__file__).parents[1] / "captures"
FREE = "[?class_name=='vga' && !hazards].address"


@pytest.fixture
def devices():
    return json.loads((CAPTURES / "amd-desktop-two-gpus" / "facts.json").read_text())["devices"]


def test_a_device_stays_chosen_when_a_guest_has_it(devices):
    (card,) = choose(devices, FREE, 1)
    found = next(device for device in devices if device["address"] == card)
    found["driver"] = "vfio-pci"
    found["hazards"] = [{"code": "other_guest"}, {"code": "opened"}]
    assert choose(devices, FREE, 1) == [card]
    found["hazards"].append({"code": "no_reset"})
    with pytest.raises(AnsibleFilterError):
        choose(devices, FREE)


def test_a_device_of_the_host_that_somebody_uses_is_not_chosen(devices):
    (card,) = choose(devices, FREE)
    next(device for device in devices if device["address"] == card)["hazards"] = [{"code": "opened"}]
    with pytest.raises(AnsibleFilterError, match="phyllome_passthrough: select"):
        choose(devices, FREE)


@pytest.mark.parametrize(("expression", "count"), [(FREE, 2), ("[?", None), ("[].class", None)])
def test_what_yields_something_else_is_an_error(devices, expression, count):
    with pytest.raises(AnsibleFilterError, match="phyllome_passthrough: select"):
        choose(devices, expression, count)
