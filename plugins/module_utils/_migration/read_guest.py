# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest is made of.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.program import run
from .._guest import migratable, storage
from .._guest.domain import marker
from .._guest.media import RESERVED
from . import devices, files
from .read import NVRAM, SWTPM, Side


@dataclasses.dataclass(frozen=True)
class Backing:
    """A file below an overlay.

    Attributes:
        path: of the file, the same on both hosts.
        allocated: bytes that it takes.
        shared: it is not the guest's own (its owner marker says what is), so it stays here as well.
    """

    path: str
    allocated: int
    shared: bool


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk that has to be copied.

    Attributes:
        target: for instance ``vda``.
        path: the file, the same on both hosts.
        format: ``qcow2`` or ``raw``.
        virtual: bytes that the guest sees.
        allocated: bytes that the file takes.
        backing: the files below it, nearest first; only looked up for a cold move, or to be flattened.
        id: that it has in phyllome_vm; empty without.
        flat: what is below it becomes part of it at the destination.
        required: bytes that it takes as QEMU writes it anew, where it does: compressed data does not stay so.
    """

    target: str
    path: str
    format: str
    virtual: int
    allocated: int
    backing: tuple[Backing, ...] = ()
    id: str = ""
    flat: bool = False
    required: int = 0

    @property
    def taken(self) -> int:
        """Bytes that it takes, with what becomes part of it."""
        return self.allocated + sum(layer.allocated for layer in self.backing if self.flat)

    @property
    def whole(self) -> int:
        """The most bytes that its copy takes."""
        return max(self.taken, self.required)


@dataclasses.dataclass(frozen=True)
class Guest:
    """What a guest is made of, as far as a move depends on it. Empty means that there is none.

    Attributes:
        pages: sizes of the huge pages that its memory is made of, in KiB; 0 for the host's usual ones.
        last_cpu: the highest CPU of the host that a part of it is pinned to.
        obstacles: code, what and fix of all that keeps it from moving anywhere (``_guest.migratable``).
        secrets: uuids of the secrets that its disks and its TPM are encrypted with.
        devices: of this host, that it has.
        shared: disks that both hosts have, which are not copied; ``disks`` are the others.
        seeds: CD images that phyllome_vm has made for it. They do not come along, and may hold secrets.
        former: files of disks that phyllome_vm has made for it and has taken out of it.
        snapshots: the folder of what vm_snapshot keeps of it, which goes with it while it is off.
        snapshots_size: bytes that it takes.
    """

    name: str
    uuid: str
    memory: int
    type: str
    emulator: str
    arch: str
    machine: str
    cpu: str | None
    disks: tuple[Disk, ...] = ()
    media: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    loader: str | None = None
    nvram: str | None = None
    nvram_template: str | None = None
    nvram_format: str = "raw"
    tpm: str | None = None
    obstacles: tuple[tuple[str, str, str], ...] = ()
    block_jobs: tuple[str, ...] = ()
    managed_save: bool = False
    pages: tuple[int, ...] = ()
    last_cpu: int | None = None
    secrets: tuple[str, ...] = ()
    devices: tuple[devices.Device, ...] = ()
    shared: tuple[Disk, ...] = ()
    seeds: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    snapshots: str | None = None
    snapshots_size: int = 0

    def apart(self, shares: Shares) -> Guest:
        """The same, with the disks that both hosts have apart from the others; a seed beside one is on both hosts, too."""
        everything = (*self.disks, *self.shared)
        shared = tuple(disk for disk in everything if shares(disk))
        both = {os.path.dirname(disk.path) for disk in shared}
        return dataclasses.replace(
            self,
            disks=tuple(disk for disk in everything if not shares(disk)),
            shared=shared,
            seeds=tuple(path for path in self.seeds if os.path.dirname(path) not in both),
        )


Shares = t.Callable[[Disk], bool]


def guest(side: Side, uuid: str, sizes: bool, shares: Shares, cold: bool = False, flatten: bool = False) -> Guest:
    """What the guest is made of.

    Args:
        side: the host that has it.
        uuid: the guest's.
        sizes: look at its disks, jobs and snapshots too; its files are on this host.
        shares: whether both hosts have a disk.
        cold: it moves while it is off, so its memory does not matter, and chains, snapshots and secrets go with it.
        flatten: a disk and all that is below it shall become one file.

    Raises:
        PhyllomeError: libvirt does not say.
    """
    with virt.saying(f"Cannot read the guest {uuid} on {side.name}"):
        return side.ask(
            lambda connection: _guest(connection, connection.lookupByUUIDString(uuid), sizes, shares, cold, flatten)
        )


def _guest(connection: t.Any, domain: t.Any, sizes: bool, shares: Shares, cold: bool, flatten: bool) -> Guest:
    lib = virt.libvirt
    active = bool(domain.isActive())
    flags = lib.VIR_DOMAIN_XML_MIGRATABLE if active else lib.VIR_DOMAIN_XML_INACTIVE
    root = xml.parse(domain.XMLDesc(flags))
    parsed = parse_guest(root)
    if not sizes:
        return parsed.apart(shares)
    disks = []
    for disk in parsed.disks:
        virtual = int(domain.blockInfo(disk.target)[0])
        allocated = os.stat(disk.path).st_blocks * 512 if os.path.exists(disk.path) else 0
        disks.append(dataclasses.replace(disk, virtual=virtual, allocated=allocated))
    chained = {disk.target for disk in disks if disk.format == "qcow2" and storage.based(disk.path)}
    both = {disk.target for disk in disks if shares(disk)}
    odd: tuple[tuple[str, str, str], ...] = ()
    for element in root.findall("devices/disk") if both else ():
        if t.cast("xml.Element", element.find("target")).get("dev") in both:
            xml.drop(element, "backingStore")  # nothing of it is copied
    flat = chained - both if flatten else set()
    others = needed_by_others(connection, parsed.uuid)
    clones = tuple(_base(disk, others[disk.path]) for disk in disks if disk.target not in both and disk.path in others)
    made = marker(root)
    own = {volume.path for volume in made.volumes if volume.made} - set(others) if made is not None else set()
    if cold or both & chained or flat:
        asked = [disk for disk in disks if cold or disk.target in both | flat]
        named, odd = _with_chains(asked, flat, own)
        known = {disk.target: disk for disk in named}
        disks = [known.get(disk.target, disk) for disk in disks]
        if flat:
            odd += tuple(_lost(root, domain, flat))
    anew = flat if cold else {disk.target for disk in disks} - both - (chained - flat)
    if not parsed.secrets:  # what is encrypted is not written anew
        disks, unmeasured = _measured(disks, anew)
        odd += unmeasured
    if cold and flat:
        odd += tuple(_room([disk for disk in disks if disk.flat]))
    odd += clones
    kept = os.path.join(files.SNAPSHOTS, parsed.uuid)
    kept_files = files.below(kept)
    if cold:
        odd += _odd_snapshots(domain, kept)
    elif kept_files:
        odd += (("snapshots", "it has snapshots of vm_snapshot, which keep more than is in its disks", _COLD),)
    given = parsed.devices
    if cold:
        for path in ("devices/hostdev", "devices/interface[@type='hostdev']"):
            xml.drop(root, path)  # it gets others at the destination: plan.blockers looks at them
        # its definition goes; what was only plugged into the running guest does not
        given = devices.of(xml.parse(domain.XMLDesc(lib.VIR_DOMAIN_XML_INACTIVE)))
    made_of = dataclasses.replace(
        parsed,
        devices=given,
        disks=tuple(disks),
        obstacles=odd
        + obstacles(
            root, domain.snapshotNum(), len(domain.listAllCheckpoints()), active and not cold, chained - both - flat
        ),
        block_jobs=tuple(disk.target for disk in disks if active and domain.blockJobInfo(disk.target)),
        managed_save=bool(domain.hasManagedSaveImage()),
        snapshots=kept if cold and os.path.isdir(kept) else None,
        snapshots_size=sum(os.stat(path).st_blocks * 512 for path in kept_files) if cold else 0,
    )
    return made_of.apart(shares)


def obstacles(
    root: xml.Element, snapshots: int, checkpoints: int, active: bool, chained: t.Container[str] = ()
) -> tuple[tuple[str, str, str], ...]:
    """What keeps a guest from moving anywhere; that it may be transient is told by its state. Pure."""
    judged = migratable.judge(root, True, snapshots, checkpoints, running=active, chained=chained)
    also = {"backing_chain": " Or say chain: flatten, if it may become one."}
    return tuple(
        (reason["code"], reason["what"], reason["fix"] + also.get(reason["code"], "")) for reason in judged["reasons"]
    )


def _layers(path: str) -> list[dict[str, t.Any]]:
    """What qemu-img says of an image and of those below it.

    Raises:
        PhyllomeError: one of them cannot be read.
    """
    told: list[dict[str, t.Any]] = json.loads(
        run(["qemu-img", "info", "-U", "--backing-chain", "-f", "qcow2", "--output=json", path])
    )
    return told


def _with_chains(
    disks: list[Disk], flat: t.Container[str], own: t.Container[str]
) -> tuple[list[Disk], tuple[tuple[str, str, str], ...]]:
    """The disks with what is below them, of which only ``own`` is the guest's, and what of that cannot be copied."""
    found, odd = [], []
    for disk in disks:
        if disk.format != "qcow2":
            found.append(disk)
            continue
        try:
            layers = _layers(disk.path)
        except PhyllomeError as exc:
            odd.append(("backing_chain", f"disk {disk.target} cannot be read with all that is below it: {exc.why}",
                        "Repair the chain: qemu-img info --backing-chain."))  # fmt: skip
            found.append(disk)
            continue
        backing = []
        for number, layer in enumerate(layers):
            details = layer.get("format-specific", {}).get("data") or {}
            path = layer["filename"]
            if details.get("data-file"):
                odd.append(
                    ("disk_kind", f"{path} has its data in {details['data-file']}", "Convert it: qemu-img convert.")
                )
            if disk.target in flat and layer.get("encrypted"):
                odd.append(("backing_chain", f"{path} is encrypted, and what is flattened would not be", _KEEP))
            if number == 0:
                continue
            if not os.path.isabs(path) or not os.path.isfile(path):
                odd.append(("backing_chain", f"disk {disk.target} stands on {path}, which is no file of this host",
                            f"virsh blockpull, or qemu-img rebase, disk {disk.target}."))  # fmt: skip
                continue
            backing.append(Backing(path, os.stat(path).st_blocks * 512, path not in own))
        if disk.target in flat and layers[0].get("snapshots"):
            names = ", ".join(one["name"] for one in layers[0]["snapshots"])
            odd.append(("snapshots", f"{disk.path} has snapshots inside ({names}), which flattening would lose", _KEEP))
        found.append(dataclasses.replace(disk, backing=tuple(backing), flat=disk.target in flat))
    return found, tuple(odd)


