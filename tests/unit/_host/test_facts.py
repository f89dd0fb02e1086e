# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is: packages, manifest, digests, capacity, and why guests are slow on it."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.sysfs import Tree
from ansible_collections.phyllome.virt.plugins.module_utils._host import facts, hypervisor, packages
from ansible_collections.phyllome.virt.plugins.module_utils._host.diagnose import REMEDIES, virtualization
from ansible_collections.phyllome.virt.plugins.module_utils._host.manifest import (
    MIGRATION,
    SOFTWARE,
    capacity,
    digests,
    manifest,
    reboot,
    release,
)
from ansible_collections.phyllome.virt.plugins.module_utils._host.read import Identity, read_identity
from ansible_collections.phyllome.virt.plugins.module_utils._host.stack import Kvm, read_kvm, read_stack
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

INTEL = Identity(
    kernel="6.1.0-9-amd64",
    cpu_vendor="GenuineIntel",
    cpu_flags=frozenset({"vmx", "lm"}),
    xen=None,
    container=False,
    dmi={"board_vendor": "ASUS", "board_name": "PRIME", "bios_version": "1.2"},
)
KVM = Kvm(
    node="usable",
    loaded=frozenset({"kvm", "kvm_intel"}),
    available=frozenset({"kvm", "kvm_intel", "kvm_amd"}),
    nested=True,
    parameters={},
    log=(),
    blacklisted=(),
)
OUT: dict[str, t.Any] = {"node": "missing", "loaded": frozenset()}
NO_FLAGS: dict[str, t.Any] = {"cpu_flags": frozenset({"lm"})}


@pytest.mark.parametrize(
    ("machine", "kvm", "types", "causes", "state"),
    [
        ({}, {}, ("kvm", "qemu"), [], "on"),
        ({}, {}, None, [], "on"),
        ({}, {}, ("qemu",), ["libvirt"], "off"),
        (NO_FLAGS, OUT, None, ["cpu"], "off"),
        (NO_FLAGS, {**OUT, "log": ("x86/cpu: VMX (outside TXT) disabled by BIOS",)}, None, ["firmware"], "off"),
        ({}, {**OUT, "log": ("kvm_intel: VMX not enabled (by BIOS) - disabled by BIOS",)}, None, ["firmware"], "off"),
        ({"cpu_flags": frozenset({"hypervisor"})}, OUT, None, ["not_nested"], "off"),
        ({"cpu_flags": None}, OUT, None, ["unreadable"], "unknown"),
        ({"xen": "dom0"}, OUT, None, ["xen"], "off"),
        ({}, {**OUT, "available": frozenset({"kvm"})}, None, ["module_missing"], "off"),
        ({}, {**OUT, "blacklisted": ("/etc/modprobe.d/no.conf",)}, None, ["blacklisted"], "off"),
        ({}, OUT, None, ["module_not_loaded"], "off"),
        ({}, {"node": "missing"}, None, ["node"], "off"),
        ({"container": True}, OUT, None, ["node"], "off"),
        ({}, {"node": "EACCES"}, None, ["permission"], "unknown"),
        ({}, {"node": "EBUSY"}, None, ["busy"], "off"),
        ({}, {"node": "ENODEV"}, None, ["node"], "off"),
    ],
)
def test_every_cause_is_told_apart(machine, kvm, types, causes, state):
    found = virtualization(dataclasses.replace(INTEL, **machine), dataclasses.replace(KVM, **kvm), types)
    assert (found["causes"], found["state"]) == (causes, state)
    assert found["evidence"] and (found["remedy"] is None) == (not causes)
    assert "{" not in (found["remedy"] or "")


def test_the_remedy_names_what_the_firmware_calls_it_and_the_board():
    off = dataclasses.replace(KVM, **OUT)
    intel = virtualization(dataclasses.replace(INTEL, **NO_FLAGS), off, None)
    assert "VT-x" in intel["remedy"] and "ASUS PRIME 1.2" in intel["remedy"]
    amd = virtualization(dataclasses.replace(INTEL, cpu_vendor="AuthenticAMD", **NO_FLAGS), off, None)
    assert "SVM" in amd["remedy"]
    assert "modprobe kvm_amd" in virtualization(
        dataclasses.replace(INTEL, cpu_vendor="AuthenticAMD", cpu_flags=frozenset({"svm"})), off, None
    )["remedy"]  # fmt: skip


