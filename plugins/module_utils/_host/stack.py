# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is installed on a host and how it is set up, as its files say it; nothing concluded.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import typing as t

from .._core.sysfs import Tree
from .packages import read_packages

MIB = 1 << 20
RECORD = "etc/phyllome/evacuated.json"
"""What the playbook evacuate leaves on the host that it empties, and restore takes away."""

_KVM = re.compile(r"\bkvm\b|\bVMX\b|\bSVM\b|AMD-V", re.IGNORECASE)
_UNIT = re.compile(r"^(?:libvirtd|libvirt-guests|virt[a-z]+d)(?:-[a-z]+)?\.(?:service|socket)$")
# Not what tells one copy of a machine from another, and not what only says where its disk is.
_OWN = re.compile(r"^(?:BOOT_IMAGE|initrd|root|resume|rd\.[a-z.]*uuid|rd\.lvm\.lv|ostree|boot|systemd\.machine_id)=")
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_SETTINGS = ("etc/modprobe.d", "etc/sysctl.d", "etc/modules-load.d")
_OS_RELEASE = ("ID", "VERSION_ID", "VARIANT_ID", "IMAGE_ID", "IMAGE_VERSION", "BUILD_ID")
_KVM_GET_API_VERSION = 0xAE00  # include/uapi/linux/kvm.h
_KVM_CREATE_VM = 0xAE01


@dataclasses.dataclass(frozen=True)
class Kvm:
    """What there is of the kernel's KVM.

    Attributes:
        node: ``missing``, ``usable``, or the name of the error that opening it, or making a machine with it, gave.
        loaded: those of kvm, kvm_intel and kvm_amd that are there, loaded or built in.
        available: the same of those that could be loaded; None when the kernel's modules are out of sight.
        nested: whether guests can have guests; None when the module does not say.
        parameters: of these modules, name → value.
        log: the kernel's lines about it; None when the log may not be read.
        blacklisted: files that forbid to load them.
    """

    node: str
    loaded: frozenset[str]
    available: frozenset[str] | None
    nested: bool | None
    parameters: t.Mapping[str, str]
    log: tuple[str, ...] | None
    blacklisted: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Stack:
    """What is installed, and how it is set up. None is unknown.

    Attributes:
        os: from os-release.
        kernels: releases that are installed.
        cmdline: the running kernel's arguments, without those that only this machine can have.
        microcode: revision.
        cpu_model: the processor's name.
        packages: see read_packages.
        units: libvirt's units that are started at boot.
        settings: file below /etc → digest.
        tuned: the active profile.
        selinux: ``enforcing``, ``permissive``, ``disabled`` or ``absent``.
        apparmor: whether it is on.
        authority: digest of the certificate that libvirt believes; empty for none.
        vfio: vendor:device of the functions that VFIO has.
        memory: bytes in all, available now, and by size in KiB of the free huge pages, their number.
        reboot: files by which the distribution asks for a reboot, that are there.
        evacuated: the ``guests`` that were taken away, their ``destinations``, ``by`` which playbook, and what the host
            was ``before``.
    """

    os: t.Mapping[str, str]
    kernels: tuple[str, ...] | None
    cmdline: tuple[str, ...] | None
    microcode: str | None
    cpu_model: str | None
    packages: t.Mapping[str, str] | None
    units: tuple[str, ...]
    settings: t.Mapping[str, str]
    tuned: str | None
    selinux: str
    apparmor: bool
    authority: str | None
    vfio: tuple[str, ...]
    memory: t.Mapping[str, int | None]
    hugepages: t.Mapping[int, int]
    reboot: tuple[str, ...]
    evacuated: t.Mapping[str, t.Any] | None


