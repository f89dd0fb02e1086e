# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tables of the role hypervisor, and what it makes of facts."""

from __future__ import annotations

import hashlib
import pathlib

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "hypervisor"
TABLES = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
DEFAULTS = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
SPEC = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]["main"]
DISTRIBUTIONS = TABLES["__hypervisor_distributions"]
PIECES = [
    "libvirt",
    "client",
    "qemu",
    "tpm",
    "uefi",
    "virtiofs",
    "dhcp",
    "cd_images",
    "python",
    "certificates",
    "firewall",
]
# Pieces that are part of another package there.
INCLUDED = {("Debian12", "virtiofs"), ("Ubuntu22.04", "virtiofs"), ("Archlinux", "client")}
# Packages that no longer exist, or never did in that family.
DEAD = {
    "qemu-headless",
    "qemu",
    "kvm",
    "qemu-kvm-extras",
    "libvirt-bin",
    "edk2-ovmf-x64",
    "python-libvirt",
    "python2-lxml",
}
FAMILIES = {
    "deb": {"Debian12", "Debian13", "Ubuntu22.04", "Ubuntu24.04"},
    "rpm": {"Fedora", "EL9", "EL10"},
}


# As find and sha1sum print them.
KVM = "/dev/kvm 0660 root kvm 1700000000.0000000000"


def load(path):
    """Variables as Ansible loads them: since ansible-core 2.19 a template has to come from a trusted place."""
    try:
        return DataLoader().load_from_file(str(path), trusted_as_template=True)
    except TypeError:
        return DataLoader().load_from_file(str(path))


GOOD = {
    "architecture": "x86_64",
    "distribution": "Debian",
    "distribution_major_version": "12",
    "distribution_version": "12.11",
    "hostname": "alpha",
    "kernel": "6.1.0-40-amd64",
    "machine_id": "d50dc7feecd64de2adb0f4573c82f39c",
    "os_family": "Debian",
    "service_mgr": "systemd",
    "user_id": "root",
    "user_uid": 0,
}


def template(name, facts=None, files=(KVM,), **variables):
    known = {
        **load(ROLE / "defaults" / "main.yml"),
        **load(ROLE / "vars" / "main.yml"),
        "ansible_facts": {**GOOD, **(facts or {})},
        "ansible_check_mode": False,
        "inventory_dir": "/home/me/fleet",
        "inventory_hostname": "alpha",
        "__hypervisor_duplicates": {"hostnames": [], "machine_ids": []},
        "__hypervisor_search": {"stdout": "\n".join(files)},
        "__hypervisor_packages": {"changed": False},
        "__hypervisor_systemctl": {"stdout": ""},
        **variables,
    }
    return Templar(loader=DataLoader(), variables=known).template(known[name])


def systemctl(**units):
    return {
        "stdout": "\n\n".join(
            f"Id={name}\nLoadState={load}\nActiveState={active}\nUnitFileState={state}"
            for name, (load, active, state) in units.items()
        )
    }


def test_variables_are_documented():
    assert sorted(DEFAULTS) == sorted(SPEC["options"])
    assert {name: option["default"] for name, option in SPEC["options"].items()} == DEFAULTS
    readme = (ROLE / "README.md").read_text(encoding="utf-8")
    assert [name for name in DEFAULTS if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_every_distribution_has_every_piece(name):
    row = DISTRIBUTIONS[name]
    assert list(row["packages"]) == PIECES
    assert {piece for piece in PIECES if not row["packages"][piece]} == {
        piece for distribution, piece in INCLUDED if distribution == name
    }
    packages = [package for piece in row["packages"].values() for package in piece]
    assert len(packages) == len(set(packages))
    assert not DEAD & set(packages)
    assert row["qemu_group"] in ("libvirt-qemu", "qemu")
    assert row["guests_file"].startswith("/etc/")


def test_all_promised_distributions_are_there():
    assert set(DISTRIBUTIONS) == FAMILIES["deb"] | FAMILIES["rpm"] | {"Archlinux", "openSUSE"}


def test_packages_are_named_as_in_their_family():
    for name, row in DISTRIBUTIONS.items():
        pieces = row["packages"]
        assert ("ovmf" in pieces["uefi"]) == (name in FAMILIES["deb"])
        assert ("edk2-ovmf" in pieces["uefi"]) == (name in FAMILIES["rpm"] | {"Archlinux"})
        assert ("dnsmasq-base" in pieces["dhcp"]) == (name in FAMILIES["deb"])
        assert ("libvirt-daemon-proxy" in pieces["libvirt"]) == (name in FAMILIES["rpm"] | {"openSUSE"})
        assert bool(row.get("starts_services")) == (name in FAMILIES["deb"])


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({}, "Debian12"),
        ({"distribution_major_version": "13"}, "Debian13"),
        ({"distribution": "Ubuntu", "distribution_version": "24.04"}, "Ubuntu24.04"),
        ({"distribution": "Fedora", "os_family": "RedHat", "distribution_major_version": "43"}, "Fedora"),
        ({"distribution": "Rocky", "os_family": "RedHat", "distribution_major_version": "9"}, "EL9"),
        ({"distribution": "RedHat", "os_family": "RedHat", "distribution_major_version": "10"}, "EL10"),
        ({"distribution": "Archlinux", "os_family": "Archlinux"}, "Archlinux"),
        ({"distribution": "openSUSE Leap", "os_family": "Suse", "distribution_major_version": "16"}, "openSUSE"),
    ],
)
def test_row_of_a_host(facts, key):
    assert template("__hypervisor_key", facts) == key
    assert key in DISTRIBUTIONS


