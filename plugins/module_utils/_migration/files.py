# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files of a move: those of the destination as volumes of its libvirt, those of this host as they are.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import typing as t

from .._core import virt, xml

if t.TYPE_CHECKING:
    from .read_guest import Disk

SNAPSHOTS = "/var/lib/libvirt/phyllome/snapshots"
"""Where vm_snapshot keeps what is not on a guest's disks, in a folder of the guest's uuid that only root may look into."""
_LOOK = "phyllome-look-"
PATIENCE = 5.0
"""Seconds; a look takes milliseconds."""


def _dir_pool(name: str, path: str) -> str:
    pool = xml.element("pool", type_="dir")
    xml.child(pool, "name", name)
    xml.child(xml.child(pool, "target"), "path", path)
    return xml.dump(pool)


def refresh(pool: t.Any) -> None:
    """See what is really in a pool; libvirt refuses while somebody makes a volume there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            pool.refresh()
            return
        except virt.libvirt.libvirtError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


@contextlib.contextmanager
def folder(connection: t.Any, path: str, op: str) -> t.Iterator[dict[str, t.Any]]:
    """The files of a folder, as libvirt volumes by name; none when there is no such folder."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(pool_at(connection, path, op))
        yield {} if pool is None else {volume.name(): volume for volume in pool.listAllVolumes()}


@contextlib.contextmanager
def pool_at(connection: t.Any, path: str, op: str) -> t.Iterator[t.Any]:
    """The pool at a folder, or one that lives as long as we look; None when there is no such folder.

    So the other host needs nothing but libvirt. libvirt allows one pool for a folder: a pool of
    another guest's move is waited for, one that a killed run has left is removed.
    """
    lib = virt.libvirt
    name = f"{_LOOK}{op}-{os.path.basename(path)}"
    deadline = time.monotonic() + PATIENCE
    while True:
        pool = virt.found(lambda: connection.storagePoolLookupByTargetPath(path))
        if pool is not None and not pool.name().startswith(_LOOK):
            refresh(pool)
            yield pool
            return
        if pool is not None and (pool.name() == name or time.monotonic() > deadline):
            with contextlib.suppress(lib.libvirtError):
                pool.destroy()
        elif pool is None:
            try:
                pool = connection.storagePoolCreateXML(_dir_pool(name, path))
                break
            except lib.libvirtError as exc:
                if exc.get_error_code() == lib.VIR_ERR_SYSTEM_ERROR:  # there is no such folder
                    yield None
                    return
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.02)
    try:
        yield pool
    finally:
        _close(pool)


def create(connection: t.Any, disk: Disk) -> t.Any:
    """A sparse file of exactly the disk's virtual size: what libvirt would make takes all of its size."""
    volume = xml.element("volume")
    xml.child(volume, "name", os.path.basename(disk.path))
    xml.child(volume, "capacity", str(disk.virtual), unit="bytes")
    xml.child(volume, "allocation", "0")
    target = xml.child(volume, "target")
    xml.child(target, "format", None, type_=disk.format)
    if disk.format == "qcow2":
        xml.child(target, "compat", "1.1")
    return connection.storagePoolLookupByTargetPath(os.path.dirname(disk.path)).createXML(xml.dump(volume))


def _close(pool: t.Any) -> None:
    """Stop a pool of ours; libvirt refuses while it still looks at a volume that was just written."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            pool.destroy()
            return
        except virt.libvirt.libvirtError:
            if time.monotonic() > deadline or not pool.isActive():
                raise
        time.sleep(0.02)


def staged(path: str, op: str, folder: str | None = None) -> str:
    """The name that a file has at the destination until the guest is there; it carries the op_id."""
    return os.path.join(folder or os.path.dirname(path), f".phy-{op}-{os.path.basename(path)}.partial")


def reserve(pool: t.Any, name: str, size: int) -> t.Any:
    """A new, empty volume, whatever is written into it; its mode is its owner's alone."""
    volume = xml.element("volume")
    xml.child(volume, "name", name)
    xml.child(volume, "capacity", str(size), unit="bytes")
    xml.child(volume, "allocation", "0")
    target = xml.child(volume, "target")
    xml.child(target, "format", None, type_="raw")
    xml.child(xml.child(target, "permissions"), "mode", "0600")
    return pool.createXML(xml.dump(volume))


