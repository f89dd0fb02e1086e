# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All that a plan for a guest depends on besides the guest itself. Decides nothing.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import typing as t
import urllib.parse

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.names import guest_uuid
from . import build, domain, luks, passthrough, read_host, storage
from .admission import Promised
from .autostart import STARTER
from .identity import places, snapshot_folder
from .plan_power import DRI, VSOCK
from .read import linked
from .read_first import First, first_disk, look
from .read_host import Host, Pool
from .spec import Device, Wanted
from .tables import CDROMS, DISKS, DOMAIN, HOSTDEVS, KINDS, NETWORKS, TARGET

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .read import Guest


@dataclasses.dataclass(frozen=True)
class World:
    """All that a plan depends on besides the guest itself; None and a missing key mean that it was not looked at.

    Attributes:
        host: see Host; only where something new needs it.
        memory: bytes of the host.
        available: bytes of it that are left for this guest.
        namesake: uuid and name of another domain that has the guest's name or uuid.
        pools: by name; None for one that does not exist.
        networks: whether it is active, by name; None for one that does not exist.
        bridges: True, or None for one that does not exist, by name.
        paths: path of each declared disk's file, by id.
        exists: whether there is a file, by path.
        images: what is in a file, by path, or why it is no image.
        chains: files of a disk from its overlay down to its base, by path of the overlay.
        free: bytes that are left for this guest, by directory.
        systems: number of the file system of such a directory.
        users: names of other guests that use a file, by path.
        libvirt: its version, as virConnectGetLibVersion has it.
        first: what a first boot depends on.
        cpus: how many processors the host has.
        hugepages: how many are left for this guest, by their size in bytes.
        cgroups: whether libvirt has control groups for guests; it has none for those of an ordinary user.
        passthrough: what its host devices depend on.
        clones: names of guests whose disks are based on the guest's; only where it may be started.
        secrets: ``luks.NONE``, ``BEGUN`` or ``SET`` of the secrets of encrypted disks, by uuid.
        keepers: uuid of the secret that libvirt has for a disk's file, by path.
        opens: whether the declared passphrase opens a disk, by path.
        snapshots: folder of its snapshots, see vm_snapshot; only where it shall be absent and has one.
    """

    host: Host | None = None
    memory: int = 0
    available: int | None = None
    namesake: tuple[str, str] | None = None
    pools: t.Mapping[str, Pool | None] = dataclasses.field(default_factory=dict)
    networks: t.Mapping[str, bool | None] = dataclasses.field(default_factory=dict)
    bridges: t.Mapping[str, bool | None] = dataclasses.field(default_factory=dict)
    paths: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    exists: t.Mapping[str, bool] = dataclasses.field(default_factory=dict)
    images: t.Mapping[str, storage.Image | PhyllomeError] = dataclasses.field(default_factory=dict)
    chains: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    free: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    systems: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    users: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    libvirt: int = 0
    first: First = dataclasses.field(default_factory=First)
    cpus: int | None = None
    hugepages: t.Mapping[int, int] = dataclasses.field(default_factory=dict)
    cgroups: bool = True
    passthrough: passthrough.Devices = dataclasses.field(default_factory=passthrough.Devices)
    clones: tuple[str, ...] = ()
    secrets: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    keepers: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    opens: t.Mapping[str, bool] = dataclasses.field(default_factory=dict)
    snapshots: str | None = None


