# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guest profiles: what a new guest gets where nothing is declared, with reason and source.

A profile matters when the guest is made and when a device is added later; it never changes an
existing setting.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Profile:
    """Defaults of a new guest.

    Attributes:
        fields: by group of ``tables.DOMAIN``, canonical values.
        disk_bus: bus of disks.
        nic_model: model of network cards.
        video: video models, best first; the first that this host's QEMU has is taken.
        clock: offset of the guest's clock.
        hyperv: whether Windows enlightenments are wanted.
        cores: whether vCPUs are cores of one socket (else libvirt makes a socket of each).
    """

    fields: t.Mapping[str, t.Mapping[str, t.Any]]
    disk_bus: str = "virtio"
    nic_model: str = "virtio"
    video: tuple[str, ...] = ("virtio", "vga")
    clock: str = "utc"
    hyperv: bool = False
    cores: bool = False


_LINUX = Profile(
    fields={
        # The agent's channel costs nothing when nobody is at its other end, and shuts down, freezes and tells addresses.
        "": {"memory": 2 * GIB, "vcpus": 2, "channels": ("agent",)},
        # No Secure Boot: out-of-tree modules and self-built kernels would not load.
        "firmware": {"type": "uefi", "secure_boot": False},
        "tpm": {"model": "none"},
        # A display on the loopback address only: the way in when network and serial console are of no use.
        "graphics": {"type": "vnc"},
        # First boots wait for entropy (keys of sshd) without it. https://wiki.qemu.org/Features/VirtIORNG
        "rng": {"backend": "random"},
    }
)

_WINDOWS11 = Profile(
    fields={
        # Setup refuses less: 4 GB, 2 cores, UEFI with Secure Boot, TPM 2.0.
        # https://learn.microsoft.com/windows/whats-new/windows-11-requirements
        "": {"memory": 4 * GIB, "vcpus": 2, "channels": ("agent",)},
        "firmware": {"type": "uefi", "secure_boot": True, "enrolled_keys": True},
        # CRB is the TPM 2.0 interface; TIS is older. https://libvirt.org/formatdomain.html#tpm-device
        "tpm": {"model": "tpm-crb"},
        "graphics": {"type": "vnc"},
        # Intel HD Audio: Windows has the driver. https://libvirt.org/formatdomain.html#sound-devices
        "sound": {"model": "ich9"},
        "rng": {"backend": "random"},
    },
    # vga works before the virtio display driver is installed, and OVMF drives both.
    video=("virtio", "vga"),
    # Windows keeps local time in the RTC. https://libvirt.org/formatdomain.html#time-keeping
    clock="localtime",
    hyperv=True,
    # Client editions use at most two sockets: four vCPUs as four sockets would be two.
    # https://learn.microsoft.com/windows/win32/procthread/processor-groups
    cores=True,
)

PROFILES: dict[str, Profile] = {
    "linux": _LINUX,
    # Somebody sits in front of it: SPICE carries sound, clipboard and the size of the window, and desktops want memory.
    # https://www.spice-space.org/features.html
    "linux-desktop": dataclasses.replace(
        _LINUX,
        fields={
            **_LINUX.fields,
            "": {"memory": 4 * GIB, "vcpus": 2, "channels": ("agent", "spice")},
            "graphics": {"type": "spice"},
            "sound": {"model": "ich9"},
        },
    ),
    "windows11": _WINDOWS11,
    # Windows 10 asks for neither Secure Boot nor a TPM, and 2 GB are its minimum; 4 are what it works with.
    # https://learn.microsoft.com/windows-hardware/design/minimum/minimum-hardware-requirements-overview
    "windows10": dataclasses.replace(
        _WINDOWS11,
        fields={
            **_WINDOWS11.fields,
            "firmware": {"type": "uefi", "secure_boot": False},
            "tpm": {"model": "none"},
        },
    ),
    # FreeBSD, OpenBSD and NetBSD have virtio disks and cards in their kernels; on UEFI they draw on the frame buffer
    # that the firmware leaves, which vga keeps. Their boot loaders are not signed for Secure Boot.
    # https://man.freebsd.org/virtio(4), https://man.openbsd.org/virtio.4, https://man.netbsd.org/virtio.4
    "bsd": dataclasses.replace(_LINUX, video=("vga",)),
    # Anything that boots from UEFI and may lack virtio drivers: SATA, Intel e1000e and VGA are in every system.
    "generic": dataclasses.replace(_LINUX, disk_bus="sata", nic_model="e1000e", video=("vga",)),
    # What has to boot from a BIOS. SeaBIOS reads virtio disks, so they stay fast; vga is what it draws on.
    "legacy": dataclasses.replace(
        _LINUX,
        fields={**_LINUX.fields, "firmware": {"type": "bios"}},
        video=("vga",),
    ),
}


@dataclasses.dataclass(frozen=True)
class Enlightenment:
    """A paravirtual interface that Windows looks for. https://www.qemu.org/docs/master/system/i386/hyperv.html

    Attributes:
        name: its name in libvirt.
        reason: what it is good for.
        attributes: besides ``state='on'``.
        children: elements inside, switched on too.
        old: in every QEMU since 2012, so it may be asked for where libvirt does not list what the host offers.
    """

    name: str
    reason: str
    attributes: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    children: tuple[str, ...] = ()
    old: bool = False


ENLIGHTENMENTS = (
    Enlightenment("relaxed", "no watchdog blue screen when the host is busy", old=True),
    Enlightenment("vapic", "interrupt controller accesses without an exit", old=True),
    Enlightenment("spinlocks", "a waiting vCPU gives way", {"retries": "8191"}, old=True),
    Enlightenment("vpindex", "vCPU numbers, which synic, tlbflush and ipi need"),
    Enlightenment("runtime", "Windows accounts for stolen time"),
    Enlightenment("synic", "interrupt controller that stimer needs"),
    Enlightenment("stimer", "timers without the HPET: far less idle load", children=("direct",)),
    Enlightenment("frequencies", "TSC frequency is told, not measured"),
    Enlightenment("tlbflush", "one call instead of an interrupt for each vCPU"),
    Enlightenment("ipi", "one call for interrupts between vCPUs"),
)
"""Left out on purpose: ``evmcs`` (Intel only, so such a guest could not move to AMD), ``reenlightenment`` (only for
nested Hyper-V, and needs a fixed TSC), ``vendor_id`` and ``kvm hidden`` (a disguise, no gain since 2021),
``reset`` and ``avic`` (nothing measurable)."""

NEEDS = {"synic": ("vpindex",), "stimer": ("synic",), "tlbflush": ("vpindex",), "ipi": ("vpindex",)}
"""QEMU refuses the one without the others (same page)."""

SPARE_PORTS = 14
"""Free PCIe ports of a new guest: a q35 machine takes a new device only into a port that was there at start.
virt-install makes as many (research: guests.md, finding 8)."""

NUMBERED = ("virtio", "e1000e")
"""Models of network cards that get an ACPI index: Linux names them by it (eno1, eno2), whatever else is plugged in or out
(systemd.net-naming-scheme(7); QEMU 6.1 and later). The other models sit behind a bridge where QEMU knows no index."""
