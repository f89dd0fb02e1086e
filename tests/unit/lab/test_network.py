"""Names and addresses on the wire, and the rules that break it."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.tests.lab import network
from ansible_collections.phyllome.virt.tests.lab.errors import LabError


def test_names_fit_an_interface() -> None:
    longest = network.port(254, 253)
    assert longest == "vb-phl254h253"
    assert len(longest) <= 15


def test_addresses_follow_the_order_of_hosts() -> None:
    assert [network.address(7, index) for index in (1, 2, 253)] == ["10.78.7.1", "10.78.7.2", "10.78.7.253"]
    assert network.gateway(7) == "10.78.7.254"


@pytest.mark.parametrize("index", [0, 254])
def test_there_is_no_host_at_the_gateway(index: int) -> None:
    with pytest.raises(LabError):
        network.address(0, index)


def test_traffic_inside_a_fleet_is_not_translated() -> None:
    assert "ip saddr 10.78.4.0/24 ip daddr != 10.78.4.0/24 masquerade" in network.rules(4)
    assert network.rules(4).count("phyllome_lab_4") == 2


def test_replies_are_lost_by_their_source_port() -> None:
    rule = network.drop_rule("vb-phl0h2", "vb-phl0h1", 16514, side="sport")
    assert rule == 'iifname "vb-phl0h2" oifname "vb-phl0h1" tcp sport 16514 counter drop'


@pytest.mark.parametrize(("protocol", "side"), [("icmp", "dport"), ("tcp", "port")])
def test_other_drops_are_refused(protocol: str, side: str) -> None:
    with pytest.raises(LabError):
        network.drop_rule("a", "b", 1, protocol, side)


def test_handle_is_found_before_the_comment_about_the_generation() -> None:
    printed = 'add rule bridge t faults iifname "a" drop # handle 12\n# new generation 6 by process 6610 (nft)\n'
    assert network.handle(printed) == 12
    with pytest.raises(LabError):
        network.handle("# new generation 6 by process 6610 (nft)\n")
