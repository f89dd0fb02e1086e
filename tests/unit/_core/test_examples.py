# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules' documentation shows can be written: every option of every example, and the guests themselves."""

from __future__ import annotations

import importlib
import pathlib
import typing

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.phyllome.virt.plugins import modules
from ansible_collections.phyllome.virt.plugins.module_utils._guest import spec

NAMES = sorted(path.stem for path in pathlib.Path(list(modules.__path__)[0]).glob("[a-z]*.py"))


def examples(name):
    module = importlib.import_module(f"{modules.__name__}.{name}")
    tasks = yaml.safe_load(module.EXAMPLES)
    return module, [task[f"phyllome.virt.{name}"] or {} for task in tasks if f"phyllome.virt.{name}" in task]


@pytest.mark.parametrize("name", NAMES)
def test_options_of_examples_are_options(name, monkeypatch):
    module, shown = examples(name)
    told: dict[str, typing.Any] = {}
    monkeypatch.setattr(module, "serve", lambda options, *rest, **more: told.update(options=options, more=more))
    module.main()
    rules = {rule: told["more"][rule] for rule in ("mutually_exclusive", "required_one_of") if rule in told["more"]}
    validator = ArgumentSpecValidator(told["options"], **rules)
    assert shown
    for parameters in shown:
        assert validator.validate(parameters).error_messages == []


def test_guests_of_examples_are_accepted():
    accepted = [
        spec.accept(guest, parameters.get("fleet_cpu"))
        for parameters in examples("phyllome_vm")[1]
        for guest in spec.guests(parameters)
    ]
    assert len(accepted) > 10
