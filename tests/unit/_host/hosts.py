# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of hosts and guests, as host_facts and phyllome_vm_info give them, for whoever compares and places."""

from __future__ import annotations

import typing as t

from ansible_collections.phyllome.virt.plugins.module_utils._host.manifest import digests

GIB = 1 << 30
IMAGES = "/var/lib/libvirt/images"


def host(name: str, free: int = 16 * GIB, space: int = 100 * GIB, claims: t.Sequence[t.Any] = (), **sections: t.Any):
    """Facts of a host; ``sections`` replace those of the manifest."""
    manifest = {
        "os": {"ID": "debian"},
        "kernel": "6.1",
        "microcode": {"processor": "Xeon", "revision": "0x1"},
        "packages": {"qemu": "7.2", "libvirt": "9.0"},
        "versions": {"libvirt": "9.0.0", "qemu": "7.2.22"},
        "daemons": {"mode": "monolithic", "enabled": []},
        "arch": "x86_64",
        "type": "kvm",
        "emulator": "/usr/bin/qemu-system-x86_64",
        "machines": ["pc-i440fx-7.2", "pc-q35-7.1", "pc-q35-7.2"],
        "firmware": {"/usr/share/OVMF/OVMF_CODE_4M.fd": 3653632},
        "cpu": {"vendor": "Intel", "model": "Skylake", "features": ["avx2", "lm", "vmx"]},
        "networks": {"default": {"forward": "nat", "bridge": "virbr0", "mtu": None}},
        "pools": {"images": {"type": "dir", "path": IMAGES}},
        "authority": "ca",
        "settings": {},
        **sections,
    }
    return {
        "schema_version": 1,
        "identity": {"hostname": name, "host_uuid": f"uuid-{name}", "libvirt_error": None},
        "virtualization": {"state": "on", "evidence": ["/dev/kvm makes virtual machines"]},
        "manifest": manifest,
        "digests": digests(manifest),
        "capacity": {
            "memory": {"total": 32 * GIB, "available": free, "claimed": 0, "free": free},
            "hugepages": [],
            "pools": [{"name": "images", "path": IMAGES, "available": space, "filesystem": "1"}],
            "guests": [*claims],
        },
        "reboot": {"required": False, "why": []},
        "evacuated": None,
    }


def guest(name: str, size: int = GIB, **more: t.Any) -> dict[str, t.Any]:
    """A guest with one disk of so many bytes."""
    return {
        "name": name,
        "uuid": f"uuid-{name}",
        "state": "running",
        "owned": True,
        "migration": None,
        "machine": "pc-q35-7.2",
        "type": "kvm",
        "networks": [{"id": "lan", "network": "default"}],
        "disks": [{"id": "root", "path": f"{IMAGES}/{name}.qcow2", "capacity": 2 * size, "allocation": size}],
        "migratable": {"possible": True, "reasons": []},
        **more,
    }


def claim(name: str, memory: int = GIB, **more: t.Any) -> dict[str, t.Any]:
    """What that guest claims of its host."""
    return {
        "name": name,
        "uuid": f"uuid-{name}",
        "active": True,
        "memory": memory,
        "hugepage": None,
        "vcpus": 1,
        "cpu": ["avx2", "lm"],
        "emulator": "/usr/bin/qemu-system-x86_64",
        "loader": None,
        **more,
    }
