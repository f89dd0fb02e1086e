"""One cgroup per host: whatever a host starts is in it, so that it is found and ended exactly.

Hosts must not share a cgroup either: two containers whose systemd sees the same tree would
manage, and kill, each other's services.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import LabError

PREFIX = "phyllome-lab-"


def root(mounts: str | None = None) -> Path:
    """The mount point of the cgroup v2 tree, on a pure or a hybrid machine."""
    for line in (mounts or Path("/proc/self/mounts").read_text()).splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(point)
    raise LabError("no cgroup v2 tree is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def of_host(number: int, host: str) -> Path:
    """The cgroup of one host of fleet `number`."""
    return root() / f"{PREFIX}{number}-{host}"


def of_fleet(number: int) -> list[Path]:
    """The cgroups that exist for fleet `number`."""
    return sorted(root().glob(f"{PREFIX}{number}-*"))


def pids(group: Path) -> Iterator[int]:
    """Every process below `group`."""
    for folder, _, _ in os.walk(group):
        try:
            text = Path(folder, "cgroup.procs").read_text()
        except OSError:  # it has just been removed
            continue
        yield from map(int, text.split())


def end(group: Path, timeout: float = 20) -> None:
    """Kill every process of `group` at once and remove it."""
    deadline = time.monotonic() + timeout
    while group.exists():
        (group / "cgroup.kill").write_text("1")
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            if time.monotonic() > deadline:
                raise LabError(f"{group} still has processes: {list(pids(group))}") from error
            time.sleep(0.01)
