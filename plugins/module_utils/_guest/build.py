# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""XML of a new guest and of a new device, from a profile. Pure; declared fields are written by the caller.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core import xml
from .profiles import ENLIGHTENMENTS, NEEDS, NUMBERED, SPARE_PORTS, Profile
from .spec import Device, mac_address
from .tables import ALIAS, CDROMS, DISKS, FILESYSTEMS, HOSTDEVS, INPUTS, NETWORKS

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .read_host import Host


def guest(name: str, uuid: str, profile: Profile, host: Host, vcpus: int, pointer: bool, ports: int) -> Element:
    """A guest without all that is declared of it or that its profile has as fields.

    Args:
        name: its name.
        uuid: its uuid; the variable store is named by it, because libvirt's own name for it is the guest's, and a
            later guest of that name would boot with it.
        profile: defaults.
        host: what is offered here.
        vcpus: how many at most, for the topology.
        pointer: whether it gets a tablet.
        ports: PCIe ports that the declared devices take.
    """
    root = xml.element("domain", None, type_=host.type)
    xml.child(root, "name", name)
    xml.child(root, "uuid", uuid)
    xml.child(root, "metadata")
    xml.child(root, "memory")
    xml.child(root, "vcpu")
    # libvirt replaces q35 by the concrete version of today, and that is kept for ever.
    xml.child(xml.child(root, "os"), "type", "hvm", arch=host.arch, machine="q35")
    _features(xml.child(root, "features"), profile, host)
    _cpu(root, profile, host, vcpus)
    _clock(xml.child(root, "clock", None, offset=profile.clock), profile, host)
    power = xml.child(root, "pm")
    for name_ in ("suspend-to-mem", "suspend-to-disk"):
        # A guest that puts itself to sleep looks as if it had gone away.
        xml.child(power, name_, None, enabled="no")
    _devices(xml.child(root, "devices"), pointer, ports)
    return root


def store(host: Host, uuid: str) -> str:
    """The file of a guest's UEFI variables."""
    return f"{host.store}/{uuid}_VARS.fd"


def firmware(root: Element, uuid: str, host: Host) -> None:
    """What UEFI needs besides its declared fields.

    Args:
        root: the guest's element.
        uuid: the guest's.
        host: for the directory of variable stores.
    """
    xml.ensure(root, "os/nvram").text = store(host, uuid)


def device(wanted: Device, profile: Profile, uuid: str) -> tuple[Element, dict[str, t.Any]]:
    """A new device: its element, and values of rows that are not declared.

    Args:
        wanted: the declared device.
        profile: defaults.
        uuid: the guest's, for the MAC address.
    """
    defaults: dict[str, t.Any] = {}
    made = xml.element(wanted.kind.tag)
    if wanted.kind is DISKS:
        # unmap: what the guest discards is given back, and a moved disk stays sparse.
        made = xml.element("disk", None, type_="file", device="disk")
        xml.child(made, "driver", None, name="qemu")
        defaults = {
            "bus": profile.disk_bus,
            "format": "raw" if "block" in wanted.values else "qcow2",
            "discard": "unmap",
        }
    elif wanted.kind is CDROMS:
        made = xml.element("disk", None, type_="file", device="cdrom")
        xml.child(made, "driver", None, name="qemu", type_="raw")
        xml.child(made, "readonly")
        defaults = {"bus": "sata", "path": ""}
    elif wanted.kind is NETWORKS:
        defaults = {"mac": mac_address(uuid, wanted.id), "model": profile.nic_model}
    elif wanted.kind is HOSTDEVS:
        made = xml.element("hostdev", None, mode="subsystem")
    elif wanted.kind is FILESYSTEMS:
        made = xml.element("filesystem", None, type_="mount")
        defaults = {"driver": "virtiofs", "tag": wanted.id}
    elif wanted.kind is INPUTS:
        bus = {"evdev": None, "passthrough": "virtio"}.get(wanted.values.get("type", ""), "usb")
        defaults = {"bus": bus} if bus else {}
    xml.child(made, "alias", None, name=ALIAS + wanted.id)
    return made, {**defaults, **wanted.values}


def card_number(root: Element, model: str) -> int | None:
    """The first number that none of the guest's network cards has, for a card of a model that can have one."""
    if model not in NUMBERED:
        return None
    taken = {NETWORKS.row("acpi_index").read(found) for found in NETWORKS.elements(root)}
    return next(number for number in range(1, 16384) if number not in taken)


def scsi_controller(root: Element) -> None:
    """SCSI disks without it would hang on an LSI chip that current systems have no driver for."""
    if xml.first(root, "devices/controller[@type='scsi']") is None:
        xml.child(xml.ensure(root, "devices"), "controller", None, type_="scsi", model="virtio-scsi")


