"""The disk a machine boots from: an EFI partition with GRUB, and Debian on the rest, one ext4.

Neither loop devices nor mounts of block devices are needed: the file systems are written from the
tree straight into the disk's file, and what GRUB's configuration has to know of the disk it is told.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from . import base, cache
from .base import Base
from .errors import call

MIB = 1 << 20
#: Where the root partition begins; the EFI partition lies between 1 MiB and there.
ROOT_AT = 65 * MIB
#: Apparent size: what is empty takes no room, and a later test may install a lot.
SIZE = 6144 * MIB
BLOCK = 4096
ROOT_BLOCKS = (SIZE - ROOT_AT - MIB) // BLOCK
ROOT_UUID = "6d657461-6c00-4000-8000-726f6f740000"
ESP_SERIAL = "4D45-5441"
#: The machine's own address on its management network, as QEMU's user networking hands it out.
ADDRESS, GATEWAY = "10.0.2.15", "10.0.2.2"
MAC = "52:54:00:6d:65:01"
NAME = "metal"

_PARTITIONS = f"label: gpt\nstart=1MiB, size={ROOT_AT // MIB - 1}MiB, type=U\ntype=L\n"

#: grub-probe looks at the devices of the machine it runs on; this one describes the machine's.
PROBE = f"""#!/bin/sh
for word; do case $word in --target=*) target=${{word#--target=}} ;; -t) target= ;; *) : "${{target:=$word}}" ;; esac; done
case $target in
    device) echo /dev/vda2 ;;
    fs_uuid) echo {ROOT_UUID} ;;
    fs) echo ext2 ;;
    partmap) echo gpt ;;
    drive) echo "(hd0,gpt2)" ;;
    hints_string) echo --hint=hd0,gpt2 ;;
    bios_hints | efi_hints | baremetal_hints) echo hd0,gpt2 ;;
esac
"""

#: What GRUB does first, from the EFI partition: find the root file system, and read on there.
_EARLY = f"search.fs_uuid {ROOT_UUID} root\nset prefix=($root)/boot/grub\n"
_MODULES = "part_gpt fat ext2 normal linux search search_fs_uuid configfile"

#: What the kernel is told: where its console is; to leave out what costs most where every instruction is emulated;
#: and to give up on nothing: the outer machine may be so busy that all takes ten times as long.
WORDS = (
    "console=ttyS0 mitigations=off init_on_alloc=0 tsc=reliable no_timer_check"
    " systemd.default_timeout_start_sec=900 systemd.service_watchdogs=0 nvme_core.admin_timeout=900"
)

_FILES = {
    # never checked: a machine's disk is thrown away; and waited for: 90 s are too few on a busy outer machine, which
    # ends in systemd's emergency mode, without ssh
    "etc/fstab": (
        f"UUID={ROOT_UUID} / ext4 defaults,x-systemd.device-timeout=900 0 0\n"
        f"UUID={ESP_SERIAL} /boot/efi vfat umask=0077,x-systemd.device-timeout=900 0 0\n"
    ),
    "etc/hostname": f"{NAME}\n",
    "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {NAME}\n",
    "etc/default/grub.d/lab.cfg": (
        f'GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX_DEFAULT=""\nGRUB_CMDLINE_LINUX="{WORDS}"\nGRUB_TERMINAL=console\n'
        "GRUB_DISABLE_OS_PROBER=true\n"
    ),
    "etc/systemd/network/10-lab.network": (
        f"[Match]\nMACAddress={MAC}\n[Network]\nAddress={ADDRESS}/24\nGateway={GATEWAY}\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    ),
    # the usual exchange of keys and a user manager per session cost seconds where every instruction is emulated
    "etc/ssh/sshd_config.d/lab.conf": "UseDNS no\nUsePAM no\nLoginGraceTime 0\nKexAlgorithms curve25519-sha256\n",
    # stays, once it has answered
    "etc/default/libvirtd": 'LIBVIRTD_ARGS=""\n',
}

#: Units that only cost time: nothing here is run by another machine's binaries, or lives long enough.
_MASKED = (
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "getty@tty1.service",
    "logrotate.timer",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-pstore.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
)
#: Parts of an initramfs that this disk does not need, and that take most of the time to make one.
_HOOKS = ("dmsetup", "fsck", "keymap", "resume", "thermal")

_BUILD = """
set -e
tree=$1; options=$2; folder=$3
mount -t overlay lab -o "$options" "$tree"
mount -t proc proc "$tree/proc"
mount -t tmpfs lab "$tree/dev"
mkdir -p "$tree/dev/disk/by-uuid" "$tree/boot/efi"
mknod -m 666 "$tree/dev/null" c 1 3
touch "$tree/dev/disk/by-uuid/$4"
mount --bind "$folder/grub-probe" "$tree/usr/sbin/grub-probe"
for hook in $9; do chmod -x "$tree/usr/share/initramfs-tools/hooks/$hook"; done
chroot "$tree" update-initramfs -u
cp -r "$tree/usr/lib/grub/x86_64-efi" "$tree/boot/grub/"
chroot "$tree" grub-mkconfig -o /boot/grub/grub.cfg
cp "$folder/early.cfg" "$tree/dev/early.cfg"
chroot "$tree" grub-mkimage -O x86_64-efi -p /boot/grub -c /dev/early.cfg -o /dev/grub.efi $5
mv "$tree/dev/grub.efi" "$folder/grub.efi"
umount "$tree/usr/sbin/grub-probe" "$tree/dev" "$tree/proc"
cp -L "$tree/vmlinuz" "$tree/initrd.img" "$folder/"
mke2fs -q -t ext4 -L root -U "$4" -d "$tree" -E "offset=$6,lazy_itable_init=0" -b "$7" "$folder/disk.raw" "$8"
"""


@dataclass(frozen=True)
class Image:
    """A disk and what belongs to it; nobody writes to it."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The raw disk."""
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> tuple[Path, Path]:
        """The kernel and the initramfs that are on the disk, for a boot past the boot loader."""
        return self.folder / "vmlinuz", self.folder / "initrd.img"

    @property
    def key(self) -> Path:
        """The private key that root of the machine accepts."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The machine's own key, under the alias NAME."""
        return self.folder / "known_hosts"


