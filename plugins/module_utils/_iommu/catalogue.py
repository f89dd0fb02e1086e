# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the distribution says about PCI ids: which drivers want a device, and what it is called.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import typing as t

from .._core.sysfs import Tree

_MIB = 1 << 20
_MODULES = ("usr/lib/modules", "lib/modules")
_PCI_IDS = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids", "usr/share/pci.ids")
_ALIAS = re.compile(r"^alias (pci|vfio_pci):(v(\S{1,8}?)d(\S{1,8}?)sv\S+) (\S+)$")
_BUILTIN = re.compile(r"^(\S+?)\.alias=((?:pci|vfio_pci):\S+)$")

Names = t.Mapping[str, tuple[str, t.Mapping[str, str]]]


@dataclasses.dataclass(frozen=True)
class Alias:
    """A line of modules.alias: a pattern of device ids, and the module that wants what matches."""

    pattern: str
    module: str


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Who wants what, and names.

    Attributes:
        drivers: (vendor, device) → aliases; either is ``*`` where the pattern leaves it open. None when unknown.
        variants: the same of drivers for VFIO (https://docs.kernel.org/PCI/pci.html, driver_override_only).
        names: vendor → (name, device → name), for the vendors that were asked for. None when unknown.
    """

    drivers: t.Mapping[tuple[str, str], tuple[Alias, ...]] | None
    variants: t.Mapping[tuple[str, str], tuple[Alias, ...]] | None
    names: Names | None

    def drivers_for(self, modalias: str) -> list[str] | None:
        """Modules that want a device, sorted, and vfio-pci where there is one."""
        if self.drivers is None:
            return None
        found = {alias.module for alias in _matching(self.drivers, modalias)}
        variant = self.variant_for(modalias)
        return sorted(found) + ([variant] if variant else [])

    def variant_for(self, modalias: str) -> str | None:
        """The VFIO driver that knows most of a device: that with the fewest wildcards, as libvirt chooses.

        Source: virPCIDeviceFindBestVFIOVariant() of libvirt.
        """
        if self.variants is None:
            return None
        best = min(
            _matching(self.variants, modalias), key=lambda one: (one.pattern.count("*"), one.module), default=None
        )
        if best is None:
            return None
        return "vfio-pci" if best.module == "vfio_pci" else best.module  # this one's driver is not named as the module


def _matching(aliases: t.Mapping[tuple[str, str], tuple[Alias, ...]], modalias: str) -> t.Iterator[Alias]:
    """Those of the aliases that match ``v0000…``, a modalias without ``pci:``."""
    vendor, device = modalias[1:9], modalias[10:18]
    for key in ((vendor, device), (vendor, "*"), ("*", "*")):
        for alias in aliases.get(key, ()):
            if fnmatch.fnmatchcase(modalias, alias.pattern):
                yield alias


def read_catalogue(tree: Tree, kernel: str | None, vendors: t.Collection[str]) -> Catalogue:
    """Look both up.

    Args:
        tree: the machine.
        kernel: release.
        vendors: four hex digits each; names of others are not kept.
    """
    aliases = _aliases(tree, kernel)
    return Catalogue(
        drivers=None if aliases is None else aliases["pci"],
        variants=None if aliases is None else aliases["vfio_pci"],
        names=_names(tree, vendors),
    )


def extract(
    catalogue: Catalogue, modaliases: t.Iterable[str], ids: t.Iterable[tuple[str | None, str | None]]
) -> tuple[str, str]:
    """What of ``modules.alias`` and of ``pci.ids`` is about certain devices, as such files.

    Args:
        catalogue: to look things up in.
        modaliases: of the devices, without ``pci:``.
        ids: (vendor, device) of the devices.
    """
    lines: set[str] = set()
    for modalias in modaliases:
        for kind, table in (("pci", catalogue.drivers), ("vfio_pci", catalogue.variants)):
            lines |= {f"alias {kind}:{one.pattern} {one.module}\n" for one in _matching(table or {}, modalias)}
    names = []
    for vendor, (name, devices) in sorted((catalogue.names or {}).items()):
        names.append(f"{vendor}  {name}\n")
        names += [f"\t{device}  {devices[device]}\n" for device in sorted(devices) if (vendor, device) in ids]
    return "".join(sorted(lines)), "".join(names)


def _aliases(tree: Tree, kernel: str | None) -> dict[str, dict[tuple[str, str], tuple[Alias, ...]]] | None:
    where = next(
        (f"{path}/{kernel}" for path in _MODULES if kernel and tree.exists(f"{path}/{kernel}/modules.alias")), None
    )
    text = None if where is None else tree.text(f"{where}/modules.alias", 64 * _MIB)
    if where is None or text is None:
        return None
    lines = text.splitlines()
    if tree.exists(f"{where}/modules.builtin.modinfo"):
        for entry in (tree.text(f"{where}/modules.builtin.modinfo", 64 * _MIB) or "").split("\0"):
            match = _BUILTIN.match(entry)
            if match:
                lines.append(f"alias {match.group(2)} {match.group(1)}")
    found: dict[str, dict[tuple[str, str], list[Alias]]] = {"pci": {}, "vfio_pci": {}}
    for line in lines:
        match = _ALIAS.match(line) if "pci:v" in line else None
        if match:
            kind, pattern, vendor, device, module = match.groups()
            plain = "*" if "*" in vendor else vendor, "*" if "*" in vendor + device else device
            found[kind].setdefault(plain, []).append(Alias(pattern, module))
    return {kind: {key: tuple(value) for key, value in table.items()} for kind, table in found.items()}


def _names(tree: Tree, vendors: t.Collection[str]) -> Names | None:
    """Names from pci.ids: ``vendor  name``, below it a tab, ``device  name`` (https://pci-ids.ucw.cz/)."""
    path = next((path for path in _PCI_IDS if tree.exists(path)), None)
    text = None if path is None else tree.text(path, 16 * _MIB)
    if text is None:
        return None
    names: dict[str, tuple[str, dict[str, str]]] = {}
    devices: dict[str, str] | None = None
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        if line[0] != "\t":
            if line.startswith("C "):  # classes follow, and nothing else
                break
            vendor, dummy, name = line.partition("  ")
            devices = {} if vendor in vendors else None
            if devices is not None:
                names[vendor] = (name.strip(), devices)
        elif devices is not None and line[1:2] != "\t":
            device, dummy, name = line[1:].partition("  ")
            devices[device] = name.strip()
    return names
