# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A new guest as a copy of another one: read, plan, apply. What is declared besides is reconciled afterwards.

The definition comes first and says which files will be made, so that no run leaves a file that nobody knows about;
our marker in it says until the end that the clone is not complete.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.names import guest_uuid
from .._core.plan import Change, Plan
from .._core.program import run
from .._core.units import format_size
from . import domain, identity, luks, plug, read, spec, storage
from .domain import Marker, Origin, Volume
from .draft import together
from .media import RESERVED
from .tables import CDROMS, DISKS, TARGET, device_id

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .clone_spec import Clone
    from .identity import Identity, Places
    from .read import Guest
    from .spec import Wanted
    from .world import World as Surroundings

_OVERHEAD = 4 * 1024**2
_NOWHERE = identity.Places("", "", "", "")


@dataclasses.dataclass(frozen=True)
class Part:
    """A disk to copy.

    Attributes:
        label: its id, else its target name.
        target: its target name.
        source: file of the source.
        path: file of the clone.
        format: of the source's file.
        capacity: bytes that the guest sees.
        takes: bytes that the copy takes at most.
        exists: whether there is a file at path.
        encrypted: whether its content cannot be read without its passphrase.
        layered: whether an encrypted one has a backing file or snapshots inside.
        opens: whether the clone's declared passphrase opens it; None when none is declared.
    """

    label: str
    target: str
    source: str
    path: str
    format: str
    capacity: int
    takes: int
    exists: bool
    encrypted: bool = False
    layered: bool = False
    opens: bool | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """What a clone depends on.

    Attributes:
        there: the clone, as far as it exists.
        source: the guest that is copied; None when there is none of that name.
        identity: of the source.
        parts: its disks that can be read.
        missing: files of it that are not there.
        pools: directory of each pool that disks are declared to be in; None when it has none or is off.
        free: bytes that are free, by directory.
        nvram, tpm: whether the source has UEFI variables and TPM state to copy.
        taken: file and folder of the clone's UEFI variables and TPM state that exist already.
    """

    there: Guest | None
    source: Guest | None
    identity: Identity | None = None
    parts: tuple[Part, ...] = ()
    missing: tuple[str, ...] = ()
    pools: t.Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    free: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    nvram: bool = False
    tpm: bool = False
    taken: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """What will be done, and the definition that it leads to; None when nothing is to be done."""

    plan: Plan
    config: Element | None = None
    warnings: tuple[str, ...] = ()


def look(
    connection: t.Any,
    wanted: Wanted,
    there: Guest | None,
    where: Places,
    free: t.Callable[[str], int] = storage.free,
) -> World:
    """All that a clone depends on; ``free`` tells how much is left for it in a directory.

    Raises:
        PhyllomeError: libvirt does not tell.
    """
    ours = None if there is None else domain.marker(there.config)
    if wanted.clone is None or (there is not None and (ours is None or ours.origin is None or ours.origin.done)):
        return World(there, None)
    with virt.saying(f"Guest {wanted.clone.guest} cannot be looked up"):
        found = virt.found(lambda: connection.lookupByName(t.cast(t.Any, wanted.clone).guest))
    if found is None:
        return World(there, None)
    source = read.guest(found)
    what = identity.of(source.config, source.live, where)
    pools = {
        disk.pool: _directory(connection, disk.pool)
        for disk in wanted.devices.get(DISKS.option, ())
        if disk.pool is not None
    }
    placed = {disk.id: pools[disk.pool] for disk in wanted.devices.get(DISKS.option, ()) if disk.pool is not None}
    parts = tuple(_parts(what, wanted, placed, ours))
    uuid = there.uuid if there is not None else wanted.uuid or guest_uuid(wanted.name)
    homes = (f"{where.nvram}/{uuid}_VARS.fd", f"{where.swtpm}/{uuid}")
    directories = {os.path.dirname(part.path) for part in parts}
    return World(
        there=there,
        source=source,
        identity=what,
        parts=parts,
        missing=tuple(drive.path for drive in what.drives if drive.path and not os.path.exists(drive.path)),
        pools=pools,
        free={each: free(each) for each in directories if os.path.isdir(each)},
        nvram=what.nvram is not None and os.path.exists(what.nvram),
        tpm=what.tpm is not None and bool(identity.files(what.tpm)),
        taken=tuple(path for path in homes if os.path.exists(path)),
    )


