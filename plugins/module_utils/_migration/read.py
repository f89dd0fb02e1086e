# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What both hosts say about a guest, about what it is made of, and about what the destination offers.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
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

    def connect(self) -> None:
        """Open a new connection.

        Raises:
            PhyllomeError: the daemon does not answer.
        """
        self.close()
        _knock(self.uri)
        self._connection = self._stack.enter_context(virt.session(self.uri, keep_alive=True))

    def ask(self, question: t.Callable[[t.Any], T], patience: float = PATIENCE) -> T:
        """The answer to a question that may be asked twice.

        A daemon that is restarting is waited for, and so is one that is busy with the guest
        (VIR_ERR_OPERATION_TIMEOUT: the guest's lock is held, which is no failure).

        Args:
            question: called with the connection.
            patience: seconds.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                return question(self.connection)
            except PhyllomeError:
                if time.monotonic() > deadline:
                    raise
            except virt.libvirt.libvirtError as exc:
                busy = exc.get_error_code() == virt.libvirt.VIR_ERR_OPERATION_TIMEOUT
                lost = self._connection is not None and self._connection.isAlive() != 1
                if not (busy or lost) or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

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
            "this one? Nothing was lost; run again when it is.",
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
        return self.record is not None and self.record.phase == "committed"

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.source.name or self.destination.name or ""

    @property
    def uuid(self) -> str:
        """The guest's uuid."""
        return self.source.uuid or self.destination.uuid or ""


_POSTCOPY_RUNNING = ("VIR_DOMAIN_RUNNING_POSTCOPY", "VIR_DOMAIN_RUNNING_POSTCOPY_FAILED")
_POSTCOPY_PAUSED = ("VIR_DOMAIN_PAUSED_POSTCOPY", "VIR_DOMAIN_PAUSED_POSTCOPY_FAILED")
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
    if state in (lib.VIR_DOMAIN_RUNNING, lib.VIR_DOMAIN_BLOCKED):
        return ("postcopy" if reason in _codes(_POSTCOPY_RUNNING) else "running"), detail
    if state == lib.VIR_DOMAIN_PAUSED:
        if reason in (lib.VIR_DOMAIN_PAUSED_MIGRATION, lib.VIR_DOMAIN_PAUSED_STARTING_UP):
            return "switching", detail
        if reason in _codes(_POSTCOPY_PAUSED):
            return "postcopy", detail
        by_wish = (lib.VIR_DOMAIN_PAUSED_USER, lib.VIR_DOMAIN_PAUSED_UNKNOWN)
        return ("paused" if reason in by_wish else "stuck"), detail
    if state == lib.VIR_DOMAIN_SHUTOFF:
        if not persistent:
            return "switching", detail  # libvirt is just about to start it
        names = {lib.VIR_DOMAIN_SHUTOFF_MIGRATED: "migrated", lib.VIR_DOMAIN_SHUTOFF_CRASHED: "crashed"}
        return names.get(reason, "off"), detail
    return ("crashed" if state == lib.VIR_DOMAIN_CRASHED else "stuck"), detail


def _codes(names: t.Iterable[str]) -> set[int]:
    """Values of constants that an older libvirt may not have."""
    return {getattr(virt.libvirt, name) for name in names if hasattr(virt.libvirt, name)}


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
        self.destination.connect()
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
        with virt.saying(f"Cannot ask {self.destination.name} about the guest {order.shown}"):
            destination = _sight(
                self.destination, order.name or source.name, order.uuid or source.uuid, at_source=False
            )
        return self._relate(source, destination)

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


def qemu_pid(name: str, uuid: str) -> int | None:
    """The process of a guest that runs on this host, None when libvirt's files do not say."""
    try:
        with open(f"/run/libvirt/qemu/{name}.pid", encoding="ascii") as stream:
            pid = int(stream.read())
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return pid if uuid.encode() in stream.read() else None
    except (OSError, ValueError):
        return None


_PF_EXITING = 0x4


def process_is_gone(pid: int) -> bool:
    """Whether a process will never run a thread of its own again.

    Linux sets PF_EXITING (include/linux/sched.h) when the main thread leaves through exit_group,
    which kills all others first. Memory is freed after that, which for a big guest takes long.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


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


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk that has to be copied.

    Attributes:
        target: for instance ``vda``.
        path: the file, the same on both hosts.
        format: ``qcow2`` or ``raw``.
        virtual: bytes that the guest sees.
        allocated: bytes that the file takes.
    """

    target: str
    path: str
    format: str
    virtual: int
    allocated: int


