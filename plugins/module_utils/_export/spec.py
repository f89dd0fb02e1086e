# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the user wants of an export.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import PhyllomeError
from .._core.names import check_name, check_path

ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "name": {"type": "str"},
    "path": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["exported", "imported"], "required": True},
    "snapshot": {"type": "str"},
    "identity": {"type": "str", "choices": ["keep", "new"]},
    "pool": {"type": "str"},
    "uri": {"type": "str", "default": "qemu:///system"},
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is declared.

    Attributes:
        name: of the guest; None for the one in the folder.
        path: of the folder.
        state: exported or imported.
        snapshot: that is exported instead of the guest's present state.
        fresh: whether the imported guest is another one than the exported.
        pool: for the imported disks.
    """

    name: str | None
    path: str
    state: str
    snapshot: str | None
    fresh: bool
    pool: str


def wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    """The module's parameters, checked.

    Raises:
        PhyllomeError: a value that is none, or options that do not belong together.
    """
    exported = params["state"] == "exported"
    for option in ("identity", "pool") if exported else ("snapshot",):
        if params[option] is not None:
            raise PhyllomeError(
                f"{option}: given with state: {params['state']}",
                f"it belongs to state: {'imported' if exported else 'exported'}",
                "Leave it out.",
            )
    if exported and params["name"] is None:
        raise PhyllomeError("state: exported without name", "a guest is exported", "Give the guest's name.")
    name, snapshot = params["name"], params["snapshot"]
    path = check_path(params["path"], "path")
    if path == "/":
        raise PhyllomeError("path: '/' cannot be an export", "an export is a folder of its own", "Name a new folder.")
    return Wanted(
        name=None if name is None else check_name(name, "name"),
        path=path,
        state=params["state"],
        snapshot=None if snapshot is None else check_name(snapshot, "snapshot"),
        fresh=params["identity"] == "new",
        pool=check_name(params["pool"] or "images", "pool"),
    )
