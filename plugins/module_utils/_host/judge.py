# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the host system would lose with a PCI function.

From mounts, swap, disks, routes, open device nodes and consoles down to the functions that carry
them. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import posixpath
import re
import typing as t

from .._core.errors import PhyllomeError
from .._core.sysfs import pci_functions
from .read import Block, Use

_ROOTS = ("/", "/sysroot", "/usr", "/etc", "/var")  # without one of these the running system is dead
_BOOTS = ("/boot", "/boot/efi", "/efi")
_NETWORK = ("nfs", "nfs4", "cifs", "ceph", "9p", "fuse.glusterfs")
# Virtual blocks that stand on no disk, or whose disks are found another way (zd: ZFS, see _content).
_FLOORLESS = re.compile(r"^(?:zram|ram|loop|nbd|rbd|nullb|zd)\d")
# RFC 2863, as operstate has it: who has no link, or none yet, and is part of nothing, serves nobody.
_IDLE = ("down", "notpresent", "lowerlayerdown")
_SCOPES = {  # what Use calls incomplete → the hazard, and which devices it may hide one of
    "blocks": ("unknown_storage", "storage"),
    "mounts": ("unknown_mounts", "storage"),
    "swaps": ("unknown_swaps", "storage"),
    "interfaces": ("unknown_interfaces", "network"),
    "routes": ("unknown_routes", "network"),
    "connection": ("unknown_connection", "network"),
    "nodes": ("unknown_openers", "any"),
    "consoles": ("unknown_consoles", "serial"),
    "keyboards": ("unknown_keyboards", "usb"),
    "screens": ("unknown_screens", "display"),
    "defined": ("unknown_definitions", "storage"),
}


@dataclasses.dataclass
class HostUse:
    """The verdict.

    Attributes:
        hazards: PCI address → hazard code → evidence, in words.
        unknown: hazard code → (``storage``, ``network``, ``serial``, ``usb``, ``display`` or ``any``, why). What could
            not be found out may concern any device of that kind.
        in_subsystem: PCI addresses of functions whose NVMe controller is in a subsystem; None where that says nothing.
        with_interface: PCI addresses of functions that a network interface of ours belongs to.
    """

    hazards: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    unknown: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    in_subsystem: set[str] | None = None
    with_interface: set[str] = dataclasses.field(default_factory=set)

    def add(self, functions: t.Iterable[str], code: str, via: str) -> None:
        """Note a hazard of each of the functions."""
        for function in functions:
            evidence = self.hazards.setdefault(function, {}).setdefault(code, [])
            if via not in evidence:
                evidence.append(via)


def judge_use(use: Use, addresses: t.Container[str], protect: t.Iterable[str] = ()) -> HostUse:
    """Say of each PCI function what the host uses it for.

    Args:
        use: what was read.
        addresses: of all PCI functions there are.
        protect: interfaces, disks (names or paths below /dev) and PCI addresses to be treated as in use.

    Raises:
        PhyllomeError: something to protect does not exist here.
    """
    found = HostUse()
    for scope in sorted(use.unknown):
        code, kind = _SCOPES[scope]
        found.unknown[code] = (kind, f"{scope} could not be read completely")
    storage = _Storage(use, found)
    storage.judge()
    interfaces = _Interfaces(use, found)
    interfaces.judge()
    for node in use.nodes:
        _open_node(node.path, node.functions, node.users, storage, found)
    if use.controllers is not None:
        found.in_subsystem = {function for path in use.controllers for function in pci_functions(path)}
    for name, functions in use.modules:
        found.add(functions, "opened", f"module {name} is in use")
    for name, functions in use.consoles:
        found.add(functions, "console", f"kernel console {name}")
    for name, functions in use.keyboards:
        for function in functions:
            if all(function in others for dummy, others in use.keyboards):
                found.add([function], "usb_input", f"no keyboard but {name}")
    for name, address in use.screens:
        found.add([address], "primary_gpu", name)
    for item in protect:
        guarded = {item} if item in addresses else _protected(item, storage, interfaces)
        if not guarded:
            raise PhyllomeError(
                f"protect: {item!r} protects nothing here",
                "it is no PCI address, and no network interface or disk that a PCI device of this host carries",
                "Correct the name, or leave it out for this host.",
            )
        found.add(sorted(guarded), "protected", f"protect: {item}")
    return found


def _open_node(
    path: str, functions: tuple[str, ...], users: tuple[str, ...], storage: _Storage, found: HostUse
) -> None:
    for user in users:
        via = f"{path} opened by {user}"
        block = storage.named(path)
        if block is not None:
            storage.add(block, "guest_disk" if user.startswith("qemu") else "opened", via)
        else:
            found.add(functions, "other_guest" if path.startswith("/dev/vfio/") else "opened", via)


