# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What processes and people have of the host: open device nodes, consoles, keyboards and screens.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core.sysfs import PCI_ADDRESS, Tree, pci_functions

MIB = 1 << 20
# Bits 1 to 31 are ESC to S: who has all of these keys is a keyboard, as in udev's builtin input_id.
_KEYBOARD = 0xFFFFFFFE
# Nodes that logind, the X server and others hold of every input device there is; keyboards are looked at by themselves.
_INPUT_NODE = re.compile(r"^/dev/(?:input/|hidraw)")
# What the kernel calls the memory of a screen that the firmware has set up, and that no driver has taken over.
BOOT_SCREENS = ("BOOTFB", "efifb", "simplefb", "simple-framebuffer", "vesafb")
_RANGE = re.compile(r"^( *)[0-9a-fA-F]+-[0-9a-fA-F]+ : (.+)$")
# Of NVIDIA's, whose use no process may show (NVIDIA/open-gpu-kernel-modules issue 1119: an unbind hangs all the same).
_MODULES = ("nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_uvm")
_NODE_DRIVERS = {"nvidia": "nvidia", "kfd": "amdgpu"}  # node prefix → driver; these nodes have no device in /sys


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


def read_open_nodes(tree: Tree, unknown: set[str]) -> tuple[Node, ...]:
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


def read_busy_modules(tree: Tree, unknown: set[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Modules with more users (https://docs.kernel.org/ABI/testing/sysfs-module.html) than modules made of them."""
    folder = "sys/bus/pci/drivers/nvidia"
    members = tuple(
        name for name in (tree.names(folder) if tree.exists(folder) else None) or () if PCI_ADDRESS.match(name)
    )
    busy = []
    for name in _MODULES if members else ():
        path = f"sys/module/{name}"
        if not tree.exists(f"{path}/refcnt"):
            continue
        users = tree.number(f"{path}/refcnt")
        holders = (tree.names(f"{path}/holders") if tree.exists(f"{path}/holders") else None) or ()
        if users is None:
            unknown.add("nodes")
        elif users > len(holders):
            busy.append((name, members))
    return tuple(busy)


def read_consoles(tree: Tree, unknown: set[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    lines = tree.lines("proc/consoles", MIB)
    if lines is None:
        unknown.add("consoles")
    names = [line.split()[0] for line in lines or () if line.split()]
    return tuple(
        (name, pci_functions(tree.follow(f"sys/class/tty/{name}") or ""))
        for name in names
        if tree.exists(f"sys/class/tty/{name}")
    )


def read_keyboards(tree: Tree, unknown: set[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
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


def read_screens(tree: Tree, unknown: set[str]) -> tuple[tuple[str, str], ...]:
    """From the map of memory, where what lies within a window of a function stands below it, further to the right."""
    found = _text_console(tree, unknown)
    above: list[tuple[int, str]] = []
    lines = tree.lines("proc/iomem", 4 * MIB)
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


def _text_console(tree: Tree, unknown: set[str]) -> list[tuple[str, str]]:
    """Where the text console is drawn: the first frame buffer (https://docs.kernel.org/fb/fbcon.html), if one is used."""
    consoles = (tree.names("sys/class/vtconsole") if tree.exists("sys/class/vtconsole") else None) or ()
    for console in consoles:
        path = f"sys/class/vtconsole/{console}"
        if "frame buffer" not in (tree.text(f"{path}/name") or "frame buffer"):
            continue
        bound = tree.number(f"{path}/bind")
        if bound is None:
            unknown.add("screens")
        names = (tree.names("sys/class/graphics") if bound and tree.exists("sys/class/graphics") else None) or ()
        buffers = sorted((name for name in names if re.match(r"^fb\d+$", name)), key=lambda name: int(name[2:]))
        functions = pci_functions(tree.follow(f"sys/class/graphics/{buffers[0]}") or "") if buffers else ()
        if functions:
            return [(f"text console on {buffers[0]}", functions[-1])]
    return []
