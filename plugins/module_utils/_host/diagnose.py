# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a host can run guests at full speed; if not, every cause, with evidence and remedy. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .read import Identity
from .stack import Kvm

REMEDIES = {
    "firmware": "Switch on {feature} in the firmware setup{board}, then switch the machine off and on: some boards take it only then.",
    "cpu": "Look for {feature} in the firmware setup{board}. Where there is no such setting, this processor cannot run guests"
    " at full speed.",
    "not_nested": "This is a virtual machine: let the host below pass virtualisation on (nested virtualisation, host-passthrough).",
    "xen": "Boot the same system without Xen: its hypervisor has the processor's virtualisation.",
    "module_missing": "Boot a kernel that has {module}, or install the package that brings it (on Ubuntu linux-modules-extra).",
    "blacklisted": "Take the line out of {files}, then: modprobe {module}.",
    "module_not_loaded": "modprobe {module}; the kernel's log says why if it refuses.",
    "permission": "Run this as root, or be a member of the group that /dev/kvm belongs to (kvm).",
    "busy": "Another hypervisor has the processor's virtualisation: stop VirtualBox, VMware or whatever it is.",
    "node": "Look at /dev/kvm: in a container, the machine below has to let it in.",
    "libvirt": "Restart libvirt (systemctl restart libvirtd virtqemud): it looked for KVM before KVM was there.",
    "unreadable": "Run this as root: what decides it could not be read.",
}
_FEATURES = {"intel": "VT-x (Intel Virtualization Technology)", "amd": "SVM (AMD-V)", "hygon": "SVM (AMD-V)"}
_VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd", "HygonGenuine": "hygon"}


def virtualization(identity: Identity, kvm: Kvm, types: t.Collection[str] | None) -> dict[str, t.Any]:
    """The diagnosis.

    Args:
        identity: what the machine is.
        kvm: what there is of KVM.
        types: what libvirt says a guest can be; None when it does not say.

    Returns:
        ``state`` (``on``, ``off`` or ``unknown``), ``kind`` (``vmx`` or ``svm``), ``nested``, ``causes``, ``evidence``
        and ``remedy``.
    """
    flags = identity.cpu_flags
    kinds: list[str] = [] if flags is None else [kind for kind in ("vmx", "svm") if kind in flags]
    causes = _causes(identity, kvm, kinds, types)
    state = "on" if not causes else "unknown" if set(causes) <= {"unreadable", "permission"} else "off"
    return {
        "state": state,
        "kind": kinds[0] if kinds else None,
        "nested": kvm.nested,
        "causes": list(causes),
        "evidence": [line for lines in causes.values() for line in lines] or ["/dev/kvm makes virtual machines"],
        "remedy": " ".join(_remedy(cause, identity, kvm) for cause in causes) or None,
    }


def _causes(identity: Identity, kvm: Kvm, kinds: list[str], types: t.Collection[str] | None) -> dict[str, list[str]]:
    if identity.xen == "dom0":
        return {"xen": ["/sys/hypervisor: this is a Xen domain 0"]}
    if kvm.node == "usable":
        if types is not None and "kvm" not in types:
            return {"libvirt": [f"/dev/kvm works, and libvirt offers {', '.join(sorted(types)) or 'nothing'} only"]}
        return {}
    causes: dict[str, list[str]] = {}
    said = [line for line in kvm.log or () if "disabled" in line.lower() and "bios" in line.lower()]
    virtual = identity.cpu_flags is not None and "hypervisor" in identity.cpu_flags
    if said:
        causes["firmware"] = said[-3:]
    elif identity.cpu_flags is None:
        causes["unreadable"] = ["/proc/cpuinfo has no flags"]
    elif not kinds and virtual:
        causes["not_nested"] = ["/proc/cpuinfo has neither vmx nor svm among the flags, but hypervisor"]
    elif not kinds:
        causes["cpu"] = ["/proc/cpuinfo has neither vmx nor svm among the flags"]
    module = _module(identity)
    if kvm.node == "missing":
        if module not in kvm.loaded and kinds:
            if kvm.available is not None and module not in kvm.available:
                causes["module_missing"] = [f"the modules of kernel {identity.kernel} have no {module}"]
            elif kvm.blacklisted:
                causes["blacklisted"] = [f"{path} forbids it" for path in kvm.blacklisted]
            elif not said and not identity.container:
                causes["module_not_loaded"] = [f"/sys/module/{module} is not there"]
        if not causes or (identity.container and kinds):
            causes["node"] = ["/dev/kvm is not there"]
    elif kvm.node in ("EACCES", "EPERM"):
        causes["permission"] = ["/dev/kvm: permission denied"]
    elif kvm.node == "EBUSY":
        causes["busy"] = ["/dev/kvm: device or resource busy"]
    elif not causes:
        causes["node"] = [f"/dev/kvm is there and does not work: {kvm.node}"]
    return causes


def _module(identity: Identity) -> str:
    return "kvm_intel" if _VENDORS.get(identity.cpu_vendor or "") == "intel" else "kvm_amd"


def _remedy(cause: str, identity: Identity, kvm: Kvm) -> str:
    board = " ".join(identity.dmi.get(key, "") for key in ("board_vendor", "board_name", "bios_version")).strip()
    vendor = _VENDORS.get(identity.cpu_vendor or "", "")
    return REMEDIES[cause].format(
        feature=_FEATURES.get(vendor, "virtualisation"),
        board=f" of this {board}" if board else "",
        module=_module(identity),
        files=", ".join(kvm.blacklisted),
    )
