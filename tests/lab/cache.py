"""Things that take long to make, kept under a name that is a hash of what they are made from."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .paths import cache_dir, locked


def key(*parts: str) -> str:
    """A short hash of everything a thing is built from; the order of the parts counts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:16]


def made(name: str, digest: str, build: Callable[[Path], None]) -> Path:
    """The folder `name`-`digest` of the cache, built first if it is not there.

    `build` fills an empty folder, which gets its final name only when `build` has returned: what
    was not finished is never found, and is swept away by the next to build the same thing.
    """
    final = cache_dir() / f"{name}-{digest}"
    if final.exists():
        return final
    with locked(cache_dir() / f"{name}.lock"):
        if final.exists():  # somebody else has just built it
            return final
        for unfinished in cache_dir().glob(f"{name}-*.part"):
            shutil.rmtree(unfinished)
        aside = final.with_suffix(".part")
        aside.mkdir()
        started = time.monotonic()
        say(f"building {name}")
        build(aside)
        aside.rename(final)
        say(f"built {name} in {time.monotonic() - started:.0f} s")
    return final


def say(text: str) -> None:
    """Progress for a person."""
    print(f"lab: {text}", file=sys.stderr, flush=True)
