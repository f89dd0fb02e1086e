# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way back of a guest: what its last move has left at the destination is brought up to date instead of being sent anew.

The journal there says what each retained file held, chunk by chunk, and when it was last written to: one that was written
to since is not used. From then on the retained copy belongs to the way back, and cannot be gone back to any more.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from .._core import virt
from . import files
from .copying import Item
from .journal import DIRECTORY, Journal, Record
from .manifest import Manifest
from .plan import retained
from .read import SWTPM

_Notes = list[dict[str, t.Any]]


def take_over(
    connection: t.Any, former: str, boot: str, record: Record, items: t.Sequence[Item], journal: Journal
) -> Record:
    """Make what the destination has retained of the guest the beginning of this move.

    It may be cut off anywhere, and is done again then: only when the record and the notes of this move tell of the
    retained files, the journal there forgets them.

    Args:
        connection: the destination's.
        former: the move that would have brought the guest from there.
        boot: of the destination.
        record: of this move.
        items: that are to be copied.
        journal: of this host.

    Raises:
        libvirt.libvirtError: the destination refuses.
    """
    with files.folder(connection, DIRECTORY, record.op_id) as there:
        if f"{former}.json" not in there:
            return record
        try:
            said = json.loads(files.read(connection, there[f"{former}.json"]))
            notes = parse(files.read(connection, there[f"{former}.notes"])) if f"{former}.notes" in there else []
        except ValueError:
            return record
        if said.get("phase") != "done" or said.get("source") != record.destination:
            return record
        kept = {path: name for path, name in said.get("retained", {}).items() if name == retained(path, former)}
        if not record.staged:
            record = _begin(connection, boot, record, items, kept, notes, journal)
        if not set(kept.values()) & set(record.staged.values()):
            return record
        for path, name in kept.items():
            if name not in record.staged.values():
                (files.remove_tpm if path.startswith(f"{SWTPM}/") else files.remove)(connection, name, record.op_id)
        for name in (f"{former}.notes", f"{former}.json"):
            if name in there:
                there[name].delete()
    return record


def _begin(
    connection: t.Any,
    boot: str,
    record: Record,
    items: t.Sequence[Item],
    kept: t.Mapping[str, str],
    notes: _Notes,
    journal: Journal,
) -> Record:
    staged = {}
    journal.note(record.op_id, {"boot": boot})
    for item in items:
        name, manifest = kept.get(item.path), Manifest(item.path, lambda dummy, sync: None, notes)
        if name is None or item.identity or not manifest.entries:
            continue
        volume = virt.found(lambda name=name: _volume(connection, name, record.op_id))  # type: ignore[misc]
        if volume is not None and manifest.same(0, manifest.end, files.stamp(volume.XMLDesc())):
            staged[item.path] = name
            seed = {"path": item.path, "start": 0, "end": manifest.end, "entries": manifest.entries, "stamp": None}
            journal.note(record.op_id, seed, True)
    return journal.save(dataclasses.replace(record, staged=staged)) if staged else record


def _volume(connection: t.Any, path: str, op: str) -> t.Any:
    folder, dummy, name = path.rpartition("/")
    with files.pool_at(connection, folder, op) as pool:
        return None if pool is None else pool.storageVolLookupByName(name)


def parse(text: bytes) -> _Notes:
    """Notes of a move, as the journal writes them."""
    return [json.loads(line) for line in text.decode().splitlines() if line]
