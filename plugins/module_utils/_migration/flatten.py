# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One file of a disk and all that is below it, made at the source while nobody writes to any of them.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import glob
import os
import typing as t
import zlib

from .._core.errors import PhyllomeError
from .._core.program import run
from .read_guest import Disk, Guest

_LONG = 7 * 24 * 3600
"""Seconds; what hangs for so long is broken."""


def made(guest: Guest, op: str, timeout: int) -> dict[str, str]:
    """Make the flat files that are not there yet, by the path of the disk.

    Args:
        guest: that is moved; it is off and fenced.
        op: the name of the move, which the files carry.
        timeout: seconds for each; 0 for no limit.

    Raises:
        PhyllomeError: it cannot be made, or what a guest sees of it differs.
    """
    return {disk.path: _make(disk, op, timeout or _LONG) for disk in guest.disks if disk.flat}


def _make(disk: Disk, op: str, timeout: int) -> str:
    name = _name(disk, op)
    if os.path.exists(name):
        return name
    _drop(disk.path, op)  # of what it was before
    part = f"{name}.part"
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    remedy = "Repair it, or say chain: keep."
    run(["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "qcow2", disk.path, part], timeout, remedy)
    try:
        run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", disk.path, part], timeout, remedy)
    except PhyllomeError as exc:
        raise PhyllomeError(f"The flat copy of {disk.path} is not what it was made of", exc.why, remedy) from exc
    os.rename(part, name)
    return name


def _name(disk: Disk, op: str) -> str:
    """The name tells what the file was made of: one that is there is whole, and up to date."""
    told = []
    for path in (disk.path, *(layer.path for layer in disk.backing)):
        status = os.stat(path)
        told.append((path, status.st_size, status.st_mtime_ns))
    return f"{_beside(disk.path, op)}.{zlib.crc32(repr(told).encode()):08x}.flat"


def _beside(path: str, op: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".phy-{op}-{name}")


def drop(pieces: t.Mapping[str, str], op: str) -> None:
    """Remove what was made of a guest's files."""
    for name, path in pieces.items():
        if name.startswith("disks."):
            _drop(path, op)


def _drop(path: str, op: str) -> None:
    beside = glob.escape(_beside(path, op))
    for found in (*glob.glob(f"{beside}.????????.flat"), *glob.glob(f"{beside}.????????.flat.part")):
        os.unlink(found)
