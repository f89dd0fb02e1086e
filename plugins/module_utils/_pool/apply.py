# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a pool to what is declared: read, plan, do what the plan says, read again.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import os
import shutil
import typing as t

from .._core import named, virt, xml
from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from . import spec
from .plan import plan
from .read import World, directory, read


def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The module phyllome_pool."""
    wanted = spec.wanted(params)
    if wanted.directory and "+" in params["uri"].partition(":")[0]:
        raise PhyllomeError(
            f"{', '.join(wanted.directory)}: not possible with the uri {params['uri']}",
            "the directory is on another host, and libvirt does not change a directory that exists",
            "Run the module on that host, or leave these options out.",
        )
    if check_mode and virt.libvirt is None:
        world = World(None, directory=directory(wanted.path) if wanted.path and wanted.directory else None)
        missing = "libvirt is not installed on this host: planned as if no pool were there"
        return {**_result(wanted, plan(wanted, world), world), "warnings": [missing]}
    with virt.session(params["uri"], read_only=check_mode) as connection:
        before = read(connection, wanted)
        todo = plan(wanted, before)
        if check_mode or not todo:
            return _result(wanted, todo, before)
        after = before

        def left() -> Plan:
            nonlocal after
            after = read(connection, wanted)
            return plan(wanted, after)

        named.carry_out(todo, _STEPS, connection, wanted.name, left, f"Pool {wanted.name}")
        return _result(wanted, todo, after)


def _result(wanted: spec.Wanted, todo: Plan, world: World) -> dict[str, t.Any]:
    found = world.found
    pool = None
    if found is not None:
        pool = {
            "name": wanted.name,
            "uuid": found.uuid,
            "active": found.active,
            "autostart": found.autostart,
            "path": found.path,
            "volumes": found.volumes,
        }
    return {
        "changed": todo.changed,
        "plan": todo.as_list(),
        "diff": todo.diff(f"pool {wanted.name}"),
        "pool": pool,
    }


def _directory(connection: t.Any, name: str, change: Change) -> None:
    path = change.args["path"]
    try:
        os.makedirs(path, mode=0o711, exist_ok=True)
        if "mode" in change.args:
            os.chmod(path, int(change.args["mode"], 8))
        if "owner" in change.args:
            shutil.chown(path, user=change.args["owner"])
        if "group" in change.args:
            shutil.chown(path, group=change.args["group"])
    except (OSError, LookupError) as exc:
        raise PhyllomeError(
            f"Cannot prepare the directory {path} of pool {name}", str(exc), "Check mode, owner and group."
        ) from exc


def _define(connection: t.Any, name: str, change: Change) -> None:
    with virt.saying(f"Cannot define pool {name}"):
        existing = virt.found(lambda: connection.storagePoolLookupByName(name))
        if existing is None:
            root = xml.element("pool", None, type_="dir")
            xml.child(root, "name", name)
        else:
            flags = virt.libvirt.VIR_STORAGE_XML_INACTIVE if existing.isPersistent() else 0
            root = xml.parse(existing.XMLDesc(flags))
        spec.PATH.write(root, change.args["path"])
        connection.storagePoolDefineXML(xml.dump(root), 0)


def _start(connection: t.Any, name: str, change: Change) -> None:
    with virt.saying(f"Cannot start pool {name}"):
        pool = connection.storagePoolLookupByName(name)
        try:
            pool.create(0)
        except virt.libvirt.libvirtError:
            # Build makes a missing directory. It would set the mode of one that exists to 0711
            # (virStorageBackendBuildLocal), so it is not called before it is needed.
            pool.build(0)
            pool.create(0)


_STEPS: dict[str, named.Step] = {
    **named.steps("pool", lambda connection, name: connection.storagePoolLookupByName(name)),
    "directory": _directory,
    "define": _define,
    "start": _start,
}
