"""`site` with nothing to do, and one live move against `virsh migrate`."""

from __future__ import annotations

import statistics
import time
import typing as t

from ansible_collections.phyllome.virt.tests.fleet.conftest import Site
from ansible_collections.phyllome.virt.tests.lab.host import Host

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


def stalled(host: Host, name: str) -> float:
    """Downtime in ms that the destination recorded for the last move to it."""
    text = host.run(["virsh", "domjobinfo", name, "--completed"]).stdout
    lines = [line for line in text.splitlines() if line.startswith("Total downtime")]
    return float(lines[0].split()[2])


def test_one_live_move_against_virsh(bare: Site, say: Say) -> None:
    guest = bare.guest("racer", "alpha", networks=[])
    bare.whole([guest]).ok()
    disk = bare.disk("alpha", "racer")
    hosts = {name: bare.fleet.host(name) for name in ("alpha", "beta")}
    size = "67108864"
    figures: dict[str, list[tuple[float, float]]] = {"virsh": [], "ours": []}
    where = "alpha"
    for turn in range(12):
        source, target = where, "beta" if where == "alpha" else "alpha"
        address = hosts[target].address
        uri = f"qemu+tls://{address}/system"
        hosts[target].run(["sh", "-c", f"rm -f {disk} {disk.rsplit('/', 1)[0]}/.*retained*"])
        if turn % 4 < 2:
            hosts[target].run(["qemu-img", "create", "-q", "-f", "qcow2", disk, size])
            hosts[target].run(["virsh", "pool-refresh", "images"])
            flags = ["--live", "--p2p", "--persistent", "--undefinesource", "--copy-storage-all", "--tls"]
            ends = ["--migrateuri", f"tcp://{address}", "--listen-address", address]
            started = time.monotonic()
            hosts[source].run(["virsh", "migrate", *flags, *ends, "racer", uri])
            took = time.monotonic() - started
            hosts[source].run(["rm", "-f", disk])
            hosts[source].run(["virsh", "pool-refresh", "images"])
            figures["virsh"].append((took, stalled(hosts[target], "racer")))
        else:
            result = bare.module(
                "vm_migrate",
                source,
                {"name": "racer", "destination": target, "destination_uri": uri, "source_disks": "purge"},
            )
            assert result["changed"] and not result.get("failed"), result
            figures["ours"].append((result["stats"]["total_s"], result["stats"]["downtime_ms"]))
        where = target
    wall = {who: statistics.median(took for took, dummy in rows) for who, rows in figures.items()}
    down = {who: statistics.median(ms for dummy, ms in rows) for who, rows in figures.items()}
    say(
        f"live move, wall: ours {wall['ours']:.2f} s, virsh {wall['virsh']:.2f} s, ratio {wall['ours'] / wall['virsh']:.2f}"
    )
    say(
        f"live move, downtime: ours {down['ours']:.0f} ms, virsh {down['virsh']:.0f} ms, ratio {down['ours'] / down['virsh']:.2f}"
    )
