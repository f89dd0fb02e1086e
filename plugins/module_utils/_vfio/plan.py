# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What to do so that devices get, or get back, their driver. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from .._core.sysfs import is_vfio
from . import functions, groups
from .ledger import NOTHING, Before, Entry, File, Ledger, digest
from .persistence import RULES, Content, files, in_initramfs
from .read import World
from .spec import Wanted, find, select

Device = t.Mapping[str, t.Any]
Result = t.Literal["bound", "unbound", "restored", "already", "deferred", "refused", "stuck", "rolled_back"]


_NO_MAKER = (
    "What makes the initramfs of this host is not known: a driver that is in it, or in the kernel itself, has a device "
    "before the rule for it is read."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What becomes of a device: ``devices[]`` of the result."""

    address: str
    key: str | None
    group: int | None
    driver_before: str | None
    driver_after: str | None
    result: Result

    def as_dict(self) -> dict[str, t.Any]:
        """As users see it."""
        shown = dataclasses.asdict(self)
        return {"address": shown.pop("address"), "identity": shown.pop("key"), **shown}


@dataclasses.dataclass(frozen=True)
class Todo:
    """What to do.

    Attributes:
        plan: the changes, in order. Those of a group come one after the other.
        rows: every device that was asked for, or comes with one.
        refused: what stands against it, see groups.refusal; then nothing is done at all.
        during: the ledger while it is done: it knows of everything that may be there, whenever power is cut.
        afterwards: the ledger once it is done.
        warnings: what a person has to know.
        waiting: whether devices wait for the IOMMU, which is off until the next boot.
        made: whether its virtual functions are there by now.
    """

    plan: Plan
    rows: tuple[Row, ...]
    refused: tuple[dict[str, t.Any], ...]
    during: Ledger
    afterwards: Ledger
    warnings: tuple[str, ...] = ()
    waiting: bool = False
    made: bool = False

    @property
    def reboot_required(self) -> bool:
        """Whether something that was asked for is only there after a reboot."""
        return any(row.result in ("deferred", "stuck") for row in self.rows)


def plan(wanted: Wanted, world: World) -> Todo:
    """Compare what is wanted with what is there.

    Raises:
        PhyllomeError: a device is not there, or nothing can be bound on this machine as it is.
    """
    if wanted.initramfs == "only":
        return _todo(wanted, world, world.ledger, [], [], [], [])
    return _undo(wanted, world) if wanted.state == "original" else _present(wanted, world)


def targets(wanted: Wanted, world: World) -> tuple[str, ...]:
    """Addresses of the devices that are asked for; see find and select for the errors."""
    if wanted.select:
        return select(wanted.select, world.facts, wanted.expect_count)
    return tuple(dict.fromkeys(find(device, world.facts) for device in wanted.devices))


def _present(wanted: Wanted, world: World) -> Todo:
    asked = targets(wanted, world)
    iommu = world.facts["iommu"]
    if wanted.state == "bound" and iommu["state"] != "on":
        return _without_iommu(asked, world)
    made = functions.make(wanted, world)
    asked = tuple(dict.fromkeys((*asked, *made.there)))
    entries = dict(world.ledger.devices)
    rows: list[Row] = []
    refused: list[dict[str, t.Any]] = [*made.refused]
    changes: list[Change] = [*made.changes]
    warnings: list[str] = []
    for number, members in groups.sets(asked, wanted, world):
        todo = [address for address in members if not _done(world.devices[address], wanted)]
        found = [*groups.incomplete(number, members, asked, wanted, world)]
        for address in members:
            found += groups.strange(world.devices[address], world)
        for address in todo:
            found += groups.hazards(world.devices[address], wanted)
        later = bool(todo) and groups.defers(todo, wanted, world)
        if later and not wanted.persist:
            found += groups.not_persistent(todo, wanted, world)
        refused += found
        against = {one["address"] for one in found}
        warnings += groups.given_up(todo, wanted, world)
        for address in members:
            device = world.devices[address]
            driver = _driver(device, wanted)
            after = None if driver == NOTHING else driver
            done = address not in todo
            if address in against:
                rows.append(_row(device, device["driver"], "refused"))
                continue
            entry = _entry(device, driver, wanted, world, done)
            if entry is not None:
                entries[address] = entry
            if done:
                rows.append(_row(device, device["driver"], "already"))
            elif later:
                rows.append(_row(device, device["driver"], "deferred"))
                if entry != world.ledger.devices.get(address):
                    why = "its driver may not let go of it while the system runs"
                    changes.append(_change(address, device["driver"], after, "next_boot", why))
            else:
                rows.append(_row(device, after, "bound" if wanted.state == "bound" else "unbound"))
                args = {"address": address, "to": after, "override": driver, "group": number, "power": None}
                changes.append(_change(address, device["driver"], after, "live", "", "drive", args))
    moved = {each.key: address for address, each in entries.items() if address in {row.address for row in rows}}
    for address in [address for address, each in entries.items() if moved.get(each.key, address) != address]:
        del entries[address]  # the card is at another address now
    for address in [one for one, each in entries.items() if each.physfn in made.entries and one not in made.there]:
        del entries[address]
    for address in made.coming:
        driver = wanted.driver or "vfio-pci"
        why = "its group is known once it is there"
        rows.append(Row(address, None, None, None, driver, "bound"))
        changes.append(_change(address, None, driver, "live", why))
    ledger = dataclasses.replace(world.ledger, devices=entries, functions={**world.ledger.functions, **made.entries})
    return _todo(wanted, world, ledger, changes, rows, refused, warnings)


def _without_iommu(asked: t.Iterable[str], world: World) -> Todo:
    iommu = world.facts["iommu"]
    if "reboot_pending" not in iommu["causes"]:
        raise PhyllomeError(
            "Nothing can be bound: the IOMMU is not on",
            "; ".join(iommu["evidence"]) or "the kernel shows no groups",
            iommu["remedy"] or "See iommu_facts.",
        )
    rows = tuple(_row(world.devices[address], world.devices[address]["driver"], "deferred") for address in asked)
    warning = "The IOMMU is off until the next boot, and groups are not known before. Reboot, and run this again."
    return Todo(Plan(), rows, (), world.ledger, world.ledger, (warning,), waiting=True)


def _done(device: Device, wanted: Wanted) -> bool:
    if "driver" in device["unknown"]:
        return False
    if wanted.state == "unbound":
        return device["driver"] is None
    return is_vfio(device["driver"]) and wanted.driver in (None, device["driver"])


def _driver(device: Device, wanted: Wanted) -> str:
    if wanted.state == "unbound":
        return NOTHING
    if wanted.driver is None and is_vfio(device["driver"]):
        return str(device["driver"])
    return wanted.driver or device["vfio_driver"] or "vfio-pci"


def _row(device: Device, after: str | None, result: Result) -> Row:
    return Row(device["address"], device["identity"]["key"], device["group"], device["driver"], after, result)


def _change(
    address: str,
    before: str | None,
    after: str | None,
    when: t.Literal["live", "next_boot"],
    why: str,
    action: str = "",
    args: t.Mapping[str, t.Any] | None = None,
) -> Change:
    return Change(action, f"devices.{address}.driver", before, after, when, why, args or {})


def _entry(device: Device, driver: str, wanted: Wanted, world: World, done: bool) -> Entry | None:
    """What is written down of a device; None when nothing has to be."""
    address = device["address"]
    old = world.ledger.devices.get(address)
    ours = f"/{RULES}"
    elsewhere = driver != NOTHING and any(
        each["address"] == address and each["file"] != ours for each in world.facts["bindings"]["persistent"] or ()
    )
    persist = wanted.persist and not elsewhere
    if done and old is None and not persist:
        return None
    before = Before(device["driver"], world.modules.get(address), device["driver_override"], world.powers.get(address))
    touched = old is not None and (is_vfio(device["driver"]) or old.wrote(device["driver_override"]))
    ids = f"{device['vendor']}:{device['device']}" + (f"/{device['subsystem']}" if device["subsystem"] else "")
    return Entry(
        key=device["identity"]["key"],
        ids=ids,
        serial=device["identity"]["serial"] or (old.serial if old else None),
        driver=driver,
        persist=persist,
        physfn=device["sriov"]["physfn"] if device["sriov"] else None,
        before=old.before if old is not None and touched else before,
    )


def _undo(wanted: Wanted, world: World) -> Todo:
    ledger = world.ledger
    names = {*wanted.devices} | ({*select(wanted.select, world.facts, wanted.expect_count)} if wanted.select else set())
    everything = not names and not wanted.functions
    parents = None if everything else {*names, *(device for device, dummy in wanted.functions)}
    unmade = functions.unmake(parents, world, wanted.runtime == "never")
    entries = {address: each for address, each in ledger.devices.items() if address not in unmade.gone}
    asked = [address for address, each in sorted(entries.items()) if everything or names & {address, each.key}]
    rows = [_row(world.devices[address], None, "restored") for address in unmade.gone]
    refused: list[dict[str, t.Any]] = [*unmade.refused]
    changes: list[Change] = [*unmade.changes]
    warnings: list[str] = [*unmade.warnings]
    for address in asked:
        entry, device = ledger.devices[address], world.devices.get(address)
        del entries[address]
        if device is None or groups.identity_changed(device, entry):
            warnings.append(f"{address}: {entry.key} is not there any more; only its files are undone")
            continue
        found = groups.stuck(device, world)
        driver, back = device["driver"], entry.before.driver
        if "driver" in device["unknown"]:
            found += [groups.refusal(address, "unknown_driver", ["what drives it could not be read"])]
        ours = is_vfio(driver) if entry.driver != NOTHING else driver is None
        touched = entry.wrote(device["driver_override"])
        if driver == back and not touched:
            rows.append(_row(device, driver, "already"))
        elif driver != back and not ours and not (driver is None and touched):
            warnings.append(f"{address} is left alone: it has the driver {driver} now, and {entry.driver} was set here")
            rows.append(_row(device, driver, "already"))
        elif wanted.runtime == "never" and driver != back:
            entries[address] = dataclasses.replace(entry, persist=False)
            rows.append(_row(device, driver, "deferred"))
            if entry.persist:
                changes.append(_change(address, driver, back, "next_boot", "runtime is never"))
        else:
            if driver != back:
                found += groups.used_by_guest(device)
            rows.append(_row(device, back, "refused" if found else "restored"))
            args = {"address": address, "to": back, "override": entry.before.override, "group": device["group"],
                    "module": entry.before.module, "power": entry.before.power}  # fmt: skip
            changes.append(_change(address, driver, back, "live", "", "drive", args))
        refused += found
    after = dataclasses.replace(ledger, devices=entries, functions=unmade.entries)
    return _todo(wanted, world, after, changes, rows, refused, warnings)


def _todo(
    wanted: Wanted,
    world: World,
    ledger: Ledger,
    changes: list[Change],
    rows: t.Sequence[Row],
    refused: t.Sequence[dict[str, t.Any]],
    warnings: t.Sequence[str],
) -> Todo:
    """Add the files and the initramfs, and the ledgers of the way."""
    writes, kept, conflicts = _writes(world, ledger)
    last = []
    built = in_initramfs(files(ledger, world.maker), world.maker)
    stale, later = built != ledger.built, wanted.initramfs == "later"
    if stale and not later:
        what = "without devices" if built is None else "with these devices"
        last.append(Change("initramfs", "initramfs", None, what, "next_boot", args={"built": built}))
    if world.maker is None and any(each.persist and each.physfn is None for each in ledger.devices.values()) and writes:
        warnings = [*warnings, _NO_MAKER]
    mine = dict(world.ledger.files)
    for path, file in kept.items():  # either content may be there when power is cut
        old = mine[path].mine if path in mine else ()
        mine[path] = File(file.before, tuple(dict.fromkeys((*old, *file.mine))))
    during = dataclasses.replace(
        ledger,
        devices={**world.ledger.devices, **ledger.devices},
        functions={**world.ledger.functions, **ledger.functions},
        files=mine,
        built="?" if stale else built,
    )
    afterwards = dataclasses.replace(ledger, files=kept, built="?" if stale and later else built)
    return Todo(
        Plan((*writes, *changes, *last)), tuple(rows), tuple(refused), during, afterwards, (*warnings, *conflicts)
    )


def _writes(world: World, ledger: Ledger) -> tuple[list[Change], dict[str, File], list[str]]:
    """Changes of files, what the ledger says of them afterwards, and what is left alone."""
    writes, kept, conflicts = [], {}, []
    contents = files(ledger, world.maker)
    for path in {*contents, *world.ledger.files}:
        content = contents.get(path, Content(None, 0o644))
        found, known = world.files.get(path), world.ledger.files.get(path)
        before = known.before if known else found
        text = before if content.text is None else content.text
        if content.text is None and known is None:
            continue
        if content.text is None and found is not None and known and digest(found) not in known.mine and found != before:
            conflicts.append(f"/{path} is left alone: somebody else has changed it")
            continue
        if content.text is not None:
            kept[path] = File(before, (digest(content.text),))
        if found != text:
            writes.append(
                Change("write", f"/{path}", found, text, "next_boot", args={"path": path, "mode": content.mode})
            )
    return sorted(writes, key=lambda each: each.path), kept, conflicts


def next_boot(rows: t.Iterable[Row], ledger: Ledger, persistent: t.Sequence[Device] | None) -> list[dict[str, t.Any]]:
    """What the next boot does with the devices: ``next_boot[]`` of the result.

    Args:
        rows: the devices.
        ledger: as it will be.
        persistent: what is configured, as iommu_facts has it; None when that is not known.
    """
    found = []
    for row in rows:
        entry = ledger.devices.get(row.address)
        ours = entry is not None and entry.persist
        others = [each for each in persistent or () if each["address"] == row.address]
        driver = entry.driver if entry is not None and ours else others[0]["driver"] if others else None
        found.append(
            {
                "address": row.address,
                "driver": None if driver == NOTHING else driver,
                "held": driver is not None,
                "source": "udev" if ours else others[0]["source"] if others else None,
                "initramfs": bool(entry and ours and entry.physfn is None and ledger.built not in (None, "?")),
                "certain": persistent is not None,
            }
        )
    return found
