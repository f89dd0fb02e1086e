"""Bare machines: QEMU without KVM, with a boot loader, a PCI tree and an IOMMU of their own.

`Machine` is the front door. A machine is booted once and saved; each that is wanted later goes on
from there, on a disk layer of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from . import cache, cgroup, hardware, image
from .errors import LabError, call, describe
from .fleet import boot_id, checked_names, render_inventory
from .hardware import Files
from .paths import HERE, STATE, locked
from .process import Process
from .qmp import Qmp

MACHINES = STATE / "metal"
PREFIX = "phyllome-metal-"
#: Seconds; several times what was seen where eight others used the two cores as well.
BOOT, RESUME = 1800, 900
#: The part of a command line that a machine has from its boot loader's configuration.
CMDLINE = f"root=UUID={image.ROOT_UUID} ro {image.WORDS}"

#: Joins the machine's cgroup.
# A machine goes first, before what else is done at the time: it is slow, but its timeouts are as short as those of a real one.
_START = """echo $$ > "$0/cgroup.procs" || exit 1
renice -n -10 -p $$ > /dev/null 2>&1
{ echo -10 > /proc/$$/autogroup; } 2> /dev/null
exec "$@"
"""


@dataclass(frozen=True)
class Record:
    """What is written down about a machine, before anything of it exists."""

    name: str
    iommu: str
    image: str
    boot: str  # of the outer machine
    owner: Process | None  # the process it belongs to; None when it is to stay until `down`

    @property
    def abandoned(self) -> bool:
        """Whether nobody can want it any more: its owner died, or the outer machine was restarted."""
        return self.boot != boot_id() or (self.owner is not None and not self.owner.alive)

    @property
    def folder(self) -> Path:
        """Where the machine keeps everything."""
        return MACHINES / self.name

    def save(self) -> None:
        """Write the record, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / "machine.json.new"
        aside.write_text(json.dumps(asdict(self)))
        aside.rename(self.folder / "machine.json")

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """Read a record; None if there is none, or one of another version of the lab."""
        try:
            data = json.loads((folder / "machine.json").read_text())
            return cls(**{**data, "owner": Process(**data["owner"]) if data["owner"] else None})
        except (FileNotFoundError, TypeError, KeyError):
            return None


def records() -> list[Record]:
    """The machines there are, by name."""
    found = (Record.load(path.parent) for path in sorted(MACHINES.glob("*/machine.json")))
    return [record for record in found if record]


def _group(name: str) -> Path:
    return cgroup.root() / f"{PREFIX}{name}"


def _disconnect(folder: Path) -> None:
    for path in folder.glob("ssh-*"):
        call("ssh", "-o", f"ControlPath={path}", "-O", "exit", image.NAME, check=False)


