# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at a guest and its snapshots. Decides nothing.

A snapshot of ours is three things of the same name: a snapshot inside each of the guest's qcow2 images, a folder
with all that is not on a disk (memory, UEFI variables, TPM state, definition, and a manifest that was written last),
and libvirt's own entry, by which every other tool knows that there is one. libvirt before 10.10 refuses to make one
of a guest with UEFI, and none of its snapshots has the TPM of a guest that is off.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._guest import identity, read
from .._guest.identity import Identity, Places

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .._guest.read import Guest

MANIFEST = "manifest.json"
DEFINITION = "domain.xml"
MEMORY = "memory"
NVRAM = "nvram.fd"
TPM = "tpm"
RESUME = "resume"
"""A file beside the guest's snapshots: it was put to rest by us and shall run again."""
REVERTED = "reverted.json"
"""A file beside the guest's snapshots: what the guest's files looked like when it had been reverted."""
VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """A snapshot of ours.

    Attributes:
        created: seconds since 1970.
        state: of the guest at that time: running, paused or stopped.
        memory: bytes of saved memory; None when the guest was off.
        disks: target name and path of each disk.
        nvram, tpm: whether there were UEFI variables and TPM state to keep; None when the guest has no such thing.
        config: the guest's definition at that time.
        missing: parts of it that are gone.
        registered: whether libvirt knows of it.
    """

    name: str
    description: str
    created: float
    state: str
    memory: int | None
    disks: tuple[tuple[str, str], ...]
    nvram: bool | None
    tpm: bool | None
    config: Element
    missing: tuple[str, ...] = ()
    registered: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """The guest and all that is known of its snapshots.

    Attributes:
        kept: whole and damaged snapshots of ours, oldest first.
        begun: names of those that a run which was cut off has left unfinished.
        foreign: names of snapshots that libvirt knows and that are not ours.
        tags: names of the snapshots inside each image, by path; an image that is not qcow2 or not there is missing.
        resume: whether a run that was cut off had put the guest to rest.
        memory: bytes that the running guest takes on this host; None when it is off or unknown.
        free: bytes that are free where memory is saved.
        reverted: name and stamp of the last revert, or None.
        stamp: of the guest's files now: time of change and size by path.
        now: seconds since 1970.
        clones: names of guests whose disks are based on this one's.
    """

    guest: Guest
    identity: Identity
    kept: tuple[Kept, ...] = ()
    begun: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    tags: t.Mapping[str, t.Mapping[str, int]] = dataclasses.field(default_factory=dict)
    resume: bool = False
    memory: int | None = None
    free: int | None = None
    reverted: t.Mapping[str, t.Any] | None = None
    stamp: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    now: float = 0
    clones: tuple[str, ...] = ()

    @property
    def at_rest(self) -> bool:
        """Whether the guest shall run, and does not because a run of ours was cut off."""
        return self.resume and self.guest.state == "stopped" and self.guest.managed_save

    def find(self, name: str | None) -> Kept | None:
        """Our snapshot of that name."""
        return next((kept for kept in self.kept if kept.name == name), None)


def read_world(connection: t.Any, name: str, where: Places) -> tuple[t.Any, World]:
    """The guest's domain, and what there is.

    Raises:
        PhyllomeError: there is no such guest, or something cannot be read.
    """
    with virt.saying(f"Guest {name} cannot be looked up"):
        found = virt.found(lambda: connection.lookupByName(name))
    if found is None:
        raise PhyllomeError(f"Guest {name} does not exist", "snapshots belong to a guest", "Correct the name.")
    guest = read.guest(found)
    what = identity.of(guest.config, guest.live, where)
    base = identity.snapshot_folder(where, guest.uuid)
    with virt.saying(f"Cannot list the snapshots of guest {name}"):
        known = set(found.snapshotListNames()) if guest.persistent else set()
    tags = {
        drive.path: identity.snapshots(drive.path)
        for drive in what.drives
        if drive.path and drive.format == "qcow2" and os.path.exists(drive.path)
    }
    with identity.doing(f"Cannot list {base}"):
        names = sorted(entry.name for entry in os.scandir(base) if entry.is_dir()) if os.path.isdir(base) else []
    kept = [each for each in (_kept(f"{base}/{entry}", entry, known, tags) for entry in names) if each is not None]
    ours = {each.name for each in kept}
    return found, World(
        guest=guest,
        identity=what,
        kept=tuple(sorted(kept, key=lambda each: (each.created, each.name))),
        begun=tuple(entry for entry in names if entry not in ours),
        foreign=tuple(sorted(known - set(names))),
        tags=tags,
        resume=os.path.exists(f"{base}/{RESUME}"),
        memory=_resident(found) if guest.live is not None else None,
        free=_free(where.save),
        reverted=identity.load(f"{base}/{REVERTED}"),
        stamp=stamp(what),
        now=time.time(),
        clones=read.linked(connection).get(guest.uuid, ()),
    )


def _kept(path: str, name: str, known: set[str], tags: t.Mapping[str, t.Mapping[str, int]]) -> Kept | None:
    told = identity.load(f"{path}/{MANIFEST}")
    if told is None:
        return None
    try:
        with open(f"{path}/{DEFINITION}", encoding="utf-8") as stream:
            config = xml.parse(stream.read())
    except OSError:
        return None
    if told.get("schema_version") != VERSION:
        raise PhyllomeError(
            f"{path}/{MANIFEST} has the schema version {told.get('schema_version')}",
            f"this release knows {VERSION}",
            "Use the release of the collection that made the snapshot.",
        )
    disks = tuple((disk["target"], disk["path"]) for disk in told["disks"])
    missing = [file for dummy, file in disks if name not in tags.get(file, ())]
    for part, there in ((MEMORY, told["memory"] is not None), (NVRAM, told["nvram"]), (TPM, told["tpm"])):
        if there and not os.path.exists(f"{path}/{part}"):
            missing.append(f"{path}/{part}")
    return Kept(
        name=name,
        description=told["description"],
        created=told["created"],
        state=told["state"],
        memory=told["memory"],
        disks=disks,
        nvram=told["nvram"],
        tpm=told["tpm"],
        config=config,
        missing=tuple(missing),
        registered=name in known,
    )


def stamp(what: Identity) -> dict[str, t.Any]:
    """Time of change and size of each of the guest's files, by path."""
    paths = [drive.path for drive in what.drives if drive.path] + ([what.nvram] if what.nvram else [])
    paths += [os.path.join(what.tpm, name) for name in identity.files(what.tpm)] if what.tpm else []
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found[path] = [status.st_mtime_ns, status.st_size]
    return found


def _resident(found: t.Any) -> int | None:
    with contextlib.suppress(virt.libvirt.libvirtError):
        kib = found.memoryStats().get("rss")
        return None if kib is None else kib * 1024
    return None


def _free(path: str) -> int | None:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    with contextlib.suppress(OSError):
        told = os.statvfs(path)
        return told.f_bavail * told.f_frsize
    return None