def _build(folder: Path, below: Base) -> None:
    image = Image(folder)
    layer, work, tree = (folder / name for name in ("layer", "work", "mounted"))
    for made in (layer, work, tree):
        made.mkdir(mode=0o755)
    host_key = layer / "etc/ssh/ssh_host_ed25519_key"
    for path, text in _FILES.items():
        base.write(below, layer, path, text.encode())
    (layer / "etc/systemd/system").mkdir(mode=0o755)
    for unit in _MASKED:
        (layer / "etc/systemd/system" / unit).symlink_to("/dev/null")
    for key, comment in ((host_key, NAME), (image.key, "lab metal")):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key))
    image.known_hosts.write_text(f"{NAME} {host_key.with_suffix('.pub').read_text()}")
    base.write(below, layer, "root/.ssh/authorized_keys", image.key.with_suffix(".pub").read_bytes())
    (layer / "root/.ssh").chmod(0o700)

    (folder / "grub-probe").write_text(PROBE)
    (folder / "grub-probe").chmod(0o755)
    (folder / "early.cfg").write_text(_EARLY)
    with image.disk.open("wb") as file:
        file.truncate(SIZE)
    call("sfdisk", "--quiet", str(image.disk), input=_PARTITIONS.encode())
    options = base.mount_options(below.layers, layer, work)
    numbers = map(str, (ROOT_AT, BLOCK, ROOT_BLOCKS))
    more = " ".join(_HOOKS)
    base.contained("sh", "-c", _BUILD, "sh", str(tree), options, str(folder), ROOT_UUID, _MODULES, *numbers, more)
    esp = f"{image.disk}@@{MIB}"
    call(
        "mformat",
        "-i",
        esp,
        "-T",
        str((ROOT_AT - MIB) // 512),
        "-h",
        "255",
        "-s",
        "63",
        "-N",
        ESP_SERIAL.replace("-", ""),
        "::",
    )
    call("mmd", "-i", esp, "::EFI", "::EFI/BOOT")
    call("mcopy", "-i", esp, str(folder / "grub.efi"), "::EFI/BOOT/BOOTX64.EFI")
    for done in (layer, work, tree):
        shutil.rmtree(done)


def image() -> Image:
    """The disk of Debian 12 that all machines start from."""
    below = base.metal()
    digest = cache.key(str(below.layers[0].parent.name), Path(__file__).read_text())
    return Image(cache.made("metal-disk", digest, lambda folder: _build(folder, below)))
