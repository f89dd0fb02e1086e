# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The IOMMU, its groups and the PCI functions: as the kernel says it, nothing concluded.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
import zlib

from .._boot.read import read_next, read_running
from .._core.sysfs import PCI_ADDRESS, Tree

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
_ACS = 0x000D  # id of the extended capability, include/uapi/linux/pci_regs.h
_HEX = re.compile(r"^(?:0[xX])?[0-9a-fA-F]{1,16}$")
_IDS = re.compile(r"^[0-9A-Fa-f]{4}:[0-9A-Fa-f]{4}$")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_CLASS = re.compile(r"^0x[0-9a-fA-F]{6}$")
_GROUP = re.compile(r"[0-9]{1,10}\Z")


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
class Sriov:
    """What a physical function says of its virtual functions; None is unknown."""

    total: int | None
    number: int | None
    autoprobe: bool | None
    functions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Connector:
    """A plug of a graphics card; ``enabled`` says whether it shows a picture now."""

    name: str
    enabled: bool | None


@dataclasses.dataclass(frozen=True)
class Acs:
    """Access control of a bridge (PCI Express base specification 7.7.11).

    Attributes:
        there: whether it has the capability.
        control: what is switched on, as the control register has it.
    """

    there: bool
    control: int


@dataclasses.dataclass(frozen=True)
class Device:
    """A PCI function: https://docs.kernel.org/PCI/sysfs-pci.html. None is unknown or absent.

    Attributes:
        path: below ``sys/devices``.
        vendor: four hex digits, as all ids.
        class_code: six hex digits.
        modalias: as the kernel looks for a driver, without ``pci:``.
        bridge: whether it has a bus behind it.
        acs: of a bridge; None when unknown.
        unit: name of the IOMMU that it is behind.
        driver: None without one; see driver_known.
        driver_known: whether the kernel said what drives it, were it nothing.
        reset: whether the kernel can reset it.
        resets: ways to do so, the preferred one first; None when the kernel (before 5.15) does not say.
        connectors: None without a DRM device.
        mdev: ``mdev`` where types can be made of it, ``nvidia_vf`` where NVIDIA's driver has its own way
            (https://docs.kernel.org/driver-api/vfio-mediated-device.html), else ``none``.
        serial: as the function itself or the driver that has it now says.
        own_serial: the same, only if the function itself says it: whatever drives it.
        mdevs: UUIDs of the mediated devices that were made of it.
    """

    address: str
    path: str
    vendor: str | None
    device: str | None
    subsystem: str | None
    class_code: str | None
    modalias: str | None
    bridge: bool
    acs: Acs | None
    group: int | None
    unit: str | None
    driver: str | None
    driver_known: bool
    driver_override: str | None
    numa_node: int | None
    boot_vga: bool | None
    boot_display: bool | None
    reset: bool
    resets: tuple[str, ...] | None
    sriov: Sriov | None
    physfn: str | None
    bars: tuple[tuple[int, int, bool], ...] | None
    connectors: tuple[Connector, ...] | None
    mdev: str
    mdev_types: tuple[str, ...]
    mdevs: tuple[str, ...]
    serial: str | None
    own_serial: str | None
    slot: str | None


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
        groups=None if groups is None else tuple(int(name) for name in groups if _GROUP.match(name)),
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
    devices = [_device(tree, address, slots) for address in sorted(addresses, key=order)]
    groups = tree.names("sys/kernel/iommu_groups") if tree.exists("sys/kernel/iommu_groups") else ()
    return Hardware(
        groups=tuple(_group(tree, int(name)) for name in sorted(filter(_GROUP.match, groups or ()), key=int)),
        devices=tuple(device for device in devices if device),
        incomplete=names is None or groups is None or len(addresses) != len(names) or None in devices,
    )


def order(address: str) -> tuple[int, ...]:
    """Sorts PCI addresses as numbers, whatever their domain's width."""
    match = PCI_ADDRESS.match(address)
    return tuple(int(part, 16) for part in match.groups()) if match else (-1,)


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
        if len(words) != 3 or not (_HEX.match(words[0]) and _HEX.match(words[1])):
            tree.note(path, "a line of it is not understood")
            return None
        regions.append((int(words[0], 16), int(words[1], 16), words[2]))
    return tuple(regions)


