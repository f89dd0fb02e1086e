# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring devices to the driver that is declared: read, plan, do what the plan says, read again.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import typing as t

from .._core.errors import PhyllomeError
from .._core.files import clear, write
from .._core.plan import Change, Plan
from .._core.sysfs import Tree, is_vfio
from . import spec
from .groups import refusal, said
from .images import KEPT, Images
from .kernel import Drive, Hung, Kernel, drive, functions
from .ledger import LEDGER, File, Ledger, Stuck, digest, read_ledger
from .persistence import RULES, files
from .plan import Result, Row, Todo, next_boot, plan
from .read import World, hanging, read


def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The module vfio_bind."""
    wanted = spec.wanted(params, check_mode)
    return converge(wanted, check_mode, Kernel())


def converge(wanted: spec.Wanted, check_mode: bool, kernel: Kernel) -> dict[str, t.Any]:
    """Bring the devices of a machine to what is wanted.

    Args:
        wanted: the options; where ``root`` is another machine than the kernel's, only check_mode is possible.
        check_mode: whether to stop after the plan.
        kernel: who carries it out.
    """
    tree = Tree(wanted.root, "sysfs_root")
    _nothing_hangs(tree)
    world = read(tree, wanted.protect)
    todo = plan(wanted, world)
    if todo.refused:
        raise _refusal(wanted, world, todo)
    if not check_mode and wanted.state == "bound" and any(each.action == "functions" for each in todo.plan):
        world, todo = _with_functions(wanted, kernel, world, todo)
    rows, ledger, persistent = todo.rows, todo.afterwards, _foretold(todo, world)
    if not check_mode:
        clear(kernel.root, LEDGER)
        if todo.plan:
            _Work(wanted, kernel, world, todo).do()
            world = read(Tree(wanted.root, "sysfs_root"), ())
            rows = _verified(todo, world)
            persistent = world.facts["bindings"]["persistent"]
            ledger = world.ledger
        elif todo.afterwards != world.ledger:
            write(kernel.root, LEDGER, todo.afterwards.dump(), 0o600)
    result = _result(todo, rows, world)
    result["next_boot"] = next_boot(rows, ledger, persistent)
    return {**result, "warnings": list(todo.warnings)}


def _nothing_hangs(tree: Tree) -> None:
    """Before anything is read: the kernel keeps a device locked while its driver lets go, and whoever reads waits as well."""
    hung = hanging(tree, read_ledger(tree))
    refused = [
        refusal(address, "stuck", [f"process {each.pid} waits for {each.driver or 'its driver'}", "a reboot ends that"])
        for address, each in hung.items()
    ]
    if refused:
        facts: dict[str, t.Any] = {name: [] for name in ("devices", "plan", "diff", "hostdevs")}
        raise PhyllomeError(
            "Nothing was changed: a driver still does not let go of its device",
            said(refused),
            "Reboot this host; until then nothing of its devices is looked at here.",
            **{**facts, "changed": False, "refused": refused, "reboot_required": True},
        )


def _refusal(wanted: spec.Wanted, world: World, todo: Todo) -> PhyllomeError:
    hung = any(each["hazard"] == "stuck" for each in todo.refused)
    rows = [row for row in todo.rows if row.result == "refused"]
    return PhyllomeError(
        "Nothing was changed: not every device can "
        + ("go back to the host" if wanted.state == "original" else "be taken from the host"),
        said(todo.refused),
        "Leave these devices out, free them, or consent by name.",
        **{**_result(todo, rows, world), "changed": False, "reboot_required": hung},
    )


def _with_functions(wanted: spec.Wanted, kernel: Kernel, world: World, todo: Todo) -> tuple[World, Todo]:
    """Make virtual functions, and plan again now that they and their groups are there."""
    made = [each for each in todo.plan if each.action == "functions"]
    ledger = dataclasses.replace(world.ledger, functions=todo.during.functions)
    write(kernel.root, LEDGER, ledger.dump(), 0o600)
    _number(kernel, made, wanted.timeout)
    now = read(Tree(wanted.root, "sysfs_root"), wanted.protect)
    again = plan(wanted, now)
    if again.refused:
        _number(kernel, [_reversed(each, world) for each in made], wanted.timeout)
        write(kernel.root, LEDGER, world.ledger.dump(), 0o600)
        raise _refusal(wanted, now, again)
    return now, dataclasses.replace(again, plan=Plan(tuple(made)) + again.plan, made=True)


def _reversed(change: Change, world: World) -> Change:
    autoprobe = world.devices[change.args["address"]]["sriov"]["autoprobe"]
    return dataclasses.replace(change, args={**change.args, "count": change.before, "autoprobe": autoprobe})


def _number(kernel: Kernel, changes: t.Iterable[Change], timeout: float) -> None:
    for change in changes:
        args = change.args
        try:
            functions(kernel, args["address"], args["count"], args["autoprobe"], timeout)
        except Hung as hung:
            raise PhyllomeError(
                f"The virtual functions of {args['address']} were not changed within {timeout} s",
                str(hung),
                "Reboot; until then leave the card alone.",
                reboot_required=True,
            ) from hung


def _result(todo: Todo, rows: t.Sequence[Row], world: World) -> dict[str, t.Any]:
    return {
        "changed": todo.plan.changed,
        "devices": [row.as_dict() for row in rows],
        "refused": list(todo.refused),
        "plan": todo.plan.as_list(),
        "diff": _diff(todo),
        "reboot_required": todo.reboot_required or todo.waiting,
        "hostdevs": [
            {"id": f"pci-{row.address.translate(str.maketrans(':.', '--'))}", "pci": row.address}
            for row in rows
            if is_vfio(row.driver_after)
        ],
    }


def _foretold(todo: Todo, world: World) -> list[dict[str, t.Any]] | None:
    """What is configured once it is done, as iommu_facts will say it."""
    now = world.facts["bindings"]["persistent"]
    if now is None:
        return None
    ours = [
        {"address": address, "driver": each.driver, "source": "udev", "file": f"/{RULES}"}
        for address, each in todo.afterwards.devices.items()
        if each.persist
    ]
    return [each for each in now if each["file"] != f"/{RULES}"] + ours


def _verified(todo: Todo, world: World) -> tuple[Row, ...]:
    """The rows as the kernel shows them now.

    Raises:
        PhyllomeError: something did not stick.
    """
    wrong = []
    for row in todo.rows:
        driver = world.devices[row.address]["driver"] if row.address in world.devices else None
        if driver != row.driver_after:
            wrong.append(f"{row.address} has {driver or 'no driver'}, not {row.driver_after or 'none'}")
    persistent = world.facts["bindings"]["persistent"]
    if persistent is not None:
        found = {each["address"]: each["driver"] for each in persistent if each["file"] == f"/{RULES}"}
        for address, entry in world.ledger.devices.items():
            if entry.persist and is_vfio(entry.driver) and found.get(address) != entry.driver:
                wrong.append(f"{address} would not get {entry.driver} at the next boot")
    if wrong:
        raise PhyllomeError(
            "Something did not stick", "; ".join(wrong), "See what else drives devices here.", plan=todo.plan.as_list()
        )
    return todo.rows


def _diff(todo: Todo) -> list[dict[str, t.Any]]:
    """Drivers first, then every file as a text."""
    lines = [change for change in todo.plan if change.action != "write"]
    texts = {
        side: "".join(f"{each.path}: {getattr(each, side)}\n" for each in lines if getattr(each, side) is not None)
        for side in ("before", "after")
    }
    shown = [{"before_header": "drivers", "after_header": "drivers", **texts}] if lines else []
    for change in todo.plan:
        if change.action == "write":
            shown.append(
                {
                    "before_header": change.path,
                    "after_header": change.path,
                    "before": change.before or "",
                    "after": change.after or "",
                }
            )
    return shown


class _Work:
    """Carries a plan out. The ledger on disk is at every moment true enough to go on, or back, from it."""

    def __init__(self, wanted: spec.Wanted, kernel: Kernel, world: World, todo: Todo) -> None:
        self.wanted = wanted
        self.kernel = kernel
        self.world = world
        self.todo = todo
        self.results: dict[str, Result] = {}

    def do(self) -> None:
        """All of it.

        Raises:
            PhyllomeError: something failed; what belongs to it was taken back.
        """
        images = Images(self.kernel, self.world, self.wanted.initramfs == "later", self._save)
        during = images.begin(self.todo.during, self.todo.afterwards)
        self._save(during)
        for path in during.files:
            clear(self.kernel.root, path)
        for change in self._changes("write"):
            write(self.kernel.root, change.args["path"], change.after, change.args["mode"])
        if not self.todo.made:
            _number(self.kernel, self._changes("functions"), self.wanted.timeout)
        error = None
        after = self.todo.afterwards
        for dummy, grouped in itertools.groupby(self._changes("drive"), lambda each: each.args["group"]):
            changes = list(grouped)
            if error is None:
                error, after = self._drive_group(changes, after)
            else:
                after = self._forget([each.args["address"] for each in changes], after)
        if error is not None:
            after = self._files_again(after)
        self._save(images.bring(during, after))
        if error is not None:
            raise error
        mine = os.path.dirname(LEDGER)
        for folder in () if after.dump() else (KEPT, mine, os.path.dirname(mine)):
            with contextlib.suppress(OSError):  # there is something in it, or it is not there
                os.rmdir(os.path.join(self.kernel.root, folder))

    def _changes(self, action: str) -> list[Change]:
        return [change for change in self.todo.plan if change.action == action]

    def _save(self, ledger: Ledger) -> None:
        write(self.kernel.root, LEDGER, ledger.dump(), 0o600)

    def _drive_group(self, changes: list[Change], after: Ledger) -> tuple[PhyllomeError | None, Ledger]:
        """Drive the members of one group; when one of them fails, all of them get back what they had."""
        for number, change in enumerate(changes):
            address = change.args["address"]
            try:
                drive(self.kernel, _drive_of(change), self.wanted.timeout)
            except Hung as hung:
                entry = self.todo.during.devices[address]
                after = self._back(changes, number, after, entry.persist and self.wanted.state != "original")
                after = self._stuck(address, change.before, hung, after)
                what = f"{change.before or 'The kernel'} did not let go of {address} within {self.wanted.timeout} s"
                later = " The next boot binds it." if entry.persist and self.wanted.state != "original" else ""
                remedy = f"Reboot; until then the device is left alone.{later}"
                return self._error(what, str(hung), remedy, True), after
            except PhyllomeError as exc:
                after = self._back(changes, number + 1, after, False)
                return self._error(exc.what, exc.why, exc.remedy, False), after
        for row in self.todo.rows:
            if row.address in {change.args["address"] for change in changes}:
                self.results[row.address] = row.result
        return None, after

    def _back(self, changes: list[Change], count: int, after: Ledger, keep: bool) -> Ledger:
        """Take back the first changes of a group; what was written down of its members is kept or forgotten."""
        during = self.todo.during.devices
        if self.wanted.state == "original":  # those that are back with the host stay there
            left = [each.args["address"] for each in changes[max(count - 1, 0) :]]
            return after.having({**after.devices, **{one: during[one] for one in left}})
        if not keep:
            after = self._forget([each.args["address"] for each in changes], after)
        for change in reversed(changes[:count]):
            address = change.args["address"]
            device = self.world.devices[address]
            was = Drive(address, device["driver"], device["driver_override"], self.world.modules.get(address))
            try:
                drive(self.kernel, was, self.wanted.timeout)
                self.results[address] = "rolled_back"
            except Hung as hung:
                after = self._stuck(address, change.after, hung, after)
            except PhyllomeError:  # the ledger still knows what it had
                after = after.having({**after.devices, address: during[address]})
        return after

    def _stuck(self, address: str, driver: str | None, hung: Hung, after: Ledger) -> Ledger:
        self.results[address] = "stuck"
        stuck = Stuck(self.world.boot, hung.pid, driver)
        entry = dataclasses.replace(self.todo.during.devices[address], stuck=stuck)
        return after.having({**after.devices, address: entry})

    def _forget(self, addresses: t.Collection[str], after: Ledger) -> Ledger:
        """The ledger in which devices stand as they did before this run."""
        old = self.world.ledger.devices
        devices = {one: each for one, each in after.devices.items() if one not in addresses}
        return after.having({**devices, **{one: old[one] for one in addresses if one in old}})

    def _files_again(self, after: Ledger) -> Ledger:
        """The files of what is left after a failure."""
        contents = files(after, self.world.maker)
        written = {change.args["path"] for change in self._changes("write")}
        kept = {path: file for path, file in after.files.items() if path not in written}
        for path in written:
            content, before = contents.get(path), self.todo.during.files[path].before
            text = content.text if content else None
            write(self.kernel.root, path, before if text is None else text, content.mode if content else 0o644)
            if text is not None:
                kept[path] = File(before, (digest(text),))
        return dataclasses.replace(after, files=kept)

    def _error(self, what: str, why: str, remedy: str, reboot: bool) -> PhyllomeError:
        rows = [
            dataclasses.replace(
                row,
                result=self.results.get(row.address, row.result),
                driver_after=self.kernel.driver(row.address),
            )
            for row in self.todo.rows
            if row.result in ("already", "deferred") or row.address in self.results
        ]
        facts = _result(self.todo, rows, self.world)
        return PhyllomeError(what, why, remedy, **{**facts, "reboot_required": reboot or facts["reboot_required"]})


def _drive_of(change: Change) -> Drive:
    args = change.args
    return Drive(args["address"], args["to"], args["override"], args.get("module"), args.get("power"))