def _directory(connection: t.Any, name: str) -> str | None:
    with virt.saying(f"Pool {name} cannot be read"):
        pool = virt.found(lambda: connection.storagePoolLookupByName(name))
        return None if pool is None or not pool.isActive() else xml.parse(pool.XMLDesc()).findtext("target/path")


def _parts(what: Identity, wanted: Wanted, placed: t.Mapping[str, str | None], ours: Marker | None) -> t.Iterator[Part]:
    clone = t.cast("Clone", wanted.clone)
    for drive in what.drives:
        if drive.odd or not drive.path or not os.path.exists(drive.path):
            continue
        form = "qcow2" if clone.method == "linked" else drive.format
        directory = placed.get(drive.label) or os.path.dirname(drive.path)
        path = f"{directory}/{wanted.name}-{drive.label}.{form}"
        volume = ours.volume(drive.label) if ours else None
        path = volume.path if volume is not None else path  # as it was begun
        kind = "luks" if drive.encrypted and drive.format == "raw" else drive.format
        told = json.loads(run(["qemu-img", "info", "-U", "-f", kind, "--output=json", drive.path]))
        key = spec.passphrase(wanted, drive.label) if drive.encrypted else None
        yield Part(
            label=drive.label,
            target=drive.target,
            source=drive.path,
            path=path,
            format=drive.format,
            capacity=told["virtual-size"],
            takes=_takes(clone.method, drive, told, path),
            exists=os.path.exists(path),
            encrypted=drive.encrypted,
            layered=drive.encrypted and bool(told.get("backing-filename") or told.get("snapshots")),
            opens=None if key is None else luks.opens(drive.path, drive.format, key),
        )


def _takes(method: str, drive: identity.Drive, told: t.Mapping[str, t.Any], path: str) -> int:
    """Bytes that the copy of a disk takes at most, by the way it is made (``_copy``); ``told`` by qemu-img."""
    if method == "linked":
        return storage.needed(0, None)
    flat = drive.format != "qcow2" or drive.encrypted or not (told.get("backing-filename") or told.get("snapshots"))
    if method == "reflink" or (method == "auto" and flat and storage.shares(str(drive.path), os.path.dirname(path))):
        return 0
    used = int(told["actual-size"])
    if drive.encrypted:
        return used
    argv = ["qemu-img", "measure", "-U", "-f", drive.format, "-O", "qcow2", "--output=json", str(drive.path)]
    required = int(json.loads(run(argv))["required"])
    return max(used, required) if method == "auto" and flat else required