def read_kvm(tree: Tree, kernel: str | None) -> Kvm:
    """Look at KVM. Opens /dev/kvm for a moment, on the live machine only."""
    names = frozenset({"kvm", "kvm_intel", "kvm_amd"})
    loaded = frozenset(name for name in names if tree.exists(f"sys/module/{name}"))
    parameters = {
        f"{name}.{parameter}": tree.text(f"sys/module/{name}/parameters/{parameter}") or ""
        for name in sorted(loaded)
        for parameter in (tree.names(f"sys/module/{name}/parameters") or ())
    }
    nested = [value for name, value in parameters.items() if name.endswith(".nested")]
    lines = tree.log()
    return Kvm(
        node=_node(tree),
        loaded=loaded,
        available=_available(tree, kernel, names),
        nested=None if not nested else nested[0] in ("1", "Y"),
        parameters=parameters,
        log=None if lines is None else tuple(line for line in lines if _KVM.search(line)),
        blacklisted=tuple(_blacklists(tree)),
    )


def _node(tree: Tree) -> str:
    if not tree.exists("dev/kvm"):
        return "missing"
    if tree.root != "/":
        return tree.text("dev/kvm") or "usable"
    try:
        handle = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, "EIO")
    try:
        fcntl.ioctl(handle, _KVM_GET_API_VERSION)
        os.close(fcntl.ioctl(handle, _KVM_CREATE_VM, 0))  # it is gone with its handle; EBUSY: somebody else has VMX
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, "EIO")
    finally:
        os.close(handle)
    return "usable"


def _available(tree: Tree, kernel: str | None, names: t.Collection[str]) -> frozenset[str] | None:
    folder = next((path for path in (f"usr/lib/modules/{kernel}", f"lib/modules/{kernel}") if tree.exists(path)), None)
    if not kernel or folder is None:
        return None
    listed = [tree.text(f"{folder}/{name}", 16 * MIB) for name in ("modules.dep", "modules.builtin")]
    if listed[0] is None:
        return None
    text = "\n".join(part or "" for part in listed).replace("-", "_")
    return frozenset(name for name in names if re.search(rf"(?m)(?:^|/){name}\.ko", text))


def _blacklists(tree: Tree) -> t.Iterator[str]:
    for folder in ("etc/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"):
        for name in tree.names(folder) or () if tree.exists(folder) else ():
            text = tree.text(f"{folder}/{name}", MIB) if name.endswith(".conf") else None
            if re.search(r"(?m)^\s*(?:blacklist|install)\s+kvm", text or ""):
                yield f"/{folder}/{name}"


def read_stack(tree: Tree) -> Stack:
    """Look at what is installed. Needs no privilege but for certificates."""
    first_cpu: dict[str, str] = {}
    for line in (tree.text("proc/cpuinfo", 16 * MIB) or "").split("\n\n")[0].splitlines():
        key, dummy, value = line.partition(":")
        first_cpu[key.strip()] = value.strip()
    meminfo = dict(re.findall(r"(?m)^(\w+):\s+(\d+) kB$", tree.text("proc/meminfo", MIB) or ""))
    return Stack(
        os=_os(tree),
        kernels=_kernels(tree),
        cmdline=_cmdline(tree),
        microcode=first_cpu.get("microcode"),
        cpu_model=first_cpu.get("model name"),
        packages=read_packages(tree),
        units=tuple(sorted(set(_units(tree)))),
        settings=dict(_settings(tree)),
        tuned=tree.text("etc/tuned/active_profile") if tree.exists("etc/tuned/active_profile") else None,
        selinux=_selinux(tree),
        apparmor=tree.exists("sys/module/apparmor") and tree.text("sys/module/apparmor/parameters/enabled") == "Y",
        authority=_digest(tree, "etc/pki/CA/cacert.pem"),
        vfio=tuple(sorted(_vfio(tree))),
        memory={
            "total": _kib(meminfo.get("MemTotal")),
            "available": _kib(meminfo.get("MemAvailable")),
        },
        hugepages=dict(_hugepages(tree)),
        reboot=tuple(f"/{path}" for path in ("run/reboot-required", "run/reboot-needed") if tree.exists(path)),
        evacuated=_evacuated(tree),
    )


