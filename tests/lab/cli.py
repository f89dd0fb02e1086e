"""The `lab` command: fleets for people, and for scripts that are not Python."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

from . import base, counter, fleet, hardware, image, linux, metal
from .cache import say
from .errors import LabError
from .fleet import Fleet
from .host import ENVIRONMENT
from .metal import Machine
from .paths import cache_dir

DEFAULT = "default"


def _up(options: argparse.Namespace) -> None:
    started = time.monotonic()
    if any(record.name == options.fleet and not record.abandoned for record in fleet.records()):
        found = Fleet.open(options.fleet)
        there = set(found.record.hosts)
        for name in options.hosts:
            if name in there and not found.host(name).running:
                found.boot(name)
        found.add([name for name in options.hosts if name not in there])
    else:
        found = Fleet.create(options.hosts, name=options.fleet, base=options.base)
        found.release()
    say(f"fleet {options.fleet} is up after {time.monotonic() - started:.1f} s")
    _show(found)


def _show(found: Fleet) -> None:
    record = found.record
    state = "abandoned" if record.abandoned else f"of process {record.owner.pid}" if record.owner else "up"
    print(f"{record.name} ({record.base}, {state})")
    for host in found.hosts:
        print(f"  {host.name:<12} {host.address:<12} {'running' if host.running else 'off'}")


def _down(options: argparse.Namespace) -> None:
    Fleet.open(options.fleet).down()


def _list(options: argparse.Namespace) -> None:
    del options
    for record in fleet.records():
        _show(Fleet(record))


def _inventory(options: argparse.Namespace) -> None:
    print(Fleet.open(options.fleet).inventory_text(), end="")


def _ssh(options: argparse.Namespace) -> None:
    found = Fleet.open(options.fleet)
    target = f"root@{found.host(options.host).address}"
    command = [" ".join(options.command)] if options.command else []
    os.execvp("ssh", ["ssh", "-i", str(found.key), *found.ssh_options(), target, *command])


def _exec(options: argparse.Namespace) -> int:
    argv = Fleet.open(options.fleet).host(options.host).entering(options.command or ["bash"])
    environment = {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
    return subprocess.run(argv, env=environment, check=False).returncode


def _build(options: argparse.Namespace) -> None:
    del options
    base.ready()
    counter.images()
    linux.images()
    image.image()  # not booted yet: that wants the processors for itself, as the first machine that comes up has them


def _gc(options: argparse.Namespace) -> None:
    del options
    fleets, machines = fleet.collect(), metal.collect()
    gone = [*(f"fleet {number}" for number in fleets), *(f"machine {name}" for name in machines)]
    say(f"removed what was abandoned: {', '.join(gone)}" if gone else "nothing was left over")


def _clean(options: argparse.Namespace) -> None:
    del options
    for name in fleet.clean(cache_dir()):
        say(f"removed fleet {name}")
    for name in metal.clean(cache_dir()):
        say(f"removed machine {name}")


def _kill(options: argparse.Namespace) -> None:
    name = f"SIG{options.signal.upper().removeprefix('SIG')}"
    if name not in signal.Signals.__members__:
        raise LabError(f"there is no signal {options.signal!r}")
    which = int(options.which) if options.which.isdigit() else options.which
    for line in Fleet.open(options.fleet).host(options.host).kill(which, signal.Signals[name]):
        print(line)


def _link(options: argparse.Namespace) -> None:
    Fleet.open(options.fleet).host(options.host).link(options.state == "up")


def _drop(options: argparse.Namespace) -> None:
    side = "sport" if options.replies else "dport"
    Fleet.open(options.fleet).drop(
        options.source, options.target, options.port, protocol="udp" if options.udp else "tcp", side=side
    )


def _heal(options: argparse.Namespace) -> None:
    Fleet.open(options.fleet).heal()


def _poweroff(options: argparse.Namespace) -> None:
    Fleet.open(options.fleet).host(options.host).poweroff()


def _boot(options: argparse.Namespace) -> None:
    Fleet.open(options.fleet).boot(options.host)


def _reboot(options: argparse.Namespace) -> None:
    Fleet.open(options.fleet).reboot(options.host)


def _limit(options: argparse.Namespace) -> None:
    Fleet.open(options.fleet).host(options.host).limit(options.path, options.size)


def _unlimit(options: argparse.Namespace) -> None:
    Fleet.open(options.fleet).host(options.host).unlimit(options.path)


def _metal_up(options: argparse.Namespace) -> None:
    started = time.monotonic()
    Machine.up(options.iommu, cmdline=options.cmdline, name=options.machine, keep=True)
    say(f"machine {options.machine} is up after {time.monotonic() - started:.1f} s")


def _metal_down(options: argparse.Namespace) -> None:
    Machine.open(options.machine).down()


def _metal_list(options: argparse.Namespace) -> None:
    del options
    for record in metal.records():
        state = "abandoned" if record.abandoned else "running" if Machine(record).running else "off"
        print(f"{record.name:<12} {record.iommu:<8} {state}")


def _metal_inventory(options: argparse.Namespace) -> None:
    print(Machine.open(options.machine).inventory_text(), end="")


def _metal_ssh(options: argparse.Namespace) -> None:
    command = [" ".join(options.command)] if options.command else []
    os.execvp("ssh", [*Machine.open(options.machine).ssh(), *command])


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(prog="lab", description="Hosts and machines to try things on.")
    of_fleet = argparse.ArgumentParser(add_help=False)
    of_fleet.add_argument("--fleet", default=DEFAULT, metavar="NAME", help="which fleet (default: %(default)s)")
    of_host = argparse.ArgumentParser(add_help=False, parents=[of_fleet])
    of_host.add_argument("host")
    commands = top.add_subparsers(required=True, metavar="command")

    def command(name: str, run: object, text: str, **more: object) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, **more)  # type: ignore[arg-type]
        made.set_defaults(run=run)
        return made

    up = command("up", _up, "bring up a fleet, or more hosts of one", parents=[of_fleet])
    up.add_argument("--base", choices=sorted(base.BASES), default="ready", help="default: %(default)s")
    up.add_argument("hosts", nargs="+", metavar="host")
    command("down", _down, "remove a fleet and everything of it", parents=[of_fleet])
    command("list", _list, "show all fleets of this machine")
    command("inventory", _inventory, "print a fleet as an Ansible inventory", parents=[of_fleet])
    for name, run, text in (
        ("ssh", _ssh, "log in to a host, or run a command there, by ssh"),
        ("exec", _exec, "run a command in a host without the network, with its exact exit status"),
    ):
        command(name, run, text, parents=[of_host]).add_argument("command", nargs=argparse.REMAINDER)
    command("build", _build, "only make the caches")
    command("gc", _gc, "remove what crashed labs have left")
    command("clean", _clean, "remove all fleets and machines of this checkout, so that its cache can go")
    main = commands

    commands = command("metal", None, "bare machines").add_subparsers(required=True, metavar="command")
    of_machine = argparse.ArgumentParser(add_help=False)
    of_machine.add_argument("--machine", default=DEFAULT, metavar="NAME", help="default: %(default)s")
    up = command("up", _metal_up, "bring up a machine", parents=[of_machine])
    up.add_argument("--iommu", choices=sorted(hardware.IOMMUS), default="intel", help="default: %(default)s")
    up.add_argument("--cmdline", help="words for the kernel, which is then loaded past the boot loader")
    command("down", _metal_down, "remove a machine and everything of it", parents=[of_machine])
    command("list", _metal_list, "show all machines")
    command("inventory", _metal_inventory, "print a machine as an Ansible inventory", parents=[of_machine])
    ssh = command("ssh", _metal_ssh, "log in to a machine, or run a command there", parents=[of_machine])
    ssh.add_argument("command", nargs=argparse.REMAINDER)

    commands = main
    faults = command("fault", None, "break something on purpose")
    commands = faults.add_subparsers(required=True, metavar="fault")
    kill = command("kill", _kill, "send a signal to processes of a host", parents=[of_host])
    kill.add_argument("which", help="a pid as the host sees it, or a regular expression for the command line")
    kill.add_argument("--signal", default="KILL")
    command("link", _link, "pull a host's cable out, or plug it in", parents=[of_host]).add_argument(
        "state", choices=("up", "down")
    )
    drop = command("drop", _drop, "lose packets from one host to another that name a port", parents=[of_fleet])
    drop.add_argument("source")
    drop.add_argument("target")
    drop.add_argument("port", type=int)
    drop.add_argument("--replies", action="store_true", help="the port is the source's: lose what it answers")
    drop.add_argument("--udp", action="store_true")
    command("heal", _heal, "end all drops, plug all cables in", parents=[of_fleet])
    command("poweroff", _poweroff, "cut a host's power", parents=[of_host])
    command("boot", _boot, "switch a host on", parents=[of_host])
    command("reboot", _reboot, "reboot a host in an orderly way", parents=[of_host])
    limit = command("limit", _limit, "cover a folder with a small file system", parents=[of_host])
    limit.add_argument("path")
    limit.add_argument("size", help="for instance 64M")
    command("unlimit", _unlimit, "take that file system away", parents=[of_host]).add_argument("path")
    return top


def main(argv: list[str]) -> int:
    """Run the command and return its exit status."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options = parser().parse_args(argv)
    if getattr(options, "command", None) and options.command[0] == "--":
        del options.command[0]
    if os.geteuid():
        print("lab: needs root", file=sys.stderr)
        return 2
    try:
        return options.run(options) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
