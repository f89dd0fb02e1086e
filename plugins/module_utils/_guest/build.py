# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""XML of a new guest and of a new device, from a profile. Pure; declared fields are written by the caller.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core import xml
from .profiles import ENLIGHTENMENTS, NEEDS, SPARE_PORTS, Profile
from .spec import Device, mac_address
from .tables import ALIAS, CDROMS, DISKS

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .read import Host


def guest(name: str, uuid: str, profile: Profile, host: Host, vcpus: int, display: bool, ports: int) -> Element:
    """A guest without memory, vCPUs, firmware, TPM, display, disks and networks.

    Args:
        name: its name.
        uuid: its uuid; the variable store is named by it, because libvirt's own name for it is the guest's, and a
            later guest of that name would boot with it.
        profile: defaults.
        host: what is offered here.
        vcpus: how many, for the topology.
        display: whether it will have one.
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
    _devices(xml.child(root, "devices"), profile, host, display, ports)
    return root


def store(host: Host, uuid: str) -> str:
    """The file of a guest's UEFI variables."""
    return f"{host.store}/{uuid}_VARS.fd"


def firmware(root: Element, uuid: str, host: Host, secure: bool) -> None:
    """What UEFI needs besides its declared fields.

    Args:
        root: the guest's element.
        uuid: the guest's.
        host: for the directory of variable stores.
        secure: whether Secure Boot is on, which needs System Management Mode.
    """
    xml.ensure(root, "os/nvram").text = store(host, uuid)
    if secure:
        xml.ensure(root, "features/smm").set("state", "on")


def device(wanted: Device, profile: Profile, uuid: str) -> tuple[Element, dict[str, t.Any]]:
    """A new device: its element, and values of rows that are not declared.

    Args:
        wanted: the declared device.
        profile: defaults.
        uuid: the guest's, for the MAC address.
    """
    defaults: dict[str, t.Any]
    if wanted.kind is DISKS:
        # unmap: what the guest discards is given back, and a moved disk stays sparse.
        made = xml.element("disk", None, type_="file", device="disk")
        xml.child(made, "driver", None, name="qemu", discard="unmap")
        defaults = {"bus": profile.disk_bus, "format": "qcow2"}
    elif wanted.kind is CDROMS:
        made = xml.element("disk", None, type_="file", device="cdrom")
        xml.child(made, "driver", None, name="qemu", type_="raw")
        xml.child(made, "readonly")
        defaults = {"bus": "sata", "path": ""}
    else:
        made = xml.element("interface")
        defaults = {"mac": mac_address(uuid, wanted.id), "model": profile.nic_model}
    xml.child(made, "alias", None, name=ALIAS + wanted.id)
    return made, {**defaults, **wanted.values}


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


def _devices(devices: Element, profile: Profile, host: Host, display: bool, ports: int) -> None:
    xml.child(devices, "controller", None, type_="pci", index="0", model="pcie-root")
    for dummy in range(ports + SPARE_PORTS):
        xml.child(devices, "controller", None, type_="pci", model="pcie-root-port")
    xml.child(devices, "controller", None, type_="usb", model="qemu-xhci", ports="15")
    xml.child(devices, "controller", None, type_="virtio-serial")
    xml.child(devices, "serial", None, type_="pty")
    channel = xml.child(devices, "channel", None, type_="unix")
    xml.child(channel, "target", None, type_="virtio", name="org.qemu.guest_agent.0")
    if display:
        # A tablet says where the pointer is; a mouse only how far it went, and drifts away from the viewer's.
        xml.child(devices, "input", None, type_="tablet", bus="usb")
        model = next((name for name in profile.video if name in host.video), "vga")
        xml.child(xml.child(devices, "video"), "model", None, type_=model)
    xml.child(devices, "memballoon", None, model="virtio", freePageReporting="on")
    entropy = xml.child(devices, "rng", None, model="virtio")
    xml.child(entropy, "backend", "/dev/urandom", model="random")


FIXED_PORTS = 4
"""PCIe ports that every new guest's own devices take: USB, virtio-serial, balloon, rng."""


def ports(wanted: t.Iterable[Device], profile: Profile) -> int:
    """PCIe ports that a new guest with these devices takes."""
    taken, scsi = FIXED_PORTS, False
    for declared in wanted:
        if declared.kind is DISKS:
            bus = declared.values.get("bus", profile.disk_bus)
            taken += bus == "virtio"
            scsi = scsi or bus == "scsi"
        elif declared.kind is not CDROMS:
            taken += 1  # libvirt puts e1000 and rtl8139 behind a bridge, which takes a port as well
    return taken + scsi
