# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What to do so that the kernel gets, or no longer gets, arguments. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from . import text
from .spec import Wanted, name_of
from .world import Ours, Record, Source, World

_LOADERS = ("BOOT_IMAGE", "initrd", "ostree", "root", "ro", "rw")
"""Names that differ between a boot and its entry without anybody's doing."""


@dataclasses.dataclass(frozen=True)
class Todo:
    """What to do.

    Attributes:
        plan: the changes, in order.
        during: the record while they are made: it knows of everything that may be there, whenever power is cut.
        afterwards: the record once they are made.
        conflicts: name → why it is not undone.
        values: name → its tokens afterwards, as far as known: those of GRUB's other files, which count again when ours
            is gone, may have changed since they were recorded.
        certain: whether they are known for certain.
    """

    plan: Plan
    during: Record
    afterwards: Record
    conflicts: t.Mapping[str, str]
    values: t.Mapping[str, tuple[str, ...]]
    certain: bool


def amiss(todo: Todo, world: World) -> list[str]:
    """What was carried out and cannot be seen in what boots next."""
    return [
        f"{path}: {name} is {' '.join(text.of(name, line)) or 'not there'}, not {' '.join(tokens) or 'absent'}"
        for path, line in world.lines.items()
        for name, tokens in todo.values.items()
        if todo.certain and text.of(name, line) != tokens
    ]


def foretold(todo: Todo, world: World) -> World:
    """What there will be once it is done, as far as reboot_required looks at it."""
    lines = {
        path: text.tokens(text.with_line(" ".join(line), todo.values)) if todo.plan else line
        for path, line in world.lines.items()
    }
    return dataclasses.replace(world, lines=lines, record=todo.afterwards)


def plan(wanted: Wanted, world: World) -> Todo:
    """Compare what is wanted with what boots next.

    Raises:
        PhyllomeError: entries say different things of an argument, so that there is no one state to go back to.
    """
    return _undo(wanted, world) if wanted.undo else _present(wanted, world)


def _present(wanted: Wanted, world: World) -> Todo:
    todo = {
        name: tokens
        for name, tokens in wanted.names.items()
        if any(text.of(name, line) != tokens for line in world.lines.values())
    }
    names = dict(world.record.names)
    changes = []
    for name, tokens in todo.items():
        before = _before(name, world)
        names[name] = Ours(tokens, names[name].before if name in names else before)
        changes.append(_change(name, before, tokens))
    during = Record(names, world.record.files)
    return _todo(world, changes, todo, during, names, {})


def _before(name: str, world: World) -> tuple[str, ...]:
    found = {path: text.of(name, line) for path, line in world.lines.items()}
    different = sorted(set(found.values()))
    if len(different) > 1 and name not in world.record.names and world.loader != "grub":
        said = "; ".join(f"{path}: {' '.join(tokens) or 'not there'}" for path, tokens in found.items())
        raise PhyllomeError(
            f"{name}: the entries of the boot loader do not say the same of it",
            said,
            "Make them equal first: what is changed now could not be undone exactly.",
        )
    return different[0]


def _undo(wanted: Wanted, world: World) -> Todo:
    record = world.record
    asked = [name for name in record.names if not wanted.names or name in wanted.names]
    conflicts = {}
    todo: dict[str, tuple[str, ...]] = {}
    changes = []
    for name in asked:
        ours = record.names[name]
        found = {text.of(name, line) for line in world.lines.values()}
        strange = found - {ours.after, ours.before}
        if strange and world.loader != "grub":
            said = " ".join(sorted(strange)[0]) or "nothing"
            conflicts[name] = f"it is {said} now, and was {' '.join(ours.after) or 'absent'} when it was changed here"
            continue
        todo[name] = ours.before
        changes.append(_change(name, ours.after, ours.before))
    left = {name: ours for name, ours in record.names.items() if name not in todo}
    return _todo(world, changes, todo, record, left, conflicts)


def _change(name: str, before: tuple[str, ...], after: tuple[str, ...]) -> Change:
    return Change("", f"args.{name}", " ".join(before) or None, " ".join(after) or None, "next_boot")


def _todo(
    world: World,
    changes: list[Change],
    values: t.Mapping[str, tuple[str, ...]],
    during: Record,
    names: t.Mapping[str, Ours],
    conflicts: t.Mapping[str, str],
) -> Todo:
    """The places and programs that make the changes."""
    files = dict(world.record.files)
    moving: dict[str, tuple[str | None, ...]] = {}
    steps: list[Change] = []
    if changes:
        for path, source in world.sources.items():
            if source.kind == "kargs":
                steps.append(_kargs(world, values))
                continue
            new = _content(path, source, values, names, files)
            if new != source.content:
                steps.append(Change("write", f"/{path}", source.content, new, args={"path": path}))
            known = files.pop(path, None)
            if source.kind not in ("entry", "line"):
                continue
            if known is not None and source.content in known:
                files[path] = (known[0], new)
                moving[path] = (known[0], source.content, new)
            elif not world.record.names and new != source.content:  # later, others' changes and ours are mixed
                files[path] = (source.content, new)
        steps += [
            Change("run", "program", None, " ".join(command), args={"argv": command}) for command in world.commands
        ]
    if not names:
        files = {}
    during = Record(during.names, {**world.record.files, **files, **moving})
    certain = world.loader != "grub" or len(names) == len(during.names)
    return Todo(Plan((*changes, *steps)), during, Record(names, files), conflicts, values, certain)


def _content(
    path: str,
    source: Source,
    values: t.Mapping[str, tuple[str, ...]],
    names: t.Mapping[str, Ours],
    files: t.Mapping[str, tuple[str | None, ...]],
) -> str | None:
    content = source.content
    if source.kind in ("drop_in", "block"):
        ours = {name: names[name].after for name in names}
        return text.drop_in(ours) if source.kind == "drop_in" else text.with_block(content or "", ours)
    if not names and path in files and content in files[path]:
        return files[path][0]  # nobody touched it since, and nothing of ours stays
    return (text.with_entry if source.kind == "entry" else text.with_line)(content or "", values)


def _kargs(world: World, values: t.Mapping[str, tuple[str, ...]]) -> Change:
    argv = ["rpm-ostree", "kargs"]
    for name, wanted in values.items():
        found = next(text.of(name, line) for line in world.lines.values())
        if found != wanted:
            argv += [f"--delete={token}" for token in found] + [f"--append={token}" for token in wanted]
    return Change("run", "program", None, " ".join(argv), args={"argv": tuple(argv)})


def reboot_required(wanted: Wanted, world: World) -> bool | None:
    """Whether the running kernel has other arguments than the next one will; None where that is unknown.

    Looked at are the arguments that are named and those that were changed here. An undo of everything leaves no
    names behind: then all are looked at but those that a boot loader adds.
    """
    if world.running is None:
        return None
    booted = [line for path, line in world.lines.items() if path.startswith(("/boot", "/efi", "rpm-ostree"))]
    names = {*wanted.names, *world.record.names}
    if not names or (wanted.undo and not wanted.names):
        names |= {name_of(token) for line in (*booted, world.running) for token in line} - {*_LOADERS}
    return any(text.of(name, line) != text.of(name, world.running) for name in names for line in booted)
