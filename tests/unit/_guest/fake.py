# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirt that keeps its guests in memory, and can be cut off before or after any of its changes.

It does what libvirt 9.0 was seen to do where that matters here: it fills in addresses, names the devices of a running
guest, refuses the same devices, and lets a guest ignore that something is taken out of it.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pathlib
import types
import typing as t

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt, xml
from ansible_collections.phyllome.virt.plugins.module_utils._guest import converge, live, luks, spec, storage, world

GIB = 1024**3
_CAPABILITIES = (pathlib.Path(__file__).parent / "domains/capabilities-qemu.xml").read_text()


class LibvirtError(Exception):
    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return self.code


class Killed(BaseException):
    """The module was killed."""


class Library:
    """The constants of the module libvirt."""

    libvirtError = LibvirtError
    VIR_ERR_NO_DOMAIN = 42
    VIR_ERR_NO_NETWORK = 43
    VIR_ERR_NO_STORAGE_POOL = 49
    VIR_ERR_NO_STORAGE_VOL = 50
    VIR_ERR_NO_SECRET = 66
    VIR_SECRET_USAGE_TYPE_VOLUME = 1
    VIR_DOMAIN_XML_SECURE = 1
    VIR_DOMAIN_XML_INACTIVE = 2
    VIR_DOMAIN_AFFECT_LIVE = 1
    VIR_DOMAIN_AFFECT_CONFIG = 2
    VIR_DOMAIN_START_PAUSED = 1
    VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED = 15
    VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED = 22
    VIR_DOMAIN_METADATA_DESCRIPTION = 0
    VIR_DOMAIN_METADATA_TITLE = 1
    VIR_DOMAIN_METADATA_ELEMENT = 2

    def __getattr__(self, name: str) -> int:
        if name.startswith("VIR_"):
            return 0
        raise AttributeError(name)


