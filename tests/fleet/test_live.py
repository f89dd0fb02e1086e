"""A guest that never stops writing to its memory, and what a move of it does about that; and lines that tell of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import moves, runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import Site
from ansible_collections.phyllome.virt.tests.lab import counter
from ansible_collections.phyllome.virt.tests.lab.host import SHARED, Counter


@pytest.fixture
def writer(site: Site) -> t.Iterator[str]:
    """A guest on alpha that writes to 8 MiB of memory 18 times a second, as counter.py has it."""
    for host in site.fleet.hosts:
        host.put(counter.images() / "writer.qcow2", "/srv/writer.qcow2")
    source = {"path": "/srv/writer.qcow2"}
    site.make(site.guest("writer", "alpha", disks=[{"id": "root", "size": "64MiB", "source": source}]))
    yield "writer"
    site.remove("writer")


def asked(site: Site, source: str, parallel: int = 0, **convergence: t.Any) -> dict[str, t.Any]:
    """Its move to the other host at 8 MiB/s."""
    return moves.order(
        site, "writer", source, bandwidth_mib=8, parallel=parallel, convergence=convergence, source_disks="purge"
    )


def shown(site: Site, source: str, **convergence: t.Any) -> tuple[dict[str, t.Any], str]:
    """Have a controller move it; what the module returned, and what people have seen."""
    arguments = asked(site, source, **convergence)
    done = subprocess.run(
        ["ansible", "-i", str(site.inventory([])), source, "-m", "phyllome.virt.vm_migrate", "-a", json.dumps(arguments)],
        env={**runner.environment(), "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    report = json.JSONDecoder().raw_decode(done.stdout[done.stdout.find("{") :])[0]
    return report["plays"][0]["tasks"][0]["hosts"][source], done.stderr


def move(site: Site, source: str, parallel: int = 0, **convergence: t.Any) -> dict[str, t.Any]:
    """Have the module alone move it."""
    return site.module("vm_migrate", source, asked(site, source, parallel, **convergence))


def writes_on(site: Site, host: str, since: Counter) -> None:
    """It runs there in the same boot, and further on."""
    assert site.running("writer") == [host] == site.where("writer")
    assert site.fleet.host(host).heard("writer", since).boots == since.boots


def test_a_guest_that_writes_too_fast(site: Site, writer: str) -> None:
    before = site.fleet.host("alpha").heard(writer)

    # what is done by itself, when more downtime is not allowed
    stopped, lines = shown(site, "alpha", downtime_ms=50, max_downtime_ms=50)
    assert stopped["changed"] and stopped["classification"] == 2, stopped
    assert stopped["stats"]["suspended"] is True, stopped["stats"]
    writes_on(site, "beta", before)
    assert "writer: alpha -> beta, copying memory" in lines and "MiB/s" in lines and "MiB left" in lines

    # more downtime; through two connections
    moved = move(site, "beta", parallel=2, max_downtime_ms=4000, auto_converge=True)
    assert moved["changed"] and "suspended" not in moved["stats"], moved
    assert moved["stats"]["downtime_limit_ms"] > 300, moved["stats"]
    writes_on(site, "alpha", before)

    # its memory is fetched once it runs there, which takes a kernel that allows it
    with moves.page_faults(False):
        refused = move(site, "alpha", downtime_ms=50, max_downtime_ms=50, on_stall="post_copy")
    assert [one["code"] for one in refused["blockers"]] == ["post_copy"], refused
    assert "vm.unprivileged_userfaultfd=1 on beta" in refused["msg"]
    with moves.page_faults():
        fetched = move(site, "alpha", downtime_ms=50, max_downtime_ms=50, on_stall="post_copy")
    assert fetched["changed"] and fetched["classification"] == 2, fetched
    assert fetched["stats"]["post_copy"] is True and "suspended" not in fetched["stats"], fetched["stats"]
    writes_on(site, "beta", before)

    # it stays; last, because QEMU 7.2 without KVM sees no writes in the next migration after one that was aborted
    failed = move(site, "beta", downtime_ms=50, max_downtime_ms=50, on_stall="abort")
    assert failed["failed"] and failed["phase"] == "rolled_back", failed
    assert "made no progress and was aborted" in failed["msg"] and "on_stall: suspend" in failed["msg"]
    writes_on(site, "beta", before)


def test_a_move_needs_nothing_but_port_22(site: Site) -> None:
    site.make(site.guest("port22", "alpha"))
    alpha, beta = site.fleet.host("alpha"), site.fleet.host("beta")
    before = alpha.heard("port22")
    asked = {
        "name": "port22",
        "source": "alpha",
        "destination": "beta",
        "destination_uri": f"qemu+ssh://root@{beta.address}/system",
    }
    alpha.run(["sh", "-c", "rm -f /root/.ssh/key; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"])
    beta.run(
        ["sh", "-c", f"echo '{alpha.read('/root/.ssh/id_ed25519.pub').decode().strip()}' >> /root/.ssh/authorized_keys"]
    )
    unknown = site.module("vm_migrate", "alpha", asked)
    assert "Host key verification failed" in unknown["msg"] and "its host key among the known ones" in unknown["msg"]

    alpha.run(["sh", "-c", f"ssh-keyscan -t ed25519 {beta.address} > /root/.ssh/known_hosts"])
    with contextlib.ExitStack() as closed:
        for port in (16509, 16514, *range(49152, 49156)):
            closed.enter_context(site.fleet.dropping("alpha", "beta", port))
        blocked = site.module("vm_migrate", "alpha", {**asked, "destination_uri": f"qemu+tls://{beta.address}/system"})
        assert "port 16514" in blocked["msg"] and "cannot be reached" in blocked["msg"]
        moved = site.module("vm_migrate", "alpha", asked)
    assert moved["changed"] and moved["classification"] == 2, moved
    assert site.running("port22") == ["beta"] == site.where("port22")
    assert beta.heard("port22", before).boots == before.boots
    for host in (alpha, beta):
        assert "phyllome-" not in host.run(["ls", "/var/lib/libvirt/qemu"]).stdout
    assert not alpha.processes("^ssh -T")
    site.remove("port22")


def test_ports_that_nothing_gets_through_to_are_named_before_anything_is_done(site: Site) -> None:
    site.make(site.guest("shut-in", "alpha", state="stopped"))
    with site.fleet.dropping("alpha", "beta", 49152):
        blocked = site.module(
            "vm_migrate",
            "alpha",
            {"name": "shut-in", "destination_uri": f"qemu+tls://{site.fleet.host('beta').address}/system"},
            "--check",
        )
    assert [one["code"] for one in blocked["blockers"]] == ["ports"], blocked
    assert "port 49152 of" in blocked["msg"] and "does not answer, as behind a firewall" in blocked["msg"]
    site.remove("shut-in")


def test_a_disk_that_both_hosts_have_stays_where_it_is(site: Site) -> None:
    path = f"{SHARED}/both.qcow2"
    alpha, beta = site.fleet.host("alpha"), site.fleet.host("beta")
    alpha.put(counter.images() / "counter.qcow2", path)
    disks = [{"id": "root", "path": path}, {"id": "own", "size": "16MiB"}]
    site.make(site.guest("both", "alpha", disks=disks))
    before, inode = alpha.heard("both"), alpha.run(["stat", "-c", "%i", path]).stdout

    refused = moves.move(site, "both", "alpha", storage="shared")
    assert [one["code"] for one in refused["blockers"]] == ["not_shared"], refused
    assert "both-own.qcow2 is not there" in refused["msg"]

    moved = moves.move(site, "both", "alpha", storage={"root": "shared"})
    assert moved["changed"] and moved["classification"] == 2 and moved["mode_used"] == "live", moved
    assert site.running("both") == ["beta"] == site.where("both")
    assert beta.heard("both", before).boots == before.boots
    after = site.counts("beta", "both", before)  # it writes to the disk there
    assert moved["leftovers"] == [f"{moves.IMAGES}/both-own.qcow2.phyllome-retained-{moved['op_id']}"]
    assert beta.run(["stat", "-c", "%i", path]).stdout == inode

    stop = {"timeout": 1, "then": "destroy"}
    back = moves.move(
        site, "both", "beta", storage={"root": "shared"}, mode="cold", shutdown=stop, source_disks="purge"
    )
    assert back["changed"] and back["classification"] == 2 and back["leftovers"] == [], back
    assert [disk["path"] for disk in back["disks"]] == [f"{moves.IMAGES}/both-own.qcow2"]
    assert site.running("both") == ["alpha"] == site.where("both")
    assert alpha.heard("both", after).boots == before.boots + 1
    assert alpha.run(["stat", "-c", "%i", path]).stdout == inode
    assert alpha.run(["ls", "-A", SHARED]).stdout == "both.qcow2\n"
    site.remove("both")
    alpha.run(["rm", path])