def remove(connection: t.Any, path: str, op: str) -> None:
    """Delete a file of the destination, or a guest's folder of snapshots there, if it is there."""
    if os.path.dirname(path) == SNAPSHOTS:
        _empty(connection, path, op)
    with folder(connection, os.path.dirname(path), op) as volumes:
        if os.path.basename(path) in volumes:
            volumes[os.path.basename(path)].delete()


def _empty(connection: t.Any, path: str, op: str) -> None:
    """Delete all that is in a folder of the destination to which nobody but root can have written."""
    folders = []
    with folder(connection, path, op) as volumes:
        for name, volume in volumes.items():
            if volume.info()[0] == virt.libvirt.VIR_STORAGE_VOL_DIR:
                folders.append(name)
            else:
                volume.delete()
    for name in folders:  # one after the other: a pool is called after its folder
        _empty(connection, os.path.join(path, name), op)
    with folder(connection, path, op) as volumes:
        for name in folders:
            volumes[name].delete()


def remove_tpm(connection: t.Any, path: str, op: str) -> None:
    """Delete a TPM's state at the destination, if it is there."""
    for place in (os.path.join(path, "tpm2"), os.path.join(path, "tpm1.2")):
        with folder(connection, place, op) as volumes:
            for volume in volumes.values():
                volume.delete()


def digest_there(connection: t.Any, volume: t.Any) -> str | None:
    """sha256 of a volume, None when there is none."""
    if volume is None:
        return None
    return hashlib.sha256(read(connection, volume)).hexdigest()


def boot(connection: t.Any, op: str) -> str | None:
    """What tells one start of the other host from the next (random(4)); None when it does not say.

    What it has confirmed may not have been on its disk when it lost power: libvirt does not wait for that.
    """
    with (
        contextlib.suppress(virt.libvirt.libvirtError, KeyError),
        folder(connection, "/proc/sys/kernel/random", op) as seen,
    ):
        return read(connection, seen["boot_id"]).decode().strip() or None
    return None


def read(connection: t.Any, volume: t.Any, length: int = 0) -> bytes:
    """The beginning of a file at the destination; all of it without a length."""
    found: list[bytes] = []
    stream = connection.newStream()
    volume.download(stream, 0, length)
    stream.recvAll(lambda dummy, data, opaque: found.append(data), None)
    stream.finish()
    return b"".join(found)


def upload(connection: t.Any, volume: t.Any, path: str) -> None:
    """Overwrite a volume with a file of this host."""
    with open(path, "rb") as file:
        stream = connection.newStream()
        volume.upload(stream, 0, os.path.getsize(path))
        stream.sendAll(lambda dummy, size, opaque: file.read(size), None)
        stream.finish()


def below(folder: str) -> list[str]:
    """Paths of the files in the folders of a folder of this host, sorted: all but its own."""
    return sorted(
        path
        for where, dummy, names in os.walk(folder)
        if where != folder
        for path in (os.path.join(where, name) for name in names)
        if os.path.isfile(path) and not os.path.islink(path)
    )


def delete(path: str) -> None:
    """Delete a file or a folder of this host, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def digest(path: str) -> str | None:
    """sha256 of a file, None when it is not there."""
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except FileNotFoundError:
        return None


def stamp(text: str) -> list[int] | None:
    """Size and time of change of a volume, in nanoseconds, from its XML; None when it does not say."""
    root = xml.parse(text)
    size, changed = root.findtext("physical"), root.findtext("target/timestamps/mtime")
    if size is None or changed is None:
        return None
    seconds, dummy, fraction = changed.partition(".")
    return [int(size), int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9])]


_SKEW = 5
"""Seconds that clocks may differ by without a word."""


def skew(text: str, now: int) -> int | None:
    """Seconds by which the destination's clock is ahead, from the XML of a volume that was just made; None if about none.

    Args:
        text: of the volume.
        now: nanoseconds, by this host's clock.
    """
    made = stamp(text)
    seconds = 0 if made is None else round((made[1] - now) / 10**9)
    return seconds if abs(seconds) >= _SKEW else None
