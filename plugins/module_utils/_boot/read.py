# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the machine boots, and the kernel's command line: of this boot, and of the next.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re

from .._core.sysfs import Tree

_MIB = 1 << 20
_TOKEN = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
GRUB_LINUX = re.compile(r"^\s*linux(?:16|efi)?\s+\S+\s+(.*)$")
ENTRIES = ("boot/loader/entries", "boot/efi/loader/entries", "efi/loader/entries")
GRUB_DIRECTORIES = ("boot/grub", "boot/grub2")
# Entries that a person picks to repair something; they are not what boots by itself.
_REPAIR = re.compile(r"(?:^|\s)(?:single|recovery|systemd\.unit=(?:rescue|emergency)\.target|rd\.break)(?:\s|$)")


# Set by the loader that really ran (https://systemd.io/BOOT_LOADER_INTERFACE/).
_LOADER_INFO = "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_INITRAMFS = {  # what makes the initramfs → where it is
    "dracut": ("usr/bin/dracut", "usr/sbin/dracut"),
    "initramfs-tools": ("usr/sbin/update-initramfs",),
    "mkinitcpio": ("usr/bin/mkinitcpio",),
    "booster": ("usr/bin/booster",),
}
_HOST_KINDS = {"ostree": "run/ostree-booted", "transactional": "usr/sbin/transactional-update"}


@dataclasses.dataclass(frozen=True)
class Boot:
    """How the machine boots; None where that is not certain.

    Attributes:
        loader: ``systemd-boot``, ``grub`` or ``grub-bls`` (GRUB that reads entries of the Boot Loader Specification).
        initramfs: what makes it: a key of _INITRAMFS.
        host_kind: ``ostree``, ``transactional``, or ``package``.
    """

    loader: str | None
    initramfs: str | None
    host_kind: str | None


def read_boot(tree: Tree) -> Boot:
    """Look at how the machine boots."""
    makers = [name for name, paths in _INITRAMFS.items() if any(tree.exists(path) for path in paths)]
    kinds = [kind for kind, path in _HOST_KINDS.items() if tree.exists(path)]
    return Boot(
        loader=_loader(tree),
        initramfs=makers[0] if len(makers) == 1 else None,
        host_kind=kinds[0] if kinds else "package" if makers else None,
    )


def _loader(tree: Tree) -> str | None:
    if tree.exists(_LOADER_INFO):
        # Four bytes of attributes, then text.
        name = (tree.data(_LOADER_INFO) or b"")[4:].decode("utf-16-le", "replace")
        if name.startswith("systemd-boot"):
            return "systemd-boot"
        if not name.startswith("GRUB"):
            return None
    configs = [f"{directory}/grub.cfg" for directory in GRUB_DIRECTORIES if tree.exists(f"{directory}/grub.cfg")]
    texts = [tree.text(path, _MIB) for path in configs]
    if len(texts) != 1 or texts[0] is None:
        return None
    return "grub-bls" if re.search(r"^\s*blscfg\s*$", texts[0], re.MULTILINE) else "grub"


def tokens(line: str) -> tuple[str, ...]:
    """The arguments of a kernel command line; quotes hold one together."""
    return tuple(_TOKEN.findall(line))


def is_repair(line: str) -> bool:
    """Whether arguments are those of an entry that a person picks to repair something."""
    return _REPAIR.search(line) is not None


def read_running(tree: Tree) -> tuple[str, ...] | None:
    """The arguments that the kernel was started with."""
    line = tree.text("proc/cmdline", 16 * 4096)
    return None if line is None else tokens(line)


def read_next(tree: Tree) -> tuple[tuple[str, ...], ...] | None:
    """The arguments of every entry that a boot loader may start next, repair entries left out.

    Looked at are the entries of the Boot Loader Specification
    (https://uapi-group.org/specifications/specs/boot_loader_specification/) and GRUB's generated
    configuration. None when there are none, or one of them could not be read: it needs root.
    """
    lines: list[str] = []
    for directory in ENTRIES:
        if not tree.exists(directory):
            continue
        for name in tree.names(directory) or ():
            if name.endswith(".conf"):
                entry = tree.text(f"{directory}/{name}", _MIB)
                if entry is None:
                    return None
                if "rescue" not in name:
                    lines.append(_options(tree, entry))
        if directory in tree.unread:
            return None
    for directory in GRUB_DIRECTORIES:
        if tree.exists(f"{directory}/grub.cfg"):
            config = tree.text(f"{directory}/grub.cfg", _MIB)
            if config is None:
                return None
            matches = (GRUB_LINUX.match(line) for line in config.splitlines())
            lines += [match.group(1) for match in matches if match]
    return tuple(tokens(line) for line in lines if not is_repair(line)) or None


def _options(tree: Tree, entry: str) -> str:
    """All ``options`` of an entry; GRUB's ``$kernelopts`` stands for a variable of its environment."""
    words = [line.split(None, 1) for line in entry.splitlines()]
    options = " ".join(word[1].strip() for word in words if len(word) == 2 and word[0] == "options")
    if "$kernelopts" in options:
        for directory in GRUB_DIRECTORIES:
            if tree.exists(f"{directory}/grubenv"):
                for line in (tree.text(f"{directory}/grubenv") or "").splitlines():
                    if line.startswith("kernelopts="):
                        return options.replace("$kernelopts", line.partition("=")[2])
    return options