class Look:
    """One run's view of a host: what several guests ask for is read once.

    Args:
        connection: a ``libvirt.virConnect``.
        uri: that it was opened with.

    Raises:
        PhyllomeError: the URI names another host; files are read and made on this one.
    """

    def __init__(self, connection: t.Any, uri: str) -> None:
        parts = urllib.parse.urlsplit(uri)
        if parts.netloc or "+" in parts.scheme:
            raise PhyllomeError(
                f"uri: {uri!r} is on another host",
                "the guest's files are made where this module runs",
                "Run the task on that host, with a local URI such as qemu:///system.",
            )
        self.connection, self.uri = connection, uri
        self._session = parts.path == "/session"
        self._home = read_host.user_images() if self._session else None
        self.fleeting = self._session and os.getuid() != 0 and not read_host.lingers()
        """Whether guests end with the login of the user whose they are."""
        with virt.saying("Cannot ask libvirt about this host"):
            self._libvirt = connection.getLibVersion()
            info = connection.getInfo()
            self._memory, self._cpus = info[1] * 1024**2, info[2]
            self._available = read_host.available(connection)
        self._hugepages = read_host.hugepages()
        self._space: dict[int, int] = {}
        self.promised = Promised()
        self._host: Host | None = None
        self._pools: dict[str, Pool | None] = {}
        self._networks: dict[str, bool | None] = {}
        self._images: dict[str, storage.Image | PhyllomeError] = {}
        self._linked: dict[str, tuple[str, ...]] | None = None
        self._pci: passthrough.Pci | None = None
        self.declared: tuple[Wanted, ...] = ()
        """What is declared of guests that are to have devices of the host, all of one run."""
        self.foreseen: frozenset[str] = frozenset()
        """Addresses of devices that are taken for bound to VFIO."""
        self._open: dict[tuple[str, str], bool] = {}

    def lookup(self, wanted: Wanted) -> tuple[t.Any, tuple[str, str] | None]:
        """The wanted guest's domain or None, and uuid and name of a domain that stands in its way or None."""
        named = virt.found(lambda: self.connection.lookupByName(wanted.name))
        if wanted.uuid is not None and named is not None and named.UUIDString() != wanted.uuid:
            return None, (named.UUIDString(), wanted.name)
        if named is not None:
            return named, None
        uuid = wanted.uuid or guest_uuid(wanted.name)
        other = virt.found(lambda: self.connection.lookupByUUIDString(uuid))
        return None, None if other is None else (uuid, other.name())

    def world(self, wanted: Wanted, there: Guest | None, namesake: tuple[str, str] | None) -> World:
        """What a plan for this guest depends on.

        Raises:
            PhyllomeError: libvirt does not tell.
        """
        with virt.saying("Cannot ask libvirt about this host"):
            base = World(namesake=namesake, libvirt=self._libvirt, memory=self._memory, cpus=self._cpus)
            if wanted.state == "absent":
                if there is None:
                    return base
                folder = snapshot_folder(places(self.uri), there.uuid)
                kept = folder if os.path.isdir(folder) else None
                secrets = self._secrets(_volume_secrets(there))
                return dataclasses.replace(base, users=self._users(there), snapshots=kept, secrets=secrets)
            return self._around(wanted, there, base)

    def _around(self, wanted: Wanted, there: Guest | None, base: World) -> World:
        disks, cdroms, cards = (wanted.devices.get(kind.option, ()) for kind in (DISKS, CDROMS, NETWORKS))
        new = [disk for disk in disks if there is None or domain.device(DISKS, there.config, disk.id) is None]
        pools = {
            disk.pool or "images": self._pool(disk.pool or "images")
            for disk in new
            if not {"path", "block"} & set(disk.values)
        }
        paths = dict(_paths(wanted, there, pools))
        files = {*paths.values(), *(card.values["path"] for card in cdroms if card.values.get("path"))}
        files.update(disk.source.path for disk in disks if disk.source)
        files.update(_of_guest(there))
        files.update(_of_host(wanted), (VSOCK, DRI))
        host = self._hosts() if there is None or _needs_host(wanted, there) else None
        if there is None and host is not None:
            files.add(build.store(host, wanted.uuid or guest_uuid(wanted.name)))
        exists = {path: os.path.exists(path) for path in files}
        if wanted.autostart is not None and wanted.autostart.order is not None:
            exists[STARTER] = os.path.lexists(STARTER) and not self._session
        images = {
            path: self._image(path, None)
            for disk, path in ((disk, paths.get(disk.id)) for disk in disks)
            if path and exists[path] and _uncounted(there, disk)
        }
        for disk in disks:
            path = paths.get(disk.id)
            if disk.source and path and not exists[path] and exists[disk.source.path]:
                images[disk.source.path] = self._image(disk.source.path, disk.source.checksum)
        locked = [disk for disk in disks if disk.passphrase is not None and disk.id in paths]
        directories = {os.path.dirname(path) for path in paths.values()}
        directories = {each for each in directories if os.path.isdir(each) or each == self._home}
        taken = functools.partial(self.promised.others, wanted.name, "memory")
        return dataclasses.replace(
            base,
            host=host,
            pools=pools,
            networks={name: self._network(name) for name in _named(cards, there, "network")},
            bridges={name: read_host.bridge(name) for name in _named(cards, there, "bridge")},
            paths=paths,
            exists=exists,
            images=images,
            chains=dict(_chains(disks, there)),
            free={each: self.free(wanted.name, each) for each in directories},
            systems={each: storage.system(each) for each in directories},
            available=None if self._available is None else self._available - taken(0),
            first=self._first(wanted, there, paths),
            hugepages={size: free - -(-taken(size) // size) for size, free in self._hugepages.items()},
            cgroups=read_host.cgroups() and not self._session,
            passthrough=self._passthrough(wanted, there),
            clones=self._clones(wanted, there),
            secrets=self._secrets(_disk_secrets(wanted, there)),
            keepers=dict(self._keepers(paths[disk.id] for disk in locked)),
            opens=dict(self._opened(locked, there, paths, exists, images)),
        )

    def free(self, name: str, directory: str) -> int:
        """Bytes of a directory that are left for a guest of this name."""
        system, now = storage.system(directory), storage.free(directory)
        return min(now, self._space.setdefault(system, now) - self.promised.others(name, "space", system))

    def _clones(self, wanted: Wanted, there: Guest | None) -> tuple[str, ...]:
        """Linked clones of a guest that may be started now."""
        if there is None or there.state in ("running", "paused") or wanted.state not in ("running", "paused"):
            return ()
        if self._linked is None:
            self._linked = linked(self.connection)
        return self._linked.get(there.uuid, ())

    def _secrets(self, uuids: t.Iterable[str]) -> dict[str, str]:
        missing = virt.libvirt.VIR_ERR_NO_SECRET
        states = {}
        for uuid in uuids:
            found = virt.found(lambda: self.connection.secretLookupByUUIDString(uuid), missing)  # noqa: B023
            states[uuid] = luks.NONE if found is None else luks.state(found.XMLDesc())
        return states

    def _keepers(self, paths: t.Iterable[str]) -> t.Iterator[tuple[str, str]]:
        kind, missing = virt.libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, virt.libvirt.VIR_ERR_NO_SECRET
        for path in paths:
            found = virt.found(lambda: self.connection.secretLookupByUsage(kind, path), missing)  # noqa: B023
            if found is not None:
                yield path, found.UUIDString()

    def _opened(
        self,
        disks: t.Iterable[Device],
        there: Guest | None,
        paths: t.Mapping[str, str],
        exists: t.Mapping[str, bool],
        images: t.Mapping[str, storage.Image | PhyllomeError],
    ) -> t.Iterator[tuple[str, bool]]:
        """Only of disks that are there and encrypted: the others say that themselves."""
        for disk in disks:
            path, found = paths[disk.id], None if there is None else domain.device(DISKS, there.config, disk.id)
            image = images.get(path)
            known = found is not None and luks.encryption(found) is not None
            if not exists[path] or not (image.encrypted if isinstance(image, storage.Image) else known):
                continue
            if isinstance(image, storage.Image):
                form = image.format
            else:
                form = "raw" if found is None else DISKS.row("format").read(found)
            key = (path, str(disk.passphrase))
            if key not in self._open:
                self._open[key] = luks.opens(path, form, key[1])
            yield path, self._open[key]

    def _first(self, wanted: Wanted, there: Guest | None, paths: t.Mapping[str, str]) -> First:
        if wanted.cloud_init is None and wanted.install is None:
            return First()
        disk = first_disk(wanted, there, paths)
        pool = self._pool(next((disk.pool for disk in wanted.devices.get(DISKS.option, ()) if disk.pool), "images"))
        directory = pool.directory if pool is not None else None
        if directory is None and disk is not None and not disk.startswith("/dev/"):
            directory = os.path.dirname(disk)
        found = None if there is None else virt.found(lambda: self.connection.lookupByUUIDString(there.uuid))
        return look(found, wanted, there, directory, disk)

    def _pool(self, name: str) -> Pool | None:
        if name not in self._pools:
            found = virt.found(lambda: self.connection.storagePoolLookupByName(name))
            if found is not None:
                root = xml.parse(found.XMLDesc())
                path = xml.first(root, "target/path")
                directory = None if path is None else path.text
                self._pools[name] = Pool(root.get("type", ""), directory, bool(found.isActive()))
            elif self._home is not None and name == "images":
                # An ordinary user has no pools, and a place for images all the same.
                self._pools[name] = Pool("dir", self._home, True)
            else:
                self._pools[name] = None
        return self._pools[name]

    def _network(self, name: str) -> bool | None:
        if name not in self._networks:
            found = virt.found(lambda: self.connection.networkLookupByName(name))
            self._networks[name] = None if found is None else bool(found.isActive())
        return self._networks[name]

    def _image(self, path: str, checksum: str | None) -> storage.Image | PhyllomeError:
        key = f"{path} {checksum}"
        if key not in self._images:
            try:
                self._images[key] = storage.inspect(path, checksum)
            except PhyllomeError as exc:
                self._images[key] = exc
        return self._images[key]

    def forget_images(self) -> None:
        """Files have been made or have grown: look again."""
        self._images.clear()

    def forget_clones(self) -> None:
        """A clone has been made: look again."""
        self._linked = None

    def _hosts(self) -> Host:
        if self._host is None:
            self._host = read_host.host(self.connection, domain.store_directory(self._session))
        return self._host

    def _passthrough(self, wanted: Wanted, there: Guest | None) -> passthrough.Devices:
        declared = wanted.devices.get(HOSTDEVS.option, ())
        if self._pci is None and any("pci" in device.values for device in declared):
            self._pci = passthrough.read_pci()
        if declared:
            wanted = passthrough.placed(wanted, self._pci)
        others = [other for other in self.declared if other.name != wanted.name]
        found = passthrough.look(self.connection, wanted, there, self._pci, others, self._session)
        return dataclasses.replace(found, foreseen=self.foreseen)

    def _users(self, there: Guest) -> dict[str, tuple[str, ...]]:
        """Which other guests use the files that are ours."""
        ours = domain.marker(there.config)
        users: dict[str, tuple[str, ...]] = {volume.path: () for volume in (ours.volumes if ours else ())}
        if not users:
            return users
        real = {os.path.realpath(path): path for path in users}
        for other in self.connection.listAllDomains():
            if other.UUIDString() == there.uuid:
                continue
            roots = virt.found(lambda other=other: [*_roots(other)]) or ()  # type: ignore[misc]
            sources = {source for root in roots for source in self._sources(root)}
            below = {os.path.realpath(file) for path, form in sources for file in (path, *storage.chain(path, form))}
            for path in below & set(real):
                users[real[path]] += (other.name(),)
        return users

    def _sources(self, root: Element) -> t.Iterator[tuple[str, str | None]]:
        """Files that a definition names, directly or as volumes of pools, with the format that it gives them."""
        for found in root.iter("source", "memory", "nvram"):
            form = _form(found)
            if found.get("file"):
                yield found.get("file", ""), form
            pool, volume = found.get("pool"), found.get("volume")
            if pool and volume:
                known = virt.found(lambda: self.connection.storagePoolLookupByName(pool))  # noqa: B023
                known = known and virt.found(lambda: known.storageVolLookupByName(volume))  # noqa: B023
                if known is not None:
                    yield known.path(), form


def _form(source: Element) -> str | None:
    """The format of a disk, or of what is below it."""
    above = source.getparent()
    named = None if above is None else xml.first(above, "driver" if above.tag == "disk" else "format")
    return None if named is None else named.get("type")


def _roots(found: t.Any) -> t.Iterator[Element]:
    """All that libvirt knows of a guest: running, defined, and as it was at its snapshots."""
    for flags in (0, virt.libvirt.VIR_DOMAIN_XML_INACTIVE):
        yield xml.parse(found.XMLDesc(flags))
    for snapshot in found.listAllSnapshots():
        yield xml.parse(snapshot.getXMLDesc())


def _paths(wanted: Wanted, there: Guest | None, pools: t.Mapping[str, Pool | None]) -> t.Iterator[tuple[str, str]]:
    ours = None if there is None else domain.marker(there.config)
    for disk in wanted.devices.get(DISKS.option, ()):
        if "block" in disk.values:
            continue
        found = None if there is None else domain.device(DISKS, there.config, disk.id)
        kept = ours.volume(disk.id) if ours else None
        if found is not None:
            path = DISKS.row("path").read(found)
        elif "path" in disk.values:
            path = disk.values["path"]
        elif kept is not None:
            path = kept.path
        else:
            pool = pools[disk.pool or "images"]
            if pool is None or pool.directory is None:
                continue
            path = f"{pool.directory}/{wanted.name}-{disk.id}.{disk.values.get('format', 'qcow2')}"
        if path:
            yield disk.id, path


def _of_guest(there: Guest | None) -> t.Iterator[str]:
    """Files that the guest needs to start."""
    for kind in (DISKS, CDROMS):
        for found in [] if there is None else kind.elements(there.config):
            path = kind.row("path").read(found)
            if path:
                yield path


def _disk_secrets(wanted: Wanted, there: Guest | None) -> set[str]:
    """Secrets of encrypted disks that the guest has or will have."""
    uuid = wanted.uuid or guest_uuid(wanted.name) if there is None else there.uuid
    named = [] if there is None else [luks.secret_of(found) for found in DISKS.elements(there.config)]
    locked = [disk for disk in wanted.devices.get(DISKS.option, ()) if disk.passphrase is not None]
    return {*filter(None, named), *(luks.secret_uuid(uuid, disk.id) for disk in locked)}


def _volume_secrets(there: Guest) -> list[str]:
    """Secrets that the files that are ours have, if they are encrypted."""
    ours = domain.marker(there.config)
    return [luks.secret_uuid(there.uuid, volume.id) for volume in (ours.volumes if ours else ())]


def _of_host(wanted: Wanted) -> t.Iterator[str]:
    """Devices and directories of the host that are declared by their paths."""
    for option, name in (("disks", "block"), ("filesystems", "source"), ("inputs", "path"), ("networks", "direct")):
        for device in wanted.devices.get(option, ()):
            if name in device.values:
                yield f"/sys/class/net/{device.values[name]}" if name == "direct" else device.values[name]


def _uncounted(there: Guest | None, disk: Device) -> bool:
    """Whether libvirt has not told the disk's size already."""
    found = None if there is None else domain.device(DISKS, there.config, disk.id)
    return found is None or there is None or TARGET.read(found) not in there.blocks


def _needs_host(wanted: Wanted, there: Guest) -> bool:
    """Whether something is declared that the guest does not have yet, and that not every host offers."""
    fields = any(
        row.option in values and row.read(there.config) != values[row.option]
        for group, values in wanted.fields.items()
        for row in DOMAIN[group]
        if row.offered or group in ("", "vcpus", "graphics", "firmware")
    )
    return fields or any(
        row.option in device.values and (found is None or row.read(found) != device.values[row.option])
        for kind in KINDS
        for device in wanted.devices.get(kind.option, ())
        for found in (domain.device(kind, there.config, device.id),)
        for row in kind.rows
        if row.offered
    )


def _named(cards: t.Iterable[Device], there: Guest | None, option: str) -> set[str]:
    declared = {card.values[option] for card in cards if option in card.values}
    present = (
        set() if there is None else {NETWORKS.row(option).read(found) for found in NETWORKS.elements(there.config)}
    )
    return {name for name in declared | present if name}


def _chains(disks: t.Iterable[Device], there: Guest | None) -> t.Iterator[tuple[str, tuple[str, ...]]]:
    """Only where a declared path is not what the definition has: an external snapshot may stand in between."""
    for disk in disks:
        found = None if there is None else domain.device(DISKS, there.config, disk.id)
        path = None if found is None else DISKS.row("path").read(found)
        if found is not None and path and disk.values.get("path", path) != path:
            yield path, (path, *storage.chain(path, DISKS.row("format").read(found)))
