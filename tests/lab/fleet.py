"""A fleet: hosts on one bridge, and the record of it by which it is found and removed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from . import cgroup, network
from .base import BASES, Base
from .errors import LabError, call
from .host import Host
from .paths import STATE, locked
from .process import Process

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_LOCK = STATE / "lock"
_FORWARD_BEFORE = STATE / "ip_forward"


@dataclass(frozen=True)
class Record:
    """What is written down about a fleet, before anything of it exists."""

    number: int
    name: str
    base: str
    layers: tuple[str, ...]  # of the base, as it was when the fleet came up
    hosts: tuple[str, ...]
    boot: str  # of the outer machine
    owner: Process | None  # the process it belongs to; None when it is to stay until `down`

    @property
    def abandoned(self) -> bool:
        """Whether nobody can want it any more: its owner died, or the machine was restarted."""
        return self.boot != boot_id() or (self.owner is not None and not self.owner.alive)

    @property
    def folder(self) -> Path:
        """Where the fleet keeps everything."""
        return STATE / str(self.number)

    def save(self) -> None:
        """Write the record, whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        aside = self.folder / "fleet.json.new"
        aside.write_text(json.dumps(asdict(self)))
        aside.rename(self.folder / "fleet.json")

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """Read a record; None if there is none, or one of another version of the lab."""
        try:
            data = json.loads((folder / "fleet.json").read_text())
            owner = Process(**data["owner"]) if data["owner"] else None
            return cls(**{**data, "layers": tuple(data["layers"]), "hosts": tuple(data["hosts"]), "owner": owner})
        except (FileNotFoundError, TypeError, KeyError):
            return None


