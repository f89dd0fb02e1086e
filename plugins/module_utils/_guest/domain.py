# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest as libvirt's XML tells it: our marker, pending changes, what a report says. All pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from .._core import xml
from .._core.fields import Field
from . import migratable, plug
from .live import slots_free
from .tables import (
    ALIAS,
    CDROMS,
    DISKS,
    DOMAIN,
    FILESYSTEMS,
    HOSTDEVS,
    KINDS,
    NETWORKS,
    TARGET,
    DeviceKind,
    device_id,
    host_device,
)

if t.TYPE_CHECKING:
    from .._core.xml import Element

_MARKER = f"metadata/{{{xml.GUEST_NS}}}guest"
_VERSION = "1"
_MACHINE = Field("machine", "os/type/@machine")


@dataclasses.dataclass(frozen=True)
class Volume:
    """A disk's file that is ours: we made it, or will.

    Attributes:
        id: the disk's.
        path: of the file.
        made: False from the definition of the disk until the file is complete. So a run that was cut off knows
            whether a missing file was never made or has vanished.
    """

    id: str
    path: str
    made: bool


@dataclasses.dataclass(frozen=True)
class Origin:
    """The guest that a clone was made from.

    Attributes:
        guest, uuid: its name and uuid then.
        method: how the disks were copied; ``linked`` ones need the source's for ever.
        done: False until all files of the clone are complete.
    """

    guest: str
    uuid: str
    method: str
    done: bool


@dataclasses.dataclass(frozen=True)
class Order:
    """A guest's place among those that start with the host.

    Attributes:
        order: lower ones start first.
        delay: seconds to wait afterwards, before those of a higher order start.
    """

    order: int
    delay: int = 0

    def as_dict(self) -> dict[str, int]:
        """As users write it."""
        return {"order": self.order, "delay": self.delay}


@dataclasses.dataclass(frozen=True)
class Marker:
    """Our element in the domain's metadata.

    Attributes:
        profile: that the guest was made from; None for an adopted one.
        protected: whether removal is refused.
        devices: ids of the devices that we made or were told to take over.
        volumes: files that are ours.
        install: ``begun`` while a system is being installed, ``done`` when that ended; None without an installation.
        origin: of a clone.
        plugs: plug-in rules; their devices are never in the definition.
        order: of a guest that starts with the host in an order.
    """

    profile: str | None
    protected: bool = False
    devices: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    install: str | None = None
    origin: Origin | None = None
    plugs: tuple[plug.Rule, ...] = ()
    order: Order | None = None

    def volume(self, disk: str) -> Volume | None:
        """Our file of that disk."""
        return next((volume for volume in self.volumes if volume.id == disk), None)

    def without_volume(self, disk: str) -> Marker:
        """The same without that file."""
        return dataclasses.replace(self, volumes=tuple(volume for volume in self.volumes if volume.id != disk))

    def made(self, ids: t.Container[str]) -> Marker:
        """The same with these files complete."""
        return dataclasses.replace(
            self,
            volumes=tuple(
                dataclasses.replace(volume, made=True) if volume.id in ids else volume for volume in self.volumes
            ),
        )

    def without(self, device: str) -> Marker:
        """The same with a device that is gone."""
        return dataclasses.replace(self, devices=tuple(kept for kept in self.devices if kept != device))

    def element(self) -> Element:
        """The element, in our namespace."""
        return self._fill(xml.parse(f'<phyllome:guest xmlns:phyllome="{xml.GUEST_NS}"/>'), f"{{{xml.GUEST_NS}}}")

    def fragment(self) -> Element:
        """The element as virDomainSetMetadata takes it: libvirt adds the namespace."""
        return self._fill(xml.element("guest"), "")

    def _fill(self, root: Element, namespace: str) -> Element:
        root.set("version", _VERSION)
        if self.profile:
            root.set("profile", self.profile)
        root.set("protected", "yes" if self.protected else "no")
        if self.install:
            root.set("install", self.install)
        if self.order is not None:
            # roles/hypervisor/files/autostart.py reads them
            root.set("autostart-order", str(self.order.order))
            root.set("autostart-delay", str(self.order.delay))
        for device in self.devices:
            xml.child(root, f"{namespace}device", None, id=device)
        for volume in self.volumes:
            made = "yes" if volume.made else "no"
            xml.child(root, f"{namespace}volume", None, id=volume.id, path=volume.path, made=made)
        if self.origin is not None:
            done = "yes" if self.origin.done else "no"
            told = {"guest": self.origin.guest, "uuid": self.origin.uuid, "method": self.origin.method, "done": done}
            xml.child(root, f"{namespace}origin", None, **told)
        for rule in self.plugs:
            said = {name: value for name, value in rule.said().items() if value is not None}
            xml.child(root, f"{namespace}{plug.RULE}", None, id=rule.id, **said)
        return root


