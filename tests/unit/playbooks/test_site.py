# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the playbook site says, and to whom: the real one and the real roles, with stand-ins for modules."""

from __future__ import annotations

import os
import pathlib
import subprocess
import typing as t

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
SECRET = "what-nobody-may-see"
WEB: dict[str, t.Any] = {"name": "web", "host": "beta", "graphics": {"type": "vnc", "password": SECRET}}
THERE = {"name": "web", "uuid": "71413ad7-e2ab-5ee6-85d6-988789681e72", "owned": True, "migration": None}
STAND_IN = """
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return {"guests": task_vars["guests_here"], **task_vars["played"].get(NAME, {})}
"""
PLAYED = {
    "phyllome_vm_info": {},
    "host_facts": {"ansible_facts": {"phyllome_host": {"evacuated": None}}},
    "phyllome_vm": {"changed": False, "results": []},
    "vm_migrate": {"changed": True},
}


def site(folder: pathlib.Path, **variables: t.Any) -> str:
    """What a run says, which has to fail; ``web`` is on alpha."""
    virt = folder / "ansible_collections" / "phyllome" / "virt"
    (virt / "plugins" / "action").mkdir(parents=True)
    for name in ("plugins/filter", "plugins/module_utils", "plugins/modules", "roles", "playbooks"):
        (virt / name).symlink_to(ROOT / name)
    for name in PLAYED:
        (virt / "plugins" / "action" / f"{name}.py").write_text(f"NAME = {name!r}\n{STAND_IN}")
    hosts = {"alpha": {"guests_here": [THERE]}, "beta": {"guests_here": []}}
    common = {"ansible_connection": "local", "played": PLAYED, **variables}
    (folder / "inventory.yml").write_text(yaml.safe_dump({"phyllome_hosts": {"hosts": hosts, "vars": common}}))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": f"{folder}:{os.environ.get('ANSIBLE_COLLECTIONS_PATH', '')}",
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_HOME": str(folder / "home"),
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["ansible-playbook", "-v", "-i", "inventory.yml", "phyllome.virt.site", "--tags", "guests"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    return done.stdout + done.stderr


def test_a_move_that_could_not_even_begin_fails_the_run_and_no_secret_is_shown(tmp_path):
    said = site(tmp_path, phyllome_guests=[WEB], migration_chain="flat")
    assert SECRET not in said
    end = said[said.index("TASK [Say at the end what could not be done]") :]
    assert "value of migration_chain must be one of: keep, flatten" in end


def test_guests_without_names_are_refused_in_words_that_show_no_secret(tmp_path):
    said = site(tmp_path, phyllome_guests=[WEB, {"graphics": {"password": SECRET}}])
    assert SECRET not in said
    assert "phyllome_guests: every guest needs a name; entry 2 has none, but graphics." in said
