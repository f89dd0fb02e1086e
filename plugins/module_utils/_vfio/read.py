# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The devices of a machine, what we did to them, and what it will do at its next boot.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.sysfs import Tree
from .._iommu.facts import gather_from
from .ledger import Ledger, Stuck, read_ledger
from .persistence import MAKERS, RULES

_MIB = 1 << 20
_BOOT = "proc/sys/kernel/random/boot_id"
_PARTS = ("host", "iommu", "groups", "devices", "vfio", "bindings", "boot")


@dataclasses.dataclass(frozen=True)
class World:
    """What there is.

    Attributes:
        facts: as iommu_facts returns them.
        devices: the devices of them, by address.
        modules: address → module of its driver, where it is in one.
        powers: address → power/control.
        spans: address of a physical function → (sriov_offset, sriov_stride).
        ledger: what we did.
        files: path of each file of ours → its text; None where there is none.
        maker: what makes the initramfs: a key of MAKERS.
        boot: identity of this boot.
        hanging: pids of the ledger's stuck processes that still are.
    """

    facts: t.Mapping[str, t.Any]
    devices: t.Mapping[str, t.Mapping[str, t.Any]]
    modules: t.Mapping[str, str]
    powers: t.Mapping[str, str]
    spans: t.Mapping[str, tuple[int, int]]
    ledger: Ledger
    files: t.Mapping[str, str | None]
    maker: str | None
    boot: str
    hanging: frozenset[int]


def read(tree: Tree, protect: t.Sequence[str] = ()) -> World:
    """Look at everything; see gather for the errors."""
    ledger = read_ledger(tree)
    facts = gather_from(tree, _PARTS, protect)
    devices = {each["address"]: each for each in facts["devices"]}
    modules, powers, spans = {}, {}, {}
    for address in devices:
        path = f"sys/bus/pci/devices/{address}"
        module = tree.follow(f"{path}/driver/module") if tree.exists(f"{path}/driver/module") else None
        power = tree.text(f"{path}/power/control") if tree.exists(f"{path}/power/control") else None
        if module:
            modules[address] = module.rpartition("/")[2]
        if power:
            powers[address] = power
        if devices[address]["sriov"] and tree.exists(f"{path}/sriov_offset"):
            offset, stride = tree.number(f"{path}/sriov_offset"), tree.number(f"{path}/sriov_stride")
            if offset and stride is not None:
                spans[address] = (offset, stride)
    maker = facts["boot"]["initramfs"] if facts["boot"]["host_kind"] == "package" else None
    paths = {RULES, *ledger.files, *([MAKERS[maker].path] if maker in MAKERS else ())}
    boot = tree.text(_BOOT) or ""
    return World(
        facts,
        devices,
        modules,
        powers,
        spans,
        ledger,
        {path: _text(tree, path) for path in sorted(paths)},
        maker if maker in MAKERS else None,
        boot,
        frozenset(each.pid for each in hanging(tree, ledger).values()),
    )


def hanging(tree: Tree, ledger: Ledger) -> dict[str, Stuck]:
    """By address, what was stuck in this boot and still is."""
    boot = tree.text(_BOOT) or ""
    return {
        address: each.stuck
        for address, each in ledger.devices.items()
        if each.stuck and each.stuck.boot == boot and tree.exists(f"proc/{each.stuck.pid}/stat")
    }


def _text(tree: Tree, path: str) -> str | None:
    data = tree.data(path, _MIB) if tree.exists(path) else None
    return None if data is None else data.decode("utf-8", "surrogateescape")
