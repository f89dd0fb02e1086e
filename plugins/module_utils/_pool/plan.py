# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has to be done so that a pool is as declared. Pure.

No step removes a file or a directory.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from . import spec
from .read import Found, World


def plan(wanted: spec.Wanted, world: World) -> Plan:
    """The changes, in the order in which they are carried out.

    Raises:
        PhyllomeError: it is not possible, or would leave volumes behind.
    """
    found = world.found
    if wanted.state == "absent":
        if found is None:
            return Plan()
        stop = (Change("stop", "active", True, False),) if found.active else ()
        return Plan((*stop, Change("undefine", "pool", wanted.name, None)))

    _refuse(wanted, found, world.others)
    path = t.cast(str, wanted.path or (found.path if found else None))
    moved = found is not None and found.path != path
    changes: list[Change] = []
    if found is None:
        changes += [Change("define", "pool", None, wanted.name, args={"path": path}), Change("", "path", None, path)]
    elif moved or not found.persistent:
        if found.active and moved:
            changes.append(Change("stop", "active", True, False, why="the path changes"))
        rows: list[tuple[str, t.Any, t.Any]] = [("path", found.path, path)] if moved else []
        if not found.persistent:
            rows.append(("persistent", False, True))
        # One step carries out all that differs; the second row only says what that is.
        changes += [Change(action, *row, args={"path": path}) for action, row in zip(("define", ""), rows)]
    active = found is not None and found.active and not moved
    if not active and (wanted.state == "active" or (moved and t.cast(Found, found).active)):
        if wanted.state != "inactive":
            changes.append(Change("start", "active", False, True))
    elif active and wanted.state == "inactive":
        changes.append(Change("stop", "active", True, False))
    autostart = found is not None and found.autostart
    if wanted.autostart is not None and wanted.autostart != autostart:
        changes.append(Change("autostart", "autostart", autostart, wanted.autostart))
    return Plan((*_directory(wanted, world.directory, path), *changes))


def _directory(wanted: spec.Wanted, directory: t.Mapping[str, str] | None, path: str) -> list[Change]:
    before = directory or {}
    return [
        Change("directory", f"directory.{option}", before.get(option), value, args={"path": path, option: value})
        for option, value in wanted.directory.items()
        if before.get(option) != value
    ]


def _refuse(wanted: spec.Wanted, found: Found | None, others: t.Mapping[str, str]) -> None:
    path = wanted.path
    if found is None and path is None:
        raise PhyllomeError(
            f"Pool {wanted.name} does not exist and has no path",
            "a pool is a directory",
            "Give the option path.",
        )
    if found is not None and found.kind != "dir":
        raise PhyllomeError(
            f"Pool {wanted.name} exists and is of type {found.kind!r}",
            "only pools of type 'dir' are managed, and a pool cannot change its type",
            "Choose another name, or remove that pool.",
        )
    if path and path in others and (found is None or found.path != path):
        raise PhyllomeError(
            f"path: {path} of pool {wanted.name} belongs to pool {others[path]}",
            "two pools cannot share a directory",
            f"Use pool {others[path]}, choose another path, or remove that pool with state absent (its files stay).",
        )
    if path and found is not None and found.path != path and found.volumes:
        raise PhyllomeError(
            f"path: pool {wanted.name} is in {found.path} and holds {found.volumes} volumes; it cannot go to {path}",
            "guests refer to the volumes by their path",
            "Declare a second pool and move the disks there, or empty this one first.",
        )
