# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where guests can go and why not, and how hosts have drifted apart."""

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._host import compare
from ansible_collections.phyllome.virt.tests.unit._host.hosts import claim, guest, host

NEW: dict[str, t.Any] = {"versions": {"libvirt": "10.0.0", "qemu": "8.2.0"}}
LESS: dict[str, t.Any] = {"cpu": {"vendor": "Intel", "model": "Haswell", "features": ["lm", "vmx"]}}
AMD: dict[str, t.Any] = {"cpu": {"vendor": "AMD", "model": "EPYC", "features": ["avx2", "lm", "svm"]}}
Q35_8: dict[str, t.Any] = {"machines": ["pc-q35-7.1", "pc-q35-7.2", "pc-q35-8.0", "pc-q35-10.0"]}


def codes(found):
    return [one["code"] for one in found]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ({}, {}, []),
        ({}, {"packages": {"qemu": "7.2.1"}}, []),
        ({}, NEW, []),
        (NEW, {}, ["versions.libvirt", "versions.qemu"]),
        ({}, {"versions": {"libvirt": "9.0.0", "qemu": None}}, ["versions.qemu"]),
        (LESS, {}, []),
        ({}, LESS, ["cpu"]),
        ({}, AMD, ["cpu"]),
        ({}, {"cpu": {"vendor": None, "model": None, "features": None}}, ["cpu"]),
        ({}, Q35_8, []),
        (Q35_8, {}, ["machines"]),
        ({}, {"machines": None}, ["machines"]),
        ({}, {"emulator": "/usr/libexec/qemu-kvm"}, ["emulator"]),
        ({}, {"firmware": {}}, ["firmware"]),
        ({}, {"firmware": None}, ["firmware"]),
        ({}, {"networks": {}}, ["networks"]),
        ({}, {"pools": {"other": {"type": "dir", "path": "/srv"}}}, ["pools"]),
        ({}, {"pools": None}, ["pools"]),
        ({}, {"authority": "another"}, ["authority"]),
        ({"authority": ""}, {"authority": ""}, ["authority"]),
        ({}, {"arch": "aarch64"}, ["arch"]),
    ],
)
def test_what_stands_between_two_hosts(source, target, expected):
    found = compare.reasons(host("alpha", **source), host("beta", **target))
    assert codes(found) == expected
    assert all(one["what"] for one in found)


def test_the_newest_machine_type_is_found_by_number_not_by_letter():
    found = compare.reasons(host("alpha", **Q35_8), host("beta", machines=["pc-q35-8.0"]))
    assert "pc-q35-10.0" in found[0]["what"]


def test_a_host_without_libvirt_says_so_and_nothing_else():
    broken = host("beta")
    broken["identity"]["libvirt_error"] = "Cannot connect to libvirt"
    assert codes(compare.reasons(host("alpha"), broken)) [:1] == ["libvirt"]  # fmt: skip
    assert compare.health(host("beta"), broken) == ["libvirt does not answer: Cannot connect to libvirt"]


def test_copies_of_one_host_are_told():
    copied = host("beta")
    copied["identity"]["host_uuid"] = "uuid-alpha"
    assert codes(compare.reasons(host("alpha"), copied)) == ["same_host"]
    assert compare.domains({"alpha": host("alpha"), "beta": copied}) == [["alpha"], ["beta"]]


@pytest.mark.parametrize(
    ("first", "second", "verdict", "direction"),
    [
        ({}, {}, "identical", "both"),
        ({}, {"settings": {"x": "y"}}, "stack-equal", "both"),
        ({}, {"packages": {"qemu": "7.2.1"}}, "migration-compatible", "both"),
        (LESS, {}, "migration-compatible", "forward"),
        (NEW, {}, "migration-compatible", "backward"),
        (LESS, {**NEW, **AMD}, "incompatible", None),
    ],
)
def test_the_verdict_on_two_hosts(first, second, verdict, direction):
    found = compare.pair(host("alpha", **first), host("beta", **second))
    assert (found["verdict"], found["direction"]) == (verdict, direction)
    assert bool(found["paths"]) == (verdict != "identical")


def test_domains_are_groups_in_which_everybody_can_go_everywhere():
    hosts = {"a": host("a"), "b": host("b", **LESS), "c": host("c"), "d": host("d", **LESS), "e": host("e", **AMD)}
    assert compare.domains(hosts) == [["a", "c"], ["b", "d"], ["e"]]


