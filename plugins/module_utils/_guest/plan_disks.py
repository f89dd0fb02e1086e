# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for the files of a guest's disks. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from .._core.errors import PhyllomeError
from .._core.units import format_size
from . import domain, luks, storage
from .domain import Volume
from .tables import DISKS, TARGET

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .draft import Draft
    from .spec import Device


_DIRECTORY_POOLS = ("dir", "fs", "netfs")


def disks(draft: Draft) -> None:
    """What the files of the declared disks need."""
    room: dict[str, int] = {}
    for disk in draft.wanted.devices.get(DISKS.option, ()):
        found = domain.device(DISKS, draft.root, disk.id)
        path = draft.world.paths.get(disk.id)
        if found is None or found.get("type") == "block":
            continue  # said already, or nobody's to make and to grow
        if path is None:
            _pool(draft, disk)
            continue
        if draft.world.exists.get(path):
            _there(draft, disk, found, path)
        else:
            _missing(draft, disk, found, path, room)
    for together in dict.fromkeys(draft.world.systems.get(directory, directory) for directory in room):
        directories = [each for each in room if draft.world.systems.get(each, each) == together]
        needed, free = sum(room[each] for each in directories), min(draft.world.free[each] for each in directories)
        if needed > free:
            draft.problem(
                f"disks: {format_size(-(-needed // 1024**2) * 1024**2)} are needed in {' and '.join(directories)}",
                f"{max(free, 0) // 1024**2}MiB are free there",
                "Make room, or choose another pool.",
            )


def _pool(draft: Draft, disk: Device) -> None:
    name = disk.pool or "images"
    pool = draft.world.pools.get(name)
    if pool is None:
        draft.problem(
            f"{disk.path}.pool: {name}",
            "this host has no such storage pool",
            "Make it with phyllome_pool, or give path.",
        )
    else:
        draft.problem(f"{disk.path}.pool: {name}", "it has no directory", "Choose a pool of type dir.")


def _new_disk(draft: Draft, disk: Device) -> bool:
    return (
        (DISKS.option, disk.id) in draft.added
        and (draft.there is None or domain.device(DISKS, draft.there.config, disk.id) is None)
        and not _recognised(draft, disk)
    )


def _recognised(draft: Draft, disk: Device) -> bool:
    return any(change.path == f"{disk.path}.id" for change in draft.changes)


def _there(draft: Draft, disk: Device, found: Element, path: str) -> None:
    volume = draft.marker.volume(disk.id)
    ours = volume is not None and volume.path == path
    if _new_disk(draft, disk) and not ours and ("path" not in disk.values or disk.source):
        draft.problem(
            f"{disk.path}: {path} exists already",
            "it is not ours, and nothing is overwritten",
            f"Declare it with path: {path} and without source to use it as it is, or move it away.",
        )
        return
    if ours and volume is not None and not volume.made:
        draft.note("volume.finish", f"{disk.path}.path", None, path, why="an earlier run was cut off", id=disk.id)
    image, form = draft.world.images.get(path), DISKS.row("format").read(found)
    if isinstance(image, PhyllomeError):
        draft.problems.append(image)
        return
    if image is not None and image.encrypted != (luks.encryption(found) is not None):
        if image.encrypted:
            rule, remedy = "nothing is in it for who does not know its passphrase", "Declare encryption.passphrase."
        else:
            rule, remedy = "a disk is not encrypted by declaring it", "Leave encryption out, or make another disk."
        told = "is encrypted" if image.encrypted else "is not encrypted"
        draft.problem(f"{disk.path}.encryption: {path} {told}", rule, remedy)
        return
    if image is not None and image.format != form:
        draft.problem(f"{disk.path}.format: {form}", f"{path} is {image.format}", f"Declare format: {image.format}.")
        return
    known = None if draft.there is None else domain.device(DISKS, draft.there.config, disk.id)
    # Its target name of before: another bus gives it another one.
    block = None if draft.there is None else draft.there.blocks.get(TARGET.read(found if known is None else known))
    capacity = image.capacity if image is not None else block[0] if block else None
    if disk.size is not None and capacity is not None:
        _resize(draft, disk, found, path, capacity)


def _resize(draft: Draft, disk: Device, found: Element, path: str, capacity: int) -> None:
    size = disk.size or capacity
    if size < capacity:
        draft.note("refused", f"{disk.path}.size", format_size(capacity), format_size(size), "refused")
        draft.problem(
            f"{disk.path}.size: {format_size(size)} is less than the {format_size(capacity)} that it has",
            "a disk is never shrunk: its end would be cut off",
            f"Declare {format_size(capacity)} or more.",
        )
    elif size > capacity:
        before, after = format_size(capacity), format_size(size)
        live = None if draft.there is None else draft.there.live
        running = None if live is None else domain.device(DISKS, live, disk.id)
        if running is None and live is not None:
            pairs = domain.matched(DISKS, live, draft.root)
            running = next((twin for twin, defined in pairs if defined is found), None)
        if running is not None and draft.untouched:
            # A size is the file's; there is no definition that could carry it to the next start.
            draft.later.append({"path": f"{disk.path}.size", "from": before, "to": after})
            return
        locked = luks.encryption(found) is not None
        if locked and running is None and disk.passphrase is None:
            draft.problem(
                f"{disk.path}.size: {after}",
                "an encrypted disk that nobody uses is opened to grow it",
                "Declare encryption.passphrase, or start the guest first.",
            )
        draft.note(
            "volume.grow",
            f"{disk.path}.size",
            before,
            after,
            file=path,
            form=DISKS.row("format").read(found),
            size=size,
            id=disk.id,
            target=None if running is None else TARGET.read(running),
        )


