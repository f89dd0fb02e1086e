# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the destination offers to a guest.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from .._core import virt, xml
from . import devices, files
from .read import NVRAM, TPM_STATES, Pair
from .read_guest import Guest
from .read_way import Way, way


@dataclasses.dataclass(frozen=True)
class Pool:
    """A storage pool of the destination that is running; ``available`` in bytes."""

    name: str
    available: int


@dataclasses.dataclass(frozen=True)
class Offer:
    """What the destination offers to this guest, and what the source has for the journey. None is unknown.

    Attributes:
        same_host: whether it is the source itself.
        memory: bytes that are available.
        pools: by directory; None where there is no running pool.
        present: paths of the guest's disks, UEFI variables, TPM and what vm_snapshot keeps that exist there.
        media: whether each CD or read-only file exists there.
        networks: whether each network is active; None where it does not exist.
        bridges: whether each bridge exists.
        platform: what libvirt says against emulator, machine type and CPU type; empty for nothing.
        loader: whether the firmware file is there.
        cpu: whether the CPU can run the guest's.
        cpus: how many CPUs it has.
        pages: how many huge pages are free, by their size in KiB.
        way: what lies between the hosts.
        devices: each device that the guest shall get, by id; None where there is no such device.
        fence: whether the source has the hook that keeps a guest in a move from being started.
        fence_there: whether the destination has it; only looked up where files are moved, which takes it.
        faults: whether QEMU there may handle page faults of its guests, which post-copy takes.
        not_shared: why a disk that both hosts are said to have is not the same one, by target.
        room: bytes that are free where files wait that are no disks; looked up when there are large ones.
    """

    same_host: bool
    memory: int | None
    pools: t.Mapping[str, Pool | None]
    present: tuple[str, ...]
    media: t.Mapping[str, bool | None]
    networks: t.Mapping[str, bool | None]
    bridges: t.Mapping[str, bool | None]
    platform: str
    loader: bool | None
    cpu: bool | None
    cpus: int
    pages: t.Mapping[int, int]
    way: Way
    devices: t.Mapping[str, devices.Offered | None] = dataclasses.field(default_factory=dict)
    fence: bool = True
    fence_there: bool | None = True
    faults: bool | None = True
    not_shared: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    room: int | None = None


def offer(pair: Pair, made_of: Guest, mode: str) -> Offer:
    """What the destination offers to a guest.

    Args:
        pair: both hosts.
        made_of: the guest, as it is read for the mode.
        mode: how it would move.

    Raises:
        PhyllomeError: libvirt does not say.
    """
    own = pair.source.ask(
        lambda connection: (connection.getHostname(), _capabilities(connection).findtext("host/uuid", ""))
    )
    with virt.saying(f"Cannot ask {pair.destination.name} what it offers"):
        between = way(pair)
        offered = pair.destination.ask(
            lambda connection: _offer(connection, own, made_of, between, pair.order.hostdevs)
        )
        if mode != "live":
            offered = dataclasses.replace(
                offered, fence_there=pair.destination.ask(lambda connection: _fenced(connection, made_of.uuid))
            )
        if pair.order.policy.on_stall != "post_copy":
            return offered
        faults = pair.destination.ask(lambda connection: _faults(connection, made_of.uuid, between))
        return dataclasses.replace(offered, faults=faults)


_OPENED = ((8, 0), (10, 1))
"""QEMU and libvirt that take /dev/userfaultfd, which root opens for others."""


