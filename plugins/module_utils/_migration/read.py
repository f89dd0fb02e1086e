# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What both hosts say about a guest.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import time
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .journal import Journal, Mark, Record, op_id, parse_mark
from .spec import Order

T = t.TypeVar("T")

LOGS = "/var/log/libvirt/qemu"
SWTPM = "/var/lib/libvirt/swtpm"
NVRAM = "/var/lib/libvirt/qemu/nvram"
"""Where libvirt will put the variables of a guest that has not told yet (qemuFirmwareEnsureNVRAM)."""
TPM_STATES = ("tpm2-00.permall", "tpm-00.permall")
"""What swtpm keeps of a TPM 2.0 and of a TPM 1.2; the rest of its folder are locks."""
PATIENCE = 30.0
"""Seconds for a daemon that restarts, and for one that is busy with the guest."""


class Side:
    """A host's libvirt, asked through a connection that comes back when its daemon does.

    Args:
        uri: of its libvirt.
        name: of the host, for people.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self.name = name
        self._stack = contextlib.ExitStack()
        self._connection: t.Any = None

    @property
    def connection(self) -> t.Any:
        """A ``libvirt.virConnect`` that was alive a moment ago.

        Raises:
            PhyllomeError: the daemon does not answer.
        """
        if self._connection is None or self._connection.isAlive() != 1:
            self.connect()
        return self._connection

    @property
    def gone(self) -> bool:
        """Whether the daemon went away since it was last asked."""
        return self._connection is not None and self._connection.isAlive() != 1

    def connect(self) -> None:
        """Open a new connection.

        Raises:
            PhyllomeError: the daemon does not answer.
        """
        self.close()
        _knock(self.uri)
        try:
            self._connection = self._stack.enter_context(virt.session(self.uri, keep_alive=True))
        except PhyllomeError as exc:
            if "+ssh:" in self.uri:
                remedy = (
                    "As root on this host, ssh there has to work without a question: a key, and its host key among "
                    "the known ones. Is libvirt there? systemctl status libvirtd virtqemud"
                )
                raise PhyllomeError(exc.what, exc.why, remedy, **exc.facts) from exc
            if "+tls:" in self.uri and re.search(r"certificate|TLS|tls|x509", exc.why):
                remedy = (
                    "Its certificate has to be valid now, from the authority that this host believes, and to name "
                    f"what stands in {self.uri}; are the clocks right? The role phyllome.virt.hypervisor makes it."
                )
                raise PhyllomeError(exc.what, exc.why, remedy, **exc.facts) from exc
            raise

    def ask(self, question: t.Callable[[t.Any], T], patience: float = PATIENCE) -> T:
        """The answer to a question that may be asked twice.

        A daemon that is restarting is waited for, and so is one that is busy with the guest
        (VIR_ERR_OPERATION_TIMEOUT: the guest's lock is held, which is no failure). libvirt itself needs about
        half a minute to say either, so the wait begins when it has.

        Args:
            question: called with the connection.
            patience: seconds.
        """
        deadline: float | None = None
        while True:
            try:
                return question(self.connection)
            except (PhyllomeError, virt.libvirt.libvirtError) as exc:
                if deadline is None:
                    deadline = time.monotonic() + patience
                if time.monotonic() >= deadline or not (isinstance(exc, PhyllomeError) or self._passes(exc)):
                    raise
            time.sleep(0.2)

    def _passes(self, error: t.Any) -> bool:
        """Whether the same question may be answered a little later."""
        busy = error.get_error_code() == virt.libvirt.VIR_ERR_OPERATION_TIMEOUT
        return busy or self.gone

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        self._connection = None
        self._stack.close()


def _knock(uri: str) -> None:
    """Fail in seconds, not in the kernel's minutes, when nobody is at the door.

    Raises:
        PhyllomeError: no answer.
    """
    found = re.match(r"^[^:]+\+tls://(?:\[([^\]]+)\]|([^/:?]+))(?::(\d+))?/", uri)
    if not found:
        return
    host, port = found.group(1) or found.group(2), int(found.group(3) or 16514)
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as exc:
        raise PhyllomeError(
            f"The libvirt at {uri} cannot be reached",
            f"{host} port {port}: {exc}",
            "Is the host up, its libvirt listening (systemctl status libvirtd-tls.socket), its firewall open to "
            "this one? Run again when it is.",
        ) from exc


@dataclasses.dataclass(frozen=True)
class Sight:
    """What one host says about the guest.

    Attributes:
        host: inventory name.
        state: one of judge.SOURCES at the source, of judge.DESTINATIONS at the destination.
        detail: libvirt's state and reason, for people.
        name: the guest's, None where it is absent.
        uuid: the same.
        persistent: whether it is defined.
        autostart: whether it starts with the host.
        job: one of judge.JOBS.
        mark: our mark in its metadata.
        clash: what stands against the name and uuid being this guest's.
    """

    host: str
    state: str
    detail: str = ""
    name: str | None = None
    uuid: str | None = None
    persistent: bool = False
    autostart: bool = False
    job: str = "none"
    mark: Mark | None = None
    clash: str | None = None

    def as_dict(self) -> dict[str, t.Any]:
        """As users see it."""
        shown: dict[str, t.Any] = {"host": self.host, "state": self.state, "defined": self.persistent}
        if self.detail:
            shown["reason"] = self.detail
        return shown


@dataclasses.dataclass(frozen=True)
class View:
    """What both hosts say, at one moment.

    Attributes:
        source: the source.
        destination: the destination.
        op_id: the name of the move that would or does bring the guest from here to there.
        epoch: moves the guest has completed.
        mark: one of judge.MARKS.
        record: what the source remembers of this move.
    """

    source: Sight
    destination: Sight
    op_id: str
    epoch: int
    mark: str
    record: Record | None

    @property
    def committed(self) -> bool:
        """Whether the source is known to have given the guest up."""
        return self.record is not None and self.record.phase in ("committed", "handed")

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.source.name or self.destination.name or ""

    @property
    def uuid(self) -> str:
        """The guest's uuid."""
        return self.source.uuid or self.destination.uuid or ""


_POSTCOPY = {"VIR_DOMAIN_RUNNING": ("VIR_DOMAIN_RUNNING_POSTCOPY", "VIR_DOMAIN_RUNNING_POSTCOPY_FAILED"),
             "VIR_DOMAIN_PAUSED": ("VIR_DOMAIN_PAUSED_POSTCOPY", "VIR_DOMAIN_PAUSED_POSTCOPY_FAILED")}  # fmt: skip
_STATES = (
    "no state", "running", "blocked", "paused", "being shut down", "shut off", "crashed", "suspended by the guest"
)  # fmt: skip
_REASONS = {
    3: ("unknown", "user", "migration", "save", "dump", "I/O error", "watchdog", "from snapshot", "shutting down",
        "snapshot", "crashed", "starting up", "post-copy", "post-copy failed", "API error"),
    5: ("unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot", "daemon"),
}  # fmt: skip


def _state(domain: t.Any, persistent: bool) -> tuple[str, str]:
    """One of judge.SOURCES (virDomainState and its reasons), and the same for people."""
    lib = virt.libvirt
    state, reason = domain.state()
    detail = _STATES[state] if state < len(_STATES) else f"state {state}"
    reasons = _REASONS.get(state, ())
    if reasons:
        detail += f" ({reasons[reason] if reason < len(reasons) else reason})"
    for kind, constants in _POSTCOPY.items():
        for constant, fetched in zip(constants, ("postcopy", "broken")):
            if (state, reason) == (
                getattr(lib, kind),
                getattr(lib, constant, None),
            ):  # an older libvirt lacks the second
                return fetched, detail
    if state in (lib.VIR_DOMAIN_RUNNING, lib.VIR_DOMAIN_BLOCKED):
        return "running", detail
    if state == lib.VIR_DOMAIN_PAUSED:
        if reason in (lib.VIR_DOMAIN_PAUSED_MIGRATION, lib.VIR_DOMAIN_PAUSED_STARTING_UP):
            return "switching", detail
        by_wish = (lib.VIR_DOMAIN_PAUSED_USER, lib.VIR_DOMAIN_PAUSED_UNKNOWN)
        return ("paused" if reason in by_wish else "stuck"), detail
    if state == lib.VIR_DOMAIN_SHUTOFF:
        if not persistent:
            return "switching", detail  # libvirt is just about to start it
        names = {lib.VIR_DOMAIN_SHUTOFF_MIGRATED: "migrated", lib.VIR_DOMAIN_SHUTOFF_CRASHED: "crashed"}
        return names.get(reason, "off"), detail
    return ("crashed" if state == lib.VIR_DOMAIN_CRASHED else "stuck"), detail


_AT_DESTINATION = {"switching": "incoming", "migrated": "off", "crashed": "off"}


def _sight(side: Side, name: str | None, uuid: str | None, at_source: bool) -> Sight:
    return side.ask(lambda connection: _look(connection, side.name, name, uuid, at_source))


def _look(connection: t.Any, host: str, name: str | None, uuid: str | None, at_source: bool) -> Sight:
    by_name = virt.found(lambda: connection.lookupByName(name)) if name else None
    domain = virt.found(lambda: connection.lookupByUUIDString(uuid)) if uuid else by_name
    clash = None
    if uuid and by_name is not None and by_name.UUIDString() != uuid:
        clash = f"on {host} the name {name} belongs to a guest with uuid {by_name.UUIDString()}, not {uuid}"
    if domain is None:
        return Sight(host, "absent", clash=clash)
    if name and domain.name() != name:
        clash = f"on {host} the uuid {uuid} belongs to the guest {domain.name()}, not {name}"

    def seen() -> Sight:
        persistent = bool(domain.isPersistent())
        state, detail = _state(domain, persistent)
        mark = parse_mark(virt.found(lambda: _metadata(domain), virt.libvirt.VIR_ERR_NO_DOMAIN_METADATA))
        job = "none"
        if at_source and domain.isActive():
            job = _job(domain)
        elif not at_source:
            state = _AT_DESTINATION.get(state, state)
        return Sight(
            host,
            state,
            detail,
            domain.name(),
            domain.UUIDString(),
            persistent,
            persistent and bool(domain.autostart()),
            job,
            mark,
            clash,
        )

    return virt.found(seen) or Sight(host, "absent", clash=clash)  # it may go away while it is looked at


def _metadata(domain: t.Any) -> str:
    lib = virt.libvirt
    text: str = domain.metadata(lib.VIR_DOMAIN_METADATA_ELEMENT, xml.MIGRATION_NS, lib.VIR_DOMAIN_AFFECT_CURRENT)
    return text


def _job(domain: t.Any) -> str:
    lib = virt.libvirt
    try:
        stats = domain.jobStats()
    except lib.libvirtError as exc:
        if exc.get_error_code() == lib.VIR_ERR_OPERATION_INVALID:  # it was just switched off
            return "none"
        raise
    if stats.get("type", lib.VIR_DOMAIN_JOB_NONE) == lib.VIR_DOMAIN_JOB_NONE:
        return "none"
    out = stats.get("operation") == lib.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
    return "outgoing" if out else "other"


class Pair:
    """The source, the destination, and the journal at the source.

    Args:
        order: what was asked for.
        journal: the records on the source.
    """

    def __init__(self, order: Order, journal: Journal) -> None:
        self.order = order
        self.journal = journal
        self.destination = Side(order.destination_uri, order.destination)
        self.source = Side(order.uri, order.source or socket.gethostname())

    def __enter__(self) -> Pair:
        """Meet the destination: what is not there at first is not waited for."""
        try:
            self.destination.connect()
        except PhyllomeError as exc:
            raise exc if self.order.source_is_dead else self._heard(exc) from exc
        return self

    def __exit__(self, *exc: object) -> None:
        self.destination.close()
        self.source.close()

    def view(self) -> View:
        """What both hosts say now.

        Raises:
            PhyllomeError: a host cannot be asked (the source's silence is a state when
                ``source_is_dead`` was said).
        """
        order = self.order
        with virt.saying(f"Cannot ask {self.source.name} about the guest {order.shown}"):
            try:
                patience = 0 if order.source_is_dead else PATIENCE
                source = self.source.ask(
                    lambda connection: _look(connection, self.source.name, order.name, order.uuid, True), patience
                )
            except PhyllomeError:
                if not order.source_is_dead:
                    raise
                source = Sight(self.source.name, "unreachable")
        if order.source_is_dead and source.state != "unreachable":
            raise PhyllomeError(
                f"source_is_dead: true was said, but {self.source.name} answers at {order.uri}",
                "a source that lives can be asked",
                f"Run the module on {self.source.name}, without source_is_dead.",
            )
        try:
            with virt.saying(f"Cannot ask {self.destination.name} about the guest {order.shown}"):
                destination = _sight(
                    self.destination, order.name or source.name, order.uuid or source.uuid, at_source=False
                )
        except PhyllomeError as exc:
            raise exc if source.state == "unreachable" else self._alone(exc, source) from exc
        return self._relate(source, destination)

    def _heard(self, exc: PhyllomeError) -> PhyllomeError:
        """The same, with what the source says, if it can be asked."""
        order = self.order
        with contextlib.suppress(virt.libvirt.libvirtError, PhyllomeError):
            return self._alone(
                exc, self.source.ask(lambda one: _look(one, self.source.name, order.name, order.uuid, True), 0)
            )
        return exc

    def _alone(self, exc: PhyllomeError, source: Sight) -> PhyllomeError:
        """What the silence of the destination means for the guest, as far as the source knows."""
        here, there, name = self.source.name, self.destination.name, source.name
        mark = source.mark
        record = self.journal.load(mark.op_id) if mark is not None else None
        if source.state in ("postcopy", "broken"):
            return PhyllomeError(
                f"{exc.what}, in the middle of a post-copy migration of {name}",
                f"{exc.why}; it is {source.detail} on {here}. Since that began it runs on {there}, or waits there for the part of its "
                f"memory that is still here, and only the disks there go on; whether {there} still has it is not known",
                f"Nothing was touched, and nothing may be: neither start it nor stop it here or there. Bring the network or {there} "
                "back and run again: then it goes on where it was cut off, or it is said what is left of it.",
                **exc.facts,
            )
        if record is not None and record.phase in ("committed", "handed"):
            return PhyllomeError(
                f"{exc.what}, and {name} is there",
                f"{exc.why}; {here} has given it up, and here it is {source.detail}",
                f"Do not start it on {here}. {exc.remedy}",
                **exc.facts,
            )
        if source.state == "absent":
            return exc
        return PhyllomeError(exc.what, f"{exc.why}; {name} is {source.detail} on {here}", exc.remedy, **exc.facts)

    def with_source_gone(self, before: View) -> View:
        """What both hosts say when the source's QEMU is dead: only the destination has to be asked."""
        source = dataclasses.replace(before.source, state="gone", job="none")
        destination = _sight(self.destination, before.name, before.uuid, at_source=False)
        view = self._relate(dataclasses.replace(source, mark=destination.mark), destination)
        return dataclasses.replace(view, source=source)

    def _relate(self, source: Sight, destination: Sight) -> View:
        """Whose move the marks tell of, and what the source remembers of it."""
        here = source.state not in ("absent", "unreachable")
        own = source.mark if here else destination.mark
        epoch = own.epoch if own else 0
        if not here and own is not None and own.phase == "done":
            epoch -= 1
        op = op_id(source.uuid or destination.uuid or "", self.destination.name, epoch)
        mark = source.mark if destination.state == "absent" else destination.mark
        ours = own is not None and mark is not None and own.op_id == mark.op_id == op and mark.source == source.host
        told: str
        if mark is None or (mark.phase == "done" and not ours):
            told = "none"
        else:
            told = mark.phase if ours else "other"
        record = self.journal.load(op)
        if source.state == "off" and told == "moving" and _log_says_migrated(source.name or ""):
            source = dataclasses.replace(source, state="migrated", detail=f"{source.detail}, its log: migrated")
        return View(source, destination, op, epoch, told, record)


_LOG = re.compile(rb"shutting down, reason=(\w+)|starting up libvirt version")


def _log_says_migrated(name: str) -> bool:
    """Whether the guest last stopped at this host because it had migrated.

    libvirt forgets the reason when its daemon restarts, but its log of the guest keeps it
    (``qemuDomainLogAppendMessage`` in src/qemu/qemu_process.c).
    """
    try:
        with open(os.path.join(LOGS, f"{name}.log"), "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 65536))
            found = _LOG.findall(stream.read())
    except OSError:
        return False
    return bool(found) and found[-1] == b"migrated"
