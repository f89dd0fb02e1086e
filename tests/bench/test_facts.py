"""Reading and judging machines with many devices; and against the shell loop that everybody uses."""

from __future__ import annotations

import functools
import math
import pathlib
import subprocess
import time
import tracemalloc
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.apart import PATIENCE
from ansible_collections.phyllome.virt.plugins.module_utils._core.sysfs import Tree
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather_from
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

Say = t.Callable[[str], None]
SIZES = (64, 512, 4096)
#: What guides to passthrough have people run; the tree takes the place of /sys.
LOOP = """
for group in "$0"/sys/kernel/iommu_groups/*; do
  echo "IOMMU group ${group##*/}:"
  for device in "$group"/devices/*; do lspci -O sysfs.path="$0/sys/bus/pci" -vmmnnk -s "${device##*/}"; done
done
"""


def tree(folder: pathlib.Path, size: int) -> str:
    """A server with so many network functions, each in a group of its own, behind ports with access control."""
    machine = machines.server()
    for number in range(size):
        bus, slot, function = number >> 7 & 0x7F, number >> 3 & 0xF, number & 7
        address = f"{0x10 + (number >> 14):04x}:{0x80 | bus:02x}:{slot:02x}.{function}"
        path = machine.pci(address, "8086:154c", "020000", group=number + 1000, driver="vfio-pci", bars=[1 << 16])
        machine.file(f"{path}/config", bytes.fromhex("86804c15060010000100000200000000") + bytes(48))  # for lspci
    return machine.write(folder)


def gather(root: str) -> dict[str, t.Any]:
    """The facts, read with the care that a live machine needs."""
    return gather_from(Tree(root, "sysfs_root", PATIENCE))


def best(function: t.Callable[[], t.Any], times: int = 3) -> float:
    """The shortest of a few runs, in seconds."""
    seconds = []
    for dummy in range(times):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def peak(root: str) -> float:
    """Memory of one run, in MiB, at its highest."""
    tracemalloc.start()
    gather(root)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size / (1 << 20)


def test_facts_of_many_devices(tmp_path: pathlib.Path, say: Say) -> None:
    seconds = {}
    for size in SIZES:
        root = tree(tmp_path / str(size), size)
        seconds[size] = best(functools.partial(gather, root))
        say(f"facts of {size} devices: {seconds[size] * 1000:.0f} ms, {peak(root):.1f} MiB at most")
    plain = best(lambda: gather_from(Tree(root, "sysfs_root")))
    say(f"of these, for not waiting on a device that does not answer: {seconds[size] / plain - 1:.0%}")
    growth = math.log(seconds[SIZES[-1]] / seconds[SIZES[1]]) / math.log(SIZES[-1] / SIZES[1])
    say(f"growth exponent from {SIZES[1]} to {SIZES[-1]} devices: {growth:.2f}")


def test_ten_thousand_devices(tmp_path: pathlib.Path, say: Say) -> None:
    root = tree(tmp_path / "tree", 10_000)
    started = time.perf_counter()
    facts = gather(root)
    say(f"facts of 10000 devices: {time.perf_counter() - started:.1f} s")
    assert sum(not device["hazards"] for device in facts["devices"]) >= 10_000


@pytest.mark.parametrize("size", SIZES[:2])
def test_against_lspci_in_a_loop(tmp_path: pathlib.Path, say: Say, size: int) -> None:
    """Both look at the same tree; the loop only lists, and leaves the judging to the reader."""
    root = tree(tmp_path / "tree", size)
    listed = subprocess.run(["sh", "-c", LOOP, root], capture_output=True, text=True, check=True)
    assert listed.stdout.count("154c") == size and "vfio-pci" in listed.stdout, listed.stderr
    loop = best(lambda: subprocess.run(["sh", "-c", LOOP, root], stdout=subprocess.DEVNULL, check=True), 1)
    ours = best(lambda: gather(root))
    say(
        f"{size} devices: ours {ours * 1000:.0f} ms, lspci -vmmnnk in a loop over the groups {loop * 1000:.0f} ms:"
        f" {loop / ours:.0f} times faster"
    )
