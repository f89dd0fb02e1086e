# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a machine is, and what its host system uses: as the kernel says it, nothing concluded.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import sys
import typing as t
import xml.parsers.expat

from .._core.sysfs import PCI_ADDRESS, Tree, pci_functions

MIB = 1 << 20
DMI = ("sys_vendor", "product_name", "board_vendor", "board_name", "bios_vendor", "bios_version", "chassis_type")

# Inode of the first PID namespace: PROC_PID_INIT_INO of include/linux/proc_ns.h.
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
# A PV domain 0 has this bit of the features (XENFEAT_dom0, xen/include/public/features.h).
_XEN_DOM0 = 1 << 11
_RTF_REJECT = 0x200  # include/uapi/linux/route.h
# Bits 1 to 31 are ESC to S: who has all of these keys is a keyboard, as in udev's builtin input_id.
_KEYBOARD = 0xFFFFFFFE
_BLOCK_NUMBER = re.compile(r"^\d+:\d+$")
_MOUNT = re.compile(r"^\d+ \d+ (\d+:\d+) (\S+) (\S+) \S+ (?:\S+ )*?- (\S+) (\S*) \S*$")
_ESCAPE = re.compile(r"\\([0-7]{3})")
# Nodes that logind, the X server and others hold of every input device there is; keyboards are looked at by themselves.
_INPUT_NODE = re.compile(r"^/dev/(?:input/|hidraw)")
# File systems that show their block device below /sys/fs/<type>, whoever mounted them and in which namespace.
_SHOWN_FILESYSTEMS = ("ext4", "xfs", "f2fs", "jfs", "erofs", "nilfs2")
# What the kernel calls the memory of a screen that the firmware has set up, and that no driver has taken over.
BOOT_SCREENS = ("BOOTFB", "efifb", "simplefb", "simple-framebuffer", "vesafb")
_RANGE = re.compile(r"^( *)[0-9a-fA-F]+-[0-9a-fA-F]+ : (.+)$")
_LOADER_PARTITION = "sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_NODE_DRIVERS = {"nvidia": "nvidia", "kfd": "amdgpu"}  # node prefix → driver; these nodes have no device in /sys


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
    """

    kernel: str | None
    cpu_vendor: str | None
    cpu_flags: frozenset[str] | None
    xen: str | None
    container: bool | None
    dmi: t.Mapping[str, str]


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
class Interface:
    """A network interface.

    Attributes:
        hardware: path of the device it belongs to; None for a virtual one.
        below: names of the interfaces it is made of.
        above: names of those that are made of it.
        state: operstate (RFC 2863); None when unknown.
    """

    name: str
    hardware: str | None
    below: tuple[str, ...]
    above: tuple[str, ...]
    state: str | None


@dataclasses.dataclass(frozen=True)
class Route:
    """A route of the kernel."""

    interface: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclasses.dataclass(frozen=True)
class Node:
    """A device node that processes have open.

    Attributes:
        path: below /dev.
        functions: PCI addresses it belongs to.
        users: ``name (pid)``.
    """

    path: str
    functions: tuple[str, ...]
    users: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Use:
    """What the host uses.

    Attributes:
        filesystems: (type, block name) below /sys/fs: mounted in whatever namespace.
        pools: UUID of a mounted btrfs → names of its blocks.
        swaps: paths.
        default_elsewhere: an IPv4 table other than main has a default route; the kernel does not say here through what.
        connection: peer and own address of the SSH connection that we came through.
        consoles: (name, PCI addresses) of the kernel's consoles.
        keyboards: (name, PCI addresses).
        screens: (name, PCI address) of screens that the firmware has set up and no driver has taken over.
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
    interfaces: t.Mapping[str, Interface]
    routes: tuple[Route, ...]
    default_elsewhere: bool
    connection: tuple[str, ...]
    nodes: tuple[Node, ...]
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
    )


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
    routes, default_elsewhere = _routes(tree, unknown)
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
        interfaces=_interfaces(tree, unknown),
        routes=routes,
        default_elsewhere=default_elsewhere,
        connection=_connection(tree, unknown),
        nodes=_nodes(tree, unknown),
        consoles=_consoles(tree, unknown),
        keyboards=_keyboards(tree, unknown),
        screens=_screens(tree, unknown),
        defined=_defined(tree, unknown),
        loader_partition=_loader_partition(tree),
        unknown=frozenset(unknown),
    )


def read_nodes(tree: Tree, items: t.Iterable[str]) -> list[str]:
    """Names as given, but for links below /dev (``/dev/disk/by-id/…``) what they lead to."""
    return [f"/{tree.follow(item[1:]) or item[1:]}" if item.startswith("/dev/") else item for item in items]


