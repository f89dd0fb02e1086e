# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for a guest's devices. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import copy
import typing as t

from .._core import xml
from . import build, domain, luks, plan_fields, storage
from .media import RESERVED
from .passthrough import is_key
from .spec import disk_serial
from .tables import (
    ALIAS,
    CDROMS,
    DISKS,
    FILESYSTEMS,
    INPUTS,
    KINDS,
    NETWORKS,
    TARGET,
    DeviceKind,
    device_id,
    free_name,
    unfit,
)

if t.TYPE_CHECKING:
    from .._core.fields import Field
    from .._core.plan import When
    from .._core.xml import Element
    from .draft import Draft
    from .spec import Device


_CONNECTIONS = ("network", "bridge", "direct")
"""What several cards may have, so that the lack of one does not say that another is wanted."""


def devices(draft: Draft, kind: DeviceKind) -> None:
    """What is declared of one kind of devices."""
    declared = draft.wanted.devices.get(kind.option)
    if declared is None:
        return
    boots = _default_boots(draft)
    for device in declared:
        if device.rule is not None or is_key(device.values.get("pci")):
            continue  # comes and goes, or was not found; see plan_passthrough
        found = domain.device(kind, draft.root, device.id)
        if found is None and draft.adopting:
            known = len(draft.problems)
            found = _recognise(draft, kind, device)
            if len(draft.problems) > known:
                continue
        if found is None:
            _add(draft, kind, device, boots.get(device.id))
        else:
            _edit(draft, kind, device, found)
        found = domain.device(kind, draft.root, device.id)
        for option, why in () if found is None else unfit(kind, found, device.values):
            draft.problem(f"{device.path}.{option}: {device.values[option]}", why, f"Leave {option} out.")
    if draft.wanted.prune:
        _prune(draft, kind, {*RESERVED, *(device.id for device in declared)})


def declare(draft: Draft, kind: DeviceKind, device: Device, boot: int | None) -> None:
    """A device that follows from something else that is declared.

    Args:
        draft: the plan.
        kind: of the device.
        device: what it shall be.
        boot: its place in the boot order if it is new.
    """
    found = domain.device(kind, draft.root, device.id)
    if found is None:
        _add(draft, kind, device, boot)
    else:
        _edit(draft, kind, device, found)


def _default_boots(draft: Draft) -> dict[str, int]:
    """A new guest boots from its disks, then from its CD-ROMs: an empty disk leads to the installer."""
    if draft.there is not None:
        return {}
    listed = [device for devices in draft.wanted.devices.values() for device in devices]
    if any("boot" in device.values for device in listed):
        return {}
    order = [device.id for kind in (DISKS, CDROMS) for device in listed if device.kind is kind]
    return {device: number for number, device in enumerate(order, 1)}


def _recognise(draft: Draft, kind: DeviceKind, device: Device) -> Element | None:
    """The device of an adopted guest that is meant: the only one that is alike."""
    strangers = [found for found in kind.elements(draft.root) if device_id(found) is None]
    for option in kind.likeness:
        if option not in device.values:
            continue
        alike = [found for found in strangers if kind.row(option).read(found) == device.values[option]]
        if len(alike) == 1:
            found = alike[0]
            found.append(_alias(device.id))
            draft.own_device(device)
            draft.note("config", f"{device.path}.id", None, device.id, draft.when())
            return found
        if not alike and kind is not CDROMS and option not in _CONNECTIONS:
            return None  # it says exactly which one is meant, and the guest has none: it is a new one
    if strangers and kind.doubted:
        draft.problem(
            f"{device.path}: which of the guest's {kind.option} is meant is not clear",
            f"it has {', '.join(domain.summary(kind, found) for found in strangers)} without an id",
            f"Say it by {' or '.join(kind.likeness)}.",
        )
    return None


