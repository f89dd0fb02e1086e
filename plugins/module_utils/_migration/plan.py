# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands against a move, and what a move will do.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from .._core.plan import Change, Plan
from .._core.sysfs import is_vfio
from .devices import Device, Offered
from .judge import ALIVE, Row
from .read import NVRAM, View
from .read_guest import Guest
from .read_offer import Offer
from .read_way import PORTS, Way, shown
from .spec import Order

SLACK = 16 * 1024**2
"""Bytes that a sparse copy may take beyond 5 %: tables of the format, clusters that were touched."""


def grown(before: int) -> int:
    """The most bytes that the copy of a file may take."""
    return before * 105 // 100 + SLACK


def shown_size(size: float) -> str:
    """About how much it is, for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@dataclasses.dataclass(frozen=True)
class Blocker:
    """One thing that stands against a move.

    Attributes:
        code: for programs.
        what: what was found.
        fix: what to do about it.
    """

    code: str
    what: str
    fix: str


MODES = ("live", "warm", "cold")
"""In the order in which ``auto`` would have them."""


def modes(order: Order, state: str, begun: str | None) -> list[tuple[str, str]]:
    """How the guest may move, and why, the best way first. Pure.

    Args:
        order: what was asked for.
        state: the guest's at the source, see judge.SOURCES.
        begun: the mode of a move of its files that was interrupted.
    """
    off = state in ("off", "crashed")
    if begun and (begun == "warm" or not off):
        return [(begun, f"a {begun} move has begun")]
    if off:
        return [("cold", "the guest is off")]
    if order.mode != "auto":
        return [(order.mode, "it was asked for")]
    stops = "it gets other devices" if order.hostdevs else ""
    if order.power_after == "off":
        stops = "the guest shall be off afterwards"
    allowed = order.allow or (("cold",) if stops else ("live",))
    left = [mode for mode in MODES if mode in allowed and not (stops and mode == "live")]
    why = stops or ("the guest has its memory here" if "live" in left else "allow has no live")
    return [(mode, why) for mode in left] or [("cold", stops)]


def blockers(order: Order, view: View, guest: Guest, offer: Offer, mode: str, ours: t.Collection[str]) -> list[Blocker]:
    """Everything that stands against a move, at once. Pure.

    Args:
        order: what was asked for.
        view: both hosts.
        guest: what is moved.
        offer: what the destination has.
        mode: how it would move; warm and cold differ in nothing that counts here.
        ours: files and folders at the destination that an interrupted run of this move has made.
    """
    here, there = view.source.host, view.destination.host
    found: list[Blocker] = []

    def block(code: str, what: str, fix: str) -> None:
        found.append(Blocker(code, what, fix))

    if offer.same_host:
        block(
            "same_host",
            f"{here} and {there} are the same host, or have the same host uuid",
            "Give the right destination_uri; clones of a host need a host_uuid of their own in libvirtd.conf.",
        )
    off = mode != "live"
    if order.mode == "live" and off:
        block("not_running", f"the guest is {view.source.detail}", "Start it, or use mode: auto, which moves it cold.")
    if order.mode == "auto" and order.allow and mode not in order.allow:
        block(
            "mode",
            f"the guest would move {mode}, and allow has only {', '.join(order.allow)}",
            f"Add {mode} to allow.",
        )
    if off and view.source.state == "paused":
        block("paused", "the guest is paused, so it cannot shut down", "Resume it, or move it with mode: live.")
    if view.source.state == "stuck":
        block("stuck", f"the guest is {view.source.detail}", "Repair and resume it, or shut it down.")
    if not view.source.persistent:
        block("transient", "the guest is not defined, it only runs", "Define it: virsh dumpxml and virsh define.")
    if view.source.job == "other" or guest.block_jobs:
        jobs = f"block jobs on {', '.join(guest.block_jobs)}" if guest.block_jobs else "a job"
        block(
            "job_active",
            f"the guest has {jobs} under way",
            "Wait for its end, or abort it: virsh domjobabort, virsh blockjob --abort.",
        )
    if guest.managed_save:
        block(
            "managed_save",
            "the guest's memory is saved on disk, and only this host's QEMU is sure to read it",
            "Start it, or drop what was saved: virsh managedsave-remove.",
        )
    for code, what, fix in guest.obstacles:
        block(code, what, fix)
    if mode == "warm" and any(disk.flat for disk in guest.disks):
        block(
            "backing_chain",
            "chain: flatten was asked for, and a warm move copies files as they are",
            "Say mode: live or mode: cold, or chain: keep.",
        )
    if off:
        _devices(block, there, order, guest, offer)
    disks = {disk.path for disk in guest.disks}
    for path in offer.present:
        if not any(path == one or path.startswith(f"{one}/") for one in ours):
            block(
                "disk_exists",
                f"{there} has a file {path} already, and this move did not make it",
                "Look what it is; rename or delete it."
                + (" If both hosts have the same storage, say storage: shared." if path in disks else ""),
            )
    if offer.fence_there is False and not ours:
        block(
            "no_fence",
            f"{there} does not keep a guest from being started before it was handed over: its libvirt lacks the hook phyllome-fence",
            f"Run the role phyllome.virt.hypervisor on {there}.",
        )
    _shared(block, there, order, guest, offer)
    _storage(block, there, guest, offer, resumed=off and bool(ours))
    for path, is_there in offer.media.items():
        if is_there is False:
            block("medium_missing", f"{there} has no {path}", "Copy it there, or eject it.")
    for name, active in offer.networks.items():
        if not active:
            block(
                "network_missing",
                f"on {there} the network {name} " + ("does not exist" if active is None else "is not active"),
                f"Make it there, or virsh net-start {name}.",
            )
    for name, exists in offer.bridges.items():
        if exists is False:
            block("bridge_missing", f"{there} has no bridge {name}", "Make it there.")
    mark = view.source.mark
    shut = (
        mark is not None and (mark.op_id, mark.phase) == (view.op_id, "copying") and mark.power != "off"
    )  # for this move
    starts = mode == "live" or order.power_after == "running" or (
        order.power_after == "same" and (shut or view.source.state in ALIVE)
    )  # fmt: skip
    if starts and offer.memory is not None and guest.memory > offer.memory:
        block(
            "memory",
            f"{there} has {shown_size(offer.memory)} of memory available, the guest needs {shown_size(guest.memory)}",
            "Free memory there, or choose another destination.",
        )
    if offer.platform:
        block(
            "platform",
            f"{there} cannot run {guest.machine} with {guest.emulator} as {guest.type}: {offer.platform}",
            "Install the same QEMU there, or choose another destination.",
        )
    if offer.loader is False:
        block(
            "firmware",
            f"libvirt on {there} does not know the firmware {guest.loader}",
            "Install the same firmware package there.",
        )
    if offer.cpu is False:
        block(
            "cpu",
            f"the CPU of {there} lacks features that the guest uses",
            "Move it cold after giving it a CPU model that both hosts have.",
        )
    if mode == "live" and offer.faults is False:
        block(
            "post_copy",
            f"QEMU on {there} may not handle page faults, so convergence.on_stall: post_copy is not possible",
            f"Set vm.unprivileged_userfaultfd=1 on {there} (sysctl), or say on_stall: suspend.",
        )
    if guest.last_cpu is not None and guest.last_cpu >= offer.cpus:
        block(
            "pinning",
            f"the guest is pinned to CPU {guest.last_cpu}, and {there} has CPUs 0 to {offer.cpus - 1}",
            "Pin it to CPUs that both hosts have.",
        )
    for size, free in offer.pages.items():
        if guest.memory > free * size * 1024:
            block(
                "huge_pages",
                f"{there} has {free} free pages of {shown_size(size * 1024)}, the guest's memory of {shown_size(guest.memory)} is made of such",
                "Reserve more there (hugepagesz and hugepages on its kernel command line).",
            )
    _way(block, here, there, offer.way, mode)
    return found


def _way(block: t.Callable[[str, str, str], None], here: str, there: str, way: Way, mode: str) -> None:
    if mode == "live" and way.qemu[1] < way.qemu[0]:
        block(
            "qemu_older",
            f"{there} has QEMU {shown(way.qemu[1])}, {here} has {shown(way.qemu[0])}, and only a newer one is sure to read an older one's state",
            f"Update QEMU on {there}, or shut the guest down and move it cold.",
        )
    if mode == "live" and way.certificates:
        block(
            "certificates",
            f"{here} cannot prove who it is to {there} for the guest's data: {way.certificates}",
            "The role phyllome.virt.hypervisor makes certificates; if one is not valid yet or any more, see whether the clock is right.",
        )
    if way.ports:
        block(
            "ports",
            f"nothing gets through from {here} to {there} for the guest's data: {way.ports}",
            f"Open ports {PORTS[0]} to {PORTS[1]} of {there} for {here} (the role phyllome.virt.hypervisor does), or give the right migrate_address.",
        )


def _devices(block: t.Callable[[str, str, str], None], there: str, order: Order, guest: Guest, offer: Offer) -> None:
    """What the guest has of its host has to be said anew, and be there, free."""
    for device in guest.devices:
        new, has = order.hostdevs.get(device.id, device.now), offer.devices.get(device.id)
        if device.kind not in ("pci", "usb", "mdev"):
            block(
                "hostdevs",
                f"{device.id} is a device of this host that others have no equal of",
                "Take it out for the move.",
            )
        elif device.kind != "usb" and device.id not in order.hostdevs:
            block(
                "hostdevs",
                f"it has {device.now} of this host ({device.id})",
                f"Say which one of {there} it gets: hostdevs: {{{device.id}: ADDRESS}}.",
            )
        elif has is None:
            block("hostdev_missing", f"{there} has no device {new} for {device.id}", "Plug it in, or name another one.")
        else:
            _device(block, there, device, new, has)
    for name in sorted(set(order.hostdevs) - {device.id for device in guest.devices}):
        block("hostdevs", f"it has no device {name}, which hostdevs names", "Correct the id.")


def _device(block: t.Callable[[str, str, str], None], there: str, device: Device, new: str, has: Offered) -> None:
    if device.kind == "pci" and not is_vfio(has.driver):
        driver = has.driver or "no driver"
        block("hostdev_used", f"{new} of {there} is not bound to VFIO ({driver})", "Bind it to vfio-pci there.")
    if has.guests:
        block(
            "hostdev_taken",
            f"{new} of {there}, or another device of its IOMMU group, belongs to guest {', '.join(has.guests)}",
            "Take it out of that guest first, or name another one.",
        )
    if has.hosted:
        block(
            "hostdev_group",
            f"{there} itself uses others of the IOMMU group of {new}: {', '.join(has.hosted)}",
            "Bind all of the group to VFIO there: list it in phyllome_passthrough.",
        )


_DROPS_CACHE = 4000000
"""QEMU that forgets what it has cached of a disk before another host writes to it."""


def _shared(block: t.Callable[[str, str, str], None], there: str, order: Order, guest: Guest, offer: Offer) -> None:
    """What is said to be on both hosts has to be the same."""
    for target, why in offer.not_shared.items():
        block(
            "not_shared",
            f"disk {target} is not the same on {there}: {why}",
            f"Mount the same storage at the same path on {there}, or say storage: copy for it.",
        )
    if guest.shared and min(offer.way.qemu) < _DROPS_CACHE:
        block("not_shared", "a QEMU before 4.0 may remember what the other host has overwritten", "Update QEMU.")
    known = {name for disk in (*guest.disks, *guest.shared) for name in (disk.id, disk.target)}
    for name in sorted(set(order.storage) - known - {""}):
        block("storage", f"it has no disk {name}, which storage names", "Correct the id.")


def _storage(block: t.Callable[[str, str, str], None], there: str, guest: Guest, offer: Offer, resumed: bool) -> None:
    """Space for every file; an interrupted copy has taken its part of it already."""
    files = [(layer.path, layer.allocated) for disk in guest.disks if not disk.flat for layer in disk.backing]
    files += [(disk.path, disk.whole) for disk in guest.disks]
    for folder, pool in offer.pools.items():
        if pool is None:
            block(
                "pool_missing",
                f"{there} has no running storage pool at {folder}",
                f"Make one there: type dir, path {folder}.",
            )
            continue
        needed = sum(grown(allocated) for path, allocated in dict(files).items() if os.path.dirname(path) == folder)
        if needed > pool.available and not resumed:
            block(
                "space",
                f"pool {pool.name} of {there} has {shown_size(pool.available)} of space left, the disks need {shown_size(needed)}",
                "Make room there, or choose another destination.",
            )
    if offer.room is not None and grown(guest.snapshots_size) > offer.room and not resumed:
        block(
            "space",
            f"{there} has {shown_size(offer.room)} of space left in {NVRAM}, where what the guest's snapshots keep "
            f"arrives, {shown_size(guest.snapshots_size)}",
            "Make room there, or remove snapshots: vm_snapshot with state: absent.",
        )


def unknown(guest: Guest, offer: Offer, there: str) -> list[str]:
    """What could not be checked beforehand, where libvirt will refuse if it does not fit; and what stays. Pure."""
    below = {layer.path for disk in guest.disks for layer in disk.backing}
    said = [
        f"{path} stays where it is: {guest.name} had it as a disk and has it no more. Delete it there, or declare the disk again first."
        for path in guest.former
        if path not in below
    ]
    said += [
        f"Whether {there} has {path} could not be checked: no storage pool is there."
        for path, known in offer.media.items()
        if known is None
    ]
    said += [
        f"Whether {there} has the bridge {name} could not be checked."
        for name, known in offer.bridges.items()
        if known is None
    ]
    if offer.way.certificates is None:
        said.append("Whether this host's certificates are valid could not be checked: openssl is not there.")
    if offer.way.libvirt[1] < offer.way.libvirt[0]:
        older, newer = (shown(version) for version in reversed(offer.way.libvirt))
        said.append(
            f"{there} has libvirt {older}, which is older than {newer} here; it may not know all of the guest's definition."
        )
    if not offer.fence:
        said.append(
            "This host does not keep the guest from being started here while it moves: its libvirt lacks the hook "
            "phyllome-fence, which the role phyllome.virt.hypervisor installs."
        )
    if offer.fence_there is None:
        said.append(f"Whether {there} has the hook phyllome-fence, which a move of files takes, could not be checked.")
    if offer.faults is None:
        said.append(f"Whether QEMU on {there} may handle page faults (on_stall: post_copy) could not be checked.")
    if guest.cpu is not None and offer.cpu is None and not offer.platform:
        said.append(f"Whether the CPU of {there} can run the guest's could not be checked.")
    return said


def retained(path: str, op: str) -> str:
    """The name under which a file stays behind at the source."""
    return f"{path}.phyllome-retained-{op}"


def pieces(guest: Guest) -> dict[str, str]:
    """The guest's own files at the source, by the name they have in a plan."""
    named = {f"disks.{disk.target}": disk.path for disk in guest.disks}
    for disk in guest.disks:
        for number, layer in enumerate(disk.backing, 1):
            if not layer.shared and layer.path not in named.values():
                named[f"disks.{disk.target}.{number}"] = layer.path
    if guest.nvram:
        named["nvram"] = guest.nvram
    if guest.tpm:
        named["tpm"] = os.path.dirname(guest.tpm)
    if guest.snapshots:
        named["snapshots"] = guest.snapshots
    return named


