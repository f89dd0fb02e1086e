# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What machine this is, whether its IOMMU is on, and why not if not. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import re
import typing as t

from .._host.read import Identity
from .read import TABLES, Iommu, Unit

Facts = dict[str, t.Any]

CHASSIS = {  # SMBIOS specification (DSP0134), table 17
    "desktop": (3, 4, 5, 6, 7, 13, 15, 16, 24, 35, 36),
    "laptop": (8, 9, 10, 14, 31, 32),
    "tablet": (11, 30),
    "server": (17, 23, 25, 28, 29),
    "embedded": (33, 34),
    "vm": (1,),
}
VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd", "HygonGenuine": "hygon", "ARM": "arm"}
HYPERVISORS = {  # DMI sys_vendor → value of host.virtualization
    "QEMU": "kvm",
    "KubeVirt": "kvm",
    "Red Hat": "kvm",
    "Google": "kvm",
    "Amazon EC2": "kvm",
    "VMware, Inc.": "vmware",
    "innotek GmbH": "virtualbox",
    "Microsoft Corporation": "hyperv",
    "Xen": "xen",
    "Parallels Software International Inc.": "parallels",
    "Apple Inc.": "apple",
}
REMEDIES = {
    "owned_by_xen": "Xen has the IOMMU to itself: pass devices with Xen's own tools, or boot Linux without Xen.",
    "guest_without_viommu": "This is a virtual machine: give it an emulated IOMMU where it is defined"
    " (libvirt: <iommu model='intel'/> or 'virtio').",
    "no_firmware_table": "Switch on VT-d (Intel), AMD-Vi or IOMMU (AMD) or SMMU (Arm) in the firmware setup{board};"
    " a machine that has no such setting cannot do it.",
    "kernel_without_driver": "Boot a kernel that is built with {drivers}.",
    "disabled_on_cmdline": "Take {tokens} off the kernel command line and reboot.",
    "needs_intel_iommu_on": "Add intel_iommu=on to the kernel command line and reboot.",
    "reboot_pending": "Reboot: the next boot has it on its command line already.",
    "init_failed": "The kernel tried and failed: see the lines of its log, and look for a firmware update{board}.",
    "undetermined": "Run this as root: what decides it could not be read.",
}
_DRIVERS = {
    "intel": ("INTEL_IOMMU",),
    "amd": ("AMD_IOMMU",),
    "hygon": ("AMD_IOMMU",),
    "arm": ("ARM_SMMU_V3", "ARM_SMMU"),
    "virtio": ("VIRTIO_IOMMU",),
}
_TABLE_VENDORS = {"DMAR": "intel", "IVRS": "amd", "IORT": "arm", "VIOT": "virtio"}
# Either switches it on; the second leaves out an integrated GPU, and is what Debian has (drivers/iommu/intel/Kconfig).
_DEFAULT_ON = ("INTEL_IOMMU_DEFAULT_ON", "INTEL_IOMMU_DEFAULT_ON_INTGPU_OFF")
_RELEVANT = ("iommu", "intel_iommu", "amd_iommu", "intremap", "pcie_acs_override", "vfio", "arm_smmu")
_UNITS = {"dmar": "intel", "ivhd": "amd", "smmu": "arm", "arm-smmu": "arm", "virtio": "virtio"}


def judge_host(identity: Identity) -> Facts:
    """What kind of machine this is."""
    flags = identity.cpu_flags
    chassis = identity.dmi.get("chassis_type", "")
    kinds = [kind for kind, types in CHASSIS.items() if chassis.isdigit() and int(chassis) in types]
    return {
        "virtualization": _virtualization(identity),
        "container": identity.container,
        "chassis": kinds[0] if kinds else None,
        "cpu_vendor": VENDORS.get(identity.cpu_vendor or "", identity.cpu_vendor),
        "vtx": None if flags is None or identity.cpu_vendor == "ARM" else bool(flags & {"vmx", "svm"}),
        "nested": identity.nested,
        "kernel": identity.kernel,
        "board": {key: identity.dmi[key] for key in sorted(identity.dmi) if key != "chassis_type"} or None,
    }


def _virtualization(identity: Identity) -> str | None:
    if identity.xen:
        return "xen_dom0" if identity.xen == "dom0" else "xen"
    by_dmi = HYPERVISORS.get(identity.dmi.get("sys_vendor", ""))
    if identity.cpu_flags is None or identity.cpu_vendor == "ARM":
        # No flag says it; Microsoft, Google, Apple and Red Hat's vendor strings are on real machines, too.
        return by_dmi if by_dmi in ("kvm", "vmware", "virtualbox") else None
    if "hypervisor" not in identity.cpu_flags:
        return "none"
    return by_dmi or "vm"


