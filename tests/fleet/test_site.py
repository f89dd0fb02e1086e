"""The main job: bare hosts, Phyllome hosts, a guest, a move, and back."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import Built, Checkup, Site, checkup


@pytest.fixture(scope="module")
def site(bare: Site, built: Built) -> t.Iterator[Site]:
    """The two hosts that were bare."""
    built.first.ok()
    yield bare
    bare.remove("web")


def look(checked: Checkup) -> None:
    """What is so on bare hosts and on Phyllome hosts, with one in the inventory that is not there."""
    for host in ("alpha", "beta"):
        counters = checked.run.stats[host]
        assert (counters["changed"], counters["failures"], counters["unreachable"]) == (0, 0, 0), checked.run.messages()
    found = {host["name"]: [finding["code"] for finding in host["findings"]] for host in checked.report["hosts"]}
    assert found["gone"] == ["no_answer"]
    assert "container" in found["alpha"] and "container" in found["beta"]  # as the fleet's hosts are
    assert all(f"<h2>{name} " in checked.page for name in found)


def test_the_checkup_of_bare_hosts_changes_nothing_and_writes_data_and_a_page(built: Built) -> None:
    look(built.checkup)
    assert built.checkup.report["fleet"]["domains"] == [["alpha"], ["beta"]]  # they have no libvirt yet


def test_check_mode_on_bare_hosts_writes_nothing(built: Built) -> None:
    built.check.ok()
    assert built.packages_after_check == built.packages_before
    assert all(count > 0 for count in built.check.changed.values())


def test_bare_hosts_become_phyllome_hosts(site: Site, built: Built) -> None:
    built.first.ok()
    for here, there in (("alpha", "beta"), ("beta", "alpha")):
        address = site.fleet.host(there).address
        answer = site.virsh(here, "-c", f"qemu+tls://{address}/system", "hostname")
        assert answer.strip() == there
    assert site.running("web") == ["alpha"]


def test_the_second_run_changes_nothing(built: Built) -> None:
    built.second.ok()
    assert built.second.changed == {"alpha": 0, "beta": 0}


def test_the_checkup_tells_which_guest_can_go_where(site: Site) -> None:
    checked = checkup(site)
    look(checked)
    fleet = checked.report["fleet"]
    assert (fleet["domains"], fleet["pairs"], fleet["drift"]) == ([["alpha", "beta"]], [], [])
    assert {guest["name"]: guest["can"] for guest in fleet["guests"]}["web"] == ["beta"]


@pytest.mark.parametrize("core", ["2.17", "2.21"])
def test_other_ansible_cores_agree_that_nothing_has_to_change(site: Site, built: Built, core: str) -> None:
    run = site.whole([built.web], core=core).ok()
    assert run.changed == {"alpha": 0, "beta": 0}


def test_nobody_but_the_fleet_reaches_the_ports_of_a_move(site: Site) -> None:
    # the lab's gateway is no member of the fleet
    import socket

    for port in (16514, 49152):
        with pytest.raises(OSError):
            socket.create_connection((site.fleet.host("alpha").address, port), timeout=1).close()


def test_editing_host_moves_the_guest_while_it_runs_and_back(site: Site, built: Built) -> None:
    # there with the whole playbook, which does nothing more than what it does about guests, and back with that
    for source, destination, play in (("alpha", "beta", site.whole), ("beta", "alpha", site.run)):
        moved = {**built.web, "host": destination}
        before = site.fleet.host(source).heard("web")
        disk = site.disk(source, "web")
        allocated = int(site.fleet.host(source).run(["stat", "-c", "%b", disk]).stdout) * 512

        check = site.run([moved], "--check", "--diff").ok()
        assert site.where("web") == [source]
        run = play([moved], "--diff").ok()
        assert check.changes() == run.changes()
        assert sum(run.changed.values()) == 1

        assert site.where("web") == [destination] == site.running("web")
        assert site.fleet.host(destination).heard("web", before).boots == before.boots
        assert site.counts(destination, "web", before).boots == before.boots
        assert "enable" in site.virsh(destination, "dominfo", "web").split("Autostart:")[1]

        arrived = int(site.fleet.host(destination).run(["stat", "-c", "%b", disk]).stdout) * 512
        assert arrived <= allocated * 1.05 + 1024**2
        left = site.fleet.host(source).run(["sh", "-c", f"ls -A {disk.rsplit('/', 1)[0]}"]).stdout
        assert disk.rsplit("/", 1)[1] not in left.split()
        assert "retained" in left

        again = site.run([moved]).ok()
        assert again.changed == {"alpha": 0, "beta": 0}


def test_check_mode_predicts_new_changed_and_removed_guests(site: Site) -> None:
    first = [site.guest("one", "alpha", memory="64MiB"), site.guest("two", "beta", state="stopped")]
    check = site.run(first, "--check", "--diff").ok()
    assert site.where("one") == [] and site.where("two") == []
    run = site.run(first, "--diff").ok()
    assert check.changes() == run.changes() and len(run.changes()) == 2
    assert site.running("one") == ["alpha"] and site.running("two") == []

    second = [{**first[0], "memory": "80MiB"}, {**first[1], "state": "absent", "delete": {"disks": "owned"}}]
    check = site.run(second, "--check", "--diff").ok()
    run = site.run(second, "--diff").ok()
    assert check.changes() == run.changes() and len(run.changes()) == 2
    assert site.where("two") == []
    assert site.run(second).ok().changed == {"alpha": 0, "beta": 0}
    site.remove("one")


def moved(run: runner.Run) -> dict[str, t.Any]:
    """What vm_migrate returned for the only guest that moved."""
    return next(
        item
        for dummy, task, result in run.results()
        if "Move guests away" in task
        for item in result.get("results", [])
    )


def test_a_guest_with_secure_boot_and_tpm_moves_with_its_variables_and_its_tpm(site: Site) -> None:
    win = {
        "name": "win11",
        "host": "alpha",
        "profile": "windows11",
        "memory": "512MiB",
        "vcpus": 1,
        "disks": [{"id": "root", "size": "1GiB"}],
    }
    site.make(win)
    uuid = site.virsh("alpha", "domuuid", "win11").strip()
    xml = site.virsh("alpha", "dumpxml", "win11")
    nvram = xml.split("<nvram", 1)[1].split(">", 1)[1].split("<", 1)[0]
    tpm = f"/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall"
    fresh = site.fleet.host("alpha").read(nvram)

    def pieces(host: str) -> list[bytes]:
        return [site.fleet.host(host).read(path) for path in (nvram, tpm)]

    # until the firmware has written variables of its own
    deadline = time.monotonic() + 120
    while site.fleet.host("alpha").read(nvram) == fresh and time.monotonic() < deadline:
        time.sleep(1)
    assert site.fleet.host("alpha").read(nvram) != fresh

    # paused, nobody can write while we compare: byte for byte
    paused = {**win, "state": "paused"}
    site.make(paused)
    before = pieces("alpha")
    run = site.run([{**paused, "host": "beta"}]).ok()
    assert site.where("win11") == ["beta"] and site.running("win11") == []
    assert pieces("beta") == before
    assert moved(run)["classification"] == 2

    # running: the module compares at the right moments, the firmware may go on writing after it
    site.make({**win, "host": "beta"})
    run = site.run([win]).ok()
    assert site.running("win11") == ["alpha"] == site.where("win11")
    result = moved(run)
    assert result["classification"] == 2 and result["identity"]["tpm"]["same"]
    assert site.run([win]).ok().changed == {"alpha": 0, "beta": 0}
    site.remove("win11")


def test_a_guest_that_is_off_moves_and_stays_off(site: Site) -> None:
    guest = site.guest("idle", "alpha", state="stopped")
    site.make(guest)
    check = site.run([{**guest, "host": "beta"}], "--check", "--diff").ok()
    run = site.run([{**guest, "host": "beta"}], "--diff").ok()
    assert check.changes() == run.changes()
    assert moved(run)["mode_used"] == "cold"
    assert site.where("idle") == ["beta"] and site.running("idle") == []
    assert site.run([{**guest, "host": "beta"}]).ok().changed == {"alpha": 0, "beta": 0}
    site.remove("idle")