def _add(draft: Draft, kind: DeviceKind, device: Device, boot: int | None) -> None:
    for other in KINDS:
        if domain.device(other, draft.root, device.id) is not None:
            draft.problem(
                f"{device.path}: the id is taken by one of the guest's {other.option}",
                "each device of a guest has its own id, whatever its kind",
                "Choose another id.",
            )
            return
    made, values = build.device(device, draft.profile, draft.uuid)
    if boot is not None:
        values.setdefault("boot", boot)
    if kind is DISKS:
        values = _disk_values(draft, device, values)
        if values.get("bus") == "nvme":
            values.setdefault("serial", disk_serial(draft.uuid, device.id))  # it has no disks without one
    if kind.needed and not set(kind.needed) & set(values):
        what = "it is connected to nothing" if kind is NETWORKS else "what it is is not said"
        needed = " or ".join(dict.fromkeys(option.partition(".")[0] for option in kind.needed))
        draft.problem(f"{device.path}: {what}", f"{needed} is needed", "Declare it.")
        return
    if kind is NETWORKS and (number := build.card_number(draft.root, values["model"])):
        values.setdefault("acpi_index", number)
    _insert(draft.root, kind, made)
    options = [row for row in kind.rows if row.option in values]
    for row in options:
        row.write(made, values[row.option])
    if device.passphrase is not None:
        luks.set_secret(made, luks.secret_uuid(draft.uuid, device.id))
    _renamed(draft, made, device.id)
    if kind in (DISKS, CDROMS) and values.get("bus") == "scsi":
        build.scsi_controller(draft.root)
    draft.own_device(device)
    why = draft.plug(kind, made)
    when: When = "next_boot" if draft.live is not None and draft.running(kind, made) is None else "live"
    for row in options:
        _offered(draft, device, row, values[row.option])
        draft.note("config", f"{device.path}.{row.option}", None, row.shown(values[row.option]), when, why=why)
    _connected(draft, device.path, made)


def _renamed(draft: Draft, disk: Element, name: str) -> None:
    """A target name that is free in the definition may be another disk's in the running guest."""
    if draft.live is None or disk.tag != DISKS.tag:
        return
    others = [found for found in draft.live.findall("devices/disk") if device_id(found) != name]
    taken = {TARGET.read(found) for found in others}
    if TARGET.read(disk) in taken:
        siblings = {TARGET.read(found) for found in draft.root.findall("devices/disk") if found is not disk}
        TARGET.write(disk, free_name(DISKS.row("bus").read(disk), taken | siblings))


def _disk_values(draft: Draft, device: Device, values: dict[str, t.Any]) -> dict[str, t.Any]:
    path = draft.world.paths.get(device.id)
    if path is None or "block" in device.values:
        return values
    image = draft.world.images.get(path)
    if isinstance(image, storage.Image) and "format" not in device.values:
        values = {**values, "format": image.format}
    return {**values, "path": path}


def _edit(draft: Draft, kind: DeviceKind, device: Device, found: Element) -> None:
    running = None if draft.live is None else draft.running(kind, found)
    for row in kind.rows:
        if row.option not in device.values:
            continue
        value, before, path = device.values[row.option], row.read(found), f"{device.path}.{row.option}"
        if row.option == "path" and kind is DISKS and value in draft.world.chains.get(str(before), ()):
            continue  # the base of an external snapshot is what was declared
        live = None
        hot = draft.hot and row.when == "live" and path not in draft.waits
        if running is not None and hot and row.read(running) != value:
            live = (row.read(running), running)
            row.write(running, value)
            live = (live[0], copy.deepcopy(running))
        if before == value:
            if live:
                draft.note("live", path, row.shown(live[0]), row.shown(value), **_live(row, live[1]))
        elif row.when == "refused":
            draft.note("refused", path, before, value, "refused")
            draft.problem(
                f"{path}: {value} is declared, the guest has {before or 'none'}",
                "a disk's file is not moved or converted by declaring another",
                f"{f'Declare {before}' if before else 'Leave it out'}, or add a disk with an id of its own.",
            )
        else:
            _offered(draft, device, row, value)
            row.write(found, value)
            if row.option == "bus":
                _renamed(draft, found, device.id)
                serial = kind.row("serial") if value == "nvme" else None
                if serial is not None and not (serial.read(found) or "serial" in device.values):
                    made = disk_serial(draft.uuid, device.id)
                    serial.write(found, made)
                    draft.note("config", f"{device.path}.serial", None, made, draft.when(serial))
            told = _live(row, live[1]) if live else {}
            draft.note("config", path, row.shown(before), row.shown(value), draft.when(row), **told)
            if row.option == "bus" and value == "scsi":
                build.scsi_controller(draft.root)
    if running is None:
        draft.plug(kind, found)  # an earlier run has defined it, and was cut off or refused
    _connected(draft, device.path, found)


