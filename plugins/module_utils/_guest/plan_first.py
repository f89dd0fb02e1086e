# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for a guest's first boot: the seed of cloud-init, and installing a system. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from .._core.units import format_size
from . import domain, install, plan_devices, storage
from .domain import Volume
from .media import CLOUD_INIT, INSTALL_FILES, INSTALL_ISO
from .read_first import drive
from .spec import Device
from .tables import BOOT, CDROMS, DISKS, DOMAIN, KINDS

if t.TYPE_CHECKING:
    from .draft import Draft
    from .install import Install
    from .media import Medium
    from .read import Guest
    from .seed import Seed
    from .world import World

_MEMORY = DOMAIN[""][0]
_ENOUGH = 1024**3
"""Bytes of memory that Debian's installer (12, from the network) works with; with three quarters of it it stops."""
_SECURE_BOOT = next(row for row in DOMAIN["firmware"] if row.option == "secure_boot")

BEGUN, DONE = "begun", "done"
"""What our marker says of the installation."""


def first_boot(draft: Draft) -> None:
    """What is declared for the first boot."""
    if draft.wanted.cloud_init is not None:
        _seed(draft, draft.wanted.cloud_init)
    if draft.wanted.install is not None:
        _install(draft, draft.wanted.install)


def _seed(draft: Draft, wanted: Seed) -> None:
    """The guest keeps the seed that it was made with. Its file's name says what is in it, so our marker knows."""
    medium, path = draft.world.first.media[CLOUD_INIT], draft.world.first.paths[CLOUD_INIT]
    if path is None:
        _nowhere(draft, "cloud_init")
        return
    volume, inside = draft.marker.volume(CLOUD_INIT), drive(draft.root, CLOUD_INIT)
    if volume is not None and volume.made and volume.path != path and not wanted.reseed:
        draft.warnings.append(
            f"Guest {draft.wanted.name}: cloud_init is not what the guest was seeded with, and nothing was done about it. "
            "With on_change: reseed it becomes a new instance, for which cloud-init does all of its work again at its "
            "next boot, host keys and users included."
        )
        return
    if volume is not None and volume.made and volume.path == path and not (inside or (inside is None and wanted.keep)):
        return  # it has done its work and was taken out
    if draft.world.first.done and volume is not None and volume.path == path and inside == path:
        _insert(draft, medium, "")
        _remove(draft, "cloud_init.seed", (path,))
        return
    _insert(draft, medium, path)
    _make(draft, "cloud_init.seed", medium, path)
    _remove(draft, "cloud_init.seed", draft.world.first.stale.get(CLOUD_INIT, ()))


def _install(draft: Draft, wanted: Install) -> None:
    mark, there = draft.marker.install, draft.there
    if mark is None and _empty(draft):
        _begin(draft, wanted)
    elif mark == BEGUN and there is not None and there.live is None and finished(there, draft.world):
        draft.note("config", "install", BEGUN, DONE)
        install.end(draft.root)
        for medium in (INSTALL_ISO, INSTALL_FILES):
            found = domain.device(CDROMS, draft.root, medium)
            if found is not None:
                found.getparent().remove(found)  # type: ignore[union-attr]
        draft.marker = dataclasses.replace(
            draft.marker,
            install=DONE,
            devices=tuple(name for name in draft.marker.devices if name not in (INSTALL_ISO, INSTALL_FILES)),
        )
    elif mark == BEGUN:
        _again(draft, wanted)
    kept = draft.marker.volume(INSTALL_FILES)
    if draft.marker.install == DONE and kept is not None:
        draft.note("medium.remove", "install.medium", kept.path, None, file=kept.path, id=INSTALL_FILES)


def finished(there: Guest, world: World) -> bool:
    """Whether a guest that is off was ended by its installer: it turned itself off and left something on its disk."""
    return there.reason == "shutdown" and world.first.written is True


def _empty(draft: Draft) -> bool:
    """Whether there is a disk and nothing on it. A guest that runs, or has something, is not ours to install."""
    there = draft.there
    if (there is not None and there.live is not None) or draft.world.first.written is not False:
        if there is None and draft.world.first.written is None:
            draft.problem("install", "the guest has no disk to install on", "Declare disks.")
        return False
    disks = draft.wanted.devices.get(DISKS.option, ())
    if there is None and disks and disks[0].source is not None:
        draft.problem(
            f"install: {disks[0].path} has a source",
            "a copy of an image has a system already",
            "Keep one of install and source.",
        )
        return False
    return True