def test_no_remedy_is_without_a_cause_that_leads_to_it():
    reached = {"firmware", "cpu", "not_nested", "xen", "module_missing", "blacklisted", "module_not_loaded"}
    assert reached | {"permission", "busy", "node", "libvirt", "unreadable"} == set(REMEDIES)


def test_kvm_as_the_files_of_a_machine_tell_of_it(tmp_path):
    machine = machines.bare()
    machine.file("sys/module/kvm_intel/parameters/nested", "Y\n")
    machine.file("sys/module/kvm/parameters/halt_poll_ns", "200000\n")
    machine.file("dev/kvm", "EBUSY\n")
    machine.file("dev/kmsg", "6,1,1,-;kvm: already loaded the other module\n6,2,2,-;usb 1-1: new\n")
    machine.file(
        "usr/lib/modules/6.1/modules.dep", "kernel/arch/x86/kvm/kvm-intel.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz\n"
    )
    machine.file("etc/modprobe.d/no.conf", "# install kvm\nblacklist kvm_amd\n")
    tree = Tree(machine.write(tmp_path), "sysfs_root")
    kvm = read_kvm(tree, "6.1")
    assert kvm.node == "EBUSY" and kvm.nested is True
    assert kvm.loaded == kvm.available == frozenset({"kvm", "kvm_intel"})
    assert kvm.log == ("kvm: already loaded the other module",)
    assert kvm.blacklisted == ("/etc/modprobe.d/no.conf",)
    assert kvm.parameters == {"kvm.halt_poll_ns": "200000", "kvm_intel.nested": "Y"}
    assert read_kvm(tree, "6.2").available is None


DPKG = """Package: qemu-system-x86
Status: install ok installed
Architecture: amd64
Version: 1:7.2+dfsg-7
Description: emulator
 Version: 99

Package: libvirt0
Status: deinstall ok config-files
Architecture: amd64
Version: 9.0

Package: vim
Status: install ok installed
Architecture: amd64
Version: 9
"""


def test_packages_of_each_manager():
    assert packages.dpkg(DPKG) == {"qemu-system-x86": "1:7.2+dfsg-7.amd64"}
    assert packages.pacman(["qemu-base-9.1.0-1", "libvirt-1:10.0-2", "vim-9-1", "ALPM_DB_VERSION"]) == {
        "qemu-base": "9.1.0-1",
        "libvirt": "1:10.0-2",
    }
    assert packages.rpm("swtpm\t0.8-1.x86_64\nlibvirt\t2-1.x86_64\nlibvirt\t1-1.x86_64\nerror\n") == {
        "swtpm": "0.8-1.x86_64",
        "libvirt": "1-1.x86_64 2-1.x86_64",
    }


@pytest.fixture
def tree(tmp_path):
    machine = machines.bare()
    machine.file("etc/os-release", 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="x"\n')
    machine.file("var/lib/dpkg/status", DPKG)
    machine.file("proc/cpuinfo", "model name\t: Xeon\nmicrocode\t: 0x2b\nflags\t: vmx\n\nmicrocode\t: 0x99\n")
    machine.file("proc/cmdline", "root=/dev/sda1 quiet x=8725671e-b5cc-404c-bb4e-b9b70743f75f intel_iommu=on\n")
    machine.file("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 600 kB\n")
    machine.file("etc/modprobe.d/a.conf", "options kvm x=1\n")
    machine.file("etc/systemd/system/sockets.target.wants/libvirtd.socket", "")
    machine.file("etc/systemd/system/sockets.target.wants/ssh.socket", "")
    machine.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "7\n")
    machine.file("usr/lib/modules/6.1.0-9-amd64/vmlinuz", "")
    machine.file("usr/lib/modules/6.1.0-10-amd64/vmlinuz", "")
    machine.file("usr/lib/modules/6.1.0-11-amd64/modules.dep", "")
    machine.file(
        "etc/phyllome/evacuated.json", '{"guests": ["web", "db"], "by": "upgrade", "destinations": {"web": "beta"}}'
    )
    machine.file("sys/bus/pci/drivers/vfio-pci/0000:01:00.0/vendor", "0x10de\n")
    machine.file("sys/bus/pci/drivers/vfio-pci/0000:01:00.0/device", "0x2204\n")
    return Tree(machine.write(tmp_path), "sysfs_root")


