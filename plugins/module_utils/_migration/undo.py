# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""After a move, or in the middle of one: take it back, or give up the chance to.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from . import files
from .apply import Mover
from .cold import Cold, place
from .definition import set_mark, undefine_flags, write_mark
from .journal import Mark, Record
from .judge import ALIVE, Row
from .plan import retained
from .read import TPM_STATES, View
from .read_guest import Guest, needed_there
from .read_guest import guest as read_guest

_LEFT = {"destroy_source", "finish", "none", "recover"}
"""Actions of rows in which the source has given the guest up."""


def plan(state: str, view: View, row: Row, records: t.Sequence[Record]) -> Plan:
    """What it takes. Pure.

    Args:
        state: ``rolled_back``, ``committed`` or ``cleaned``.
        view: both hosts.
        row: what their state means.
        records: what the source remembers of moves of this guest.

    Raises:
        PhyllomeError: it would lose something.
    """
    if state == "rolled_back":
        return _plan_back(view, row)
    here, there = view.source.host, view.destination.host
    if state == "committed" and row.action != "none":
        raise PhyllomeError(
            f"The move of {view.name} to {there} cannot be committed",
            f"it is not finished: {row.meaning}",
            "Finish it with state: migrated, or take it back with state: rolled_back.",
        )
    if state == "cleaned" and not settled(view, row):
        raise PhyllomeError(
            f"What moves of {view.name} have left cannot be removed",
            f"one is not finished: {row.meaning}",
            "Finish it with state: migrated, or take it back with state: rolled_back.",
        )
    chosen = [one for one in records if state == "cleaned" or one.op_id == view.op_id]
    return Plan(
        tuple(
            Change("purge", f"{here}.retained", name, None, why=f"of the move to {record.destination}")
            for record in chosen
            for name in record.retained.values()
        )
        + tuple(
            Change(
                "purge", f"{record.destination}.retained", name, None, why="of a copy that was taken back from there"
            )
            for record in chosen
            if record.destination == there
            for name in record.left
        )
        + tuple(
            Change("forget", f"{here}.journal", record.op_id, None)
            for record in chosen
            if not record.retained or record.phase in ("started", "returned")
        )
    )


def settled(view: View, row: Row) -> bool:
    """Whether no move of the guest is under way."""
    return row.action == "none" or (row.action == "start" and view.mark == "none")


def _plan_back(view: View, row: Row) -> Plan:
    here, there = view.source.host, view.destination.host
    if settled(view, row) and row.action == "start":
        return Plan()
    if row.action in {*_LEFT, "take_back"} and view.mark != "arriving":
        if view.record is None or view.record.phase != "done" or not view.record.definition:
            raise PhyllomeError(
                f"The move of {view.name} cannot be taken back",
                f"{here} has no retained copy of it" if view.record is None else f"it is not finished: {row.meaning}",
                f"Finish it with state: migrated; then move it from {there} to {here}.",
            )
        names = {path: name for name, path in view.record.pieces.items()}
        if view.destination.state != "off":
            raise PhyllomeError(
                f"The move of {view.name} is not taken back while it is {view.destination.detail} on {there}",
                f"{here} would go on with what it had before the move, and all that was written since would be missing",
                f"Shut it down on {there} first; or move it back, which keeps what was written.",
            )
        return Plan(
            (
                Change("move", "host", there, here, why="the move is taken back; what was written since stays behind"),
                *(
                    Change("put_back", f"{here}.{names.get(path, 'seed')}", name, path)
                    for path, name in view.record.retained.items()
                ),
            )
        )
    if row.action in _LEFT and view.destination.state != "off":
        raise PhyllomeError(
            f"The move of {view.name} cannot be taken back", row.meaning, "Finish it with state: migrated."
        )
    return Plan((Change("roll_back", f"{here}.move", view.op_id, None, why=row.meaning),))


