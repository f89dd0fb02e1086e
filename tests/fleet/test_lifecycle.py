"""Snapshots, exports and clones of guests that count, and of one with UEFI and a TPM, on real hosts."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site
from ansible_collections.phyllome.virt.tests.fleet.moves import move
from ansible_collections.phyllome.virt.tests.lab.host import Counter

QUICK = {"timeout": 1, "then": "destroy"}
IMAGES = "/var/lib/libvirt/images"
Call = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def on(site: Site) -> Call:
    """Run a module on a host; what it was not meant to do fails the test."""

    def run(host: str, module: str, *flags: str, fails: str = "", **arguments: t.Any) -> dict[str, t.Any]:
        result = site.module(module, host, arguments, *flags)
        assert fails in result["msg"] if fails else not result.get("failed"), result.get("msg")
        return result

    return run


def counting(site: Site, name: str, **more: t.Any) -> dict[str, t.Any]:
    guest = site.guest(name, "alpha", networks=[], shutdown=QUICK, **more)
    return {option: value for option, value in guest.items() if option != "host"}


def test_snapshots_of_a_running_guest(site: Site, on: Call) -> None:
    guest = counting(site, "snap")
    on("alpha", "phyllome_vm", **guest)
    site.counts("alpha", "snap")
    foreseen = on("alpha", "vm_snapshot", "--check", name="snap", snapshot="one")
    taken = on("alpha", "vm_snapshot", name="snap", snapshot="one")
    assert foreseen["changed"] and foreseen["plan"] == taken["plan"] and foreseen["snapshots"] == []
    assert [each["name"] for each in taken["snapshots"]] == ["one"] and taken["guest"]["state"] == "running"
    assert not on("alpha", "vm_snapshot", name="snap", snapshot="one")["changed"]

    uri = f"qemu+tls://{site.fleet.host('beta').address}/system"
    told = on("alpha", "vm_migrate", "--check", fails="snapshot", name="snap", destination="beta", destination_uri=uri)
    assert told["failed"]

    then = site.counted("alpha", "snap").count
    site.counts("alpha", "snap", Counter(1, then + 100))
    reverted = on("alpha", "vm_snapshot", name="snap", snapshot="one", state="reverted")
    now = site.counted("alpha", "snap")
    assert reverted["changed"] and now.boots == 1 and now.count < then + 100
    site.counts("alpha", "snap", now)

    second = on("alpha", "vm_snapshot", name="snap", snapshot="two", retention={"keep": 1})
    assert [each["name"] for each in second["snapshots"]] == ["two"]
    assert site.virsh("alpha", "snapshot-list", "snap", "--name").split() == ["two"]
    assert not on("alpha", "vm_snapshot", name="snap", snapshot="two", retention={"keep": 1})["changed"]
    assert site.counted("alpha", "snap").boots == 1

    # A run that was killed while the guest was at rest: saved, claimed, nothing else.
    alpha, base = site.fleet.host("alpha"), f"/var/lib/libvirt/phyllome/snapshots/{taken['guest']['uuid']}"
    alpha.run(["sh", "-c", f"touch {base}/resume; mkdir {base}/three; virsh managedsave snap"])
    finished = on("alpha", "vm_snapshot", name="snap", snapshot="three")
    assert finished["guest"]["state"] == "running" and {each["whole"] for each in finished["snapshots"]} == {True}
    assert site.counted("alpha", "snap").boots == 1

    # Its snapshots go with it while it is off, and memory is gone back to where it is then.
    last = site.counted("alpha", "snap").count
    site.virsh("alpha", "destroy", "snap")
    moved = move(site, "snap", "alpha")
    assert not moved.get("failed"), moved
    assert {name.split("/")[0] for name in moved["identity"]["snapshots"]["files"]} == {"two", "three"}
    assert not on("beta", "vm_snapshot", name="snap", snapshot="three")["changed"]
    assert on("beta", "vm_snapshot", name="snap", snapshot="three", state="reverted")["guest"]["state"] == "running"
    now = site.counted("beta", "snap")
    assert now.boots == 1 and now.count < last + 100 and site.running("snap") == ["beta"]
    assert move(site, "snap", "alpha", state="cleaned")["changed"]
    site.remove("snap")
    for host in (alpha, site.fleet.host("beta")):
        assert taken["guest"]["uuid"] not in host.run(["ls", "/var/lib/libvirt/phyllome/snapshots"]).stdout


def secrets(site: Site, host: str, name: str) -> str:
    """Digests of a guest's UEFI variables and TPM state."""
    uuid = site.virsh(host, "domuuid", name).strip()
    files = f"/var/lib/libvirt/qemu/nvram/{uuid}_VARS.fd /var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall"
    told = site.fleet.host(host).run(["sh", "-c", f"sha256sum < {files.split()[0]}; sha256sum < {files.split()[1]}"])
    return told.stdout