def arguments(tokens: t.Iterable[str]) -> dict[str, list[str]]:
    """Kernel arguments by name; to the kernel ``-`` and ``_`` in a name are the same."""
    found: dict[str, list[str]] = {}
    for token in tokens:
        name, dummy, value = token.partition("=")
        found.setdefault(name.replace("-", "_"), []).append(value)
    return found


def relevant(tokens: t.Iterable[str]) -> list[str]:
    """Those of a kernel's arguments that bear on the IOMMU."""
    return [
        token
        for token in tokens
        if token.replace("-", "_").startswith(_RELEVANT) or (token.startswith("pci=") and "acs" in token)
    ]


def _off_on_cmdline(tokens: tuple[str, ...], vendor: str | None, iommu: Iommu) -> dict[str, list[str]]:
    """What of a command line keeps the IOMMU off: cause → evidence."""
    given = arguments(tokens)
    off = [f"iommu={value}" for value in given.get("iommu", ()) if "off" in value.split(",")]
    if vendor in ("amd", "hygon"):
        off += [f"amd_iommu={value}" for value in given.get("amd_iommu", ()) if "off" in value.split(",")]
    switches = [word for value in given.get("intel_iommu", ()) for word in value.split(",") if word in ("on", "off")]
    if vendor == "intel" and switches[-1:] == ["off"]:  # the last one counts, intel_iommu_setup()
        off.append("intel_iommu=off")
    causes = {"disabled_on_cmdline": off} if off else {}
    opt_in = _flag_of_dmar(iommu, 2)
    config = iommu.config or {}
    there = (iommu.tables is None or "DMAR" in iommu.tables) and config.get("INTEL_IOMMU") != "n"
    if vendor == "intel" and not switches and there and opt_in is not True:
        defaults = [config.get(name) for name in _DEFAULT_ON]
        if "y" not in defaults:
            causes["needs_intel_iommu_on"] = [
                "CONFIG_INTEL_IOMMU_DEFAULT_ON "
                + ("could not be read" if None in defaults else "is not set")
                + " and the command line has no intel_iommu=on"
            ]
    return causes


def _flag_of_dmar(iommu: Iommu, bit: int) -> bool | None:
    return None if iommu.dmar_flags is None else bool(iommu.dmar_flags >> bit & 1)


def judge_iommu(identity: Identity, iommu: Iommu) -> Facts:
    """Whether the IOMMU is on; if not, every cause that was found, with evidence and remedy."""
    causes: dict[str, list[str]] = {}
    if iommu.groups is None or iommu.units is None:
        state = "unknown"
        causes["undetermined"] = ["/sys/kernel/iommu_groups or /sys/class/iommu could not be read"]
    elif iommu.groups and iommu.units:
        state = "on"
    else:
        state = "off"
        causes = _causes(identity, iommu)
    evidence = [line for lines in causes.values() for line in lines]
    if state == "on":
        evidence = [f"{len(iommu.groups or ())} groups", *(unit.name for unit in iommu.units or ())]
    nexts = None if iommu.next_boot is None else {tuple(relevant(tokens)) for tokens in iommu.next_boot}
    next_boot = list(nexts.pop()) if nexts is not None and len(nexts) == 1 else None
    running = None if iommu.running is None else relevant(iommu.running)
    pending = None if next_boot is None or running is None else sorted(next_boot) != sorted(running)
    return {
        "state": state,
        "causes": list(causes),
        "evidence": evidence,
        "remedy": " ".join(_remedy(cause, identity, iommu) for cause in causes) or None,
        "units": [_unit(unit) for unit in iommu.units or ()],
        "firmware": {
            "table": (iommu.tables or (None,))[0],
            "opt_in": _flag_of_dmar(iommu, 2),
            "intr_remap": _flag_of_dmar(iommu, 0),
        },
        "cmdline": {"running": running, "next_boot": next_boot, "reboot_pending": pending},
        "kernel_config": None if iommu.config is None else dict(iommu.config),
        "interrupt_remapping": _interrupt_remapping(iommu),
        "unsafe": {
            "acs_override": _acs_override(iommu),
            "unsafe_interrupts": _parameter(iommu, "allow_unsafe_interrupts"),
            "noiommu": _parameter(iommu, "enable_unsafe_noiommu_mode"),
        },
    }


