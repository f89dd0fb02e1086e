# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._boot.read import Boot, read_boot, read_next, tokens
from ansible_collections.phyllome.virt.plugins.module_utils._core.sysfs import Tree
from ansible_collections.phyllome.virt.tests.unit._iommu.machines import Machine

CFG, CFG2, ENTRY = "boot/grub/grub.cfg", "boot/grub2/grub.cfg", "boot/loader/entries/a.conf"
LOADER_INFO = "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
GRUB = """\
set default=0
menuentry 'Debian' {
\tlinux\t/boot/vmlinuz-6.1 root=UUID=x ro quiet intel_iommu=on
}
submenu 'Advanced' {
\tmenuentry 'Debian, with Linux 6.1 (recovery mode)' {
\t\tlinuxefi\t/boot/vmlinuz-6.1 root=UUID=x ro single
\t}
}
"""


@pytest.fixture
def tree(tmp_path):
    def made(files: dict[str, str | bytes]) -> Tree:
        machine = Machine()
        machine.directories.add("sys")
        for path, content in files.items():
            machine.file(path, content)
        return Tree(machine.write(tmp_path / str(len([*tmp_path.iterdir()]))), "sysfs_root")

    return made


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", ()),
        ("quiet  iommu=pt\n", ("quiet", "iommu=pt")),
        ('dyndbg="file x.c +p; file y.c" ro', ('dyndbg="file x.c +p; file y.c"', "ro")),
        ('a="never closed iommu=off', ('a="never closed iommu=off',)),
    ],
)
def test_tokens(line, found):
    assert tokens(line) == found


def test_without_a_loader_the_next_boot_is_unknown(tree):
    assert read_next(tree({})) is None


def test_grub_without_its_recovery_entries(tree):
    assert read_next(tree({CFG: GRUB})) == (("root=UUID=x", "ro", "quiet", "intel_iommu=on"),)


def test_entries_and_grub_may_both_boot(tree):
    one = tree({CFG: GRUB, ENTRY: "title A\noptions\troot=x\noptions iommu=pt\n"})
    assert read_next(one) == (("root=x", "iommu=pt"), ("root=UUID=x", "ro", "quiet", "intel_iommu=on"))


def test_an_entry_that_cannot_be_read_makes_the_next_boot_unknown(tree):
    one = tree({CFG: GRUB, f"{ENTRY}/x": "so it is a directory"})
    assert read_next(one) is None


def test_variables_of_grub(tree):
    entry = "options $kernelopts quiet\n"
    one = tree({ENTRY: entry, "boot/grub2/grubenv": "saved_entry=0\nkernelopts=root=y ro\n###"})
    assert read_next(one) == (("root=y", "ro", "quiet"),)
    assert read_next(tree({ENTRY: entry})) == (("$kernelopts", "quiet"),)


@pytest.mark.parametrize(
    ("files", "loader"),
    [
        ({}, None),
        ({CFG: GRUB}, "grub"),
        ({CFG2: "insmod blscfg\nblscfg\n"}, "grub-bls"),
        ({CFG: GRUB, CFG2: GRUB}, None),  # which one?
        (
            {LOADER_INFO: b"\6\0\0\0" + "systemd-boot 257".encode("utf-16-le"), CFG: GRUB},
            "systemd-boot",
        ),
        ({LOADER_INFO: b"\6\0\0\0" + "GRUB 2.12".encode("utf-16-le"), CFG: GRUB}, "grub"),
        ({LOADER_INFO: b"\6\0\0\0" + "other 1".encode("utf-16-le"), CFG: GRUB}, None),
        ({LOADER_INFO: b"\6"}, None),
    ],
)
def test_the_loader_that_really_ran(tree, files, loader):
    assert read_boot(tree(files)).loader == loader


@pytest.mark.parametrize(
    ("files", "boot"),
    [
        ([], Boot(None, None, None)),
        (["usr/sbin/update-initramfs"], Boot(None, "initramfs-tools", "package")),
        (["usr/bin/dracut"], Boot(None, "dracut", "package")),
        (["usr/bin/dracut", "usr/bin/mkinitcpio"], Boot(None, None, "package")),
        (["usr/bin/dracut", "run/ostree-booted"], Boot(None, "dracut", "ostree")),
        (["usr/bin/dracut", "usr/sbin/transactional-update"], Boot(None, "dracut", "transactional")),
    ],
)
def test_initramfs_and_kind_of_host(tree, files, boot):
    assert read_boot(tree(dict.fromkeys(files, ""))) == boot
