"""Moves against what people use without us, and one guest that moves a hundred times."""

from __future__ import annotations

import statistics
import time
import typing as t

import pytest
import yaml

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site, checksum
from ansible_collections.phyllome.virt.tests.fleet.moves import IMAGES, allocated, move, order, other
from ansible_collections.phyllome.virt.tests.lab import counter
from ansible_collections.phyllome.virt.tests.lab.fleet import Fleet
from ansible_collections.phyllome.virt.tests.lab.host import Host

Say = t.Callable[[str], None]

PAIRS = 6
MOVES, EARLY = 100, 10
PORT = "49200"  # of those that the firewall leaves open for moves

#: What of a host could leak, a name and a number in each line.
LEFT = """
pid=$(pidof libvirtd)
echo descriptors $(ls /proc/$pid/fd | wc -l)
echo threads $(ls /proc/$pid/task | wc -l)
echo memory_mib $(( $(awk '/VmRSS/ {print $2}' /proc/$pid/status) / 1024 ))
echo ports $(ss -Htln | wc -l)
echo processes $(ls -d /proc/[0-9]* | wc -l)
echo units $(systemctl list-units --all --plain --no-legend 'phyllome-*' | wc -l)
echo pools $(virsh pool-list --all --name | grep -c .)
echo images $(ls -A /var/lib/libvirt/images | wc -l)
echo records $(ls -A /var/lib/phyllome/migrations | wc -l)
echo run $(ls -A /run/phyllome | wc -l)
echo temporary $(ls -A /tmp /root/.ansible/tmp 2>/dev/null | wc -l)
echo journal_lines $(journalctl -q -o cat | wc -l)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, installed: None) -> t.Iterator[Site]:
    """Two Phyllome hosts, with a guest that runs and one that is off: 1 GiB of data all over a disk of 10 GiB."""
    with Fleet.create(["alpha", "beta"], base="ready") as fleet:
        for host in fleet.hosts:
            host.put(counter.images() / "counter.qcow2", IMAGE)
            host.run(["apt-get", "-q", "install", "-y", "--no-install-recommends", "rsync"], timeout=300)
        site = Site(fleet, tmp_path_factory.mktemp("two"), checksum())
        heavy = site.guest("heavy", "alpha", state="stopped", networks=[], disks=[{"id": "root", "size": "10GiB"}])
        site.whole([site.guest("racer", "alpha", networks=[]), heavy]).ok()
        fill(site, site.disk("alpha", "heavy"))
        yield site


def fill(site: Site, disk: str) -> None:
    alpha = site.fleet.host("alpha")
    for start in range(8):
        alpha.run(["dd", "if=/dev/urandom", "of=/srv/piece", "bs=1M", "count=128"])
        alpha.run(["qemu-io", "-f", "qcow2", "-c", f"write -s /srv/piece {start * 1280}M 128M", disk], timeout=600)
    alpha.run(["rm", "/srv/piece"])


def stalled(host: Host, name: str) -> float:
    """Downtime in ms that the destination recorded for the last move to it."""
    text = host.run(["virsh", "domjobinfo", name, "--completed"]).stdout
    lines = [line for line in text.splitlines() if line.startswith("Total downtime")]
    return float(lines[0].split()[2])


def test_a_live_move_against_virsh(two: Site, say: Say) -> None:
    """Both bring memory and disk over TLS, make the disk, have the guest defined there and not here any more."""
    disk, where = two.disk("alpha", "racer"), "alpha"
    figures: dict[str, list[tuple[float, float]]] = {"virsh": [], "ours": []}
    for turn in range(2 * PAIRS):
        source, target = two.fleet.host(where), two.fleet.host(other(where))
        target.run(["sh", "-c", f"rm -f {disk}*; virsh pool-refresh images; sync"])
        if turn % 4 < 2:  # each goes both ways
            flags = ["--live", "--p2p", "--persistent", "--undefinesource", "--copy-storage-all", "--tls"]
            ends = ["--migrateuri", f"tcp://{target.address}", "--listen-address", target.address]
            started = time.monotonic()
            source.run(["virsh", "migrate", *flags, *ends, "racer", f"qemu+tls://{target.address}/system"])
            figures["virsh"].append((time.monotonic() - started, stalled(target, "racer")))
        else:
            result = move(two, "racer", where)
            assert result["changed"] and not result.get("failed"), result
            figures["ours"].append((result["stats"]["total_s"], result["stats"]["downtime_ms"]))
        where = target.name
    for number, (name, unit) in enumerate((("wall", "s"), ("downtime", "ms"))):
        ours, theirs = (statistics.median(row[number] for row in figures[who]) for who in ("ours", "virsh"))
        say(f"live move, {name}: ours {ours:.2f} {unit}, virsh {theirs:.2f} {unit}, ratio {ours / theirs:.2f}")
    two.remove("racer")


def test_a_cold_move_against_other_ways_to_copy(two: Site, say: Say) -> None:
    alpha, beta = two.fleet.host("alpha"), two.fleet.host("beta")
    disk = two.disk("alpha", "heavy")
    alpha.put(two.fleet.key, "/srv/key")
    alpha.run(["chmod", "600", "/srv/key"])
    size = alpha.run(["stat", "-c", "%s", disk]).stdout.strip()

    def timed(call: t.Callable[[], object]) -> float:
        for host in (alpha, beta):
            host.run(["sync"], timeout=600)
        alpha.run(["sh", "-c", f"cat {disk} > /dev/null"], timeout=600)
        started = time.monotonic()
        call()
        return time.monotonic() - started

    def convert(server: list[str], client: list[str], more: str) -> None:
        beta.run(["qemu-img", "create", "-q", "-f", "qcow2", "/srv/copy", "10G"])
        beta.run(["qemu-nbd", "--fork", "-f", "qcow2", "-p", PORT, "-e", "16", *server, "/srv/copy"])
        target = f"driver=nbd,host={beta.address},port={PORT}{more}"
        alpha.run(["qemu-img", "convert", "-n", "-W", "-m", "16", "--target-is-zero", "-f", "qcow2", *client,
                   "--target-image-opts", disk, target], timeout=900)  # fmt: skip

    def secured() -> None:
        end = ("--object", "tls-creds-x509,id=lab,dir=/etc/pki/qemu,endpoint=")
        convert([end[0], f"{end[1]}server", "--tls-creds", "lab"], [end[0], f"{end[1]}client"], ",tls-creds=lab")

    def rsync() -> None:
        ssh = "ssh -i /srv/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        alpha.run(["rsync", "-S", "-e", ssh, disk, f"root@{beta.address}:/srv/copy"], timeout=900)

    def upload() -> None:
        beta.run(["virsh", "vol-create-as", "images", "copy", size, "--format", "raw", "--allocation", "0"])
        uri = f"qemu+tls://{beta.address}/system"
        alpha.run(["virsh", "-c", uri, "vol-upload", "--pool", "images", "copy", disk], timeout=900)

    figures: dict[str, list[float]] = {}
    ours: list[dict[str, t.Any]] = []
    ways: dict[str, t.Callable[[], None]] = {
        "qemu-img convert to NBD": lambda: convert([], [], ""),
        "the same with TLS": secured,
        "rsync -S": rsync,
        "virsh vol-upload with TLS": upload,
    }
    before = allocated(two, "alpha", disk)
    for dummy in range(2):
        for name, call in ways.items():
            figures.setdefault(name, []).append(timed(call))
            beta.run(["sh", "-c", "pkill -x qemu-nbd; rm -f /srv/copy; virsh vol-delete copy images"], check=False)
        timed(lambda: ours.append(move(two, "heavy", "alpha")))
        assert ours[-1]["mode_used"] == "cold" and ours[-1]["classification"] == 2, ours[-1]
        if len(ours) < 2:
            assert move(two, "heavy", "alpha", state="rolled_back")["changed"]
            assert move(two, "heavy", "alpha", state="cleaned")["changed"]
    alpha.run(["rm", "/srv/key"])
    took = min(one["stats"]["total_s"] for one in ours)
    least = {name: min(seconds) for name, seconds in figures.items()}
    say(
        f"1 GiB in 10 GiB, cold, encrypted, with digests: {took:.1f} s, of these copying "
        f"{min(one['stats']['migrate_ms'] for one in ours) / 1000:.1f} s; "
        + ", ".join(f"{name} {seconds:.1f} s, ratio {took / seconds:.2f}" for name, seconds in least.items())
    )
    [moved] = ours[-1]["disks"]
    say(
        f"bytes sent to bytes allocated {moved['bytes_sent'] / before:.3f}, "
        f"allocated after to before {moved['allocated_after'] / before:.3f}"
    )
    two.remove("heavy")


def left(site: Site) -> dict[str, dict[str, int]]:
    """What there is on each host of what could leak."""
    return {
        host.name: {
            line.split()[0]: int(line.split()[1]) for line in host.run(["sh", "-c", LEFT]).stdout.splitlines() if line
        }
        for host in site.fleet.hosts
    }


def shuttled(site: Site, first: int, last: int) -> list[dict[str, t.Any]]:
    """Move the guest there and back, all in one run of Ansible."""
    tasks = [
        {"phyllome.virt.vm_migrate": order(site, "shuttle", source), "delegate_to": source}
        for source in (("alpha", "beta")[number % 2] for number in range(first, last))
    ]
    path = site.folder / "shuttle.yml"
    path.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    run = runner.playbook(path, site.inventory([]), timeout=1800).ok()
    moved = [result for dummy, dummy_task, result in run.results()]
    assert len(moved) == last - first and all(one["changed"] and one["classification"] == 2 for one in moved), moved
    return moved


def test_a_hundred_moves(two: Site, say: Say) -> None:
    two.whole([two.guest("shuttle", "alpha", networks=[])]).ok()
    first = two.fleet.host("alpha").console("shuttle", 4)[-1]
    moved = shuttled(two, 0, EARLY)
    early = left(two)
    moved += shuttled(two, EARLY, MOVES)
    late = left(two)
    last = two.fleet.host("alpha").console("shuttle", 4)[-1]
    assert last.boots == first.boots and last.count > first.count
    assert len(two.fleet.host("beta").run(["ls", "-A", IMAGES]).stdout.split()) == 1  # what the last move has retained
    for name, key, unit in (("wall", "total_s", "s"), ("downtime", "downtime_ms", "ms")):
        begin, end = (
            statistics.median(one["stats"][key] for one in part if key in one["stats"])
            for part in (moved[:EARLY], moved[-EARLY:])
        )
        say(f"{MOVES} moves, {name}: first {EARLY} {begin:.2f} {unit}, last {EARLY} {end:.2f} {unit}")
    for host, counts in late.items():
        grown = ", ".join(f"{name} {early[host][name]} -> {count}" for name, count in counts.items())
        say(f"{MOVES} moves, {host}, after {EARLY} and after {MOVES}: {grown}")