def plan(wanted: Wanted, world: World, where: Places) -> Decision:
    """What makes the clone, or nothing where it is complete.

    Raises:
        PhyllomeError: it cannot be made; all reasons at once.
    """
    clone, there = wanted.clone, world.there
    ours = None if there is None else domain.marker(there.config)
    origin = None if ours is None else ours.origin
    if clone is None:
        return Decision(Plan())
    if there is not None:
        if origin is not None and origin.guest != clone.guest:
            raise PhyllomeError(
                f"clone_from.guest: {clone.guest} is declared, guest {wanted.name} was made from {origin.guest}",
                "clone_from only says what a new guest is made from",
                f"Declare {origin.guest}, or make another guest.",
            )
        if origin is None or origin.done:
            return Decision(Plan())
    problems = list(_reasons(wanted, clone, world))
    if problems:
        raise together(wanted.name, problems, Plan())
    root, warnings = definition(wanted, clone, world, where)
    method = clone.method if origin is None else origin.method
    changes = [Change("define", "clone_from", None, f"{clone.guest} ({method})")] if there is None else []
    if there is not None:
        changes.append(Change("", "clone_from", "cut off", clone.guest))
    for part in world.parts:
        if not part.exists:
            form = "qcow2" if method == "linked" else part.format
            changes.append(
                Change(
                    "disk",
                    f"disks.{part.label}",
                    None,
                    f"{form}, {format_size(part.capacity)}, {method}",
                    args={
                        "part": part,
                        "method": method,
                        "form": form,
                        "file": part.path,
                        "needs": part.takes,
                    },
                )
            )
    uuid = root.findtext("uuid", "")
    for kind, copied, path in (
        ("nvram", clone.nvram and world.nvram, f"{where.nvram}/{uuid}_VARS.fd"),
        ("tpm", clone.tpm and world.tpm, f"{where.swtpm}/{uuid}"),
    ):
        if copied and path not in world.taken:
            name = "firmware.nvram" if kind == "nvram" else "tpm.state"
            changes.append(Change(kind, name, None, f"copy of {clone.guest}'s", args={"to": path}))
    return Decision(Plan((*changes, Change("finish", "clone_from.complete", None, True))), root, warnings)


def _reasons(wanted: Wanted, clone: Clone, world: World) -> t.Iterator[PhyllomeError]:
    source, what = world.source, world.identity
    if source is None or what is None:
        yield PhyllomeError(
            f"clone_from.guest: {clone.guest}",
            "this host has no such guest",
            "Correct the name, or make that one first.",
        )
        return
    if wanted.name == clone.guest:
        yield PhyllomeError(f"clone_from.guest: {clone.guest}", "it is the guest itself", "Name another one.")
        return
    if source.state != "stopped" or source.managed_save:
        state = "saved, not off" if source.managed_save else source.state
        yield PhyllomeError(
            f"clone_from.guest: {clone.guest} is {state}",
            "its disks, UEFI variables and TPM would be copied from different moments",
            "Shut it down first. For a copy of a guest that runs, take a snapshot with vm_snapshot and use vm_export.",
        )
    if domain.moving(source.config):
        yield PhyllomeError(f"clone_from.guest: {clone.guest}", "it is being moved", "Let vm_migrate finish first.")
    origin = domain.marker(source.config)
    if origin is not None and origin.origin is not None and not origin.origin.done:
        yield PhyllomeError(
            f"clone_from.guest: {clone.guest}", "it is a clone itself that is not complete", "Run for that one first."
        )
    for reason in what.reasons(encrypted=True):
        yield PhyllomeError(
            f"clone_from.guest: {clone.guest}: {reason}", "a clone is whole or it is none", "Change that in the source."
        )
    yield from _locked(clone, world)
    for path in world.missing:
        yield PhyllomeError(f"clone_from.guest: {clone.guest}: {path}", "there is no such file", "Put it there first.")
    for name, directory in world.pools.items():
        if directory is None:
            yield PhyllomeError(
                f"disks.pool: {name}", "there is no such active pool with a directory", "Make it first."
            )
    begun = None if world.there is None else domain.marker(world.there.config)
    room: dict[str, int] = {}
    for part in world.parts:
        if part.exists and begun is None:
            yield PhyllomeError(
                f"disks.{part.label}: {part.path} exists already",
                "it is not ours, and nothing is overwritten",
                "Move it away, or choose another name.",
            )
        elif not part.exists:
            directory = os.path.dirname(part.path)
            room[directory] = room.get(directory, _OVERHEAD) + part.takes
    for directory, size in room.items():
        if directory not in world.free:
            yield PhyllomeError(f"disks: {directory} is not a directory", "disks are made there", "Make it first.")
        elif size > world.free[directory]:
            smaller = "" if clone.method == "linked" else ", or say method: linked"
            yield PhyllomeError(
                f"disks: {size // 1024**2 + 1}MiB are needed in {directory}",
                f"{world.free[directory] // 1024**2}MiB are free there",
                f"Make room, or choose another pool{smaller}.",
            )
    if begun is None:
        wants = [clone.nvram and world.nvram, clone.tpm and world.tpm]
        for path in world.taken:
            if wants[0 if path.endswith("_VARS.fd") else 1]:
                yield PhyllomeError(
                    f"{path} exists already",
                    "an earlier guest with this uuid has left it, and nothing is overwritten",
                    "Remove it, or say nvram: fresh and tpm: fresh in clone_from to go on with it.",
                )


