# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be asked for, and every refusal."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration.policy import Policy
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read_guest import Disk
from ansible_collections.phyllome.virt.plugins.module_utils._migration.spec import accept


def params(**values):
    given = {
        "name": "web",
        "uuid": None,
        "source": None,
        "destination": "beta",
        "destination_uri": "qemu+tls://10.78.0.2/system",
        "migrate_address": None,
        "state": "migrated",
        "mode": "auto",
        "convergence": None,
        "bandwidth_mib": 0,
        "timeout": 0,
        "parallel": 0,
        "storage": "copy",
        "source_disks": "retain",
        "source_is_dead": False,
        "chain": "keep",
        "truth": None,
        "on_split_brain": "fail",
        "verify": "stream",
        "power_after": "same",
        "shutdown": None,
        "hostdevs": None,
        "allow": None,
        "uri": "qemu:///system",
    }
    return {**given, **values}


def test_what_is_not_said():
    order = accept(params())
    assert order.host == "10.78.0.2"
    assert order.destination == "beta"
    assert order.shown == "web"
    assert (order.verify, order.power_after, order.shutdown_timeout, order.destroy) == ("stream", "same", 120, False)
    assert (order.policy, order.purge) == (Policy(300, 2000, False, "suspend"), False)


@pytest.mark.parametrize(
    ("uri", "host"),
    [
        ("qemu+tls://beta/system", "beta"),
        ("qemu+tls://beta.example.org:16515/system", "beta.example.org"),
        ("qemu+tls://[fd00::2]/system", "fd00::2"),
        ("qemu+tls://beta/system?pkipath=/etc/pki/moves", "beta"),
    ],
)
def test_uris_that_are_accepted(uri, host):
    assert accept(params(destination_uri=uri)).host == host


@pytest.mark.parametrize(
    ("uri", "given"),
    [
        ("qemu+ssh://root@beta/system", "qemu+ssh://root@beta/system?no_tty=1"),
        ("qemu+ssh://beta:2222/system?keyfile=/k", "qemu+ssh://beta:2222/system?keyfile=/k&no_tty=1"),
        ("qemu+ssh://beta/system?no_tty=1", "qemu+ssh://beta/system?no_tty=1"),
    ],
)
def test_ssh_asks_nobody(uri, given):
    order = accept(params(destination_uri=uri))
    assert (order.destination_uri, order.ssh, order.host) == (given, True, "beta")
    assert not accept(params()).ssh


def test_the_destination_is_named_after_the_uri_when_it_is_not_named():
    assert accept(params(destination=None)).destination == "10.78.0.2"


def test_everything():
    order = accept(
        params(
            uuid="11111111111141118111111111111111",
            migrate_address="fd00:0:0::2",
            convergence={"downtime_ms": 500, "max_downtime_ms": None, "auto_converge": True, "on_stall": "abort"},
            source_disks="purge",
            hostdevs={"gpu": "0000:41:00.0", "vgpu": "11111111-1111-4111-8111-11111111111A"},
            shutdown={"timeout": 5, "then": "destroy"},
            power_after="running",
            verify="full",
            state="rolled_back",
        )
    )
    assert order.uuid == "11111111-1111-4111-8111-111111111111"
    assert order.migrate_address == "fd00::2"
    assert (order.policy, order.purge) == (Policy(500, 2000, True, "abort"), True)
    assert order.hostdevs == {"gpu": "0000:41:00.0", "vgpu": "11111111-1111-4111-8111-11111111111a"}
    assert (order.shutdown_timeout, order.destroy, order.power_after) == (5, True, "running")
    assert (order.verify, order.state) == ("full", "rolled_back")


