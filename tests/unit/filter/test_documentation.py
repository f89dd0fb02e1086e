# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is documented of a filter can be given by its name."""

from __future__ import annotations

import importlib
import inspect
import pathlib

import pytest
import yaml

FILTERS = sorted(
    path.stem for path in (pathlib.Path(__file__).resolve().parents[3] / "plugins" / "filter").glob("*.py")
)


@pytest.mark.parametrize("name", FILTERS)
def test_options_are_parameters(name):
    plugin = importlib.import_module(f"ansible_collections.phyllome.virt.plugins.filter.{name}")
    (function,) = plugin.FilterModule().filters().values()
    first, *others = inspect.signature(function).parameters.values()
    options = yaml.safe_load(plugin.DOCUMENTATION)["options"]
    assert options.pop("_input")["required"]
    assert [one.name for one in others] == list(options)
    for one in others:
        known = options[one.name]
        assert (one.default is inspect.Parameter.empty) == known.get("required", False), one.name