def _lines(tree: Tree, path: str, limit: int) -> list[str] | None:
    """Lines of a file of /proc: whole ones, so that a cut one cannot pass for another."""
    data = tree.data(path, limit)
    if data is None:
        return None
    if data and not data.endswith(b"\n"):
        tree.note(path, "it ends within a line")
        return None
    return data.decode("utf-8", "replace").splitlines()


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)


def _mounts(tree: Tree, unknown: set[str]) -> tuple[Mount, ...]:
    path = "proc/self/mountinfo"
    mounts = []
    for line in _lines(tree, path, 16 * MIB) or ():
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
    lines = _lines(tree, "proc/swaps", MIB)
    if not lines or not lines[0].startswith("Filename"):
        unknown.add("swaps")
        return ()
    return tuple(_unescape(line.split()[0]) for line in lines[1:] if line.split())


def _blocks(tree: Tree, unknown: set[str]) -> dict[str, Block]:
    names = tree.names("sys/class/block")
    if names is None or "sys/class/block" in tree.unread:
        unknown.add("blocks")
    blocks = {}
    for name in names or ():
        path = tree.follow(f"sys/class/block/{name}")
        there = None if path is None else tree.names(path)
        if path is None or there is None:
            unknown.add("blocks")
            continue
        blocks[name] = _block(tree, name, path, there)
    return blocks


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
    disk = "partition" not in there and (bool(subsystem) or bool(pci_functions(path)))
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
        claimed=tree.claimed(f"dev/{name.replace('!', '/')}") if disk else False,
    )


def _found_on(tree: Tree, number: str) -> dict[str, str] | None:
    """What udev's blkid found (https://www.freedesktop.org/software/systemd/man/latest/udevadm.html)."""
    lines = _lines(tree, f"run/udev/data/b{number}", MIB)
    if not lines:
        return None
    return dict(line[2:].partition("=")[::2] for line in lines if line.startswith("E:"))


def _interfaces(tree: Tree, unknown: set[str]) -> dict[str, Interface]:
    names = tree.names("sys/class/net")
    if names is None or "sys/class/net" in tree.unread:
        unknown.add("interfaces")
    interfaces = {}
    for name in names or ():
        if name == "bonding_masters":  # a file, not an interface
            continue
        path = tree.follow(f"sys/class/net/{name}")
        there = None if path is None else tree.names(path)
        if path is None or there is None:
            unknown.add("interfaces")
            continue
        below = [entry[6:] for entry in there if entry.startswith("lower_")]
        above = [entry[6:] for entry in there if entry.startswith("upper_")]
        if "bonding" in there:
            below += (tree.text(f"{path}/bonding/slaves") or "").split()
        if "brif" in there:
            below += tree.names(f"{path}/brif") or ()
        if "master" in there:
            above.append((tree.follow(f"{path}/master") or "?").rpartition("/")[2])
        interfaces[name] = Interface(
            name=name,
            hardware=None if "/virtual/" in path else path,
            below=tuple(sorted({*below})),
            above=tuple(sorted({*above})),
            state=tree.text(f"{path}/operstate") or None,
        )
    return interfaces


def _routes(tree: Tree, unknown: set[str]) -> tuple[tuple[Route, ...], bool]:
    """Routes of IPv4's main table and of all tables of IPv6, and see _default_elsewhere."""
    four = _lines(tree, "proc/net/route", 16 * MIB)
    if not four or not four[0].startswith("Iface"):
        unknown.add("routes")
    # Without IPv6 neither file is there; with it there is a route at least for lo.
    with_six = tree.exists("proc/net/ipv6_route") or tree.exists("proc/net/if_inet6")
    six = _lines(tree, "proc/net/ipv6_route", 16 * MIB) if with_six else None
    if with_six and not six:
        unknown.add("routes")
    routes = [*_parsed(tree, "proc/net/route", _route4, (four or ())[1:], unknown)]
    routes += _parsed(tree, "proc/net/ipv6_route", _route6, six or (), unknown)
    return tuple(routes), _default_elsewhere(tree, unknown)


def _parsed(
    tree: Tree, path: str, parse: t.Callable[[list[str]], Route | None], lines: t.Iterable[str], unknown: set[str]
) -> t.Iterator[Route]:
    for line in lines:
        try:
            route = parse(line.split())
        except (ValueError, IndexError, OverflowError):
            tree.note(path, "a line of it is not understood")
            unknown.add("routes")
        else:
            if route is not None:
                yield route


def _route4(words: list[str]) -> Route | None:
    if int(words[3], 16) & _RTF_REJECT:
        return None
    # The kernel prints the number as it lies in memory.
    network, mask = (ipaddress.IPv4Address(int(word, 16).to_bytes(4, sys.byteorder)) for word in (words[1], words[7]))
    return Route(words[0], ipaddress.IPv4Network(f"{network}/{mask}"))


