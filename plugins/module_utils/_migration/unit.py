# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A move belongs to a process of its own, in a unit of its own: whoever has asked for it may die.

The process is a fork of the module's, so it has all its code in memory when Ansible deletes the
module, and starts in no time. systemd takes it over as a scope
(https://www.freedesktop.org/wiki/Software/systemd/ControlGroupInterface/, "Scopes"), out of the
login session that it came from.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
import typing as t

from .._core import program
from .._core.errors import PhyllomeError
from .move import move
from .progress import Progress, closed, opened

_SYSTEMD = "/run/systemd/system"
"""sd_booted(3): it is there when systemd runs the host."""
_ENTERS = 10.0


def name(op: str) -> str:
    """The unit of a move."""
    return f"phyllome-mig-{op}.scope"


def apart(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """Move a guest in a process of its own, and wait for it; the body of ``vm_migrate``.

    With ``_detach`` it is not waited for once something moves: then the result has only
    ``under_way``, with the file that tells about it.

    Raises:
        PhyllomeError: as ``move``; or the process was killed.
    """
    if check_mode:
        return move(params, check_mode)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _live(writing, params)
    os.close(writing)
    with open(reading, encoding="utf-8") as stream:
        for line in stream:
            told = json.loads(line)
            if "answer" in told:
                os.waitpid(child, 0)
                return opened(told["answer"])
            if params["_detach"]:
                return {"changed": False, "under_way": {**told, "pid": child}}
    os.waitpid(child, 0)
    raise killed(params["name"] or params["uuid"])


def killed(guest: str) -> PhyllomeError:
    """What is said when a move's process is gone without a word."""
    return PhyllomeError(
        f"The process that moved the guest {guest} was killed",
        "it ended without a result",
        "Run it again: it goes on from what both hosts say.",
        phase="moving",
    )


def _live(writing: int, params: dict[str, t.Any]) -> t.NoReturn:
    """What the process does, from its beginning to its end."""
    try:
        os.setsid()  # what kills Ansible's session or terminal does not hear of it
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # ssh waits until nobody has these any more
            os.dup2(nothing, stream)
        warnings: list[str] = []

        def tell(told: dict[str, t.Any]) -> None:
            with contextlib.suppress(BrokenPipeError):
                os.write(writing, (json.dumps(told) + "\n").encode())

        def begun(path: str, op: str | None, what: str) -> None:
            if op is not None:
                warnings.extend(_enter(op, what))
            tell({"progress": path})

        try:
            result = move(params, False, Progress(begun=begun))
            result["warnings"] = [*result.get("warnings", ()), *warnings]
            tell({"answer": {"result": result}})
        except PhyllomeError as exc:
            tell({"answer": closed(exc)})
        except BaseException:
            tell({"answer": {"crash": traceback.format_exc()}})
    finally:
        os._exit(0)


def _enter(op: str, what: str) -> list[str]:
    """Put this process into its unit, where systemd is; what stood against it is a warning, the move goes on.

    Without it only what ends the whole session that the process came from would end it too.
    """
    if not os.path.isdir(_SYSTEMD):
        return []
    unit = name(op)
    properties = [
        "Description", "s", f"phyllome.virt: {what}",
        "PIDs", "au", "1", str(os.getpid()),
        "CollectMode", "s", "inactive-or-failed",
    ]  # fmt: skip
    try:
        program.run(
            [
                "busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
                "org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))",
                unit, "fail", "3", *properties, "0",
            ],
            timeout=_ENTERS,
        )  # fmt: skip
        deadline = time.monotonic() + _ENTERS
        while not _inside(unit):
            if time.monotonic() > deadline:
                raise PhyllomeError(unit, "systemd did not take the process over", "See the journal.")
            time.sleep(0.005)
    except PhyllomeError as exc:
        return [f"The move has no unit of its own, so what ends the session that began it ends it too: {exc.why}"]
    return []


def _inside(unit: str) -> bool:
    with open("/proc/self/cgroup", encoding="ascii", errors="replace") as stream:
        return any(line.rstrip("\n").endswith(f"/{unit}") for line in stream)
