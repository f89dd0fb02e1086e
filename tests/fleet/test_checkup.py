"""The check-up of two hosts and of one that is not there."""

from __future__ import annotations

from ansible_collections.phyllome.virt.tests.fleet.conftest import Built, Checkup, Site, checkup


def look(checked: Checkup) -> None:
    """What is so on bare hosts and on Phyllome hosts."""
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


def test_the_checkup_tells_which_guest_can_go_where(site: Site) -> None:
    checked = checkup(site)
    look(checked)
    fleet = checked.report["fleet"]
    assert (fleet["domains"], fleet["pairs"], fleet["drift"]) == ([["alpha", "beta"]], [], [])
    assert {guest["name"]: guest["can"] for guest in fleet["guests"]}["web"] == ["beta"]