def _protected(item: str, storage: _Storage, interfaces: _Interfaces) -> set[str]:
    if item in interfaces.use.interfaces:
        floors = interfaces.floors(item)[0]
    else:
        block = storage.named(item if item.startswith("/") else f"/dev/{item}")
        floors = storage.floors(block) if block is not None else []
    return {function for functions, dummy in floors for function in functions}


class _Storage:
    """Everything that lies on a disk, and the disks."""

    def __init__(self, use: Use, found: HostUse) -> None:
        self.use = use
        self.found = found
        self.by_number = {block.number: block for block in use.blocks.values() if block.number}
        self.by_alias = {block.alias: block for block in use.blocks.values() if block.alias}
        self.mounted: set[str] = set()
        self.explained: set[str] = set()

    def judge(self) -> None:
        found = [(mount, self._mounted_blocks(mount.number, mount.fstype, mount.source)) for mount in self.use.mounts]
        # An overlay (a live medium, an image), memory or a network: then any disk may be what root is made of.
        rooted = any(mount.point == "/" and (blocks or mount.fstype == "zfs") for mount, blocks in found)
        for mount, blocks in found:
            code = "boot_disk" if mount.point in _BOOTS else "mounted"
            if mount.point in _ROOTS or not rooted:
                code = "root_fs"
            if blocks is None:
                self._lost(f"what {mount.point} lies on was not found")
            if mount.point in _ROOTS and mount.fstype in _NETWORK:
                self._lost(f"{mount.point} comes over the network ({mount.fstype})")
            for block in blocks or ():
                self.mounted.add(block.name)
                self.add(block, code, mount.point)
        # A file system that is mounted in another namespace only (a container, a service with private mounts).
        shown = [*self.use.filesystems]
        shown += [("btrfs", name) for names in self.use.pools.values() for name in names]
        for fstype, name in shown:
            if name in self.use.blocks and name not in self.mounted:
                self.add(self.use.blocks[name], "mounted", fstype)
        for path in self.use.swaps:
            swap = self.named(path) if path.startswith("/dev/") else self._under(path)
            if swap is None:
                self._lost(f"swap {path} was not found")
            else:
                self.add(swap, "swap", f"swap {path}")
        for node, what in self.use.defined:
            defined = self.named(node)
            if defined is not None:
                self.add(defined, "guest_disk", f"{what} of libvirt has {node}")
        self._content()

    def _content(self) -> None:
        zfs = any(mount.fstype == "zfs" for mount in self.use.mounts) or any(
            re.match(r"^zd\d", name) for name in self.use.blocks
        )
        code = "root_fs" if any(one.fstype == "zfs" and one.point in _ROOTS for one in self.use.mounts) else "claimed"
        members = False
        for block in self.use.blocks.values():
            if block.holders:
                self.add(block, "claimed", f"held by {', '.join(block.holders)}")
            if zfs and block.content == "zfs_member":
                members = True
                self.add(block, code, "ZFS")
            functions = _functions(block)
            if not functions:
                continue
            if block.holders is None:
                self.found.add(functions, "unknown_claims", f"the holders of {block.name} could not be read")
            if block.below and block.below != (block.name,):
                self.found.add(functions, "has_data", f"{block.name} is a partition")
            if block.partition and block.partition == self.use.loader_partition:
                self.found.add(functions, "boot_disk", f"the boot loader on {block.name}")
            if block.claimed is None:
                self.found.add(functions, "unknown_claims", f"whether {block.name} is claimed could not be found out")
            elif block.claimed and block.name not in self.explained:
                self.found.add(functions, "claimed", f"{block.name} cannot be opened for exclusive use")
            if block.content:
                self.found.add(functions, "has_data", f"{block.content} on {block.name}")
            elif block.content is None:
                self.found.add(functions, "unknown_data", f"udev does not say what is on {block.name}")
        if zfs and not members:
            self._lost("the disks of ZFS were not found")

    def add(self, block: Block, code: str, via: str) -> None:
        """Note a hazard of every function below a block."""
        for functions, chain in self.floors(block):
            self.found.add(functions, code, f"{via} on {chain}")

    def floors(self, top: Block) -> list[tuple[tuple[str, ...], str]]:
        """The disks below a block: functions, and the way down in words."""
        floors = []
        seen = {top.name}
        todo = [(top, top.name)]
        while todo:
            block, chain = todo.pop()
            functions = _functions(block)
            if functions:
                floors.append((functions, chain))
                self.explained.update((block.name, *(block.below or ())))
                continue
            below = [self.use.blocks.get(name) for name in block.below or ()]
            if block.backing_file:
                file = self._under(block.backing_file)
                below += [file] if file else []
            hardware = "/virtual/" not in block.path and "/session" not in block.path  # iSCSI has sessions
            floorless = hardware or _FLOORLESS.match(block.name)
            if None in below or block.below is None or not (below or floorless):
                self._lost(f"what {block.name} lies on could not be read")
            for lower in below:
                if lower is not None and lower.name not in seen:
                    seen.add(lower.name)
                    todo.append((lower, f"{chain} on {lower.name}"))
        return floors

    def named(self, path: str) -> Block | None:
        """The block of a node of /dev."""
        if path.startswith("/dev/mapper/"):
            return self.by_alias.get(path[12:])
        if path.startswith("/dev/"):
            return self.use.blocks.get(path[5:].replace("/", "!"))
        return None

    def _under(self, path: str) -> Block | None:
        """The block that a file lies on."""
        while True:
            for mount in reversed(self.use.mounts):
                if mount.point == path:
                    blocks = self._mounted_blocks(mount.number, mount.fstype, mount.source)
                    return blocks[0] if blocks else None
            if path in ("/", ""):
                return None
            path = posixpath.dirname(path)

    def _mounted_blocks(self, number: str, fstype: str, source: str) -> list[Block] | None:
        """The blocks of a mounted file system; none for one without, None when they were not found."""
        block = self.by_number.get(number)
        if block is not None:
            return [block]
        if not number.startswith("0:"):
            return None
        if fstype == "zfs":  # see _content
            return []
        names = source.split(":") if fstype == "bcachefs" else [source]
        found = [self.named(name) for name in names]
        for pool in self.use.pools.values():
            if any(block is not None and block.name in pool for block in found):
                found = [self.use.blocks.get(name) for name in pool]
        if fstype in ("btrfs", "bcachefs") and None in found:
            return None
        return [block for block in found if block is not None]

    def _lost(self, why: str) -> None:
        self.found.unknown["unknown_storage"] = ("storage", why)