def test_drift_names_who_is_different_and_what_the_others_have():
    hosts = {name: host(name) for name in ("a", "b", "c")}
    hosts["b"] = host("b", packages={"qemu": "7.2.1", "swtpm": "1"}, **LESS)
    assert compare.drift(hosts) == [
        {"path": "cpu.features[avx2]", "usual": "there", "others": {"b": None}},
        {"path": "cpu.model", "usual": "Skylake", "others": {"b": "Haswell"}},
        {"path": "packages.libvirt", "usual": "9.0", "others": {"b": None}},
        {"path": "packages.qemu", "usual": "7.2", "others": {"b": "7.2.1"}},
        {"path": "packages.swtpm", "usual": None, "others": {"b": "1"}},
    ]


def blocked(guest_facts, source, target):
    return codes(compare.guest_reasons(guest_facts, source, target))


@pytest.mark.parametrize(
    ("web", "claims", "target", "expected"),
    [
        ({}, {}, {}, []),
        ({}, {}, {"networks": {}, "pools": {}}, ["network", "pool"]),
        ({"networks": [], "disks": []}, {}, {"networks": {}, "pools": {}}, []),
        ({}, {}, LESS, ["cpu"]),
        ({}, {"cpu": ["lm"]}, LESS, []),  # cpu: fleet
        ({}, {"cpu": ["lm"]}, AMD, ["cpu"]),
        ({}, {"active": False}, AMD, []),
        ({}, {"cpu": None}, {}, []),  # the whole CPU of the host, and the other one is the same
        ({}, {"cpu": None}, {"microcode": {"processor": "Xeon", "revision": "0x2"}}, ["cpu"]),
        ({}, {}, {"type": "qemu"}, ["type"]),
        ({"type": "qemu"}, {}, {"type": "qemu"}, []),
        ({"machine": "pc-q35-9.9"}, {}, {}, ["machines"]),
        ({}, {"emulator": "/opt/qemu"}, {}, ["emulator"]),
        ({}, {"loader": "/opt/ovmf.fd"}, {}, ["firmware"]),
        ({"migratable": {"possible": False, "reasons": [{"code": "hostdevs", "what": "it has a device"}]}}, {}, {},
         ["hostdevs"]),
    ],
)  # fmt: skip
def test_what_stands_against_a_guest(web, claims, target, expected):
    source = host("alpha", claims=[claim("web", **claims)])
    assert blocked(guest("web", **web), source, host("beta", **target)) == expected


def test_a_guest_of_which_nothing_is_known_and_a_name_that_is_taken():
    assert blocked(guest("web"), host("alpha"), host("beta")) == ["guest"]
    other = claim("web", uuid="another")
    source = host("alpha", claims=[claim("web")])
    assert blocked(guest("web"), source, host("beta", claims=[other])) == ["clash"]


def test_the_fleet_at_a_glance():
    hosts = {
        "alpha": host("alpha", claims=[claim("web")]),
        "beta": host("beta"),
        "gamma": host("gamma", **LESS),
    }
    found = compare.fleet(hosts, {"alpha": [guest("web")]})
    assert found["domains"] == [["alpha", "beta"], ["gamma"]] == found["alike"]
    assert [one["hosts"] for one in found["pairs"]] == [["alpha", "gamma"]]
    assert found["guests"] == [
        {"name": "web", "host": "alpha", "can": ["beta"], "cannot": {"gamma": ["its CPU lacks avx2"]}}
    ]
    assert compare.fleet({"alpha": hosts["alpha"]}, {"alpha": [guest("web")]})["guests"] == []


def test_what_a_host_has_lost_is_named():
    before = host("a")
    assert compare.health(before, host("a")) == []
    after = copy.deepcopy(host("a", networks={}, pools={}, **LESS))
    after["virtualization"] = {"state": "off", "evidence": ["kvm: disabled by bios"]}
    after["reboot"] = {"required": True, "why": ["/run/reboot-required is there"]}
    assert compare.health(before, after) == [
        "virtualisation is off: kvm: disabled by bios",
        "network default is not active any more",
        "pool images is not active any more",
        "its CPU has lost avx2",
        "it still has to be rebooted: /run/reboot-required is there",
    ]