def _remove(name: str) -> None:
    """Remove everything of a machine, in whatever state it is. Needs the lock."""
    cgroup.end(_group(name))
    folder = MACHINES / name
    _disconnect(folder)
    (folder / "machine.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _collect() -> list[str]:
    """Remove what crashed labs left. Needs the lock."""
    written = {path.parent.name for path in MACHINES.glob("*/machine.json")}
    wanted = written - {record.name for record in records() if record.abandoned}
    seen = {path.name for path in MACHINES.glob("*/")}
    seen |= {path.name.removeprefix(PREFIX) for path in cgroup.root().glob(f"{PREFIX}*")}
    for name in sorted(seen - wanted):
        _remove(name)
    return sorted(seen - wanted)


def _lock() -> contextlib.AbstractContextManager[None]:
    return locked(STATE / "metal.lock")


def collect() -> list[str]:
    """Remove what crashed labs left and return the names of those machines."""
    with _lock():
        return _collect()


def clean(checkout_cache: Path) -> list[str]:
    """Remove every machine that stands on an image of this cache, and what crashed labs left."""
    doomed = [record.name for record in records() if Path(record.image).is_relative_to(checkout_cache)]
    with _lock():
        for name in doomed:
            _remove(name)
        _collect()
    return doomed


# -- the saved state ------------------------------------------------------------------------------


def saved() -> Path:
    """The folder with the state of a machine that was booted and has come to rest."""
    disk = image.image()
    version = call("qemu-system-x86_64", "--version") + call("dpkg-query", "-W", "ovmf")
    digest = cache.key(str(disk.folder.name), version, *hardware.command("intel", Files(Path("/"))), _SETTLE)
    return cache.made("metal-saved", digest, _save)


#: Waits for the end of booting, asks libvirt once, which takes it long only then, and reads what every test needs.
_SETTLE = """\
systemctl is-system-running --wait && virsh capabilities >/dev/null && virsh domcapabilities >/dev/null &&
python3 -c 'import json, zipfile, subprocess, libvirt, lxml.etree' && sync
"""


#: Sets the clock, and waits until the drives that were plugged in last are with the kernel, or with a guest's driver.
_READY = """\
date -u -s "@$1" > /dev/null; shift
for place; do
    until [ -d "/sys/bus/pci/devices/$place/nvme" ] || grep -qs vfio "/sys/bus/pci/devices/$place/driver_override"
    do sleep 0.2; done
done
"""


def _save(folder: Path) -> None:
    with Machine.create("intel", name=f"saving-{os.getpid()}") as machine:
        machine.boot(plug=False)
        machine.run(["sh", "-c", _SETTLE], timeout=BOOT)
        machine.disconnect()
        with machine.qmp() as qmp:
            qmp.execute("stop")
            qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
            qmp.execute("migrate", {"uri": f"exec:cat > {shlex.quote(str(folder / 'state'))}"})
            deadline = time.monotonic() + BOOT
            while (state := qmp.execute("query-migrate")["status"]) != "completed":
                if state == "failed" or time.monotonic() > deadline:
                    raise LabError(f"the state of the machine could not be saved: {state}")
                time.sleep(0.1)
        machine.poweroff()
        for path in (machine.files.disk, machine.files.variables):
            shutil.move(path, folder / path.name)


class Machine:
    """A machine that exists, on or off. `with Machine.up() as machine:` removes it at the end."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.files = Files(record.folder)
        self.image = image.Image(Path(record.image))

    # -- coming and going -------------------------------------------------------------------------

    @classmethod
    def create(
        cls, iommu: str = "intel", *, name: str | None = None, keep: bool = False, state: Path | None = None
    ) -> Machine:
        """Make a machine that is off.

        Args:
            iommu: one of hardware.IOMMUS.
            keep: it is to stay when this process ends, until `down`.
            state: what `saved` returned, if it is to go on from there.
        """
        name = name or f"pid-{os.getpid()}"
        checked_names([name])
        if iommu not in hardware.IOMMUS:
            raise LabError(f"there is no IOMMU {iommu!r}, only {' '.join(hardware.IOMMUS)}")
        disk = image.image()
        with _lock():
            _collect()
            if any(record.name == name for record in records()):
                raise LabError(f"a machine {name!r} is there already: remove it with `lab metal down --machine {name}`")
            record = Record(name, iommu, str(disk.folder), boot_id(), None if keep else Process.current())
            record.save()
        machine = cls(record)
        files = machine.files
        try:
            model = (state / files.disk.name, "qcow2") if state else (disk.disk, "raw")
            call("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(model[0]), "-F", model[1], str(files.disk))
            variables = state / files.variables.name if state else hardware.FIRMWARE[1]
            shutil.copyfile(variables, files.variables)
            with files.ssd.open("wb") as file:
                file.truncate(hardware.NVME_SIZE)
        except BaseException:
            machine.down()
            raise
        return machine

    @classmethod
    def up(
        cls, iommu: str = "intel", *, cmdline: str | None = None, name: str | None = None, keep: bool = False
    ) -> Machine:
        """A machine that answers, within seconds if it is the one that was saved.

        With `cmdline`, words for the kernel, it is booted past the boot loader; see `boot`.
        """
        state = saved() if iommu == "intel" and cmdline is None else None
        machine = cls.create(iommu, name=name, keep=keep, state=state)
        try:
            if state:
                machine._resume(state)
            else:
                machine.boot(cmdline)
        except BaseException:
            machine.down()
            raise
        return machine

    @classmethod
    def open(cls, name: str) -> Machine:
        """A machine that is there already."""
        for record in records():
            if record.name == name:
                return cls(record)
        raise LabError(f"there is no machine {name!r} (`lab metal list` names those there are)")

    def boot(self, cmdline: str | None = None, *, plug: bool = True) -> None:
        """Switch the machine on, and return when it answers and has all its devices.

        Args:
            cmdline: None for firmware, boot loader and what its configuration says. Else QEMU loads
                the kernel itself, which saves 20 seconds, with these words after the usual ones.
            plug: whether the devices go in that can be there only once it runs.
        """
        needed = hardware.NEEDED.get(self.record.iommu)
        if needed and needed not in (cmdline or "").split():
            raise LabError(f"with IOMMU {self.record.iommu} QEMU needs {needed} on the kernel command line")
        how = hardware.firmware(self.files)
        if cmdline is not None:
            kernel, initrd = self.image.kernel
            how = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", f"{CMDLINE} {cmdline}".strip()]
        self._start(how)
        self._answer(BOOT, plug)

    def _resume(self, state: Path) -> None:
        self._start([*hardware.firmware(self.files), "-incoming", f"exec:cat {shlex.quote(str(state / 'state'))}"])
        with self.qmp() as qmp:
            deadline = time.monotonic() + RESUME
            while qmp.execute("query-status")["status"] == "inmigrate":
                if time.monotonic() > deadline:
                    raise LabError(f"the state of {self.record.name} was not read in {RESUME} s")
                time.sleep(0.05)
            qmp.execute("cont")
        self._answer(RESUME, plug=True)

    def _start(self, how: Sequence[str]) -> None:
        if self.running:
            raise LabError(f"{self.record.name} is on already")
        group = _group(self.record.name)
        cgroup.end(group)
        group.mkdir()
        tied = ("setpriv", "--pdeathsig", "KILL") if self.record.owner else ()
        self.files.qmp.unlink(missing_ok=True)
        with (self.record.folder / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                ("sh", "-c", _START, str(group), *tied, *hardware.command(self.record.iommu, self.files), *how),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self.files.qmp.exists():
            if process.poll() is not None:
                raise LabError(f"QEMU did not start: {self._log('qemu.log')}")
            time.sleep(0.02)
        with self.qmp() as qmp:
            table = qmp.execute("human-monitor-command", {"command-line": "info usernet"})
        found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", table)
        if not found:
            raise LabError(f"QEMU forwards no port to {self.record.name}: {table}")
        self.files.port.write_text(found.group(1))

    def _answer(self, timeout: float, plug: bool) -> None:
        """Wait until the machine answers; set its clock, and plug in what is still missing."""
        started = time.monotonic()
        deadline = started + timeout
        # one that took long to come up will also take long to greet, and longer if it is asked all the time
        while not self._greets(10 + (time.monotonic() - started) / 4):
            if not self.running:
                raise LabError(f"{self.record.name} went off: {self._log('qemu.log')}{self._log('console.log')}")
            if time.monotonic() > deadline:
                said = self._log("console.log")
                raise LabError(f"{self.record.name} does not answer after {timeout:.0f} s; its console said:\n{said}")
            time.sleep(0.2)
        if plug:
            for device in hardware.LATE:
                self.plug(device)
        places = {device["qdev_id"]: device["address"] for device in self.devices()}
        late = [places[str(device["id"])] for device in hardware.LATE] if plug else []
        self.run(["sh", "-c", _READY, "sh", f"{time.time():.3f}", *late], timeout=timeout)

    def _greets(self, patience: float) -> bool:
        """Whether the machine's sshd says hello: QEMU itself takes every connection, whoever listens behind it."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=patience) as probe,
        ):
            return probe.recv(4) == b"SSH-"
        return False

    @property
    def running(self) -> bool:
        """Whether the power is on."""
        return any(cgroup.pids(_group(self.record.name)))

    def poweroff(self) -> None:
        """Cut the power."""
        cgroup.end(_group(self.record.name))
        self.disconnect()

    def down(self) -> None:
        """Remove the machine and everything of it."""
        with _lock():
            _remove(self.record.name)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def condition(self) -> str:
        """What can be said of a machine that may have failed: whether it answers, its journal, and where its processors are."""
        said = "it is off\n"
        if self.running and self._greets(10):
            said = self.run(["sh", "-c", "uptime; journalctl -q -n 40"], timeout=300, check=False).stdout
        elif self.running:
            with self.qmp() as qmp:
                registers = qmp.execute("human-monitor-command", {"command-line": "info registers -a"})
            where = re.findall(r"CPU#\d+|RIP=\w+|HLT=\d", registers)
            said = f"it does not answer: {' '.join(where)}\n"
        return f"{said}\n{self._log('qemu.log')}\n{self._log('console.log')}"

    def _log(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.record.folder / name).read_text(errors="replace")[-3000:]
        return ""

    # -- its hardware -----------------------------------------------------------------------------

    def qmp(self) -> Qmp:
        """QEMU's control connection, to use in a `with` block."""
        return Qmp(self.files.qmp)

    def plug(self, device: Mapping[str, object]) -> None:
        """Plug a device in: `driver`, `id`, `bus` and its other properties."""
        with self.qmp() as qmp:
            qmp.execute("device_add", device)

    def unplug(self, name: str) -> None:
        """Ask the machine to let go of a device."""
        with self.qmp() as qmp:
            qmp.execute("device_del", {"id": name})

    def devices(self) -> Iterator[dict[str, Any]]:
        """Every PCI function QEMU has in this machine, as its `query-pci` describes it, with its `address`."""

        def below(bus: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
            for device in bus["devices"]:
                address = f"0000:{number:02x}:{device['slot']:02x}.{device['function']}"
                yield {**device, "address": address}
                if "pci_bridge" in device:
                    bridge = device["pci_bridge"]
                    yield from below({"devices": bridge.get("devices", [])}, bridge["bus"]["secondary"])

        with self.qmp() as qmp:
            for bus in qmp.execute("query-pci"):
                yield from below(bus, bus["bus"])

    # -- how Ansible and people reach it ----------------------------------------------------------

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 that leads to the machine's ssh."""
        return int(self.files.port.read_text())

    def ssh_options(self) -> list[str]:
        """Options for ssh: key and known hosts of the image, and one kept connection."""
        settings = {
            "Port": self.port,
            "HostKeyAlias": image.NAME,
            "IdentityFile": self.image.key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.image.known_hosts,
            "StrictHostKeyChecking": "yes",
            "LogLevel": "ERROR",
            "ControlMaster": "auto",
            "ControlPersist": "600s",
            "ControlPath": self.record.folder / "ssh-%p-%r",
            "ConnectTimeout": 180,
            "ServerAliveInterval": 15,
            "ServerAliveCountMax": 20,
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def ssh(self) -> list[str]:
        """The command line of ssh, to which the remote command is added."""
        return ["ssh", *self.ssh_options(), "root@127.0.0.1"]

    def disconnect(self) -> None:
        """End the ssh connection that is kept open."""
        _disconnect(self.record.folder)

    def inventory_text(self) -> str:
        """The machine as an Ansible inventory in YAML."""
        return render_inventory({self.record.name: "127.0.0.1"}, self.image.key, self.ssh_options())

    def inventory(self, path: Path) -> Path:
        """Write the inventory to `path` and return it."""
        path.write_text(self.inventory_text())
        return path

    # -- commands and files -----------------------------------------------------------------------

    def run_bytes(
        self, argv: Sequence[str], *, input: bytes | None = None, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program in the machine as root, by ssh; its output is not decoded."""
        command = [*self.ssh(), shlex.join(argv)]
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        try:
            done = subprocess.run(command, **how, capture_output=True, check=False, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.record.name}: {shlex.join(argv)} did not end in {timeout:.0f} s") from error
        if check and done.returncode:
            raise LabError(f"{self.record.name}: {describe(argv, done.returncode, done.stderr or done.stdout)}")
        return done

    def run(
        self, argv: Sequence[str], *, input: str | None = None, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine as root. LabError if it fails and `check` is set."""
        data = None if input is None else input.encode()
        done = self.run_bytes(argv, input=data, check=check, timeout=timeout)
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def read(self, path: str) -> str:
        """The content of a file of the machine."""
        return self.run(["cat", path]).stdout

    def keep_compiled(self) -> None:
        """Have modules that Ansible sends compiled once; see lab_compiled."""
        script = (
            "mkdir -p /var/cache/lab-python; cd /usr/lib/python3/dist-packages; cat > lab_compiled.py; "
            "echo import lab_compiled > lab.pth; sync"
        )
        self.run_bytes(["sh", "-ec", script], input=(HERE / "lab_compiled.py").read_bytes())

    def put(self, source: Path, path: str) -> None:
        """Copy a file into the machine."""
        self.run_bytes(["sh", "-c", 'cat > "$1"', "sh", path], input=source.read_bytes())