def _missing(draft: Draft, disk: Device, found: Element, path: str, room: dict[str, int]) -> None:
    volume = draft.marker.volume(disk.id)
    ours = volume is not None and volume.path == path
    if (volume is not None and ours and volume.made) or not (ours or _new_disk(draft, disk)):
        draft.problem(
            f"{disk.path}: its file {path} is gone",
            "it was there before, so it is not made anew",
            "Is a file system not mounted? To start again from nothing, remove the guest first.",
        )
        return
    directory = os.path.dirname(path)
    pool = draft.world.pools.get(disk.pool or "images") if "path" not in disk.values else None
    if pool is not None and (not pool.active or pool.type not in _DIRECTORY_POOLS):
        why = f"its type is {pool.type}" if pool.active else "it is not active"
        draft.problem(
            f"{disk.path}.pool: {disk.pool or 'images'}", why, "Start it, or choose an active pool of type dir."
        )
        return
    if directory not in draft.world.free:
        draft.problem(f"{disk.path}: {directory} is not a directory", "disks are made there", "Make it first.")
        return
    source = _source(draft, disk)
    if disk.size is None and disk.source is None:
        draft.problem(f"{disk.path}: its size is not known", "size or source is needed to make it", "Declare size.")
    if disk.source is not None and source is None:
        return
    size = max(disk.size or 0, source.capacity if source else 0)
    if not size:
        return
    method = disk.source.method if disk.source else "full"
    form = DISKS.row("format").read(found)
    if method == "reflink" and source is not None and source.format != form:
        draft.problem(
            f"{disk.path}.source.method: reflink",
            f"it shares the blocks of a {source.format} image, and the disk is {form}",
            f"Declare format: {source.format}, or method: full.",
        )
        return
    needs = storage.needed(
        size, source if method == "full" else None, whole=disk.passphrase is not None and form == "raw"
    )
    room[directory] = room.get(directory, 0) + needs
    if not ours:
        volumes = tuple(kept for kept in draft.marker.volumes if kept.id != disk.id)
        draft.marker = dataclasses.replace(draft.marker, volumes=(*volumes, Volume(disk.id, path, False)))
    draft.note(
        "volume.create",
        f"{disk.path}.size",
        None,
        format_size(size),
        id=disk.id,
        file=path,
        form=form,
        size=size,
        source=disk.source.path if disk.source else None,
        method=method,
        needs=needs,
    )


def _source(draft: Draft, disk: Device) -> storage.Image | None:
    if disk.source is None:
        return None
    path = f"{disk.path}.source.path"
    if not draft.world.exists.get(disk.source.path):
        draft.problem(f"{path}: {disk.source.path}", "this host has no such file", "Put the image there first.")
        return None
    image = draft.world.images[disk.source.path]
    if isinstance(image, PhyllomeError):
        draft.problem(f"{disk.path}.source: {image.what}", image.why, image.remedy)
        return None
    if image.encrypted:
        draft.problem(
            f"{path}: {disk.source.path} is encrypted",
            "a copy is made from what is in an image, and nobody says its passphrase",
            "Use it as it is, with path and encryption, or make a plain image of it.",
        )
        return None
    if image.refers and disk.source.method != "linked":
        draft.problem(
            f"{path}: {disk.source.path} refers to another file",
            f"a part of its content is in {image.refers}",
            "Make one image of it: qemu-img convert -O qcow2 FILE NEW.",
        )
        return None
    if disk.size is not None and disk.size < image.capacity:
        draft.problem(
            f"{disk.path}.size: {format_size(disk.size)} is less than the {format_size(image.capacity)} of its source",
            "the end of the image would be cut off",
            f"Declare {format_size(image.capacity)} or more, or leave size out.",
        )
        return None
    return image


def secrets(draft: Draft) -> None:
    """The passphrases that libvirt has to know. Where one is known already, it is the one that opens the disk."""
    for disk in draft.wanted.devices.get(DISKS.option, ()):
        found, path = domain.device(DISKS, draft.root, disk.id), draft.world.paths.get(disk.id)
        if found is None or path is None or disk.passphrase is None or luks.encryption(found) is None:
            continue
        option, uuid = f"{disk.path}.encryption.passphrase", luks.secret_uuid(draft.uuid, disk.id)
        if draft.world.opens.get(path) is False:
            draft.problem(
                f"{option}: it does not open {path}",
                "the disk was made with another one",
                "Declare that one. qemu-img amend changes the passphrase of a disk.",
            )
        elif luks.secret_of(found) == uuid and draft.world.secrets.get(uuid) != luks.SET:
            other = draft.world.keepers.get(path, uuid)
            if other != uuid:
                draft.problem(
                    f"{option}: libvirt has a secret for {path} already, {other}",
                    "a file has one, and this is not ours",
                    f"Is it of use? Otherwise: virsh secret-undefine {other}.",
                )
            draft.note("secret.set", option, None, "(not shown)", id=disk.id, uuid=uuid, file=path)