def _device(tree: Tree, address: str, slots: t.Mapping[str, str]) -> Device | None:
    path = tree.follow(f"sys/bus/pci/devices/{address}")
    listed = tree.names(path) if path is not None else None
    if path is None or not listed:  # it went away meanwhile
        return None
    there = frozenset(listed)
    event = _event(tree, path, address)
    driver = (tree.follow(f"{path}/driver") or "").rpartition("/")[2] if "driver" in there else ""
    vendor, device = _ids(tree, path, there, event.get("PCI_ID"), "vendor", "device")
    sub_vendor, sub_device = _ids(tree, path, there, event.get("PCI_SUBSYS_ID"), "subsystem_vendor", "subsystem_device")
    bridge = "pci_bus" in there or "secondary_bus_number" in there
    return Device(
        address=address,
        path=path[len("sys/devices/") :] if path.startswith("sys/devices/") else path,
        vendor=vendor,
        device=device,
        subsystem=f"{sub_vendor}:{sub_device}" if sub_vendor and sub_device else None,
        class_code=_class(tree, path, there),
        modalias=event["MODALIAS"].partition(":")[2] if "MODALIAS" in event else None,
        bridge=bridge,
        acs=_acs(tree, path, there) if bridge else None,
        group=_group_of(tree, path, there),
        unit=(tree.follow(f"{path}/iommu") or "").rpartition("/")[2] or None if "iommu" in there else None,
        driver=driver or event.get("DRIVER"),
        # Two witnesses: a missing link alone is not taken for a missing driver.
        driver_known=bool(event) and driver == event.get("DRIVER", ""),
        driver_override=_override(tree, path, there),
        numa_node=_number(tree, path, there, "numa_node"),
        boot_vga=_flag(tree, path, there, "boot_vga"),
        boot_display=_boot_display(tree, path, there),
        reset=bool(there & {"reset", "reset_method"}),
        resets=_resets(tree, path, there),
        sriov=_sriov(tree, path, there),
        physfn=(tree.follow(f"{path}/physfn") or "").rpartition("/")[2] or None if "physfn" in there else None,
        bars=_bars(tree, path, there),
        connectors=_connectors(tree, path, there),
        mdev="mdev" if "mdev_supported_types" in there else "nvidia_vf" if "nvidia" in there else "none",
        mdev_types=(tree.names(f"{path}/mdev_supported_types") or ()) if "mdev_supported_types" in there else (),
        mdevs=tuple(sorted(filter(_UUID.match, there))),
        serial=_own_serial(tree, path, there) or _serial(tree, path, there),
        own_serial=_own_serial(tree, path, there),
        slot=slots.get(address.rpartition(".")[0]),
    )


def _event(tree: Tree, path: str, address: str) -> dict[str, str]:
    """The device's ``uevent``; empty when it is not that of this device."""
    text = tree.text(f"{path}/uevent") or ""
    event = dict(line.partition("=")[::2] for line in text.splitlines())
    if event.get("PCI_SLOT_NAME") != address:
        tree.note(f"{path}/uevent", "not of this device")
        return {}
    return event


def _ids(tree: Tree, path: str, there: frozenset[str], both: str | None, *files: str) -> tuple[str | None, str | None]:
    if both and _IDS.match(both):
        first, dummy, second = both.lower().partition(":")
        return first, second
    values = [tree.text(f"{path}/{name}") or "" if name in there else "" for name in files]
    good = [value[2:].lower() if re.fullmatch(r"0x[0-9a-fA-F]{4}", value) else None for value in values]
    return good[0], good[1]