def _begin(draft: Draft, wanted: Install) -> None:
    kernel = install.boot(wanted, draft.world.first.exists)
    if wanted.location is not None and kernel is None:
        draft.problem(
            f"install.location: {wanted.location}",
            f"it has none of {', '.join(path for path, dummy, dummy2 in install.TREES)}, each beside its initrd",
            "Give the top of a distribution's tree, or kernel and initrd.",
        )
    if kernel is not None and _SECURE_BOOT.read(draft.root):
        draft.problem(
            f"install: the kernel {kernel.kernel} is started by firmware with Secure Boot",
            "that starts what Microsoft has signed, and no distribution's kernel is: their boot loader is",
            "Say firmware.secure_boot: false, or install from an iso without kernel.",
        )
    for option in ("iso", "kernel", "initrd"):
        path = getattr(wanted, option)
        if path and not draft.world.first.exists.get(path):
            draft.problem(f"install.{option}: {path}", "this host has no such file", "Put it there first.")
    if wanted.iso is not None:
        # SATA is the drive that every installer knows.
        orders = [BOOT.read(found) or 0 for kind in KINDS for found in kind.elements(draft.root)]
        _drive(draft, INSTALL_ISO, wanted.iso, max(orders, default=0) + 1)
    _medium(draft)
    memory = _MEMORY.read(draft.root)
    if memory < _ENOUGH:
        draft.warnings.append(
            f"Guest {draft.wanted.name} has {format_size(memory)} of memory for its installer; Debian's needs "
            f"{format_size(_ENOUGH)}, others need more, and one that has too little stops."
        )
    install.begin(draft.root, kernel)
    draft.marker = dataclasses.replace(draft.marker, install=BEGUN)
    draft.note("config", "install", None, BEGUN)
    if _waits(draft, wanted):
        draft.note("install.end", "install", BEGUN, DONE)


def _again(draft: Draft, wanted: Install) -> None:
    """An earlier run began it. The media are still in the definition; what was cut off starts again."""
    _medium(draft)
    there = draft.there
    if there is not None and there.live is None and draft.world.first.written is None:
        draft.problem(
            "install: whether its disk is empty is not known",
            "an installer starts again only where it is known to have been cut off",
            "Can qemu-img map read the guest's first disk?",
        )
    if there is not None and there.live is None and draft.world.first.written:
        draft.warnings.append(
            f"Guest {draft.wanted.name} was stopped ({there.reason}) while its system was being installed, and starts "
            "its installer again."
        )
    if _waits(draft, wanted):
        draft.note("install.end", "install", BEGUN, DONE)


def _waits(draft: Draft, wanted: Install) -> bool:
    return wanted.timeout > 0 and draft.wanted.state == "running"


def _medium(draft: Draft) -> None:
    for medium in (draft.world.first.media.get(INSTALL_FILES),):
        path = draft.world.first.paths.get(INSTALL_FILES)
        if medium is None:
            continue
        if path is None:
            _nowhere(draft, "install")
        elif draft.marker.install is None or drive(draft.root, INSTALL_FILES) == path:
            _drive(draft, INSTALL_FILES, path, None)
            _make(draft, "install.medium", medium, path)


def _drive(draft: Draft, name: str, path: str, boot: int | None) -> None:
    plan_devices.declare(draft, CDROMS, Device(CDROMS, name, {"path": path}), boot)


def _insert(draft: Draft, medium: Medium, path: str) -> None:
    # Kernels for clouds (Debian's for one) have no driver for SATA, but all that know virtio know its SCSI.
    new = drive(draft.root, medium.id) is None and draft.profile.disk_bus == "virtio"
    values = {"path": path, **({"bus": "scsi"} if new else {})}
    plan_devices.declare(draft, CDROMS, Device(CDROMS, medium.id, values), None)
    told = [
        change.args["device"]
        for change in draft.changes
        if change.path == f"cdroms.{medium.id}.path" and "device" in change.args
    ]
    for found in (domain.device(CDROMS, draft.root, medium.id), *told):
        source = None if found is None else found.find("source")
        if source is not None:
            # A guest that is moved loses it on the way, and gets it again where it is declared.
            source.set("startupPolicy", "optional")


def _make(draft: Draft, option: str, medium: Medium, path: str) -> None:
    volume, there = draft.marker.volume(medium.id), draft.world.first.exists.get(path)
    if volume is None or volume.path != path:
        kept = tuple(each for each in draft.marker.volumes if each.id != medium.id)
        draft.marker = dataclasses.replace(draft.marker, volumes=(*kept, Volume(medium.id, path, False)))
        volume = None
    if there:
        if volume is None or not volume.made:
            draft.note("volume.finish", option, None, path, id=medium.id)
        return
    if not draft.world.first.program:
        draft.problem(
            option,
            "this host has no program that makes CD images",
            "Install xorriso; the role phyllome.virt.hypervisor does.",
        )
    directory, systems = os.path.dirname(path), draft.world.systems
    size = draft.world.first.sizes.get(medium.id, 0)
    needed, free = storage.needed(size, None) + size, draft.world.free.get(directory)
    if free is not None:
        others = (
            (os.path.dirname(change.args["file"]), change.args["needs"])
            for change in draft.changes
            if "needs" in change.args
        )
        free -= sum(needs for place, needs in others if systems.get(place, place) == systems.get(directory, directory))
    if free is not None and needed > free:
        draft.problem(
            f"{option}: {format_size(-(-needed // 1024**2) * 1024**2)} are needed in {directory}",
            f"{max(free, 0) // 1024**2}MiB are free there",
            "Make room.",
        )
    draft.note("medium.create", option, None, path, file=path, medium=medium, id=medium.id, needs=needed)


def _remove(draft: Draft, option: str, paths: t.Iterable[str]) -> None:
    for path in paths:
        draft.note("medium.remove", option, path, None, file=path)


def _nowhere(draft: Draft, option: str) -> None:
    draft.problem(
        f"{option}: there is no place for its CD image",
        "it is put beside the first disk, into the storage pool of that",
        "Make the pool with phyllome_pool.",
    )
