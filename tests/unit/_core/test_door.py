# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way to fail, and the door where it becomes fail_json."""

from __future__ import annotations

import io
import json
import typing as t

import pytest
from ansible.module_utils import basic

from ansible_collections.phyllome.virt.plugins.module_utils._core import door
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError


def test_an_error_reads_as_sentences():
    error = PhyllomeError("disks.root: 'x' is no size", "a size has a unit.", "Write 2GiB.", plan=[1])
    assert str(error) == "disks.root: 'x' is no size: a size has a unit. Write 2GiB."
    assert (error.what, error.why, error.remedy, error.facts) == (
        "disks.root: 'x' is no size",
        "a size has a unit.",
        "Write 2GiB.",
        {"plan": [1]},
    )


@pytest.fixture
def module(monkeypatch, capsys) -> t.Callable[..., dict[str, t.Any]]:
    def run(body: door.Body, params: dict[str, t.Any] | None = None, **constraints: t.Any) -> dict[str, t.Any]:
        given = {"_ansible_check_mode": True, "_ansible_remote_tmp": "/tmp", "_ansible_keep_remote_files": False}
        arguments = {"ANSIBLE_MODULE_ARGS": {**given, **(params or {})}}
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps(arguments).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        # How a warning travels differs between versions of ansible-core, and where a controller is about.
        warned: list[str] = []
        monkeypatch.setattr(basic.AnsibleModule, "warn", lambda self, warning: warned.append(warning))
        spec = {
            "name": {"type": "str"},
            "uuid": {"type": "str"},
            "seed": {"type": "dict", "options": {"user_data": {"type": "raw"}}},
            "guests": {"type": "list", "elements": "dict"},
        }
        serve: t.Callable[..., t.Any] = door.serve  # to mypy, nothing comes after what never returns
        with pytest.raises(SystemExit) as end:
            serve(spec, body, **constraints)
        result = json.loads(capsys.readouterr().out)
        return {**result, "status": end.value.code, "warned": warned}

    return run


def test_a_result_is_handed_over(module):
    seen = []

    def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
        seen.append((params["name"], check_mode))
        return {"changed": True, "guest": {"name": "web"}, "warnings": ["mind the gap"]}

    result = module(body, {"name": "web"})
    assert seen == [("web", True)]
    assert (result["status"], result["changed"], result["guest"]) == (0, True, {"name": "web"})
    assert result["warned"] == ["mind the gap"]


def test_an_error_is_one_message_with_facts(module):
    def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
        raise PhyllomeError("name: 'a b' is not valid", "no spaces", "Rename it.", blockers=["x"], warnings=["late"])

    result = module(body)
    assert (result["status"], result["failed"], result["blockers"]) == (1, True, ["x"])
    assert result["msg"] == "name: 'a b' is not valid: no spaces. Rename it."
    assert result["warned"] == ["late"]


def test_constraints_are_ansibles(module):
    result = module(lambda params, check_mode: {}, {"name": "a", "uuid": "b"}, mutually_exclusive=[("name", "uuid")])
    assert "mutually exclusive" in result["msg"]


def test_a_bug_is_not_dressed_up(monkeypatch):
    arguments = {"ANSIBLE_MODULE_ARGS": {"_ansible_remote_tmp": "/tmp", "_ansible_keep_remote_files": False}}
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps(arguments).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with pytest.raises(KeyError):
        door.serve({}, lambda params, check_mode: params["nothing"])


def test_secrets_are_shown_nowhere_and_what_is_none_stays_readable(module, monkeypatch):
    logged: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "log", lambda self, msg, log_args=None: logged.append(f"{msg} {log_args}"))
    text = "#cloud-config\npassword: hunter2\n"
    given = {
        "name": "web",
        "seed": {"user_data": {"users": [{"name": "web"}], "password": "hunter2"}},
        "guests": [{"name": "db", "seed": {"user_data": text}}],
    }

    def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
        assert params["seed"] == given["seed"]
        return {"changed": False, "guest": {"name": "web"}, "said": f"so {text}"}

    result = module(body, given, secret=("user_data",))
    assert result["guest"] == {"name": "web"}
    if "invocation" in result:  # ansible-core 2.21 has it only when asked
        assert result["invocation"]["module_args"]["name"] == "web"
        assert result["invocation"]["module_args"]["guests"][0]["name"] == "db"
    assert "hunter2" not in json.dumps(result)

    def fails(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
        raise PhyllomeError("no", text, "do")

    result = module(fails, given, secret=("user_data",))
    assert "hunter2" not in json.dumps(result)
    assert logged
    assert "hunter2" not in "".join(logged)