def _locked(clone: Clone, world: World) -> t.Iterator[PhyllomeError]:
    """Encrypted disks are copied as they are, so the passphrase of the copy is that of the source."""
    for part in world.parts:
        option = f"disks.{part.label}"
        if not part.encrypted:
            continue
        if clone.method == "linked":
            yield PhyllomeError(
                f"clone_from.method: linked: {option} of {clone.guest} is encrypted",
                "what a linked clone writes would not be, or would need the source's passphrase for ever",
                "Say method: full or reflink.",
            )
        if part.layered:
            yield PhyllomeError(
                f"clone_from.guest: {clone.guest}: {option} is encrypted and has a backing file or snapshots",
                "its file is copied as it is, and that is not all of it",
                "Delete the snapshots, or merge the files: virsh blockpull while the guest runs.",
            )
        if part.opens is None:
            yield PhyllomeError(
                f"{option}.encryption: the passphrase of the copy is not declared",
                f"it is that of {clone.guest}, which libvirt tells nobody",
                f"Declare {option} with encryption.passphrase.",
            )
        elif not part.opens:
            yield PhyllomeError(
                f"{option}.encryption.passphrase: it does not open {part.source}",
                "the disk was made with another one",
                f"Declare the passphrase of {clone.guest}.",
            )


def definition(wanted: Wanted, clone: Clone, world: World, where: Places) -> tuple[Element, tuple[str, ...]]:
    """The clone's definition with our marker in it, and what people have to know."""
    if world.there is not None:
        return copy.deepcopy(world.there.config), ()
    source = t.cast("Guest", world.source)
    root = copy.deepcopy(source.config)
    identity.reborn(root, wanted.name, wanted.uuid or guest_uuid(wanted.name), where.nvram, fresh=True)
    warnings = []
    devices = xml.ensure(root, "devices")
    for found in devices.findall("hostdev"):
        devices.remove(found)
        warnings.append(
            f"Guest {wanted.name} has no {found.get('type')} device of the host, unlike {clone.guest}: no two guests can have "
            "one. Declare hostdevs for it."
        )
    for cdrom in CDROMS.elements(root):
        if device_id(cdrom) in RESERVED:
            devices.remove(cdrom)  # what cloud-init or an installer told the source
    warnings += [
        f"Guest {wanted.name} is not given {rule} at plug, unlike {clone.guest}. Declare hostdevs for it."
        for rule in plug.rules(source.config)
    ]
    address = xml.first(devices, "vsock/cid")
    if address is not None and address.get("auto") != "yes":
        address.attrib.pop("address", None)
        address.set("auto", "yes")
    files = {part.target: part for part in world.parts}
    for disk in DISKS.elements(root):
        part = files.get(TARGET.read(disk) or "")
        if part is not None:
            xml.drop(disk, "backingStore")
            xml.ensure(disk, "source").set("file", part.path)
            xml.ensure(disk, "driver").set("type", "qcow2" if clone.method == "linked" else part.format)
            luks.set_secret(disk, luks.secret_uuid(root.findtext("uuid", ""), part.label))
    theirs = domain.marker(source.config)
    left = {device_id(found) for found in devices}
    marker = Marker(
        profile=theirs.profile if theirs else None,
        devices=tuple(name for name in (theirs.devices if theirs else ()) if name in left),
        volumes=tuple(Volume(part.label, part.path, False) for part in world.parts),
        origin=Origin(clone.guest, source.uuid, clone.method, False),
    )
    xml.drop(root, f"metadata/{{{xml.MIGRATION_NS}}}migration")
    domain.set_marker(root, marker)
    return root, tuple(warnings)