def marker(root: Element) -> Marker | None:
    """Our marker in a domain's element; None when the guest is not ours."""
    found = xml.first(root, _MARKER)
    if found is None:
        return None
    return Marker(
        profile=found.get("profile"),
        protected=found.get("protected") == "yes",
        devices=tuple(device.get("id", "") for device in found.findall(f"{{{xml.GUEST_NS}}}device")),
        volumes=tuple(
            Volume(volume.get("id", ""), volume.get("path", ""), volume.get("made") == "yes")
            for volume in found.findall(f"{{{xml.GUEST_NS}}}volume")
        ),
        install=found.get("install"),
        origin=_origin(xml.first(found, f"{{{xml.GUEST_NS}}}origin")),
        plugs=plug.rules(root),
        order=_order(found),
    )


def _order(found: Element) -> Order | None:
    order = found.get("autostart-order")
    return None if order is None else Order(int(order), int(found.get("autostart-delay", "0")))


def _origin(found: Element | None) -> Origin | None:
    if found is None:
        return None
    return Origin(
        found.get("guest", ""), found.get("uuid", ""), found.get("method", "full"), found.get("done") == "yes"
    )


def set_marker(root: Element, wanted: Marker) -> None:
    """Put our marker into a domain's element; other namespaces stay as they are."""
    xml.drop(root, _MARKER)
    xml.ensure(root, "metadata").append(wanted.element())


def migration(root: Element) -> dict[str, str] | None:
    """The mark that a move leaves in the guest (``op_id``, ``source``, ``destination``, ``phase``, ...); None without."""
    found = xml.first(root, f"metadata/{{{xml.MIGRATION_NS}}}migration")
    return None if found is None else {str(name): str(value) for name, value in found.attrib.items()}


def moving(root: Element) -> bool:
    """Whether a move of ours has begun and not finished."""
    mark = migration(root)
    return mark is not None and mark.get("phase") != "done"


def device(kind: DeviceKind, root: Element, wanted: str) -> Element | None:
    """The device with that id."""
    found = xml.first(root, f"devices/{kind.tag}/alias[@name='{ALIAS}{wanted}']/..")
    return found if found is not None and kind.is_one(found) else None


def matched(kind: DeviceKind, live: Element, config: Element) -> list[tuple[Element | None, Element | None]]:
    """The running guest's devices beside those of its definition: same id, else same target name or MAC address."""
    left = kind.elements(live)
    pairs: list[tuple[Element | None, Element | None]] = []
    for defined in kind.elements(config):
        label, other = kind.label(defined), kind.fallback.read(defined)
        twin = next((found for found in left if kind.label(found) == label), None)
        if twin is None:
            twin = next(
                (
                    found
                    for found in left
                    if kind.fallback.read(found) == other and None in (device_id(found), device_id(defined))
                ),
                None,
            )
        if twin is not None:
            left.remove(twin)
        pairs.append((twin, defined))
    return pairs + [(found, None) for found in left]


def pending(live: Element | None, config: Element) -> list[dict[str, t.Any]]:
    """What the definition says and the running guest does not have yet: it waits for a power cycle.

    Args:
        live: the running guest's element; None when it is off, and nothing waits then.
        config: that of its definition.
    """
    if live is None:
        return []
    waiting = []
    plugged = {rule.id for rule in plug.rules(config)}
    for group, rows in DOMAIN.items():
        for row in rows:
            differ = row.waiting(live, config)
            # What is settled at creation cannot wait; and a guest that was saved or moved no longer tells its firmware.
            if differ is not None and row.when != "refused":
                path = f"{group}.{row.option}" if group else row.option
                waiting.append(_change(path, row.shown(differ[0]), row.shown(differ[1])))
    for kind in KINDS:
        for running, defined in matched(kind, live, config):
            if kind is HOSTDEVS and defined is None and running is not None and device_id(running) in plugged:
                continue  # it comes and goes
            if running is None or defined is None:
                known = defined if running is None else running
                told = summary(kind, known)  # type: ignore[arg-type]
                path = f"{kind.option}.{kind.label(known)}"  # type: ignore[arg-type]
                waiting.append(_change(path, None, told) if running is None else _change(path, told, None))
                continue
            for row in kind.rows:
                differ = row.waiting(running, defined)
                if differ is not None:
                    path = f"{kind.option}.{kind.label(defined)}.{row.option}"
                    waiting.append(_change(path, row.shown(differ[0]), row.shown(differ[1])))
    return waiting


