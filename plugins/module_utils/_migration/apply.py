# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a move. Each one may be cut off anywhere and done again.

Which one is due is never decided here: judge.TABLE does, from what both hosts say.

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
from . import files, postcopy
from .definition import definition, paths, starts_with_host, undefine_flags, unfenced, write_mark
from .journal import Mark, Power, Record
from .judge import ALIVE
from .plan import grown, pieces, retained
from .process import Qemu
from .progress import Progress
from .read import SWTPM, TPM_STATES, Pair, View
from .read_guest import Guest, parse_guest
from .read_guest import guest as read_guest
from .read_way import address
from .transfer import POLL, Handover, Job, Monitor, ms, settle, too_slow
from .tunnel import sockets, through

_HELD = (
    "libvirt 9.0 goes on holding the job of a post-copy migration whose QEMU died: restart it there (systemctl restart libvirtd, or "
    "virtqemud), which leaves guests running, and run again. The guest is at the destination already."
)


@dataclasses.dataclass
class Told:
    """What the steps have seen, for the result."""

    mode: str | None = None
    identity: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    disks: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    stats: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    leftovers: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


class Mover:
    """The steps, and what they have seen.

    Args:
        pair: both hosts, and the journal.
        progress: where to tell how far it is.
    """

    def __init__(self, pair: Pair, progress: Progress) -> None:
        self.pair = pair
        self.progress = progress
        self.order = pair.order
        self.told = Told()
        self.failure: PhyllomeError | None = None
        self.op = ""
        self.switching = False  # the guest stands still, and each question to its QEMU would make that longer

    def compare_clocks(self, volume: t.Any) -> None:
        """Warn when the clock of the destination, where a file was just made, is not that of this host."""
        ahead = files.skew(volume.XMLDesc(), time.time_ns())
        here, there = self.pair.source.name, self.pair.destination.name
        if ahead is not None and not self.told.warnings:
            self.told.warnings.append(
                f"The clock of {there} is {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} the one of {here}: certificates "
                "and guests go by it. Do both follow the same time servers (chronyc tracking)?"
            )

    # -- rows 1 and 11 ------------------------------------------------------------------------

    def start(self, view: View, guest: Guest) -> None:
        """Mark the guest, make its disks at the destination, and let the source's libvirt migrate it.

        What goes wrong in the migration itself is kept in ``failure``: whether it really went
        wrong is for both hosts to say.
        """
        began = time.monotonic()
        self.told.mode = "live"
        domain = self.pair.source.connection.lookupByUUIDString(view.uuid)
        if view.record is not None and view.record.phase == "started":
            self.sweep(view.record)
        own = view.source.mark if view.mark == "moving" else None
        asleep = view.source.state == "paused" and not self._wake(view)
        awake: Power = "paused" if asleep else "running"
        mark = Mark(
            op_id=view.op_id,
            source=view.source.host,
            destination=view.destination.host,
            epoch=view.epoch,
            phase="moving",
            power="running" if self.order.power_after == "running" else awake,
            autostart=own.autostart if own else view.source.autostart,
            fenced=True,
            shared=tuple(disk.path for disk in guest.shared),
        )
        with virt.saying(f"Cannot prepare the guest {view.name} on {view.source.host}"):
            write_mark(domain, mark)
            if view.source.autostart:
                domain.setAutostart(0)
        try:
            self._refuse_strangers(guest)
            self.pair.journal.save(
                Record(
                    op_id=view.op_id,
                    uuid=view.uuid,
                    name=view.name,
                    source=view.source.host,
                    destination=view.destination.host,
                    pieces=pieces(guest),
                    allocated={disk.target: disk.taken for disk in guest.disks},
                    most={disk.target: disk.whole for disk in guest.disks},
                    started=int(time.time()),
                    left=view.record.remains if view.record is not None else (),
                )
            )
            with virt.saying(f"Cannot make the disks of {view.name} on {view.destination.host}"):
                for disk in guest.disks:
                    self.compare_clocks(files.create(self.pair.destination.connection, disk))
            self.told.stats["setup_ms"] = ms(time.monotonic() - began)
            self.migrate(view, domain, guest, mark.power == "running")
        except PhyllomeError as exc:
            self.failure = exc

    def _wake(self, view: View) -> bool:
        """Let a guest go on that a try of this move had suspended for its end; whether there was one."""
        if not self.progress.suspended(view.uuid, view.op_id):
            return False
        if view.source.state == "paused":
            with virt.saying(f"Cannot resume {view.name} on {view.source.host}"):
                self.pair.source.connection.lookupByUUIDString(view.uuid).resume()
        self.progress.unsuspend(view.uuid)
        return True

    def _refuse_strangers(self, guest: Guest) -> None:
        """Nothing at the destination is overwritten: libvirt itself would, without a word."""
        there = self.pair.destination
        connection = there.connection
        with virt.saying(f"Cannot look at the storage of {there.name}"):
            found = []
            for folder in sorted({os.path.dirname(disk.path) for disk in guest.disks}):
                pool = connection.storagePoolLookupByTargetPath(folder)
                files.refresh(pool)
                names = set(pool.listVolumes())
                found += [
                    disk.path
                    for disk in guest.disks
                    if os.path.dirname(disk.path) == folder and os.path.basename(disk.path) in names
                ]
            states = [os.path.join(guest.tpm, name) for name in TPM_STATES] if guest.tpm else []
            for path in [*([guest.nvram] if guest.nvram else []), *states]:
                with files.folder(connection, os.path.dirname(path), self.op) as names_there:
                    if os.path.basename(path) in names_there:
                        found.append(path)
        if found:
            raise PhyllomeError(
                f"{there.name} has {', '.join(found)} already",
                "this move did not make it, and moving the guest would overwrite it",
                "Look what it is; rename or delete it.",
            )

    def migrate(self, view: View, domain: t.Any, guest: Guest, running: bool, resume: bool = False) -> None:
        """Have the source's libvirt migrate it.

        Args:
            view: both hosts.
            domain: the guest at the source.
            guest: what it is made of.
            running: whether its CPUs run, or shall at the destination.
            resume: go on with a post-copy migration that was cut off.

        Raises:
            PhyllomeError: what libvirt says, or that it took too long.
        """
        lib, order = virt.libvirt, self.order
        flags = (
            lib.VIR_MIGRATE_LIVE
            | lib.VIR_MIGRATE_PEER2PEER
            | lib.VIR_MIGRATE_PERSIST_DEST
            | lib.VIR_MIGRATE_ABORT_ON_ERROR
        )
        native = resume or (running and order.policy.on_stall == "post_copy")
        flags |= lib.VIR_MIGRATE_POSTCOPY if native else lib.VIR_MIGRATE_PAUSED  # libvirt: not both
        if resume:
            flags |= lib.VIR_MIGRATE_POSTCOPY_RESUME
        if guest.shared:  # which read_shared has proved; libvirt goes by the kind of the file system
            flags |= lib.VIR_MIGRATE_UNSAFE
        flat = [disk.target for disk in guest.disks if disk.flat]
        params: dict[str, t.Any] = {lib.VIR_MIGRATE_PARAM_PERSIST_XML: unfenced(domain, flat)}
        paths = sockets(view.op_id)
        if order.ssh:
            params[lib.VIR_MIGRATE_PARAM_URI] = f"unix://{paths.memory}"
            params[lib.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{paths.disks}"
        else:
            flags |= lib.VIR_MIGRATE_TLS
            where = address(order)
            params[lib.VIR_MIGRATE_PARAM_URI] = f"tcp://[{where}]" if ":" in where else f"tcp://{where}"
            params[lib.VIR_MIGRATE_PARAM_LISTEN_ADDRESS] = where
            # libvirt before 10.3 has disks ask for a certificate of nobody when QEMU itself connects (PARALLEL), unless it is told
            params[lib.VIR_MIGRATE_PARAM_TLS_DESTINATION] = order.host
        if guest.disks:
            flags |= lib.VIR_MIGRATE_NON_SHARED_DISK
            params[lib.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = [disk.target for disk in guest.disks]
        if order.policy.auto_converge:
            flags |= lib.VIR_MIGRATE_AUTO_CONVERGE
        if order.parallel:
            flags |= lib.VIR_MIGRATE_PARALLEL
            params[lib.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = order.parallel
        if order.bandwidth_mib:
            params[lib.VIR_MIGRATE_PARAM_BANDWIDTH] = order.bandwidth_mib
            if native:
                params[lib.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = order.bandwidth_mib
        job = Job(domain, order.destination_uri, params, flags)
        with contextlib.ExitStack() as stack:
            if order.ssh:
                qemu = Qemu(view.name, view.uuid)
                stack.callback(qemu.close)
                stack.enter_context(through(order.destination_uri, paths, qemu.owner()))
            if running and not native:
                stack.callback(Handover(self, view, domain).end)
            job.run(order.timeout, Monitor(self, view, domain, running and not resume))
        self.told.stats["migrate_ms"] = ms(job.seconds)

    def commit(self, view: View, sync: bool) -> Record:
        """Remember that the source has given the guest up: from now on it never goes back.

        Args:
            view: both hosts.
            sync: whether the record has to survive a power cut before the next step.
        """
        record = view.record or Record(view.op_id, view.uuid, view.name, view.source.host, view.destination.host)
        return self.pair.journal.save(dataclasses.replace(record, phase="committed"), sync)

    # -- row 3 --------------------------------------------------------------------------------

    def wait(self, view: View) -> None:
        """Attach to what is under way until it is not any more.

        Raises:
            PhyllomeError: it does not end in time.
        """
        handover = None
        ours = view.mark == "moving" and view.source.mark is not None
        if ours and view.source.state == "postcopy" and not view.committed:
            self.commit(view, sync=True)
        power = view.source.mark.power if view.source.mark else ""
        if ours and power == "running":
            domain = self.pair.source.connection.lookupByUUIDString(view.uuid)
            handover = Handover(self, view, domain)
        try:
            self._attend(view, Monitor(self, view, None, ours and power == "running"))
        finally:
            if handover is not None:
                handover.end()

    def _attend(self, view: View, monitor: Monitor) -> None:
        deadline = time.monotonic() + (self.order.timeout or float("inf"))
        patience = settle()
        settled = time.monotonic() + patience
        aborted = False
        before = (view.source.state, view.destination.state, view.source.job)
        while before == (view.source.state, view.destination.state, view.source.job):
            now = time.monotonic()
            if view.source.job == "outgoing":
                settled = now + patience
            if monitor.stuck:
                monitor.give_up()
            if now > settled:
                mark = view.destination.mark
                if view.source.state in ALIVE and not view.committed and mark and mark.op_id == view.op_id:
                    self.discard(view)  # a libvirt that waits for a QEMU which hangs will never do it
                    return
                if view.destination.state in ("postcopy", "broken"):
                    raise postcopy.lost(view)
                raise PhyllomeError(
                    f"The migration of {view.name} has ended, but {view.destination.host} still waits for it",
                    f"it is {view.destination.detail} there after {patience:.0f} s",
                    f"Look what it is, and destroy it there: virsh destroy {view.name}. "
                    f"On {view.source.host} the guest is {view.source.detail}.",
                )
            if now > deadline and view.source.job == "outgoing" and view.source.state != "postcopy":
                if aborted:
                    raise too_slow(view.name, self.order.timeout, "and it does not let itself be aborted")
                if view.mark == "moving" or (view.source.mark and view.source.mark.op_id == view.op_id):
                    with contextlib.suppress(virt.libvirt.libvirtError):
                        self.pair.source.connection.lookupByUUIDString(view.uuid).abortJob()
                    self.failure = too_slow(view.name, self.order.timeout, "it was aborted")
                aborted, deadline = True, now + patience
            if view.source.job == "outgoing":
                monitor.look()
            time.sleep(POLL)
            view = self.pair.view()

    # -- row 4 --------------------------------------------------------------------------------

    def discard(self, view: View) -> None:
        """Remove the destination's copy, which never ran, with its files.

        Raises:
            PhyllomeError: libvirt refuses.
        """
        with virt.saying(f"Cannot remove the copy of {view.name} on {view.destination.host}"):
            domain = self.pair.destination.connection.lookupByUUIDString(view.uuid)
            defined = domain.isPersistent()
            if domain.isActive():
                domain.destroy()
            if defined:
                domain.undefineFlags(undefine_flags())
        if view.record is not None and view.record.phase == "started":
            self.sweep(view.record)

    # -- rows 8 and 9 -------------------------------------------------------------------------

    def destroy_source(self, view: View) -> None:
        """Stop the source's copy: the destination runs, and this one will never run again."""
        with virt.saying(f"Cannot stop {view.name} on {view.source.host}"):
            self.pair.source.connection.lookupByUUIDString(view.uuid).destroy()

    def resume_source(self, view: View) -> None:
        """Let the guest go on at the source, which is the truth as long as it is there."""
        with virt.saying(f"Cannot resume {view.name} on {view.source.host}"):
            domain = self.pair.source.connection.lookupByUUIDString(view.uuid)
            power = view.source.mark.power if view.source.mark else "running"
            if power == "off":  # it must not run even for a moment
                domain.destroy()
                return
            domain.resume()
            if power == "paused":
                domain.suspend()

    # -- rows 6 and 7 -------------------------------------------------------------------------

    def finish(self, view: View) -> None:
        """Give the guest to the destination: resume, compare, autostart, clean up the source.

        The order is what makes it safe: the record says ``committed`` before the guest is resumed,
        the source's files get other names before its definition goes, and its definition, which
        bears the mark, goes last: as long as it is there, a run will come back here.

        Raises:
            PhyllomeError: libvirt refuses; the next run goes on here.
        """
        self.progress.say("finishing")
        there = self.pair.destination
        dead = view.source.state == "unreachable"
        record = None if dead else self.commit(view, sync=True)
        mark = view.destination.mark
        power = mark.power if mark else "running"
        with virt.saying(f"Cannot look at {view.name} on {there.name}"):
            connection = there.connection
            domain = connection.lookupByUUIDString(view.uuid)
        ours = view.destination.state == "paused" and mark is not None and mark.phase == "moving"
        if ours and power == "running":
            with virt.saying(
                f"Cannot resume {view.name} on {there.name}",
                f"It waits there, complete, and exists nowhere else: virsh resume {view.name} there, then run again.",
            ):
                domain.resume()
        if record is not None and record.mode == "live" and record.ran and view.destination.state == "off":
            with virt.saying(f"Cannot start {view.name} anew on {there.name}"):
                domain.create()
        if self.told.mode is None:
            self.told.mode = "cold" if power == "off" else "live"
        with virt.saying(f"Cannot finish the move of {view.name} on {there.name}"):
            both = mark.shared if mark is not None else ()
            guest = read_guest(there, view.uuid, sizes=False, shares=lambda disk: disk.path in both)
            if record is not None and not record.pieces:
                record = self.pair.journal.save(dataclasses.replace(record, pieces=pieces(guest)))
            if ours and power == "off":
                domain.destroy()
            if record is not None:
                asleep = mark is not None and mark.phase == "moving" and power != "running"
                self._bring_identity(guest, record.pieces, view, asleep and view.destination.state != "running")
            if mark is not None and mark.phase == "moving":
                if mark.autostart:
                    domain.setAutostart(1)
                self.told.identity["autostart"] = starts_with_host(domain)
                write_mark(domain, dataclasses.replace(mark, phase="done", epoch=mark.epoch + 1))
            self.told.identity["metadata"] = True
            self._count_disks(guest, record)
        if record is not None:
            self.put_away(view, record)
        self.progress.unsuspend(view.uuid)

    def _bring_identity(self, guest: Guest, owned: t.Mapping[str, str], view: View, asleep: bool) -> None:
        """Compare NVRAM and TPM with the source's, which cannot change any more; bring what a sleeping guest lacks.

        QEMU writes a migrated variable store to its file only when the CPUs first run, so a guest
        that does not run at the destination gets the file from us.
        """
        connection = self.pair.destination.connection
        suffix = retained("", view.op_id)
        fresh = files.digest(guest.nvram_template) if guest.nvram_template else None
        nvram = owned.get("nvram") or ""  # libvirt does not always say it of a guest that is off
        for name, folder, names in (
            ("nvram", os.path.dirname(nvram), [os.path.basename(nvram)] if nvram else []),
            ("tpm", guest.tpm or "", list(TPM_STATES) if guest.tpm else []),
        ):
            self.told.identity[name] = None
            for file in names:
                path = os.path.join(folder, file)
                put_away = (
                    path + suffix
                    if name == "nvram"
                    else os.path.join(os.path.dirname(folder) + suffix, os.path.basename(folder), file)
                )
                kept = path if os.path.exists(path) else put_away
                before = files.digest(kept)
                if before is None:
                    continue
                if name == "nvram" and guest.nvram_format != "raw":
                    self.told.identity[name] = "moved; a store in the format qcow2 is not compared"
                    continue
                try:
                    with files.folder(connection, folder, self.op) as volumes:
                        after = files.digest_there(connection, volumes.get(file))
                        patience = time.monotonic() + files.PATIENCE
                        while (
                            after is not None
                            and after == fresh != before
                            and not asleep
                            and time.monotonic() < patience
                        ):
                            time.sleep(POLL)  # QEMU may still be writing it
                            after = files.digest_there(connection, volumes[file])
                        rests = asleep or view.destination.state == "off"
                        if name == "nvram" and rests and after is not None and (asleep or after == fresh):
                            files.upload(connection, volumes[file], kept)
                            after = files.digest_there(connection, volumes[file])
                except virt.libvirt.libvirtError as exc:
                    after = None
                    self.told.wrong.append(
                        f"{name} of {view.name} on {view.destination.host} cannot be read: {exc.get_error_message()}"
                    )
                self.told.identity[name] = {
                    "file": path,
                    "source": before,
                    "destination": after,
                    "same": before == after,
                }
                if before != after:
                    self._judge_difference(name, fresh, after, asleep)

    def _judge_difference(self, name: str, fresh: str | None, after: str | None, asleep: bool) -> None:
        """A guest that runs may have written since; what it never had is a loss."""
        if asleep or after in (None, fresh):
            self.told.wrong.append(f"the {name} did not arrive: {self.told.identity[name]}")
        else:
            self.told.identity[name]["note"] = "changed by the guest after the move"

    def _count_disks(self, guest: Guest, record: Record | None) -> None:
        """A sparse disk has to stay sparse."""
        connection = self.pair.destination.connection
        self.told.disks.clear()
        for disk in guest.disks:
            volume = virt.found(lambda path=disk.path: connection.storageVolLookupByPath(path))  # type: ignore[misc]
            dummy, virtual, after = volume.info() if volume is not None else (None, None, None)
            before = record.allocated.get(disk.target) if record else None
            self.told.disks.append(
                {"target": disk.target, "virtual": virtual, "allocated_before": before, "allocated_after": after}
            )
            most = record.most.get(disk.target, before) if record else None
            if most is not None and after is not None and after > grown(most):
                self.told.wrong.append(f"disk {disk.target} grew from {before} to {after} bytes")

    def put_away(self, view: View, record: Record) -> None:
        """Give the source's files their retained names, undefine the guest there, purge what is to be purged."""
        here = self.pair.source
        own = {**record.retained, **dict.fromkeys(record.pieces.values())}
        domain = virt.found(lambda: here.connection.lookupByUUIDString(view.uuid))
        if domain is not None:
            text, snapshots = definition(domain)
            record = dataclasses.replace(record, definition=text, snapshots=snapshots)
            both = view.source.mark.shared if view.source.mark is not None else ()
            seeds = parse_guest(xml.parse(text)).apart(lambda disk: disk.path in both).seeds
            own.update(dict.fromkeys(path for path in seeds if os.path.exists(path)))
        kept = {path: retained(path, view.op_id) for path in own}
        record = self.pair.journal.save(dataclasses.replace(record, retained=kept))
        if domain is not None:  # without a definition the files have their names already, or are no longer this guest's
            for path, name in kept.items():
                if os.path.exists(path):
                    files.delete(name)
                    os.rename(path, name)
            crashed = record.mode == "live" and record.ran
            with virt.saying(f"Cannot undefine {view.name} on {here.name}", _HELD if crashed else virt.REMEDY):
                domain.undefineFlags(undefine_flags())
        if self.order.purge and not self.told.wrong:
            for name in kept.values():
                files.delete(name)
        kept = {path: name for path, name in kept.items() if os.path.exists(name)}
        for older in self.pair.journal.of_guest(view.uuid):
            if older.op_id != record.op_id and older.phase == "done":
                self._supersede(older, own)
        if kept or record.left:
            self.pair.journal.save(dataclasses.replace(record, phase="done", retained=kept))
        else:
            self.pair.journal.remove(record.op_id)
        self.told.leftovers = [*kept.values(), *(f"{view.destination.host}:{name}" for name in record.left)]
        for folder in {os.path.dirname(path) for name, path in record.pieces.items() if name.startswith("disks.")}:
            with contextlib.suppress(virt.libvirt.libvirtError):  # the source need not have a pool there
                here.connection.storagePoolLookupByTargetPath(folder).refresh()

    def _supersede(self, older: Record, kept: t.Collection[str]) -> None:
        """An older retained copy of the same file goes once the newer one is there."""
        left = {path: name for path, name in older.retained.items() if path not in kept and os.path.exists(name)}
        for path, name in older.retained.items():
            if path in kept:
                files.delete(name)
        if left or older.left:
            self.pair.journal.save(dataclasses.replace(older, retained=left))
        else:
            self.pair.journal.remove(older.op_id)

    # -- back to where it was ------------------------------------------------------------------

    def roll_back(self, view: View) -> None:
        """Leave both hosts as they were before a move that did not come about.

        Raises:
            PhyllomeError: not everything could be undone; the journal keeps the rest for the next run.
        """
        unfinished = view.record is not None and view.record.phase == "started"
        if view.record is not None and unfinished:
            self.sweep(view.record)
        mark = view.source.mark
        if mark is None or mark.op_id != view.op_id:
            return
        self._wake(view)
        with virt.saying(f"Cannot restore {view.name} on {view.source.host}"):
            domain = self.pair.source.connection.lookupByUUIDString(view.uuid)
            if mark.power == "off" and view.source.state == "paused":
                domain.destroy()
            if mark.autostart:
                domain.setAutostart(1)
            write_mark(domain, mark.undone())
        if unfinished:
            self.pair.journal.give_up(view.record)

    def sweep(self, record: Record) -> None:
        """Delete what this move has made at the destination, unless a guest there uses it."""
        there = self.pair.destination
        with virt.saying(f"Cannot remove from {there.name} what an earlier try has left there"):
            connection = there.connection
            used = {path for dummy, (text,) in virt.domains(connection) for path in paths(text)}
            for name, path in record.pieces.items():
                if name.startswith("disks.") and name.count(".") > 1:  # below a disk, and not made there
                    continue
                if path in used or any(one.startswith(f"{path}/") for one in used):
                    self.told.leftovers.append(f"{there.name}:{path}")
                elif path.startswith(f"{SWTPM}/"):
                    files.remove_tpm(connection, path, self.op)
                else:
                    files.remove(connection, path, self.op)
