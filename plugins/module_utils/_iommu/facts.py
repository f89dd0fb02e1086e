# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole way from a directory to ``ansible_facts.phyllome_iommu``.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._boot.bindings import read_bindings
from .._boot.read import read_boot
from .._core.sysfs import Tree, is_vfio
from .._host.judge import judge_use
from .._host.read import read_identity, read_nodes, read_use
from .catalogue import Catalogue, read_catalogue
from .diagnose import judge_host, judge_iommu, judge_vfio
from .judge import judge_hardware
from .read import Hardware, Iommu, read_hardware, read_iommu

SCHEMA_VERSION = 1
PARTS = ("host", "iommu", "groups", "devices", "vfio", "bindings", "boot")
_UNREAD_SHOWN = 200


def gather(root: str, parts: t.Iterable[str] = ("all",), protect: t.Sequence[str] = ()) -> dict[str, t.Any]:
    """Read a machine and judge it.

    Args:
        root: directory that holds ``sys`` and ``proc``.
        parts: those of PARTS to return, or ``all``.
        protect: see judge_use.

    Raises:
        PhyllomeError: root is no such directory, or something to protect is not there.
    """
    return gather_from(Tree(root, "sysfs_root"), parts, protect)


def gather_from(
    tree: Tree,
    parts: t.Iterable[str] = ("all",),
    protect: t.Sequence[str] = (),
    look_up: t.Callable[..., Catalogue] = read_catalogue,
) -> dict[str, t.Any]:
    """The same of a tree that somebody has opened already; ``look_up`` reads the catalogue."""
    wanted = PARTS if "all" in parts else tuple(part for part in PARTS if part in parts)
    identity = read_identity(tree)
    iommu = read_iommu(tree, identity.kernel)
    state = judge_iommu(identity, iommu)
    found: dict[str, t.Any] = {
        "host": judge_host(identity),
        "iommu": state,
        "vfio": judge_vfio(iommu),
        "boot": dataclasses.asdict(read_boot(tree)),
    }
    incomplete = False
    if {"groups", "devices", "bindings"} & {*wanted} or protect:
        hardware = read_hardware(tree)
        addresses = {device.address for device in hardware.devices}
        use = judge_use(read_use(tree), addresses, read_nodes(tree, protect))
        catalogue = look_up(tree, identity.kernel, {device.vendor for device in hardware.devices if device.vendor})
        found["groups"], found["devices"] = judge_hardware(identity, iommu, state, hardware, use, catalogue)
        incomplete = hardware.incomplete
        found["bindings"] = {
            "live": [
                {"address": device.address, "driver": device.driver}
                for device in hardware.devices
                if is_vfio(device.driver)
            ],
            "persistent": _persistent(tree, iommu, hardware),
        }
    facts: dict[str, t.Any] = {"schema_version": SCHEMA_VERSION, **{part: found[part] for part in wanted}}
    facts["unknown"] = sorted(_unknown(facts, iommu)) + (["devices"] if incomplete else [])
    facts["unread"] = [
        {"path": f"/{path}", "why": why} for path, why in sorted(tree.unread.items()) if why != "missing"
    ][:_UNREAD_SHOWN]
    return facts


def _persistent(tree: Tree, iommu: Iommu, hardware: Hardware) -> list[dict[str, t.Any]] | None:
    """What will be bound at the next boot. A rule whose devices cannot be told from it has no address."""
    if iommu.next_boot is None and iommu.running is None:
        return None
    bindings = read_bindings(tree, iommu.next_boot or [iommu.running or ()])
    found = []
    for binding in bindings or ():
        if not is_vfio(binding.driver):
            continue
        same = [one.address for one in hardware.devices if (one.vendor, one.device) in binding.ids]
        addresses: list[str | None] = [*binding.addresses, *same]
        for address in addresses or [None]:
            entry = {"address": address, "driver": binding.driver, "source": binding.source, "file": binding.file}
            if entry not in found:
                found.append(entry)
    return None if bindings is None else found


def _unknown(facts: dict[str, t.Any], iommu: Iommu) -> t.Iterator[str]:
    """Names of what is null because nobody knows, lists left out: their members say it themselves."""
    known_null = {"iommu.remedy"}
    if iommu.running is not None:
        known_null.add("iommu.unsafe.acs_override")
    if iommu.tables is not None:
        known_null.add("iommu.firmware.table")
        if "DMAR" not in iommu.tables:
            known_null |= {"iommu.firmware.opt_in", "iommu.firmware.intr_remap"}
    todo = [(name, value) for name, value in facts.items() if name != "schema_version"]
    while todo:
        name, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{name}.{key}", below) for key, below in value.items()]
        elif (value is None and name not in known_null) or value == "unknown":
            yield name
