"""What tests of moves have in common: orders, what is where, and moves that die before a step."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
import typing as t

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import Site
from ansible_collections.phyllome.virt.tests.lab.errors import LabError
from ansible_collections.phyllome.virt.tests.lab.paths import STATE, locked

IMAGES = "/var/lib/libvirt/images"


def other(host: str) -> str:
    return {"alpha": "beta", "beta": "alpha"}[host]


def order(site: Site, name: str, source: str, **more: t.Any) -> dict[str, t.Any]:
    address = site.fleet.host(other(source)).address
    return {
        "name": name,
        "source": source,
        "destination": other(source),
        "destination_uri": f"qemu+tls://{address}/system",
        **more,
    }


def move(site: Site, name: str, source: str, *flags: str, **more: t.Any) -> dict[str, t.Any]:
    """Move a guest away from a host with the module alone."""
    return site.module("vm_migrate", source, order(site, name, source, **more), *flags)


def digest(site: Site, host: str, *paths: str) -> list[str]:
    return [line.split()[0] for line in site.fleet.host(host).run(["sha256sum", *paths]).stdout.splitlines()]


def allocated(site: Site, host: str, path: str) -> int:
    return int(site.fleet.host(host).run(["stat", "-c", "%b", path]).stdout) * 512


def files(site: Site, host: str, name: str) -> list[str]:
    """Files in the pool that belong to a guest or to its moves, the retained ones aside."""
    names = site.fleet.host(host).run(["ls", "-A", IMAGES]).stdout.split()
    return [each for each in names if name in each and "retained" not in each]


Drive = t.Callable[[str, int | str, dict[str, t.Any]], dict[str, t.Any] | None]


def drives(site: Site) -> Drive:
    """Runs a move on a host up to a step: its result, or None when it was killed before that step."""

    def run(host: str, step: int | str, parameters: dict[str, t.Any]) -> dict[str, t.Any] | None:
        done = runner.inside(site.fleet.host(host), "steps.py", str(step), given=parameters, timeout=600)
        if done.returncode in (-9, 137):
            return None
        assert done.returncode == 0, done.stderr
        return t.cast("dict[str, t.Any]", json.loads(done.stdout))

    return run


@contextlib.contextmanager
def page_faults(allowed: bool = True) -> t.Iterator[None]:
    """Have QEMU handle page faults, or not, on the kernel that all hosts of all labs share: one test at a time."""
    setting = pathlib.Path("/proc/sys/vm/unprivileged_userfaultfd")
    with locked(STATE / "page-faults"):
        before = setting.read_text()
        setting.write_text("1" if allowed else "0")
        try:
            yield
        finally:
            setting.write_text(before)


def startable(site: Site, name: str) -> list[str]:
    """Hosts on which a guest that is off could be started; it is not left running."""
    able = []
    for host in site.where(name):
        try:
            site.virsh(host, "start", name, "--paused")
        except LabError:
            continue
        site.virsh(host, "destroy", name)
        able.append(host)
    return able


def wait_for_copying(host: t.Any) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if host.run(
            ["sh", "-c", f"find {IMAGES} -name '.phy-*.partial' -size +0 | xargs -r du -k | awk '$1>4096'"]
        ).stdout:
            return
        time.sleep(0.1)
    raise AssertionError("the copying did not begin")
