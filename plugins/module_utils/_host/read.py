# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a machine is, and what its host system uses: as the kernel says it, nothing concluded.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core.sysfs import Tree, pci_functions
from .definitions import read_defined
from .network import Interface, Route, read_connection, read_interfaces, read_routes
from .nodes import Node, read_busy_modules, read_consoles, read_keyboards, read_open_nodes, read_screens

MIB = 1 << 20
DMI = ("sys_vendor", "product_name", "board_vendor", "board_name", "bios_vendor", "bios_version", "chassis_type")

# Inode of the first PID namespace: PROC_PID_INIT_INO of include/linux/proc_ns.h.
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
# A PV domain 0 has this bit of the features (XENFEAT_dom0, xen/include/public/features.h).
_XEN_DOM0 = 1 << 11
_BLOCK_NUMBER = re.compile(r"^\d+:\d+$")
_MOUNT = re.compile(r"^\d+ \d+ (\d+:\d+) (\S+) (\S+) \S+ (?:\S+ )*?- (\S+) (\S*) \S*$")
_ESCAPE = re.compile(r"\\([0-7]{3})")
# File systems that show their block device below /sys/fs/<type>, whoever mounted them and in which namespace.
_SHOWN_FILESYSTEMS = ("ext4", "xfs", "f2fs", "jfs", "erofs", "nilfs2")
_LOADER_PARTITION = "sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What the machine is.

    Attributes:
        kernel: release.
        cpu_vendor: as /proc/cpuinfo has it.
        cpu_flags: of the first CPU.
        xen: ``dom0`` or ``domU``.
        container: whether this is not the host's own PID namespace.
        dmi: those of DMI that have a value.
        nested: whether guests of KVM can have guests; None while KVM is not loaded.
    """

    kernel: str | None
    cpu_vendor: str | None
    cpu_flags: frozenset[str] | None
    xen: str | None
    container: bool | None
    dmi: t.Mapping[str, str]
    nested: bool | None = None


@dataclasses.dataclass(frozen=True)
class Mount:
    """A line of mountinfo (https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)."""

    number: str
    point: str
    fstype: str
    source: str


@dataclasses.dataclass(frozen=True)
class Block:
    """A disk, a partition or something made of them.

    Attributes:
        name: in /sys/class/block.
        number: major:minor.
        path: of the device.
        controllers: paths of the NVMe controllers of a multipath disk.
        below: names of what it is made of; None when that is unknown.
        holders: names of what the kernel made of it; None when that is unknown.
        alias: name below /dev/mapper.
        backing_file: of a loop device.
        content: what udev found on it, a file system or a partition table; empty for nothing.
        partition: its identity in the partition table.
        claimed: of a disk of a PCI function, see Tree.claimed; False of all others.
    """

    name: str
    number: str | None
    path: str
    controllers: tuple[str, ...]
    below: tuple[str, ...] | None
    holders: tuple[str, ...] | None
    alias: str | None
    backing_file: str | None
    content: str | None
    partition: str | None = None
    claimed: bool | None = False


@dataclasses.dataclass(frozen=True)
class Use:
    """What the host uses.

    Attributes:
        filesystems: (type, block name) below /sys/fs: mounted in whatever namespace.
        pools: UUID of a mounted btrfs → names of its blocks.
        swaps: paths.
        controllers: paths of the NVMe controllers that are in a subsystem; None without disks of several controllers.
        default_elsewhere: an IPv4 table other than main has a default route; the kernel does not say here through what.
        connection: peer and own address of the SSH connection that we came through.
        modules: (name of a driver's module, PCI addresses) where more use it than the modules that are made of it.
        consoles: (name, PCI addresses) of the kernel's consoles.
        keyboards: (name, PCI addresses).
        screens: (name, PCI address) of screens that the firmware has set up and no driver has taken over, and of that
            which the kernel's text console is on.
        defined: (node, what for) of disks in the definitions of libvirt's guests and pools.
        loader_partition: identity of the partition that the boot loader was started from, where it says so.
        unknown: which of the above are incomplete: blocks, mounts, swaps, interfaces, routes, connection,
            nodes, consoles, keyboards, screens, defined.
    """

    mounts: tuple[Mount, ...]
    filesystems: tuple[tuple[str, str], ...]
    pools: t.Mapping[str, tuple[str, ...]]
    swaps: tuple[str, ...]
    blocks: t.Mapping[str, Block]
    controllers: tuple[str, ...] | None
    interfaces: t.Mapping[str, Interface]
    routes: tuple[Route, ...]
    default_elsewhere: bool
    connection: tuple[str, ...]
    nodes: tuple[Node, ...]
    modules: tuple[tuple[str, tuple[str, ...]], ...]
    consoles: tuple[tuple[str, tuple[str, ...]], ...]
    keyboards: tuple[tuple[str, tuple[str, ...]], ...]
    screens: tuple[tuple[str, str], ...]
    defined: tuple[tuple[str, str], ...]
    loader_partition: str | None
    unknown: frozenset[str]


def read_identity(tree: Tree) -> Identity:
    """Look at what the machine is; fast, and needs no privilege."""
    first_cpu: dict[str, str] = {}
    for line in (tree.text("proc/cpuinfo", 16 * MIB) or "").splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            break
        first_cpu[key.strip()] = value.strip()
    flags = first_cpu.get("flags", first_cpu.get("Features"))
    dmi = {key: tree.text(f"sys/class/dmi/id/{key}") for key in DMI if tree.exists(f"sys/class/dmi/id/{key}")}
    namespace = tree.link("proc/self/ns/pid")
    return Identity(
        kernel=tree.text("proc/sys/kernel/osrelease") or None,
        cpu_vendor=first_cpu.get("vendor_id", "ARM" if "CPU implementer" in first_cpu else None),
        cpu_flags=None if flags is None else frozenset(flags.split()),
        xen=_xen(tree),
        container=None if namespace is None else namespace != _FIRST_PID_NAMESPACE,
        dmi={key: value for key, value in dmi.items() if value},
        nested=_nested(tree),
    )


def _nested(tree: Tree) -> bool | None:
    for path in (f"sys/module/kvm_{vendor}/parameters/nested" for vendor in ("intel", "amd")):
        if tree.exists(path):
            return {"Y": True, "1": True, "N": False, "0": False}.get(tree.text(path) or "")
    return None


def _xen(tree: Tree) -> str | None:
    if not tree.exists("sys/hypervisor/type") or tree.text("sys/hypervisor/type") != "xen":
        return None
    features = tree.text("sys/hypervisor/properties/features") or ""
    dom0 = re.fullmatch(r"[0-9a-fA-F]{1,16}", features) is not None and bool(int(features, 16) & _XEN_DOM0)
    return "dom0" if dom0 or "control_d" in (tree.text("proc/xen/capabilities") or "") else "domU"


def read_use(tree: Tree) -> Use:
    """Look at what the host uses. Complete only for root; ``unknown`` says what is missing."""
    unknown: set[str] = set()
    mounts = _mounts(tree, unknown)
    routes, default_elsewhere = read_routes(tree, unknown)
    return Use(
        mounts=mounts,
        filesystems=tuple(
            (fstype, name)
            for fstype in _SHOWN_FILESYSTEMS
            if tree.exists(f"sys/fs/{fstype}")
            for name in tree.names(f"sys/fs/{fstype}") or ()
        ),
        pools=_pools(tree),
        swaps=_swaps(tree, unknown),
        blocks=_blocks(tree, unknown),
        controllers=_controllers(tree),
        interfaces=read_interfaces(tree, unknown),
        routes=routes,
        default_elsewhere=default_elsewhere,
        connection=read_connection(tree, unknown),
        nodes=read_open_nodes(tree, unknown),
        modules=read_busy_modules(tree, unknown),
        consoles=read_consoles(tree, unknown),
        keyboards=read_keyboards(tree, unknown),
        screens=read_screens(tree, unknown),
        defined=read_defined(tree, unknown),
        loader_partition=_loader_partition(tree),
        unknown=frozenset(unknown),
    )


def read_nodes(tree: Tree, items: t.Iterable[str]) -> list[str]:
    """Names as given, but for links below /dev (``/dev/disk/by-id/…``) what they lead to."""
    return [f"/{tree.follow(item[1:]) or item[1:]}" if item.startswith("/dev/") else item for item in items]


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)


def _mounts(tree: Tree, unknown: set[str]) -> tuple[Mount, ...]:
    path = "proc/self/mountinfo"
    mounts = []
    for line in tree.lines(path, 16 * MIB) or ():
        match = _MOUNT.match(line)
        if match is None:
            tree.note(path, "a line of it is not understood")
            unknown.add("mounts")
            continue
        number, dummy, point, fstype, source = match.groups()
        mounts.append(Mount(number, _unescape(point), fstype, _unescape(source)))
    if not any(mount.point == "/" for mount in mounts):
        unknown.add("mounts")
    return tuple(mounts)


def _pools(tree: Tree) -> dict[str, tuple[str, ...]]:
    if not tree.exists("sys/fs/btrfs"):
        return {}
    return {
        uuid: tree.names(f"sys/fs/btrfs/{uuid}/devices") or ()
        for uuid in tree.names("sys/fs/btrfs") or ()
        if tree.exists(f"sys/fs/btrfs/{uuid}/devices")
    }


def _swaps(tree: Tree, unknown: set[str]) -> tuple[str, ...]:
    lines = tree.lines("proc/swaps", MIB)
    if not lines or not lines[0].startswith("Filename"):
        unknown.add("swaps")
        return ()
    return tuple(_unescape(line.split()[0]) for line in lines[1:] if line.split())


def _blocks(tree: Tree, unknown: set[str]) -> dict[str, Block]:
    names = tree.names("sys/class/block")
    if names is None or "sys/class/block" in tree.unread:
        unknown.add("blocks")
    places = {}
    for name in names or ():
        path = tree.follow(f"sys/class/block/{name}")
        there = None if path is None else tree.names(path)
        if path is None or there is None:
            unknown.add("blocks")
        else:
            places[name] = path, there
    tree.ahead(disks=[_node(name) for name, (path, there) in places.items() if _is_disk(path, there)])
    return {name: _block(tree, name, path, there) for name, (path, there) in places.items()}


def _controllers(tree: Tree) -> tuple[str, ...] | None:
    """A disk of several NVMe controllers is below its subsystem, which has a link to each of them."""
    folder = "sys/devices/virtual/nvme-subsystem"
    listed = {name: tree.names(f"{folder}/{name}") or () for name in (tree.exists(folder) and tree.names(folder)) or ()}
    if not any(re.match(r"^nvme\d+n\d+$", entry) for there in listed.values() for entry in there):
        return None
    links = [
        f"{folder}/{name}/{entry}" for name, there in listed.items() for entry in there if re.match(r"^nvme\d+$", entry)
    ]
    return tuple(tree.follow(link) or link for link in links)


def _node(name: str) -> str:
    return f"dev/{name.replace('!', '/')}"


def _is_disk(path: str, there: tuple[str, ...]) -> bool:
    """Whether it is all of a disk that functions carry, were it by several NVMe controllers."""
    return "partition" not in there and ("/nvme-subsystem/" in path or bool(pci_functions(path)))


def _block(tree: Tree, name: str, path: str, there: tuple[str, ...]) -> Block:
    number = tree.text(f"{path}/dev") or ""
    if not _BLOCK_NUMBER.match(number):
        number = ""
    below: tuple[str, ...] | None
    if "partition" in there:
        below = (path.split("/")[-2],)
    else:
        below = tree.names(f"{path}/slaves")
    controllers: list[str] = []
    subsystem = re.match(r"^(.*/nvme-subsystem/[^/]+)/[^/]+", path)
    if subsystem:
        for controller in tree.names(subsystem.group(1)) or ():
            if re.match(r"^nvme\d+$", controller):
                controllers.append(tree.follow(f"{subsystem.group(1)}/{controller}") or controller)
    physical = bool(subsystem) or "/virtual/" not in path
    found = _found_on(tree, number) if number and physical else None
    return Block(
        name=name,
        number=number or None,
        path=path,
        controllers=tuple(controllers),
        below=below,
        holders=tree.names(f"{path}/holders"),
        alias=tree.text(f"{path}/dm/name") if "dm" in there else None,
        backing_file=tree.text(f"{path}/loop/backing_file") if "loop" in there else None,
        content=None if found is None else found.get("ID_FS_TYPE") or found.get("ID_PART_TABLE_TYPE") or "",
        partition=(found or {}).get("ID_PART_ENTRY_UUID"),
        claimed=tree.claimed(_node(name)) if _is_disk(path, there) else False,
    )


def _found_on(tree: Tree, number: str) -> dict[str, str] | None:
    """What udev's blkid found (https://www.freedesktop.org/software/systemd/man/latest/udevadm.html)."""
    lines = tree.lines(f"run/udev/data/b{number}", MIB)
    if not lines:
        return None
    return dict(line[2:].partition("=")[::2] for line in lines if line.startswith("E:"))


def _loader_partition(tree: Tree) -> str | None:
    """What a loader such as systemd-boot says of itself (https://systemd.io/BOOT_LOADER_INTERFACE/)."""
    data = tree.data(_LOADER_PARTITION) if tree.exists(_LOADER_PARTITION) else None
    return None if data is None else data[4:].decode("utf-16-le", "replace").strip("\0").lower() or None