def test_the_stack_as_the_files_of_a_machine_tell_of_it(tree):
    stack = read_stack(tree)
    assert stack.os == {"ID": "debian", "VERSION_ID": "12"}
    assert stack.packages == {"qemu-system-x86": "1:7.2+dfsg-7.amd64"}
    assert (stack.microcode, stack.cpu_model) == ("0x2b", "Xeon")
    assert stack.cmdline == ("quiet", "intel_iommu=on")
    assert stack.memory == {"total": 1000 * 1024, "available": 600 * 1024} and stack.hugepages == {2048: 7}
    assert list(stack.settings) == ["modprobe.d/a.conf"] and stack.units == ("libvirtd.socket",)
    assert stack.kernels == ("6.1.0-10-amd64", "6.1.0-9-amd64")
    assert (
        stack.evacuated == {"guests": ["db", "web"], "destinations": {"web": "beta"}, "by": "upgrade", "before": None}
        and stack.authority == ""
        and stack.vfio == ("10de:2204",)
    )


def test_a_record_that_cannot_be_read_still_keeps_the_host_empty(tmp_path):
    machine = machines.bare()
    machine.file("etc/phyllome/evacuated.json", "{")
    assert read_stack(Tree(machine.write(tmp_path), "sysfs_root")).evacuated == {
        "guests": [],
        "destinations": {},
        "by": "unknown",
        "before": None,
    }


@pytest.mark.parametrize(
    ("running", "files", "required"),
    [
        ("6.1.0-9-amd64", (), True),  # -10 is newer, though 9 sorts behind 1
        ("6.1.0-10-amd64", (), False),
        ("6.1.0-12-amd64", (), True),  # it was removed
        ("6.1.0-10-amd64", ("/run/reboot-required",), True),
    ],
)
def test_when_a_reboot_is_required(tree, running, files, required):
    stack = dataclasses.replace(read_stack(tree), reboot=files)
    found = reboot(dataclasses.replace(INTEL, kernel=running), stack)
    assert found["required"] is required and bool(found["why"]) is required


def test_whether_a_reboot_is_required_can_be_unknown(tree):
    stack = dataclasses.replace(read_stack(tree), kernels=None)
    assert reboot(INTEL, stack) == {"required": None, "why": []}
    assert release("6.1.0-10-amd64") > release("6.1.0-9-amd64") > release("6.1.0-rc9")


class Thing:
    """A network, pool or domain of a libvirt in memory."""

    def __init__(self, name: str, text: str, active: bool = True, available: int = 0) -> None:
        self._name, self._text, self._active, self._available = name, text, active, available

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:
        return f"uuid-{self._name}"

    def isActive(self) -> int:
        return int(self._active)

    def XMLDesc(self, flags: int = 0) -> str:
        return self._text

    def info(self) -> list[int]:
        return [2, 0, 0, self._available]


HOST_MODEL = "<model fallback='forbid'>EPYC</model><vendor>AMD</vendor><feature policy='disable' name='sha-ni'/>"
DOMAIN = """<domain type='kvm'><memory unit='KiB'>{memory}</memory><vcpu>2</vcpu>{more}
<devices><emulator>/usr/bin/qemu</emulator></devices></domain>"""