def complete(marker: Marker) -> Marker:
    """The same of a clone that has all its files."""
    done = None if marker.origin is None else dataclasses.replace(marker.origin, done=True)
    return dataclasses.replace(marker.made({volume.id for volume in marker.volumes}), origin=done)


def foreseen(decision: Decision, world: World) -> Guest:
    """The clone as it will be, for check mode."""
    root = copy.deepcopy(t.cast("Element", decision.config))
    domain.set_marker(root, complete(t.cast(Marker, domain.marker(root))))
    source = t.cast("Guest", world.source)
    return dataclasses.replace(
        source,
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        autostart=False,
        config=root,
        blocks={part.target: (part.capacity, 0) for part in world.parts},
        snapshots=0,
        checkpoints=0,
    )


def as_made(world: Surroundings, guest: Guest) -> Surroundings:
    """The world in which the clone's files are there, for check mode."""
    files = {str(disk.path): True for disk in identity.of(guest.config, None, _NOWHERE).drives}
    return dataclasses.replace(world, exists={**world.exists, **files})


def apply(connection: t.Any, wanted: Wanted, world: World, decision: Decision) -> None:
    """Make the clone.

    Raises:
        PhyllomeError: a step failed; running again goes on from there.
    """
    what = t.cast("Identity", world.identity)
    root = t.cast("Element", decision.config)
    for change in decision.plan:
        if change.action == "define":
            with virt.saying(f"Guest {wanted.name} cannot be defined", "Nothing was changed; see the message."):
                connection.defineXMLFlags(xml.dump(root), virt.libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        elif change.action == "disk":
            _copy(change.args["part"], change.args["method"], change.args["form"])
        elif change.action == "nvram":
            identity.copy(str(what.nvram), change.args["to"])
        elif change.action == "tpm":
            identity.copy_tree(str(what.tpm), change.args["to"])
        elif change.action == "finish":
            _finish(connection, wanted, t.cast(Marker, domain.marker(root)))
    for directory in {os.path.dirname(part.path) for part in world.parts}:
        with contextlib.suppress(virt.libvirt.libvirtError):
            connection.storagePoolLookupByTargetPath(directory).refresh()


def _copy(part: Part, method: str, form: str) -> None:
    remedy = "Look at the disk space and the message, then run again: what is half made is made anew."
    with storage.making(part.path) as partial:
        if part.encrypted and method != "reflink":
            share = "--reflink=never" if method == "full" else "--reflink=auto"
            argv = ["cp", share, "--sparse=always", "--no-preserve=all", "--", part.source, partial]
        elif method == "auto" and not (
            part.format == "qcow2" and (storage.chain(part.source, part.format) or identity.snapshots(part.source))
        ):
            # The kernel shares the blocks where the file system can, else it copies them, and holes stay holes.
            argv = ["cp", "--reflink=auto", "--sparse=always", "--no-preserve=all", "--", part.source, partial]
        elif method == "linked":
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", part.source, "-F", part.format, partial]
        elif method == "reflink":
            remedy = "Say method: full, or put both on one btrfs or XFS file system."
            argv = ["cp", "--reflink=always", "--no-preserve=all", "--", part.source, partial]
        else:
            argv = ["qemu-img", "convert", "-q", "-f", part.format, "-O", form, part.source, partial]
        run(argv, timeout=identity.COPY_TIMEOUT, remedy=remedy)


def _finish(connection: t.Any, wanted: Wanted, marker: Marker) -> None:
    with virt.saying(f"Guest {wanted.name} cannot be marked as complete"):
        connection.lookupByName(wanted.name).setMetadata(
            virt.libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            xml.dump(complete(marker).fragment()),
            "phyllome",
            xml.GUEST_NS,
            virt.libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )
