# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What makes one host differ from another, and digests of it. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import typing as t

from .hypervisor import Hypervisor
from .read import Identity
from .stack import Kvm, Stack

Facts = dict[str, t.Any]

SOFTWARE = (
    "os", "kernel", "packages", "versions", "daemons", "emulator", "machines", "firmware",
)  # fmt: skip
"""Sections of the manifest that are software: the digest ``stack``."""
MIGRATION = (
    "arch", "type", "versions", "emulator", "machines", "firmware", "cpu", "networks", "pools", "authority",
)  # fmt: skip
"""Sections that decide where a guest can go: the digest ``migrate`` (research/hardware.md 5.1)."""


def manifest(identity: Identity, kvm: Kvm, stack: Stack, hypervisor: Hypervisor) -> Facts:
    """The manifest: nothing in it is different on two machines that were made alike, nothing changes by itself."""
    enabled = {unit.partition(".")[0] for unit in stack.units}
    mode = "modular" if "virtqemud" in enabled else "monolithic" if "libvirtd" in enabled else None
    return {
        "os": dict(stack.os),
        "kernel": identity.kernel,
        "cmdline": _list(stack.cmdline),
        "microcode": {"processor": stack.cpu_model, "revision": stack.microcode},
        "kvm": dict(kvm.parameters),
        "packages": None if stack.packages is None else dict(sorted(stack.packages.items())),
        "versions": {"libvirt": hypervisor.libvirt, "qemu": hypervisor.qemu},
        "daemons": {"mode": mode, "enabled": list(stack.units)},
        "arch": hypervisor.arch,
        "type": hypervisor.type,
        "emulator": hypervisor.emulator,
        "machines": _list(hypervisor.machines),
        "firmware": None if hypervisor.loaders is None else dict(hypervisor.loaders),
        "capabilities": hypervisor.capabilities,
        "cpu": {
            "vendor": hypervisor.vendor,
            "model": hypervisor.model,
            "features": None if hypervisor.features is None else sorted(hypervisor.features),
        },
        "networks": _named(hypervisor.networks, ("forward", "bridge", "mtu")),
        "pools": None
        if hypervisor.pools is None
        else {pool.name: {"type": pool.type, "path": pool.path} for pool in hypervisor.pools},
        "definitions": _named(hypervisor.networks, ("digest",)),
        "authority": stack.authority,
        "security": {"selinux": stack.selinux, "apparmor": stack.apparmor},
        "settings": dict(sorted(stack.settings.items())),
        "tuned": stack.tuned,
        "vfio": list(stack.vfio),
    }


def _list(values: t.Iterable[str] | None) -> list[str] | None:
    return None if values is None else list(values)


def _named(found: t.Mapping[str, t.Mapping[str, t.Any]] | None, keys: t.Iterable[str]) -> Facts | None:
    if found is None:
        return None
    return {name: {key: values.get(key) for key in keys} for name, values in sorted(found.items())}


def digests(whole: t.Mapping[str, t.Any]) -> dict[str, str]:
    """``strict`` of everything, ``stack`` of the software, ``migrate`` of what decides where a guest can go."""
    return {
        "strict": digest(whole),
        "stack": digest({name: whole[name] for name in SOFTWARE}),
        "migrate": digest({name: whole[name] for name in MIGRATION}),
    }


def digest(value: t.Any) -> str:
    """SHA-256 of the value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def capacity(stack: Stack, hypervisor: Hypervisor, cpus: int | None) -> Facts:
    """What the host has, what is left of it, and what its guests claim."""
    guests: list[Facts] = [
        {
            "name": claim.name,
            "uuid": claim.uuid,
            "active": claim.active,
            "memory": claim.memory,
            "hugepage": claim.hugepage,
            "vcpus": claim.vcpus,
            "cpu": None if claim.cpu is None else sorted(claim.cpu),
            "emulator": claim.emulator,
            "loader": claim.loader,
        }
        for claim in hypervisor.guests or ()
    ]
    claimed = sum(claim["memory"] for claim in guests if claim["active"] and claim["hugepage"] is None)
    total, available = stack.memory.get("total"), stack.memory.get("available")
    return {
        "memory": {
            "total": total,
            "available": available,
            "claimed": claimed,
            # what guests have not touched yet is still theirs
            "free": None if total is None or available is None else max(0, min(available, total - claimed)),
        },
        "hugepages": [{"size": size, "free": free} for size, free in sorted(stack.hugepages.items())],
        "cpus": cpus,
        "vcpus_claimed": sum(claim["vcpus"] for claim in guests if claim["active"]),
        "pools": None
        if hypervisor.pools is None
        else [
            {
                "name": pool.name,
                "path": pool.path,
                "available": pool.available,
                "filesystem": pool.device,
            }
            for pool in hypervisor.pools
        ],
        "guests": None if hypervisor.guests is None else guests,
    }


def reboot(identity: Identity, stack: Stack) -> Facts:
    """Whether the host has to be rebooted for what was installed to take effect; None when that is not known."""
    why = [f"{path} is there" for path in stack.reboot]
    newest = max(stack.kernels or (), key=release, default=None)
    if newest and identity.kernel and newest != identity.kernel and release(newest) > release(identity.kernel):
        why.append(f"kernel {identity.kernel} runs, and {newest} is installed")
    if stack.kernels and identity.kernel not in stack.kernels:
        why.append(f"kernel {identity.kernel} runs, and is not installed any more")
    return {"required": bool(why) or (None if stack.kernels is None else False), "why": why}


def release(text: str) -> tuple[tuple[int, int | str], ...]:
    """A kernel's release as something that compares as versions do."""
    return tuple((1, int(part)) if part.isdigit() else (0, part) for part in re.findall(r"\d+|[a-z]+", text.lower()))