class Domain:
    """One guest."""

    def __init__(self, host: Hypervisor, config: t.Any) -> None:
        self.host, self.config, self.paused = host, config, False
        self.live: t.Any = None
        self.starts = 0
        self.snapshots: list[t.Any] = []
        self.auto = False
        self.obeys: t.Callable[[str], bool] = lambda alias: True
        self.balloon = True

    # Looking

    def name(self) -> str:
        return str(self.config.findtext("name"))

    def UUIDString(self) -> str:
        return str(self.config.findtext("uuid"))

    def isActive(self) -> bool:
        return self.live is not None

    def isPersistent(self) -> bool:
        return True

    def state(self) -> tuple[int, int]:
        return (5, 0) if self.live is None else (3, 1) if self.paused else (1, 1)

    def autostart(self) -> int:
        return int(self.auto)

    def hasManagedSaveImage(self) -> int:
        return 0

    def snapshotNum(self) -> int:
        return len(self.snapshots)

    def listAllCheckpoints(self) -> list[t.Any]:
        return []

    def listAllSnapshots(self, flags: int = 0) -> list[t.Any]:
        return self.snapshots

    def jobStats(self) -> dict[str, int]:
        return {"type": 0}

    def interfaceAddresses(self, source: int) -> dict[str, t.Any]:
        return {}

    def XMLDesc(self, flags: int = 0) -> str:
        return xml.dump(self.config if self.live is None or flags & 2 else self.live)

    def info(self) -> list[int]:
        return [1, 0, int(self.live.findtext("currentMemory")), 1, 0]

    def blockInfo(self, target: str) -> tuple[int, int, int]:
        root = self.config if self.live is None else self.live
        source = root.find(f"devices/disk/target[@dev='{target}']/../source")
        if source is not None and source.get("file") in self.host.files:
            return self.host.files[source.get("file")], 0, 0
        raise LibvirtError("cannot stat")

    # Changing

    def setAutostart(self, value: int) -> None:
        with self.host.step("setAutostart"):
            self.auto = bool(value)

    def setMetadata(self, kind: int, text: str | None, key: t.Any, uri: t.Any, scope: int) -> None:
        with self.host.step("setMetadata"):
            roots = [self.config] * bool(scope & 2) + [self.live] * bool(scope & 1)
            for root in roots:
                if kind == 2:
                    xml.drop(root, f"metadata/{{{uri}}}guest")
                    given: t.Any = xml.parse(str(text))
                    made = xml.child(xml.ensure(root, "metadata"), f"{{{uri}}}{given.tag}", **dict(given.attrib))
                    for each in given:
                        xml.child(made, f"{{{uri}}}{each.tag}", **dict(each.attrib))
                else:
                    tag = "title" if kind == 1 else "description"
                    xml.drop(root, tag)
                    if text:
                        xml.child(root, tag, text)

    def updateDeviceFlags(self, text: str, scope: int) -> None:
        with self.host.step("updateDevice"):
            given = xml.parse(text)
            alias = given.find("alias").get("name")
            if given.tag == "memory" and self.balloon:
                current, now = xml.ensure(given, "target/current"), self.live.find("currentMemory")
                now.text = str(int(now.text) + int(given.findtext("target/requested")) - int(current.text or 0))
                current.text = given.findtext("target/requested")
                current.set("unit", "KiB")
            self._find(alias).getparent().replace(self._find(alias), given)

    def attachDeviceFlags(self, text: str, scope: int) -> None:
        with self.host.step("attachDevice"):
            given = xml.parse(text)
            why = live.Room(self.live).take(given) if given.tag != "controller" else ""
            if why:
                raise LibvirtError(why)
            target = given.find("target")
            if given.tag == "disk" and self.live.find(f"devices/disk/target[@dev='{target.get('dev')}']") is not None:
                raise LibvirtError(f"target {target.get('dev')} already exists")
            self.live.find("devices").append(given)
            _fill(self.live, running=True)

    def detachDeviceAlias(self, alias: str, scope: int) -> None:
        with self.host.step("detachDevice"):
            found = self._find(alias)
            if self.obeys(alias):
                found.getparent().remove(found)
                for event, heard, answer in list(self.host.handles.values()):
                    if event == 15:
                        heard(self.host, self, alias, answer)

    def _find(self, alias: str) -> t.Any:
        for found in self.live.findall("devices/*/alias"):
            if found.get("name") == alias:
                return found.getparent()
        raise LibvirtError(f"no device found with alias {alias}")

    def blockResize(self, target: str, size: int, flags: int) -> None:
        with self.host.step("blockResize"):
            disk = self.live.find(f"devices/disk/target[@dev='{target}']/..")
            self.host.files[disk.find("source").get("file")] = size

    def setMemoryFlags(self, kib: int, scope: int) -> None:
        with self.host.step("setMemory"):
            if self.balloon:
                plugged = int(self.live.findtext("devices/memory/target/current") or 0)
                self.live.find("currentMemory").text = str(kib + plugged)

    def setVcpusFlags(self, count: int, scope: int) -> None:
        with self.host.step("setVcpus"):
            vcpu = self.live.find("vcpu")
            if count > int(vcpu.text):
                raise LibvirtError("requested vcpus is greater than max allowable vcpus")
            vcpu.set("current", str(count))

    def pinVcpuFlags(self, number: int, wanted: tuple[bool, ...], scope: int) -> None:
        self._pin(f"vcpupin[@vcpu='{number}']", wanted)

    def pinIOThread(self, number: int, wanted: tuple[bool, ...], scope: int) -> None:
        self._pin(f"iothreadpin[@iothread='{number}']", wanted)

    def pinEmulator(self, wanted: tuple[bool, ...], scope: int) -> None:
        self._pin("emulatorpin", wanted)

    def _pin(self, path: str, wanted: tuple[bool, ...]) -> None:
        with self.host.step("pin"):
            chosen = ",".join(str(cpu) for cpu, here in enumerate(wanted) if here)
            xml.ensure(self.live, f"cputune/{path}").set("cpuset", chosen)

    def setBlockIoTune(self, target: str, values: dict[str, int], scope: int) -> None:
        with self.host.step("setBlockIoTune"):
            disk = self.live.find(f"devices/disk/target[@dev='{target}']/..")
            for name, value in values.items():
                xml.ensure(disk, f"iotune/{name}").text = str(value)

    def createWithFlags(self, flags: int) -> None:
        with self.host.step("create"):
            if self.live is not None:
                raise LibvirtError("domain is already running")
            for named in self.config.findall("devices/disk/source/encryption/secret"):
                if not self.host.secretLookupByUUIDString(named.get("uuid")).key:
                    raise LibvirtError("secret has no value")
            for source in self.config.findall("devices/disk/source"):
                if source.get("file") and source.get("file") not in self.host.files:
                    raise LibvirtError(f"Cannot access storage file {source.get('file')}")
            self.live = copy.deepcopy(self.config)
            self.live.set("id", "1")
            _fill(self.live, running=True)
            self.paused = bool(flags & 1)
            self.starts += 1

    def resume(self) -> None:
        with self.host.step("resume"):
            self.paused = False

    def suspend(self) -> None:
        with self.host.step("suspend"):
            self.paused = True

    def shutdownFlags(self, way: int) -> None:
        with self.host.step("shutdown"):
            self.live = None

    def destroyFlags(self, flags: int) -> None:
        with self.host.step("destroy"):
            self.live = None

    def undefineFlags(self, flags: int) -> None:
        with self.host.step("undefine"):
            self.host.domains.remove(self)


