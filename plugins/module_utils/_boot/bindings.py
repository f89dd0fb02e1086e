# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What binds devices to VFIO at the next boot: as configured, nothing concluded.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core.sysfs import PCI_ADDRESS, Tree

_MIB = 1 << 20
_DRIVERCTL = "etc/driverctl.d"
_MODPROBE = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
_UDEV = ("etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_IDS = re.compile(r"^([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?::.*)?$")
_OVERRIDE = re.compile(r'ATTR\{driver_override\}\s*=\s*"([^"]+)"')
_KERNEL = re.compile(r'KERNEL\s*==\s*"([^"]+)"')


@dataclasses.dataclass(frozen=True)
class Binding:
    """Something that binds devices.

    Attributes:
        source: ``driverctl``, ``modprobe``, ``udev`` or ``cmdline``.
        driver: that they are bound to.
        addresses: PCI addresses.
        ids: (vendor, device), four hex digits each, all devices of which are bound.
        file: where it stands; None for the command line.
    """

    source: str
    driver: str
    addresses: tuple[str, ...]
    ids: tuple[tuple[str, str], ...]
    file: str | None


def read_bindings(tree: Tree, following: t.Sequence[t.Sequence[str]] | None) -> tuple[Binding, ...] | None:
    """Look them up.

    Args:
        tree: the machine.
        following: arguments of every kernel that may start next; None when unknown.

    Returns:
        None when a place could not be read.
    """
    found: list[Binding] = []
    if following is None:
        return None
    for line in following:
        for word in line:
            name, dummy, value = word.partition("=")
            if name.replace("-", "_") == "vfio_pci.ids":
                found.append(Binding("cmdline", "vfio-pci", (), _ids(value), None))
    for path, text in _files(tree, (_DRIVERCTL,), ""):
        address = path.rpartition("/")[2].replace("pci-", "")
        if PCI_ADDRESS.match(address):
            found.append(Binding("driverctl", text or "", (address,), (), f"/{path}"))
    for path, text in _files(tree, _MODPROBE, ".conf"):
        for line in (text or "").splitlines():
            words = line.split()
            if words[:1] == ["options"] and len(words) > 2 and words[1].replace("-", "_") == "vfio_pci":
                ids = [word[4:] for word in words[2:] if word.startswith("ids=")]
                found += [Binding("modprobe", "vfio-pci", (), _ids(value), f"/{path}") for value in ids]
    for path, text in _files(tree, _UDEV, ".rules"):
        for line in (text or "").replace("\\\n", "").splitlines():
            override, kernel = _OVERRIDE.search(line), _KERNEL.search(line)
            if override and not line.lstrip().startswith("#"):
                addresses = (kernel.group(1),) if kernel and PCI_ADDRESS.match(kernel.group(1)) else ()
                found.append(Binding("udev", override.group(1), addresses, (), f"/{path}"))
    unread = any(
        why != "missing" and path.startswith((_DRIVERCTL, *_MODPROBE, *_UDEV)) for path, why in tree.unread.items()
    )
    return None if unread else tuple(dict.fromkeys(found))


def _files(tree: Tree, folders: t.Iterable[str], end: str) -> t.Iterator[tuple[str, str | None]]:
    """Path and text of files by name, of the first folder that has one of that name."""
    seen: set[str] = set()
    for folder in folders:
        for name in (tree.names(folder) or ()) if tree.exists(folder) else ():
            if name.endswith(end) and name not in seen:
                seen.add(name)
                text = tree.text(f"{folder}/{name}", _MIB)
                if text is None or end == "" or "vfio" in text or "driver_override" in text:
                    yield f"{folder}/{name}", text


def _ids(value: str) -> tuple[tuple[str, str], ...]:
    matches = [_IDS.match(word) for word in value.strip('"').split(",")]
    return tuple((match.group(1).lower(), match.group(2).lower()) for match in matches if match)
