# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at the guest and at the folder. Decides nothing.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.names import guest_uuid
from .._core.program import run
from .._guest import identity, read, storage
from .._guest.identity import Identity, Places
from .._guest.tables import DISKS, TARGET
from . import folder
from .folder import Manifest
from .spec import Wanted

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .._guest.read import Guest


@dataclasses.dataclass(frozen=True)
class Part:
    """A disk to export.

    Attributes:
        target: its target name.
        path: of its file.
        format: qcow2 or raw.
        capacity: bytes that the guest sees.
        needs: bytes that its copy takes at most.
    """

    target: str
    path: str
    format: str
    capacity: int
    needs: int


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The guest to export.

    Attributes:
        guest: see _guest.read.
        identity: see _guest.identity; where a snapshot is exported, of that time.
        config: the definition to export.
        parts: its disks that can be read.
        missing: files of disks that are not there.
        nvram, tpm: file and folder with what there is to export; None when there is nothing.
        snapshot: whether there is the wanted one and it is whole; None when none is wanted.
        mark: what makes the export up to date.
        there: the manifest in the folder, if any.
        foreign: whether something else is at that path.
        complete: whether the folder's pieces are there.
        free: bytes that are free beside the folder; None when the folder above is missing.
    """

    guest: Guest
    identity: Identity
    config: Element
    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    nvram: str | None
    tpm: str | None
    snapshot: bool | None
    mark: t.Mapping[str, t.Any]
    there: Manifest | None
    foreign: bool
    complete: bool
    free: int | None
    now: float


def source(connection: t.Any, wanted: Wanted, where: Places) -> Source:
    """What there is to export, and what has been exported.

    Raises:
        PhyllomeError: there is no such guest, or something cannot be read.
    """
    name = t.cast(str, wanted.name)
    with virt.saying(f"Guest {name} cannot be looked up"):
        found = virt.found(lambda: connection.lookupByName(name))
    if found is None:
        raise PhyllomeError(f"Guest {name} does not exist", "there is nothing to export", "Correct the name.")
    guest = read.guest(found)
    config, kept, told = guest.config, None, None
    if wanted.snapshot is not None:
        kept = f"{identity.snapshot_folder(where, guest.uuid)}/{wanted.snapshot}"
        told = identity.load(f"{kept}/manifest.json")
        if told is not None:
            with identity.doing(f"Cannot read {kept}"), open(f"{kept}/{folder.DEFINITION}", encoding="utf-8") as stream:
                config = xml.parse(stream.read())
    what = identity.of(config, guest.live if kept is None else None, where)
    nvram, tpm = what.nvram, what.tpm
    if kept is not None:
        nvram, tpm = f"{kept}/{folder.NVRAM}", f"{kept}/{folder.TPM}"
    paths = [drive.path for drive in what.drives if drive.path]
    whole = None
    if kept is not None:
        whole = told is not None and all(
            os.path.exists(path) and wanted.snapshot in identity.snapshots(path) for path in paths
        )
    there = folder.manifest(wanted.path)
    above = os.path.dirname(wanted.path)
    return Source(
        guest=guest,
        identity=what,
        config=config,
        parts=tuple(
            _part(drive)
            for drive in what.drives
            if drive.path and not (drive.odd or drive.encrypted) and os.path.exists(drive.path)
        ),
        missing=tuple(path for path in paths if not os.path.exists(path)),
        nvram=nvram if nvram and os.path.exists(nvram) else None,
        tpm=tpm if tpm and identity.files(tpm) else None,
        snapshot=whole,
        mark=_mark(what, config, told),
        there=there,
        foreign=there is None and os.path.lexists(wanted.path) and not _empty(wanted.path),
        complete=there is not None and folder.complete(wanted.path, there),
        free=storage.free(above) if os.path.isdir(above) else None,
        now=time.time(),
    )


def _empty(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def _part(drive: identity.Drive) -> Part:
    path = str(drive.path)
    argv = ["qemu-img", "measure", "-U", "-f", drive.format, "-O", drive.format, "--output=json", path]
    needs = json.loads(run(argv, remedy="Is the disk's format as the definition says?"))["required"]
    told = json.loads(run(["qemu-img", "info", "-U", "-f", drive.format, "--output=json", path]))
    if drive.format == "raw":
        needs = told["actual-size"]  # measure counts the holes too
    return Part(drive.target, path, drive.format, told["virtual-size"], needs)


def _mark(what: Identity, config: Element, told: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    """Two exports with the same mark have the same content."""
    mark: dict[str, t.Any] = {"definition": hashlib.sha256(xml.dump(config).encode()).hexdigest()}
    if told is not None:
        return {**mark, "snapshot": told["name"], "created": told["created"]}
    files = [drive.path for drive in what.drives if drive.path]
    files += [below for drive in what.drives if drive.path for below in storage.chain(drive.path, drive.format)]
    files += [what.nvram] if what.nvram else []
    files += [os.path.join(what.tpm, name) for name in identity.files(what.tpm)] if what.tpm else []
    mark["files"] = {}
    for path in files:
        if os.path.exists(path):
            status = os.stat(path)
            mark["files"][path] = [status.st_mtime_ns, status.st_size]
    return mark


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """The folder to import, and what is there already.

    Attributes:
        manifest: of the folder.
        damage: what is wrong with it.
        config: the definition in it.
        identity: of the guest that it becomes, with the paths that it has here.
        namesakes: uuid and name of guests that have its name or uuid.
        here: paths of the disks of a guest with both, or None.
        directory: where the disks go; None when the pool is missing or has none.
        clashes: what is at a path that it needs and has another content, or is used by a guest.
        done: paths that have the right content already.
        networks: those that it needs and that are not here.
        free: bytes that are free for the disks.
    """

    manifest: Manifest
    damage: tuple[str, ...]
    config: Element
    identity: Identity
    namesakes: tuple[tuple[str, str], ...]
    here: frozenset[str] | None
    directory: str | None
    clashes: tuple[str, ...]
    done: frozenset[str]
    networks: tuple[str, ...]
    free: int | None


def target(connection: t.Any, wanted: Wanted, where: Places) -> Target:
    """What there is to import, and what it meets.

    Raises:
        PhyllomeError: the folder is no export, or something cannot be read.
    """
    told = folder.manifest(wanted.path)
    if told is None:
        raise PhyllomeError(
            f"path: {wanted.path} is not an export",
            f"it has no {folder.MANIFEST} of phyllome.virt",
            "Correct the path. An export that was cut off has none either: export again.",
        )
    with virt.saying("Cannot ask libvirt about this host"):
        directory = _directory(connection, wanted.pool)
    name = wanted.name or told.name
    uuid = guest_uuid(name) if wanted.fresh else told.uuid
    with (
        identity.doing(f"Cannot read {wanted.path}"),
        open(f"{wanted.path}/{folder.DEFINITION}", encoding="utf-8") as stream,
    ):
        config = xml.parse(stream.read())
    identity.reborn(config, name, uuid, where.nvram, wanted.fresh)
    disks = {piece.target: piece for piece in told.of("disk")}
    for drive in identity.of(config, None, where).drives:
        piece = disks.get(drive.target)
        if piece is not None and directory is not None:
            file = f"{directory}/{name}-{drive.label}.{piece.format}"
            _set_path(config, drive.target, file)
    what = identity.of(config, None, where)
    with virt.saying("Cannot look for guests of that name and uuid"):
        found = [
            domain
            for domain in (
                virt.found(lambda: connection.lookupByName(name)),
                virt.found(lambda: connection.lookupByUUIDString(uuid)),
            )
            if domain is not None
        ]
        here = None
        if len(found) == 2 and found[0].UUIDString() == uuid:
            present = identity.of(xml.parse(found[0].XMLDesc(virt.libvirt.VIR_DOMAIN_XML_INACTIVE)), None, where)
            here = frozenset(drive.path for drive in present.drives if drive.path)
        namesakes = tuple(sorted({(domain.UUIDString(), domain.name()) for domain in found}))
        networks = _missing_networks(connection, config)
        used = {} if here is not None else _used(connection)
    damage = folder.damage(wanted.path, told) if here is None else ()
    clashes, done = _met(told, what, used) if here is None else ((), frozenset())
    return Target(
        manifest=told,
        damage=damage,
        config=config,
        identity=what,
        namesakes=namesakes,
        here=here,
        directory=directory,
        clashes=clashes,
        done=done,
        networks=networks,
        free=storage.free(directory) if directory and os.path.isdir(directory) else None,
    )


def _directory(connection: t.Any, name: str) -> str | None:
    pool = virt.found(lambda: connection.storagePoolLookupByName(name))
    if pool is None or not pool.isActive():
        return None
    return xml.parse(pool.XMLDesc()).findtext("target/path")


def _set_path(config: Element, name: str, file: str) -> None:
    for disk in DISKS.elements(config):
        if TARGET.read(disk) == name:
            xml.drop(disk, "backingStore")  # an export is flat
            xml.ensure(disk, "source").set("file", file)


def _missing_networks(connection: t.Any, config: Element) -> tuple[str, ...]:
    names = {str(found.get("network")) for found in config.findall("devices/interface/source[@network]")}
    known = {found.name() for found in connection.listAllNetworks()} if names else set()
    return tuple(sorted(names - known))


def _used(connection: t.Any) -> dict[str, str]:
    """Which guest uses a file."""
    used = {}
    for found, (text,) in virt.domains(connection, virt.libvirt.VIR_DOMAIN_XML_INACTIVE):
        root = xml.parse(text)
        used.update({str(element.get("file")): found.name() for element in root.iter("source") if element.get("file")})
        used.update({str(element.text): found.name() for element in root.iter("nvram") if element.text})
    return used


def places_here(told: Manifest, what: Identity) -> dict[str, str]:
    """Where each piece but the definition belongs on this host, by its file in the export."""
    disks = {drive.target: drive.path for drive in what.drives}
    here: dict[str, str] = {}
    for piece in told.pieces:
        path = None
        if piece.role == "disk":
            path = disks.get(str(piece.target))
        elif piece.role == "nvram":
            path = what.nvram
        elif piece.role == "tpm" and what.tpm:
            path = f"{what.tpm}/{piece.file.split('/', 1)[1]}"
        if path:
            here[piece.file] = path
    return here


def _met(told: Manifest, what: Identity, used: t.Mapping[str, str]) -> tuple[tuple[str, ...], frozenset[str]]:
    clashes, done = [], set()
    here = places_here(told, what)
    for piece in told.pieces:
        path = here.get(piece.file)
        if path is None:
            continue
        if path in used:
            clashes.append(f"{path} is used by guest {used[path]}")
        elif os.path.lexists(path):
            # An import that was cut off has left it; whose content it is does not show otherwise.
            if os.path.isfile(path) and os.path.getsize(path) == piece.size and identity.digest(path) == piece.sha256:
                done.add(path)
            else:
                clashes.append(f"{path} exists and has another content")
    return tuple(clashes), frozenset(done)