def enlightenments(host: Host) -> list[str]:
    """The names that Windows shall get here, with all that each of them needs."""
    if host.type != "kvm":
        return []  # they are KVM's
    if host.hyperv is None:
        return [row.name for row in ENLIGHTENMENTS if row.old]
    names: list[str] = []
    for row in ENLIGHTENMENTS:
        if row.name in host.hyperv and all(need in names for need in NEEDS.get(row.name, ())):
            names.append(row.name)
    return names


def _features(features: Element, profile: Profile, host: Host) -> None:
    xml.child(features, "acpi")
    xml.child(features, "apic")
    # VMware's backdoor port: nothing here is VMware.
    xml.child(features, "vmport", None, state="off")
    names = enlightenments(host) if profile.hyperv else []
    if not names:
        return
    parent = xml.child(features, "hyperv", None, mode="custom")
    for row in ENLIGHTENMENTS:
        if row.name in names:
            made = xml.child(parent, row.name, None, state="on", **row.attributes)
            for name in row.children:
                xml.child(made, name, None, state="on")


def _cpu(root: Element, profile: Profile, host: Host, vcpus: int) -> None:
    # host-model: all that this CPU can do and that libvirt can name, so a host of the same kind can take the guest.
    # Emulated CPUs are the same on every host with the same QEMU; maximum is all of it, and it migrates.
    made = xml.child(root, "cpu", None, mode="host-model" if host.type == "kvm" else "maximum")
    if profile.cores:
        xml.child(made, "topology", None, sockets="1", dies="1", cores=str(vcpus), threads="1")


def _clock(clock: Element, profile: Profile, host: Host) -> None:
    # What virt-install has had for years: lost ticks are caught up, and no HPET, which costs exits and nobody needs.
    xml.child(clock, "timer", None, name="rtc", tickpolicy="catchup")
    xml.child(clock, "timer", None, name="pit", tickpolicy="delay")
    xml.child(clock, "timer", None, name="hpet", present="no")
    if profile.hyperv and host.type == "kvm":
        xml.child(clock, "timer", None, name="hypervclock", present="yes")


def _devices(devices: Element, pointer: bool, ports: int) -> None:
    xml.child(devices, "controller", None, type_="pci", index="0", model="pcie-root")
    for dummy in range(ports + SPARE_PORTS):
        xml.child(devices, "controller", None, type_="pci", model="pcie-root-port")
    xml.child(devices, "controller", None, type_="usb", model="qemu-xhci", ports="15")
    xml.child(devices, "controller", None, type_="virtio-serial")
    xml.child(devices, "serial", None, type_="pty")
    if pointer:
        # A tablet says where the pointer is; a mouse only how far it went, and drifts away from the viewer's.
        xml.child(devices, "input", None, type_="tablet", bus="usb")
    xml.child(devices, "memballoon", None, model="virtio", freePageReporting="on")


FIXED_PORTS = 3
"""PCIe ports that every new guest's own devices take: USB, virtio-serial, balloon."""

_BRIDGE_CARDS = ("e1000", "rtl8139")


def ports(
    wanted: t.Iterable[Device], profile: Profile, values: t.Mapping[str, t.Mapping[str, t.Any]] | None = None
) -> int:
    """PCIe ports that a new guest with these devices and fields takes.

    Args:
        wanted: its devices.
        profile: for what is not declared of them.
        values: its fields.
    """
    fields = values or {}
    taken, scsi, old = FIXED_PORTS, False, False
    for declared in wanted:
        if declared.kind is DISKS:
            bus = declared.values.get("bus", profile.disk_bus)
            taken += bus in ("virtio", "nvme")  # each NVMe disk has a controller of its own
            scsi = scsi or bus == "scsi"
        elif declared.kind is NETWORKS:
            # libvirt puts old PCI cards behind one bridge, which takes a port
            behind = declared.values.get("model", profile.nic_model) in _BRIDGE_CARDS
            taken, old = taken + (not behind), old or behind
        elif declared.kind is HOSTDEVS:
            taken += declared.rule is None and "usb.vendor" not in declared.values
        elif declared.kind is INPUTS:
            taken += declared.values.get("bus") == "virtio" or declared.values.get("type") == "passthrough"
        elif declared.kind is FILESYSTEMS:
            taken += 1
    old = (
        old
        or fields.get("watchdog", {}).get("model", "none") != "none"
        or fields.get("sound", {}).get("model") == "ac97"
    )
    for group, option in (("rng", "backend"), ("vsock", "cid")):
        taken += fields.get(group, {}).get(option, "none") != "none"
    return taken + scsi + 2 * old + bool(fields.get("memory", {}).get("virtio_mem.size"))
