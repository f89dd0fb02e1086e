# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the role migration sends a guest."""

from __future__ import annotations

import pathlib

import jinja2
import pytest
import yaml

TASKS = pathlib.Path(__file__).resolve().parents[3] / "roles" / "migration" / "tasks" / "main.yml"


@pytest.mark.parametrize(
    ("beta", "uri"),
    [
        ({}, "qemu+tls://beta/system"),
        ({"ansible_host": "192.0.2.12"}, "qemu+tls://192.0.2.12/system"),
        ({"ansible_host": "192.0.2.12", "hypervisor_migration_address": "fd00::2"}, "qemu+tls://[fd00::2]/system"),
        # the default of the role hypervisor, written down
        ({"ansible_host": "192.0.2.12", "hypervisor_migration_address": ""}, "qemu+tls://192.0.2.12/system"),
    ],
)
def test_a_move_goes_to_the_address_for_migrations_or_else_to_the_host(beta, uri):
    (task,) = yaml.safe_load(TASKS.read_text())
    known = {
        "hostvars": {"beta": beta},
        "migration_move": {"destination": "beta"},
        "migration_transport": "tls",
    }
    address = jinja2.Template(task["vars"]["__migration_address"]).render(known).strip()
    move = jinja2.Template(task["phyllome.virt.vm_migrate"]["destination_uri"])
    assert move.render({**known, "__migration_address": address}) == uri
