"""What is installed in the bases, for Debian 12. Recommended packages are never taken."""

from __future__ import annotations

#: A Linux install that Ansible can reach, and nothing more.
BARE = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "kmod",
    "nftables",
    "openssh-server",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)

#: What makes it a hypervisor.
LIBVIRT = (
    "dmidecode",
    "dnsmasq-base",
    "libvirt-clients",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-system",
    "mdevctl",
    "ovmf",
    "python3-cryptography",
    "python3-libvirt",
    "python3-lxml",
    "qemu-system-x86",
    "qemu-utils",
    "swtpm",
    "swtpm-tools",
    "xorriso",
)

#: What makes it boot by itself, and what a test looks at hardware with.
METAL = (
    "grub-efi-amd64",
    "initramfs-tools",
    "linux-image-amd64",
    "lz4",
    "pci.ids",
    "zstd",
)