def test_a_guest_with_uefi_and_tpm_whole(site: Site, on: Call) -> None:
    alpha, beta = site.fleet.host("alpha"), site.fleet.host("beta")
    sealed = {
        **counting(site, "sealed", state="running"),
        "profile": "linux",
        "memory": "128MiB",
        "firmware": {"type": "uefi"},
        "tpm": {"model": "tpm-crb"},
    }
    made = on("alpha", "phyllome_vm", **sealed)["guest"]
    uuid = made["uuid"]
    store, state = f"/var/lib/libvirt/qemu/nvram/{uuid}_VARS.fd", f"/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall"
    site.virsh("alpha", "destroy", "sealed")
    before = secrets(site, "alpha", "sealed")

    on("alpha", "vm_snapshot", name="sealed", snapshot="cold")
    alpha.run(["sh", "-c", f"echo spoilt >> {store}; echo spoilt > {state}"])
    assert secrets(site, "alpha", "sealed") != before
    assert on("alpha", "vm_snapshot", name="sealed", snapshot="cold", state="reverted")["changed"]
    assert secrets(site, "alpha", "sealed") == before
    assert not on("alpha", "vm_snapshot", name="sealed", snapshot="cold", state="reverted")["changed"]

    alpha.run(
        ["sh", "-c", "mkdir -p /srv/out/.sealed.phyllome-partial && touch /srv/out/.sealed.phyllome-partial/half"]
    )
    export = {"name": "sealed", "path": "/srv/out/sealed", "state": "exported"}
    assert on("alpha", "vm_export", **export)["changed"]
    assert not on("alpha", "vm_export", **export)["changed"]
    assert alpha.run(["ls", "-A", "/srv/out"]).stdout.split() == ["sealed"]
    packed = alpha.run_bytes(["tar", "-C", "/srv/out", "-c", "sealed"]).stdout
    beta.write("/srv/sealed.tar", packed)
    beta.run(["tar", "-C", "/srv", "-xf", "/srv/sealed.tar"])
    arrive = {"path": "/srv/sealed", "state": "imported"}
    beta.run(["cp", "/srv/sealed/disks/vda.qcow2", f"{IMAGES}/sealed-root.qcow2"])  # of an import that was cut off
    assert on("beta", "vm_export", "--check", **arrive)["changed"]
    assert on("beta", "vm_export", **arrive)["changed"]
    assert not on("beta", "vm_export", **arrive)["changed"]
    assert secrets(site, "beta", "sealed") == before
    beta.run(["sh", "-c", "echo more >> /srv/sealed/nvram.fd"])
    again = {**arrive, "name": "other", "identity": "new"}
    on("beta", "vm_export", fails="the export is damaged", **again)
    assert "other" not in site.guests("beta")

    on("alpha", "phyllome_vm", name="twin", state="stopped", clone_from={"guest": "sealed", "tpm": "copy"})
    assert secrets(site, "alpha", "twin") == before
    uuids = {site.virsh("alpha", "domuuid", name).strip() for name in ("sealed", "twin")}
    kept = set(alpha.run(["ls", "/var/lib/libvirt/swtpm"]).stdout.split())
    assert uuids <= kept
    site.remove("sealed", "twin")
    assert set(alpha.run(["ls", "/var/lib/libvirt/swtpm"]).stdout.split()) == kept - uuids