class Connection:
    """As much of libvirt as is asked; ``uuids`` make it another host."""

    def __init__(self, salt: str = "1") -> None:
        self.salt = salt
        self.asked: list[list[str]] = []

    def getCapabilities(self) -> str:
        return f"""<capabilities><host><uuid>{self.salt}</uuid><cpu><arch>x86_64</arch></cpu></host>
        <guest><os_type>hvm</os_type><arch name='x86_64'><emulator>/usr/bin/qemu</emulator>
        <machine canonical='pc-q35-7.2'>q35</machine><machine>pc-q35-7.2</machine><machine>pc-q35-7.1</machine>
        <domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>"""

    def getDomainCapabilities(self, *args: t.Any) -> str:
        return f"""<domainCapabilities><os><loader><value>/none.fd</value></loader></os>
        <cpu><mode name='host-model' supported='yes'>{HOST_MODEL}</mode></cpu></domainCapabilities>"""

    def baselineHypervisorCPU(self, dummy_e, dummy_a, dummy_m, dummy_t, cpus, flags) -> str:
        self.asked.append([*cpus])
        if any("Intel" in cpu for cpu in cpus):
            raise virt.libvirt.libvirtError("CPUs are incompatible")
        assert flags & 1
        more = "".join(f"<feature policy='require' name='{name}'/>" for name in ("lm", "avx2"))
        return f"<cpu mode='custom'>{HOST_MODEL}{more}</cpu>"

    def getHostname(self) -> str:
        return f"host{self.salt}"

    def getLibVersion(self) -> int:
        return 9000000

    def getVersion(self) -> int:
        return 7002022

    def listAllNetworks(self) -> list[Thing]:
        text = f"<network connections='{self.salt}'><name>default</name><uuid>{self.salt}</uuid><mac address='{self.salt}'/><bridge name='virbr0'/></network>"
        return [Thing("off", "<network/>", False), Thing("default", text)]

    def listAllStoragePools(self) -> list[Thing]:
        text = f"<pool type='dir'><uuid>{self.salt}</uuid><target><path>/</path></target></pool>"
        return [Thing("images", text, available=int(self.salt) * 1000)]

    def listAllDomains(self) -> list[Thing]:
        cpu = f"<cpu mode='custom'>{HOST_MODEL}</cpu>"
        huge = "<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking><cpu mode='host-model'/>"
        return [
            Thing("web", DOMAIN.format(memory=400, more=cpu)),
            Thing("huge", DOMAIN.format(memory=1 << 20, more=huge)),
            Thing("off", DOMAIN.format(memory=300, more=""), False),
        ]

    def close(self) -> None: ...


class Library:
    """The module libvirt."""

    VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES = 1
    VIR_CONNECT_BASELINE_CPU_MIGRATABLE = 2
    VIR_ERR_NO_DOMAIN, VIR_ERR_NO_NETWORK, VIR_ERR_NO_STORAGE_POOL, VIR_ERR_NO_STORAGE_VOL = 42, 43, 49, 50

    class libvirtError(Exception):
        def get_error_message(self) -> str:
            return str(self)

        def get_error_code(self) -> int:
            return 1

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def open(self, uri: str) -> Connection:
        return self.connection


@pytest.fixture
def libvirt(monkeypatch):
    def made(salt: str = "1") -> Connection:
        connection = Connection(salt)
        monkeypatch.setattr(virt, "libvirt", Library(connection))
        return connection

    return made


def test_what_libvirt_says(libvirt):
    connection = libvirt()
    found = hypervisor.read_hypervisor("qemu:///system")
    assert (found.libvirt, found.qemu, found.type, found.q35) == ("9.0.0", "7.2.22", "kvm", "pc-q35-7.2")
    assert found.machines == ("pc-q35-7.1", "pc-q35-7.2") and found.loaders == {"/none.fd": None}
    assert found.features == frozenset({"lm", "avx2"}) and found.vendor == "AMD"
    assert list(found.networks) == ["default"] and found.pools[0].available == 1000 and found.pools[0].device
    claims = {claim.name: claim for claim in found.guests}
    assert claims["web"].cpu == frozenset({"lm", "avx2"}) and claims["huge"].cpu is None and claims["off"].cpu is None
    assert (claims["web"].memory, claims["huge"].hugepage, claims["off"].active) == (400 * 1024, 1 << 20, False)
    assert len(connection.asked) == 1  # the host's, which is web's too


