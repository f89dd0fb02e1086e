# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What makes the next boot bind the same devices: one file of udev rules, and a drop-in of the initramfs. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .ledger import NOTHING, Entry, Functions, Ledger, digest

RULES = "etc/udev/rules.d/59-phyllome-vfio.rules"
"""Before 80-drivers.rules, which loads the drivers of the host."""
_HEAD = "# Written by phyllome.virt.vfio_bind, which also removes it. Changes made here by hand are lost or block the undo.\n"
_MARK = "conf/phyllome-vfio"


# An image is made of the first three lines of programs; the fourth says where it lists what is in one.
@dataclasses.dataclass(frozen=True)
class Maker:
    """What makes the initramfs.

    Attributes:
        path: of our drop-in.
        mode: of the drop-in.
        text: of the drop-in; ``{modules}`` stands for the modules.
        command: makes every image anew.
        images: where they are, as patterns of names below a directory.
        listing: says what is in an image, which is added as the last argument.
    """

    path: str
    mode: int
    text: str
    command: tuple[str, ...]
    images: tuple[tuple[str, str], ...]
    listing: tuple[str, ...]


MAKERS = {
    "initramfs-tools": Maker(
        "etc/initramfs-tools/hooks/phyllome-vfio",
        0o755,
        "#!/bin/sh\n"
        + _HEAD
        + f"""case "$1" in prereqs) exit 0 ;; esac
. /usr/share/initramfs-tools/hook-functions
manual_add_modules {{modules}}
copy_file rules /{RULES}
: > "$DESTDIR/{_MARK}"
""",
        ("update-initramfs", "-u", "-k", "all"),
        (("boot", "initrd.img-*"),),
        ("lsinitramfs",),
    ),
    "dracut": Maker(
        "etc/dracut.conf.d/50-phyllome-vfio.conf",
        0o644,
        _HEAD + f'add_drivers+=" {{modules}} "\ninstall_items+=" /{RULES} "\n',
        ("dracut", "--force", "--regenerate-all"),
        (("boot", "initramfs-*.img"), ("boot", "initrd.img-*"), ("boot/*/*", "initrd")),
        ("lsinitrd",),
    ),
    "mkinitcpio": Maker(
        "etc/mkinitcpio.conf.d/phyllome-vfio.conf",
        0o644,
        _HEAD + f"MODULES+=({{modules}})\nFILES+=(/{RULES})\n",
        ("mkinitcpio", "-P"),
        (("boot", "initramfs-*.img"), ("boot/*/*", "initrd")),
        ("lsinitcpio",),
    ),
}

# In the initramfs nothing uses a device yet, so a driver that was faster, or is built in, lets go of it there. In the
# running system a device is never taken away by a rule. What tells the two apart: dracut and systemd in any initramfs
# (https://systemd.io/INITRD_INTERFACE/), our mark for initramfs-tools, and a file of mkinitcpio's hook base.
_TAIL = f"""\
ENV{{.PHYLLOME_VFIO}}!="?*", GOTO="phyllome_vfio_end"
TEST=="/etc/initrd-release", GOTO="phyllome_vfio_early"
TEST=="/{_MARK}", GOTO="phyllome_vfio_early"
TEST!="/init_functions", GOTO="phyllome_vfio_probe"
LABEL="phyllome_vfio_early"
DRIVER=="?*", DRIVER!="*vfio*", ATTR{{driver/unbind}}="$kernel"
LABEL="phyllome_vfio_probe"
ENV{{.PHYLLOME_VFIO}}!="{NOTHING}", RUN{{builtin}}+="kmod load $env{{.PHYLLOME_VFIO}}"
ATTR{{[subsystem/pci]drivers_probe}}="$kernel"
LABEL="phyllome_vfio_end"
"""


@dataclasses.dataclass(frozen=True)
class Content:
    """A file as it is to be: None for no file."""

    text: str | None
    mode: int


def files(ledger: Ledger, maker: str | None) -> dict[str, Content]:
    """Our files, as a ledger wants them; the key is the path, without a leading slash."""
    found = {RULES: Content(_rules(ledger), 0o644)}
    how = MAKERS.get(maker or "")
    if how is not None:
        early = {each.driver for each in ledger.devices.values() if each.persist and each.physfn is None}
        modules = " ".join(sorted(early - {NOTHING})).replace("-", "_")
        text = how.text.replace("{modules}", modules) if early else None
        found[how.path] = Content(text, how.mode)
    return found


def in_initramfs(contents: t.Mapping[str, Content], maker: str | None) -> str | None:
    """A digest of what of our files is in the initramfs; None for nothing."""
    how = MAKERS.get(maker or "")
    if how is None or contents[how.path].text is None:
        return None
    return digest(f"{contents[RULES].text}\0{contents[how.path].text}")


def _rules(ledger: Ledger) -> str | None:
    """Rules for udev(7): a device is known by its address and by its ids, so another card in the slot is left alone."""
    devices = {address: each for address, each in ledger.devices.items() if each.persist}
    functions = {address: each for address, each in ledger.functions.items() if each.persist}
    if not devices and not functions:
        return None
    lines = [_HEAD]
    for address, each in sorted(functions.items()):
        lines.append(
            f'ACTION=="add|bind", {_match(address, each)}, DRIVER=="?*", ATTR{{sriov_drivers_autoprobe}}="0", '
            f'ATTR{{sriov_numvfs}}="{each.count}"\n'
        )
    lines.append('ACTION!="add", GOTO="phyllome_vfio_end"\n')
    for address, entry in sorted(devices.items()):
        lines.append(
            f'{_match(address, entry)}, ATTR{{driver_override}}="{entry.driver}", ENV{{.PHYLLOME_VFIO}}="{entry.driver}"\n'
        )
    return "".join(lines) + _TAIL


def _match(address: str, each: Entry | Functions) -> str:
    ids, dummy, subsystem = each.ids.partition("/")
    values = dict(zip(("vendor", "device"), ids.split(":")))
    if subsystem:
        values.update(zip(("subsystem_vendor", "subsystem_device"), subsystem.split(":")))
    matches = [f'SUBSYSTEM=="pci", KERNEL=="{address}"']
    return ", ".join([*matches, *(f'ATTR{{{name}}}=="0x{value}"' for name, value in values.items())])