def boot_id() -> str:
    """Which boot of the outer machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def checked_names(names: Iterable[str]) -> list[str]:
    """The names, if each can name a fleet or a host and none comes twice."""
    names = list(names)
    for name in names:
        if not _NAME.fullmatch(name):
            raise LabError(f"{name!r} is no name: a to z, digits and dashes, a letter first, at most 32")
    if len(set(names)) != len(names):
        raise LabError(f"a name comes twice: {' '.join(names)}")
    return names


def free_number(taken: set[int]) -> int:
    """The lowest number no fleet has."""
    for number in range(255):
        if number not in taken:
            return number
    raise LabError("255 fleets are up: remove some (`lab list`, `lab down`)")


def recorded() -> dict[int, Record | None]:
    """All fleets that are written down; None for one that another version of the lab has written."""
    return {int(path.parent.name): Record.load(path.parent) for path in STATE.glob("*/fleet.json")}


def records() -> list[Record]:
    """The fleets this lab knows how to handle, by number."""
    return [record for _, record in sorted(recorded().items()) if record]


def _remove(number: int) -> None:
    """Remove everything of a fleet, in whatever state it is. Needs the lock."""
    folder = STATE / str(number)
    record = Record.load(folder)
    for group in cgroup.of_fleet(number):
        cgroup.end(group)
    if record:
        for host in _hosts(record):
            host.close_ssh()
            host.keep_packages()
    network.down(number)
    # a folder without a record belongs to nobody, so it is the record that goes first
    (folder / "fleet.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if not recorded() and _FORWARD_BEFORE.exists():
        network.FORWARD.write_text(_FORWARD_BEFORE.read_text())
        _FORWARD_BEFORE.unlink()


def abandoned(known: Mapping[int, Record | None], number: int) -> bool:
    """Whether what there is of fleet `number` can go: nothing is written of it, or nobody wants it."""
    record = known.get(number)
    return record.abandoned if record else number not in known


def _collect() -> list[int]:
    """Remove what crashed labs left. Needs the lock."""
    known = recorded()
    groups = (path.name.removeprefix(cgroup.PREFIX).split("-")[0] for path in cgroup.root().glob(f"{cgroup.PREFIX}*"))
    seen = {int(path.name) for path in STATE.glob("[0-9]*")} | network.leftovers() | {int(text) for text in groups}
    gone = sorted(number for number in seen if abandoned(known, number))
    for number in gone:
        _remove(number)
    return gone


def collect() -> list[int]:
    """Remove what crashed labs left and return the numbers of those fleets."""
    with locked(_LOCK):
        return _collect()


def clean(checkout_cache: Path) -> list[str]:
    """Remove every fleet that stands on a base of this cache, and what crashed labs left."""
    doomed = [r for r in records() if any(Path(layer).is_relative_to(checkout_cache) for layer in r.layers)]
    for record in doomed:
        Fleet(record).down()
    collect()
    return [record.name for record in doomed]


def _hosts(record: Record) -> list[Host]:
    return [Host(name, record.number, i, record.folder) for i, name in enumerate(record.hosts, 1)]


class Fleet:
    """A fleet that exists. `with Fleet.create([...]) as fleet:` removes it at the end."""

    def __init__(self, record: Record) -> None:
        self.record = record

    # -- coming and going -------------------------------------------------------------------------

    @classmethod
    def create(cls, hosts: Sequence[str], *, name: str | None = None, base: str = "ready") -> Fleet:
        """Bring up a new fleet, which belongs to this process until `release`.

        `base` is `bare` (a Linux install) or `ready` (libvirt and QEMU installed too).
        """
        name = name or f"pid-{os.getpid()}"
        checked_names([name])
        checked_names(hosts)
        if base not in BASES:
            raise LabError(f"there is no base {base!r}, only {' and '.join(BASES)}")
        model = BASES[base]()
        with locked(_LOCK):
            _collect()
            if any(record.name == name for record in records()):
                raise LabError(f"a fleet {name!r} is up already: remove it with `lab down --fleet {name}`")
            number = free_number(set(recorded()))
            if not recorded():
                _FORWARD_BEFORE.write_text(network.FORWARD.read_text())
            layers = tuple(map(str, model.layers))
            record = Record(number, name, base, layers, (), boot_id(), Process.current())
            record.save()
        fleet = cls(record)
        try:
            network.up(number)
            (record.folder / "ssh").mkdir(mode=0o700)
            call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {name}", "-f", str(fleet.key))
            fleet.add(hosts)
        except BaseException:
            fleet.down()
            raise
        return fleet

    @classmethod
    def open(cls, name: str) -> Fleet:
        """A fleet that is up already."""
        for record in records():
            if record.name == name:
                return cls(record)
        raise LabError(f"no fleet {name!r} is up (`lab list` names those that are)")

    def add(self, hosts: Sequence[str]) -> None:
        """Add hosts to the fleet and wait until they are up."""
        names = checked_names([*self.record.hosts, *hosts])
        self.record = replace(self.record, hosts=tuple(names))
        self.record.save()
        addresses = {host.name: host.address for host in self.hosts}
        new = [self.host(name) for name in hosts]
        authorised = self.key.with_suffix(".pub").read_text()
        with (self.record.folder / "known_hosts").open("a") as known:
            for host in new:
                known.write(f"{host.address} {host.prepare(self._base, addresses, authorised)}")
        for host in self.hosts:
            if host not in new and host.running:
                lines = "".join(f"{other.address} {other.name}\n" for other in new)
                host.run(["sh", "-c", "cat >> /etc/hosts"], input=lines)
        for host in new:
            host.start(self._base)
        for host in new:
            host.wait()

    def release(self) -> None:
        """Let the fleet stay up when this process ends."""
        self.record = replace(self.record, owner=None)
        self.record.save()

    def down(self) -> None:
        """Remove the fleet and everything of it."""
        with locked(_LOCK):
            _remove(self.record.number)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def _base(self) -> Base:
        return Base(self.record.base, tuple(map(Path, self.record.layers)))

    # -- hosts ------------------------------------------------------------------------------------

    @property
    def hosts(self) -> list[Host]:
        """The hosts in the order they were named."""
        return _hosts(self.record)

    def host(self, name: str) -> Host:
        """A host by name."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"fleet {self.record.name} has no host {name!r}, only {' '.join(self.record.hosts)}")

    def boot(self, name: str) -> None:
        """Switch a host on that is off, and wait until it is up."""
        host = self.host(name)
        if host.running:
            raise LabError(f"{name} is running already")
        host.start(self._base)
        host.wait()

    def reboot(self, name: str) -> None:
        """Shut a host down in an orderly way and boot it again."""
        self.host(name).reboot()

    # -- how Ansible and people reach it ----------------------------------------------------------

    @property
    def key(self) -> Path:
        """The private key that root of every host accepts."""
        return self.record.folder / "id_ed25519"

    def ssh_options(self) -> list[str]:
        """Options for ssh: this fleet's key and known hosts, and one kept connection per host."""
        folder = self.record.folder
        settings = {
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": folder / "known_hosts",
            "StrictHostKeyChecking": "yes",
            "LogLevel": "ERROR",
            "ControlMaster": "auto",
            "ControlPersist": "60s",
            "ControlPath": folder / "ssh" / "%h-%p-%r",
            "ServerAliveInterval": 5,
            "ServerAliveCountMax": 6,
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def inventory_text(self) -> str:
        """The fleet as an Ansible inventory in YAML."""
        return render_inventory({host.name: host.address for host in self.hosts}, self.key, self.ssh_options())

    def inventory(self, path: Path) -> Path:
        """Write the inventory to `path` and return it."""
        path.write_text(self.inventory_text())
        return path

    # -- faults -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def dropping(
        self, source: str, target: str, port: int, *, protocol: str = "tcp", side: str = "dport"
    ) -> Iterator[None]:
        """Lose packets from `source` to `target` while the block runs; see `drop`."""
        handle = self.drop(source, target, port, protocol=protocol, side=side)
        try:
            yield
        finally:
            self.undrop(handle)

    def drop(self, source: str, target: str, port: int, *, protocol: str = "tcp", side: str = "dport") -> int:
        """Lose packets from host `source` to host `target` and return a handle to end that.

        With `side` dport `port` is the target's (requests are lost), with sport the source's (replies).
        """
        ends = (self.host(source).port, self.host(target).port)
        rule = network.drop_rule(*ends, port, protocol, side)
        printed = call("nft", "--echo", "--handle", "add", "rule", "bridge", self._table, "faults", *rule.split())
        return network.handle(printed)

    def undrop(self, handle: int) -> None:
        """End what `drop` began."""
        call("nft", "delete", "rule", "bridge", self._table, "faults", "handle", str(handle))

    def heal(self) -> None:
        """End all drops and plug all cables in."""
        call("nft", "flush", "chain", "bridge", self._table, "faults")
        for host in self.hosts:
            if host.running:
                host.link(up=True)

    @property
    def _table(self) -> str:
        return network.table(self.record.number)


def render_inventory(hosts: dict[str, str], key: Path, options: list[str]) -> str:
    """An inventory with group phyllome_hosts; `hosts` maps names to addresses."""
    lines = ["phyllome_hosts:", "  hosts:"]
    lines += [f"    {name}: {{ansible_host: {address}}}" for name, address in hosts.items()]
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_args": " ".join(options),
        "ansible_pipelining": True,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    lines += ["  vars:", *(f"    {name}: {json.dumps(value)}" for name, value in variables.items())]
    return "\n".join(lines) + "\n"