def plan(order: Order, view: View, row: Row, guest: Guest) -> Plan:
    """What it takes until the destination has the guest and the source is cleaned up. Pure.

    Args:
        order: what was asked for.
        view: both hosts.
        row: what their state means.
        guest: as far as it is known: what is moved, or what is there already; seeds are those that are there.
    """
    here, there = view.source.host, view.destination.host
    changes: list[Change] = []
    if row.action == "none":
        return Plan()
    owned: t.Mapping[str, str] = pieces(guest)
    settled = row.action in ("finish", "hand_over", "recover")
    settled = settled or (row.action == "decide" and order.truth == "destination")
    if settled and view.record is not None and view.record.pieces:
        owned = view.record.pieces
    if row.action == "discard":
        changes.append(Change("discard", f"{there}.guest", view.destination.detail, None, why=row.meaning))
    if row.action == "destroy_source":
        changes.append(Change("destroy_source", f"{here}.guest", view.source.detail, "off", why=row.meaning))
    said = f"{row.meaning}; truth: {order.truth}"
    if row.action == "recover":
        changes.append(Change("recover", f"{there}.guest", view.destination.detail, "running", why=row.meaning))
    elif row.action == "decide" and view.destination.state == "absent":
        changes.append(Change("resume_source", f"{here}.guest", view.source.detail, "as it was", why=said))
    elif row.action == "decide" and view.source.state not in ALIVE:
        changes.append(Change("start_anew", f"{there}.guest", view.destination.detail, "as it was", why=said))
        changes.append(Change("stop", f"{here}.guest", view.source.detail, "off", why=said))
    elif row.action == "decide":
        loser, what = (here, view.source) if settled else (there, view.destination)
        changes.append(Change("stop", f"{loser}.guest", what.detail, "off", why=said))
        if not settled:
            changes += [
                Change("put_away", f"{there}.{name}", path, retained(path, view.op_id))
                for name, path in owned.items()
                if name != "tpm"
            ]
    if row.action == "resume_source":
        changes.append(Change("resume_source", f"{here}.guest", view.source.detail, "as it was", why=row.meaning))
    changes.append(Change("move", "host", here, there, why=row.meaning))
    if not settled:
        for disk in guest.disks:
            changes += [
                Change("copy", f"disks.{disk.target}.{number}", f"{here}:{layer.path}", f"{there}:{layer.path}",
                       why=f"{shown_size(layer.allocated)}, below {disk.target}" + (", and stays here" if layer.shared else ""))
                for number, layer in reversed(list(enumerate(() if disk.flat else disk.backing, 1)))
            ]  # fmt: skip
            most = ("at most " if disk.whole > disk.allocated else "") + shown_size(disk.whole)
            below = f", with the {len(disk.backing)} file(s) below it in one" if disk.flat else ""
            changes.append(
                Change("copy", f"disks.{disk.target}", f"{here}:{disk.path}", f"{there}:{disk.path}",
                       why=f"{most} of {shown_size(disk.virtual)}, sparse{below}")
            )  # fmt: skip
        changes += [
            Change(
                "keep", f"disks.{disk.target}", f"{here}:{disk.path}", f"{there}:{disk.path}", why="both hosts have it"
            )
            for disk in guest.shared
        ]
        changes += [
            Change("copy", name, f"{here}:{path}", f"{there}:{path}")
            for name, path in owned.items()
            if not name.startswith("disks.")
        ]
    if row.action == "start":
        changes += [
            Change("exchange", f"{there}.hostdevs.{device.id}", device.now, order.hostdevs[device.id])
            for device in guest.devices
            if device.id in order.hostdevs
        ]
    if view.source.autostart:
        changes.append(Change("autostart", f"{there}.autostart", False, True))
    if view.source.persistent or settled:
        changes += [
            Change("put_away", f"{here}.{name}", path, None if order.purge else retained(path, view.op_id))
            for name, path in owned.items()
        ]
    if view.source.persistent:
        changes += [
            Change("put_away", f"{here}.seed", path, None if order.purge else retained(path, view.op_id))
            for path in guest.seeds
        ]
        changes.append(Change("undefine", f"{here}.definition", view.name, None))
    return Plan(tuple(changes))
