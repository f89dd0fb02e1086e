"""One host of a fleet: a container with systemd as its init, sshd and a disk layer of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import base, cgroup, network, outer
from .base import Base
from .counter import SECTOR, Counter, parse_console, parse_counter
from .errors import LabError, call, describe
from .paths import HERE
from .process import Process, start_time

ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "USER": "root",
}

#: A folder that all hosts of a fleet have in common.
SHARED = "/srv/shared"

#: What a guest has counted before it was booted for the first time.
UNBOOTED = Counter(0, 0)

#: Keeps a host going: joins the host's cgroup, mounts its tree where only it and its children see
#: it, and starts the container again whenever that asks for a reboot (exit status 133). What
#: systemd-nspawn itself keeps of a container is hidden with the tree, and so goes with it.
_KEEPER = """
echo $$ > "$1/cgroup.procs" && mount -t overlay lab -o "$2" "$3" || exit 1
mkdir -p /run/systemd/nspawn && mount -t tmpfs lab /run/systemd/nspawn || exit 1
shift 3
while :; do "$@"; test $? -eq 133 || exit; done
"""

_NETWORK = """\
[Match]
Name=host0
[Network]
Address={address}/24
Gateway={gateway}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


@dataclass(frozen=True)
class Host:
    """A host by its place in the fleet: `index` counts from 1 in the order hosts were named."""

    name: str
    fleet: int
    index: int
    state: Path  # the fleet's folder

    # -- names and places -------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The host's address in the fleet's network."""
        return network.address(self.fleet, self.index)

    @property
    def port(self) -> str:
        """The outer end of the host's network cable."""
        return network.port(self.fleet, self.index)

    @property
    def folder(self) -> Path:
        """What the host has written, and the log of its console."""
        return self.state / "hosts" / self.name

    @property
    def _shared(self) -> Path:
        return self.state / "shared"

    @property
    def _group(self) -> Path:
        return cgroup.of_host(self.fleet, self.name)

    def _leader(self) -> int | None:
        """The host's init as the outer machine numbers it, None while there is none."""
        with contextlib.suppress(OSError):
            text = (self._group / "payload/init.scope/cgroup.procs").read_text().split()
            return int(text[0]) if text else None
        return None

    @property
    def running(self) -> bool:
        """Whether the host has an init."""
        return self._leader() is not None

    # -- coming and going -------------------------------------------------------------------------

    def prepare(self, model: Base, hosts: Mapping[str, str], authorised: str) -> str:
        """Write what makes this host itself; return its ssh host key."""
        upper = self.folder / "upper"
        for folder in (upper, self.folder / "work", self.folder / "root"):
            folder.mkdir(parents=True, mode=0o755)
        files = dict(outer.files())
        # both, since a base may have been given one by the package dbus
        files["etc/machine-id"] = files["var/lib/dbus/machine-id"] = f"{uuid.uuid4().hex}\n".encode()
        files["etc/hostname"] = f"{self.name}\n".encode()
        files["etc/hosts"] += "".join(f"{address} {name}\n" for name, address in hosts.items()).encode()
        files["etc/systemd/network/10-lab.network"] = _NETWORK.format(
            address=self.address, gateway=network.gateway(self.fleet)
        ).encode()
        files["root/.ssh/authorized_keys"] = authorised.encode()
        files["usr/lib/python3/dist-packages/lab.pth"] = b"import lab_compiled\n"
        files["usr/lib/python3/dist-packages/lab_compiled.py"] = (HERE / "lab_compiled.py").read_bytes()
        for path, content in files.items():
            base.write(model, upper, path, content)
        (upper / "root/.ssh").chmod(0o700)
        key = upper / "etc/ssh/ssh_host_ed25519_key"
        base.write(model, upper, "etc/ssh/sshd_config.d/lab.conf", b"UseDNS no\n")
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key))
        debs = upper / "var/cache/apt/archives"
        base.write(model, upper, "var/cache/apt/archives/partial/.lab", b"")
        (debs / "partial/.lab").unlink()
        base.write(model, upper, "var/cache/lab-python/.lab", b"")
        base.share(base.archives().glob("*.deb"), debs)
        return key.with_suffix(".pub").read_text()

    def start(self, model: Base) -> None:
        """Switch the host on without waiting for it."""
        cgroup.end(self._group)
        self._group.mkdir()
        self._shared.mkdir(exist_ok=True)
        # the mark a volatile overlay leaves so that nobody trusts it after a crash: the lab does
        shutil.rmtree(self.folder / "work/work/incompat", ignore_errors=True)
        options = base.mount_options(model.layers, self.folder / "upper", self.folder / "work")
        root = str(self.folder / "root")
        container = (
            "systemd-nspawn",
            f"--directory={root}",
            "--boot",
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--settings=no",
            f"--machine={network.machine(self.fleet, self.index)}",
            f"--hostname={self.name}",
            f"--network-bridge={network.bridge(self.fleet)}",
            "--capability=all",
            "--bind=/dev/net/tun",
            f"--bind={self._shared}:{SHARED}",
            "--console=pipe",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
        )
        with (self.folder / "console.log").open("ab") as log:
            subprocess.Popen(
                ("unshare", "--mount", "sh", "-c", _KEEPER, "lab", str(self._group), options, root, *container),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": ENVIRONMENT["PATH"], "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )

    def wait(self, timeout: float = 60) -> None:
        """Return when the host has finished booting and answers on its ssh port."""
        deadline = time.monotonic() + timeout
        state = "off"
        while time.monotonic() < deadline:
            if self.running:
                state = self.run(["systemctl", "is-system-running"], check=False).stdout.strip()
                if state == "degraded":
                    failed = self.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
                    raise LabError(f"{self.name} has failed units:\n{failed}")
                if state == "running":
                    with contextlib.suppress(OSError):
                        socket.create_connection((self.address, 22), timeout=2).close()
                        return
            time.sleep(0.1)
        log = (self.folder / "console.log").read_text(errors="replace")[-2000:]
        raise LabError(f"{self.name} is {state or 'booting'} after {timeout:.0f} s; its console said:\n{log}")

    def reboot(self, timeout: float = 60) -> None:
        """Shut the host down in an orderly way, and wait until it is up again."""
        boot = "/proc/sys/kernel/random/boot_id"
        before = self.read(boot)
        self.run(["systemctl", "reboot"], check=False)
        self.close_ssh()
        deadline = time.monotonic() + timeout
        while not self.running or self.run_bytes(["cat", boot], check=False).stdout in (b"", before):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} did not go down and up again in {timeout:.0f} s")
            time.sleep(0.1)
        self.wait(timeout)

    def poweroff(self) -> None:
        """Cut the power: every process of the host ends at once."""
        cgroup.end(self._group)
        self.close_ssh()

    def close_ssh(self) -> None:
        """End the ssh connections that are kept open to this host."""
        for path in (self.state / "ssh").glob(f"{self.address}-*"):
            call("ssh", "-o", f"ControlPath={path}", "-O", "exit", self.address, check=False)

    def keep_packages(self) -> None:
        """Put the packages this host has downloaded where the next host finds them."""
        base.share((self.folder / "upper/var/cache/apt/archives").glob("*.deb"), base.archives())

    # -- commands and files -----------------------------------------------------------------------

    def entering(self, argv: Sequence[str]) -> list[str]:
        """The outer command line that runs `argv` in the host, as the host's own process."""
        leader = self._leader()
        if leader is None:
            raise LabError(f"{self.name} is off")
        group = self._group / "payload" / "lab"
        group.mkdir(exist_ok=True)
        join = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return ["sh", "-c", join, str(group), "nsenter", "--target", str(leader), "--all", *argv]

    def run_bytes(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        check: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program in the host as root; its output is not decoded."""
        process = subprocess.Popen(
            self.entering(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(input, timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise LabError(
                    f"{self.name}: {shlex.join(argv)} did not end in {timeout:.0f} s; so far: "
                    f"{(out + err).decode(errors='replace')[-2000:]}"
                ) from error
            raise
        if check and process.returncode:
            raise LabError(f"{self.name}: {describe(argv, process.returncode, err or out)}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        check: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the host as root. LabError if it fails and `check` is set."""
        data = None if input is None else input.encode()
        done = self.run_bytes(argv, input=data, check=check, timeout=timeout)
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def put(self, local: Path | str, remote: str, mode: int = 0o644) -> None:
        """Copy a file of the outer machine into the host; what is empty in it stays sparse."""
        script = 'dd of="$1" bs=64k iflag=fullblock conv=sparse status=none && chmod "$2" "$1"'
        with Path(local).open("rb") as file:
            done = subprocess.run(
                self.entering(["sh", "-c", script, "sh", remote, f"{mode:o}"]),
                stdin=file,
                capture_output=True,
                env=ENVIRONMENT,
                check=False,
            )
        if done.returncode:
            raise LabError(f"{self.name}: cannot write {remote}: {done.stderr.decode(errors='replace')}")

    def write(self, remote: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file in the host, and its folder if that is missing."""
        data = content.encode() if isinstance(content, str) else content
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"'
        self.run_bytes(["sh", "-c", script, "sh", remote, f"{mode:o}"], input=data)

    def read(self, remote: str) -> bytes:
        """The content of a file in the host."""
        return self.run_bytes(["cat", "--", remote]).stdout

    # -- guests -----------------------------------------------------------------------------------

    def counter(self, disk: str) -> Counter:
        """What a counter guest has written to its disk, running or not, raw or qcow2."""
        script = (
            'f=$(mktemp) && qemu-img dd -U -O raw bs=512 count=2 if="$1" of="$f" >&2 && cat "$f"; s=$?; '
            'rm -f "$f"; exit $s'
        )
        sectors = self.run_bytes(["sh", "-c", script, "sh", disk]).stdout
        return parse_counter(sectors[SECTOR : 2 * SECTOR])

    def console_text(
        self,
        guest: str,
        seconds: float,
        uri: str = "qemu:///system",
        enough: Callable[[str], object] = lambda text: False,
    ) -> str:
        """What a guest prints on its serial console in the next `seconds`, or until that is enough."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            self.entering(["virsh", "--connect", uri, "console", "--force", guest]),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**ENVIRONMENT, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(theirs)
        text = b""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0 and not enough(text.decode(errors="replace")):
                if select.select([ours], [], [], left)[0]:
                    text += os.read(ours, 65536)
        except OSError:  # the console was closed at the other end
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(ours)
        return text.decode(errors="replace")

    def console(self, guest: str, seconds: float = 3, uri: str = "qemu:///system") -> list[Counter]:
        """What a counter guest prints on its serial console in the next `seconds`."""
        return parse_console(self.console_text(guest, seconds, uri))

    def heard(self, guest: str, beyond: Counter = UNBOOTED, seconds: float = 120) -> Counter:
        """Wait until a counter guest prints on its serial console a count beyond one, and return that."""

        def further(text: str) -> list[Counter]:
            return [seen for seen in parse_console(text) if seen > beyond]

        deadline, text = time.monotonic() + seconds, ""
        while (left := deadline - time.monotonic()) > 0:
            text = self.console_text(guest, left, enough=further)
            if seen := further(text):
                return seen[0]
        raise LabError(f"{guest} at {self.name} printed no count beyond {beyond} in {seconds:.0f} s: {text[-500:]!r}")

    # -- faults -----------------------------------------------------------------------------------

    def processes(self, pattern: str) -> dict[int, str]:
        """Outer pid and command line of the host's processes whose command line matches."""
        found = {}
        for pid in cgroup.pids(self._group / "payload"):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
                if re.search(pattern, line):
                    found[pid] = line
        return found

    def kill(self, which: str | int, number: signal.Signals = signal.SIGKILL) -> list[str]:
        """Send a signal to processes of this host and return their command lines.

        `which` is a pid as the host sees it, or a regular expression for the command line.
        """
        found = self.processes(which if isinstance(which, str) else "")
        killed = []
        for pid, line in found.items():
            process = Process(pid, start_time(pid) or 0)
            with contextlib.suppress(OSError):
                inner = re.search(r"^NSpid:.*\s(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
                if isinstance(which, int) and (not inner or int(inner.group(1)) != which):
                    continue
                # looked up by cgroup, so ours; still there, so not somebody else's by now
                if pid in cgroup.pids(self._group) and process.send(number):
                    killed.append(line)
        if not killed:
            raise LabError(f"{self.name} has no process {which!r}")
        return killed

    def link(self, up: bool) -> None:
        """Plug the host's network cable in or pull it out."""
        call("ip", "link", "set", self.port, "up" if up else "down")

    def limit(self, path: str, size: str) -> None:
        """Cover a folder of the host with an empty file system of `size` (as 64M), to fill it up."""
        script = (
            'mkdir -p "$1" && mount -t tmpfs -o "size=$2,mode=$(stat -c %a "$1"),'
            'uid=$(stat -c %u "$1"),gid=$(stat -c %g "$1")" lab-limit "$1"'
        )
        self.run(["sh", "-c", script, "sh", path, size])

    def share(self, path: str, size: str = "1G") -> None:
        """Cover a folder of the host with an empty XFS of `size` whose files can share blocks."""
        script = (
            "set -e; [ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237; image=$(mktemp /srv/shared.XXXXXX); "
            'truncate -s "$2" "$image"; mkfs.xfs -q -m reflink=1 "$image"; number=$(losetup -f | tr -dc 0-9); '
            '[ -e "/dev/loop$number" ] || mknod "/dev/loop$number" b 7 "$number"; mkdir -p "$1"; '
            'mode=$(stat -c %a "$1"); mount -o loop "$image" "$1"; chmod "$mode" "$1"; rm "$image"'
        )
        self.run(["apt-get", "install", "-qy", "--no-install-recommends", "xfsprogs"])
        self.run(["sh", "-c", script, "sh", path, size])

    def unlimit(self, path: str) -> None:
        """Take away what `limit` or `share` put over a folder, with everything in it."""
        self.run(["umount", "--lazy", path])
