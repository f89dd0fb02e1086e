# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest's definition on its way: our mark in it, and what it takes to have it elsewhere.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core import virt, xml
from .._guest.domain import marker
from .journal import Mark
from .read_guest import parse_guest


def starts_with_host(domain: t.Any) -> bool:
    """Whether a guest starts with its host: by libvirt's flag, or by its place in an order, which comes along."""
    made = marker(xml.parse(domain.XMLDesc(virt.libvirt.VIR_DOMAIN_XML_INACTIVE)))
    return bool(domain.autostart()) or (made is not None and made.order is not None)


def write_mark(domain: t.Any, mark: Mark | None) -> None:
    """Write our mark, or remove it. Never while a migration runs: it would block until its end.

    Only the definition is fenced: what runs travels as it is, and the destination may start it.
    """
    lib = virt.libvirt
    places = [(lib.VIR_DOMAIN_AFFECT_CONFIG, mark)]
    if domain.isActive():
        places.append((lib.VIR_DOMAIN_AFFECT_LIVE, dataclasses.replace(mark, fenced=False) if mark else None))
    for flags, one in places:
        text = one.dump() if one else None
        domain.setMetadata(lib.VIR_DOMAIN_METADATA_ELEMENT, text, "phyllome-migration", xml.MIGRATION_NS, flags)


def set_mark(root: xml.Element, mark: Mark | None) -> None:
    """Put our mark into a definition, in place of the one that is there."""
    xml.drop(root, f"metadata/{{{xml.MIGRATION_NS}}}migration")
    if mark is not None:
        made = xml.child(xml.ensure(root, "metadata"), f"{{{xml.MIGRATION_NS}}}migration")
        for name, value in xml.parse(mark.dump()).attrib.items():
            made.set(str(name), str(value))


def definition(domain: t.Any) -> tuple[str, tuple[str, ...]]:
    """What it takes to define a guest again: its XML without our mark, and what libvirt knows of its snapshots."""
    lib = virt.libvirt
    root = xml.parse(domain.XMLDesc(lib.VIR_DOMAIN_XML_INACTIVE | lib.VIR_DOMAIN_XML_SECURE))
    set_mark(root, None)
    snapshots = domain.listAllSnapshots(lib.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
    return xml.dump(root), tuple(one.getXMLDesc(lib.VIR_DOMAIN_SNAPSHOT_XML_SECURE) for one in snapshots)


def flattened(root: xml.Element, targets: t.Container[str]) -> None:
    """Have a definition say nothing of what was below disks."""
    for disk in root.findall("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("dev") in targets:
            xml.drop(disk, "backingStore")


def unfenced(domain: t.Any, flat: t.Container[str] = ()) -> str:
    """The definition that the destination gets, with disks that are flattened."""
    lib = virt.libvirt
    root = xml.parse(
        domain.XMLDesc(lib.VIR_DOMAIN_XML_INACTIVE | lib.VIR_DOMAIN_XML_SECURE | lib.VIR_DOMAIN_XML_MIGRATABLE)
    )
    for element in root.findall(f"metadata/{{{xml.MIGRATION_NS}}}migration"):
        element.set("fenced", "no")
    flattened(root, flat)
    return xml.dump(root)


def undefine_flags() -> int:
    """Keep what belongs to the guest; a library before 8.9 does not know KEEP_TPM."""
    lib = virt.libvirt
    return int(
        lib.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        | lib.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | lib.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | getattr(lib, "VIR_DOMAIN_UNDEFINE_KEEP_TPM", 0)
    )


def paths(text: str | None) -> set[str]:
    """Every file that a domain's XML names."""
    if text is None:
        return set()
    root = xml.parse(text)
    guest = parse_guest(root)
    named = {element.get("file") for element in root.iter("source")} | {guest.nvram, guest.tpm}
    return {path for path in named if path}
