# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what is there and what is wanted to what has to be done, or to all reasons why it cannot be. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.fields import Difference, Field, compare
from .._core.names import guest_uuid
from .._core.plan import Change, Plan, When
from .._core.units import format_size
from . import build, domain, storage
from .domain import Marker, Volume
from .profiles import PROFILES
from .tables import ALIAS, BOOT, CDROMS, DISKS, DOMAIN, KINDS, NETWORKS, TARGET, DeviceKind, device_id

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .read import Guest, World
    from .spec import Device, Wanted

_DIRECTORY_POOLS = ("dir", "fs", "netfs")

_POWER: dict[tuple[str, str], tuple[str, ...]] = {
    # what it is, what is wanted: what to do
    ("stopped", "running"): ("start",),
    ("paused", "running"): ("resume",),
    ("suspended", "running"): ("wakeup",),
    ("crashed", "running"): ("destroy", "start"),
    ("stopped", "paused"): ("start_paused",),
    ("running", "paused"): ("suspend",),
    ("suspended", "paused"): ("wakeup", "suspend"),
    ("crashed", "paused"): ("destroy", "start_paused"),
    ("running", "stopped"): ("shutdown",),
    ("stopping", "stopped"): ("shutdown",),
    ("paused", "stopped"): ("resume", "shutdown"),
    ("suspended", "stopped"): ("wakeup", "shutdown"),
    ("crashed", "stopped"): ("destroy",),
}
"""A crashed guest is dead already: ``destroy`` only clears it away. Nothing else here kills a guest."""

POWER_RESULT = {
    "start": "running",
    "resume": "running",
    "wakeup": "running",
    "start_paused": "paused",
    "suspend": "paused",
    "shutdown": "stopped",
    "destroy": "stopped",
}
"""What each step leads to."""

_UNDEFINE = {
    "managed_save": 1,
    "snapshots_metadata": 2,
    "nvram": 4,
    "keep_nvram": 8,
    "checkpoints_metadata": 16,
    "tpm": 32,
    "keep_tpm": 64,
}
"""virDomainUndefineFlagsValues; the last two since libvirt 8.9.0."""

_TPM_FLAGS_SINCE = 8009000


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """What a run will do.

    Attributes:
        plan: ordered changes.
        config: the definition to write where the plan has changes of action ``config``.
        marker: our marker in that definition.
        pending: what will still wait for a power cycle afterwards.
        warnings: for people.
    """

    plan: Plan
    config: Element | None = None
    marker: Marker | None = None
    pending: t.Sequence[dict[str, t.Any]] = ()
    warnings: t.Sequence[str] = ()


def decide(wanted: Wanted, there: Guest | None, world: World) -> Decision:
    """The plan for one guest.

    Args:
        wanted: what is declared.
        there: what is there; None when the guest does not exist.
        world: what it depends on.

    Raises:
        PhyllomeError: it cannot be done; all reasons at once, as far as they can be known.
    """
    _guard(wanted, there, world)
    if wanted.state == "absent":
        return _removal(wanted, there, world)
    draft = _Draft(wanted, there, world)
    draft.fields()
    for kind in KINDS:
        draft.devices(kind)
    draft.disks()
    draft.own()
    draft.autostart()
    draft.power()
    draft.boot_orders()
    return draft.decision()


