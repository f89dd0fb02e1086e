"""`site` with nothing to do."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.phyllome.virt.tests.fleet.conftest import Site

Say = t.Callable[[str], None]


def test_site_with_nothing_to_do(bare: Site, say: Say) -> None:
    guests = [
        bare.guest(f"g{number}", host, state="stopped", networks=[])
        for host in ("alpha", "beta")
        for number in (range(10) if host == "alpha" else range(10, 20))
    ]
    bare.whole(guests).ok()
    seconds = []
    for dummy in range(3):
        started = time.monotonic()
        run = bare.whole(guests).ok()
        seconds.append(time.monotonic() - started)
        assert run.changed == {"alpha": 0, "beta": 0}
    tasks = {
        host: sum(1 for name, dummy, result in run.results() if name == host and not result.get("skipped"))
        for host in run.stats
    }
    best = min(seconds)
    say(
        f"site with nothing to do, 2 hosts x 10 guests: {best:.1f} s, tasks per host {tasks}, {best / 20:.2f} s a guest"
    )
