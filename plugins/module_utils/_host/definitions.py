# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt's files say of disks, whether libvirt runs or not.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import xml.parsers.expat

from .._core.sysfs import Tree

MIB = 1 << 20


def read_defined(tree: Tree, unknown: set[str]) -> tuple[tuple[str, str], ...]:
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