def _kib(text: str | None) -> int | None:
    return None if text is None else int(text) * 1024


def _os(tree: Tree) -> dict[str, str]:
    path = "etc/os-release" if tree.exists("etc/os-release") else "usr/lib/os-release"
    found = dict(re.findall(r"(?m)^([A-Z_]+)=[\"']?(.*?)[\"']?$", tree.text(path, MIB) or ""))
    return {name: found[name] for name in _OS_RELEASE if found.get(name)}


def _kernels(tree: Tree) -> tuple[str, ...] | None:
    """Releases that have modules and an image, so that they can be booted."""
    folder = next((path for path in ("usr/lib/modules", "lib/modules") if tree.exists(path)), None)
    if folder is None:
        return None
    return tuple(
        name
        for name in tree.names(folder) or ()
        if tree.exists(f"{folder}/{name}/vmlinuz") or tree.exists(f"boot/vmlinuz-{name}")
    )


def _cmdline(tree: Tree) -> tuple[str, ...] | None:
    text = tree.text("proc/cmdline", MIB)
    if text is None:
        return None
    return tuple(token for token in text.split() if not _OWN.match(token) and not _UUID.search(token))


def _units(tree: Tree) -> t.Iterator[str]:
    base = "etc/systemd/system"
    for folder in tree.names(base) or () if tree.exists(base) else ():
        if folder.endswith(".wants"):
            yield from (name for name in tree.names(f"{base}/{folder}") or () if _UNIT.match(name))


def _settings(tree: Tree) -> t.Iterator[tuple[str, str]]:
    for folder in _SETTINGS:
        for name in tree.names(folder) or () if tree.exists(folder) else ():
            digest = _digest(tree, f"{folder}/{name}") if name.endswith(".conf") else None
            if digest:
                yield f"{folder.partition('/')[2]}/{name}", digest


def _digest(tree: Tree, path: str) -> str | None:
    """Digest of a file; empty when there is none, None when it may not be read."""
    if not tree.exists(path):
        return ""
    data = tree.data(path, MIB)
    return None if data is None else hashlib.sha256(data).hexdigest()


def _selinux(tree: Tree) -> str:
    if not tree.exists("sys/fs/selinux/enforce"):
        return "absent"
    return {"1": "enforcing", "0": "permissive"}.get(tree.text("sys/fs/selinux/enforce") or "", "disabled")


def _vfio(tree: Tree) -> t.Iterator[str]:
    base = "sys/bus/pci/drivers"
    for driver in tree.names(base) or () if tree.exists(base) else ():
        if "vfio" not in driver:
            continue
        for name in tree.names(f"{base}/{driver}") or ():
            if ":" in name and tree.exists(f"{base}/{driver}/{name}/vendor"):
                identity = [tree.text(f"{base}/{driver}/{name}/{key}") or "?" for key in ("vendor", "device")]
                yield ":".join(part.replace("0x", "") for part in identity)


def _hugepages(tree: Tree) -> t.Iterator[tuple[int, int]]:
    base = "sys/kernel/mm/hugepages"
    for name in tree.names(base) or () if tree.exists(base) else ():
        size = re.fullmatch(r"hugepages-(\d+)kB", name)
        free = tree.number(f"{base}/{name}/free_hugepages") if size else None
        if size and free is not None:
            yield int(size.group(1)), free


def _evacuated(tree: Tree) -> dict[str, t.Any] | None:
    if not tree.exists(RECORD):
        return None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        record = json.loads(tree.text(RECORD, MIB) or "")
        guests = sorted(str(name) for name in record["guests"])
        destinations = {str(name): str(other) for name, other in dict(record.get("destinations") or {}).items()}
        return {
            "guests": guests,
            "destinations": destinations,
            "by": str(record["by"]),
            "before": record.get("before"),
        }
    return {
        "guests": [],
        "destinations": {},
        "by": "unknown",
        "before": None,
    }  # a record that cannot be read still says that the host is to stay empty