def _causes(identity: Identity, iommu: Iommu) -> dict[str, list[str]]:
    """The decision tree; all that apply, since each has to be dealt with."""
    if identity.xen == "dom0":
        return {"owned_by_xen": ["/sys/hypervisor: this is a Xen domain 0"]}
    virtual = _virtualization(identity) not in ("none", None)
    vendor = _vendor(identity, iommu)
    causes: dict[str, list[str]] = {}
    if iommu.tables is not None and not iommu.tables:
        if virtual:
            causes["guest_without_viommu"] = ["this is a virtual machine, and it was given no IOMMU"]
        else:
            where = "/sys/firmware/acpi/tables has none of" if iommu.acpi else "this machine has no ACPI, so none of"
            causes["no_firmware_table"] = [f"{where} {', '.join(TABLES)}"]
    drivers = _drivers(vendor, virtual)
    if iommu.config is not None and drivers and not any(iommu.config[driver] in "ym" for driver in drivers):
        causes["kernel_without_driver"] = [f"CONFIG_{driver} is not set" for driver in drivers]
    if iommu.running is not None:
        now = _off_on_cmdline(iommu.running, vendor, iommu)
        causes.update(now)
        if now and iommu.next_boot and not any(_off_on_cmdline(line, vendor, iommu) for line in iommu.next_boot):
            causes["reboot_pending"] = [
                f"next boot: {' '.join(relevant(iommu.next_boot[0])) or 'no such argument'}",
            ]
    if not causes:
        if iommu.tables is None or iommu.running is None or vendor is None:
            causes["undetermined"] = ["firmware tables, command line or CPU could not be read"]
        else:
            causes["init_failed"] = list((iommu.log or ())[-20:]) or ["the kernel's log says nothing, or not any more"]
    return causes


def _vendor(identity: Identity, iommu: Iommu) -> str | None:
    """Whose IOMMU it is, or would be: the firmware knows better than the CPU."""
    tables = [table for table in iommu.tables or () if table in _TABLE_VENDORS]
    return _TABLE_VENDORS[tables[0]] if tables else VENDORS.get(identity.cpu_vendor or "")


def _drivers(vendor: str | None, virtual: bool) -> tuple[str, ...]:
    wanted = _DRIVERS.get(vendor or "", ()) + (_DRIVERS["virtio"] if virtual and vendor else ())
    return tuple(dict.fromkeys(wanted))


def _remedy(cause: str, identity: Identity, iommu: Iommu) -> str:
    board = " ".join(identity.dmi.get(key, "") for key in ("board_vendor", "board_name", "bios_version")).strip()
    tokens = [token for token in relevant(iommu.running or ()) if "off" in token.partition("=")[2].split(",")]
    virtual = _virtualization(identity) not in ("none", None)
    drivers = _drivers(_vendor(identity, iommu), virtual)
    return REMEDIES[cause].format(
        board=f" of this {board}" if board else "",
        tokens=" ".join(tokens),
        drivers=" or ".join(f"CONFIG_{driver}" for driver in drivers),
    )


def _unit(unit: Unit) -> Facts:
    kind = next((kind for prefix, kind in _UNITS.items() if unit.name.startswith(prefix)), "other")
    values = {
        key: f"0x{value}" if value else None
        for key in ("address", "cap", "ecap", "features", "version")
        for value in [unit.values.get(f"{kind}/{key}", "").removeprefix("0x")]
    }
    ecap = values["ecap"] or ""
    # Bit 3 of the extended capability register: VT-d specification 11.4.3.
    remapping = bool(int(ecap, 16) >> 3 & 1) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", ecap) else None
    return {"name": unit.name, "type": kind, **values, "interrupt_remapping": remapping}


def _interrupt_remapping(iommu: Iommu) -> str:
    if any(name.startswith("IR-") for name in iommu.interrupts):
        return "enabled"
    if any(name.startswith(("IO-APIC", "PCI-MSI")) for name in iommu.interrupts):
        return "disabled"
    return "unknown"


def _acs_override(iommu: Iommu) -> str | None:
    found = [token for token in relevant(iommu.running or ()) if "acs" in token]
    return " ".join(found) or None


def _parameter(iommu: Iommu, name: str) -> bool | None:
    """Whether a module's parameter is on; a module that is not loaded has it off."""
    values = [value for path, value in iommu.parameters.items() if path.endswith(f"/{name}")]
    owners = {"allow_unsafe_interrupts": ("vfio_iommu_type1", "iommufd"), "enable_unsafe_noiommu_mode": ("vfio",)}
    if "Y" in values:
        return True
    # This one is only there in kernels with CONFIG_VFIO_NOIOMMU, which Debian's are not.
    optional = name == "enable_unsafe_noiommu_mode"
    missing = not optional and sum(owner in iommu.loaded for owner in owners[name]) != len(values)
    return None if missing or any(value != "N" for value in values) else False


def judge_vfio(iommu: Iommu) -> Facts:
    """What of VFIO there is."""
    words = {"y": "builtin", "m": "available", "n": "missing"}
    modules: dict[str, str | None] = {}
    for name in ("vfio", "vfio_pci", "vfio_iommu_type1"):
        configured = None if iommu.config is None else words.get(iommu.config[name.upper()])
        modules[name] = "builtin" if configured == "builtin" else "loaded" if name in iommu.loaded else configured
    return {"modules": modules, "iommufd": iommu.iommufd}