def _faults(connection: t.Any, uuid: str, between: Way) -> bool | None:
    """Whether QEMU may handle page faults of the kernel's (userfaultfd(2)): a user who is not root asks the kernel's setting."""
    versions = tuple(divmod(two[1] // 1000, 1000) for two in (between.qemu, between.libvirt))
    if all(has >= needs for has, needs in zip(versions, _OPENED)):
        return True
    with contextlib.suppress(virt.libvirt.libvirtError), files.folder(connection, "/proc/sys/vm", uuid) as settings:
        if "unprivileged_userfaultfd" not in settings:
            return True if settings else None  # Linux before 5.2 asks nobody
        return files.read(connection, settings["unprivileged_userfaultfd"]).strip() == b"1"
    return None


def _fenced(connection: t.Any, uuid: str) -> bool | None:
    """Whether there is the hook that libvirt asks before it starts a guest; one that nobody may run it does not ask."""
    folder, name = os.path.split(_FENCE)
    with contextlib.suppress(virt.libvirt.libvirtError), files.folder(connection, folder, uuid) as hooks:
        mode = xml.parse(hooks[name].XMLDesc()).findtext("target/permissions/mode", "0") if name in hooks else "0"
        return bool(int(mode, 8) & 0o111)
    return None


def _present(connection: t.Any, made_of: Guest) -> t.Iterator[str]:
    """What goes with the guest's disks and is there already."""
    beside = [made_of.nvram] if made_of.nvram else []
    beside += [os.path.join(made_of.tpm, name) for name in TPM_STATES] if made_of.tpm else []
    beside += files.below(made_of.snapshots) if made_of.snapshots else []
    for where in sorted({os.path.dirname(path) for path in beside}):
        with files.folder(connection, where, made_of.uuid) as names:
            yield from (path for path in beside if os.path.dirname(path) == where and os.path.basename(path) in names)


def _offer(connection: t.Any, own: tuple[str, str], made_of: Guest, between: Way, wanted: t.Mapping[str, str]) -> Offer:
    lib = virt.libvirt
    stats = connection.getMemoryStats(lib.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    folders = sorted({os.path.dirname(disk.path) for disk in made_of.disks})
    pools: dict[str, t.Any] = {folder: _pool(connection, folder) for folder in folders}
    present = [
        disk.path for disk in made_of.disks if _holds(pools[os.path.dirname(disk.path)], os.path.basename(disk.path))
    ]
    media: dict[str, bool | None] = {}
    for path in made_of.media:
        pool = _pool(connection, os.path.dirname(path)) if path.startswith("/") else None
        media[path] = None if pool is None else _holds(pool, os.path.basename(path))
    networks: dict[str, bool | None] = {}
    for name in made_of.networks:
        network = virt.found(lambda name=name: connection.networkLookupByName(name))  # type: ignore[misc]
        networks[name] = None if network is None else bool(network.isActive())
    platform, capabilities = "", None
    try:
        capabilities = xml.parse(
            connection.getDomainCapabilities(made_of.emulator, made_of.arch, made_of.machine, made_of.type)
        )
    except lib.libvirtError as exc:
        platform = exc.get_error_message()
    loaders = None if capabilities is None else {one.text for one in capabilities.findall("os/loader/value")}
    there = _capabilities(connection)
    here = (connection.getHostname(), there.findtext("host/uuid", ""))
    return Offer(
        same_host=own == here or own[1] == here[1],
        memory=1024 * sum(stats.get(key, 0) for key in ("free", "buffers", "cached")) or None,
        pools={folder: None if pool is None else Pool(pool.name(), pool.info()[3]) for folder, pool in pools.items()},
        present=(*present, *_present(connection, made_of)),
        media=media,
        networks=networks,
        bridges={name: _bridge(connection, name) for name in made_of.bridges},
        platform=platform,
        loader=None if loaders is None or not made_of.loader else made_of.loader in loaders,
        cpu=None if capabilities is None else _cpu(connection, made_of),
        cpus=int(connection.getInfo()[2]),
        pages=_pages(connection, there, made_of),
        way=between,
        devices=devices.offered(connection, made_of.uuid, made_of.devices, wanted),
        fence=os.path.exists(_FENCE),
        room=_room_for_snapshots(connection, made_of),
    )


def _room_for_snapshots(connection: t.Any, made_of: Guest) -> int | None:
    if not made_of.snapshots_size:
        return None
    with files.pool_at(connection, NVRAM, made_of.uuid) as pool:
        return None if pool is None else int(pool.info()[3])


def _pages(connection: t.Any, root: xml.Element, made_of: Guest) -> dict[int, int]:
    """Huge pages that are free in all cells; a size that the host does not know has none."""
    cells = root.findall("host/topology/cells/cell")
    known = {int(page.get("size", 0)) for cell in cells for page in cell.findall("pages")}
    asked = sorted(known.intersection(made_of.pages))
    free = connection.getFreePages(asked, 0, len(cells)) if asked else {}
    return {size: sum(cell.get(size, 0) for cell in free.values()) for size in made_of.pages}


def _capabilities(connection: t.Any) -> xml.Element:
    return xml.parse(connection.getCapabilities())


_FENCE = "/etc/libvirt/hooks/qemu.d/phyllome-fence"


def _pool(connection: t.Any, folder: str) -> t.Any:
    """The running pool at a folder; what it holds and what is free there is looked up anew.

    libvirt remembers both from the last refresh, and guests have written since then.
    """
    pool = virt.found(lambda: connection.storagePoolLookupByTargetPath(folder))
    if pool is None or not pool.isActive():
        return None
    # refused while somebody makes a volume there; then what libvirt remembers is fresh
    with contextlib.suppress(virt.libvirt.libvirtError):
        pool.refresh()
    return pool


def _holds(pool: t.Any, name: str) -> bool:
    """Whether a pool has a file."""
    return pool is not None and virt.found(lambda: pool.storageVolLookupByName(name)) is not None


def _bridge(connection: t.Any, name: str) -> bool | None:
    try:
        return name in connection.listInterfaces()
    except virt.libvirt.libvirtError:  # a libvirt without its interface driver
        return None


def _cpu(connection: t.Any, made_of: Guest) -> bool | None:
    if made_of.cpu is None:
        return None
    lib = virt.libvirt
    try:
        verdict = connection.compareHypervisorCPU(
            made_of.emulator, made_of.arch, made_of.machine, made_of.type, made_of.cpu
        )
    except lib.libvirtError:
        return None
    return bool(verdict != lib.VIR_CPU_COMPARE_INCOMPATIBLE)
