"""`make demo`: two bare hosts on this machine become Phyllome hosts, get a guest, and it moves while it runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from . import base, counter
from .errors import LabError
from .fleet import Fleet
from .host import Host
from .paths import CHECKOUT

FLEET = "demo"
FOLDER = CHECKOUT / ".cache" / "demo"
INVENTORY = FOLDER / "inventory.yml"
IMAGE = "/srv/counter.qcow2"
DISK = "/var/lib/libvirt/images/web-root.qcow2"

_GUESTS = """\
    hypervisor_allow_emulation: true      # the hosts of this lab have no KVM
    hypervisor_pki_dir: {folder}/pki
    phyllome_guests:
      - name: web
        host: alpha                       # edit this line and run site again
        profile: legacy                   # a guest of 512 bytes that counts; it boots from a BIOS
        memory: 64MiB
        vcpus: 1
        disks:
          - {{id: root, size: 64MiB, source: {{path: {image}, checksum: "sha256:{digest}"}}}}
        networks:
          - {{id: lan, network: default}}
"""

Result = TypeVar("Result")


def _stage(text: str, do: Callable[[], Result]) -> Result:
    """Say what is being done, do it, and say how long it took."""
    started = time.monotonic()
    wide = sys.stdout.isatty()
    print(f"  {text} ...", end="" if wide else "\n", flush=True)
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            print(f"\r  {text} ... {time.monotonic() - started:4.0f} s", end="", flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if wide:
        ticker.start()
    try:
        result = do()
    finally:
        done.set()
        if wide:
            ticker.join()
    print(f"{chr(13) if wide else ''}  {text}: {time.monotonic() - started:.1f} s", flush=True)
    return result


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{CHECKOUT}/.cache/venv/bin:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".cache" / "installed"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
    }


def _logged(log: str, *argv: str) -> str:
    """Run a program with its output in a log file below FOLDER; return what it printed."""
    path = FOLDER / log
    with path.open("w") as file:
        done = subprocess.run(
            argv, cwd=CHECKOUT, env=_environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
        )
    text = path.read_text()
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in text.splitlines()[-15:])
        raise LabError(f"{argv[0]} ended with status {done.returncode}:\n{tail}\n  The whole log is {path}")
    return text


def _site(log: str) -> str:
    return _logged(log, "ansible-playbook", "-v", "-i", str(INVENTORY), "phyllome.virt.site")


def _changed(text: str) -> str:
    recap = [line.split() for line in text.partition("PLAY RECAP")[2].splitlines()[1:] if "ok=" in line]
    return ", ".join(f"{words[0]} {next(word for word in words if word.startswith('changed='))}" for words in recap)


def _downtime(text: str) -> float:
    """Milliseconds for which the guest stood still, as vm_migrate returned them."""
    found = text.partition('"downtime_ms": ')[2]
    return float(found.split(",")[0].split("}")[0])


def _counting(host: Host) -> counter.Counter:
    """What the guest says on its console, as soon as it says something."""
    for _ in range(20):
        lines = host.console("web", 1.5)
        if lines:
            return lines[-1]
    raise LabError(f"web says nothing on its console at {host.name}")


def _declare(fleet: Fleet, image: Path) -> None:
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    INVENTORY.write_text(fleet.inventory_text() + _GUESTS.format(folder=FOLDER, image=IMAGE, digest=digest))


def _edit(destination: str) -> None:
    text = INVENTORY.read_text()
    INVENTORY.write_text(
        text.replace("host: alpha  ", f"host: {destination}  ").replace("host: beta  ", f"host: {destination}  ")
    )


def _show(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _collect_logs(fleet: Fleet) -> None:
    for host in fleet.hosts:
        if host.running:
            done = host.run(["journalctl", "--no-pager", "-b"], check=False)
            (FOLDER / f"{host.name}.journal").write_text(done.stdout)


def run() -> None:
    """The whole demo. The fleet stays up at the end; when it fails, it is removed and its logs stay."""
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    lab = str((CHECKOUT / "tests/lab/lab").relative_to(CHECKOUT))
    with contextlib.suppress(LabError):
        Fleet.open(FLEET).down()
    print("Two bare hosts on this machine become a fleet, and a guest moves while it runs.\n")
    _stage("Build and install the collection", lambda: _logged("build.log", "sh", "tests/tools/build.sh", "install"))
    _stage("Build what the hosts start from (a Debian; kept for the next time)", base.bare)
    image = _stage("Build the guest's image", counter.images) / "counter.qcow2"
    fleet = _stage(
        "Boot alpha and beta, with nothing but Debian and ssh",
        lambda: Fleet.create(["alpha", "beta"], name=FLEET, base="bare"),
    )
    alpha, beta = fleet.host("alpha"), fleet.host("beta")
    try:
        for host in (alpha, beta):
            host.put(image, IMAGE)
        _declare(fleet, image)
        first = _stage(
            "ansible-playbook phyllome.virt.site: they become Phyllome hosts, and web starts",
            lambda: _site("site-1.log"),
        )
        before = _stage("Listen to the guest's console at alpha", lambda: _counting(alpha))
        _edit("beta")
        second = _stage(
            "Edit `host: alpha` to `host: beta` and run site again: web moves while it runs",
            lambda: _site("site-2.log"),
        )
        after = _stage("Listen to the guest's console at beta", lambda: _counting(beta))
        third = _stage("Run site once more: nothing has to change", lambda: _site("site-3.log"))
        fleet.release()
    except BaseException:
        _collect_logs(fleet)
        fleet.down()
        raise
    print(f"\n  Changes: first run {_changed(first)}; move {_changed(second)}; last run {_changed(third)}\n")
    header = ("host", "guest", "state", "count before", "count after", "downtime")
    rows: list[tuple[str, ...]] = [
        header,
        ("alpha", "-", "-", "-", "-", "-"),
        ("beta", "web", "running", str(before.count), str(after.count), f"{_downtime(second):.0f} ms"),
    ]
    _show(rows)
    if after.boots != before.boots or after.count <= before.count:
        raise LabError(f"the guest did not simply go on: {before} before the move, {after} after it")
    inventory = INVENTORY.relative_to(CHECKOUT)
    print(
        f"""
  {time.monotonic() - started:.0f} s. The fleet stays up. Try:

    {lab} ssh --fleet {FLEET} beta virsh list
    {lab} exec --fleet {FLEET} beta virsh console web        (leave with ctrl-])
    edit `host:` in {inventory}, then
      . .cache/venv/bin/activate; export ANSIBLE_COLLECTIONS_PATH=.cache/installed
      ansible-playbook -i {inventory} phyllome.virt.site --check --diff
      ansible-playbook -i {inventory} phyllome.virt.site
    {lab} down --fleet {FLEET}                               (removes it all)
"""
    )


def main() -> int:
    """Run the demo and return its exit status."""
    if os.geteuid():
        print("The demo makes containers and a bridge, so it needs root: sudo make demo", file=sys.stderr)
        return 2
    try:
        run()
    except (LabError, json.JSONDecodeError, ValueError) as error:
        print(f"\n  The demo failed: {error}\n  Logs, also of both hosts, are in {FOLDER}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
