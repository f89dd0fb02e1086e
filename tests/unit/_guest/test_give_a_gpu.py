# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide docs/give-a-gpu.md: its blocks are valid, choose what they say, and run what there is."""

from __future__ import annotations

import importlib
import json
import pathlib
import re

import jmespath
import yaml

from ansible_collections.phyllome.virt.plugins.module_utils._guest import spec

ROOT = pathlib.Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "give-a-gpu.md").read_text()
BLOCKS = {kind: re.findall(rf"^```{kind}\n(.+?)\n```$", GUIDE, re.MULTILINE | re.DOTALL) for kind in ("sh", "yaml")}
SPEC = yaml.safe_load((ROOT / "roles/passthrough/meta/argument_specs.yml").read_text())["argument_specs"]["main"]
CAPTURE = json.loads((ROOT / "tests/unit/captures/amd-desktop-two-gpus/facts.json").read_text())


def test_every_block_is_one_that_is_tried():
    assert GUIDE.count("```") == 2 * (len(BLOCKS["sh"]) + len(BLOCKS["yaml"])) >= 16
    known = [sorted(yaml.safe_load(block)) for block in BLOCKS["yaml"]]
    assert known == [["phyllome_passthrough"], ["phyllome_guests"], ["passthrough_reboot"], ["phyllome_passthrough"]]


def test_the_commands_are_of_playbooks_and_modules_that_there_are():
    lines = [line for block in BLOCKS["sh"] for line in block.splitlines()]
    for line in lines:
        playbook = re.fullmatch(r"ansible-playbook -i inventory\.yml phyllome\.virt\.(\w+)( --check --diff)?", line)
        module = re.fullmatch(r"ansible alpha -i inventory\.yml -m phyllome\.virt\.(\w+)( -a state=original)?", line)
        if playbook:
            assert (ROOT / "playbooks" / f"{playbook.group(1)}.yml").is_file()
        else:
            assert module, line
            found = importlib.import_module(f"ansible_collections.phyllome.virt.plugins.modules.{module.group(1)}")
            options = yaml.safe_load(found.DOCUMENTATION).get("options", {})
            assert not module.group(2) or "original" in options["state"]["choices"]
    assert len(lines) == 6


def test_the_devices_are_those_that_the_guide_speaks_of():
    (entry,) = yaml.safe_load(BLOCKS["yaml"][0])["phyllome_passthrough"]
    chosen = jmespath.search(entry["select"], CAPTURE["devices"])
    assert len(chosen) == entry["expect_count"]
    (card,) = [device for device in CAPTURE["devices"] if device["address"] in chosen]
    card_and_companions = [card["address"], *card["functions"]]
    group = next(group for group in CAPTURE["groups"] if group["id"] == card["group"])
    assert group["endpoints"] == card_and_companions, "companions is enough"
    keys = [each["identity"]["key"] for each in CAPTURE["devices"] if each["address"] in card_and_companions]
    (guest,) = yaml.safe_load(BLOCKS["yaml"][1])["phyllome_guests"]
    assert [device["pci"] for device in guest["hostdevs"] if "pci" in device] == keys


def test_the_guest_is_one_that_phyllome_vm_takes():
    (guest,) = yaml.safe_load(BLOCKS["yaml"][1])["phyllome_guests"]
    wanted = spec.accept({name: value for name, value in guest.items() if name != "host"})
    assert [bool(device.rule) for device in wanted.devices["hostdevs"]] == [False, False, True]


def test_the_role_knows_the_options_of_the_entries():
    entry = SPEC["options"]["phyllome_passthrough"]["options"]
    for block in (BLOCKS["yaml"][0], BLOCKS["yaml"][3]):
        for given in yaml.safe_load(block)["phyllome_passthrough"]:
            assert set(given) <= set(entry)
            assert "state" not in given or given["state"] in entry["state"]["choices"]
    assert yaml.safe_load(BLOCKS["yaml"][2])["passthrough_reboot"] in SPEC["options"]["passthrough_reboot"]["choices"]
