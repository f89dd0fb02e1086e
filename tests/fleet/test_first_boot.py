"""A guest's first boot: installed by a kernel of its own, seeded for cloud-init, waited for; and guests of a user."""

from __future__ import annotations

import json
import time
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet.conftest import Site
from ansible_collections.phyllome.virt.tests.lab import linux
from ansible_collections.phyllome.virt.tests.lab.host import Host

PASSWORD = "hunter2-is-not-shown"
WORDS = "console=ttyS0 quiet"


@pytest.fixture(scope="module")
def alpha(request: pytest.FixtureRequest) -> t.Iterator[Host]:
    """A host with a kernel and an initrd."""
    site: Site = request.getfixturevalue("site")
    host = site.fleet.host("alpha")
    for name in ("vmlinuz", "initrd"):
        host.put(linux.images() / name, f"/srv/{name}")
    yield host
    site.remove("installed")


def ran(site: Site, arguments: dict[str, t.Any], *flags: str) -> dict[str, t.Any]:
    result = site.module("phyllome_vm", "alpha", arguments, *flags)
    assert not result.get("failed"), result["msg"]
    assert PASSWORD not in json.dumps(result)
    return result


def small(name: str, **more: t.Any) -> dict[str, t.Any]:
    return {
        "name": name,
        "profile": "legacy",
        "memory": "128MiB",
        "vcpus": 1,
        "disks": [{"id": "root", "size": "64MiB"}],
        "graphics": {"type": "none"},
        **more,
    }


def until(what: str, true: t.Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def files(host: Host, guest: str) -> set[str]:
    return {name for name in host.run(["ls", "/var/lib/libvirt/images"]).stdout.split() if name.startswith(guest)}


def test_a_system_is_installed_once_whatever_is_cut_off(site: Site, alpha: Host) -> None:
    install = {
        "kernel": "/srv/vmlinuz",
        "initrd": "/srv/initrd",
        "cmdline": f"{WORDS} install reboot",
        "kickstart": f"rootpw {PASSWORD}",
    }
    later = small("installed", install={**install, "timeout": 0})
    check = ran(site, later, "--check")
    begun = ran(site, later)
    assert check["plan"] == begun["plan"]
    (medium,) = (name for name in files(alpha, "installed") if name.endswith(".iso"))
    path = f"/var/lib/libvirt/images/{medium}"
    assert alpha.run(["blkid", "-o", "value", "-s", "LABEL", path]).stdout.strip() == "OEMDRV"
    assert alpha.run(["grep", "-c", PASSWORD, path]).stdout.strip() == "1"

    alpha.run(["virsh", "destroy", "installed"])
    wanted = small("installed", install=install)
    done = ran(site, wanted)
    assert {"path": "install", "from": "begun", "to": "done", "when": "live"} in done["plan"]
    assert done["guest"]["state"] == "running"
    assert files(alpha, "installed") == {"installed-root.qcow2"}
    definition = site.virsh("alpha", "dumpxml", "--inactive", "installed")
    assert not [word for word in ("vmlinuz", "cdrom", "<on_reboot>destroy") if word in definition]
    until("what was installed counts", lambda: counts(site))
    assert ran(site, wanted)["changed"] is False
    assert "hunter2" not in alpha.run(["journalctl", "--no-pager"]).stdout


def counts(site: Site) -> bool:
    try:
        return site.counted("alpha", "installed").count > 0
    except Exception:
        return False