def _class(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    text = tree.text(f"{path}/class")
    if text is not None and not _CLASS.match(text):
        tree.note(f"{path}/class", "not a class")
        return None
    return None if text is None else text[2:].lower()


def _group_of(tree: Tree, path: str, there: frozenset[str]) -> int | None:
    if "iommu_group" not in there:
        return None
    name = (tree.follow(f"{path}/iommu_group") or "").rpartition("/")[2]
    return int(name) if _GROUP.match(name) else None


def _override(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    text = tree.text(f"{path}/driver_override") if "driver_override" in there else None
    return None if text in ("(null)", "") else text


def _number(tree: Tree, path: str, there: frozenset[str], name: str) -> int | None:
    """A number of 0 or more; -1 is how the kernel says that it does not know."""
    value = tree.number(f"{path}/{name}") if name in there else None
    return None if value is None or value < 0 else value


def _flag(tree: Tree, path: str, there: frozenset[str], name: str) -> bool | None:
    value = _number(tree, path, there, name)
    return None if value not in (0, 1) else bool(value)


def _acs(tree: Tree, path: str, there: frozenset[str]) -> Acs | None:
    """From the extended configuration space, which only root may read, and which a sleeping bridge would wake up for."""
    asleep = tree.text(f"{path}/power_state") in ("D3cold", "unknown") if "power_state" in there else False
    config = None if asleep else tree.data(f"{path}/config")
    if config is None or len(config) < 256:
        return None
    offset, seen = 0x100, set()
    while 0x100 <= offset <= len(config) - 8 and offset not in seen:
        seen.add(offset)
        head = int.from_bytes(config[offset : offset + 4], "little")
        if head == 0xFFFFFFFF:  # it does not answer
            return None
        if head & 0xFFFF == _ACS:
            return Acs(True, int.from_bytes(config[offset + 6 : offset + 8], "little"))
        offset = head >> 20 & 0xFFC
    return Acs(False, 0)


def _boot_display(tree: Tree, path: str, there: frozenset[str]) -> bool | None:
    """``boot_display`` of one of its DRM cards (https://docs.kernel.org/ABI/testing/sysfs-class-drm.html), from 6.18 on."""
    for card in _cards(tree, path, there):
        if tree.exists(f"{card}/boot_display"):
            return tree.number(f"{card}/boot_display") == 1
    return _flag(tree, path, there, "boot_display")


def _cards(tree: Tree, path: str, there: frozenset[str]) -> list[str]:
    if "drm" not in there:
        return []
    return [f"{path}/drm/{name}" for name in tree.names(f"{path}/drm") or () if re.match(r"^card\d+$", name)]


def _connectors(tree: Tree, path: str, there: frozenset[str]) -> tuple[Connector, ...] | None:
    found = []
    cards = _cards(tree, path, there)
    for card in cards:
        for name in tree.names(card) or ():
            if name.startswith(card.rpartition("/")[2] + "-"):
                text = tree.text(f"{card}/{name}/enabled")
                found.append(Connector(name, {"enabled": True, "disabled": False}.get(text or "")))
    return tuple(found) if cards else None


def _resets(tree: Tree, path: str, there: frozenset[str]) -> tuple[str, ...] | None:
    if "reset_method" in there:
        text = tree.text(f"{path}/reset_method")
        return None if text is None else tuple(text.split())
    return None if "reset" in there else ()


def _sriov(tree: Tree, path: str, there: frozenset[str]) -> Sriov | None:
    functions = [
        (tree.follow(f"{path}/{name}") or "?").rpartition("/")[2] for name in there if re.match(r"^virtfn\d+$", name)
    ]
    if not functions and not there & {"sriov_totalvfs", "sriov_numvfs"}:
        return None
    return Sriov(
        total=_number(tree, path, there, "sriov_totalvfs"),
        number=_number(tree, path, there, "sriov_numvfs"),
        autoprobe=_flag(tree, path, there, "sriov_drivers_autoprobe"),
        functions=tuple(sorted(functions, key=order)),
    )


def _bars(tree: Tree, path: str, there: frozenset[str]) -> tuple[tuple[int, int, bool], ...] | None:
    """(number, bytes, resizable): the first six lines of ``resource`` are ``start end flags`` of the BARs."""
    text = tree.text(f"{path}/resource")
    if text is None:
        return None
    bars = []
    for number, line in enumerate(text.splitlines()[:6]):
        words = line.split()
        if len(words) != 3 or not all(_HEX.match(word) for word in words):
            tree.note(f"{path}/resource", "a line of it is not understood")
            return None
        start, end, flags = (int(word, 16) for word in words)
        if flags and end >= start:
            bars.append((number, end - start + 1, f"resource{number}_resize" in there))
    return tuple(bars)


def _own_serial(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    """From the device serial number capability (https://docs.kernel.org/ABI/testing/sysfs-bus-pci.html), since 6.18."""
    return (tree.text(f"{path}/serial_number") or None) if "serial_number" in there else None


def _serial(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    """Not from the vital product data: reading that can take seconds, and wakes a sleeping device up."""
    for controller in (tree.names(f"{path}/nvme") or ()) if "nvme" in there else ():
        return tree.text(f"{path}/nvme/{controller}/serial") or None
    return None