def _guard(wanted: Wanted, there: Guest | None, world: World) -> None:
    if world.namesake is not None:
        uuid, name = world.namesake
        if name == wanted.name:
            raise PhyllomeError(
                f"Guest {name}: another guest of this name has uuid {uuid}",
                f"{wanted.uuid} is declared, and a uuid is never changed",
                "Rename one of the two, or declare the uuid that is there.",
            )
        raise PhyllomeError(
            f"Guest {wanted.name}: its uuid {uuid} belongs to guest {name} already",
            "guests are not renamed, and no two have the same uuid",
            f"Rename {name} back with virsh domrename, or declare another uuid.",
        )
    if there is None:
        return
    if (
        there.migrating
        or there.reason == "migration"
        or there.reason.startswith("postcopy")
        or domain.moving(there.config)
        or (there.live is not None and domain.moving(there.live))
    ):
        mark = domain.migration(there.config) or {}
        raise PhyllomeError(
            f"Guest {there.name} is being moved to another host",
            f"state {there.state} ({there.reason}), move {mark.get('op_id', 'not ours')}, phase {mark.get('phase', '?')}",
            "Let vm_migrate finish: run the playbook that moves it again.",
        )
    if not there.persistent:
        raise PhyllomeError(
            f"Guest {there.name} is transient",
            "libvirt has no definition of it and forgets it when it stops",
            "Stop it, and declare it again; or define it from its XML first.",
        )
    ours = domain.marker(there.config)
    if ours and ours.profile and wanted.profile and ours.profile != wanted.profile:
        raise PhyllomeError(
            f"profile: {wanted.profile} is declared, guest {there.name} was made from {ours.profile}",
            "a profile only says what a new guest gets",
            f"Declare profile {ours.profile} and the single settings that shall differ.",
        )


