# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._network import apply, read, spec
from ansible_collections.phyllome.virt.plugins.module_utils._network.plan import choose, plan

# `virsh net-dumpxml --inactive default` on Debian 12.
DEFAULT = """<network>
  <name>default</name>
  <uuid>374e7c8c-e4a6-4e72-9bca-1eef23b8e6a7</uuid>
  <forward mode='nat'/>
  <bridge name='virbr0' stp='on' delay='0'/>
  <mac address='52:54:00:29:53:b5'/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.122.2' end='192.168.122.254'/>
    </dhcp>
  </ip>
</network>"""
BRIDGED = "<network><name>lan</name><uuid>u</uuid><forward mode='bridge'/><bridge name='br0'/></network>"
# /proc/net/route of a lab host: a default route and its own network.
ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
host0\t00000000\tFE044E0A\t0003\t0\t0\t0\t00000000\t0\t0\t0
host0\t00044E0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
virbr0\t007AA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
TAKEN = (ipaddress.IPv4Network("192.168.122.0/24"),)


def params(**options):
    return {"name": "default", "state": "active", "autostart": None, **dict.fromkeys(NAMES), **options}


NAMES = [row.option for row in spec.FIELDS]


def found(text=DEFAULT, active=True, persistent=True, autostart=True, users=()):
    root = xml.parse(text)
    values = {row.option: row.read(root) for row in spec.FIELDS}
    return read.Found("u", active, persistent, autostart, values, text, users)


def changes(there=None, taken=(), **options):
    return [
        (change.action, change.path, change.before, change.after)
        for change in plan(spec.wanted(params(**options)), read.World(there, tuple(taken)))
    ]


def refusal(there=None, taken=(), **options):
    with pytest.raises(PhyllomeError) as caught:
        changes(there, taken, **options)
    return caught.value


def test_fields_read_what_libvirt_writes():
    assert found().values == {
        "forward": "nat",
        "bridge": "virbr0",
        "mtu": None,
        "domain": None,
        "address": "192.168.122.1/24",
        "dhcp": "192.168.122.2-192.168.122.254",
    }
    assert (
        found("<network><name>x</name><ip address='10.0.0.1' prefix='16'/></network>").values["address"]
        == "10.0.0.1/16"
    )
    ipv6 = "<network><name>x</name><ip family='ipv6' address='fd00::1' prefix='64'/></network>"
    assert found(ipv6).values["address"] is None
    assert found(ipv6).values["forward"] == "isolated"


@given(
    st.fixed_dictionaries(
        {
            "forward": st.sampled_from(["nat", "route", "isolated"]),
            "bridge": st.just("virbr7"),
            "mtu": st.integers(1280, 65535),
            "domain": st.just("lab.internal"),
            "address": st.integers(2, 250).map("10.9.8.{}/24".format),
            "dhcp": st.sampled_from(["none", "10.9.8.251-10.9.8.253"]),
        }
    )
)
def test_what_is_written_is_read_again(values):
    root = xml.parse(DEFAULT)
    for row in spec.FIELDS:
        row.write(root, values[row.option])
    assert {row.option: row.read(root) for row in spec.FIELDS} == values
    assert root.findtext("uuid") == "374e7c8c-e4a6-4e72-9bca-1eef23b8e6a7"


def test_routes_without_the_default_and_the_own_bridge():
    lab, bridge = ipaddress.IPv4Network("10.78.4.0/24"), ipaddress.IPv4Network("192.168.122.0/24")
    assert read.routed(ROUTES) == (lab, bridge)
    assert read.routed(ROUTES, "virbr0") == (lab,)
    assert read.routed("") == ()


def test_as_declared_needs_nothing():
    assert changes(found(), autostart=True, address="auto", dhcp="auto", forward="nat") == []
    assert changes(found(active=False), state="inactive") == []
    assert changes(found(active=False), state="present") == []
    assert changes(None, state="absent") == []


def test_new_network_has_the_defaults_and_a_free_range():
    assert changes(None, TAKEN, autostart=True) == [
        ("define", "network", None, "default"),
        ("", "forward", None, "nat"),
        ("", "address", None, "192.168.123.1/24"),
        ("", "dhcp", None, "192.168.123.2-192.168.123.254"),
        ("start", "active", False, True),
        ("autostart", "autostart", False, True),
    ]


def test_new_bridged_network_has_nothing_else():
    assert changes(None, TAKEN, forward="bridge", bridge="br0", state="present") == [
        ("define", "network", None, "default"),
        ("", "forward", None, "bridge"),
        ("", "bridge", None, "br0"),
    ]


def test_auto_keeps_an_active_network_and_an_inactive_one_without_clash():
    assert changes(found(), TAKEN, address="auto") == []
    assert changes(found(active=False), (), address="auto", state="present") == []


def test_auto_moves_an_inactive_network_that_clashes_and_its_leases():
    assert changes(found(active=False), TAKEN, address="auto") == [
        ("define", "address", "192.168.122.1/24", "192.168.123.1/24"),
        ("", "dhcp", "192.168.122.2-192.168.122.254", "192.168.123.2-192.168.123.254"),
        ("start", "active", False, True),
    ]


