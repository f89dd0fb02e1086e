# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that is off moves: fence it, copy its files as they are, prove them, define it, hand it over, clean up.

A warm move is the same, after its disks were copied while the guest ran: then only what changed since is copied.

At no moment can it be started on both hosts: the source is fenced before the first byte is read, and the destination
is until the journal of the source says that it gave the guest up. Each step may be cut off anywhere and done again.
Which one is due is never decided here: judge.TABLE does, from what both hosts say.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import time
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from . import back, devices, files, flatten, policy
from .apply import Mover
from .copying import Copier, Item, items_of, same
from .definition import flattened, set_mark, starts_with_host, undefine_flags, write_mark
from .journal import Mark, Power, Record, op_id
from .judge import ALIVE
from .plan import pieces
from .read import SWTPM, View
from .read_guest import Guest
from .read_guest import guest as read_guest
from .transfer import ms

_POLL = 0.1

Mode = t.Literal["warm", "cold"]


class Cold:
    """The steps of a cold move.

    Args:
        mover: the steps that all moves have, and what they have seen.
    """

    def __init__(self, mover: Mover) -> None:
        self.mover, self.pair, self.order, self.told = mover, mover.pair, mover.order, mover.told
        self._stumbled = False
        self._stopping: float | None = None
        self._same: set[str] = set()  # files below disks that the destination has already
        self._boot = ""
        self._placed = self._overtaken = False

    @staticmethod
    def has(view: View) -> bool:
        """Whether the move that is under way is a cold one."""
        mark = view.source.mark or view.destination.mark
        if mark is not None and mark.op_id == view.op_id and mark.phase in ("copying", "arriving"):
            return True
        record = view.record
        return record is not None and record.by_files and record.phase in ("started", "committed", "handed")

    # -- rows 1 and 14 ------------------------------------------------------------------------

    def start(self, view: View, guest: Guest, mode: Mode) -> None:
        """Fence the guest, shut it down, copy it, and define it at the destination, which may not start it yet.

        What goes wrong is kept in the mover's ``failure``; when only the destination went away for a
        moment, a second try goes on from where it was.
        """
        began = time.monotonic()
        self.told.mode = mode
        domain = self.pair.source.connection.lookupByUUIDString(view.uuid)
        mark, record = self._open(view, mode, tuple(disk.path for disk in guest.shared))
        try:
            with virt.saying(f"Cannot copy {view.name} to {view.destination.host}"):
                if mode == "warm" and domain.isActive():
                    record = self._warm_up(view, domain, guest, mark, record)
            with virt.saying(f"Cannot prepare the guest {view.name} on {view.source.host}"):
                if mark != view.source.mark or mode == "warm":  # which has lifted the fence
                    write_mark(domain, mark)
                if domain.autostart():
                    domain.setAutostart(0)
            if domain.isActive():
                if mode == "cold":  # else it was looked before the disks were copied
                    with virt.saying(f"Cannot copy {view.name} to {view.destination.host}"):
                        whole = {disk.path: disk.path for disk in guest.disks if disk.flat}
                        self._missing(guest, list(items_of(guest, record.op_id, record.staged, whole)))
                self._stopping = time.monotonic()
                self.mover.progress.say("shutting down")
                self._shut_down(domain)
                guest = self._read(view)
            self.told.stats.setdefault("setup_ms", ms(time.monotonic() - began))
            with virt.saying(f"Cannot copy {view.name} to {view.destination.host}"):
                self._carry(view, domain, guest, mark, record)
        except PhyllomeError as exc:
            gone = self.pair.destination.gone
            if self._stumbled or not gone:
                self.mover.failure = exc
            self._stumbled = True

    def _read(self, view: View) -> Guest:
        order = self.order
        return read_guest(
            self.pair.source, view.uuid, sizes=True, shares=order.shares, cold=True, flatten=order.flatten
        )

    def _open(self, view: View, mode: Mode, shared: tuple[str, ...]) -> tuple[Mark, Record]:
        """The mark and the record of this move, new or as an earlier run has left them."""
        own = view.source.mark
        if own is not None and (own.op_id != view.op_id or own.phase not in ("moving", "copying")):
            own = None
        awake = view.source.state in ALIVE
        before: Power = "running" if awake else own.power if own else "off"
        record = view.record
        left = record.remains if record is not None else ()
        if record is not None and not (record.by_files and record.phase == "started"):
            if record.phase == "started":
                self.mover.sweep(record)
            record = None
        if record is None:
            record = Record(
                op_id=view.op_id,
                uuid=view.uuid,
                name=view.name,
                source=view.source.host,
                destination=view.destination.host,
                started=int(time.time()),
                mode=mode,
                ran=before != "off",
                left=left,
            )
        elif awake:
            record = dataclasses.replace(record, ran=True)
        mark = Mark(
            op_id=view.op_id,
            source=view.source.host,
            destination=view.destination.host,
            epoch=view.epoch,
            phase="copying",
            power=t.cast("Power", before if self.order.power_after == "same" else self.order.power_after),
            autostart=own.autostart if own else view.source.autostart,
            fenced=True,
            shared=shared,
        )
        return mark, self.pair.journal.save(record)

    def _shut_down(self, domain: t.Any) -> None:
        """Ask the guest's agent, then press its power button; never more, unless that was said."""
        lib = virt.libvirt
        timeout = self.order.shutdown_timeout
        with virt.saying(f"Cannot shut {domain.name()} down"):
            for way in (lib.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT, lib.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN):
                with contextlib.suppress(lib.libvirtError):  # it may have no agent, or have stopped meanwhile
                    domain.shutdownFlags(way)
                deadline = time.monotonic() + timeout / 2
                while domain.isActive() and time.monotonic() < deadline:
                    time.sleep(_POLL)
            if domain.isActive() and self.order.destroy:
                domain.destroy()
            if domain.isActive():
                raise PhyllomeError(
                    f"The guest {domain.name()} did not shut down within {timeout} s",
                    "it was asked by its agent and its power button, as far as it has them",
                    "Shut it down yourself, raise shutdown.timeout, or say shutdown.then: destroy to pull the plug.",
                )

    # -- copying ------------------------------------------------------------------------------

    def _warm_up(self, view: View, domain: t.Any, guest: Guest, mark: Mark, record: Record) -> Record:
        """Copy the disks of a guest that runs, until little of them changes meanwhile.

        It is not fenced for so long: if its host falls over, it starts as always.
        """
        began = time.monotonic()
        write_mark(domain, dataclasses.replace(mark, fenced=False))
        history: list[int] = []
        while domain.isActive() and not policy.enough(history):
            items, record = self._note_items(guest, record, mark.epoch, {})
            copier = Copier(self.mover, record, rests=False, boot=self._boot)
            copier.bring([item for item in items if not item.identity])
            history.append(copier.pace.sent)
            guest = self._read(view)
        self.told.stats.update(warm_ms=ms(time.monotonic() - began), rounds=len(history))
        return record

    def _note_items(
        self, guest: Guest, record: Record, epoch: int, flat: t.Mapping[str, str]
    ) -> tuple[list[Item], Record]:
        """The files that are to be copied, and the record with them."""
        there = self.pair.destination.connection
        self._boot = files.boot(there, record.op_id) or f"unknown to {os.getpid()} since {record.started}"
        items = self._missing(guest, list(items_of(guest, record.op_id, record.staged, flat)))
        if epoch:
            former = op_id(record.uuid, record.source, epoch - 1)
            record = back.take_over(there, former, self._boot, record, items, self.pair.journal)
            whole = items_of(guest, record.op_id, record.staged, flat)
            items = [item for item in whole if item.path not in self._same]
        staged = {item.path: item.staged for item in items}
        for path, name in record.staged.items():
            if path not in staged:  # the guest has it no more
                files.remove(there, name, record.op_id)
        allocated = {item.path: item.allocated for item in items}
        made = dataclasses.replace(record, pieces=pieces(guest), staged=staged, allocated=allocated)
        return items, self.pair.journal.save(made)

    def _carry(self, view: View, domain: t.Any, guest: Guest, mark: Mark, record: Record) -> None:
        record = self.pair.journal.save(dataclasses.replace(record, pieces=pieces(guest)))
        if self.order.flatten:
            self.mover.progress.say("flattening disks")
        flat = flatten.made(guest, record.op_id, self.order.timeout)
        items, record = self._note_items(guest, record, mark.epoch, flat)
        began = time.monotonic()
        digests, sent = Copier(self.mover, record, rests=True, boot=self._boot).bring(items)
        self.told.stats["migrate_ms"] = ms(time.monotonic() - began)
        record = self.pair.journal.save(dataclasses.replace(record, digests=digests, sent=sent))
        self._take_secrets(guest, record)
        self._define(domain, mark, record, [disk.target for disk in guest.disks if disk.path in flat])

    def _missing(self, guest: Guest, items: t.Sequence[Item]) -> list[Item]:
        """Those that are not at the destination yet. What is below a disk may be there already, if it is the same.

        Raises:
            PhyllomeError: another file has its place; nothing at the destination is overwritten.
            libvirt.libvirtError: the destination does not say.
        """
        connection, there = self.pair.destination.connection, self.pair.destination.name
        below = {layer.path for disk in guest.disks for layer in disk.backing}
        found, others = [], []
        for folder in sorted({os.path.dirname(item.path) for item in items}):
            with files.folder(connection, folder, self.mover.op) as names:
                for item in items:
                    where, name = os.path.split(item.path)
                    if where != folder or name not in names or item.path in self._same:
                        continue
                    if item.path not in below:
                        found.append(item.path)
                    elif same(item, connection, names[name]):
                        self._same.add(item.path)
                    else:
                        others.append(item.path)
        if found:
            raise PhyllomeError(
                f"{there} has {', '.join(found)} already",
                "this move did not make it, and moving the guest would overwrite it",
                "Look what it is; rename or delete it.",
            )
        if others:
            raise PhyllomeError(
                f"{there} has another {', '.join(others)}",
                "a disk of the guest stands on the one of this host",
                "Say chain: flatten, which leaves both as they are.",
            )
        return [item for item in items if item.path not in self._same]

    # -- the definition -----------------------------------------------------------------------

    def _take_secrets(self, guest: Guest, record: Record) -> None:
        """Bring what the disks are encrypted with.

        Raises:
            PhyllomeError: libvirt does not give it away, or the destination has another one of that uuid.
        """
        here, there = self.pair.source.connection, self.pair.destination.connection
        lib = virt.libvirt
        for uuid in guest.secrets:
            try:
                found = here.secretLookupByUUIDString(uuid)
                value = _value(found)
            except lib.libvirtError as exc:
                raise PhyllomeError(
                    f"The secret {uuid} of {guest.name} cannot be brought to {self.pair.destination.name}",
                    exc.get_error_message(),
                    "It needs a value that this host has on disk: virsh secret-dumpxml, virsh secret-set-value.",
                ) from exc
            known = virt.found(lambda uuid=uuid: there.secretLookupByUUIDString(uuid), lib.VIR_ERR_NO_SECRET)  # type: ignore[misc]
            if known is not None and uuid not in record.secrets:
                theirs = virt.found(known.value, lib.VIR_ERR_NO_SECRET, lib.VIR_ERR_INVALID_SECRET)  # private: not told
                same = (known.usageType(), known.usageID()) == (found.usageType(), found.usageID())
                if theirs not in (None, value) or not same:
                    raise PhyllomeError(
                        f"{self.pair.destination.name} has another secret {uuid}",
                        "its value differs" if same else f"it is for {known.usageID()}, not {found.usageID()}",
                        "Remove it there.",
                    )
            elif known is None:
                record = self.pair.journal.save(dataclasses.replace(record, secrets=(*record.secrets, uuid)))
                known = there.secretDefineXML(found.XMLDesc())
            known.setValue(value)

    def _define(self, domain: t.Any, mark: Mark, record: Record, flat: t.Container[str]) -> None:
        """Define the guest at the destination, which may not start it yet, with what libvirt knows of its snapshots."""
        lib = virt.libvirt
        root = xml.parse(
            domain.XMLDesc(lib.VIR_DOMAIN_XML_INACTIVE | lib.VIR_DOMAIN_XML_SECURE | lib.VIR_DOMAIN_XML_MIGRATABLE)
        )
        arriving = dataclasses.replace(mark, phase="arriving", files=record.staged)
        set_mark(root, arriving)
        flattened(root, flat)
        devices.exchange(root, self.order.hostdevs)
        copy = self.pair.destination.connection.defineXML(xml.dump(root))
        for snapshot in domain.listAllSnapshots(lib.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL):
            flags = lib.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
            if snapshot.isCurrent():
                flags |= lib.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
            told = xml.parse(snapshot.getXMLDesc(lib.VIR_DOMAIN_SNAPSHOT_XML_SECURE))
            for former in (*told.findall("domain"), *told.findall("inactiveDomain")):
                devices.exchange(former, self.order.hostdevs)  # who goes back to it has this host's, too
            copy.snapshotCreateXML(xml.dump(told), flags)
        for checkpoint in domain.listAllCheckpoints(lib.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL):
            copy.checkpointCreateXML(
                checkpoint.getXMLDesc(lib.VIR_DOMAIN_CHECKPOINT_XML_SECURE), lib.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
            )

    # -- row 15 -------------------------------------------------------------------------------

    def hand_over(self, view: View) -> None:
        """Give the files at the destination their names, and remember that the source has given the guest up.

        Raises:
            PhyllomeError: not all is in its place; nothing was given up then.
        """
        there = view.destination
        if self._incomplete(view):
            self.discard(view)
            return
        try:
            place(self.pair.destination.connection.lookupByUUIDString(view.uuid), view.op_id, there.host)
        except PhyllomeError as exc:
            if self._overtaken or " is there already" not in exc.why:
                raise
            # another guest's move has brought it meanwhile, if it is below a disk: then it is used
            self._overtaken = True
            self.discard(view)
            return
        self._placed = True
        self.mover.commit(view, sync=True)

    def _incomplete(self, view: View) -> bool:
        """Whether a run was cut off between the definition and its snapshots."""
        here = self.pair.source.connection.lookupByUUIDString(view.uuid)
        copy = self.pair.destination.connection.lookupByUUIDString(view.uuid)
        return bool(
            here.snapshotNum() != copy.snapshotNum() or len(here.listAllCheckpoints()) != len(copy.listAllCheckpoints())
        )

    def finish(self, view: View) -> None:
        """Let the destination have the guest, start it if it shall run, and clean up the source.

        Raises:
            PhyllomeError: libvirt refuses; the next run goes on here.
        """
        self.mover.progress.say("finishing")
        there = self.pair.destination
        dead = view.source.state == "unreachable"
        self.told.mode = view.record.mode if view.record is not None else "cold"
        mark = view.destination.mark
        with virt.saying(f"Cannot finish the move of {view.name} on {there.name}"):
            domain = there.connection.lookupByUUIDString(view.uuid)
            if mark is not None and mark.phase == "arriving":
                if view.destination.state == "off" and not self._placed:  # by this run, which would only wait again
                    place(domain, view.op_id, there.name)
                if mark.autostart:
                    domain.setAutostart(1)
                write_mark(
                    domain, dataclasses.replace(mark, phase="done", epoch=mark.epoch + 1, fenced=False, files={})
                )
            record = None if dead else self.pair.journal.load(view.op_id)
            if record is not None and record.phase == "started":
                record = self.mover.commit(view, sync=True)
        arriving = mark is not None and mark.phase == "arriving"
        if mark is not None and (arriving if record is None else record.phase == "committed"):
            if mark.power != "off" and not domain.isActive():
                with virt.saying(
                    f"The guest {view.name} is on {there.name}, complete, and cannot be started there",
                    "Remove the cause and run again; or take it back with state: rolled_back.",
                ):
                    self._start(domain, mark.power)
                if self._stopping is not None:
                    self.told.stats["downtime_ms"] = ms(time.monotonic() - self._stopping)
            if record is not None:
                record = self.pair.journal.save(dataclasses.replace(record, phase="handed"))
        with virt.saying(f"Cannot finish the move of {view.name} on {there.name}"):
            self.told.identity["autostart"] = starts_with_host(domain)
            self.told.identity["metadata"] = True
            if record is not None:
                self._report(record)
        if record is not None:
            flatten.drop(record.pieces, record.op_id)
            self.mover.put_away(view, record)

    def _start(self, domain: t.Any, power: str) -> None:
        domain.createWithFlags(virt.libvirt.VIR_DOMAIN_START_PAUSED if power == "paused" else 0)

    def _report(self, record: Record) -> None:
        """What arrived, for the result."""
        connection = self.pair.destination.connection
        targets = {path: name for name, path in record.pieces.items()}
        self.told.disks.clear()
        self.told.stats["transferred"] = sum(record.sent.values())
        for path, before in record.allocated.items():
            digest, name = record.digests.get(path), targets.get(path, "")
            if path.startswith(f"{SWTPM}/") or name == "nvram":
                kind = "nvram" if name == "nvram" else "tpm"
                self.told.identity[kind] = {"file": path, "source": digest, "destination": digest, "same": True}
                continue
            if path.startswith(f"{files.SNAPSHOTS}/"):
                kept = self.told.identity.setdefault("snapshots", {"folder": record.pieces["snapshots"], "files": {}})
                kept["files"][os.path.relpath(path, kept["folder"])] = digest
                continue
            with files.folder(
                connection, os.path.dirname(path), self.mover.op
            ) as volumes:  # which has just got its name
                volume = volumes.get(os.path.basename(path))
                dummy, virtual, after = volume.info() if volume is not None else (None, None, None)
            self.told.disks.append(
                {
                    "target": name.split(".")[1] if name else None,
                    "path": path,
                    "virtual": virtual,
                    "allocated_before": before,
                    "allocated_after": after,
                    "bytes_sent": record.sent.get(path),
                    "digest": digest,
                    "verified": self.order.verify if digest else "none",
                }
            )

    # -- back ---------------------------------------------------------------------------------

    def discard(self, view: View) -> None:
        """Remove what is at the destination, which never ran: only what carries the op_id, or is of its guest.

        Raises:
            PhyllomeError: libvirt refuses.
        """
        there = self.pair.destination
        with virt.saying(f"Cannot remove the copy of {view.name} from {there.name}"):
            connection = there.connection
            mark = view.destination.mark
            domain = virt.found(lambda: connection.lookupByUUIDString(view.uuid))
            if domain is not None and mark is not None and mark.op_id == view.op_id and mark.phase == "arriving":
                for path, staged in mark.files.items():
                    self._remove_copy(connection, path, staged)
                kept = os.path.join(files.SNAPSHOTS, view.uuid)
                if any(path.startswith(f"{kept}/") for path in mark.files):
                    files.remove(connection, kept, self.mover.op)
                domain.undefineFlags(undefine_flags())
            elif domain is None and view.record is not None:
                for staged in view.record.staged.values():
                    files.remove(connection, staged, view.op_id)
            for uuid in view.record.secrets if view.record is not None else ():
                _forget_secret(connection, uuid)
        if view.record is not None:
            flatten.drop(view.record.pieces, view.op_id)
            self.pair.journal.forget_notes(view.op_id)

    def _remove_copy(self, connection: t.Any, path: str, staged: str) -> None:
        """Remove a file that lies where it was staged, or else where it was placed."""
        folder, name = os.path.split(staged)
        with files.folder(connection, folder, self.mover.op) as volumes:
            if name in volumes:
                volumes[name].delete()
                return
        files.remove(connection, path, self.mover.op)

    def roll_back(self, view: View) -> None:
        """Leave both hosts as they were before a move that did not come about.

        Raises:
            PhyllomeError: not everything could be undone; the journal keeps the rest for the next run.
        """
        self.discard(view)
        mark = view.source.mark
        if mark is None or mark.op_id != view.op_id:
            return
        with virt.saying(f"Cannot restore {view.name} on {view.source.host}"):
            domain = self.pair.source.connection.lookupByUUIDString(view.uuid)
            if mark.autostart:
                domain.setAutostart(1)
            write_mark(domain, mark.undone())
            if view.record is not None and view.record.ran and not domain.isActive():
                domain.create()
        self.pair.journal.give_up(view.record)