class Undo:
    """The steps back.

    Args:
        mover: the steps that all moves have.
        cold: those of a cold one.
    """

    def __init__(self, mover: Mover, cold: Cold) -> None:
        self.mover, self.cold, self.pair = mover, cold, mover.pair

    def step(self, view: View, row: Row) -> None:
        """One step back from what both hosts say.

        Raises:
            PhyllomeError: libvirt refuses; the next run goes on here.
        """
        steps = self.cold if Cold.has(view) else self.mover
        if row.action == "wait":
            with virt.saying(f"Cannot abort the migration of {view.name}"):
                if view.source.job == "outgoing":
                    self.pair.source.connection.lookupByUUIDString(view.uuid).abortJob()
            time.sleep(0.5)
        elif row.action == "start":
            steps.roll_back(view)
        elif row.action == "discard":
            steps.discard(view)
        elif row.action == "resume_source":
            self.mover.resume_source(view)
        elif view.mark == "arriving":
            if view.record is not None and view.committed:  # the destination is fenced and has never run it
                self.pair.journal.save(dataclasses.replace(view.record, phase="started"))
            self.cold.roll_back(view)
        else:
            self.take_back(view)

    def refuse_clones(self, view: View, mark: Mark) -> Guest:
        """The guest as the destination has it, of whose disks nobody there has one.

        Raises:
            PhyllomeError: another guest has one, or stands on it, and would lose it.
        """
        there = self.pair.destination
        with virt.saying(f"Cannot take {view.name} back from {there.name}"):
            guest = read_guest(there, view.uuid, sizes=False, shares=lambda disk: disk.path in mark.shared)
            needed = needed_there(there.connection, view.uuid, mark.op_id)
        taken = {disk.path: needed[disk.path] for disk in guest.disks if disk.path in needed}
        if taken:
            raise PhyllomeError(
                f"{view.name} cannot be taken back from {there.name}",
                "; ".join(
                    f"there the guest {name} has {path} as well, or stands on it" for path, name in taken.items()
                ),
                f"Move {', '.join(sorted(set(taken.values())))} away first, with chain: flatten, or remove it; or keep "
                f"{view.name} on {there.name}.",
            )
        return guest

    def take_back(self, view: View) -> None:
        """Give the retained files their names again and define the guest; the destination keeps its own under such names.

        The destination is fenced first; its definition goes last, as it says what is under way.
        """
        here, there, record = self.pair.source, self.pair.destination, view.record
        mark = view.destination.mark
        if record is None or mark is None:
            raise PhyllomeError(
                f"Taking {view.name} back cannot be finished",
                f"the journal of {here.name} says nothing about it",
                f"Look which host has the right one, and undefine the other. On {there.name} its files have names "
                "that end in .phyllome-retained- and the op_id.",
            )
        with virt.saying(f"Cannot take {view.name} back from {there.name}"):
            domain = there.connection.lookupByUUIDString(view.uuid)
            if mark.phase == "done":
                mark = self._leaving(mark, self.refuse_clones(view, mark))
                write_mark(domain, mark)
                domain.setAutostart(0)
            place(domain, view.op_id, there.name)
            if view.source.state == "absent":
                for path, name in record.retained.items():
                    if os.path.lexists(name) and not os.path.lexists(path):
                        os.rename(name, path)
                root = xml.parse(record.definition)
                set_mark(root, mark.returned())
                again = here.connection.defineXML(xml.dump(root))
            else:
                again = here.connection.lookupByUUIDString(view.uuid)
                write_mark(again, mark.returned())
            known = {one.getName() for one in again.listAllSnapshots()}
            for text in record.snapshots:
                if xml.parse(text).findtext("name") not in known:
                    again.snapshotCreateXML(text, virt.libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
            if mark.autostart:
                again.setAutostart(1)
            # what stays at the destination, so that it can be cleaned up
            record = self.pair.journal.save(
                dataclasses.replace(record, staged={one: name for name, one in mark.files.items()})
            )
            domain.undefineFlags(undefine_flags())
        self.pair.journal.save(dataclasses.replace(record, phase="returned", retained={}))
        self.pair.journal.forget_notes(record.op_id)  # the destination has nothing under the names that they tell of

    def suspend_both(self, view: View) -> None:
        """Have neither of two guests go on until somebody says which one it is."""
        if view.mark == "moving":  # else the paused copy looked as if it had never run
            self.mover.commit(view, sync=True)
        for side in (self.pair.source, self.pair.destination):
            with virt.saying(f"Cannot suspend {view.name} on {side.name}"):
                domain = side.connection.lookupByUUIDString(view.uuid)
                if domain.state()[0] == virt.libvirt.VIR_DOMAIN_RUNNING:
                    domain.suspend()

    def decide(self, view: View) -> None:
        """Do what a person has said about which copy is the guest; the next look goes on from there."""
        if view.destination.state == "absent":
            self._take_up(view)
        elif view.source.state in ALIVE:
            self._stop(view)
        else:
            self._start_anew(view)

    def _take_up(self, view: View) -> None:
        """Have the source go on with a guest that it had given up; what may lie at the destination is nobody's."""
        with virt.saying(f"Cannot resume {view.name} on {self.pair.source.name}"):
            domain = self.pair.source.connection.lookupByUUIDString(view.uuid)
            power = view.source.mark.power if view.source.mark else ""
            if power == "running" and domain.state()[0] == virt.libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
        if view.record is not None:
            self.pair.journal.save(dataclasses.replace(view.record, phase="started", pieces={}))

    def _start_anew(self, view: View) -> None:
        """Have the destination start a guest whose memory is lost from its disks there; only then does the source let go."""
        here, there, gone = self.pair.source, self.pair.destination, view.source.state in ("absent", "unreachable")
        if not gone:
            record = self.mover.commit(view, sync=True)
            self.pair.journal.save(dataclasses.replace(record, ran=True))
        with virt.saying(f"Cannot start {view.name} anew on {there.name}"):
            domain = there.connection.lookupByUUIDString(view.uuid)
            if view.destination.state in ("postcopy", "broken"):
                domain.destroy()
            if view.destination.mark is not None and view.destination.mark.power == "running" and not domain.isActive():
                domain.create()
        with virt.saying(f"Cannot stop {view.name} on {here.name}"):
            if not gone and here.connection.lookupByUUIDString(view.uuid).isActive():
                here.connection.lookupByUUIDString(view.uuid).destroy()

    def _stop(self, view: View) -> None:
        """Stop the copy that is not the truth, for good; what it has written is kept.

        It is marked before it is suspended, so that it never looks like a copy that has not run, and suspended before
        the other one is woken.
        """
        lib, mark, own = virt.libvirt, view.destination.mark, view.source.mark
        if mark is None or own is None:  # judge.words has seen both
            return
        back = self.pair.order.truth == "source"
        wins, loses = (self.pair.source, self.pair.destination) if back else (self.pair.destination, self.pair.source)
        with virt.saying(f"Cannot stop {view.name} on {loses.name}"):
            lost, kept = (side.connection.lookupByUUIDString(view.uuid) for side in (loses, wins))
            if back:
                self._give_up(view, lost, mark)
            else:
                write_mark(lost, dataclasses.replace(own, fenced=True))
                if mark.phase == "returning":  # it stays
                    write_mark(
                        kept, dataclasses.replace(mark, phase="done", epoch=mark.epoch + 1, fenced=False, files={})
                    )
                    kept.setAutostart(int(mark.autostart))
            lost.setAutostart(0)
            if lost.state()[0] == lib.VIR_DOMAIN_RUNNING:
                lost.suspend()
            if mark.power == "running" and kept.state()[0] == lib.VIR_DOMAIN_PAUSED:
                with contextlib.suppress(lib.libvirtError):  # it stays as it is then, which loses nothing
                    kept.resume()
            if lost.isActive():
                lost.destroy()

    def _give_up(self, view: View, lost: t.Any, mark: Mark) -> None:
        """Have the destination's copy taken back from there as soon as it is off."""
        if mark.phase != "returning":
            write_mark(lost, self._leaving(mark, self.refuse_clones(view, mark)))
        record = view.record or Record(view.op_id, view.uuid, view.name, view.source.host, view.destination.host)
        self.pair.journal.save(dataclasses.replace(record, phase="done"))

    def _leaving(self, mark: Mark, guest: Guest) -> Mark:
        own = [disk.path for disk in guest.disks] + ([guest.nvram] if guest.nvram else [])
        connection = self.pair.destination.connection
        if guest.tpm:
            with files.folder(connection, guest.tpm, mark.op_id) as names:
                own += [os.path.join(guest.tpm, name) for name in TPM_STATES if name in names]
        kept = os.path.join(files.SNAPSHOTS, guest.uuid)
        with files.folder(connection, kept, mark.op_id) as names:
            own += [kept] if names else []
        for path in guest.seeds:
            with files.folder(connection, os.path.dirname(path), mark.op_id) as names:
                own += [path] if os.path.basename(path) in names else []
        moved = {retained(path, mark.op_id): path for path in own}
        for name in moved:  # of the last time that the same move was taken back
            files.remove(connection, name, mark.op_id)
        return dataclasses.replace(
            mark, phase="returning", epoch=mark.epoch - (mark.phase == "done"), fenced=True, files=moved
        )

    def purge(self, chosen: t.Sequence[Record]) -> None:
        """Delete retained copies, and forget the moves."""
        for record in chosen:
            for path, name in record.retained.items():
                if name == retained(path, record.op_id):  # only what carries the op_id
                    files.delete(name)
            theirs = record.phase == "returned" or (record.phase == "started" and record.by_files)
            if (theirs or record.left) and record.destination == self.pair.destination.name:
                with virt.saying(f"Cannot remove what a move has left on {record.destination}"):
                    for staged in (*(record.staged.values() if theirs else ()), *record.left):
                        files.remove(self.pair.destination.connection, staged, record.op_id)
            self.pair.journal.remove(record.op_id)