def test_leases_change_while_guests_run():
    assert changes(found(users=("web",)), dhcp="192.168.122.100-192.168.122.200") == [
        ("dhcp", "dhcp", "192.168.122.2-192.168.122.254", "192.168.122.100-192.168.122.200"),
    ]


def test_other_changes_restart_a_network_that_nobody_uses():
    assert changes(found(), mtu=9000) == [
        ("stop", "active", True, False),
        ("define", "mtu", None, 9000),
        ("start", "active", False, True),
    ]
    assert ("start", "active", False, True) not in changes(found(), mtu=9000, state="inactive")


def test_a_transient_network_is_made_persistent():
    assert changes(found(persistent=False, autostart=False)) == [
        ("define", "persistent", False, True),
    ]


@pytest.mark.parametrize("options", [{"mtu": 9000}, {"state": "inactive"}, {"state": "absent"}])
def test_a_network_in_use_is_not_stopped(options):
    error = refusal(found(users=("db", "web")), **options)
    assert "db, web" in error.what
    assert error.facts == {"guests": ["db", "web"]}


def test_absent():
    assert changes(found(), state="absent") == [
        ("stop", "active", True, False),
        ("undefine", "network", "default", None),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../x"}, "name: '../x'"),
        ({"address": "10.0.0.1"}, "address: '10.0.0.1'"),
        ({"address": "10.0.0.0/24"}, "address: '10.0.0.0/24'"),
        ({"address": "10.0.0.1/31"}, "address: '10.0.0.1/31'"),
        ({"address": "fd00::1/64"}, "address: 'fd00::1/64'"),
        ({"dhcp": "10.0.0.5"}, "dhcp: '10.0.0.5'"),
        ({"dhcp": "many"}, "dhcp: 'many'"),
        ({"bridge": "a-name-that-is-too-long"}, "bridge: 'a-name-that-is-too-long'"),
        ({"mtu": 576}, "mtu: 576"),
        ({"forward": "bridge", "bridge": "br0", "mtu": 9000}, "does not go with mtu"),
        ({"forward": "bridge"}, "no bridge"),
        ({"address": "192.168.122.5/24"}, "overlaps with 192.168.122.0/24"),
        ({"address": "10.0.0.1/24", "dhcp": "10.0.1.2-10.0.1.9"}, "does not fit in 10.0.0.0/24"),
        ({"address": "10.0.0.1/24", "dhcp": "10.0.0.9-10.0.0.2"}, "does not fit in 10.0.0.0/24"),
        ({"address": "10.0.0.5/24", "dhcp": "10.0.0.2-10.0.0.9"}, "leave out 10.0.0.5"),
    ],
)
def test_refusals_of_a_new_network(options, words):
    error = refusal(None, TAKEN, **options)
    assert words in str(error)
    assert error.remedy


def test_refusals_of_an_existing_network():
    assert "address does not go with network default" in str(refusal(found(BRIDGED), address="10.0.0.1/24"))
    assert "a name of its own" in str(refusal(found(BRIDGED), forward="nat"))
    assert "a name of its own" in str(refusal(found(BRIDGED), forward="nat", bridge="br0"))
    isolated = found("<network><name>x</name></network>")
    assert "needs an address" in str(refusal(isolated, dhcp="auto"))


def test_leaving_and_entering_a_bridge():
    root = xml.parse(DEFAULT)
    apply._leave_mode(root, "bridge")
    assert [child.tag for child in root] == ["name", "uuid", "forward", "bridge"]
    assert [dict(child.attrib) for child in root.findall("bridge")] == [{"name": "virbr0"}]
    assert ("", "address", None, "192.168.122.1/24") in changes(found(BRIDGED), forward="nat", bridge="virbr1")


def test_everything_taken():
    with pytest.raises(PhyllomeError, match="finds no free network"):
        choose([ipaddress.IPv4Network("0.0.0.0/1"), ipaddress.IPv4Network("128.0.0.0/1")])


@given(st.lists(st.sampled_from([str(candidate) for candidate in spec.CANDIDATES]), max_size=200))
def test_chosen_is_free_and_the_first(taken):
    networks = [ipaddress.IPv4Network(text) for text in taken]
    chosen = ipaddress.IPv4Interface(choose(networks)).network
    assert not any(network.overlaps(chosen) for network in networks)
    assert set(spec.CANDIDATES[: spec.CANDIDATES.index(chosen)]) <= set(networks)


@given(st.integers(1, 30), st.data())
def test_automatic_leases_lie_in_the_network_and_leave_out_the_host(prefix, data):
    network = ipaddress.IPv4Network((0x0A000000, max(prefix, 8)))
    number = data.draw(st.integers(int(network.network_address) + 1, int(network.broadcast_address) - 1))
    address = f"{ipaddress.IPv4Address(number)}/{network.prefixlen}"
    leases = {change[1]: change[3] for change in changes(None, address=address)}["dhcp"]
    start, end = (ipaddress.IPv4Address(part) for part in leases.split("-"))
    assert network.network_address < start <= end < network.broadcast_address
    assert not start <= ipaddress.IPv4Address(number) <= end
