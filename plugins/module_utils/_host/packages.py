# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which packages of the virtualisation stack are installed, from the package manager's own database.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import re
import typing as t

from .._core import program
from .._core.sysfs import Tree

STACK = (
    "qemu*", "libvirt*", "python3-libvirt*", "libvirt-python*", "python3-lxml", "seabios*", "ovmf*", "edk2*", "swtpm*",
    "libtpms*", "virtiofsd*", "ipxe*", "dnsmasq*", "gnutls*", "libgnutls*", "libspice-server*", "spice-server*",
    "virglrenderer*", "libvirglrenderer*", "libslirp*", "passt*", "*microcode*", "linux-firmware*", "nftables",
)  # fmt: skip
"""Names of what makes a difference to guests, as ``rpm -qa`` takes them."""

_LIMIT = 1 << 27
_STACK = re.compile("|".join(f"(?:{pattern.replace('*', '.*')})" for pattern in STACK))


def read_packages(tree: Tree) -> dict[str, str] | None:
    """Name → version of what is installed of the stack; None when no package manager is known.

    dpkg and pacman keep plain files. rpm's database is its own business, so rpm is asked, once.

    Raises:
        PhyllomeError: there is rpm's database, and rpm fails.
    """
    if tree.exists("var/lib/dpkg/status"):
        data = tree.data("var/lib/dpkg/status", _LIMIT)
        return None if data is None else dpkg(data.decode("utf-8", "replace"))
    if tree.exists("var/lib/pacman/local"):
        names = tree.names("var/lib/pacman/local")
        return None if names is None else pacman(names)
    if tree.root == "/" and any(tree.exists(path) for path in ("var/lib/rpm", "usr/lib/sysimage/rpm")):
        return rpm(program.run(["rpm", "-qa", "--queryformat", r"%{NAME}\t%{EVR}.%{ARCH}\n", *STACK]))
    return None


def dpkg(text: str) -> dict[str, str]:
    """The same from dpkg's status file (https://manpages.debian.org/dpkg-query). Pure."""
    found = {}
    for stanza in text.split("\n\n"):
        head, dummy, rest = stanza.partition("\n")
        name = head[9:].strip() if head.startswith("Package: ") else ""
        if not name or not _STACK.fullmatch(name):
            continue
        fields = dict(line.split(": ", 1) for line in rest.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            found[name] = f"{fields.get('Version', '?')}.{fields.get('Architecture', '?')}"
    return found


def pacman(names: t.Iterable[str]) -> dict[str, str]:
    """The same from the names in pacman's local database: name-version-release. Pure."""
    parts = (name.rsplit("-", 2) for name in names)
    return {part[0]: f"{part[1]}-{part[2]}" for part in parts if len(part) == 3 and _STACK.fullmatch(part[0])}


def rpm(text: str) -> dict[str, str]:
    """The same from what rpm printed. Several of one name, as kernels are, are listed together. Pure."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, tab, version = line.partition("\t")
        if tab:
            found.setdefault(name, []).append(version)
    return {name: " ".join(sorted(versions)) for name, versions in found.items()}