def _live(row: Field, running: Element) -> dict[str, t.Any]:
    """How the running guest is told, as ``apply`` takes it."""
    if row.call:
        # libvirt takes what is not said for no limit
        limits = {found.path.rpartition("/")[2]: found.read(running) for found in DISKS.rows if found.call == row.call}
        return {"call": row.call, "value": (TARGET.read(running), limits)}
    return {"device": running}


def _offered(draft: Draft, device: Device, row: Field, value: t.Any) -> None:
    host = draft.world.host
    if row.option == "bus" and value == "nvme" and host is not None and value not in host.offers.get(row.offered, ()):
        major, minor = draft.world.libvirt // 1000000, draft.world.libvirt // 1000 % 1000
        draft.problem(
            f"{device.path}.bus: nvme",
            f"libvirt emulates it from 11.5 on, if QEMU has it; this host has libvirt {major}.{minor}",
            "Choose virtio, or sata for a system without virtio drivers; or put the guest on a newer host.",
        )
        return
    plan_fields.offered_here(draft, f"{device.path}.{row.option}", row, value)


def _prune(draft: Draft, kind: DeviceKind, declared: set[str]) -> None:
    for name in draft.marker.devices:
        if name in declared:
            continue
        found = domain.device(kind, draft.root, name)
        running = None if draft.live is None else domain.device(kind, draft.live, name)
        if found is None:
            if running is not None:
                draft.unplug(kind, running)  # the guest did not let go of it when it was asked
            continue
        twin = draft.running(kind, found)
        if kind is DISKS and draft.protected():
            draft.problem(
                f"disks.{name}: it is no longer declared, and the guest is protected",
                "a protected guest loses no disk",
                "Declare the disk, or say protected: false.",
            )
            continue
        if twin is None or not draft.unplug(kind, twin, define=True):
            when: When = "live" if twin is None else "next_boot"
            draft.note("config", f"{kind.option}.{name}", domain.summary(kind, found), None, when)
        found.getparent().remove(found)  # type: ignore[union-attr]
        if twin is None:
            draft.marker = draft.marker.without(name)  # else it is ours until the guest has let go of it


def _connected(draft: Draft, path: str, found: Element) -> None:
    for option, known, remedy in (
        ("network", draft.world.networks, "Make it with phyllome_network."),
        ("bridge", draft.world.bridges, "Make the bridge on the host first."),
    ):
        name = NETWORKS.row(option).read(found) if found.tag == NETWORKS.tag else None
        if name and name in known and known[name] is None:
            draft.problem(f"{path}.{option}: {name}", f"this host has no such {option}", remedy)
    for option, kind in (("direct", NETWORKS), ("block", DISKS), ("source", FILESYSTEMS), ("path", INPUTS)):
        name = kind.row(option).read(found) if found.tag == kind.tag else None
        there = f"/sys/class/net/{name}" if option == "direct" else str(name)
        if name and draft.world.exists.get(there) is False:
            draft.problem(f"{path}.{option}: {name}", "this host has no such device or directory", "Correct it.")


def _alias(name: str) -> Element:
    return xml.element("alias", None, name=ALIAS + name)


def _insert(root: Element, kind: DeviceKind, made: Element) -> None:
    """After the last of its kind, so that people find it where they look for it."""
    siblings = root.findall(f"devices/{kind.tag}")
    if siblings:
        siblings[-1].addnext(made)
    else:
        root.find("devices").append(made)  # type: ignore[union-attr]