@dataclasses.dataclass(frozen=True)
class Guest:
    """What a guest is made of, as far as a move depends on it. Empty means that there is none."""

    name: str
    uuid: str
    memory: int
    type: str
    emulator: str
    arch: str
    machine: str
    cpu: str | None
    disks: tuple[Disk, ...] = ()
    chained: tuple[str, ...] = ()
    odd_disks: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    loader: str | None = None
    nvram: str | None = None
    nvram_template: str | None = None
    nvram_format: str = "raw"
    tpm: str | None = None
    odd_tpm: str | None = None
    hostdevs: int = 0
    filesystems: int = 0
    snapshots: int = 0
    checkpoints: int = 0
    block_jobs: tuple[str, ...] = ()
    managed_save: bool = False


def guest(side: Side, uuid: str, sizes: bool) -> Guest:
    """What the guest is made of.

    Args:
        side: the host that has it.
        uuid: the guest's.
        sizes: look at its disks, jobs and snapshots too; its files are on this host.

    Raises:
        PhyllomeError: libvirt does not say.
    """
    with virt.saying(f"Cannot read the guest {uuid} on {side.name}"):
        return side.ask(lambda connection: _guest(connection.lookupByUUIDString(uuid), sizes))


def _guest(domain: t.Any, sizes: bool) -> Guest:
    lib = virt.libvirt
    active = bool(domain.isActive())
    flags = lib.VIR_DOMAIN_XML_MIGRATABLE if active else lib.VIR_DOMAIN_XML_INACTIVE
    parsed = parse_guest(xml.parse(domain.XMLDesc(flags)))
    if not sizes:
        return parsed
    disks = []
    for disk in parsed.disks:
        virtual = int(domain.blockInfo(disk.target)[0])
        allocated = os.stat(disk.path).st_blocks * 512 if os.path.exists(disk.path) else 0
        disks.append(dataclasses.replace(disk, virtual=virtual, allocated=allocated))
    return dataclasses.replace(
        parsed,
        disks=tuple(disks),
        snapshots=domain.snapshotNum(),
        checkpoints=len(domain.listAllCheckpoints()),
        block_jobs=tuple(disk.target for disk in disks if active and domain.blockJobInfo(disk.target)),
        managed_save=bool(domain.hasManagedSaveImage()),
    )


