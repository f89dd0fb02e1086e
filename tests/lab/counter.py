"""The smallest guests worth moving: one counts, on its disk and on its serial console, one never stops writing to memory.

`guest/counter.asm` and `guest/writer.asm` describe what they write. The numbers tell what happened to a guest:
one that was moved goes on counting in the same boot, one that was restarted goes on in the next one.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .errors import LabError, call
from .paths import HERE

GUESTS = ("counter", "writer")
SIZE_MIB = 64
SECTOR = 512
MAGIC = b"PHYCOUNT"


@dataclass(frozen=True, order=True)
class Counter:
    """What the guest has written: how often it was booted, and how far it has counted."""

    boots: int
    count: int


def parse_counter(sector: bytes) -> Counter:
    """Read sector 1 of the guest's disk; LabError if it is not the counter's."""
    if len(sector) < 16 or sector[:8] != MAGIC:
        raise LabError(f"not a counter's sector: {sector[:16]!r}")
    return Counter(*struct.unpack_from("<II", sector, 8))


def parse_console(text: str) -> list[Counter]:
    """Every whole line the guest has printed; a first line that was caught half is left out."""
    return [
        Counter(int(boots), int(count))
        for boots, count in re.findall(r"boot (\d+) count (\d+)(?: write error)?\r?\n", text)
    ]


def _build(folder: Path) -> None:
    for name in GUESTS:
        raw, qcow2 = folder / f"{name}.raw", folder / f"{name}.qcow2"
        call("nasm", "-f", "bin", "-o", str(raw), str(source(name)))
        with raw.open("r+b") as file:
            file.truncate(SIZE_MIB << 20)
        call("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2))


def source(name: str) -> Path:
    """The source of a guest."""
    return HERE / "guest" / f"{name}.asm"


def images() -> Path:
    """A folder with each guest as .raw and as .qcow2, all of 64 MiB and nearly empty."""
    digest = cache.key(*(source(name).read_text() for name in GUESTS), Path(__file__).read_text())
    return cache.made("counter", digest, _build)