def test_the_most_downtime_is_never_less_than_what_was_asked_for():
    assert accept(params(convergence={"downtime_ms": 5000})).policy.max_downtime_ms == 5000


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"destination_uri": "qemu+tcp://beta/system"}, r"destination_uri: .*plain TCP.*qemu\+tls"),
        (
            {"destination_uri": "qemu+ssh://root@beta/system?command=/x"},
            "destination_uri: .*keyfile, mode, no_tty, sock",
        ),
        (
            {"destination_uri": "qemu+ssh://root@beta/system?known_hosts_verify=ignore"},
            "destination_uri: .*nothing else",
        ),
        ({"destination_uri": "qemu+ssh://root@beta/system?no_verify=1"}, "destination_uri: .*no_verify"),
        ({"destination_uri": "qemu+ssh://-oProxyCommand=x/system"}, "destination_uri: .*option"),
        ({"destination_uri": "qemu+ssh://-x@beta/system"}, "destination_uri: .*option"),
        (
            {"destination_uri": "qemu+ssh://root@beta/system", "migrate_address": "10.0.0.2"},
            "migrate_address: 10.0.0.2 was given with a destination_uri of ssh",
        ),
        ({"destination_uri": "qemu+libssh2://beta/system"}, "destination_uri: .*it means TLS"),
        ({"destination_uri": "qemu://beta/system"}, "destination_uri: .*it means TLS|TLS"),
        ({"destination_uri": "qemu:///system"}, "destination_uri: .*another host"),
        ({"destination_uri": "qemu+unix:///system"}, "destination_uri: .*another host"),
        ({"destination_uri": "test:///default"}, "destination_uri: .*system instances"),
        ({"destination_uri": "xen+tls://beta/system"}, "destination_uri: .*system instances"),
        ({"destination_uri": "qemu+tls://beta/session"}, "destination_uri: .*system instances"),
        ({"destination_uri": "qemu+tls:///system"}, "destination_uri: .*names no host"),
        ({"destination_uri": "qemu+tls://[fd00::2/system"}, "destination_uri: "),
        ({"destination_uri": "qemu+tls://beta:x/system"}, "destination_uri: "),
        ({"destination_uri": "qemu+tls://beta/system?no_verify=1"}, "destination_uri: .*no_verify"),
        ({"destination_uri": "qemu+tls://beta/system?no_verify"}, "destination_uri: .*no_verify"),
        ({"migrate_address": "beta"}, "migrate_address: 'beta' is not an IP address"),
        ({"name": "../web"}, "name: "),
        ({"uuid": "web"}, "uuid: 'web' is not a uuid"),
        ({"bandwidth_mib": -1}, "bandwidth_mib: -1 is too small"),
        ({"parallel": -1}, "parallel: -1 is too small"),
        (
            {"parallel": 2, "convergence": {"on_stall": "post_copy"}},
            "parallel: 2 was given with convergence.on_stall: post_copy",
        ),
        ({"storage": "move"}, "storage: 'move' cannot be"),
        ({"storage": {"data": "shares"}}, "storage: .* cannot be.*data: shared"),
        ({"storage": ["shared"]}, "storage: .* cannot be"),
        ({"parallel": 256}, "parallel: 256 is too much.*at most 255"),
        (
            {"destination_uri": "qemu+ssh://root@beta/system", "parallel": 2},
            "parallel: 2 was given with a destination_uri of ssh",
        ),
        ({"timeout": -1}, "timeout: -1 is too small"),
        ({"convergence": {"downtime_ms": 0}}, "convergence.downtime_ms: 0 is too small"),
        ({"convergence": {"max_downtime_ms": 299}}, "convergence.max_downtime_ms: 299 is too small.*at least 300"),
        ({"mode": "live", "power_after": "off"}, "mode: live was asked for together with power_after: off"),
        ({"shutdown": {"timeout": -1, "then": "fail"}}, "shutdown.timeout: -1 is too small"),
        ({"hostdevs": {"gpu": "01:00.0"}}, "hostdevs.gpu: '01:00.0' is no device"),
        ({"source_is_dead": True}, "source_is_dead: true was said without"),
        ({"truth": "source", "state": "rolled_back"}, "truth: source was given together with state: rolled_back"),
        ({"truth": "source", "source_disks": "purge"}, "truth: source was given together with source_disks: purge"),
        (
            {"truth": "source", "source_is_dead": True, "source": "alpha", "uri": "qemu+tls://alpha/system"},
            "truth: source was given together with source_is_dead: true",
        ),
        ({"source_is_dead": True, "source": "alpha"}, "source_is_dead: true was said without"),
        (
            {"source_is_dead": True, "uri": "qemu+tls://alpha/system"},
            "source_is_dead: true was said without",
        ),
    ],
)
def test_refusals(values, said):
    with pytest.raises(PhyllomeError, match=said):
        accept(params(**values))


def test_a_dead_source_that_is_named():
    order = accept(params(source_is_dead=True, source="alpha", uri="qemu+tls://10.78.0.1/system"))
    assert order.source_is_dead


@pytest.mark.parametrize(
    ("said", "shared"),
    [
        ("copy", []),
        ("shared", ["vda", "vdb", "vdc"]),
        ({"data": "shared"}, ["vdb"]),
        ({"vda": "shared", "data": "copy"}, ["vda"]),
        ({"vdb": "shared", "data": "copy"}, []),
        ({}, []),
    ],
)
def test_disks_that_both_hosts_have_are_named_by_id_or_target(said, shared):
    order = accept(params(storage=said))
    disks = [
        Disk("vda", "/a", "raw", 0, 0, id="root"),
        Disk("vdb", "/b", "raw", 0, 0, id="data"),
        Disk("vdc", "/c", "raw", 0, 0),
    ]
    assert [disk.target for disk in disks if order.shares(disk)] == shared


def test_allow_limits_auto_only():
    assert accept(params(allow=["warm", "live"])).allow == ("warm", "live")
    with pytest.raises(PhyllomeError, match="allow was given together with mode: cold"):
        accept(params(allow=["warm"], mode="cold"))