def parse_guest(root: xml.Element) -> Guest:
    """What a domain's XML says of a guest. Pure; sizes of disks are 0."""
    disks: list[Disk] = []
    odd: list[str] = []
    chained: list[str] = []
    media: list[str] = []
    for element in root.findall("devices/disk"):
        named = element.find("target")
        target = "?" if named is None else named.get("dev", "?")
        source = element.find("source")
        if source is None or not source.attrib:
            continue
        path = source.get("file")
        fixed = element.get("device", "disk") != "disk" or element.find("readonly") is not None
        if fixed:
            media.append(path or f"{target} ({element.get('type')})")
            continue
        driver = element.find("driver")
        form = "raw" if driver is None else driver.get("type", "raw")
        if path is None:
            odd.append(f"{target} is of type {element.get('type')}")
        elif form not in ("raw", "qcow2"):
            odd.append(f"{target} has the format {form}")
        elif element.find("source/encryption") is not None or element.find("encryption") is not None:
            odd.append(f"{target} is encrypted")
        elif element.find("shareable") is not None:
            odd.append(f"{target} is shared with other guests")
        else:
            disks.append(Disk(target, path, form, 0, 0))
            if (
                element.find("backingStore/source") is not None
                or element.find("source/backingStore/source") is not None
            ):
                chained.append(target)
    loader, nvram, tpm = root.find("os/loader"), root.find("os/nvram"), root.find("devices/tpm/backend")
    machine = root.find("os/type")
    cpu = root.find("cpu")
    memory = root.find("memory")
    uuid = root.findtext("uuid", "")
    nvram_path = None
    if nvram is not None:
        inner = nvram.find("source")
        nvram_path = (nvram.text or "").strip() or (None if inner is None else inner.get("file"))
    os_element = root.find("os")
    if nvram is None and os_element is not None and os_element.get("firmware") == "efi":
        nvram_path = os.path.join(NVRAM, f"{root.findtext('name', '')}_VARS.fd")
    tpm_path = odd_tpm = None
    if tpm is not None:
        if tpm.get("type") != "emulator":
            odd_tpm = f"it is of type {tpm.get('type')}"
        elif tpm.find("source") is not None or tpm.find("encryption") is not None:
            odd_tpm = "its state is at a place of its own or encrypted"
        else:
            folder = "tpm1.2" if tpm.get("version") == "1.2" else "tpm2"
            tpm_path = os.path.join(SWTPM, uuid, folder)
    interfaces = root.findall("devices/interface")
    sources = [(one.get("type"), one.find("source")) for one in interfaces]
    return Guest(
        name=root.findtext("name", ""),
        uuid=uuid,
        memory=int(memory.text or 0) * 1024 if memory is not None else 0,
        type=root.get("type", ""),
        emulator=root.findtext("devices/emulator", ""),
        arch="" if machine is None else machine.get("arch", ""),
        machine="" if machine is None else machine.get("machine", ""),
        cpu=None if cpu is None or cpu.get("mode", "custom") != "custom" else xml.dump(cpu),
        disks=tuple(disks),
        chained=tuple(chained),
        odd_disks=tuple(odd),
        media=tuple(media),
        networks=tuple(one.get("network", "") for kind, one in sources if kind == "network" and one is not None),
        bridges=tuple(one.get("bridge", "") for kind, one in sources if kind == "bridge" and one is not None),
        loader=None if loader is None else (loader.text or "").strip() or None,
        nvram=nvram_path,
        nvram_template=None if nvram is None else nvram.get("template"),
        nvram_format="raw" if nvram is None else nvram.get("format", "raw"),
        tpm=tpm_path,
        odd_tpm=odd_tpm,
        hostdevs=len(root.findall("devices/hostdev")) + sum(kind in ("hostdev", "vdpa") for kind, dummy in sources),
        filesystems=len(root.findall("devices/filesystem")),
    )


@dataclasses.dataclass(frozen=True)
class Pool:
    """A storage pool of the destination that is running; ``available`` in bytes."""

    name: str
    available: int


@dataclasses.dataclass(frozen=True)
class Offer:
    """What the destination offers to this guest, and what the source has for the journey. None is unknown.

    Attributes:
        same_host: whether it is the source itself.
        memory: bytes that are available.
        pools: by directory; None where there is no running pool.
        present: paths of the guest's disks that exist there.
        media: whether each CD or read-only file exists there.
        networks: whether each network is active; None where it does not exist.
        bridges: whether each bridge exists.
        platform: what libvirt says against emulator, machine type and CPU type; empty for nothing.
        loader: whether the firmware file is there.
        cpu: whether the CPU can run the guest's.
        certificates: folder of the source's certificates for the data, None when they are missing.
    """

    same_host: bool
    memory: int | None
    pools: t.Mapping[str, Pool | None]
    present: tuple[str, ...]
    media: t.Mapping[str, bool | None]
    networks: t.Mapping[str, bool | None]
    bridges: t.Mapping[str, bool | None]
    platform: str
    loader: bool | None
    cpu: bool | None
    certificates: str | None


def offer(pair: Pair, made_of: Guest) -> Offer:
    """What the destination offers to a guest.

    Raises:
        PhyllomeError: libvirt does not say.
    """
    own = pair.source.ask(lambda connection: (connection.getHostname(), _host_uuid(connection)))
    with virt.saying(f"Cannot ask {pair.destination.name} what it offers"):
        return pair.destination.ask(lambda connection: _offer(connection, own, made_of))


