# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether both hosts have the same storage: proved, not believed.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import typing as t

from .._core import virt
from . import files
from .read import Side
from .read_guest import Guest

_PROOF = ".phyllome-proof-"
_HEAD = 65536
"""Bytes that are compared: QEMU does not write to the first cluster of a qcow2 while a guest runs."""
_PATIENCE = 35.0
"""Seconds for a new file to be seen: NFS remembers what is in a folder for up to 30 (nfs(5): acdirmin)."""


def not_shared(there: Side, guest: Guest, op: str, write: bool) -> dict[str, str]:
    """Why disks that both hosts are said to have are not the same ones, by target; none when all are.

    A file that this host writes beside each of them has to be seen, read and missed again at the destination.

    Args:
        there: the destination.
        guest: its ``shared`` disks are looked at, with all that is below them.
        op: the name of the move.
        write: without it only what can be seen without writing is compared.

    Raises:
        PhyllomeError: libvirt does not say.
    """
    folders: dict[str, str] = {}
    found: dict[str, str] = {}
    for disk in guest.shared:
        for path in (disk.path, *(layer.path for layer in disk.backing)):
            folder = os.path.dirname(path)
            with virt.saying(f"Cannot look at the storage of {there.name}"):
                why = there.ask(lambda connection, path=path: _file(connection, path, op))  # type: ignore[misc]
                if not why and write:
                    if folder not in folders:
                        folders[folder] = there.ask(lambda connection, at=folder: _proof(connection, at, op))  # type: ignore[misc]
                    why = folders[folder]
            if why:
                found[disk.target] = f"{path} {why}"
                break
    return found


def _file(connection: t.Any, path: str, op: str) -> str:
    if os.path.islink(path):
        return "is a symbolic link, which may lead elsewhere there"
    with files.folder(connection, os.path.dirname(path), op) as volumes:
        volume = volumes.get(os.path.basename(path))
        if volume is None:
            return "is not there"
        before = _head(path)
        if files.read(connection, volume, _HEAD) not in (before, _head(path)):
            return "begins with something else there"
    return ""


def _head(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(_HEAD)


def _proof(connection: t.Any, folder: str, op: str) -> str:
    for name in os.listdir(folder):
        if name.startswith(f"{_PROOF}{op}-"):  # of a run that was killed
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, name))
    name, said = f"{_PROOF}{op}-{secrets.token_hex(8)}", secrets.token_hex(32).encode()
    path = os.path.join(folder, name)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        return f"cannot be proved to be the same there: {path}: {exc.strerror}"
    try:
        with open(descriptor, "wb") as stream:
            stream.write(said)
            stream.flush()
            os.fsync(stream.fileno())
        if not _sees(connection, folder, op, name, True):
            return "is on another storage there: what this host writes beside it does not appear"
        with files.folder(connection, folder, op) as volumes:
            if files.read(connection, volumes[name]) != said:
                return "is on another storage there: what this host writes beside it reads differently"
    finally:
        os.unlink(path)
    if not _sees(connection, folder, op, name, False):
        return "is on another storage there: what this host deletes beside it stays"
    return ""


def _sees(connection: t.Any, folder: str, op: str, name: str, there: bool) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with files.folder(connection, folder, op) as volumes:
            if (name in volumes) is there:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