def _functions(block: Block) -> tuple[str, ...]:
    paths = (block.path, *block.controllers)
    return tuple(dict.fromkeys(function for path in paths for function in pci_functions(path)))


class _Interfaces:
    """The network interfaces, and what is made of what."""

    def __init__(self, use: Use, found: HostUse) -> None:
        self.use = use
        self.found = found
        self.below: dict[str, set[str]] = {name: set(one.below) for name, one in use.interfaces.items()}
        for name, one in use.interfaces.items():
            for upper in one.above:
                self.below.setdefault(upper, set()).add(name)

    def judge(self) -> None:
        for name, via in self._management().items():
            floors, complete = self.floors(name)
            if not floors or not complete:
                self.found.unknown["unknown_mgmt_nic"] = ("network", f"{via}: what {name} goes through was not found")
            for functions, chain in floors:
                self.found.add(functions, "mgmt_nic", f"{via} on {chain}")
        if self.use.default_elsewhere:
            self.found.unknown["unknown_mgmt_nic"] = ("network", "there is a default route in a further table")
        routed = {route.interface for route in self.use.routes}
        for name, interface in self.use.interfaces.items():
            functions = pci_functions(interface.hardware or "")
            self.found.with_interface.update(functions)
            if interface.state is None:
                self.found.add(functions, "unknown_nic_state", f"operstate of {name} could not be read")
            elif interface.state not in _IDLE:
                self.found.add(functions, "nic_used", f"{name} is {interface.state}")
            if interface.above:
                self.found.add(functions, "nic_used", f"{name} is part of {', '.join(interface.above)}")
            if name in routed:
                self.found.add(functions, "nic_used", f"routes go through {name}")

    def _management(self) -> dict[str, str]:
        """Interfaces that the way to this host goes through."""
        names = {route.interface: "default route" for route in self.use.routes if route.network.prefixlen == 0}
        for address in self.use.connection:
            try:
                wanted = ipaddress.ip_address(address.partition("%")[0])
            except ValueError:
                self.found.unknown["unknown_connection"] = ("network", f"{address} is no address")
                continue
            wanted = getattr(wanted, "ipv4_mapped", None) or wanted
            if wanted.is_loopback:
                continue
            matching = [route for route in self.use.routes if wanted in route.network]
            if not matching:
                self.found.unknown["unknown_connection"] = ("network", f"no route leads to {address}")
            longest = max((route.network.prefixlen for route in matching), default=0)
            for route in matching:
                if route.network.prefixlen == longest:
                    names.setdefault(route.interface, f"our connection to {address}")
        return names

    def floors(self, top: str) -> tuple[list[tuple[tuple[str, ...], str]], bool]:
        """The hardware below an interface: functions, and the way down in words; and whether no part of it is missing."""
        floors = []
        complete = True
        seen = {top}
        todo = [(top, top)]
        while todo:
            name, chain = todo.pop()
            interface = self.use.interfaces.get(name)
            if interface is None:
                complete = False
            elif interface.hardware:
                floors.append((pci_functions(interface.hardware), chain))
            for lower in sorted(self.below.get(name, ()), reverse=True):
                if lower not in seen:
                    seen.add(lower)
                    todo.append((lower, f"{chain} on {lower}"))
        return floors, complete