class _Draft:
    """The definition being edited, and what was noted on the way."""

    def __init__(self, wanted: Wanted, there: Guest | None, world: World) -> None:
        self.wanted, self.there, self.world = wanted, there, world
        self.problems: list[PhyllomeError] = []
        self.changes: list[Change] = []
        self.warnings: list[str] = []
        self.ours = None if there is None else domain.marker(there.config)
        self.adopting = there is not None and self.ours is None
        named = (self.ours.profile if self.ours else None) or wanted.profile or "linux"
        self.profile = PROFILES[named]
        self.marker = self.ours or Marker(profile=None if there is not None else named)
        self.live = None if there is None else copy.deepcopy(there.live)
        self.uuid = wanted.uuid or guest_uuid(wanted.name) if there is None else there.uuid
        self.values = {group: dict(values) for group, values in wanted.fields.items()}
        if there is None:
            self.root = self._new(named)
        else:
            self.root = copy.deepcopy(there.config)
        self.added: set[tuple[str, str]] = set()

    def note(self, action: str, path: str, before: t.Any, after: t.Any, when: When = "live", **args: t.Any) -> None:
        why = args.pop("why", "")
        self.changes.append(Change(action, path, before, after, when, why, args))

    def problem(self, what: str, why: str, remedy: str) -> None:
        self.problems.append(PhyllomeError(what, why, remedy))

    def _when(self, row: Field | None = None) -> When:
        """A guest that is off takes every change at once."""
        if self.live is None:
            return "live"
        return "next_boot" if row is None else row.when

    # A new guest

    def _new(self, profile: str) -> Element:
        host = self.world.host
        if host is None:  # not looked at: a mistake of ours, said in our own way
            raise PhyllomeError("This host was not looked at", "a new guest needs it", "Report this as a bug.")
        for group, values in self.profile.fields.items():
            self.values[group] = {**values, **self.wanted.fields.get(group, {})}
        firmware = self.values["firmware"]
        if firmware["type"] == "bios":
            self.values["firmware"] = {"type": "bios"}
        elif firmware.get("secure_boot"):
            firmware.setdefault("enrolled_keys", True)
        else:
            firmware.pop("enrolled_keys", None)
        declared = [device for devices in self.wanted.devices.values() for device in devices]
        root = build.guest(
            name=self.wanted.name,
            uuid=self.uuid,
            profile=self.profile,
            host=host,
            vcpus=self.values[""]["vcpus"],
            display=self.values["graphics"]["type"] != "none",
            ports=build.ports(declared, self.profile),
        )
        if firmware["type"] == "uefi":
            build.firmware(root, self.uuid, host, bool(firmware.get("secure_boot")))
            store = build.store(host, self.uuid)
            if self.world.exists.get(store):
                self.warnings.append(
                    f"Guest {self.wanted.name} continues with the UEFI variables and keys that an earlier guest with its "
                    f"uuid has left in {store}. For fresh ones remove the guest, then the file."
                )
        self.note("config", "uuid", None, self.uuid)
        self.note("config", "profile", None, profile)
        if host.type == "qemu":
            self.warnings.append(
                f"Guest {self.wanted.name} is emulated, which is slow: this host offers no KVM. "
                "Switch virtualisation on in its firmware and load kvm_intel or kvm_amd."
            )
        return root

    # Fields of the guest itself

    def fields(self) -> None:
        for group, rows in DOMAIN.items():
            for difference in compare(rows, self.root, self.values.get(group, {})):
                self._field(group, difference)
        memory = self.values.get("", {}).get("memory")
        if memory is not None and memory > self.world.memory:
            self.problem(
                f"memory: {format_size(memory)} is more than this host has",
                f"it has {self.world.memory // 1024**2}MiB",
                "Declare less, or put the guest elsewhere.",
            )

    def _field(self, group: str, difference: Difference) -> None:
        row, path = difference.row, f"{group}.{difference.row.option}" if group else difference.row.option
        before, after = difference.shown
        self._offered(path, difference.after)
        if self.there is not None and row.when == "refused":
            self.note("refused", path, before, after, "refused")
            self.problem(
                f"{path}: {after} is declared, the guest has {before}",
                "this is settled when a guest is made, and part of what its disks were installed with",
                f"Declare {before}, or make another guest.",
            )
            return
        try:
            row.write(self.root, difference.after)
        except PhyllomeError as exc:
            self.problems.append(exc)
            return
        self.note("config", path, before if self.there is not None else None, after, self._when(row))

    def _offered(self, path: str, value: t.Any) -> None:
        host = self.world.host
        if host is None:
            return
        install = "The role phyllome.virt.hypervisor installs what is missing."
        if path == "firmware.type" and value == "uefi" and not host.uefi:
            self.problem("firmware.type: uefi", "this host has no UEFI firmware for guests (OVMF)", install)
        elif path == "firmware.secure_boot" and value and not host.secure_boot:
            self.problem("firmware.secure_boot: true", "this host's UEFI firmware has no Secure Boot", install)
        elif path == "tpm.model" and value not in ("none", *host.tpm):
            self.problem(f"tpm.model: {value}", "this host cannot emulate it (swtpm)", install)
        elif path == "graphics.type" and value not in ("none", *host.graphics):
            offered = ", ".join(sorted(host.graphics & {"vnc", "spice"})) or "none"
            self.problem(f"graphics.type: {value}", f"this host's QEMU offers {offered}", "Choose one of these.")

    # Devices

    def devices(self, kind: DeviceKind) -> None:
        declared = self.wanted.devices.get(kind.option)
        if declared is None:
            return
        boots = self._default_boots()
        for device in declared:
            found = domain.device(kind, self.root, device.id)
            if found is None and self.adopting:
                known = len(self.problems)
                found = self._recognise(kind, device)
                if len(self.problems) > known:
                    continue
            if found is None:
                self._add(kind, device, boots.get(device.id))
            else:
                self._edit(kind, device, found)
        if self.wanted.prune:
            self._prune(kind, {device.id for device in declared})

    def _default_boots(self) -> dict[str, int]:
        """A new guest boots from its disks, then from its CD-ROMs: an empty disk leads to the installer."""
        if self.there is not None:
            return {}
        listed = [device for devices in self.wanted.devices.values() for device in devices]
        if any("boot" in device.values for device in listed):
            return {}
        order = [device.id for kind in (DISKS, CDROMS) for device in listed if device.kind is kind]
        return {device: number for number, device in enumerate(order, 1)}

    def _recognise(self, kind: DeviceKind, device: Device) -> Element | None:
        """The device of an adopted guest that is meant: the only one that is alike."""
        strangers = [found for found in kind.elements(self.root) if device_id(found) is None]
        for option in kind.likeness:
            alike = [found for found in strangers if kind.row(option).read(found) == device.values.get(option, found)]
            if len(alike) == 1:
                found = alike[0]
                found.append(_alias(device.id))
                self._own_device(device)
                self.note("config", f"{device.path}.id", None, device.id, self._when())
                return found
        if strangers:
            self.problem(
                f"{device.path}: which of the guest's {kind.option} is meant is not clear",
                f"it has {', '.join(domain.summary(kind, found) for found in strangers)} without an id",
                f"Say it by {' or '.join(kind.likeness)}.",
            )
        return None

    def _own_device(self, device: Device) -> None:
        self.added.add((device.kind.option, device.id))
        if device.id not in self.marker.devices:
            self.marker = dataclasses.replace(self.marker, devices=(*self.marker.devices, device.id))

    def _add(self, kind: DeviceKind, device: Device, boot: int | None) -> None:
        for other in KINDS:
            if domain.device(other, self.root, device.id) is not None:
                self.problem(
                    f"{device.path}: the id is taken by one of the guest's {other.option}",
                    "each device of a guest has its own id, whatever its kind",
                    "Choose another id.",
                )
                return
        made, values = build.device(device, self.profile, self.uuid)
        if boot is not None:
            values.setdefault("boot", boot)
        if kind is DISKS:
            values = self._disk_values(device, values)
        if kind is NETWORKS and not ({"network", "bridge"} & set(values)):
            self.problem(
                f"{device.path}: it is connected to nothing", "network or bridge is needed", "Say network: default."
            )
            return
        _insert(self.root, kind, made)
        for row in kind.rows:
            if row.option in values:
                row.write(made, values[row.option])
                self.note("config", f"{device.path}.{row.option}", None, values[row.option], self._when())
        if values.get("bus") == "scsi":
            build.scsi_controller(self.root)
        self._own_device(device)
        self._connected(device.path, made)

    def _disk_values(self, device: Device, values: dict[str, t.Any]) -> dict[str, t.Any]:
        path = self.world.paths.get(device.id)
        if path is None:
            return values
        image = self.world.images.get(path)
        if isinstance(image, storage.Image) and "format" not in device.values:
            values = {**values, "format": image.format}
        return {**values, "path": path}

    def _edit(self, kind: DeviceKind, device: Device, found: Element) -> None:
        running = None if self.live is None else self._running(kind, found)
        for row in kind.rows:
            if row.option not in device.values:
                continue
            value, before, path = device.values[row.option], row.read(found), f"{device.path}.{row.option}"
            if row.option == "path" and kind is DISKS and value in self.world.chains.get(str(before), ()):
                continue  # the base of an external snapshot is what was declared
            live = None
            if running is not None and row.when == "live" and row.read(running) != value:
                live = (row.read(running), running)
                row.write(running, value)
            if before == value:
                if live:
                    self.note("live", path, live[0], value, device=live[1])
            elif row.when == "refused":
                self.note("refused", path, before, value, "refused")
                self.problem(
                    f"{path}: {value} is declared, the guest has {before}",
                    "a disk's file is not moved or converted by declaring another",
                    f"Declare {before}, or add a disk with an id of its own.",
                )
            else:
                row.write(found, value)
                self.note("config", path, before, value, self._when(row), **({"device": live[1]} if live else {}))
                if row.option == "bus" and value == "scsi":
                    build.scsi_controller(self.root)
        self._connected(device.path, found)

    def _running(self, kind: DeviceKind, found: Element) -> Element | None:
        if self.live is None:
            return None
        pairs = domain.matched(kind, self.live, self.root)
        return next((running for running, defined in pairs if defined is found), None)

    def _prune(self, kind: DeviceKind, declared: set[str]) -> None:
        for name in self.marker.devices:
            found = None if name in declared else domain.device(kind, self.root, name)
            if found is None:
                continue
            if kind is DISKS and self._protected():
                self.problem(
                    f"disks.{name}: it is no longer declared, and the guest is protected",
                    "a protected guest loses no disk",
                    "Declare the disk, or say protected: false.",
                )
                continue
            self.note("config", f"{kind.option}.{name}", domain.summary(kind, found), None, self._when())
            found.getparent().remove(found)  # type: ignore[union-attr]
            self.marker = dataclasses.replace(
                self.marker, devices=tuple(device for device in self.marker.devices if device != name)
            )

    def _protected(self) -> bool:
        return self.marker.protected if self.wanted.protected is None else self.wanted.protected

    def _connected(self, path: str, found: Element) -> None:
        for option, known, remedy in (
            ("network", self.world.networks, "Make it with phyllome_network."),
            ("bridge", self.world.bridges, "Make the bridge on the host first."),
        ):
            name = NETWORKS.row(option).read(found) if found.tag == NETWORKS.tag else None
            if name and name in known and known[name] is None:
                self.problem(f"{path}.{option}: {name}", f"this host has no such {option}", remedy)

    # Files of disks

    def disks(self) -> None:
        room: dict[str, int] = {}
        for disk in self.wanted.devices.get(DISKS.option, ()):
            found = domain.device(DISKS, self.root, disk.id)
            path = self.world.paths.get(disk.id)
            if found is None:
                continue  # said already
            if path is None:
                self._pool(disk)
                continue
            if self.world.exists.get(path):
                self._there(disk, found, path)
            else:
                self._missing(disk, found, path, room)
        for directory, bytes_needed in room.items():
            if bytes_needed > self.world.free.get(directory, bytes_needed):
                self.problem(
                    f"disks: {format_size(-(-bytes_needed // 1024**2) * 1024**2)} are needed in {directory}",
                    f"{self.world.free[directory] // 1024**2}MiB are free there",
                    "Make room, or choose another pool.",
                )

    def _pool(self, disk: Device) -> None:
        name = disk.pool or "images"
        pool = self.world.pools.get(name)
        if pool is None:
            self.problem(
                f"{disk.path}.pool: {name}",
                "this host has no such storage pool",
                "Make it with phyllome_pool, or give path.",
            )
        else:
            self.problem(f"{disk.path}.pool: {name}", "it has no directory", "Choose a pool of type dir.")

    def _new_disk(self, disk: Device) -> bool:
        return (
            (DISKS.option, disk.id) in self.added
            and (self.there is None or domain.device(DISKS, self.there.config, disk.id) is None)
            and not self._recognised(disk)
        )

    def _recognised(self, disk: Device) -> bool:
        return any(change.path == f"{disk.path}.id" for change in self.changes)

    def _there(self, disk: Device, found: Element, path: str) -> None:
        volume = self.marker.volume(disk.id)
        ours = volume is not None and volume.path == path
        if self._new_disk(disk) and not ours and ("path" not in disk.values or disk.source):
            self.problem(
                f"{disk.path}: {path} exists already",
                "it is not ours, and nothing is overwritten",
                f"Declare it with path: {path} and without source to use it as it is, or move it away.",
            )
            return
        if ours and volume is not None and not volume.made:
            self.note("volume.finish", f"{disk.path}.path", None, path, why="an earlier run was cut off", id=disk.id)
        image, form = self.world.images.get(path), DISKS.row("format").read(found)
        if isinstance(image, PhyllomeError):
            self.problems.append(image)
            return
        if image is not None and image.format != form:
            self.problem(f"{disk.path}.format: {form}", f"{path} is {image.format}", f"Declare format: {image.format}.")
            return
        block = None if self.there is None else self.there.blocks.get(TARGET.read(found))
        capacity = image.capacity if image is not None else block[0] if block else None
        if disk.size is not None and capacity is not None:
            self._resize(disk, found, path, capacity)

    def _resize(self, disk: Device, found: Element, path: str, capacity: int) -> None:
        size = disk.size or capacity
        if size < capacity:
            self.note("refused", f"{disk.path}.size", format_size(capacity), format_size(size), "refused")
            self.problem(
                f"{disk.path}.size: {format_size(size)} is less than the {format_size(capacity)} that it has",
                "a disk is never shrunk: its end would be cut off",
                f"Declare {format_size(capacity)} or more.",
            )
        elif size > capacity:
            running = None if self.live is None else self._running(DISKS, found)
            self.note(
                "volume.grow",
                f"{disk.path}.size",
                format_size(capacity),
                format_size(size),
                file=path,
                form=DISKS.row("format").read(found),
                size=size,
                target=None if running is None else TARGET.read(running),
            )

    def _missing(self, disk: Device, found: Element, path: str, room: dict[str, int]) -> None:
        volume = self.marker.volume(disk.id)
        ours = volume is not None and volume.path == path
        if (volume is not None and ours and volume.made) or not (ours or self._new_disk(disk)):
            self.problem(
                f"{disk.path}: its file {path} is gone",
                "it was there before, so it is not made anew",
                "Is a file system not mounted? To start again from nothing, remove the guest first.",
            )
            return
        directory = os.path.dirname(path)
        pool = self.world.pools.get(disk.pool or "images") if "path" not in disk.values else None
        if pool is not None and (not pool.active or pool.type not in _DIRECTORY_POOLS):
            why = f"its type is {pool.type}" if pool.active else "it is not active"
            self.problem(
                f"{disk.path}.pool: {disk.pool or 'images'}", why, "Start it, or choose an active pool of type dir."
            )
            return
        if directory not in self.world.free:
            self.problem(f"{disk.path}: {directory} is not a directory", "disks are made there", "Make it first.")
            return
        source = self._source(disk)
        if disk.size is None and disk.source is None:
            self.problem(f"{disk.path}: its size is not known", "size or source is needed to make it", "Declare size.")
        if disk.source is not None and source is None:
            return
        size = max(disk.size or 0, source.capacity if source else 0)
        if not size:
            return
        room[directory] = room.get(directory, 0) + storage.needed(size, source)
        if not ours:
            volumes = tuple(kept for kept in self.marker.volumes if kept.id != disk.id)
            self.marker = dataclasses.replace(self.marker, volumes=(*volumes, Volume(disk.id, path, False)))
        self.note(
            "volume.create",
            f"{disk.path}.size",
            None,
            format_size(size),
            id=disk.id,
            file=path,
            form=DISKS.row("format").read(found),
            size=size,
            source=disk.source.path if disk.source else None,
        )

    def _source(self, disk: Device) -> storage.Image | None:
        if disk.source is None:
            return None
        path = f"{disk.path}.source.path"
        if not self.world.exists.get(disk.source.path):
            self.problem(f"{path}: {disk.source.path}", "this host has no such file", "Put the image there first.")
            return None
        image = self.world.images[disk.source.path]
        if isinstance(image, PhyllomeError):
            self.problem(f"{disk.path}.source: {image.what}", image.why, image.remedy)
            return None
        if image.refers:
            self.problem(
                f"{path}: {disk.source.path} refers to another file",
                f"a part of its content is in {image.refers}",
                "Make one image of it: qemu-img convert -O qcow2 FILE NEW.",
            )
            return None
        if disk.size is not None and disk.size < image.capacity:
            self.problem(
                f"{disk.path}.size: {format_size(disk.size)} is less than the {format_size(image.capacity)} of its source",
                "the end of the image would be cut off",
                f"Declare {format_size(image.capacity)} or more, or leave size out.",
            )
            return None
        return image

    # The rest

    def own(self) -> None:
        if self.wanted.protected is not None and self.wanted.protected != self.marker.protected:
            before = self.marker.protected if self.ours else None
            self.marker = dataclasses.replace(self.marker, protected=self.wanted.protected)
            self.note("config", "protected", before, self.wanted.protected)
        if self.adopting and self.wanted.adopt:
            self.note("config", "owner", None, "phyllome.virt")
        domain.set_marker(self.root, self.marker)

    def autostart(self) -> None:
        before = self.there is not None and self.there.autostart
        if self.wanted.autostart is not None and self.wanted.autostart != before:
            self.note("autostart", "autostart", before, self.wanted.autostart)

    def power(self) -> None:
        state = "stopped" if self.there is None else self.there.state
        target = self.wanted.state
        if target in ("present", state):
            return
        steps = _POWER.get((state, target))
        if steps is None:
            self.problem(
                f"state: {target} is declared, the guest is {state}",
                "that is on its way to another state" if state == "stopping" else "libvirt does not say more",
                "Run again when it has come to rest.",
            )
            return
        if steps[-1].startswith("start"):
            self._startable()
        before = "absent" if self.there is None else state
        for step in steps:
            self.note(step, "state", before, POWER_RESULT[step])
            before = POWER_RESULT[step]

    def _startable(self) -> None:
        if self.there is not None and self.there.managed_save:
            self.warnings.append(
                f"Guest {self.wanted.name} has a saved state (virsh managedsave) and continues from it, with the "
                "devices of that time; virsh managedsave-remove throws it away."
            )
        for found in NETWORKS.elements(self.root):
            name = NETWORKS.row("network").read(found)
            if name and self.world.networks.get(name) is False:
                self.problem(
                    f"networks.{NETWORKS.label(found)}.network: {name}",
                    "the network is not active, and a guest cannot start without it",
                    f"Start it: virsh net-start {name}.",
                )
        declared = {device.id for devices in self.wanted.devices.values() for device in devices}
        for kind in (CDROMS, DISKS):
            for found in kind.elements(self.root):
                path, label = kind.row("path").read(found), kind.label(found)
                if path and self.world.exists.get(path) is False and not (kind is DISKS and label in declared):
                    self.problem(
                        f"{kind.option}.{label}.path: {path}",
                        "this host has no such file",
                        "Put it there, or correct the path.",
                    )

    def boot_orders(self) -> None:
        seen: dict[int, str] = {}
        for kind in KINDS:
            for found in kind.elements(self.root):
                order, path = BOOT.read(found), f"{kind.option}.{kind.label(found)}"
                if order in seen:
                    self.problem(
                        f"{path}.boot: {order} is the order of {seen[order]} as well",
                        "each device has its own place",
                        "Declare boot for both.",
                    )
                elif order is not None:
                    seen[order] = path

    def decision(self) -> Decision:
        plan = Plan(tuple(sorted(self.changes, key=lambda change: _ORDER.get(change.action, 0))))
        if self.problems:
            raise _together(self.wanted.name, self.problems, plan)
        if self.adopting and not self.wanted.adopt and plan.changed:
            raise PhyllomeError(
                f"Guest {self.wanted.name} was not made by phyllome.virt",
                f"{', '.join(dict.fromkeys(change.path for change in plan))} would have to change",
                "Say adopt: true to take it over, or give your guest another name.",
                plan=_refused(plan),
            )
        off = any(change.action in ("shutdown", "destroy") for change in plan)
        return Decision(
            plan=plan,
            config=self.root,
            marker=self.marker,
            pending=[] if off else domain.pending(self.live, self.root),
            warnings=self.warnings,
        )


