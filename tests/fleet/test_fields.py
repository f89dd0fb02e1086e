# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest with nearly everything declared: libvirt takes it, it starts, and the second run changes nothing."""

from __future__ import annotations

import contextlib
import pathlib
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site

OFF = {"timeout": 1, "then": "destroy"}
RICH: dict[str, t.Any] = {
    "name": "rich",
    "state": "running",
    "profile": "legacy",
    "shutdown": OFF,
    "memory": {"size": "64MiB", "maximum": "1GiB", "slots": 2, "virtio_mem": {"size": "128MiB"}, "nodes": "0"},
    "vcpus": {
        "current": 1,
        "maximum": 2,
        "topology": {"sockets": 1, "cores": 2, "threads": 1},
        "iothreads": 1,
        "pins": {"0": "0"},
        "emulator_pins": "0",
        "iothread_pins": {"1": "0"},
    },
    "cpu": {"mode": "custom", "model": "Nehalem", "features": {"vme": False}},
    "graphics": {"type": "vnc", "port": "5977", "password": "s3cr3t"},
    "video": {"model": "vga"},
    "sound": {"model": "ich9"},
    "rng": {"backend": "builtin", "rate": {"bytes": 1024, "period": 1000}},
    "watchdog": {"model": "i6300esb", "action": "none"},
    "vsock": {"cid": "none"},
    "channels": ["agent"],
    "boot": {"menu": True, "timeout": 10},
    "metadata": {"title": "Rich", "description": "one\ntwo <&>"},
    "inputs": [{"id": "pen", "type": "tablet"}, {"id": "keys", "type": "keyboard", "bus": "virtio"}],
    "filesystems": [{"id": "old", "source": "/srv", "driver": "9p", "readonly": True}],
    "hostdevs": [{"id": "blue", "usb": {"vendor": "0x8087", "product": "0x0a2b", "serial": "S1"}}],
    "disks": [
        {
            "id": "root",
            "size": "64MiB",
            "source": {"path": IMAGE, "method": "linked"},
            "cache": "writeback",
            "detect_zeroes": "unmap",
            "iothread": 1,
            "serial": "S1",
            "iotune": {"total_bytes_sec": "100MiB"},
        },
        {"id": "data", "size": "16MiB", "format": "raw", "bus": "scsi", "cache": "none"},
    ],
    "networks": [
        {"id": "lan", "network": "default", "mtu": 1400},
        {"id": "user", "user": True, "link": "down"},
    ],
    "xml": {"devices": {"root": '<disk><driver error_policy="report"/></disk>'}},
}


@pytest.fixture
def rich(site: Site) -> t.Iterator[Site]:
    try:
        yield site
    finally:
        site.remove("rich", "secure", "huge")


def test_a_guest_with_nearly_everything(rich: Site) -> None:
    first = rich.module("phyllome_vm", "alpha", RICH)
    assert first["changed"] and not first["pending"], first
    assert "s3cr3t" not in str({name: told for name, told in first.items() if name != "invocation"}), first
    assert first["guest"]["hotplug_slots_free"] >= 14
    again = rich.module("phyllome_vm", "alpha", RICH)
    assert (again["changed"], again["plan"], again["pending"]) == (False, [], []), again
    rich.counts("alpha", "rich")
    # its dongle is not plugged in anywhere, so there is nothing to do about it; and no other guest may claim it
    rich.fleet.host("alpha").run(["python3", "-I", "/usr/local/lib/phyllome/plug.py", "rich"])
    claim = {"name": "poor", "hostdevs": [{"id": "it", "usb": {"vendor": "0x8087", "product": "0x0a2b"}}]}
    refused = rich.module("phyllome_vm", "alpha", {"guests": [claim]}, "--check")
    assert "the device belongs to guest rich" in refused["msg"], refused

    other: dict[str, t.Any] = {
        "name": "rich",
        "vcpus": {"current": 2, "maximum": 2},
        "metadata": {"title": "Richer"},
        "graphics": {"password": "0ther"},
        "disks": [{"id": "root", "iotune": {"total_bytes_sec": "50MiB"}}],
        "networks": [
            {"id": "user", "link": "up"},
        ],
    }
    changed = rich.module("phyllome_vm", "alpha", other)
    assert {change["when"] for change in changed["plan"]} == {"live"}, changed
    assert not changed["pending"], changed
    live = rich.virsh("alpha", "dumpxml", "rich")
    for part in (
        "<title>Richer</title>",
        "<total_bytes_sec>52428800<",
        "<link state='up'/>",
    ):
        assert part in live
    assert not rich.module("phyllome_vm", "alpha", other)["changed"]


@contextlib.contextmanager
def reserved(pages: int) -> t.Iterator[None]:
    """So many huge pages more on this machine, whose kernel the hosts of the lab share."""
    reserve = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")

    def add(count: int) -> None:
        reserve.write_text(str(int(reserve.read_text()) + count))

    add(pages)
    try:
        yield
    finally:
        add(-pages)


def test_memory_of_huge_pages(rich: Site) -> None:
    guest = {**rich.guest("huge", "", networks=[], shutdown=OFF), "memory": {"size": "32MiB", "hugepages": "2MiB"}}
    del guest["host"]
    free = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    with reserved(20):
        before = int(free.read_text())
        first = rich.module("phyllome_vm", "alpha", guest)
        assert not first.get("failed") and rich.counts("alpha", "huge").boots == 1, first
        assert int(free.read_text()) == before - 16, "all of its memory, before anybody asks for it"
        # its own pages are free for it when it starts again
        bigger = {**guest, "apply": "restart", "memory": {"size": "40MiB"}}
        assert not rich.module("phyllome_vm", "alpha", bigger).get("failed")
        assert int(free.read_text()) == before - 20
        assert not rich.module("phyllome_vm", "alpha", bigger)["changed"]
        rich.remove("huge")
        assert int(free.read_text()) == before


def test_secure_boot_changes_with_its_variables(rich: Site) -> None:
    guest: dict[str, t.Any] = {"name": "secure", "memory": "64MiB", "vcpus": 1, "shutdown": OFF}
    first = rich.module("phyllome_vm", "alpha", {**guest, "state": "paused", "firmware": {"secure_boot": False}})
    store = f"/var/lib/libvirt/qemu/nvram/{first['guest']['uuid']}_VARS.fd"
    alpha = rich.fleet.host("alpha")
    plain = alpha.run(["md5sum", store]).stdout
    assert rich.module("phyllome_vm", "alpha", {**guest, "state": "stopped"})["changed"]
    reset = {**guest, "firmware": {"secure_boot": True, "nvram": "reset"}}
    changed = rich.module("phyllome_vm", "alpha", {**reset, "state": "paused"})
    assert {"firmware.nvram", "firmware.secure_boot"} <= {change["path"] for change in changed["plan"]}, changed
    assert alpha.run(["md5sum", store]).stdout != plain
    assert not rich.module("phyllome_vm", "alpha", {**reset, "state": "paused"})["changed"]
