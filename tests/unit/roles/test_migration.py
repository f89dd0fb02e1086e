# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the role migration sends a guest."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import typing as t

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
    (*dummy, task) = yaml.safe_load(TASKS.read_text())
    known = {
        "hostvars": {"beta": beta},
        "migration_move": {"destination": "beta"},
        "migration_transport": "tls",
    }
    address = jinja2.Template(task["vars"]["__migration_address"]).render(known).strip()
    move = jinja2.Template(task["phyllome.virt.vm_migrate"]["destination_uri"])
    assert move.render({**known, "__migration_address": address}) == uri


STAND_IN = """
import json
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        with open("calls", "a") as file:
            file.write(json.dumps(dict(self._task.args)) + "\\n")
        return {"changed": True}
"""
MOVES = [{"guest": "db", "destination": "beta"}, {"guest": "web", "destination": "beta"}]


def run(folder: pathlib.Path, **variables: t.Any) -> tuple[str, dict[str, dict[str, t.Any]]]:
    """What the role says on alpha, and what it asks of vm_migrate, by guest."""
    virt = folder / "ansible_collections" / "phyllome" / "virt"
    (virt / "plugins" / "action").mkdir(parents=True)
    for name in ("plugins/modules", "plugins/module_utils", "roles"):
        (virt / name).symlink_to(TASKS.parents[3] / name)
    (virt / "plugins" / "action" / "vm_migrate.py").write_text(STAND_IN)
    role = {"name": "phyllome.virt.migration"}
    book = [
        {"hosts": "alpha", "gather_facts": False, "tasks": [{"ansible.builtin.import_role": role, "vars": variables}]}
    ]
    (folder / "book.yml").write_text(yaml.safe_dump(book))
    (folder / "inventory").write_text("[all]\nalpha\nbeta\n[all:vars]\nansible_connection=local\n")
    environment = {
        **os.environ,
        "PWD": str(folder),
        "ANSIBLE_COLLECTIONS_PATH": f"{folder}:{os.environ.get('ANSIBLE_COLLECTIONS_PATH', '')}",
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_HOME": str(folder / "home"),
    }
    environment.pop("PYTHONPATH", None)
    said = subprocess.run(
        ["ansible-playbook", "-i", "inventory", "book.yml"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    ).stdout  # fmt: skip
    calls = folder / "calls"
    made = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    return said, {one["name"]: one for one in made}


def test_what_differs_for_a_guest_is_asked_for_that_guest_alone(tmp_path):
    own = {"db": {"storage": {"data": "shared"}, "truth": "source", "shutdown": {"timeout": 900}}, "other": {}}
    moves = [*MOVES, {"guest": "cache", "destination": "beta", "storage": "shared"}]
    said, calls = run(tmp_path, migration_moves=moves, migration_guests=own, migration_shutdown={"timeout": 5})
    assert set(calls) == {"db", "web", "cache"}, said
    asked = {guest: [one["storage"], one.get("truth"), one["shutdown"]] for guest, one in calls.items()}
    assert asked == {
        "db": [{"data": "shared"}, "source", {"timeout": 900}],
        "web": ["copy", None, {"timeout": 5}],
        "cache": ["shared", None, {"timeout": 5}],
    }


@pytest.mark.parametrize("wrong", ["shared", {"mode": "cold"}, None])
def test_what_cannot_differ_for_a_guest_is_refused_before_anything_moves(tmp_path, wrong):
    said, calls = run(tmp_path, migration_moves=MOVES, migration_guests={"db": {"storage": "shared"}, "web": wrong})
    assert f"migration_guests: web: {json.dumps(wrong)} cannot be" in said.replace('\\"', '"'), said
    assert "storage, truth and shutdown" in said and "Write for instance" in said
    assert calls == {}
