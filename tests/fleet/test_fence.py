"""A guest that is being moved is started by nobody: not by hand, not with its host, not by this collection."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.tests.fleet.conftest import Site
from ansible_collections.phyllome.virt.tests.lab.errors import LabError

NS = "https://phyllome.org/xmlns/virt/migration/1"
MARK = (
    "<migration op_id='0f1f6c0b-50a2-5a63-9f6f-8c3ad0f34f40' source='alpha' destination='beta' epoch='0' "
    "phase='moving' power='running' autostart='yes' fenced='yes'/>"
)


def test_a_guest_in_a_move_is_started_by_nobody(site: Site) -> None:
    guest = site.guest("fenced", "alpha", state="stopped", autostart=True)
    site.make(guest)
    older = site.virsh("alpha", "dumpxml", "fenced")
    alpha = site.fleet.host("alpha")
    alpha.run(["virsh", "metadata", "fenced", NS, "--config", "--key", "phyllome-migration", "--set", MARK])

    with pytest.raises(LabError, match="is being moved from alpha to beta"):
        site.virsh("alpha", "start", "fenced")
    with pytest.raises(LabError, match="state: rolled_back"):
        alpha.run(["virsh", "create", "/dev/stdin"], input=older)

    # libvirt starts what has autostart once after each boot, and remembers that it did
    alpha.run(["sh", "-c", "rm -f /run/libvirt/qemu/autostarted; systemctl restart libvirtd"])
    site.virsh("alpha", "version")
    assert "is not started here" in alpha.run(["journalctl", "-u", "libvirtd", "-n", "50"]).stdout
    assert site.running("fenced") == []

    said = site.module("phyllome_vm", "alpha", {"name": "fenced"})
    assert said["failed"] and "from alpha to beta; it is not started meanwhile" in said["msg"]

    alpha.run(["virsh", "metadata", "fenced", NS, "--config", "--remove"])
    site.virsh("alpha", "start", "fenced")
    assert site.running("fenced") == ["alpha"]
    site.remove("fenced")