_ORDER = {
    # The definition comes first: it says which files are ours before they are made, so no run can leave a
    # file that nobody knows about.
    "volume.create": 1,
    "volume.finish": 1,
    "volume.grow": 2,
    "live": 3,
    "autostart": 4,
    **dict.fromkeys(POWER_RESULT, 5),
}


def _together(name: str, problems: t.Sequence[PhyllomeError], plan: Plan) -> PhyllomeError:
    """All reasons as one error."""
    told = [{"what": problem.what, "why": problem.why, "remedy": problem.remedy} for problem in problems]
    if len(problems) == 1:
        only = problems[0]
        return PhyllomeError(f"Guest {name}: {only.what}", only.why, only.remedy, problems=told, plan=_refused(plan))
    return PhyllomeError(
        f"Guest {name} cannot be as declared",
        f"there are {len(problems)} reasons: " + " ".join(f"({n}) {problem}" for n, problem in enumerate(problems, 1)),
        "Nothing was changed.",
        problems=told,
        plan=_refused(plan),
    )


def _refused(plan: Plan) -> list[dict[str, t.Any]]:
    """Nothing of it is done, whatever it would have been."""
    return Plan(tuple(dataclasses.replace(change, when="refused") for change in plan)).as_list()


def _removal(wanted: Wanted, there: Guest | None, world: World) -> Decision:
    if there is None:
        return Decision(Plan())
    ours = domain.marker(there.config)
    if ours is None and not wanted.adopt:
        raise PhyllomeError(
            f"Guest {there.name} was not made by phyllome.virt",
            "only what is ours is removed",
            "Say adopt: true to remove it all the same.",
        )
    if wanted.protected or (wanted.protected is None and ours is not None and ours.protected):
        raise PhyllomeError(
            f"Guest {there.name} is protected",
            "a protected guest is not removed",
            "Say protected: false to remove it.",
        )
    problems: list[PhyllomeError] = []
    changes: list[Change] = []
    if there.live is not None:
        steps = _POWER.get((there.state, "stopped"), ("shutdown",))
        before = there.state
        for step in steps:
            changes.append(Change(step, "state", before, POWER_RESULT[step]))
            before = POWER_RESULT[step]
    if wanted.delete_disks and ours is not None:
        for volume in ours.volumes:
            problems.extend(_in_use(volume, there, world))
            changes.append(
                Change("volume.remove", f"disks.{volume.id}.path", volume.path, None, args={"file": volume.path})
            )
    flags: set[str] = set()
    if there.managed_save:
        flags.add("managed_save")
    if there.snapshots != 0:
        flags.add("snapshots_metadata")
    if there.checkpoints:
        flags.add("checkpoints_metadata")
    store = there.config.find("os/nvram")
    if DOMAIN["firmware"][0].read(there.config) == "uefi":
        flags.add("nvram" if wanted.delete_nvram else "keep_nvram")
        if wanted.delete_nvram:
            name = "libvirt's own" if store is None or store.text is None else store.text
            changes.append(Change("part", "firmware.nvram", name, None))
    if there.config.find("devices/tpm/backend[@type='emulator']") is not None:
        if world.libvirt >= _TPM_FLAGS_SINCE:
            flags.add("tpm" if wanted.delete_tpm else "keep_tpm")
        elif not wanted.delete_tpm:
            problems.append(
                PhyllomeError(
                    "delete.tpm: false",
                    "libvirt before 8.9 removes the state of a TPM together with its guest",
                    "Say delete.tpm: true, or keep the guest.",
                )
            )
        if wanted.delete_tpm:
            changes.append(Change("part", "tpm.state", there.uuid, None))
    plan = Plan((*changes, Change("undefine", "state", "stopped", "absent", args={"flags": _bits(flags)})))
    if problems:
        raise _together(there.name, problems, plan)
    return Decision(plan)


