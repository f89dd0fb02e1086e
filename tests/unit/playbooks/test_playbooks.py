# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What playbooks say, and to whom: the real ones and the real roles, with stand-ins for modules."""

from __future__ import annotations

import json
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


def play(folder: pathlib.Path, book: str, *arguments: str, **variables: t.Any) -> subprocess.CompletedProcess[str]:
    """A run of a playbook; ``web`` is on alpha."""
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
        "PWD": str(folder),
        "ANSIBLE_COLLECTIONS_PATH": f"{folder}:{os.environ.get('ANSIBLE_COLLECTIONS_PATH', '')}",
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_HOME": str(folder / "home"),
    }
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        ["ansible-playbook", "-v", "-i", "inventory.yml", f"phyllome.virt.{book}", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


def site(folder: pathlib.Path, **variables: t.Any) -> str:
    """What a run of site says, which has to fail."""
    done = play(folder, "site", "--tags", "guests", **variables)
    assert done.returncode == 2, done.stdout
    return done.stdout


def test_a_move_that_could_not_even_begin_fails_the_run_and_no_secret_is_shown(tmp_path):
    said = site(tmp_path, phyllome_guests=[WEB], migration_chain="flat")
    assert SECRET not in said
    end = said[said.index("TASK [Say at the end what could not be done]") :]
    assert "value of migration_chain must be one of: keep, flatten" in end


def test_guests_without_names_are_refused_in_words_that_show_no_secret(tmp_path):
    said = site(tmp_path, phyllome_guests=[WEB, {"graphics": {"password": SECRET}}])
    assert SECRET not in said
    assert "phyllome_guests: every guest needs a name; entry 2 has none, but graphics." in said


def test_a_guest_that_is_declared_for_no_host_is_moved_and_nothing_has_to_be_edited(tmp_path):
    said = play(tmp_path, "migrate", "-e", "guest=web", "-e", "to=beta", phyllome_guests=[{"name": "web"}])
    assert said.returncode == 0, said.stdout
    assert "Edit host" not in said.stdout


def test_the_check_up_tells_of_the_hosts_that_it_was_limited_to(tmp_path):
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    said = play(tmp_path, "checkup", "--limit", "alpha,localhost", **away)
    assert said.returncode == 0 and "Without localhost" not in said.stdout, said.stdout
    report = json.loads((tmp_path / "checkup/checkup.json").read_text())
    assert {host["name"]: host["state"] for host in report["hosts"]} == {"alpha": "unreachable"}


def test_the_check_up_says_when_it_is_limited_so_that_it_writes_nothing(tmp_path):
    said = play(
        tmp_path, "checkup", "--limit", "alpha", ansible_port=9, ansible_connection="ssh", ansible_host="127.0.0.1"
    )
    assert "--limit alpha,localhost" in said.stdout and not (tmp_path / "checkup").exists(), said.stdout
