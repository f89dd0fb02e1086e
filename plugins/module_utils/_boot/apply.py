# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring the kernel's arguments to what is declared: read, plan, do what the plan says, read again.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import os
import typing as t

from .._core.errors import PhyllomeError
from .._core.files import clear
from .._core.files import write as _write
from .._core.plan import Change
from .._core.program import run
from .._core.sysfs import Tree
from . import spec
from .plan import Todo, amiss, foretold, plan, reboot_required
from .world import RECORD, Record, Runner, World, read, read_language

_TIMEOUT = 600
"""Seconds: grub-mkconfig looks at every disk, and an image is compressed on a slow machine."""


def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The module kernel_cmdline."""
    language = read_language(Tree("/", "root"))
    return converge("/", spec.wanted(params), check_mode, lambda argv: run(argv, _TIMEOUT, language=language))


def converge(root: str, wanted: spec.Wanted, check_mode: bool, runner: Runner) -> dict[str, t.Any]:
    """Bring the machine below a directory to what is wanted.

    Args:
        root: directory that holds ``sys``, ``proc``, ``boot`` and ``etc``.
        wanted: arguments.
        check_mode: whether to stop after the plan.
        runner: runs a program, returns what it printed, and raises PhyllomeError when it fails.
    """
    before = after = read(Tree(root, "root"), runner)
    todo = plan(wanted, before)
    if not check_mode:
        if todo.plan:
            _apply(root, before, todo, runner)
            after = read(Tree(root, "root"), runner)
            wrong = amiss(todo, after)
            if wrong:
                raise PhyllomeError(
                    "The next boot does not have the arguments that were set",
                    "; ".join(wrong),
                    "See what else writes the boot loader's configuration.",
                    plan=todo.plan.as_list(),
                )
        if after.record != todo.afterwards:
            _save(root, todo.afterwards)
    return {
        "changed": todo.plan.changed,
        "loader": before.loader,
        "running": None if before.running is None else list(before.running),
        "configured": {path: list(line) for path, line in after.lines.items()},
        "reboot_required": reboot_required(wanted, foretold(todo, before) if check_mode else after),
        "plan": todo.plan.as_list(),
        "diff": _diff(todo),
        "warnings": [f"{name} is left alone: {why}" for name, why in todo.conflicts.items()],
    }


def _apply(root: str, world: World, todo: Todo, runner: Runner) -> None:
    _save(root, todo.during)
    for path in world.sources:
        clear(root, path)
    written: list[Change] = []
    try:
        for change in todo.plan:
            if change.action == "write":
                written.append(change)
                _write(root, change.args["path"], change.after)
            elif change.action == "run":
                runner(change.args["argv"])
        if any(change.action == "run" for change in todo.plan):
            os.sync()  # programs do not wait until what they wrote would survive a power cut
    except PhyllomeError as exc:
        for change in written:
            _write(root, change.args["path"], change.before)
        _save(root, world.record)
        exc.facts["plan"] = todo.plan.as_list()
        raise


def _save(root: str, record: Record) -> None:
    _write(root, RECORD, record.dump() if record.names else None, 0o600)


def _diff(todo: Todo) -> list[dict[str, t.Any]]:
    """The arguments first, then every file as a text."""
    args = [change for change in todo.plan if change.action != "write"]
    lines = {
        side: "".join(f"{each.path}: {getattr(each, side)}\n" for each in args if getattr(each, side) is not None)
        for side in ("before", "after")
    }
    shown = [{"before_header": "kernel arguments", "after_header": "kernel arguments", **lines}] if args else []
    for change in todo.plan:
        if change.action == "write":
            texts = {"before": change.before or "", "after": change.after or ""}
            shown.append({"before_header": change.path, "after_header": change.path, **texts})
    return shown