def _offer(connection: t.Any, own: tuple[str, str], made_of: Guest) -> Offer:
    lib = virt.libvirt
    stats = connection.getMemoryStats(lib.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    folders = sorted({os.path.dirname(disk.path) for disk in made_of.disks})
    pools: dict[str, t.Any] = {folder: _pool(connection, folder) for folder in folders}
    present = [
        disk.path for disk in made_of.disks if _holds(pools[os.path.dirname(disk.path)], os.path.basename(disk.path))
    ]
    media: dict[str, bool | None] = {}
    for path in made_of.media:
        pool = _pool(connection, os.path.dirname(path)) if path.startswith("/") else None
        media[path] = None if pool is None else _holds(pool, os.path.basename(path))
    networks: dict[str, bool | None] = {}
    for name in made_of.networks:
        network = virt.found(lambda name=name: connection.networkLookupByName(name))  # type: ignore[misc]
        networks[name] = None if network is None else bool(network.isActive())
    platform, capabilities = "", None
    try:
        capabilities = xml.parse(
            connection.getDomainCapabilities(made_of.emulator, made_of.arch, made_of.machine, made_of.type)
        )
    except lib.libvirtError as exc:
        platform = exc.get_error_message()
    loaders = None if capabilities is None else {one.text for one in capabilities.findall("os/loader/value")}
    here = (connection.getHostname(), _host_uuid(connection))
    return Offer(
        same_host=own == here or own[1] == here[1],
        memory=1024 * sum(stats.get(key, 0) for key in ("free", "buffers", "cached")) or None,
        pools={folder: None if pool is None else Pool(pool.name(), pool.info()[3]) for folder, pool in pools.items()},
        present=tuple(present),
        media=media,
        networks=networks,
        bridges={name: _bridge(connection, name) for name in made_of.bridges},
        platform=platform,
        loader=None if loaders is None or not made_of.loader else made_of.loader in loaders,
        cpu=None if capabilities is None else _cpu(connection, made_of),
        certificates=_certificates(),
    )


def _host_uuid(connection: t.Any) -> str:
    return xml.parse(connection.getCapabilities()).findtext("host/uuid", "")


def _pool(connection: t.Any, folder: str) -> t.Any:
    """The running pool at a folder; what it holds and what is free there is looked up anew.

    libvirt remembers both from the last refresh, and guests have written since then.
    """
    pool = virt.found(lambda: connection.storagePoolLookupByTargetPath(folder))
    if pool is None or not pool.isActive():
        return None
    # refused while somebody makes a volume there; then what libvirt remembers is fresh
    with contextlib.suppress(virt.libvirt.libvirtError):
        pool.refresh()
    return pool


def _holds(pool: t.Any, name: str) -> bool:
    """Whether a pool has a file."""
    return pool is not None and virt.found(lambda: pool.storageVolLookupByName(name)) is not None


def _bridge(connection: t.Any, name: str) -> bool | None:
    try:
        return name in connection.listInterfaces()
    except virt.libvirt.libvirtError:  # a libvirt without its interface driver
        return None


def _cpu(connection: t.Any, made_of: Guest) -> bool | None:
    if made_of.cpu is None:
        return None
    lib = virt.libvirt
    try:
        verdict = connection.compareHypervisorCPU(
            made_of.emulator, made_of.arch, made_of.machine, made_of.type, made_of.cpu
        )
    except lib.libvirtError:
        return None
    return bool(verdict != lib.VIR_CPU_COMPARE_INCOMPATIBLE)


_QEMU_CONF = "/etc/libvirt/qemu.conf"
_CERTIFICATES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")


def _certificates() -> str | None:
    """The folder of this host's certificates for migration data, None when a file is missing there.

    qemu.conf: migrate_tls_x509_cert_dir, /etc/pki/libvirt-migrate if that exists,
    default_tls_x509_cert_dir, /etc/pki/qemu. A client falls back to the server's certificate.
    """
    settings = {}
    with contextlib.suppress(OSError), open(_QEMU_CONF, encoding="utf-8") as stream:
        settings = dict(re.findall(r'^\s*(\w+)\s*=\s*"([^"]*)"', stream.read(), re.MULTILINE))
    folder = settings.get("migrate_tls_x509_cert_dir") or "/etc/pki/libvirt-migrate"
    if not os.path.isdir(folder):
        folder = settings.get("default_tls_x509_cert_dir") or "/etc/pki/qemu"
    there = all(os.path.exists(os.path.join(folder, name)) for name in _CERTIFICATES)
    return folder if there else None


def digest(path: str) -> str | None:
    """sha256 of a file, None when it is not there."""
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except FileNotFoundError:
        return None