def _fill(root: t.Any, running: bool = False) -> None:
    """What libvirt adds."""
    if root.find("currentMemory") is None:
        root.find("memory").addnext(xml.element("currentMemory", root.findtext("memory"), unit="KiB"))
    ports = [found for found in root.findall("devices/controller[@type='pci']") if "port" in found.get("model", "")]
    for index, found in enumerate(ports, 1):
        found.set("index", str(index))
    used = {int(found.get("bus", "0"), 16) for found in root.findall("devices/*/address[@type='pci']")}
    free = iter(sorted({int(found.get("index")) for found in ports} - used))
    for found in root.findall("devices/*"):
        if live.socket(found) == "pci" and found.find("address") is None:
            bus = next(free, None)
            if bus is None:
                raise LibvirtError("No more available PCI slots")
            xml.child(found, "address", type_="pci", domain="0x0000", bus=f"0x{bus:02x}", slot="0x00", function="0x0")
        if running and found.find("alias") is None:
            xml.child(found, "alias", name=f"{found.tag}{found.getparent().index(found)}")


class Secret:
    """The passphrase of a disk; private, so nobody can read it."""

    def __init__(self, host: Hypervisor, uuid: str) -> None:
        self.host, self.uuid, self.text, self.key = host, uuid, "", b""

    def UUIDString(self) -> str:
        return self.uuid

    def XMLDesc(self) -> str:
        return self.text

    def setValue(self, key: bytes) -> None:
        with self.host.step("setSecret"):
            self.key = key

    def undefine(self) -> None:
        with self.host.step("undefineSecret"):
            del self.host.secrets[self.uuid]


class _Step:
    """One change; ``kill_at`` counts places before and after each."""

    def __init__(self, host: Hypervisor, name: str) -> None:
        self.host, self.name = host, name

    def _place(self) -> None:
        self.host.places += 1
        if self.host.places == self.host.kill_at:
            raise Killed(f"{self.name} ({self.host.places})")

    def __enter__(self) -> None:
        self._place()

    def __exit__(self, kind: t.Any, *rest: t.Any) -> None:
        if kind is None:
            self.host.told.append(self.name)
            self._place()