def test_a_guest_that_goes_while_it_is_looked_at_costs_no_other_answer(libvirt, monkeypatch):
    class Gone(Thing):
        def XMLDesc(self, flags: int = 0) -> str:
            raise NoDomain("Domain not found")

    class NoDomain(Library.libvirtError):
        def get_error_code(self) -> int:
            return Library.VIR_ERR_NO_DOMAIN

    connection = libvirt()
    there = connection.listAllDomains()
    monkeypatch.setattr(connection, "listAllDomains", lambda: [*there, Gone("gone", "")])
    found = hypervisor.read_hypervisor("qemu:///system")
    assert [claim.name for claim in found.guests] == ["huge", "off", "web"]
    assert found.loaders and found.features and found.error is None


def test_without_libvirt_it_says_why_and_the_rest_is_there(monkeypatch, tree):
    monkeypatch.setattr(virt, "libvirt", None)
    found = facts.gather(tree, "qemu:///system", ["all"])
    assert "The Python library libvirt is missing" in found["identity"]["libvirt_error"]
    assert found["manifest"]["os"]["ID"] == "debian" and found["manifest"]["machines"] is None
    assert found["capacity"]["guests"] is None and found["capacity"]["pools"] is None
    assert json.dumps(found)


def test_two_runs_and_two_equal_hosts_give_the_same_digests(libvirt, tree):
    seen = []
    for salt in ("1", "1", "2"):
        libvirt(salt)
        seen.append(facts.gather(tree, "qemu:///system", ["manifest", "identity"]))
    assert seen[0]["digests"] == seen[1]["digests"] == seen[2]["digests"]
    assert seen[0]["identity"]["host_uuid"] != seen[2]["identity"]["host_uuid"]
    assert set(seen[0]) == {"schema_version", "manifest", "digests", "identity"}


def whole(tree: Tree, **more: t.Any) -> dict[str, t.Any]:
    identity = read_identity(tree)
    return {**manifest(identity, KVM, read_stack(tree), hypervisor.Hypervisor()), **more}


def test_each_section_changes_the_digests_that_it_belongs_to(tree):
    base = whole(tree)
    for section in base:
        before, after = digests(base), digests({**base, section: "another"})
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"strict"} | ({"stack"} if section in SOFTWARE else set()) | (
            {"migrate"} if section in MIGRATION else set()
        ), section
    assert set(SOFTWARE) | set(MIGRATION) <= set(base)


def test_capacity_counts_what_running_guests_may_still_take(libvirt, tree):
    libvirt()
    found = hypervisor.read_hypervisor("qemu:///system")
    stack = read_stack(tree)
    have = capacity(stack, found, 4)
    assert have["memory"] == {
        "total": 1000 * 1024,
        "available": 600 * 1024,
        "claimed": 400 * 1024,  # neither that in huge pages nor that of the guest that is off
        "free": 600 * 1024,
    }
    assert have["hugepages"] == [{"size": 2048, "free": 7}] and have["vcpus_claimed"] == 4
    busy = dataclasses.replace(stack, memory={"total": 700 * 1024, "available": 690 * 1024})
    assert capacity(busy, found, 4)["memory"]["free"] == 300 * 1024
    unknown = dataclasses.replace(stack, memory={"total": None, "available": None})
    assert capacity(unknown, found, 4)["memory"]["free"] is None


def test_the_cpu_of_a_fleet_is_what_cpu_of_a_guest_takes(libvirt):
    connection = libvirt()
    cpu = f"<cpu>{HOST_MODEL}</cpu>"
    found = facts.tell({"uri": "u", "gather": [], "cpus": [cpu, cpu]}, False)
    assert found == {
        "changed": False,
        "fleet_cpu": {"model": "EPYC", "features": {"avx2": "require", "lm": "require", "sha-ni": "disable"}},
    }
    assert connection.asked == [[cpu]]


def test_cpus_that_have_nothing_in_common_and_what_is_no_cpu(libvirt):
    libvirt()
    amd, intel = f"<cpu>{HOST_MODEL}</cpu>", "<cpu><model>Haswell</model><vendor>Intel</vendor></cpu>"
    with pytest.raises(PhyllomeError, match="The 2 CPUs have no common one: .*incompatible.*AMD, Intel.*one vendor"):
        facts.fleet_cpu("u", [amd, intel])
    with pytest.raises(PhyllomeError, match="cpus: '<domain/>' is no CPU: .*phyllome_host.cpu of each host"):
        facts.fleet_cpu("u", ["<domain/>"])
