# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be asked for, and every refusal."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
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
        "source_disks": "retain",
        "source_is_dead": False,
        "uri": "qemu:///system",
    }
    return {**given, **values}


def test_what_is_not_said():
    order = accept(params())
    assert order.host == "10.78.0.2"
    assert order.destination == "beta"
    assert order.shown == "web"
    assert (order.downtime_ms, order.auto_converge, order.purge) == (None, False, False)


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


def test_the_destination_is_named_after_the_uri_when_it_is_not_named():
    assert accept(params(destination=None)).destination == "10.78.0.2"


def test_everything():
    order = accept(
        params(
            uuid="11111111111141118111111111111111",
            migrate_address="fd00:0:0::2",
            convergence={"downtime_ms": 500, "auto_converge": True},
            source_disks="purge",
        )
    )
    assert order.uuid == "11111111-1111-4111-8111-111111111111"
    assert order.migrate_address == "fd00::2"
    assert (order.downtime_ms, order.auto_converge, order.purge) == (500, True, True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"destination_uri": "qemu+tcp://beta/system"}, r"destination_uri: .*plain TCP.*qemu\+tls"),
        ({"destination_uri": "qemu+ssh://root@beta/system"}, "destination_uri: .*ssh key"),
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
        ({"timeout": -1}, "timeout: -1 is too small"),
        ({"convergence": {"downtime_ms": 0}}, "convergence.downtime_ms: 0 is too small"),
        ({"source_is_dead": True}, "source_is_dead: true was said without"),
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
