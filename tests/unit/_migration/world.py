# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hosts whose libvirt is played on directories: enough for a cold move that is cut off before any of its steps.

The files of alpha are where they are; those of beta have the same paths below a directory of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import types
import typing as t

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._guest import storage

FENCE = pathlib.Path(__file__).resolve().parents[3] / "roles/hypervisor/files/fence.py"
HOOK = "/etc/libvirt/hooks/qemu.d/phyllome-fence"
UUID = "11111111-1111-4111-8111-111111111111"


class Killed(BaseException):
    """The run dies here."""


class Error(Exception):
    """As libvirt's."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self._code = code

    def get_error_code(self) -> int:
        return self._code

    def get_error_message(self) -> str:
        return str(self)


class Lib(types.ModuleType):
    """Every constant has a value of its own."""

    libvirtError = Error

    def __init__(self) -> None:
        super().__init__("libvirt")
        self._known: dict[str, int] = {
            "VIR_DOMAIN_RUNNING": 1, "VIR_DOMAIN_BLOCKED": 2, "VIR_DOMAIN_PAUSED": 3, "VIR_DOMAIN_SHUTOFF": 5,
            "VIR_DOMAIN_CRASHED": 6, "VIR_DOMAIN_AFFECT_CONFIG": 2, "VIR_DOMAIN_AFFECT_LIVE": 1,
            "VIR_DOMAIN_AFFECT_CURRENT": 0, "VIR_DOMAIN_PAUSED_USER": 1, "VIR_CPU_COMPARE_INCOMPATIBLE": 0,
        }  # fmt: skip

    def __getattr__(self, name: str) -> int:
        if not name.startswith("VIR_"):
            raise AttributeError(name)
        return self._known.setdefault(name, 1 << (len(self._known) + 8))


class World:
    """Both hosts, and the step before which the run dies."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.lib = Lib()
        self.images, self.beta = folder / "images", folder / "beta"
        self.images.mkdir()
        (self.beta / str(self.images)[1:]).mkdir(parents=True)
        self.shared = folder / "shared"
        """The same on both hosts, unless it is mounted at alpha alone."""
        self.shared.mkdir()
        self.mounted = {"alpha", "beta"}
        self.nvram, self.snapshots, self.swtpm = folder / "nvram", folder / "snapshots", folder / "swtpm"
        (self.beta / str(self.nvram)[1:]).mkdir()
        self.hook = self.beta / HOOK[1:]
        self.hook.parent.mkdir(parents=True)
        self.hook.touch(0o755)
        self.hosts = {name: Host(self, name) for name in ("alpha", "beta")}
        self.last: int | None = None
        self.steps = 0
        self.meanwhile: t.Callable[[], None] = lambda: None
        spec = importlib.util.spec_from_file_location("fence", FENCE)
        assert spec is not None and spec.loader is not None
        self.fence: t.Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.fence)
        vars(self.fence)["ETC"] = str(folder / "etc")

    def step(self) -> None:
        """Something is about to be written."""
        if self.steps == self.last:
            raise Killed
        self.steps += 1
        self.meanwhile()

    @contextlib.contextmanager
    def session(self, uri: str, *dummy: t.Any, **options: t.Any) -> t.Iterator[Host]:
        yield self.hosts["beta" if "beta" in uri else "alpha"]