def _route6(words: list[str]) -> Route | None:
    if int(words[8], 16) & _RTF_REJECT or words[9] == "lo":
        return None
    network = ipaddress.IPv6Address(bytes.fromhex(words[0]))
    return Route(words[9], ipaddress.IPv6Network(f"{network}/{int(words[1], 16)}"))


def _default_elsewhere(tree: Tree, unknown: set[str]) -> bool:
    """Whether a table besides main and local has a default route; ``fib_trie`` shows all tables."""
    lines = _lines(tree, "proc/net/fib_trie", 16 * MIB)
    if not any(line in ("Main:", "Local:") for line in lines or ()):  # there is no kernel without them
        unknown.add("routes")
    table, leaf = "", ""
    for line in lines or ():
        text = line.strip()
        if text.endswith(":"):
            table = text
        elif text.startswith("|--"):
            leaf = text[3:].strip()
        elif text.startswith("/0 ") and leaf == "0.0.0.0" and table not in ("Main:", "Local:") and "UNICAST" in text:
            return True
    return False


def _connection(tree: Tree, unknown: set[str]) -> tuple[str, ...]:
    """Our own SSH connection. sudo drops the variable, so our ancestors are asked as well."""
    process = "self"
    for dummy in range(64):
        environ = tree.data(f"proc/{process}/environ", MIB)
        if environ is None:
            unknown.add("connection")
        for entry in (environ or b"").split(b"\0"):
            if entry.startswith(b"SSH_CONNECTION="):
                words = entry.decode("ascii", "replace").partition("=")[2].split()
                if len(words) == 4:
                    unknown.discard("connection")
                    return words[0], words[2]
                unknown.add("connection")
        stat = (tree.text(f"proc/{process}/stat") or "").rpartition(")")[2].split()
        if len(stat) < 2 or not stat[1].isdigit():
            unknown.add("connection")
            return ()
        process = stat[1]
        if process in ("0", "1"):
            return ()
    unknown.add("connection")
    return ()


def _nodes(tree: Tree, unknown: set[str]) -> tuple[Node, ...]:
    opened: dict[str, list[str]] = {}
    processes = [name for name in tree.names("proc") or () if name.isdigit()]
    if "1" not in processes:  # none shown, or only our own (mount option hidepid)
        unknown.add("nodes")
    for process in processes:
        for target in _targets(tree, process, unknown):
            if target.startswith("/dev/") and not _INPUT_NODE.match(target):
                opened.setdefault(target[5:].replace(" (deleted)", ""), []).append(process)
    functions = _functions_of_nodes(tree) if opened else {}
    nodes = []
    for node, users in sorted(opened.items()):
        found = _functions_of(tree, node, functions)
        if found or node.startswith("mapper/") or tree.exists(f"sys/class/block/{node}"):
            who = tuple(f"{tree.text(f'proc/{user}/comm') or '?'} ({user})" for user in users[:8])
            nodes.append(Node(f"/dev/{node}", found, who))
    return tuple(nodes)


def _targets(tree: Tree, process: str, unknown: set[str]) -> set[str]:
    """What a process has open."""
    path = f"proc/{process}/fd"
    found = set()
    handles = tree.names(path)
    if handles is None:
        why = tree.unread.pop(path)
        if why != "missing" or tree.exists(f"proc/{process}"):  # else the process ended meanwhile
            tree.note("proc/*/fd", why)
            unknown.add("nodes")
    for handle in handles or ():
        target = tree.link(f"{path}/{handle}")
        if target is not None:
            found.add(target)
            continue
        why = tree.unread.pop(f"{path}/{handle}")
        if why != "missing":  # else it was closed meanwhile
            tree.note("proc/*/fd", why)
            unknown.add("nodes")
            break  # the others are no better
    return found


def _functions_of_nodes(tree: Tree) -> dict[str, tuple[str, ...]]:
    """PCI functions of every node, by its last name, and of blocks by name and alias."""
    found = {}
    for kind in ("char", "block"):
        for number in tree.names(f"sys/dev/{kind}") or ():
            path = tree.follow(f"sys/dev/{kind}/{number}") or ""
            functions = pci_functions(path)
            if functions:
                found[path.rpartition("/")[2]] = functions
    return found