def _measured(disks: list[Disk], anew: t.Container[str]) -> tuple[list[Disk], tuple[tuple[str, str, str], ...]]:
    """The disks with what those take that QEMU writes anew, and which of them cannot be read.

    ``qemu-img measure`` reads the tables of an image, not its data: 1 GiB of them for 8 TiB.
    """
    found, odd = [], []
    for disk in disks:
        if disk.target in anew and disk.format == "qcow2" and os.path.exists(disk.path):
            argv = ["qemu-img", "measure", "-U", "-f", "qcow2", "-O", "qcow2", "--output=json", disk.path]
            try:
                disk = dataclasses.replace(disk, required=int(json.loads(run(argv, timeout=600))["required"]))
            except PhyllomeError as exc:
                odd.append(("disk_kind", f"disk {disk.target} cannot be read: {exc.why}", "Repair it: qemu-img check."))
        found.append(disk)
    return found, tuple(odd)


_KEEP = "Remove it, or say chain: keep and move the guest while it is off."


def _lost(root: xml.Element, domain: t.Any, flat: t.Container[str]) -> t.Iterator[tuple[str, str, str]]:
    """What libvirt knows of a disk and would not be true of a flattened one."""
    for number, name in ((domain.snapshotNum(), "snapshot"), (len(domain.listAllCheckpoints()), "checkpoint")):
        if number:
            yield f"{name}s", f"it has {number} {name}(s), which flattening would lose", _KEEP
    for disk in root.findall("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("dev") in flat and disk.find(".//encryption") is not None:
            yield "backing_chain", f"disk {target.get('dev')} is encrypted, and what is flattened would not be", _KEEP


def _room(disks: t.Sequence[Disk]) -> t.Iterator[tuple[str, str, str]]:
    """Whether this host has space for the flat files, which are made beside the disks while the guest is off."""
    for folder in sorted({os.path.dirname(disk.path) for disk in disks}):
        needed = sum(disk.whole for disk in disks if os.path.dirname(disk.path) == folder)
        if storage.free(folder) < needed:
            what = f"{folder} has less than {needed >> 20} MiB of space left for flat copies of its disks"
            yield "space", what, "Make room there, say chain: keep, or move the guest live, which takes no space here."


def needed_by_others(connection: t.Any, uuid: str) -> dict[str, str]:
    """Files that disks of the other guests of this host are or stand on, and the name of such a guest."""
    needed: dict[str, str] = {}
    below: dict[str | None, tuple[str, ...]] = {None: ()}  # many clones stand on one base: QEMU is asked once
    for domain, (text,) in virt.domains(connection, virt.libvirt.VIR_DOMAIN_XML_INACTIVE):
        if domain.UUIDString() == uuid:
            continue
        for disk in parse_guest(xml.parse(text)).disks:
            base = storage.backing(disk.path) if disk.format == "qcow2" else None
            if base not in below:
                last = base is not None and os.path.isfile(base) and not storage.based(base)
                below[base] = (base,) if base is not None and last else storage.chain(disk.path, disk.format)
            needed.update(dict.fromkeys((disk.path, *below[base]), domain.name()))
    return needed


def needed_there(connection: t.Any, uuid: str, op: str) -> dict[str, str]:
    """The same of the other host, whose files are volumes of its libvirt.

    What is in a raw file is a guest's own, who may have written there that it is an overlay: it is not asked.
    """
    needed: dict[str, str] = {}
    layer: dict[str, str] = {}
    for domain, (text,) in virt.domains(connection, virt.libvirt.VIR_DOMAIN_XML_INACTIVE):
        if domain.UUIDString() != uuid:
            for disk in parse_guest(xml.parse(text)).disks:
                (layer if disk.format == "qcow2" else needed)[disk.path] = domain.name()
    while layer:
        needed.update(layer)
        folders: dict[str, dict[str, str]] = {}
        for path, guest_name in layer.items():
            folders.setdefault(os.path.dirname(path), {})[os.path.basename(path)] = guest_name
        layer = {}
        for folder, names in folders.items():
            with files.folder(connection, folder, op) as volumes:
                bases = [
                    (xml.parse(volumes[one].XMLDesc()).find("backingStore"), names[one])
                    for one in names
                    if one in volumes
                ]
            for base, guest_name in bases:
                path = "" if base is None else base.findtext("path", "")
                if base is not None and path not in needed:
                    kind = base.find("format")
                    overlay = kind is not None and kind.get("type") == "qcow2"
                    (layer if overlay else needed)[path] = guest_name
    return needed


def _base(disk: Disk, other: str) -> tuple[str, str, str]:
    return (
        "linked_clones",
        f"the guest {other} has {disk.path} as well, as a disk or below one, and would lose it",
        f"Move {other} first, with chain: flatten, or remove it.",
    )


_COLD = "Move it while it is off (mode: cold), or remove them for the move: vm_snapshot with state: absent."


def _odd_snapshots(domain: t.Any, kept: str) -> tuple[tuple[str, str, str], ...]:
    """Snapshots that have something outside of the disks' files and of what vm_snapshot keeps: it is not carried over."""
    odd = []
    for snapshot in domain.listAllSnapshots():
        root = xml.parse(snapshot.getXMLDesc())
        parts = (*root.findall("disks/disk"), *root.findall("memory"))
        if any(one.get("snapshot") == "external" and not one.get("file", "").startswith(f"{kept}/") for one in parts):
            fix = f"Merge or delete it: virsh snapshot-delete {domain.name()} {snapshot.getName()}."
            odd.append(("snapshots", f"its snapshot {snapshot.getName()} is not inside of its disks", fix))
    return tuple(odd)


def parse_guest(root: xml.Element) -> Guest:
    """What a domain's XML says of a guest. Pure; sizes of disks are 0."""
    disks: list[Disk] = []
    media: list[str] = []
    for element in root.findall("devices/disk"):
        named = element.find("target")
        target = "?" if named is None else named.get("dev", "?")
        source = element.find("source")
        if source is None or not source.attrib:
            continue
        path = source.get("file")
        fixed = element.get("device", "disk") != "disk" or element.find("readonly") is not None
        if fixed and source.get("startupPolicy") == "optional":
            continue  # libvirt takes it out where it is not there
        if fixed:
            media.append(path or f"{target} ({element.get('type')})")
            continue
        driver = element.find("driver")
        form = "raw" if driver is None else driver.get("type", "raw")
        if path is not None:
            disks.append(Disk(target, path, form, 0, 0, id=devices.id_of(element)))
    loader, nvram, tpm = root.find("os/loader"), root.find("os/nvram"), root.find("devices/tpm/backend")
    machine = root.find("os/type")
    cpu = root.find("cpu")
    memory = root.find("memory")
    uuid = root.findtext("uuid", "")
    nvram_path = None
    if nvram is not None:
        inner = nvram.find("source")
        nvram_path = (nvram.text or "").strip() or (None if inner is None else inner.get("file"))
    os_element = root.find("os")
    if nvram is None and os_element is not None and os_element.get("firmware") == "efi":
        nvram_path = os.path.join(NVRAM, f"{root.findtext('name', '')}_VARS.fd")
    made = marker(root)
    volumes = made.volumes if made is not None else ()
    tpm_path = None
    if tpm is not None and tpm.get("type") == "emulator" and tpm.find("source") is None:
        tpm_path = os.path.join(SWTPM, uuid, "tpm1.2" if tpm.get("version") == "1.2" else "tpm2")
    interfaces = root.findall("devices/interface")
    sources = [(one.get("type"), one.find("source")) for one in interfaces]
    return Guest(
        name=root.findtext("name", ""),
        uuid=uuid,
        memory=int(memory.text or 0) * 1024 if memory is not None else 0,
        type=root.get("type", ""),
        emulator=root.findtext("devices/emulator", ""),
        arch="" if machine is None else machine.get("arch", ""),
        machine="" if machine is None else machine.get("machine", ""),
        cpu=None if cpu is None or cpu.get("mode", "custom") != "custom" else xml.dump(cpu),
        disks=tuple(disks),
        media=tuple(media),
        networks=tuple(one.get("network", "") for kind, one in sources if kind == "network" and one is not None),
        bridges=tuple(one.get("bridge", "") for kind, one in sources if kind == "bridge" and one is not None),
        loader=None if loader is None else (loader.text or "").strip() or None,
        nvram=nvram_path,
        nvram_template=None if nvram is None else nvram.get("template"),
        nvram_format="raw" if nvram is None else nvram.get("format", "raw"),
        tpm=tpm_path,
        pages=tuple(int(page.get("size", 0)) for page in root.findall("memoryBacking/hugepages/page")),
        last_cpu=_last_cpu(root),
        devices=devices.of(root),
        seeds=tuple(volume.path for volume in volumes if volume.id in RESERVED),
        former=tuple(
            volume.path
            for volume in volumes
            if volume.id not in RESERVED and volume.made and volume.path not in {disk.path for disk in disks}
        ),
        secrets=tuple(
            dict.fromkeys(
                each.get("uuid", "")
                for path in ("devices/disk//encryption/secret", "devices/disk//auth/secret")
                for each in root.findall(path)
                if each.get("uuid")
            )
        ),
    )


def _last_cpu(root: xml.Element) -> int | None:
    """The highest CPU of the host in any pinning. Pure."""
    pinned = [*root.findall("vcpu"), *root.findall("cputune/*")]
    said = " ".join(one.get("cpuset", "") for one in pinned)
    return max(map(int, re.findall(r"(?<![\d^])\d+", said)), default=None)
