# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The two journals of a move: a mark in the guest's metadata, which travels, and a record on the source.

The mark proves at the destination whose move brought the guest there. The record says what may be
deleted there, and whether the source has given the guest up.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import typing as t
import uuid as uuids

from .._core import xml
from .._core.errors import PhyllomeError

DIRECTORY = "/var/lib/phyllome/migrations"
LOCKS = "/run/phyllome"
_OPS = uuids.uuid5(uuids.NAMESPACE_URL, xml.MIGRATION_NS)

Phase = t.Literal["moving", "copying", "arriving", "done", "returning"]
Power = t.Literal["running", "paused", "off"]
_PHASES: dict[str, Phase] = {phase: phase for phase in t.get_args(Phase)}
_POWERS: dict[str, Power] = {"running": "running", "paused": "paused", "off": "off"}


def op_id(uuid: str, destination: str, epoch: int) -> str:
    """The name of a move: the same guest, destination and epoch always give the same.

    Args:
        uuid: the guest's.
        destination: inventory name.
        epoch: how many moves the guest has completed.
    """
    return str(uuids.uuid5(_OPS, f"{uuid}/{destination}/{epoch}"))


class Busy(PhyllomeError):
    """Another run is at the guest."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """Our element in the guest's metadata.

    Attributes:
        op_id: see the function.
        source: inventory name.
        destination: inventory name.
        epoch: moves completed before this one; once it is done, this one included.
        phase: ``moving`` until the destination owns the guest, then ``done``. In a cold move it is ``copying`` at the
            source, and ``arriving`` at the destination, which has all of it then and must not start it yet. It is
            ``returning`` at a destination that the guest is taken back from.
        power: how the guest was before and has to be afterwards.
        autostart: whether the guest started with the source host; at the source it is off meanwhile.
        fenced: the guest must not be started where it bears this mark (the hook of role hypervisor).
        files: of a guest that arrives or returns: the name that each of its files gets, and the one it has.
        shared: paths of disks that both hosts have: no step of a move touches them.
    """

    op_id: str
    source: str
    destination: str
    epoch: int
    phase: Phase
    power: Power
    autostart: bool
    fenced: bool = False
    files: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    shared: tuple[str, ...] = ()

    def undone(self) -> Mark | None:
        """What is left of a mark at the source when the move is taken back: how many moves came before it."""
        return self.returned() if self.epoch else None

    def returned(self) -> Mark:
        """The mark of a guest that was moved and taken back: as if it had come from there, so no move is under way."""
        return dataclasses.replace(
            self, source=self.destination, destination=self.source, phase="done", fenced=False, files={}, shared=()
        )

    def dump(self) -> str:
        """The element, as virDomainSetMetadata takes it: without its namespace."""
        values = {name: str(value) for name, value in dataclasses.asdict(self).items()}
        for name in ("autostart", "fenced"):
            values[name] = "yes" if getattr(self, name) else "no"
        values.pop("files")
        values.pop("shared")
        if self.files:
            values["files"] = json.dumps(dict(self.files), sort_keys=True)
        if self.shared:
            values["shared"] = json.dumps(self.shared)
        return xml.dump(xml.element("migration", None, **values)).strip()


def parse_mark(text: str | None) -> Mark | None:
    """The mark in what virDomainGetMetadata returns; None when there is none.

    Raises:
        PhyllomeError: it is not one of ours, or of a later version.
    """
    if text is None:
        return None
    values = {str(name): str(value) for name, value in xml.parse(text).attrib.items()}
    try:
        return Mark(
            op_id=values["op_id"],
            source=values["source"],
            destination=values["destination"],
            epoch=int(values["epoch"]),
            phase=_PHASES[values["phase"]],
            power=_POWERS[values["power"]],
            autostart=values["autostart"] == "yes",
            fenced=values.get("fenced") == "yes",
            files=dict(json.loads(values.get("files", "{}"))),
            shared=tuple(json.loads(values.get("shared", "[]"))),
        )
    except (KeyError, ValueError) as exc:
        raise PhyllomeError(
            "The guest's migration mark cannot be read",
            f"{exc} in {text.strip()}",
            "Look at both hosts; when the guest is in order, remove the mark: "
            f"virsh metadata GUEST {xml.MIGRATION_NS} --remove --config --live",
        ) from exc


@dataclasses.dataclass(frozen=True)
class Record:
    """What the source remembers of a move.

    Attributes:
        op_id: see the function.
        uuid: the guest's.
        name: the guest's.
        source: inventory name.
        destination: inventory name.
        phase: ``started``; ``committed`` once the source is known to have given the guest up; ``handed`` once a cold
            move has brought the guest into the power state it shall have; ``done``; ``returned`` when it was taken back.
        pieces: the guest's own files, the same paths on both hosts; before this move the destination had none of them.
        retained: paths at the source, and the names under which they stay behind.
        allocated: bytes that each disk took at the source when the move started, by target.
        most: of a live move: bytes that each disk may take at the destination, by target.
        started: seconds since the epoch, for people.
        mode: ``live``, ``warm`` or ``cold``.
        staged: of a cold move: where each file belongs, and where it lies at the destination until then; of one that
            was taken back: what stayed there.
        ran: whether the guest was shut down for the move, or crashed in it, and is started again.
        digests: of a cold move: of each file, by path.
        sent: of a cold move: bytes of each file that went over the network, by path.
        secrets: that the destination did not have before.
        definition: of the guest at the source, once it was removed there; with its secrets.
        snapshots: what libvirt knew of its snapshots.
        left: files at the destination of a copy that was taken back from there, before this move was made again.
    """

    op_id: str
    uuid: str
    name: str
    source: str
    destination: str
    phase: t.Literal["started", "committed", "handed", "done", "returned"] = "started"
    pieces: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    retained: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    allocated: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    most: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    started: int = 0
    mode: t.Literal["live", "warm", "cold"] = "live"
    staged: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    ran: bool = False
    digests: t.Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    sent: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    definition: str = ""
    snapshots: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def by_files(self) -> bool:
        """Whether its files are carried over as they are."""
        return self.mode != "live"

    @property
    def remains(self) -> tuple[str, ...]:
        """What stays at the destination of a copy that was taken back."""
        there = self.staged.values() if self.phase == "returned" else ()
        return tuple(dict.fromkeys((*there, *self.left)))


class Journal:
    """The records on this host.

    Args:
        directory: made when the first record is written; root's only.
    """

    def __init__(self, directory: str = DIRECTORY) -> None:
        self._directory = directory

    def load(self, op: str) -> Record | None:
        """A move's record, or None.

        Raises:
            PhyllomeError: it is there and cannot be read; what depends on it must not guess.
        """
        path = self._path(op)
        try:
            with open(path, encoding="utf-8") as stream:
                values = json.load(stream)
            lists = {name: tuple(values.get(name, ())) for name in ("secrets", "snapshots", "left")}
            return Record(**{**values, **lists})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise PhyllomeError(
                f"The journal {path} cannot be read", str(exc), "Repair it; it says what a move left where."
            ) from exc

    def save(self, record: Record, sync: bool = True) -> Record:
        """Write a record so that a crash leaves the old one or the new one.

        Args:
            record: what to remember.
            sync: wait until it would survive a power cut too.

        Raises:
            PhyllomeError: the file cannot be written.
        """
        path = self._path(record.op_id)
        aside = f"{path}.new"
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as stream:
                json.dump(dataclasses.asdict(record), stream, indent=1)
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            os.rename(aside, path)
        except OSError as exc:
            raise PhyllomeError(f"The journal {path} cannot be written", str(exc), "Make room, or repair it.") from exc
        return record

    def note(self, op: str, said: t.Mapping[str, t.Any], sync: bool = False) -> None:
        """Add a line to the notes of a move, which say how far its copying is.

        Args:
            op: the name of the move.
            said: what to note.
            sync: wait until it would survive a power cut too.

        Raises:
            PhyllomeError: it cannot be written.
        """
        path = self._notes(op)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(f"\n{json.dumps(said)}\n")  # what is before it may have been cut off
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())
        except OSError as exc:
            raise PhyllomeError(f"The journal {path} cannot be written", str(exc), "Make room, or repair it.") from exc

    def notes(self, op: str) -> list[dict[str, t.Any]]:
        """The whole lines of a move's notes; the last one may have been cut off."""
        try:
            with open(self._notes(op), encoding="utf-8") as stream:
                lines = stream.read().split("\n")
        except FileNotFoundError:
            return []
        found = []
        for line in lines[:-1]:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def forget_notes(self, op: str) -> None:
        """The next copying begins anew."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._notes(op))

    def give_up(self, record: Record | None) -> None:
        """Forget a move that did not come about, but not what an earlier one of its name has left at the destination."""
        if record is not None and record.left:
            self.forget_notes(record.op_id)
            there = {name: name for name in record.left}
            self.save(dataclasses.replace(record, phase="returned", pieces={}, staged=there, left=()))
        elif record is not None:
            self.remove(record.op_id)

    def remove(self, op: str) -> None:
        """Forget a move that has left nothing behind."""
        self.forget_notes(op)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(op))

    @contextlib.contextmanager
    def alone(self, uuid: str) -> t.Iterator[None]:
        """Make sure that only one run moves a guest; the lock dies with the process.

        Raises:
            Busy: another run is at it.
        """
        path = self._lock(uuid)
        with open(path, "w", encoding="ascii") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise Busy(f"Another run is moving the guest {uuid}", f"it holds {path}", "Wait for its end.") from exc
            yield

    def outwait(self, uuid: str) -> None:
        """Wait until no run is at the guest."""
        with open(self._lock(uuid), "w", encoding="ascii") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)

    def of_guest(self, uuid: str, name: str | None = None) -> list[Record]:
        """All records of a guest; without its uuid those of all that had the name."""
        if not os.path.isdir(self._directory):
            return []
        names = sorted(name for name in os.listdir(self._directory) if name.endswith(".json"))
        records = (self.load(name[: -len(".json")]) for name in names)
        known = (record for record in records if record is not None)
        return [record for record in known if (record.uuid == uuid if uuid else record.name == name)]

    def _lock(self, uuid: str) -> str:
        os.makedirs(LOCKS, mode=0o700, exist_ok=True)
        return os.path.join(LOCKS, f"{uuid}.lock")

    def _notes(self, op: str) -> str:
        return os.path.join(self._directory, f"{op}.notes")

    def _path(self, op: str) -> str:
        return os.path.join(self._directory, f"{op}.json")