class Host:
    """A connection to one of them."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.domains: dict[str, Domain] = {}
        self.full: int | None = None
        self.streams = 0
        self.boot: str | None = "first"
        self.behind = 0
        """Bytes that its file system, as XFS, keeps behind the end of a file that grew, until it is cut there."""
        self.ends: dict[pathlib.Path, set[int]] = {}
        self.ahead = 0.0

    def path(self, path: str) -> pathlib.Path:
        """Where a file of this host really is."""
        shared = os.path.dirname(path) == str(self.world.shared) or path == str(self.world.shared)
        if self.name == "alpha" or (shared and self.name in self.world.mounted):
            return pathlib.Path(path)
        return self.world.beta / path[1:]

    def named(self, path: str) -> str:
        """What this host calls a file."""
        return path if self.name == "alpha" else path.removeprefix(str(self.world.beta))

    def isAlive(self) -> int:
        return 1

    def close(self) -> None:
        pass

    def getInfo(self) -> list[int]:
        return [0, 0, 4]

    def getHostname(self) -> str:
        return self.name

    def getCapabilities(self) -> str:
        return f"<capabilities><host><uuid>{self.name}</uuid></host></capabilities>"

    def getMemoryStats(self, dummy: int) -> dict[str, int]:
        return {"free": 1024**3}

    def getDomainCapabilities(self, *dummy: t.Any) -> str:
        return "<domainCapabilities/>"

    def listAllDomains(self, flags: int = 0) -> list[Domain]:
        return list(self.domains.values())

    def lookupByName(self, name: str) -> Domain:
        return self._found(lambda domain: domain.name() == name)

    def lookupByUUIDString(self, uuid: str) -> Domain:
        return self._found(lambda domain: domain.UUIDString() == uuid)

    def _found(self, fits: t.Callable[[Domain], bool]) -> Domain:
        for domain in self.domains.values():
            if fits(domain):
                return domain
        raise Error(self.world.lib.VIR_ERR_NO_DOMAIN)

    def defineXML(self, text: str) -> Domain:
        self.world.step()
        root = xml.parse(text)
        known = self.domains.get(root.findtext("uuid", ""))
        if known is not None:
            known.root = root
            return known
        return self.domains.setdefault(root.findtext("uuid", ""), Domain(self, root))

    def newStream(self) -> Stream:
        self.streams += 1
        return Stream()

    def storagePoolLookupByTargetPath(self, path: str) -> Pool:
        known = path in (str(self.world.images), str(self.world.shared), str(self.world.nvram), os.path.dirname(HOOK))
        if known or (path.startswith((str(self.world.snapshots), str(self.world.swtpm))) and self.path(path).is_dir()):
            return Pool(self, path)
        raise Error(self.world.lib.VIR_ERR_NO_STORAGE_POOL)

    def storagePoolCreateXML(self, text: str) -> Pool:
        raise Error(self.world.lib.VIR_ERR_SYSTEM_ERROR, "there is no such folder")

    def storageVolLookupByPath(self, path: str) -> Volume:
        return Pool(self, os.path.dirname(path)).storageVolLookupByName(os.path.basename(path))


class Domain:
    """A guest that is defined."""

    def __init__(self, host: Host, root: t.Any) -> None:
        self.host, self.root = host, root
        self.running, self.starts, self.snapshots = False, 0, list[str]()
        self.paused, self.lost = False, t.cast("int | None", None)

    def name(self) -> str:
        return t.cast("str", self.root.findtext("name"))

    def UUIDString(self) -> str:
        return t.cast("str", self.root.findtext("uuid"))

    def isActive(self) -> int:
        return int(self.running or self.paused)

    def isPersistent(self) -> int:
        return 1

    def state(self) -> list[int]:
        """The reason is `lost` where that is set: why it stands still."""
        return [1, 1] if self.running else [3, self.lost or 1] if self.paused else [5, 1]

    def autostart(self) -> int:
        return self.starts

    def setAutostart(self, value: int) -> None:
        self.host.world.step()
        self.starts = value

    def metadata(self, dummy: int, namespace: str, flags: int) -> str:
        found = self.root.find(f"metadata/{{{namespace}}}migration")
        if found is None:
            raise Error(self.host.world.lib.VIR_ERR_NO_DOMAIN_METADATA)
        return xml.dump(found)

    def setMetadata(self, dummy: int, text: str | None, key: str, namespace: str, flags: int) -> None:
        self.host.world.step()
        if flags == self.host.world.lib.VIR_DOMAIN_AFFECT_LIVE:
            return
        xml.drop(self.root, f"metadata/{{{namespace}}}migration")
        if text:
            made = xml.child(xml.ensure(self.root, "metadata"), f"{{{namespace}}}migration")
            for name, value in xml.parse(text).attrib.items():
                made.set(str(name), str(value))

    def XMLDesc(self, flags: int = 0) -> str:
        return xml.dump(self.root)

    def jobStats(self) -> dict[str, int]:
        return {}

    def blockInfo(self, target: str) -> list[int]:
        path = self.root.find(f"devices/disk/target[@dev='{target}']/../source").get("file")
        return [os.stat(path).st_size, 0, 0]

    def blockJobInfo(self, dummy: str) -> dict[str, int]:
        return {}

    def snapshotNum(self) -> int:
        return len(self.snapshots)

    def listAllSnapshots(self, flags: int = 0) -> list[Snapshot]:
        return [Snapshot(name) for name in self.snapshots]

    def listAllCheckpoints(self, flags: int = 0) -> list[t.Any]:
        return []

    def snapshotCreateXML(self, text: str, dummy: int) -> None:
        self.host.world.step()
        self.snapshots.append(xml.parse(text).findtext("name", ""))

    def hasManagedSaveImage(self) -> int:
        return 0

    def refused(self) -> str | None:
        """What the hook says when somebody wants to start it."""
        fence = self.host.world.fence
        place = fence.place

        def placed(files: dict[str, str], *ops: str) -> None:
            self.host.world.step()
            real = self.host.path
            place({str(real(path)): str(real(staged)) for path, staged in files.items()}, *ops)

        fence.place, fence.SNAPSHOTS = placed, str(self.host.path(str(self.host.world.snapshots)))
        try:
            return t.cast("str | None", fence.refusal(self.name(), self.XMLDesc().encode()))
        except ValueError as exc:
            return str(exc)
        finally:
            fence.place = place

    def startable(self) -> bool:
        """Whether it could be started here, and has its disks."""
        world, last = self.host.world, self.host.world.last
        world.last = None
        try:
            disks = [self.host.path(one.get("file")) for one in self.root.findall("devices/disk/source[@file]")
                     if one.get("startupPolicy") != "optional"]  # fmt: skip
            return self.refused() is None and all(path.exists() for path in disks)
        finally:
            world.last = last

    def createWithFlags(self, flags: int) -> None:
        self.host.world.step()
        refused = self.refused()
        if refused:
            raise Error(1, f"Hook script execution failed: {refused}")
        self.running = True

    def create(self) -> None:
        self.createWithFlags(0)

    def shutdownFlags(self, dummy: int) -> None:
        assert self.refused(), "whoever starts it again now is not refused"
        self.running = False

    def suspend(self) -> None:
        self.host.world.step()
        self.running, self.paused = False, True

    def resume(self) -> None:
        self.host.world.step()
        self.running, self.paused = True, False

    def destroy(self) -> None:
        self.host.world.step()
        self.running, self.paused, self.lost = False, False, None

    def undefineFlags(self, dummy: int) -> None:
        self.host.world.step()
        del self.host.domains[self.UUIDString()]


class Snapshot:
    def __init__(self, name: str) -> None:
        self._name = name

    def getName(self) -> str:
        return self._name

    def isCurrent(self) -> int:
        return 1

    def getXMLDesc(self, flags: int = 0) -> str:
        return f"<domainsnapshot><name>{self._name}</name></domainsnapshot>"


class Pool:
    """A directory."""

    def __init__(self, host: Host, path: str) -> None:
        self.host, self.folder = host, host.path(path)

    def name(self) -> str:
        return "images"

    def refresh(self) -> None:
        pass

    def isActive(self) -> int:
        return 1

    def info(self) -> list[int]:
        return [0, 0, 0, 1024**4]

    def listVolumes(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def listAllVolumes(self) -> list[Volume]:
        return [Volume(self.host, self.folder / name) for name in self.listVolumes()]

    def storageVolLookupByName(self, name: str) -> Volume:
        if name not in self.listVolumes():
            raise Error(self.host.world.lib.VIR_ERR_NO_STORAGE_VOL)
        return Volume(self.host, self.folder / name)

    def createXML(self, text: str) -> Volume:
        self.host.world.step()
        root = xml.parse(text)
        path = self.folder / root.findtext("name", "")
        self.host.ends.pop(path, None)
        with path.open("xb") as file:
            file.truncate(int(root.findtext("capacity", "")))
        return Volume(self.host, path)


class Volume:
    """A file in it."""

    def __init__(self, host: Host, path: pathlib.Path) -> None:
        self.host, self.path = host, path

    def name(self) -> str:
        return self.path.name

    def delete(self) -> None:
        self.host.world.step()
        if self.path.is_dir():
            self.path.rmdir()
        else:
            self.path.unlink()

    def info(self) -> list[int]:
        status = self.path.stat()
        return [
            self.host.world.lib.VIR_STORAGE_VOL_DIR if self.path.is_dir() else 0,
            status.st_size,
            status.st_blocks * 512 + self.host.behind * len(self.host.ends.get(self.path, ())),
        ]

    def XMLDesc(self) -> str:
        changed = self.path.stat().st_mtime_ns + int(self.host.ahead * 10**9)
        stamps = f"<timestamps><mtime>{changed // 10**9}.{changed % 10**9:09}</mtime></timestamps>"
        stamps += f"<permissions><mode>{self.path.stat().st_mode & 0o7777:04o}</mode></permissions>"
        base = storage.backing(str(self.path)) or ""
        if base:
            base = self.host.named(base)
            kind = "qcow2" if self.host.path(base).read_bytes()[:4] == b"QFI\xfb" else "raw"
            base = f"<backingStore><path>{base}</path><format type='{kind}'/></backingStore>"
        return f"<volume><physical>{self.path.stat().st_size}</physical><target>{stamps}</target>{base}</volume>"

    def infoFlags(self, dummy: int) -> list[int]:
        return [0, 0, self.path.stat().st_size]

    def upload(self, stream: Stream, offset: int, length: int, flags: int) -> None:
        self.host.world.step()
        stream.volume, stream.at, stream.writes = self, offset, True

    def download(self, stream: Stream, offset: int, length: int, flags: int = 0) -> None:
        stream.volume, stream.at, stream.length = self, offset, length


class Stream:
    volume: Volume
    at = length = 0
    writes = False

    def send(self, data: bytes) -> int:
        host = self.volume.host
        if host.full is not None and self.at + len(data) > host.full:
            raise Error(38, "No space left on device")
        ends, size = host.ends.setdefault(self.volume.path, set()), self.volume.path.stat().st_size
        if self.at + len(data) > size:
            ends.discard(size)
            ends.add(self.at + len(data))
        with self.volume.path.open("r+b") as file:
            file.seek(self.at)
            file.write(data)
        self.at += len(data)
        return len(data)

    def sendHole(self, length: int) -> None:
        self.at += length
        ends = self.volume.host.ends.setdefault(self.volume.path, set())
        if self.at <= self.volume.path.stat().st_size:  # what was made longer by a hole stays in it
            ends -= {end for end in ends if end >= self.at}
        os.truncate(self.volume.path, self.at)

    def sparseRecvAll(self, fill: t.Any, skip: t.Any, opaque: t.Any) -> None:
        fill(self, self.volume.path.read_bytes()[self.at : self.at + self.length], opaque)

    def recvAll(self, take: t.Any, opaque: t.Any) -> None:
        data = self.volume.path.read_bytes()[self.at :]
        take(self, data[: self.length] if self.length else data, opaque)

    def finish(self) -> None:
        if self.writes:
            self.volume.host.world.step()

    def abort(self) -> None:
        pass
