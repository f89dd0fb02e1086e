"""Where the lab keeps things."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
#: One folder for all labs of the machine, so that two checkouts see each other's fleets.
STATE = Path("/var/lib/phyllome-lab")


def cache_dir() -> Path:
    """The cache of this checkout, or $PHYLLOME_CACHE/lab."""
    root = Path(os.environ.get("PHYLLOME_CACHE") or CHECKOUT / ".cache")
    path = root.resolve() / "lab"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel lets go of it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
