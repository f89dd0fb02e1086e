# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of ``vm_migrate``: starts the move, and shows how far it is."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

WAIT = 2
"""Seconds that one question waits on the host for the end of the move."""
EVERY = 10.0
"""Seconds after which a line is shown though the last one is still nearly true."""
PATIENCE = 60.0
"""Seconds for a connection that was lost to come back; the move does not need it."""


def line(told: dict[str, t.Any]) -> str:
    """What a move tells, for people. Pure; what is not known is left out."""
    parts = [f"{told['name']}: {told['source']} -> {told['destination']}", str(told["phase"])]
    shown: tuple[tuple[str, str], ...] = (
        ("percent", "{} %"),
        ("mib_s", "{} MiB/s"),
        ("remaining_mib", "{} MiB left"),
        ("dirty_mib_s", "guest writes {} MiB/s"),
        ("slowed_percent", "slowed down by {} %"),
        ("downtime_ms", "downtime about {} ms"),
    )
    return ", ".join(parts + [form.format(told[name]) for name, form in shown if told.get(name) is not None])


def is_news(told: dict[str, t.Any], before: dict[str, t.Any] | None, seconds: float) -> bool:
    """Whether a line is worth being shown. Pure.

    Args:
        told: what the move tells.
        before: what it told when the last line was shown.
        seconds: since then.
    """
    if before is None or told["phase"] != before["phase"] or seconds >= EVERY:
        return True
    return bool(told.get("percent", 0) >= before.get("percent", 0) + 10)


def orphaned() -> bool:
    """Whether the Ansible that this worker works for was killed: the worker goes on with the items of its loop.

    A later run may want these guests elsewhere, and knows nothing of the worker.
    """
    parent = multiprocessing.parent_process()
    return parent is not None and parent.pid != os.getppid()


class ActionModule(ActionBase):
    """Runs the module. Check mode and ``async`` are the module's alone."""

    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        if orphaned():
            result.update(
                failed=True, msg="Nothing more is moved: the Ansible that wanted it was killed. Run it again."
            )
            return result
        detach = not (self._task.async_val or self._task.check_mode)
        arguments = {**self._task.args, "_detach": True} if detach else self._task.args
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val))
        under_way = result.pop("under_way", None)
        if under_way is not None:
            result.update(self._follow(under_way))
        return result

    def _follow(self, under_way: dict[str, t.Any]) -> dict[str, t.Any]:
        """Show how far the move is until it has ended; its result."""
        # one question for the whole answer: wait for the end of the process, but not longer than this, and look
        ask = (
            f"timeout {WAIT} tail -s 0.05 --pid={int(under_way['pid'])} -f /dev/null; "
            f"echo $?; cat {shlex.quote(under_way['progress'])}"
        )
        shown: dict[str, t.Any] | None = None
        shown_at = heard_at = time.monotonic()
        while True:
            try:
                done = self._low_level_execute_command(ask, sudoable=True)
            except AnsibleConnectionFailure:
                if time.monotonic() > heard_at + PATIENCE:
                    raise
                self._display.display("The host does not answer; the move goes on without us.", stderr=True)
                self._connection.reset()
                time.sleep(WAIT)
                continue
            heard_at = time.monotonic()
            status, dummy, text = done["stdout"].strip().partition("\n")
            told = self._parsed(text)
            if status.strip() != "124":  # timeout(1): it still runs
                return self._ended(told)
            if told and is_news(told, shown, heard_at - shown_at):
                self._display.display(line(told), stderr=True)
                shown, shown_at = told, heard_at

    @staticmethod
    def _parsed(text: str) -> dict[str, t.Any]:
        try:
            told = json.loads(text)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    @staticmethod
    def _ended(told: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result, in the answer of the process that has moved the guest."""
        answer = told.get("answer") or {}
        if "result" in answer:
            return dict(answer["result"])
        if "error" in answer:
            return {"failed": True, "msg": answer["msg"], **answer["error"]["facts"]}
        if "crash" in answer:
            return {
                "failed": True,
                "msg": f"The process that moved the guest crashed: {answer['crash'].strip().splitlines()[-1]}. "
                "Run it again: it goes on from what both hosts say. And please report it, with the traceback.",
                "exception": answer["crash"],
                "phase": "moving",
            }
        return {
            "failed": True,
            "msg": "The process that moved the guest was killed: it ended without a result. "
            "Run it again: it goes on from what both hosts say.",
            "phase": "moving",
        }