def test_a_good_host_is_not_refused():
    assert template("__hypervisor_refusals") == []
    assert template("__hypervisor_refusals", files=(), hypervisor_allow_emulation=True) == []


@pytest.mark.parametrize(
    ("facts", "variables", "words"),
    [
        ({"user_uid": 1000, "user_id": "me"}, {}, ["tasks run as me", "ansible_become"]),
        ({"architecture": "aarch64"}, {}, ["architecture: this host is aarch64"]),
        (
            {"distribution_major_version": "11", "distribution_version": "11.9"},
            {},
            ["Debian 11.9", "Debian12, Debian13"],
        ),
        ({"distribution": "Alpine", "os_family": "Alpine"}, {}, ["distribution: Alpine"]),
        ({"service_mgr": "openrc"}, {}, ["openrc", "systemd"]),
        ({}, {"files": ()}, ["/dev/kvm", "VT-x", "SVM", "hypervisor_allow_emulation"]),
        ({"hostname": "localhost"}, {}, ["called 'localhost'", "hostnamectl set-hostname alpha"]),
        ({}, {"__hypervisor_duplicates": {"hostnames": ["alpha"], "machine_ids": []}}, ["several hosts", "'alpha'"]),
        ({"machine_id": None}, {}, ["/etc/machine-id: ''", "systemd-machine-id-setup"]),
        (
            {},
            {"__hypervisor_duplicates": {"hostnames": [], "machine_ids": [GOOD["machine_id"]]}},
            ["several hosts", GOOD["machine_id"]],
        ),
        ({}, {"hypervisor_pki_dir": "pki"}, ["hypervisor_pki_dir: 'pki'", "absolute"]),
    ],
)
def test_refusals_say_what_why_and_what_to_do(facts, variables, words):
    refusals = template("__hypervisor_refusals", facts, **variables)
    assert len(refusals) == 1
    for word in words:
        assert word in refusals[0]


def test_all_refusals_come_at_once():
    facts = {"architecture": "aarch64", "hostname": "localhost", "user_uid": 1000}
    assert len(template("__hypervisor_refusals", facts, files=())) == 4


def test_the_search_is_an_argument_list():
    argv = template("__hypervisor_search_argv")
    assert argv[:2] == ["find", "/dev"]
    assert argv[argv.index("(") :][:8] == ["(", "-false", "-o", "-name", "zero", "-o", "-name", "kvm"]
    assert argv[argv.index(")") :] == [
        ")",
        "-printf",
        "%p %#m %u %g %T@\\n",
        "-type",
        "f",
        "-exec",
        "sha1sum",
        "{}",
        "+",
    ]


def test_what_the_search_brings():
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1"
    files = (KVM, "/etc/pki/CA/cacert.pem 0644 root root 1795361022.1234567890", f"{digest}  /etc/pki/CA/cacert.pem")
    assert template("__hypervisor_found", files=files) == {
        "/dev/kvm": ["/dev/kvm", "0660", "root", "kvm", "1700000000"],
        "/etc/pki/CA/cacert.pem": ["/etc/pki/CA/cacert.pem", "0644", "root", "root", "1795361022"],
    }
    assert template("__hypervisor_digests", files=files) == {"/etc/pki/CA/cacert.pem": digest}


def test_modules_are_those_that_the_kernel_has():
    drivers = f"/lib/modules/{GOOD['kernel']}/kernel/drivers/vfio"
    names = (f"{drivers}/vfio_iommu_type1.ko.xz", f"{drivers}/pci/vfio-pci.ko", f"{drivers}/vfio.ko")
    files = [f"{name} 0644 root root 1700000000.0" for name in names]
    assert template("__hypervisor_modules_there", files=[KVM, *files]) == ["vfio_iommu_type1", "vfio_pci"]
    assert template("__hypervisor_modules_there") == []


def test_nested_virtualisation_is_switched_on_where_it_is_off():
    def files(vendor, value):
        return (
            KVM,
            f"{hashlib.sha1(f'{value}{chr(10)}'.encode()).hexdigest()}  /sys/module/kvm_{vendor}/parameters/nested",
        )

    assert template("__hypervisor_not_nested", files=files("intel", "N")) == ["kvm_intel"]
    assert template("__hypervisor_not_nested", files=files("amd", "0")) == ["kvm_amd"]
    assert template("__hypervisor_not_nested", files=files("intel", "Y")) == []
    assert template("__hypervisor_not_nested", files=files("amd", "1")) == []
    text = template("__hypervisor_nested_file", files=files("intel", "N"))
    assert "options kvm_intel nested=1" in text.splitlines()


