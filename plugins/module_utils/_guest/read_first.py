# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at what a guest's first boot depends on: CD images of ours, an installer's tree, an empty disk. Decides nothing.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError
from .._core.names import guest_uuid
from .._core.program import run
from . import domain, install, luks, media, seed
from . import wait as waiting
from .tables import CDROMS, DISKS

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .media import Medium
    from .read import Guest
    from .spec import Wanted


@dataclasses.dataclass(frozen=True)
class First:
    """What there is for a first boot.

    Attributes:
        media: CD images that are wanted, by id.
        paths: where each of them is, or will be; None where there is no place for it.
        stale: files that earlier content of a wanted one has left, by id.
        program: whether this host can make CD images.
        sizes: bytes that each of them takes at most, by id.
        exists: whether there is such a file, by path, of what an installer starts from.
        written: whether somebody has written to the guest's first disk; None when it was not looked at.
        done: whether cloud-init says that it is done; None when it was not asked.
    """

    media: t.Mapping[str, Medium] = dataclasses.field(default_factory=dict)
    paths: t.Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    stale: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    program: bool = True
    sizes: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    exists: t.Mapping[str, bool] = dataclasses.field(default_factory=dict)
    written: bool | None = None
    done: bool | None = None


def look(found: t.Any, wanted: Wanted, there: Guest | None, directory: str | None, disk: str | None) -> First:
    """What there is.

    Args:
        found: the guest's domain; None when it does not exist.
        wanted: what is declared.
        there: the guest.
        directory: for new CD images; None when there is no place.
        disk: path of the guest's first disk.
    """
    uuid = there.uuid if there is not None else wanted.uuid or guest_uuid(wanted.name)
    asked = []
    if wanted.cloud_init is not None:
        asked.append(seed.medium(wanted.cloud_init, wanted.name, uuid))
    if wanted.install is not None:
        asked += [made for made in (install.medium(wanted.install),) if made is not None]
    if not asked and wanted.install is None:
        return First()
    ours = None if there is None else domain.marker(there.config)
    paths: dict[str, str | None] = {}
    for medium in asked:
        kept = ours.volume(medium.id) if ours else None
        folder = directory if kept is None else os.path.dirname(kept.path)
        paths[medium.id] = None if folder is None else os.path.join(folder, medium.file(wanted.name))
    files: set[str] = {path for path in paths.values() if path}
    if wanted.install is not None:
        wants = wanted.install
        files.update(path for path in (wants.iso, wants.kernel, wants.initrd) if path)
        files.update(path for kernel, initrd, dummy in wants.tree for path in (kernel, initrd))
    return First(
        media={medium.id: medium for medium in asked},
        paths=paths,
        stale={
            medium.id: media.stale(os.path.dirname(path), wanted.name, medium.id, (path,))
            for medium in asked
            for path in (paths[medium.id],)
            if path
        },
        program=media.program() is not None,
        sizes={medium.id: media.size(medium.tree) if medium.tree else 0 for medium in asked},
        exists={path: os.path.isfile(path) for path in files},
        written=_written(disk, _key(wanted)) if wanted.install and (there is None or there.live is None) else None,
        done=_done(found, wanted, there),
    )


def first_disk(wanted: Wanted, there: Guest | None, paths: t.Mapping[str, str]) -> str | None:
    """Path of the disk that a system is installed on: the first one."""
    if there is not None:
        return next((DISKS.row("path").read(found) for found in DISKS.elements(there.config)), None)
    return next((paths.get(disk.id) for disk in wanted.devices.get(DISKS.option, ())), None)


def _key(wanted: Wanted) -> str | None:
    """The passphrase of the first disk, if it is encrypted."""
    return next((disk.passphrase for disk in wanted.devices.get(DISKS.option, ())), None)


def _written(disk: str | None, key: str | None) -> bool | None:
    """Whether there is anything on a disk that nobody uses now; a file that is not there yet has nothing."""
    if disk is None:
        return None
    if not os.path.exists(disk):
        return False
    try:
        return _mapped([disk])
    except PhyllomeError:
        pass  # it may be encrypted
    try:
        told = json.loads(run(["qemu-img", "info", "--output=json", disk]))
        if told["format"] == "luks":
            return _beyond(disk, os.path.getsize(disk) - told["virtual-size"])
        return _mapped(luks.opening(disk, told["format"]), key) if told.get("encrypted") and key else None
    except (PhyllomeError, OSError):
        return None


def _mapped(image: t.Sequence[str], key: str = "") -> bool:
    told = json.loads(run(["qemu-img", "map", "--output=json", *image], stdin=key))
    return any(extent["data"] and not extent["zero"] for extent in told)


def _beyond(path: str, offset: int) -> bool:
    """Whether a file has anything but holes from there on: behind its header QEMU calls all of a LUKS file data."""
    with open(path, "rb") as stream:
        try:
            return os.lseek(stream.fileno(), offset, os.SEEK_DATA) >= offset
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return False
            raise


def drive(root: Element, medium: str) -> str | None:
    """What is in the drive of one of our CD images; empty for nothing, None when there is no such drive."""
    found = domain.device(CDROMS, root, medium)
    return None if found is None else str(CDROMS.row("path").read(found))


def _done(found: t.Any, wanted: Wanted, there: Guest | None) -> bool | None:
    """Only asked where the answer changes something."""
    if wanted.cloud_init is None or wanted.cloud_init.keep or there is None or there.live is None:
        return None
    if there.state != "running" or not domain.agent_connected(there.live) or not drive(there.config, seed.ID):
        return None
    with contextlib.suppress(virt.libvirt.libvirtError, PhyllomeError):
        return waiting.cloud_init_done(found)
    return None
