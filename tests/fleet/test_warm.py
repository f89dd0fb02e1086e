"""Disks are copied while their guest runs and writes; it is off for a short time only, and nothing of it is lost."""

from __future__ import annotations

import json
import subprocess
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import Site
from ansible_collections.phyllome.virt.tests.fleet.moves import (
    IMAGES,
    Drive,
    allocated,
    digest,
    drives,
    files,
    move,
    order,
    other,
    wait_for_copying,
)
from ansible_collections.phyllome.virt.tests.lab.host import Counter

driver = pytest.fixture(scope="module")(drives)

PLUG = {"shutdown": {"timeout": 1, "then": "destroy"}}
"""Nobody in these guests hears the power button."""


@pytest.fixture(scope="module")
def busy(site: Site) -> t.Iterator[str]:
    """A guest that counts on its disk, with another one that has 80 MiB of data in 256; the path of that."""
    guest = site.guest("busy", "alpha")
    guest["disks"].append({"id": "data", "size": "256MiB", "format": "raw"})
    site.make(guest)
    data = f"{IMAGES}/" + next(name for name in files(site, "alpha", "busy") if "data" in name)
    write(site, "alpha", data, 0, 80)
    yield data
    site.remove("busy")


def write(site: Site, host: str, path: str, at: int, mib: int) -> None:
    """Write into a disk, as its guest does."""
    command = ["dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={mib}", f"seek={at}", "conv=notrunc"]
    site.fleet.host(host).run(command)


def retained(site: Site, host: str, result: dict[str, t.Any], *paths: str) -> list[str]:
    """Digests of what a move has left at its source: what the guest had when it was stopped."""
    return digest(site, host, *(f"{path}.phyllome-retained-{result['op_id']}" for path in paths))


def test_a_guest_that_writes_is_off_for_a_short_time_only(
    site: Site, busy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha, root = site.fleet.host("alpha"), site.disk("alpha", "busy")
    check = move(site, "busy", "alpha", "--check", mode="warm")
    assert check["changed"] and check["mode_used"] == "warm" and not check["blockers"], check
    assert files(site, "beta", "busy") == []
    before = site.counts("alpha", "busy")
    parameters = json.dumps(order(site, "busy", "alpha", mode="warm", bandwidth_mib=24, **PLUG))
    process = subprocess.Popen(
        ["ansible", "-i", str(site.inventory([])), "alpha", "-m", "phyllome.virt.vm_migrate", "-a", parameters],
        env=runner.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_copying(site.fleet.host("beta"))
    write(site, "alpha", busy, 0, 2)  # what has arrived, what has not, and what was a hole
    write(site, "alpha", busy, 70, 2)
    write(site, "alpha", busy, 200, 1)
    alpha.run(["fallocate", "-p", "-o", "3M", "-l", "2M", busy])
    out = process.communicate(timeout=300)[0]
    result = json.loads(out.partition("=>")[2])
    assert (result["mode_used"], result["classification"], result["phase"]) == ("warm", 2, "done"), result
    assert site.running("busy") == ["beta"] == site.where("busy")
    assert digest(site, "beta", busy) == retained(site, "alpha", result, busy)
    assert allocated(site, "beta", busy) <= 86 * 1024**2
    after = site.counts("beta", "busy", Counter(before.boots + 1, 0))
    assert after.boots == before.boots + 1 and after.count >= before.count
    stats = result["stats"]
    assert stats["rounds"] >= 2 and stats["transferred"] == sum(disk["bytes_sent"] for disk in result["disks"])
    assert stats["transferred"] <= 110 * 1024**2
    assert root in {disk["path"] for disk in result["disks"]}

    write(site, "beta", busy, 30, 1)  # back again, only what changed is sent
    back = move(site, "busy", "beta", mode="warm", **PLUG)
    assert (back.get("mode_used"), back.get("classification")) == ("warm", 2), back
    assert digest(site, "alpha", busy) == retained(site, "beta", back, busy)
    assert 1024**2 <= back["stats"]["transferred"] <= 8 * 1024**2, back["stats"]
    left = alpha.run(["sh", "-c", f"ls -A {IMAGES} /var/lib/phyllome/migrations"]).stdout
    assert "busy-data.raw.phyllome-retained" not in left and ".phy-" not in left, left
    with capsys.disabled():
        print(f"\n    warm: {shown(stats)}; back: {shown(back['stats'])}")


def shown(stats: dict[str, t.Any]) -> str:
    """Figures of a move, for people."""
    return "{transferred} bytes, {warm_ms} ms in {rounds} rounds, then off for {downtime_ms} ms".format(**stats)


def test_killed_in_the_middle_the_next_run_goes_on(site: Site, busy: str, driver: Drive) -> None:
    here, steps = site.running("busy")[0], [10**6]
    for number in range(5):
        step = steps[number]
        write(site, here, busy, 10 * number, 1)
        parameters = order(site, "busy", here, mode="warm", **PLUG)
        ended = driver(here, step, parameters)
        assert (ended is None) is bool(number) and len(site.running("busy")) <= 1
        again = driver(here, 10**6, parameters)
        assert again is not None and again["result"]["classification"] == 2, again
        there = other(here)
        assert site.running("busy") == [there] == site.where("busy"), step
        if ended is not None:
            # while it is copied, and when it is handed over: files get their names there, then the record says so
            placed = ended["steps"].index("createWithFlags")
            assert ended["steps"][placed + 1] == "rename"
            steps += [placed * 15 // 100, placed // 2, placed, placed + 1]
        else:
            assert digest(site, there, busy) == retained(site, here, again["result"], busy), step
        assert files(site, here, "busy") == [], step
        here = there
