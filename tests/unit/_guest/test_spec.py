# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options in, canonical dataclasses out, and every rule for them."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import spec

DISK = {"id": "root", "size": "1GiB"}


def accept(**options):
    return spec.accept({"name": "web", **options})


def test_sizes_become_bytes_and_what_is_not_given_is_not_there():
    wanted = accept(memory="2GiB", disks=[DISK])
    assert wanted.fields[""] == {"memory": 2 * 1024**3}
    assert wanted.fields["tpm"] == {}
    assert wanted.devices["disks"][0].size == 1024**3
    assert "networks" not in wanted.devices
    assert (wanted.state, wanted.profile, wanted.autostart) == ("running", None, None)


def test_nulls_mean_not_managed_at_any_depth():
    wanted = accept(memory=None, firmware={"type": None}, disks=[{**DISK, "bus": None, "source": None}])
    assert wanted.fields["firmware"] == {}
    assert wanted.devices["disks"][0].values == {}


def test_an_empty_list_is_declared():
    assert accept(disks=[]).devices["disks"] == ()


def test_deleting_variables_and_tpm_follows_the_disks():
    assert (accept().delete_nvram, accept().delete_tpm) == (False, False)
    owned = accept(delete={"disks": "owned", "tpm": False})
    assert (owned.delete_disks, owned.delete_nvram, owned.delete_tpm) == (True, True, False)


def test_mac_addresses_are_stable_and_differ():
    first = spec.mac_address("u", "lan")
    assert first == spec.mac_address("u", "lan")
    assert len({first, spec.mac_address("u", "wan"), spec.mac_address("v", "lan")}) == 3
    assert first.startswith("52:54:00:")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memori": "1GiB"}, "memori"),
        ({"memory": "two"}, "memory: 'two' is not a size"),
        ({"memory": "2048"}, "memory: '2048' is not a size"),
        ({"vcpus": 0}, "vcpus: 0 is too small"),
        ({"vcpus": "many"}, "vcpus"),
        ({"profile": "amiga"}, "profile must be one of"),
        ({"state": "on"}, "state must be one of"),
        ({"uuid": "42"}, "uuid: '42' is not a UUID"),
        ({"name": "../etc"}, "name: '../etc' is not a valid name"),
        ({"name": "a" * 300}, "is not a valid name"),
        ({"name": "<name>"}, "is not a valid name"),
        ({"disks": [{"id": "a/b", "size": "1GiB"}]}, "disks.id: 'a/b' is not a valid id"),
        ({"disks": [{"size": "1GiB"}]}, "missing required arguments: id"),
        ({"disks": [{**DISK, "size": "1000B"}]}, "disks.root.size: '1000B' is not a multiple of 512 bytes"),
        ({"disks": [{**DISK, "path": "images/a.qcow2"}]}, "is not a valid path"),
        ({"disks": [{**DISK, "path": "/a/../b"}]}, "disks.root.path: '/a/../b' is not a valid path"),
        ({"disks": [{**DISK, "path": "/a", "pool": "images"}]}, "disks.root: path and pool are both given"),
        ({"disks": [{**DISK, "pool": "a/b"}]}, "disks.root.pool: 'a/b' is not a valid name"),
        ({"disks": [{**DISK, "format": "vhd"}]}, "format must be one of"),
        ({"disks": [{**DISK, "source": {"path": "/a", "checksum": "md5:1"}}]}, "checksum: 'md5:1' is not a checksum"),
        ({"disks": [{**DISK, "source": {"path": "a b/../c"}}]}, "disks.root.source.path"),
        ({"disks": [{**DISK, "boot": 0}]}, "disks.root.boot: 0 is too small"),
        ({"disks": [DISK, DISK]}, "disks: id 'root' is used twice (also in disks)"),
        ({"disks": [DISK], "networks": [{"id": "root"}]}, "networks: id 'root' is used twice (also in disks)"),
        ({"disks": [{**DISK, "boot": 1}], "cdroms": [{"id": "cd", "boot": 1}]}, "cdroms: boot 1 is used twice"),
        ({"disks": [{"id": "a", "path": "/x"}, {"id": "b", "path": "/x"}]}, "disks: path '/x' is used twice"),
        ({"cdroms": [{"id": "cd", "path": "x.iso"}]}, "cdroms.cd.path: 'x.iso' is not a valid path"),
        (
            {"networks": [{"id": "lan", "network": "a", "bridge": "b"}]},
            "networks.lan: network and bridge are both given",
        ),
        (
            {"networks": [{"id": "lan", "mac": "01:00:5e:00:00:01"}]},
            "networks.lan.mac: '01:00:5e:00:00:01' is not a MAC",
        ),
        ({"networks": [{"id": "lan", "mac": "52-54-00-00-00-01"}]}, "is not a MAC"),
        (
            {"networks": [{"id": "a", "mac": "52:54:00:00:00:0a"}, {"id": "b", "mac": "52:54:00:00:00:0A"}]},
            "networks: mac '52:54:00:00:00:0a' is used twice",
        ),
        ({"firmware": {"type": "bios", "secure_boot": True}}, "firmware.secure_boot: true with firmware.type: bios"),
        (
            {"firmware": {"type": "bios", "enrolled_keys": True}},
            "firmware.enrolled_keys: true with firmware.type: bios",
        ),
        (
            {"firmware": {"secure_boot": False, "enrolled_keys": True}},
            "enrolled_keys: true with firmware.secure_boot: false",
        ),
        ({"tpm": {"model": "tpm-spapr"}}, "model must be one of"),
        ({"shutdown": {"timeout": 0}}, "shutdown.timeout: 0 is too small"),
        ({"delete": {"disks": "all"}}, "disks must be one of"),
    ],
)
def test_what_is_wrong_is_said_with_a_remedy(options, said):
    with pytest.raises(PhyllomeError) as caught:
        accept(**options)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_two_drives_may_have_the_same_iso():
    accept(cdroms=[{"id": "a", "path": "/x.iso"}, {"id": "b", "path": "/x.iso"}])


def test_one_guest_is_its_own_options():
    assert spec.guests({"name": "web", "memory": "1GiB", "uri": "qemu:///system", "guests": None, "vcpus": None}) == [
        {"name": "web", "memory": "1GiB"}
    ]


def test_defaults_fill_in_what_a_guest_does_not_say():
    params = {
        "guests": [{"name": "a", "memory": None}, {"name": "b", "memory": "2GiB"}],
        "defaults": {"memory": "1GiB", "vcpus": None},
    }
    assert spec.guests(params) == [{"name": "a", "memory": "1GiB"}, {"name": "b", "memory": "2GiB"}]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "There is no guest to work on"),
        ({"name": "a", "defaults": {}}, "defaults is given without guests"),
        ({"name": "a", "guests": []}, "name: given beside guests"),
        ({"memory": "1GiB", "guests": []}, "memory: given beside guests"),
        ({"guests": [{"name": "a"}, {"name": "a"}]}, "guests: 'a' is listed 2 times"),
    ],
)
def test_one_guest_or_many(params, said):
    with pytest.raises(PhyllomeError) as caught:
        spec.guests(params)
    assert said in str(caught.value)


def test_a_guest_without_a_name_is_refused():
    with pytest.raises(PhyllomeError, match="no name"):
        spec.accept({"memory": "1GiB"})
