# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read what libvirt knows about a pool, and what its directory is.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import stat
import typing as t

from .._core import virt, xml
from . import spec


@dataclasses.dataclass(frozen=True)
class Found:
    """A pool that exists.

    Attributes:
        uuid: its identity in libvirt.
        kind: libvirt's pool type.
        active: it has been started.
        persistent: it survives being stopped.
        autostart: it starts with the host.
        path: its target.
        volumes: number of volumes; None when it is not active.
    """

    uuid: str
    kind: str
    active: bool
    persistent: bool
    autostart: bool
    path: str | None
    volumes: int | None


@dataclasses.dataclass(frozen=True)
class World:
    """What the plan is made from.

    Attributes:
        found: the pool, or None.
        others: names of the other pools by target path.
        directory: mode, owner and group of the directory; None when it does not exist.
    """

    found: Found | None
    others: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    directory: t.Mapping[str, str] | None = None


def read(connection: t.Any, wanted: spec.Wanted) -> World:
    """The pool and its surroundings.

    Raises:
        PhyllomeError: libvirt refuses.
    """
    with virt.saying(f"Cannot read pool {wanted.name}"):
        pool = virt.found(lambda: connection.storagePoolLookupByName(wanted.name))
        found = None if pool is None else _found(pool)
        others = {
            spec.PATH.read(xml.parse(other.XMLDesc(0))): other.name()
            for other in connection.listAllStoragePools(0)
            if other.name() != wanted.name
        }
    path = wanted.path or (found.path if found else None)
    return World(found, others, directory(path) if path and wanted.directory else None)


def _found(pool: t.Any) -> Found:
    persistent = bool(pool.isPersistent())
    flags = virt.libvirt.VIR_STORAGE_XML_INACTIVE if persistent else 0
    root = xml.parse(pool.XMLDesc(flags))
    active = bool(pool.isActive())
    return Found(
        uuid=pool.UUIDString(),
        kind=root.get("type", ""),
        active=active,
        persistent=persistent,
        autostart=persistent and bool(pool.autostart()),
        path=spec.PATH.read(root),
        volumes=pool.numOfVolumes() if active else None,
    )


def directory(path: str) -> dict[str, str] | None:
    """Mode, owner and group of a directory of this host; None when it does not exist."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return {
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "owner": _name(lambda: pwd.getpwuid(status.st_uid).pw_name, status.st_uid),
        "group": _name(lambda: grp.getgrgid(status.st_gid).gr_name, status.st_gid),
    }


def _name(lookup: t.Callable[[], str], number: int) -> str:
    try:
        return lookup()
    except KeyError:
        return str(number)