def test_clones(site: Site, on: Call) -> None:
    alpha = site.fleet.host("alpha")
    on("alpha", "phyllome_vm", **counting(site, "mould", state="stopped"))
    clones = [
        {"name": f"clone-{method}", "state": "stopped", "clone_from": {"guest": "mould", "method": method}}
        for method in ("linked", "full", "auto")
    ]
    foreseen = on("alpha", "phyllome_vm", "--check", guests=clones)
    assert site.guests("alpha") & {clone["name"] for clone in clones} == set()
    made = on("alpha", "phyllome_vm", guests=clones)
    assert [each["plan"] for each in foreseen["results"]] == [each["plan"] for each in made["results"]]
    assert not on("alpha", "phyllome_vm", guests=clones)["changed"]
    info = json.loads(alpha.run(["qemu-img", "info", "--output=json", f"{IMAGES}/clone-linked-root.qcow2"]).stdout)
    assert info["backing-filename"] == f"{IMAGES}/mould-root.qcow2"

    on("alpha", "phyllome_vm", name="clone-linked", state="running", shutdown=QUICK)
    assert site.counts("alpha", "clone-linked").boots == 1
    on("alpha", "phyllome_vm", fails="the base of linked clones", name="mould", state="running")
    on("alpha", "phyllome_vm", fails="is used by clone-linked", name="mould", state="absent", delete={"disks": "owned"})

    # A run that fails in the middle, and the one after it.
    partial = f"{IMAGES}/.late-root.qcow2.phyllome-partial"
    alpha.run(["mkdir", partial])
    late = {"name": "late", "state": "stopped", "clone_from": {"guest": "mould", "method": "full"}}
    on("alpha", "phyllome_vm", fails="late-root.qcow2", **late)
    on("alpha", "phyllome_vm", fails="is a clone of mould that is not complete", name="late", state="running")
    alpha.run(["rmdir", partial])
    assert on("alpha", "phyllome_vm", **late)["changed"]
    assert not on("alpha", "phyllome_vm", **late)["changed"]
    alpha.run(["qemu-img", "compare", f"{IMAGES}/late-root.qcow2", IMAGE])

    site.remove("clone-linked", "clone-full", "clone-auto", "late")
    site.remove("mould")
    assert not [name for name in alpha.run(["ls", "-A", IMAGES]).stdout.split() if "mould" in name or "clone" in name]


def test_copies_that_share_blocks(site: Site, on: Call) -> None:
    """XFS can; what else is in the folder cannot, and says so."""
    alpha, folder = site.fleet.host("alpha"), "/srv/shared"
    alpha.share(folder)
    try:
        alpha.run(["cp", IMAGE, f"{folder}/image.qcow2"])
        source = {"path": f"{folder}/image.qcow2", "method": "reflink"}
        disk = {"id": "root", "path": f"{folder}/base.qcow2", "source": source}
        on("alpha", "phyllome_vm", **counting(site, "base", state="stopped", disks=[disk]))
        alpha.run(["qemu-io", "-f", "qcow2", "-c", "write -P 90 8M 48M", f"{folder}/base.qcow2"])

        def used() -> int:
            alpha.run(["sync", "-f", folder])
            return int(alpha.run(["df", "--output=used", "-B1", folder]).stdout.split()[1])

        before = used()
        copy = {"name": "shares", "clone_from": {"guest": "base", "method": "reflink"}, "shutdown": QUICK}
        assert on("alpha", "phyllome_vm", **copy)["changed"]
        assert used() - before < 16 << 20, "48 MiB are shared, not copied"
        assert site.counts("alpha", "shares").boots == 1
        assert not on("alpha", "phyllome_vm", **copy)["changed"]
        elsewhere = counting(site, "other", disks=[{"id": "root", "source": source}])
        on("alpha", "phyllome_vm", fails="Say method: full, or put both on one btrfs or XFS file system", **elsewhere)
    finally:
        site.remove("base", "shares", "other")
        alpha.unlimit(folder)
