"""Guests that are off move as they are: chains, snapshots, holes; and whatever dies, one of the two hosts has them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
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
    startable,
    wait_for_copying,
)
from ansible_collections.phyllome.virt.tests.lab.host import Counter

driver = pytest.fixture(scope="module")(drives)


@pytest.fixture(scope="module")
def layered(site: Site) -> t.Iterator[dict[str, t.Any]]:
    """A guest that is off: a chain of three overlays with snapshots inside, and a raw disk that is nearly all holes.

    The lowest file of the chain is another guest's too.
    """
    guest = site.guest("layered", "alpha", state="stopped", autostart=True)
    guest["disks"].append({"id": "data", "size": "1GiB", "format": "raw"})
    for each in (guest, site.guest("neighbour", "alpha", state="stopped")):
        site.make(each)
    alpha = site.fleet.host("alpha")
    top, base = site.disk("alpha", "layered"), site.disk("alpha", "neighbour")
    raw = f"{IMAGES}/" + next(name for name in files(site, "alpha", "layered") if "data" in name)
    chain = [base, f"{IMAGES}/layered-1.qcow2", f"{IMAGES}/layered-2.qcow2", top]
    alpha.run(["rm", top])
    for below, above in itertools.pairwise(chain):
        alpha.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", above])
        alpha.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 2M", above])
    alpha.run(["qemu-img", "snapshot", "-c", "first", top])
    alpha.run(["qemu-io", "-f", "qcow2", "-c", "write -P 8 8M 1M", top])
    for start in range(0, 16, 3):
        alpha.run(
            ["dd", "if=/dev/urandom", f"of={raw}", "bs=4K", "count=300", f"seek={start * 16384 + 5}", "conv=notrunc"]
        )
    yield {"chain": chain, "raw": raw, "guest": guest}
    site.remove("layered", "neighbour")
    for host in site.fleet.hosts:  # files below a disk are nobody's to delete
        host.run(["sh", "-c", f"rm -f {IMAGES}/layered* {IMAGES}/neighbour*"])


def test_chains_snapshots_and_holes_arrive_as_they_were(site: Site, layered: dict[str, t.Any]) -> None:
    paths = [*layered["chain"], layered["raw"]]
    before, space = digest(site, "alpha", *paths), [allocated(site, "alpha", path) for path in paths]

    refused = move(site, "neighbour", "alpha", "--check")
    assert [one["code"] for one in refused["blockers"]] == ["linked_clones"], refused
    check = move(site, "layered", "alpha", "--check")
    assert check["changed"] and check["mode_used"] == "cold", check
    assert site.where("layered") == ["alpha"] and files(site, "beta", "layered") == []
    result = move(site, "layered", "alpha", verify="full")
    assert not result.get("failed"), result
    assert result["plan"] == check["plan"]
    assert (result["classification"], result["phase"], result["mode_used"]) == (2, "done", "cold")
    assert site.where("layered") == ["beta"] and site.running("layered") == []

    assert digest(site, "beta", *paths) == before
    for path, size in zip(paths, space, strict=True):
        assert allocated(site, "beta", path) <= size * 1.05 + 65536, path
    assert {disk["path"]: disk["verified"] for disk in result["disks"]} == dict.fromkeys(paths, "full")
    assert sum(disk["bytes_sent"] for disk in result["disks"]) <= sum(space) * 1.05
    # taken back and made again: what is below the disk is there already
    assert move(site, "layered", "alpha", state="rolled_back")["changed"]
    again = move(site, "layered", "alpha")
    assert [disk["path"] for disk in again["disks"]] == paths[3:], again
    assert digest(site, "beta", *paths) == before
    site.fleet.host("beta").run(["qemu-img", "snapshot", "-a", "first", paths[3]])
    assert "enable" in site.virsh("beta", "dominfo", "layered").split("Autostart:")[1].split("\n")[0]

    # what the guest's marker does not have stays, and the neighbour with it
    assert digest(site, "alpha", *layered["chain"][:3]) == before[:3]
    assert files(site, "alpha", "layered") == ["layered-1.qcow2", "layered-2.qcow2"]
    assert move(site, "layered", "alpha")["changed"] is False

    flattened_on_the_way(site, layered)


def seen(site: Site, host: str, path: str) -> str:
    """Digest of what a guest that is off sees of a disk."""
    script = 'f=$(mktemp) && qemu-img convert -f qcow2 -O raw "$1" "$f" && sha256sum < "$f"; s=$?; rm -f "$f"; exit $s'
    return site.fleet.host(host).run(["sh", "-c", script, "sh", path]).stdout


def flattened_on_the_way(site: Site, layered: dict[str, t.Any]) -> None:
    """Back with the chain made one file: refused while that would lose a snapshot, then cold; and live after a new overlay."""
    top = layered["chain"][3]
    alpha, beta = site.fleet.host("alpha"), site.fleet.host("beta")
    refused = move(site, "layered", "beta", "--check", chain="flatten")
    assert refused["failed"] and "has snapshots inside (first), which flattening would lose" in refused["msg"]
    beta.run(["qemu-img", "snapshot", "-d", "first", top])
    before = seen(site, "beta", top)
    result = move(site, "layered", "beta", chain="flatten")
    assert not result.get("failed"), result
    assert seen(site, "alpha", top) == before
    assert json.loads(alpha.run(["qemu-img", "info", "--output=json", top]).stdout).get("backing-filename") is None
    assert sum(disk["bytes_sent"] for disk in result["disks"]) <= 1.05 * (
        allocated(site, "alpha", top) + allocated(site, "alpha", layered["raw"])
    )
    for host in site.fleet.hosts:
        assert ".flat" not in host.run(["ls", "-A", IMAGES]).stdout
    assert files(site, "beta", "layered") == ["layered-1.qcow2", "layered-2.qcow2"]

    below = top.replace("root", "below")
    alpha.run(["mv", top, below])
    alpha.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", top])
    site.virsh("alpha", "start", "layered")
    result = move(site, "layered", "alpha", chain="flatten", mode="live")
    assert not result.get("failed"), result
    assert site.running("layered") == ["beta"] == site.where("layered")
    assert files(site, "alpha", "layered") == ["layered-1.qcow2", "layered-2.qcow2", os.path.basename(below)]
    site.virsh("beta", "destroy", "layered")
    info = beta.run(["qemu-img", "info", "--output=json", top]).stdout
    assert json.loads(info).get("backing-filename") is None
    pattern = beta.run(["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 7 2M 1M", top]).stdout
    assert "verification failed" not in pattern


def test_a_guest_that_runs_is_shut_down_and_counts_on_from_where_it_was(site: Site) -> None:
    guest = site.guest("runner", "alpha")
    site.make(guest)
    site.counts("alpha", "runner", Counter(1, 40))
    said = move(site, "runner", "alpha", mode="cold", shutdown={"timeout": 1})
    assert said["failed"] and "did not shut down within 1 s" in said["msg"]
    assert said["phase"] == "rolled_back" and site.running("runner") == ["alpha"]
    assert files(site, "beta", "runner") == []
    assert "phyllome-migration" not in site.virsh("alpha", "dumpxml", "runner", "--inactive")

    before = site.counted("alpha", "runner")
    result = move(site, "runner", "alpha", mode="cold", shutdown={"timeout": 1, "then": "destroy"})
    assert not result.get("failed"), result
    assert site.running("runner") == ["beta"] == site.where("runner")
    after = site.counts("beta", "runner", Counter(before.boots + 1, 0))
    assert after.boots == before.boots + 1 and after.count >= before.count
    site.remove("runner")


def test_killed_before_every_single_step_the_next_run_finishes(site: Site, driver: Drive) -> None:
    guest = site.guest("struck", "alpha", state="stopped", autostart=True)
    site.make(guest)
    site.virsh("alpha", "snapshot-create-as", "struck", "first")
    disk = site.disk("alpha", "struck")
    before = digest(site, "alpha", disk)
    here, step = "alpha", 0
    while True:
        ended = driver(here, step, order(site, "struck", here))
        able = startable(site, "struck")
        assert len(able) <= 1, f"killed before step {step}, it could be started on {able}"
        again = driver(here, 10**6, order(site, "struck", here))
        assert again is not None and again["result"]["classification"] == 2, f"step {step}: {again}"
        there = other(here)
        assert site.where("struck") == [there] == startable(site, "struck"), f"step {step}"
        assert digest(site, there, disk) == before, f"step {step}"
        assert site.virsh(there, "snapshot-list", "struck", "--name").split() == ["first"], f"step {step}"
        assert files(site, here, "struck") == [], f"step {step}"
        assert files(site, there, "struck") == [disk.rpartition("/")[2]], f"step {step}"
        assert "enable" in site.virsh(there, "dominfo", "struck").split("Autostart:")[1].split("\n")[0]
        here, step = there, step + 1
        if ended is not None:
            break
    assert step > 15, "the steps were not counted"
    site.remove("struck")


def test_a_move_is_taken_back_committed_and_cleaned_up(site: Site, driver: Drive) -> None:
    site.make(site.guest("undone", "alpha", state="stopped", autostart=True))
    disk = site.disk("alpha", "undone")
    before = digest(site, "alpha", disk)

    def run(state: str, step: int = 10**6) -> dict[str, t.Any]:
        ended = driver("alpha", step, order(site, "undone", "alpha", state=state))
        return t.cast("dict[str, t.Any]", ended["result"] if ended else {})

    def back() -> None:
        assert run("rolled_back")["phase"] == "rolled_back"
        assert site.where("undone") == ["alpha"] == startable(site, "undone")
        assert digest(site, "alpha", disk) == before and files(site, "beta", "undone") == []
        assert "enable" in site.virsh("alpha", "dominfo", "undone").split("Autostart:")[1].split("\n")[0]

    for step in (2, 6, 8, 10):  # cut off, and taken back instead of finished
        assert not run("migrated", step)
        back()
    assert run("rolled_back")["changed"] is False

    assert run("migrated")["classification"] == 2
    site.make(
        {"name": "twin", "host": "beta", "state": "stopped", "clone_from": {"guest": "undone", "method": "linked"}}
    )
    for flags in (("--check",), ()):
        said = move(site, "undone", "alpha", *flags, state="rolled_back")
        assert said["phase"] == "refused" and f"there the guest twin has {disk} as well, or stands on it" in said["msg"]
    assert site.where("undone") == ["beta"] == startable(site, "undone")
    site.remove("twin")
    back()
    assert run("cleaned")["changed"] and run("cleaned")["changed"] is False
    for host in site.fleet.hosts:
        left = [name for name in host.run(["ls", "-A", IMAGES]).stdout.split() if name.startswith("undone")]
        assert left == ([disk.rpartition("/")[2]] if host.name == "alpha" else [])

    assert run("migrated")["leftovers"]
    assert run("committed")["changed"] and run("committed")["changed"] is False
    assert "undone" not in site.fleet.host("alpha").run(["ls", "-A", IMAGES]).stdout
    said = move(site, "undone", "alpha", state="rolled_back")
    assert said["failed"] and "alpha has no retained copy of it" in said["msg"]
    site.remove("undone")


def test_a_full_disk_and_a_dead_daemon_at_the_destination(site: Site) -> None:
    site.make(site.guest("victim", "alpha", state="stopped"))
    alpha, beta = site.fleet.host("alpha"), site.fleet.host("beta")
    disk = site.disk("alpha", "victim")
    alpha.run(["qemu-io", "-f", "qcow2", "-c", "write -P 90 8M 40M", disk])
    beta.run(["mount", "-t", "tmpfs", "-o", "size=70M,mode=0711", "lab", IMAGES])
    try:
        before = digest(site, "alpha", disk)
        parameters = json.dumps(order(site, "victim", "alpha", bandwidth_mib=8))
        command = [
            "ansible",
            "-i",
            str(site.inventory([])),
            "alpha",
            "-m",
            "phyllome.virt.vm_migrate",
            "-a",
            parameters,
        ]
        process = subprocess.Popen(
            command, env=runner.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        wait_for_copying(beta)
        beta.run(["sh", "-c", f"dd if=/dev/zero of={IMAGES}/filler bs=1M || true"])
        out = process.communicate(timeout=300)[0]
        assert "No space left" in out, out
        assert files(site, "beta", "victim") == [] and site.where("victim") == ["alpha"] == startable(site, "victim")
        beta.run(["rm", f"{IMAGES}/filler"])

        process = subprocess.Popen(
            command, env=runner.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        wait_for_copying(beta)
        beta.kill("/usr/sbin/libvirtd")
        out = process.communicate(timeout=300)[0]
        assert '"phase": "done"' in out, out
        assert site.where("victim") == ["beta"] and digest(site, "beta", disk) == before
    finally:
        site.remove("victim")
        beta.run(["umount", IMAGES])


def test_encrypted_disks_go_with_their_secrets(site: Site) -> None:
    lock = {"encryption": {"passphrase": "correct horse"}}
    guest = site.guest("locked", "alpha", state="stopped")
    guest["disks"] += [
        {"id": "vault", "size": "24MiB", **lock},
        {"id": "plain", "size": "24MiB", "format": "raw", **lock},
    ]
    site.make(guest)
    paths = [f"{IMAGES}/{name}" for name in files(site, "alpha", "locked") if "root" not in name]
    before, secrets = digest(site, "alpha", *paths), site.virsh("alpha", "secret-list").count(IMAGES)
    assert len(paths) == secrets == 2 and IMAGES not in site.virsh("beta", "secret-list")
    result = move(site, "locked", "alpha", verify="full")
    assert not result.get("failed"), result
    assert digest(site, "beta", *paths) == before
    assert site.virsh("beta", "secret-list").count(IMAGES) == 2
    site.virsh("beta", "start", "locked")
    assert site.running("locked") == ["beta"]
    site.remove("locked")


def test_uefi_variables_and_the_tpm_go_with_a_guest_that_is_off(site: Site) -> None:
    guest = {
        "name": "sealed",
        "host": "alpha",
        "profile": "windows11",
        "memory": "512MiB",
        "vcpus": 1,
        "disks": [{"id": "root", "size": "1GiB"}],
    }
    site.make(guest)
    alpha = site.fleet.host("alpha")
    uuid = site.virsh("alpha", "domuuid", "sealed").strip()
    xml = site.virsh("alpha", "dumpxml", "sealed")
    nvram = xml.split("<nvram", 1)[1].split(">", 1)[1].split("<", 1)[0]
    tpm = f"/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall"
    fresh = digest(site, "alpha", nvram)
    deadline = time.monotonic() + 120
    while digest(site, "alpha", nvram) == fresh and time.monotonic() < deadline:
        time.sleep(1)
    site.virsh("alpha", "destroy", "sealed")
    before = digest(site, "alpha", nvram, tpm)
    assert before[0] != fresh[0]
    owner = alpha.run(["stat", "-c", "%U %a", tpm]).stdout
    off = {"name": "sealed", "snapshot": "off"}
    assert site.module("vm_snapshot", "alpha", off)["changed"]

    result = move(site, "sealed", "alpha")
    assert not result.get("failed"), result
    assert digest(site, "beta", nvram, tpm) == before
    site.fleet.host("beta").run(["sh", "-c", f"echo spoilt >> {nvram}; echo spoilt > {tpm}"])
    assert site.module("vm_snapshot", "beta", {**off, "state": "reverted"})["changed"]
    assert digest(site, "beta", nvram, tpm) == before
    assert site.fleet.host("beta").run(["stat", "-c", "%U %a", tpm]).stdout == owner
    assert result["identity"]["nvram"]["same"] and result["identity"]["tpm"]["same"]
    site.virsh("beta", "start", "sealed")
    assert site.running("sealed") == ["beta"]

    result = move(site, "sealed", "beta", mode="warm", shutdown={"timeout": 1, "then": "destroy"})
    assert not result.get("failed"), result
    assert site.running("sealed") == ["alpha"] == site.where("sealed")
    assert result["mode_used"] == "warm" and result["identity"]["nvram"]["same"] and result["identity"]["tpm"]["same"]
    kept = [
        f"{nvram}.phyllome-retained-{result['op_id']}",
        tpm.replace(uuid, f"{uuid}.phyllome-retained-{result['op_id']}"),
    ]
    site.virsh("alpha", "suspend", "sealed")
    assert digest(site, "alpha", nvram) == digest(site, "beta", *kept)[:1]
    site.remove("sealed")
