"""Encrypted disks on real libvirt: made, used, grown, copied and removed; and nobody gets to see what is on them."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site

KEY = "correct horse battery"
IMAGES = "/var/lib/libvirt/images"
LOCK = {"encryption": {"passphrase": KEY}}
OFF = {"timeout": 1, "then": "destroy"}
ROOT = {"id": "root", "format": "raw", "source": {"path": IMAGE}, **LOCK}
DATA = {"id": "data", "size": "16MiB", **LOCK}
QUICK = """#!/bin/sh
# By itself qemu-img makes locks that take two seconds of a processor at each opening.
for word; do
    shift
    case $word in
    key-secret=*) word=$word,iter-time=10 ;;
    encrypt.format=luks,*) word=$word,encrypt.iter-time=10 ;;
    esac
    set -- "$@" "$word"
done
exec /usr/bin/qemu-img "$@"
"""
PROGRAM = "/usr/sbin/qemu-img"
BASED = {"id": "based", "source": {"path": IMAGE, "method": "linked"}, **LOCK}
Call = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def vault(site: Site) -> t.Iterator[dict[str, t.Any]]:
    guest = site.guest("vault", "alpha", networks=[], shutdown=OFF, disks=[ROOT])
    del guest["host"]
    alpha = site.fleet.host("alpha")
    alpha.write(PROGRAM, QUICK)
    alpha.run(["chmod", "755", PROGRAM])
    yield guest
    site.remove("vault", "copy")
    alpha.run(["rm", PROGRAM])


def test_an_encrypted_guest(site: Site, vault: dict[str, t.Any]) -> None:
    alpha = site.fleet.host("alpha")

    def run(*flags: str, fails: str = "", by: Call = site.module, **more: t.Any) -> dict[str, t.Any]:
        result = by("phyllome_vm", "alpha", {**vault, **more}, *flags)
        assert fails in result["msg"] if fails else not result.get("failed"), result.get("msg")
        assert KEY not in str(result)
        return result

    def secrets() -> list[str]:
        return [line.split()[0] for line in site.virsh("alpha", "secret-list").splitlines() if "vault-" in line]

    check = run("--check")
    assert secrets() == [] and check["plan"] == run(by=site.ansible)["plan"]  # which shows no passphrase either
    assert run()["changed"] is False
    counted = alpha.heard("vault")
    assert alpha.run(["grep", "-c", "PHYCOUNT", f"{IMAGES}/vault-root.raw"], check=False).stdout.strip() == "0"
    info = alpha.run(["qemu-img", "info", "-U", f"{IMAGES}/vault-root.raw"]).stdout
    assert "file format: luks" in info
    (uuid,) = secrets()
    private = alpha.run(["virsh", "secret-get-value", uuid], check=False)
    assert private.returncode and "secret is private" in private.stderr

    # A disk comes while the guest runs, and one grows; a third differs from a plain image.
    more = [{**ROOT, "size": "96MiB"}, DATA, BASED]
    result = run(disks=more)
    assert {change["when"] for change in result["plan"]} == {"live"} and not result["pending"]
    assert [disk["encrypted"] for disk in result["guest"]["disks"]] == [True, True, True]
    assert [disk["capacity"] >> 20 for disk in result["guest"]["disks"]] == [96, 16, 64]
    assert run(disks=more)["changed"] is False and len(secrets()) == 3

    uri = f"qemu+tls://{site.fleet.host('beta').address}/system"
    move = {"name": "vault", "destination": "beta", "destination_uri": uri}
    assert "encrypted" in site.module("vm_migrate", "alpha", move, "--check")["msg"]

    # Off: grown by who knows the passphrase.
    site.virsh("alpha", "destroy", "vault")
    less = [more[0], {**DATA, "size": "32MiB"}]
    run(state="stopped", disks=[{"id": "data", "size": "32MiB"}], fails="Declare encryption.passphrase")
    assert run(state="stopped", disks=less, unmanaged_devices="prune")["guest"]["disks"][1]["capacity"] == 32 << 20
    run(disks=[{"id": "root", "encryption": {"passphrase": "wrong"}}], fails="it does not open")
    alpha.run(["virsh", "secret-undefine", uuid])
    run(disks=[{"id": "root"}], fails="libvirt does not know its passphrase")
    again = run(disks=[ROOT])
    assert {"disks.root.encryption.passphrase", "state"} == {change["path"] for change in again["plan"]}
    assert alpha.heard("vault", counted).boots == counted.boots + 1

    # A copy: its own secret, the same passphrase.
    site.virsh("alpha", "destroy", "vault")
    copy: dict[str, t.Any] = {"name": "copy", "clone_from": {"guest": "vault", "method": "linked"}}
    known = [{"id": name, **LOCK} for name in ("root", "data")]
    run(**copy, disks=known, fails="is encrypted")
    copy["clone_from"]["method"] = "full"
    run(**copy, disks=[], fails="the passphrase of the copy is not declared")
    made = run(**copy, disks=known)
    assert made["changed"] and made["guest"]["state"] == "running"
    assert run(**copy, disks=known)["changed"] is False
    assert alpha.heard("copy", counted).boots == counted.boots + 2

    site.remove("vault", "copy")
    assert site.virsh("alpha", "secret-list").count("phyllome") == 0 and secrets() == []
    assert not [name for name in alpha.run(["ls", "-A", IMAGES]).stdout.split() if name.startswith(("vault", "copy"))]
