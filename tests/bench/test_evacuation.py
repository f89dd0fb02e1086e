"""An evacuation of twelve guests against the sum of single moves."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site, checksum
from ansible_collections.phyllome.virt.tests.lab import counter
from ansible_collections.phyllome.virt.tests.lab.fleet import Fleet

Say = t.Callable[[str], None]
GUESTS = 12


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, installed: None) -> t.Iterator[Site]:
    """Three Phyllome hosts."""
    with Fleet.create(["alpha", "beta", "gamma"], base="ready") as fleet:
        for host in fleet.hosts:
            host.put(counter.images() / "counter.qcow2", IMAGE)
        yield Site(fleet, tmp_path_factory.mktemp("three"), checksum())


def test_evacuation_of_twelve_guests_against_single_moves(three: Site, say: Say) -> None:
    guests = [three.guest(f"g{number}", "alpha", networks=[]) for number in range(GUESTS)]
    three.whole(guests).ok()
    inventory = three.inventory(guests)
    singles = []
    for turn in range(4):
        started = time.monotonic()
        runner.playbook(
            "phyllome.virt.migrate", inventory, "-e", "guest=g0", "-e", f"to={('beta', 'alpha')[turn % 2]}"
        ).ok()
        singles.append(time.monotonic() - started)
    started = time.monotonic()
    runner.playbook("phyllome.virt.evacuate", inventory, "-e", "host=alpha").ok()
    evacuated = time.monotonic() - started
    started = time.monotonic()
    runner.playbook("phyllome.virt.restore", inventory, "-e", "host=alpha").ok()
    restored = time.monotonic() - started
    single = sum(singles) / len(singles)
    say(
        f"evacuation of {GUESTS} guests: {evacuated:.1f} s, back {restored:.1f} s, one move by its own playbook {single:.1f} s, "
        f"ratio to {GUESTS} of these {evacuated / (GUESTS * single):.2f} and {restored / (GUESTS * single):.2f}"
    )
