# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at a host: what its libvirt and QEMU offer to guests, and its devices. Decides nothing.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError


@dataclasses.dataclass(frozen=True)
class Pool:
    """A storage pool: its type, its directory, whether it is active."""

    type: str
    directory: str | None
    active: bool


@dataclasses.dataclass(frozen=True)
class Host:
    """What this host's libvirt and QEMU offer to a new guest.

    Attributes:
        type: ``kvm``, or ``qemu`` where there is no hardware virtualisation.
        arch: of the host.
        hyperv: names of the enlightenments; None when libvirt does not tell.
        video, graphics, tpm: models and types.
        uefi, secure_boot: whether there is firmware for it.
        store: directory of UEFI variable stores.
        vcpus: how many a guest can have at most; None when libvirt does not tell.
        offers: values that libvirt lists for this host, by ``fields.Field.offered``.
    """

    type: str
    arch: str
    hyperv: frozenset[str] | None
    video: frozenset[str]
    graphics: frozenset[str]
    tpm: frozenset[str]
    uefi: bool
    secure_boot: bool
    store: str
    vcpus: int | None = None
    offers: t.Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)


_OFFERS = {
    "disk.bus": "devices/disk/enum[@name='bus']",
    "video.model": "devices/video/enum[@name='modelType']",
    "rng.backend": "devices/rng/enum[@name='backendModel']",
}
"""Where domain capabilities list what a field can be."""


def host(connection: t.Any, store: str) -> Host:
    """What the host offers to a q35 guest (https://libvirt.org/formatdomaincaps.html)."""
    arch = connection.getInfo()[0]
    kind = "kvm"
    try:
        text = connection.getDomainCapabilities(None, arch, "q35", kind)
    except virt.libvirt.libvirtError:
        kind = "qemu"
        try:
            text = connection.getDomainCapabilities(None, arch, "q35", kind)
        except virt.libvirt.libvirtError as exc:
            raise PhyllomeError(
                "This host cannot run guests of machine type q35",
                exc.get_error_message() or str(exc),
                "Guests are made on x86_64 hosts that have QEMU; the role phyllome.virt.hypervisor installs it.",
            ) from exc
    root = xml.parse(text)

    def offered(path: str) -> frozenset[str]:
        return frozenset(str(value.text) for value in root.findall(f"{path}/value"))

    hyperv = xml.first(root, "features/hyperv")
    tpm = offered("devices/tpm/enum[@name='model']")
    modes = root.findall("cpu/mode[@supported='yes']")
    models = frozenset(
        str(found.text) for found in root.findall("cpu/mode[@name='custom']/model") if found.get("usable") != "no"
    )
    offers = {name: offered(path) for name, path in _OFFERS.items() if xml.first(root, path) is not None}
    vcpus = xml.first(root, "vcpu")
    return Host(
        type=kind,
        arch=arch,
        hyperv=None if hyperv is None else offered("features/hyperv/enum[@name='features']"),
        video=offered("devices/video/enum[@name='modelType']"),
        graphics=offered("devices/graphics/enum[@name='type']"),
        tpm=tpm if "emulator" in offered("devices/tpm/enum[@name='backendModel']") else frozenset(),
        uefi="efi" in offered("os/enum[@name='firmware']"),
        secure_boot="yes" in offered("os/loader/enum[@name='secure']"),
        store=store,
        vcpus=None if vcpus is None else int(vcpus.get("max", "0")) or None,
        offers={**offers, "cpu.mode": frozenset(found.get("name", "") for found in modes), "cpu.model": models},
    )


def lingers() -> bool:
    """Whether systemd lets the user's processes live without a login (loginctl(1), enable-linger)."""
    name = pwd.getpwuid(os.getuid()).pw_name
    return not os.path.isdir("/run/systemd/seats") or os.path.exists(f"/var/lib/systemd/linger/{name}")


def user_images() -> str:
    """Where an ordinary user's disks are put, as other tools do (https://specifications.freedesktop.org/basedir-spec)."""
    return f"{os.environ.get('XDG_DATA_HOME') or os.path.expanduser('~/.local/share')}/libvirt/images"


def _sysfs(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as stream:
        return stream.read().strip()
    return ""


def available(connection: t.Any) -> int | None:
    """Bytes of memory that are free, or would be at once (virNodeGetMemoryStats); None when libvirt does not tell."""
    stats = connection.getMemoryStats(virt.libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    return 1024 * sum(stats.get(key, 0) for key in ("free", "buffers", "cached")) or None


def hugepages() -> dict[int, int]:
    """How many huge pages are free, by their size (https://docs.kernel.org/admin-guide/mm/hugetlbpage.html)."""
    free = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/sys/kernel/mm/hugepages"):
            size = name.partition("-")[2].removesuffix("kB")
            count = _sysfs(f"/sys/kernel/mm/hugepages/{name}/free_hugepages")
            if size.isdigit() and count.isdigit():
                free[int(size) * 1024] = int(count)
    return free


def cgroups() -> bool:
    """Whether there are control groups that have controllers, without which libvirt uses none.

    https://docs.kernel.org/admin-guide/cgroup-v2.html; with the first version each controller is a directory.
    """
    root = "/sys/fs/cgroup"
    return bool(_sysfs(f"{root}/cgroup.controllers")) or os.path.isdir(f"{root}/cpu")


def bridge(name: str) -> bool | None:
    """True, or None when the kernel has no such bridge."""
    return True if os.path.isdir(f"/sys/class/net/{name}/bridge") else None
