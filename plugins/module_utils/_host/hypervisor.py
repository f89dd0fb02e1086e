# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt says of a host: machine types, CPU, networks, pools and what its guests claim; nothing concluded.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.units import parse_scaled

if t.TYPE_CHECKING:
    from .._core.xml import Element

ON = ("require", "force")


@dataclasses.dataclass(frozen=True)
class Pool:
    """A storage pool that is active: what it has left in bytes, and the number of the file system below its path."""

    name: str
    type: str
    path: str | None
    available: int
    device: str | None


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a guest takes of its host.

    Attributes:
        active: whether it has its memory and CPUs now.
        memory: bytes.
        hugepage: size in KiB of the huge pages its memory is in; None for ordinary ones.
        cpu: features it was started with or, where a model is named, will be; None when its host decides.
        emulator: path of its QEMU.
        loader: path of its firmware.
    """

    name: str
    uuid: str
    active: bool
    memory: int
    vcpus: int
    hugepage: int | None
    cpu: frozenset[str] | None
    emulator: str | None
    loader: str | None


@dataclasses.dataclass(frozen=True)
class Hypervisor:
    """What libvirt says. None is unknown, and so is what an ordinary user may not ask.

    Attributes:
        error: why there is nothing else; None when libvirt answers.
        uuid: of the host.
        hostname: libvirt's.
        arch: for instance ``x86_64``.
        libvirt: version, as in 9.0.0.
        qemu: the same.
        type: ``kvm`` or ``qemu``: the best that domains of this host can be.
        types: all of them.
        emulator: path.
        machines: machine types with a version.
        q35: the one that q35 stands for.
        loaders: path of the firmware → bytes.
        capabilities: digest of the domain capabilities.
        cpu: what host-model stands for, as ``<cpu>``.
        vendor: of it.
        model: of it.
        features: of it, each feature of the model spelt out.
        networks: name → bridge, mtu and digest of those that are active.
        pools: those that are active.
        guests: what they claim.
    """

    error: str | None = None
    uuid: str | None = None
    hostname: str | None = None
    arch: str | None = None
    libvirt: str | None = None
    qemu: str | None = None
    type: str | None = None
    types: tuple[str, ...] = ()
    emulator: str | None = None
    machines: tuple[str, ...] | None = None
    q35: str | None = None
    loaders: t.Mapping[str, int | None] | None = None
    capabilities: str | None = None
    cpu: str | None = None
    vendor: str | None = None
    model: str | None = None
    features: frozenset[str] | None = None
    networks: t.Mapping[str, t.Mapping[str, str | None]] | None = None
    pools: tuple[Pool, ...] | None = None
    guests: tuple[Claim, ...] | None = None


def read_hypervisor(uri: str) -> Hypervisor:
    """Ask libvirt, over one connection. What cannot be asked is None, and ``error`` says why there is nothing."""
    try:
        try:
            with virt.session(uri) as connection:
                return _all(connection, True)
        except PhyllomeError:
            # An ordinary user may look, but not ask what starts a program (CVE-2019-10167, CVE-2019-10168).
            with virt.session(uri, read_only=True) as connection:
                return _all(connection, False)
    except PhyllomeError as exc:
        return Hypervisor(error=f"{exc.what}: {exc.why}")


def _all(connection: t.Any, privileged: bool) -> Hypervisor:
    with virt.saying("Cannot ask libvirt about this host"):
        root = xml.parse(connection.getCapabilities())
        arch = root.findtext("host/cpu/arch") or connection.getInfo()[0]
        guest = next((one for one in root.findall("guest") if one.find(f"arch[@name='{arch}']") is not None), None)
        machines = {} if guest is None else dict(_machines(guest, arch))
        types = () if guest is None else tuple(str(one.get("type")) for one in guest.findall("arch/domain"))
        kind = "kvm" if "kvm" in types else next(iter(types), None)
        base = Hypervisor(
            uuid=root.findtext("host/uuid"),
            hostname=connection.getHostname(),
            arch=arch,
            libvirt=version(connection.getLibVersion()),
            qemu=version(connection.getVersion()),
            type=kind,
            types=tuple(sorted(set(types))),
            emulator=None if guest is None else guest.findtext("arch/emulator"),
            machines=tuple(sorted(set(machines.values()))),
            q35=machines.get("q35"),
            networks=dict(_networks(connection)),
            pools=tuple(_pools(connection)),
        )
        expand = _Expander(connection, arch, kind)
        if privileged and kind is not None:
            base = dataclasses.replace(base, **_offer(connection, base, expand))
        claims = [
            virt.found(lambda each=each: _claim(each, expand if privileged else None))  # type: ignore[misc]
            for each in connection.listAllDomains()
        ]  # None: it went away meanwhile
        there = sorted((claim for claim in claims if claim is not None), key=lambda claim: claim.name)
        return dataclasses.replace(base, guests=tuple(there))


def version(number: int) -> str:
    """A version that libvirt gives as a number (https://libvirt.org/html/libvirt-libvirt-host.html)."""
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def _machines(guest: Element, arch: str) -> t.Iterator[tuple[str, str]]:
    for machine in guest.findall(f"arch[@name='{arch}']//machine"):
        yield str(machine.text), machine.get("canonical") or str(machine.text)


def _offer(connection: t.Any, base: Hypervisor, expand: _Expander) -> dict[str, t.Any]:
    root = xml.parse(connection.getDomainCapabilities(None, base.arch, base.q35 and "q35", base.type))
    digest = hashlib.sha256(xml.canonical(root).encode()).hexdigest()
    loaders = {str(one.text): _size(str(one.text)) for one in root.findall("os/loader/value")}
    found: dict[str, t.Any] = {"capabilities": digest, "loaders": dict(sorted(loaders.items()))}
    mode = xml.first(root, "cpu/mode[@name='host-model'][@supported='yes']")
    if mode is not None:
        mode.tag = "cpu"
        mode.attrib.clear()
        text = xml.canonical(mode)
        found.update(cpu=text, vendor=mode.findtext("vendor"), model=mode.findtext("model"), features=expand(text))
    return found


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


class _Expander:
    """A CPU's features, those of its model among them, as libvirt spells them out; each CPU is asked for once."""

    def __init__(self, connection: t.Any, arch: str, kind: str | None) -> None:
        self._connection, self._arch, self._kind = connection, arch, kind
        self._known: dict[str, frozenset[str] | None] = {}

    def __call__(self, text: str) -> frozenset[str] | None:
        if text not in self._known:
            self._known[text] = self._ask(text)
        return self._known[text]

    def _ask(self, text: str) -> frozenset[str] | None:
        try:
            return features(baseline(self._connection, self._arch, self._kind, [text], False))
        except virt.libvirt.libvirtError:
            return None


def baseline(connection: t.Any, arch: str, kind: str | None, cpus: t.Sequence[str], migratable: bool) -> Element:
    """The CPU that all of these can be, each feature spelt out (virConnectBaselineHypervisorCPU).

    Raises:
        libvirt.libvirtError: there is none.
    """
    lib = virt.libvirt
    flags = lib.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
    if migratable:
        flags |= lib.VIR_CONNECT_BASELINE_CPU_MIGRATABLE
    return xml.parse(connection.baselineHypervisorCPU(None, arch, None, kind, list(cpus), flags))


def features(cpu: Element) -> frozenset[str]:
    """Names of the features that a ``<cpu>`` has."""
    return frozenset(str(one.get("name")) for one in cpu.findall("feature") if one.get("policy", "require") in ON)


def _networks(connection: t.Any) -> t.Iterator[tuple[str, dict[str, str | None]]]:
    for network in sorted(connection.listAllNetworks(), key=lambda one: one.name()):
        if not network.isActive():
            continue
        root = xml.parse(network.XMLDesc())
        bridge, mtu, forward = (xml.first(root, tag) for tag in ("bridge", "mtu", "forward"))
        # What differs from host to host without making a difference to a guest.
        for path in ("uuid", "mac", "ip/dhcp/host"):
            xml.drop(root, path)
        root.attrib.pop("connections", None)
        yield (
            network.name(),
            {
                "forward": None if forward is None else forward.get("mode", "nat"),
                "bridge": None if bridge is None else bridge.get("name"),
                "mtu": None if mtu is None else mtu.get("size"),
                "digest": hashlib.sha256(xml.canonical(root).encode()).hexdigest(),
            },
        )


def _pools(connection: t.Any) -> t.Iterator[Pool]:
    for pool in sorted(connection.listAllStoragePools(), key=lambda one: one.name()):
        if not pool.isActive():
            continue
        root = xml.parse(pool.XMLDesc())
        path = root.findtext("target/path")
        yield Pool(pool.name(), root.get("type", ""), path, pool.info()[3], _device(path))


def _device(path: str | None) -> str | None:
    try:
        return None if path is None else str(os.stat(path).st_dev)
    except OSError:
        return None


def _claim(domain: t.Any, expand: _Expander | None) -> Claim:
    root = xml.parse(domain.XMLDesc())
    page = xml.first(root, "memoryBacking/hugepages/page")
    huge = xml.first(root, "memoryBacking/hugepages") is not None
    memory = root.find("memory")
    cpu = xml.first(root, "cpu[@mode='custom']")
    known = None
    if cpu is not None and expand is not None:
        bare = xml.element("cpu")
        bare.extend(one for one in cpu if one.tag in ("model", "vendor", "feature"))
        known = expand(xml.canonical(bare))
    return Claim(
        name=domain.name(),
        uuid=domain.UUIDString(),
        active=bool(domain.isActive()),
        memory=parse_scaled(root.findtext("memory") or "0", None if memory is None else memory.get("unit")),
        vcpus=int(root.findtext("vcpu") or 1),
        hugepage=None
        if not huge
        else 2048
        if page is None
        else parse_scaled(page.get("size", "0"), page.get("unit")) // 1024,
        cpu=known,
        emulator=root.findtext("devices/emulator"),
        loader=root.findtext("os/loader"),
    )
