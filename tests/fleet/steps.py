"""Runs on a host: move a guest, and die before the step that was named.

Usage: python3 steps.py STEP < PARAMETERS

STEP is a number, or the name of a step, which is the first one of that name then. Beside it lies the collection as it is
installed. Whatever changes a host is a step: calls of libvirt that write, and files that are written, renamed or removed.
Prints the names of the steps, or dies by SIGKILL before step STEP.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import types
import typing as t

ROOM = "ansible_collections.phyllome.virt.plugins"
WRITES = {
    "virDomain": (
        "setMetadata", "setAutostart", "createWithFlags", "create", "undefineFlags", "destroy", "resume",
        "snapshotCreateXML",
    ),
    "virConnect": ("defineXML", "storagePoolCreateXML"),
    "virStoragePool": ("createXML",),
    "virStorageVol": ("upload", "delete"),
}  # fmt: skip


class Steps:
    """Counts steps, and dies before one of them."""

    def __init__(self, last: str) -> None:
        self.last = last
        self.done: list[str] = []

    def before(self, call: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def stepping(*arguments: t.Any, **options: t.Any) -> t.Any:
            if str(arguments[-1]).endswith(".progress"):  # for people: nothing depends on it
                return call(*arguments, **options)
            if self.last in (str(len(self.done)), call.__name__):
                os.kill(os.getpid(), signal.SIGKILL)
            self.done.append(call.__name__)
            return call(*arguments, **options)

        return stepping


def main() -> None:
    last = sys.argv[1]
    door = types.ModuleType("door")
    seen: dict[str, t.Any] = {}
    door.serve = lambda spec, body, *rest, **more: seen.update(spec=spec)  # type: ignore[attr-defined]
    sys.modules[f"{ROOM}.module_utils._core.door"] = door
    module = __import__(f"{ROOM}.modules.vm_migrate", fromlist=["main"])
    module.main()
    given = json.load(sys.stdin)
    parameters = {name: given.get(name, option.get("default")) for name, option in seen["spec"].items()}

    import libvirt

    steps = Steps(last)
    for kind, names in WRITES.items():
        for name in names:
            setattr(getattr(libvirt, kind), name, steps.before(getattr(getattr(libvirt, kind), name)))
    for where, name in ((os, "rename"), (os, "unlink"), (shutil, "rmtree")):
        setattr(where, name, steps.before(getattr(where, name)))
    move = __import__(f"{ROOM}.module_utils._migration.move", fromlist=["move"]).move
    result = move(parameters, False)
    print(json.dumps({"steps": steps.done, "result": result}))


main()