def _host_devices(now: Element, config: Element) -> list[dict[str, t.Any]]:
    """The devices of the host that a guest has or will have, each once."""
    has, gets = (
        [
            {"id": device_id(found), "device": host_device(found)}
            for found in (*HOSTDEVS.elements(root), *root.findall("devices/interface[@type='hostdev']"))
        ]
        for root in (now, config)
    )
    every = has + [one for one in gets if one not in has]
    return [{**one, "defined": one in gets} for one in every]


def _change(path: str, before: t.Any, after: t.Any) -> dict[str, t.Any]:
    return {"path": path, "from": before, "to": after}


def summary(kind: DeviceKind, found: Element) -> str:
    """A device in one word: its file, the network it is on, the device of the host that it is."""
    for option in kind.told:
        if kind.row(option).read(found):
            return str(kind.row(option).read(found))
    return "empty" if kind is CDROMS else str(kind.fallback.read(found) or "new")


def agent_connected(root: Element) -> bool:
    """Whether the guest's agent is connected and can be asked."""
    return xml.first(root, "devices/channel/target[@name='org.qemu.guest_agent.0'][@state='connected']") is not None


def report(guest: t.Any, addresses: t.Sequence[str]) -> dict[str, t.Any]:
    """What users get to see of a guest.

    Args:
        guest: a ``read.Guest``.
        addresses: as they were found.
    """
    config = guest.config
    now = config if guest.live is None else guest.live
    ours = marker(config)
    blocks = guest.blocks
    return {
        "name": guest.name,
        "uuid": guest.uuid,
        "state": guest.state,
        "state_reason": guest.reason,
        "owned": ours is not None,
        "migration": migration(config),
        "owner": {
            "marker": ours is not None,
            "profile": ours.profile if ours else None,
            "protected": ours.protected if ours else None,
            "devices": list(ours.devices) if ours else [],
            "volumes": [volume.path for volume in ours.volumes] if ours else [],
        },
        "persistent": guest.persistent,
        "autostart": guest.autostart or (ours is not None and ours.order is not None),
        "autostart_order": ours.order.as_dict() if ours and ours.order else None,
        "type": now.get("type"),
        "machine": _MACHINE.read(now),
        "memory": DOMAIN[""][0].read(now),
        "vcpus": DOMAIN[""][1].read(now),
        "firmware": {row.option: row.read(config) for row in DOMAIN["firmware"]},
        "tpm": {row.option: row.read(now) for row in DOMAIN["tpm"]},
        "addresses": list(addresses),
        "disks": [
            {
                "id": device_id(found),
                "target": TARGET.read(found),
                "bus": DISKS.row("bus").read(found),
                "path": DISKS.row("path").read(found),
                "format": DISKS.row("format").read(found),
                "encrypted": DISKS.row("encryption").read(found) is not None,
                "capacity": blocks.get(TARGET.read(found), (None, None))[0],
                "allocation": blocks.get(TARGET.read(found), (None, None))[1],
            }
            for found in DISKS.elements(now)
        ],
        "cdroms": [
            {"id": device_id(found), "target": TARGET.read(found), "path": CDROMS.row("path").read(found)}
            for found in CDROMS.elements(now)
        ],
        "networks": [
            {
                "id": device_id(found),
                **{option: NETWORKS.row(option).read(found) for option in ("network", "bridge", "mac", "model")},
            }
            for found in NETWORKS.elements(now)
        ],
        "hostdevs": _host_devices(now, config),
        "plugs": [
            {
                "id": rule.id,
                **rule.said(),
                "attached": guest.live is not None and rule.id in plug.attached(now, (rule,)),
            }
            for rule in (ours.plugs if ours else ())
        ],
        "filesystems": [
            {"id": device_id(found), **{row.option: row.read(found) for row in FILESYSTEMS.rows}}
            for found in FILESYSTEMS.elements(now)
        ],
        "graphics": [
            {
                "type": found.get("type"),
                "listen": found.get("listen"),
                "port": int(found.get("port", "-1")) if int(found.get("port", "-1")) > 0 else None,
            }
            for found in now.findall("devices/graphics")
        ],
        "hotplug_slots_free": slots_free(now),
        "snapshots": guest.snapshots,
        "managed_save": guest.managed_save,
        "pending": pending(guest.live, config),
        "migratable": migratable.judge(
            now,
            guest.persistent,
            guest.snapshots,
            guest.checkpoints,
            running=guest.live is not None,
            chained=guest.chained,
        ),
    }


def store_directory(session: bool) -> str:
    """Where libvirt keeps UEFI variable stores (src/qemu/qemu_conf.c)."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return f"{base}/libvirt/qemu/nvram" if session else "/var/lib/libvirt/qemu/nvram"