class Hypervisor:
    """The connection, and the host below it.

    Args:
        folder: an empty directory, which is the pool ``images``.
        monkeypatch: pytest's.
    """

    def __init__(self, folder: pathlib.Path, monkeypatch: t.Any) -> None:
        self.folder, self.domains, self.told = folder, t.cast(list[Domain], []), t.cast(list[str], [])
        self.files: dict[str, int] = {}
        self.handles: dict[int, t.Any] = {}
        self.secrets: dict[str, Secret] = {}
        self.passphrases: dict[str, str] = {}
        """By which the files that are encrypted were made."""
        self.places, self.kill_at, self.available = 0, 0, 64 * GIB
        monkeypatch.setattr(virt, "libvirt", Library())
        monkeypatch.setattr(storage, "create", self._create)
        monkeypatch.setattr(storage, "grow", self._grow)
        monkeypatch.setattr(storage, "remove", self._remove)
        monkeypatch.setattr(storage, "inspect", lambda path, checksum=None: self._image(path))
        monkeypatch.setattr(luks, "opens", lambda path, form, key: self.passphrases[path] == key)
        monkeypatch.setattr(storage, "chain", lambda *dummy: ())

    def step(self, name: str) -> _Step:
        return _Step(self, name)

    def converge(self, **options: t.Any) -> dict[str, t.Any]:
        """What phyllome_vm does with one guest; a second is a hundredth here."""
        check = options.pop("check", False)
        wanted = spec.accept({"name": "web", **options})
        wanted = dataclasses.replace(wanted, unplug_timeout=wanted.unplug_timeout / 100)
        return converge._one(world.Look(self, "qemu:///system"), wanted, check)

    def guest(self, name: str = "web") -> Domain:
        return next(found for found in self.domains if found.name() == name)

    def state(self) -> t.Any:
        """All that there is, to be compared."""
        return {
            "files": dict(self.files),
            "disk": sorted(os.listdir(self.folder)),
            "secrets": {uuid: (found.text, found.key) for uuid, found in self.secrets.items()},
            "guests": {
                found.name(): (
                    xml.dump(found.config),
                    None if found.live is None else xml.dump(found.live),
                    found.paused,
                    found.auto,
                )
                for found in self.domains
            },
        }

    def _image(self, path: str) -> storage.Image:
        return storage.Image("qcow2", self.files[path], 0, encrypted=path in self.passphrases)

    def _create(
        self, path: str, form: str, size: int, source: str | None, method: str, passphrase: str | None = None
    ) -> None:
        with self.step("volume.create"):
            pathlib.Path(path).touch(exist_ok=False)
            self.files[path] = max(size, self.files.get(str(source), 0))
            if passphrase is not None:
                self.passphrases[path] = passphrase

    def _grow(self, path: str, form: str, size: int, passphrase: str | None = None) -> None:
        with self.step("volume.grow"):
            assert self.passphrases.get(path) == passphrase
            self.files[path] = size

    def _remove(self, path: str) -> None:
        with self.step("volume.remove"):
            pathlib.Path(path).unlink(missing_ok=True)
            self.files.pop(path, None)

    # What libvirt answers

    def getLibVersion(self) -> int:
        return 9000000

    def getInfo(self) -> list[t.Any]:
        return ["x86_64", 65536, 8, 1, 1, 1, 8, 1]

    def getMemoryStats(self, cell: int) -> dict[str, int]:
        return {"total": 64 * GIB // 1024, "free": self.available // 1024, "buffers": 0, "cached": 0}

    def getDomainCapabilities(self, emulator: t.Any, arch: str, machine: str, kind: str) -> str:
        if kind == "kvm":
            raise LibvirtError("no KVM")
        return _CAPABILITIES

    def lookupByName(self, name: str) -> Domain:
        for found in self.domains:
            if found.name() == name:
                return found
        raise LibvirtError("no domain", 42)

    def lookupByUUIDString(self, uuid: str) -> Domain:
        for found in self.domains:
            if found.UUIDString() == uuid:
                return found
        raise LibvirtError("no domain", 42)

    def secretLookupByUUIDString(self, uuid: str) -> Secret:
        if uuid not in self.secrets:
            raise LibvirtError("no secret", 66)
        return self.secrets[uuid]

    def secretLookupByUsage(self, kind: int, usage: str) -> Secret:
        for found in self.secrets.values():
            if f"<volume>{usage}</volume>" in found.text:
                return found
        raise LibvirtError("no secret", 66)

    def secretDefineXML(self, text: str) -> Secret:
        with self.step("defineSecret"):
            uuid = str(xml.parse(text).findtext("uuid"))
            found = self.secrets.setdefault(uuid, Secret(self, uuid))
            found.text = text
            return found

    def listAllDomains(self, flags: int = 0) -> list[Domain]:
        return list(self.domains)

    def defineXMLFlags(self, text: str, flags: int) -> Domain:
        with self.step("define"):
            root = xml.parse(text)
            if root.find("devices/emulator") is None:
                root.find("devices").insert(0, xml.element("emulator", "/usr/bin/qemu-system-x86_64"))
            _fill(root)
            found = next((each for each in self.domains if each.name() == root.findtext("name")), None)
            if found is None:
                found = Domain(self, root)
                self.domains.append(found)
            found.config = root
            return found

    def domainEventRegisterAny(self, found: t.Any, event: int, heard: t.Any, answer: t.Any) -> int:
        handle = len(self.handles) + 1
        self.handles[handle] = (event, heard, answer)
        return handle

    def domainEventDeregisterAny(self, handle: int) -> None:
        del self.handles[handle]

    def storagePoolLookupByTargetPath(self, path: str) -> t.Any:
        raise LibvirtError("no pool", 49)

    def storagePoolLookupByName(self, name: str) -> t.Any:
        if name != "images":
            raise LibvirtError("no pool", 49)
        return self

    def networkLookupByName(self, name: str) -> t.Any:
        if name not in ("default", "other"):
            raise LibvirtError("no network", 43)
        return self

    # The one pool, and all networks

    def storageVolLookupByName(self, name: str) -> t.Any:
        return types.SimpleNamespace(path=lambda: str(self.folder / name))

    def isActive(self) -> bool:
        return True

    def XMLDesc(self, flags: int = 0) -> str:
        return f"<pool type='dir'><name>images</name><target><path>{self.folder}</path></target></pool>"