LOADED = ("loaded", "inactive", "disabled")
RUNNING = ("loaded", "active", "enabled")
ABSENT = ("not-found", "inactive", "")


@pytest.mark.parametrize(
    ("units", "daemon", "remote"),
    [
        ({"libvirtd.service": RUNNING, "virtqemud.service": ABSENT}, "libvirtd", "libvirtd"),
        ({"libvirtd.service": ABSENT, "virtqemud.service": LOADED}, "virtqemud", "virtproxyd"),
        ({"libvirtd.service": LOADED, "virtqemud.service": LOADED}, "virtqemud", "virtproxyd"),
        ({"libvirtd.service": RUNNING, "virtqemud.service": LOADED}, "libvirtd", "libvirtd"),
    ],
)
def test_daemons_follow_the_units(units, daemon, remote):
    found = template("__hypervisor_libvirt", __hypervisor_systemctl=systemctl(**units))
    assert (found["daemon"], found["remote"]) == (daemon, remote)


def test_no_socket_without_tls_is_ever_started():
    monolithic, modular = TABLES["__hypervisor_monolithic"], template("__hypervisor_modular")
    for sockets in (monolithic["sockets"], modular["sockets"]):
        assert not [socket for socket in sockets if "tcp" in socket]
    assert "libvirtd-tls.socket" in monolithic["sockets"]
    assert {"virtproxyd-tls.socket", "virtqemud.socket", "virtqemud-admin.socket", "virtstoraged-ro.socket"} <= set(
        modular["sockets"]
    )
    assert set(modular["services"]) == {f"virt{name}d.service" for name in TABLES["__hypervisor_drivers"]}


def test_only_what_is_not_started_is_started():
    wanted = TABLES["__hypervisor_monolithic"]["sockets"] + TABLES["__hypervisor_common"]
    units = dict.fromkeys(wanted, RUNNING)
    assert template("__hypervisor_to_start", __hypervisor_systemctl=systemctl(**units)) == []
    units["libvirtd-tls.socket"] = LOADED
    units["virtlogd.socket"] = ("loaded", "active", "disabled")
    found = template("__hypervisor_to_start", __hypervisor_systemctl=systemctl(**units))
    assert sorted(found) == ["libvirtd-tls.socket", "virtlogd.socket"]


@pytest.mark.parametrize(
    ("facts", "started"),
    [
        ({}, {"libvirtd-tls.socket", "phyllome-firewall.service"}),
        (
            {"distribution": "Fedora", "os_family": "RedHat"},
            {"virtqemud.socket", "virtproxyd-tls.socket", "virtlogd.socket"},
        ),
    ],
)
def test_check_mode_on_a_bare_host_knows_what_packages_start(facts, started):
    found = template("__hypervisor_to_start", facts, ansible_check_mode=True, __hypervisor_packages={"changed": True})
    assert started <= set(found)
    assert ("libvirtd.socket" in found) is False


def test_two_authorities():
    pki = TABLES["__hypervisor_pki"]
    assert list(pki) == TABLES["__hypervisor_purposes"]
    assert pki["libvirt"]["authority"] != pki["qemu"]["authority"]
    assert (pki["libvirt"]["key_mode"], pki["libvirt"]["key_group"]) == ("0600", "root")
    assert pki["qemu"]["key_mode"] == "0640"


# Plugging in


def test_what_gives_usb_devices_to_guests_is_written_where_it_is_not_as_it_should_be():
    files = [{"path": item["path"], "text": f"{item['path']} ä\n"} for item in TABLES["__hypervisor_program_files"]]
    paths = [item["path"] for item in files]
    there = [f"{hashlib.sha1(item['text'].encode()).hexdigest()}  {item['path']}" for item in files]

    def missing(lines):
        found = template("__hypervisor_program_missing", files=lines, __hypervisor_program_files=files)
        return [item["path"] for item in found]

    assert missing([KVM]) == paths
    assert missing([KVM, *there]) == []
    assert missing([KVM, *there[:2], f"{'0' * 40}  {paths[2]}"]) == paths[2:]
    assert {str(pathlib.PurePath(path).parent) for path in paths} <= set(TABLES["__hypervisor_places"])
    patterns = TABLES["__hypervisor_patterns"]
    assert all(any(pathlib.PurePath(path).match(pattern) for pattern in patterns) for path in paths)


def test_the_program_that_is_installed_is_the_one_that_phyllome_vm_runs():
    program = TABLES["__hypervisor_program_files"][0]
    room = ROLE.parents[1] / "plugins" / "module_utils" / "_guest"
    assert f'PROGRAM = "{program["path"]}"' in (room / "passthrough.py").read_text(encoding="utf-8")
    assert "plugins/module_utils/_guest/plug.py" in program["text"] and (room / "plug.py").is_file()
    unit = (ROLE / "files" / "phyllome-plug@.service").read_text(encoding="utf-8")
    assert f"ExecStart=/usr/bin/python3 -I {program['path']}\n" in unit
    rules = (ROLE / "files" / "phyllome-plug.rules").read_text(encoding="utf-8")
    assert rules.count("start phyllome-plug@$env{SEQNUM}.service") == 2