def _bits(flags: t.Iterable[str]) -> int:
    return sum(_UNDEFINE[flag] for flag in flags)


def _in_use(volume: Volume, there: Guest, world: World) -> t.Iterator[PhyllomeError]:
    users = world.users.get(volume.path)
    if users is None or users:
        yield PhyllomeError(
            f"disks.{volume.id}: {volume.path} is used by {', '.join(users or ('guests that could not be read',))}",
            "what another guest uses is not deleted",
            "Say delete.disks: none, or take it out of that guest.",
        )
    found = domain.device(DISKS, there.config, volume.id)
    for tag in ("shareable", "readonly"):
        if found is not None and found.find(tag) is not None:
            yield PhyllomeError(
                f"disks.{volume.id}: {volume.path} is {tag}",
                "shared and read-only files may be somebody else's",
                f"Say delete.disks: none, or remove <{tag}/> from the disk.",
            )


def _alias(name: str) -> Element:
    return xml.element("alias", None, name=ALIAS + name)


def _insert(root: Element, kind: DeviceKind, made: Element) -> None:
    """After the last of its kind, so that people find it where they look for it."""
    siblings = root.findall(f"devices/{kind.tag}")
    if siblings:
        siblings[-1].addnext(made)
    else:
        root.find("devices").append(made)  # type: ignore[union-attr]
