# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was done on this machine, written down before it is done.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing as t

from .._core.errors import PhyllomeError
from .._core.sysfs import Tree

LEDGER = "var/lib/phyllome/vfio/ledger.json"
NOTHING = "none"
"""As driver_override, a name that no driver has (https://docs.kernel.org/ABI/testing/sysfs-bus-pci.html)."""
_VERSION = 1
_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Before:
    """A function as it was before we first touched it.

    Attributes:
        driver: None for none.
        module: that the driver is in; None where it is in the kernel, or unknown.
        override: its driver_override.
        power: its power/control.
    """

    driver: str | None
    module: str | None
    override: str | None
    power: str | None


@dataclasses.dataclass(frozen=True)
class Stuck:
    """An unbind that did not end: the process that hangs in the kernel.

    Attributes:
        boot: of the machine; another boot has let go of everything.
        pid: of the process.
        driver: that does not let go.
    """

    boot: str
    pid: int
    driver: str | None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A function that we drive.

    Attributes:
        key: its identity, as iommu_facts has it.
        ids: vendor, device and subsystem, as ``8086:10d3/8086:0000``.
        serial: where it says one.
        driver: that it is to have, or NOTHING.
        persist: whether the next boot is to do the same.
        physfn: address of the physical function of a virtual one.
        before: as it was.
        stuck: where it does not let go.
    """

    key: str
    ids: str
    serial: str | None
    driver: str
    persist: bool
    physfn: str | None
    before: Before
    stuck: Stuck | None = None

    def wrote(self, override: str | None) -> bool:
        """Whether a driver_override is one that we write, on the way there or back."""
        return override != self.before.override and override in (self.driver, self.before.driver, NOTHING)


@dataclasses.dataclass(frozen=True)
class Functions:
    """A physical function whose virtual functions we made.

    Attributes:
        key: its identity.
        ids: as of an Entry.
        count: of virtual functions.
        persist: whether the next boot is to make them again.
        number: sriov_numvfs before.
        autoprobe: sriov_drivers_autoprobe before.
    """

    key: str
    ids: str
    count: int
    persist: bool
    number: int
    autoprobe: bool | None


@dataclasses.dataclass(frozen=True)
class File:
    """A file that we wrote.

    Attributes:
        before: its text before we first wrote it; None where there was none.
        mine: digests of what it may hold since: as we left it, or were about to.
    """

    before: str | None
    mine: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Image:
    """An initramfs that we had made anew; its predecessor is kept.

    Attributes:
        before: digest of the one before.
        after: digest of ours; None until it is made.
    """

    before: str
    after: str | None


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Everything.

    Attributes:
        devices: by address.
        functions: by address of the physical function.
        files: by path, without a leading slash.
        images: by path.
        built: digest of what of ours is in the initramfs; ``?`` while it is being made, None for nothing.
    """

    devices: t.Mapping[str, Entry] = dataclasses.field(default_factory=dict)
    functions: t.Mapping[str, Functions] = dataclasses.field(default_factory=dict)
    files: t.Mapping[str, File] = dataclasses.field(default_factory=dict)
    images: t.Mapping[str, Image] = dataclasses.field(default_factory=dict)
    built: str | None = None

    def dump(self) -> str | None:
        """As it is kept; None when there is nothing to keep."""
        if self == Ledger():
            return None
        return json.dumps({"version": _VERSION, **dataclasses.asdict(self)}, indent=1, sort_keys=True) + "\n"

    def having(self, devices: t.Mapping[str, Entry]) -> Ledger:
        """The same with other devices."""
        return dataclasses.replace(self, devices=devices)


def read_ledger(tree: Tree) -> Ledger:
    """What was written down.

    Raises:
        PhyllomeError: it is there and cannot be understood.
    """
    if not tree.exists(LEDGER):
        return Ledger()
    try:
        kept = json.loads((tree.data(LEDGER, 16 * _MIB) or b"").decode())
        if kept["version"] != _VERSION:
            raise ValueError(f"its version is {kept['version']}, not {_VERSION}")
        return Ledger(
            {address: _entry(each) for address, each in kept["devices"].items()},
            {address: Functions(**each) for address, each in kept["functions"].items()},
            {path: File(each["before"], tuple(each["mine"])) for path, each in kept["files"].items()},
            {path: Image(**each) for path, each in kept["images"].items()},
            kept["built"],
        )
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise PhyllomeError(
            f"The ledger /{LEDGER} cannot be read",
            tree.unread.get(LEDGER, str(exc)),
            "Repair it, or remove it: what it says of earlier runs can then no longer be undone.",
        ) from exc


def _entry(kept: dict[str, t.Any]) -> Entry:
    before, stuck = Before(**kept.pop("before")), kept.pop("stuck")
    return Entry(before=before, stuck=Stuck(**stuck) if stuck else None, **kept)


def digest(content: str | bytes) -> str:
    """SHA-256 of a content, in hex."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()