def _functions_of(tree: Tree, node: str, known: t.Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    parts = node.split("/")
    members: tuple[str, ...] | None = None
    if parts[0] == "vfio" and len(parts) == 2 and parts[1].rpartition("-")[2].isdigit():
        # By their paths: a mediated device's is below that of the function it is a part of.
        group = f"sys/kernel/iommu_groups/{parts[1].rpartition('-')[2]}/devices"
        return tuple(
            function
            for name in tree.names(group) or ()
            for function in pci_functions(tree.follow(f"{group}/{name}") or "")
        )
    if parts[:2] == ["bus", "usb"] and len(parts) == 4 and parts[2].isdigit():
        return pci_functions(tree.follow(f"sys/bus/usb/devices/usb{int(parts[2])}") or "")
    elif len(parts) == 1:
        driver = next((driver for prefix, driver in _NODE_DRIVERS.items() if node.startswith(prefix)), None)
        if driver:
            members = tree.names(f"sys/bus/pci/drivers/{driver}")
    if members is not None:
        return tuple(name for name in members if PCI_ADDRESS.match(name))
    return known.get(parts[-1], ())


def _consoles(tree: Tree, unknown: set[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    lines = _lines(tree, "proc/consoles", MIB)
    if lines is None:
        unknown.add("consoles")
    names = [line.split()[0] for line in lines or () if line.split()]
    return tuple(
        (name, pci_functions(tree.follow(f"sys/class/tty/{name}") or ""))
        for name in names
        if tree.exists(f"sys/class/tty/{name}")
    )


def _keyboards(tree: Tree, unknown: set[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = []
    names = tree.names("sys/class/input")
    if names is None:
        unknown.add("keyboards")
    for name in names or ():
        if not re.match(r"^input\d+$", name):
            continue
        path = tree.follow(f"sys/class/input/{name}")
        keys = None if path is None else tree.text(f"{path}/capabilities/key")
        words = (keys or "").split()
        if path is None or not words or not re.fullmatch(r"[0-9a-fA-F]{1,16}", words[-1]):
            unknown.add("keyboards")
        elif int(words[-1], 16) & _KEYBOARD == _KEYBOARD:
            found.append((tree.text(f"{path}/name") or name, pci_functions(path)))
    return tuple(found)


def _screens(tree: Tree, unknown: set[str]) -> tuple[tuple[str, str], ...]:
    """From the map of memory, where what lies within a window of a function stands below it, further to the right."""
    found = []
    above: list[tuple[int, str]] = []
    lines = _lines(tree, "proc/iomem", 4 * MIB)
    if not lines:
        unknown.add("screens")
    for line in lines or ():
        match = _RANGE.match(line)
        if match is None:
            tree.note("proc/iomem", "a line of it is not understood")
            unknown.add("screens")
            continue
        depth, name = len(match.group(1)), match.group(2)
        above = [(width, outer) for width, outer in above if width < depth]
        if name.startswith(BOOT_SCREENS):
            owner = next((outer for dummy, outer in reversed(above) if PCI_ADDRESS.match(outer)), None)
            if owner is None:
                unknown.add("screens")
            else:
                found.append((name, owner))
        above.append((depth, name))
    return tuple(found)


def _loader_partition(tree: Tree) -> str | None:
    """What a loader such as systemd-boot says of itself (https://systemd.io/BOOT_LOADER_INTERFACE/)."""
    data = tree.data(_LOADER_PARTITION) if tree.exists(_LOADER_PARTITION) else None
    return None if data is None else data[4:].decode("utf-16-le", "replace").strip("\0").lower() or None


def _defined(tree: Tree, unknown: set[str]) -> tuple[tuple[str, str], ...]:
    """Disks in libvirt's files, which are there whether libvirt runs or not."""
    found = []
    for folder, kind in (("etc/libvirt/qemu", "guest"), ("etc/libvirt/storage", "pool")):
        if not tree.exists(folder):
            continue
        names = tree.names(folder)
        if names is None:
            unknown.add("defined")
        for file in names or ():
            if not file.endswith(".xml"):
                continue
            nodes = nodes_in(tree.data(f"{folder}/{file}", MIB) or b"")
            if nodes is None:
                tree.note(f"{folder}/{file}", "not a definition of libvirt")
                unknown.add("defined")
            for node in nodes or ():
                real = tree.follow(node[1:]) if tree.exists(node[1:]) else node[1:]
                found.append((f"/{real or node[1:]}", f"{kind} {file[:-4]}"))
    return tuple(found)


def nodes_in(definition: bytes) -> list[str] | None:
    """Nodes below /dev that a definition names as a disk; None when it is none.

    Not with lxml, which need not be there, and without entities, which could be a trap in a captured tree.
    """
    found = []
    parser = xml.parsers.expat.ParserCreate()

    def element(name: str, attributes: dict[str, str]) -> None:
        node = attributes.get("dev") if name == "source" else attributes.get("path") if name == "device" else None
        if node and node.startswith("/dev/"):
            found.append(node)

    def refuse(*dummy: object) -> None:
        raise ValueError("an entity")

    parser.StartElementHandler = element
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(definition, True)
    except (xml.parsers.expat.ExpatError, ValueError):
        return None
    return found