_SECRETS = "/etc/libvirt/secrets"


def _value(secret: t.Any) -> bytes:
    """The value of a secret; of a private one, which libvirt does not tell, as root finds it (virSecretObjSaveData).

    Raises:
        libvirt.libvirtError: it has none, or it is not on disk.
    """
    try:
        return bytes(secret.value())
    except virt.libvirt.libvirtError:
        try:
            with open(os.path.join(_SECRETS, f"{secret.UUIDString()}.base64"), "rb") as file:
                return base64.b64decode(file.read(), validate=True)
        except (OSError, ValueError):
            pass
        raise


def _forget_secret(connection: t.Any, uuid: str) -> None:
    missing = virt.libvirt.VIR_ERR_NO_SECRET
    secret = virt.found(lambda: connection.secretLookupByUUIDString(uuid), missing)
    if secret is not None:
        secret.undefine()


def place(domain: t.Any, op: str, host: str) -> None:
    """Have the hook at the destination give the files their names: a start that it has to refuse.

    Raises:
        PhyllomeError: it is not there, or something is in the way.
    """
    lib = virt.libvirt
    try:
        domain.createWithFlags(lib.VIR_DOMAIN_START_PAUSED)
    except lib.libvirtError as exc:
        said = exc.get_error_message()
        if f"placed {op}" in said:
            return
        raise PhyllomeError(
            f"The files of {domain.name()} cannot be given their names on {host}",
            said,
            "The hook /etc/libvirt/hooks/qemu.d/phyllome-fence does that; the role phyllome.virt.hypervisor installs it.",
        ) from exc
    domain.destroy()
    raise PhyllomeError(
        f"libvirt on {host} does not ask before it starts a guest",
        "without the hook phyllome-fence a guest could be started on both hosts",
        "Run the role phyllome.virt.hypervisor there.",
    )
