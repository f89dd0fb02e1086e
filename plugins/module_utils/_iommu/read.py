# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The IOMMU, its groups and what is in them: as the kernel says it, nothing concluded.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
import zlib

from .._boot.read import read_next, read_running
from .._core.sysfs import PCI_ADDRESS, Tree
from .device import GROUP, HEX, Device, order, read_device, read_place

MIB = 1 << 20
TABLES = ("DMAR", "IVRS", "IORT", "VIOT")
CONFIG = (
    "INTEL_IOMMU",
    "INTEL_IOMMU_DEFAULT_ON",
    "INTEL_IOMMU_DEFAULT_ON_INTGPU_OFF",
    "AMD_IOMMU",
    "ARM_SMMU",
    "ARM_SMMU_V3",
    "VIRTIO_IOMMU",
    "IRQ_REMAP",
    "IOMMU_DEFAULT_PASSTHROUGH",
    "VFIO",
    "VFIO_PCI",
    "VFIO_IOMMU_TYPE1",
    "IOMMUFD",
)
MODULES = ("vfio", "vfio_pci", "vfio_iommu_type1", "iommufd")
PARAMETERS = (
    "vfio/parameters/enable_unsafe_noiommu_mode",
    "vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "iommufd/parameters/allow_unsafe_interrupts",
)
_CONFIG_LINE = re.compile(r"^(?:# )?CONFIG_(\w+)(?:=(.*)| is not set)$")
_LOG = re.compile(r"DMAR|AMD-Vi|IOMMU|iommu|vfio", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Unit:
    """An IOMMU: name in /sys/class/iommu, and what its directory says (``intel/cap`` and the like)."""

    name: str
    values: t.Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Iommu:
    """The state of the IOMMU.

    Attributes:
        groups: numbers of the groups; None when unknown.
        units: None when unknown.
        tables: those of TABLES that the firmware has; None when unknown.
        acpi: whether the machine has ACPI tables at all.
        dmar_flags: flags byte of the table DMAR (VT-d specification 8.1).
        running: arguments of the kernel.
        next_boot: arguments of every entry that may start next.
        config: option without ``CONFIG_`` → ``y``, ``m``, ``n`` or its value; None when unknown.
        loaded: those of MODULES that /sys/module has.
        parameters: of PARAMETERS, those that are there.
        log: lines of the kernel's log that are about the IOMMU; None when it could not be read.
        interrupts: names of interrupt controllers in use.
        iommufd: whether /dev/iommu is there.
    """

    groups: tuple[int, ...] | None
    units: tuple[Unit, ...] | None
    tables: tuple[str, ...] | None
    acpi: bool
    dmar_flags: int | None
    running: tuple[str, ...] | None
    next_boot: tuple[tuple[str, ...], ...] | None
    config: t.Mapping[str, str] | None
    loaded: tuple[str, ...]
    parameters: t.Mapping[str, str]
    log: tuple[str, ...] | None
    interrupts: frozenset[str]
    iommufd: bool


@dataclasses.dataclass(frozen=True)
class Group:
    """A group: https://docs.kernel.org/ABI/testing/sysfs-kernel-iommu_groups.html.

    Attributes:
        members: names of its devices; None when unknown.
        regions: (first address, last address, type); None when unknown.
    """

    id: int
    name: str | None
    type: str | None
    members: tuple[str, ...] | None
    regions: tuple[tuple[int, int, str], ...] | None


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Groups and functions.

    Attributes:
        incomplete: a list of them could not be read.
    """

    groups: tuple[Group, ...]
    devices: tuple[Device, ...]
    incomplete: bool


def read_iommu(tree: Tree, kernel: str | None) -> Iommu:
    """Look at the state of the IOMMU.

    Args:
        tree: the machine.
        kernel: release, to find its configuration.
    """
    groups = tree.names("sys/kernel/iommu_groups") if tree.exists("sys/kernel/iommu_groups") else ()
    acpi = tree.exists("sys/firmware/acpi")
    tables = tree.names("sys/firmware/acpi/tables") if acpi else ()
    return Iommu(
        groups=None if groups is None else tuple(int(name) for name in groups if GROUP.match(name)),
        units=_units(tree),
        tables=None if tables is None else tuple(name for name in TABLES if name in tables),
        acpi=acpi,
        dmar_flags=_dmar_flags(tree) if "DMAR" in (tables or ()) else None,
        running=read_running(tree),
        next_boot=read_next(tree),
        config=_config(tree, kernel),
        loaded=tuple(name for name in MODULES if tree.exists(f"sys/module/{name}")),
        parameters={
            path: tree.text(f"sys/module/{path}") or "?" for path in PARAMETERS if tree.exists(f"sys/module/{path}")
        },
        log=_log(tree),
        interrupts=frozenset(_interrupts(tree)),
        iommufd=tree.exists("dev/iommu"),
    )


def _units(tree: Tree) -> tuple[Unit, ...] | None:
    if not tree.exists("sys/class/iommu"):
        return ()
    names = tree.names("sys/class/iommu")
    if names is None:
        return None
    units = []
    for name in names:
        path = tree.follow(f"sys/class/iommu/{name}")
        values = {}
        for entry in (tree.names(path) if path else None) or ():
            kind, dash, rest = entry.partition("-")
            if rest == "iommu" and kind in ("intel", "amd"):
                for key in tree.names(f"{path}/{entry}") or ():
                    values[f"{kind}/{key}"] = tree.text(f"{path}/{entry}/{key}") or ""
        units.append(Unit(name, values))
    return tuple(units)


def _dmar_flags(tree: Tree) -> int | None:
    # 36 bytes of ACPI header, then the host address width, then the flags.
    table = tree.data("sys/firmware/acpi/tables/DMAR", MIB)
    if table is not None and (len(table) < 48 or table[:4] != b"DMAR"):
        tree.note("sys/firmware/acpi/tables/DMAR", "not a table DMAR")
        return None
    return None if table is None else table[37]


def _config(tree: Tree, kernel: str | None) -> dict[str, str] | None:
    """The kernel's configuration, from wherever it is kept."""
    text = None
    if tree.exists("proc/config.gz"):
        packed = tree.data("proc/config.gz", MIB)
        try:
            text = None if packed is None else zlib.decompressobj(31).decompress(packed, 4 * MIB)
        except zlib.error:
            tree.note("proc/config.gz", "not a gzip file")
    for path in (f"boot/config-{kernel}", f"usr/lib/modules/{kernel}/config", f"lib/modules/{kernel}/config"):
        if text is None and kernel and tree.exists(path):
            text = tree.data(path, 4 * MIB)
    found: dict[str, str] = {}
    for line in (text or b"").decode("ascii", "replace").splitlines():
        match = _CONFIG_LINE.match(line)
        if match:
            found[match.group(1)] = match.group(2) or "n"
    # A configuration that does not even say PCI is cut, or none.
    if "PCI" not in found:
        return None
    return {option: found.get(option, "n") for option in CONFIG}


def _log(tree: Tree) -> tuple[str, ...] | None:
    lines = tree.log()
    return None if lines is None else tuple(line for line in lines if is_of_iommu(line))


def is_of_iommu(line: str) -> bool:
    """Whether a line of the kernel's log is about the IOMMU."""
    return _LOG.search(line) is not None


def _interrupts(tree: Tree) -> t.Iterator[str]:
    """Names of interrupt controllers in use; with remapping the kernel prefixes them with ``IR-``.

    Source: pci_msi_ir_controller and ioapic_ir_chip of arch/x86/kernel/apic.
    """
    for number in (tree.names("sys/kernel/irq") or ())[:256]:
        name = tree.text(f"sys/kernel/irq/{number}/chip_name")
        if name:
            yield name


def read_hardware(tree: Tree) -> Hardware:
    """Look at the groups and the PCI functions, in the order of their addresses."""
    names = tree.names("sys/bus/pci/devices") if tree.exists("sys/bus") else ()
    addresses = [name for name in names or () if PCI_ADDRESS.match(name)]
    slots = _slots(tree)
    places = [read_place(tree, address) for address in sorted(addresses, key=order)]
    tree.ahead(f"{place.path}/{name}" for place in places for name in place.slow())
    devices = [read_device(tree, place, slots) for place in places]
    groups = tree.names("sys/kernel/iommu_groups") if tree.exists("sys/kernel/iommu_groups") else ()
    return Hardware(
        groups=tuple(_group(tree, int(name)) for name in sorted(filter(GROUP.match, groups or ()), key=int)),
        devices=tuple(device for device in devices if device),
        incomplete=names is None or groups is None or len(addresses) != len(names) or None in devices,
    )


def _slots(tree: Tree) -> dict[str, str]:
    if not tree.exists("sys/bus/pci/slots"):
        return {}
    return {
        tree.text(f"sys/bus/pci/slots/{name}/address") or "": name for name in tree.names("sys/bus/pci/slots") or ()
    }


def _group(tree: Tree, number: int) -> Group:
    path = f"sys/kernel/iommu_groups/{number}"
    there = tree.names(path) or ()
    return Group(
        id=number,
        name=tree.text(f"{path}/name") if "name" in there else None,
        type=tree.text(f"{path}/type") if "type" in there else None,
        members=tree.names(f"{path}/devices"),
        regions=_regions(tree, f"{path}/reserved_regions"),
    )


def _regions(tree: Tree, path: str) -> tuple[tuple[int, int, str], ...] | None:
    text = tree.text(path)
    if text is None:
        return None
    regions = []
    for line in text.splitlines():
        words = line.split()
        if len(words) != 3 or not (HEX.match(words[0]) and HEX.match(words[1])):
            tree.note(path, "a line of it is not understood")
            return None
        regions.append((int(words[0], 16), int(words[1], 16), words[2]))
    return tuple(regions)
