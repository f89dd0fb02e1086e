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

Phase = t.Literal["moving", "done"]
Power = t.Literal["running", "paused", "off"]
_PHASES: dict[str, Phase] = {"moving": "moving", "done": "done"}
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
        phase: ``moving`` until the destination owns the guest, then ``done``.
        power: how the guest was before and has to be afterwards.
        autostart: whether the guest started with the source host; at the source it is off meanwhile.
        fenced: the guest must not be started where it bears this mark (the hook of role hypervisor).
    """

    op_id: str
    source: str
    destination: str
    epoch: int
    phase: Phase
    power: Power
    autostart: bool
    fenced: bool = False

    def dump(self) -> str:
        """The element, as virDomainSetMetadata takes it: without its namespace."""
        values = {name: str(value) for name, value in dataclasses.asdict(self).items()}
        for name in ("autostart", "fenced"):
            values[name] = "yes" if getattr(self, name) else "no"
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
        phase: ``started``; ``committed`` once the source is known to have given the guest up; ``done``.
        pieces: the guest's own files, the same paths on both hosts; before this move the destination had none of them.
        retained: paths at the source, and the names under which they stay behind.
        allocated: bytes that each disk took at the source when the move started, by target.
        started: seconds since the epoch, for people.
    """

    op_id: str
    uuid: str
    name: str
    source: str
    destination: str
    phase: t.Literal["started", "committed", "done"] = "started"
    pieces: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    retained: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    allocated: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    started: int = 0


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
            return Record(**values)
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

    def remove(self, op: str) -> None:
        """Forget a move that has left nothing behind."""
        if os.path.exists(self._path(op)):
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

    def of_guest(self, uuid: str) -> list[Record]:
        """All records of a guest."""
        if not os.path.isdir(self._directory):
            return []
        names = sorted(name for name in os.listdir(self._directory) if name.endswith(".json"))
        records = (self.load(name[: -len(".json")]) for name in names)
        return [record for record in records if record is not None and record.uuid == uuid]

    def _lock(self, uuid: str) -> str:
        os.makedirs(LOCKS, mode=0o700, exist_ok=True)
        return os.path.join(LOCKS, f"{uuid}.lock")

    def _path(self, op: str) -> str:
        return os.path.join(self._directory, f"{op}.json")
