# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a group is good for, and what stands against giving a device away. Pure.

What it returns is ``ansible_facts.phyllome_iommu``, documented in the module iommu_facts.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.sysfs import MANAGED_DMA, PCI_ADDRESS, is_vfio
from .._host.judge import HostUse
from .._host.read import Identity
from .catalogue import Catalogue
from .classes import class_name
from .device import Device, order
from .read import Group, Hardware, Iommu

Facts = dict[str, t.Any]

PLATFORM = ("05", "06", "0806", "0880", "0c05", "0c07")
"""Classes, as prefixes, that make the machine itself: no guest can have them."""

HAZARDS: dict[str, str | None] = {  # code → the word of consent that lifts it, None where there is none
    "platform": None,
    "root_fs": None,
    "rmrr": None,
    "other_member": None,
    "bridge_driver": None,
    "noiommu": None,
    "protected": None,
    "guest_disk": None,
    "other_guest": None,
    "boot_disk": "mounted_storage",
    "mounted": "mounted_storage",
    "swap": "mounted_storage",
    "claimed": "mounted_storage",
    "usb_boot": "usb_boot",
    "has_data": "has_data",
    "mgmt_nic": "mgmt_nic",
    "nic_used": "nic_used",
    "primary_gpu": "primary_gpu",
    "opened": "risky_unbind",
    "console": "risky_unbind",
    "usb_input": "risky_unbind",
    "vf_parent": "collateral",
    "bus_parent": "collateral",
    "no_reset": "no_reset",
    "acs_override": "acs_override",
    "unsafe_interrupts": "unsafe_interrupts",
}
# These say nothing about who uses the device.
_NO_USE = ("platform", "rmrr", "other_member", "bridge_driver", "noiommu", "has_data", "no_reset", "acs_override",
           "unsafe_interrupts")  # fmt: skip
# Of one function alone: its companions do not suffer from it.
_OWN = ("platform", "no_reset")
# Drivers with driver_managed_dma: a bridge that has one does not stand in the way of its group (Linux 5.19,
# https://docs.kernel.org/driver-api/vfio.html).
_ACS_BITS = ("SV", "TB", "RR", "CR", "UF", "EC", "DT")
# A base class that cannot carry a disk, or a network interface, of the host.
_NO_STORAGE = ("03", "04", "09", "0d")
_NO_NETWORK = ("01", "03", "04", "05", "09")


class _Hazards:
    """The hazards of one function, in the order of the table; each code once."""

    def __init__(self) -> None:
        self.found: dict[str, Facts] = {}

    def add(self, code: str, via: t.Iterable[str], device: str) -> None:
        if code in self.found:
            if self.found[code]["device"] == device:
                self.found[code]["via"] += [line for line in via if line not in self.found[code]["via"]]
            return
        consent = HAZARDS.get(code)
        severity = "unknown" if code.startswith("unknown_") else "refuse" if consent else "never"
        self.found[code] = {"code": code, "severity": severity, "consent": consent, "via": list(via), "device": device}

    def as_list(self) -> list[Facts]:
        ranks = {code: rank for rank, code in enumerate(HAZARDS)}
        return sorted(self.found.values(), key=lambda one: (ranks.get(one["code"], len(ranks)), one["code"]))


def judge_hardware(
    identity: Identity, iommu: Iommu, state: Facts, hardware: Hardware, use: HostUse, catalogue: Catalogue
) -> tuple[list[Facts], list[Facts]]:
    """The groups and the devices, with everything that stands against giving them to a guest.

    Args:
        identity: of the machine.
        iommu: as read.
        state: as judge_iommu returned it.
        hardware: as read.
        use: what the host uses.
        catalogue: drivers and names.

    Returns:
        Groups and devices, both sorted.
    """
    judged = _Hardware(identity, iommu, state, hardware, use, catalogue)
    return judged.groups(), judged.devices()


class _Hardware:
    def __init__(
        self,
        identity: Identity,
        iommu: Iommu,
        state: Facts,
        hardware: Hardware,
        use: HostUse,
        catalogue: Catalogue,
    ) -> None:
        self.state = state
        self.catalogue = catalogue
        self.drivers: dict[str | None, tuple[list[str] | None, str | None]] = {}
        self.use = use
        self.hardware = hardware
        self.by_address = {device.address: device for device in hardware.devices}
        self.group_of: dict[str, int | None] = {device.address: device.group for device in hardware.devices}
        self.members, self.doubts = self._members()
        self.everywhere = self._everywhere(identity, iommu)
        self.slots: dict[str, list[str]] = {}
        self.buses: dict[str, list[str]] = {}
        self.same: dict[str, list[str]] = {}
        self.children: dict[str, str] = {}
        self.vga = [device for device in hardware.devices if (device.class_code or "").startswith("0300")]
        for device in hardware.devices:
            self.slots.setdefault(device.address.rpartition(".")[0], []).append(device.address)
            self.buses.setdefault(device.address.rpartition(":")[0], []).append(device.address)
            self.same.setdefault(f"{device.vendor}:{device.device}", []).append(device.address)
            for ancestor in device.path.split("/")[:-1]:
                if PCI_ADDRESS.match(ancestor):
                    self.children.setdefault(ancestor, device.address)
        self.own = {device.address: self._own(device) for device in hardware.devices}
        self.obstacles = {group.id: self._obstacles(group) for group in hardware.groups}
        for number in self.members.keys() - self.obstacles.keys():
            self.obstacles[number] = {"unknown_group": ("", ["the group itself could not be read"])}

    # groups and who is in them

    def _members(self) -> tuple[dict[int, list[str]], dict[int, str]]:
        """Who is in which group, by both witnesses, and what they do not agree on."""
        members: dict[int, set[str]] = {group.id: set(group.members or ()) for group in self.hardware.groups}
        doubts: dict[int, str] = {}
        for group in self.hardware.groups:
            if group.members is None:
                doubts[group.id] = "its list of devices could not be read"
            for name in group.members or ():
                if PCI_ADDRESS.match(name) and name not in self.by_address:
                    doubts[group.id] = f"{name} is in it and could not be read"
                elif name in self.by_address and self.by_address[name].group != group.id:
                    doubts[group.id] = f"{name} is in it and does not say so itself"
                    if self.group_of[name] is None:
                        self.group_of[name] = group.id
        for device in self.hardware.devices:
            if device.group is not None and device.address not in members.setdefault(device.group, set()):
                members[device.group].add(device.address)
                doubts.setdefault(device.group, f"{device.address} says that it is in it, the group does not")
        return {
            number: sorted(names, key=lambda name: (order(name), name)) for number, names in members.items()
        }, doubts

    def _endpoints(self, number: int) -> list[str]:
        return [
            name
            for name in self.members[number]
            if name in self.by_address and not self._is_platform(self.by_address[name])
        ]

    @staticmethod
    def _is_platform(device: Device) -> bool:
        return device.bridge or (device.class_code or "").startswith(PLATFORM)

    def _unbound(self, number: int) -> list[str]:
        return [name for name in self._endpoints(number) if not is_vfio(self.by_address[name].driver)]

    def _obstacles(self, group: Group) -> dict[str, tuple[str, list[str]]]:
        """What stands against the group as a whole: hazard code → (device, evidence)."""
        found: dict[str, tuple[str, list[str]]] = {}
        if group.name == "vfio-noiommu":
            found["noiommu"] = ("", ["the group is VFIO's own, no IOMMU is behind it"])
        if group.id in self.doubts:
            found["unknown_group"] = ("", [self.doubts[group.id]])
        direct = [f"{first:#x}-{last:#x}" for first, last, kind in group.regions or () if kind == "direct"]
        if direct:
            found["rmrr"] = ("", [f"the firmware keeps {region} mapped" for region in direct])
        if group.regions is None:
            found["unknown_reserved_regions"] = ("", ["reserved_regions could not be read"])
        for name in self.members[group.id]:
            device = self.by_address.get(name)
            if device is None:
                if not PCI_ADDRESS.match(name):
                    found["other_member"] = ("", [f"{name} is in the group and is no PCI device"])
            elif self._is_platform(device) and not is_vfio(device.driver):
                if not device.driver_known:
                    found["unknown_driver"] = (name, [f"the driver of {name} could not be read"])
                elif device.driver and device.driver not in MANAGED_DMA:
                    code = "bridge_driver" if device.bridge else "platform"
                    found[code] = (name, [f"{name} ({class_name(device.class_code)}) is driven by {device.driver}"])
        return found

    # hazards

    def _everywhere(self, identity: Identity, iommu: Iommu) -> dict[str, str]:
        """Hazards of every device of this machine: code → evidence."""
        found = {}
        unsafe = self.state["unsafe"]
        if unsafe["acs_override"]:
            found["acs_override"] = unsafe["acs_override"]
        if iommu.running is None:
            found["unknown_acs_override"] = "/proc/cmdline could not be read"
        for code in ("unsafe_interrupts", "noiommu"):
            if unsafe[code]:
                found[code] = "parameter of a module of VFIO"
            elif unsafe[code] is None:
                found[f"unknown_{code}"] = "a parameter of a module of VFIO could not be read"
        if identity.container is not False:
            found["unknown_host_use"] = (
                "this is a container, and does not see what the host uses"
                if identity.container
                else "/proc/self/ns/pid could not be read: this may be a container"
            )
        return found

    def _own(self, device: Device) -> _Hazards:
        """The hazards of a function itself."""
        hazards = _Hazards()
        kind = device.class_code or ""

        def add(code: str, *via: str) -> None:
            hazards.add(code, via, device.address)

        if self._is_platform(device):
            add("platform", class_name(device.class_code) or "bridge")
        if device.class_code is None:
            add("unknown_class", "its class could not be read")
        if device.silent:
            add("unknown_driver", "the kernel does not answer about it, as while a driver does not let go of it")
        elif not device.driver_known:
            add("unknown_driver", "what drives it could not be read")
        if self.group_of[device.address] is None:
            add("unknown_group", "it is in no group" if self.state["state"] == "on" else "the IOMMU is not on")
        # What is used through a bridge is said where it is, not of every bridge on the way.
        uses = {} if device.bridge else self.use.hazards.get(device.address, {})
        for code, via in uses.items():
            add("usb_boot" if code == "boot_disk" and kind.startswith("0c03") else code, *via)
        for code, (scope, why) in self.use.unknown.items():
            if self._may_carry(device, scope):
                add(code, why)
        for code, why in self.everywhere.items():
            add(code, why)
        if (
            device.driver == "nvme"
            and self.use.in_subsystem is not None
            and device.address not in self.use.in_subsystem
        ):
            add("unknown_storage", "its controller is in no NVMe subsystem, so its disks are not known")
        self._display(device, kind, add)
        self._functions(device, add)
        if device.address in self.children and not device.bridge:
            add("bus_parent", f"{self.children[device.address]} is behind it")
        return hazards

    @staticmethod
    def _may_carry(device: Device, scope: str) -> bool:
        """Whether the host may use a function in the way of a scope of HostUse.unknown."""
        if device.driver_known and device.driver is None:
            return False
        kind = device.class_code
        if scope == "any" or kind is None:
            return True
        if device.driver_known and is_vfio(device.driver):
            return False
        return {
            "storage": not kind.startswith(_NO_STORAGE),
            "network": not kind.startswith(_NO_NETWORK),
            "serial": kind.startswith("07"),
            "usb": kind.startswith("0c03"),
            "display": kind.startswith("03"),
        }[scope]

    def _display(self, device: Device, kind: str, add: t.Callable[..., None]) -> None:
        """No single fact says which card the person in front of the machine looks at."""
        if not kind.startswith("03") or (device.driver_known and is_vfio(device.driver)):
            return
        if device.boot_vga:
            add("primary_gpu", "boot_vga")
        if device.boot_display:
            add("primary_gpu", "boot_display")
        if self.vga == [device]:
            add("primary_gpu", "the only graphics card")
        for connector in device.connectors or ():
            if connector.enabled:
                add("primary_gpu", connector.name)
            elif connector.enabled is None:
                add("unknown_display", f"whether {connector.name} shows a picture could not be read")
        if kind.startswith("0300") and device.boot_vga is None:
            add("unknown_display", "boot_vga could not be read")
        if device.driver and device.connectors is None and not kind.startswith("0302"):
            add("unknown_display", f"{device.driver} does not say what its connectors show")

    def _functions(self, device: Device, add: t.Callable[..., None]) -> None:
        """Virtual functions, interfaces that cannot be seen, and reset."""
        if device.sriov is not None:
            if device.sriov.number or device.sriov.functions:
                add("vf_parent", f"{device.sriov.number or len(device.sriov.functions)} virtual functions")
            elif device.sriov.number is None:
                add("unknown_vfs", "sriov_numvfs could not be read")
        if device.mdevs:
            add("vf_parent", f"{len(device.mdevs)} mediated devices")
        hosted = not device.driver_known or (device.driver and not is_vfio(device.driver))
        if (device.class_code or "").startswith("02") and hosted and device.address not in self.use.with_interface:
            add("unknown_interfaces", "its network interface is not in this network namespace")
        if device.reset or self._is_platform(device):
            return
        # VFIO can reset the whole bus below a bridge when all of it is in one group.
        parent = device.path.split("/")[-2:-1]
        groups = {self.group_of[name] for name in self.buses[device.address.rpartition(":")[0]]}
        if not (parent and PCI_ADDRESS.match(parent[0])) or len(groups) != 1 or None in groups:
            add("no_reset", "neither the function nor the bus it is alone on can be reset")

    def _companions(self, number: int) -> dict[str, Facts]:
        """The hazards that every endpoint of a group shares: code → the first of them."""
        shared: dict[str, Facts] = {}
        for name in self._endpoints(number):
            for code, hazard in self.own[name].found.items():
                if code not in _OWN and code not in self.everywhere:
                    shared.setdefault(code, hazard)
        return shared

    def _judged(self) -> dict[str, list[Facts]]:
        """The hazards of every function: its own, those of its group, and those of its companions."""
        judged = {}
        shared = {group: self._companions(group) for group in self.members}
        for device in self.hardware.devices:
            hazards = _Hazards()
            hazards.found.update(self.own[device.address].found)
            number = self.group_of[device.address]
            if number is not None and not self._is_platform(device):
                for code, (name, via) in self.obstacles.get(number, {}).items():
                    hazards.add(code, via, name or device.address)
                for code, hazard in shared[number].items():
                    hazards.add(code, hazard["via"], hazard["device"])
            judged[device.address] = hazards.as_list()
        return judged

    # what users see

    def groups(self) -> list[Facts]:
        kinds = {group.id: group for group in self.hardware.groups}
        return [self._group(number, kinds.get(number)) for number in sorted(self.members)]

    def _group(self, number: int, group: Group | None) -> Facts:
        endpoints = self._endpoints(number)
        unbound = self._unbound(number)
        reasons = [
            {"code": code, "device": name or None, "detail": "; ".join(via)}
            for code, (name, via) in self.obstacles.get(number, {}).items()
        ]
        for name in endpoints:
            reasons += [
                {"code": code, "device": name, "detail": "; ".join(hazard["via"])}
                for code, hazard in self.own[name].found.items()
                if code not in self.everywhere
            ]
        reasons += [{"code": code, "device": None, "detail": via} for code, via in self.everywhere.items()]
        if not endpoints:
            reasons.append({"code": "no_endpoint", "device": None, "detail": "nothing in it can be given to a guest"})
        slots = {name.rpartition(".")[0] for name in endpoints}
        trusted = not {"acs_override", "noiommu", "unknown_acs_override", "unknown_noiommu", "unknown_group"} & {
            reason["code"] for reason in reasons
        }
        if not trusted:
            state = "untrusted"
        elif reasons:
            state = "blocked"
        elif not unbound:
            state = "ready"
        else:
            state = "bindable" if len(slots) == 1 else "shared"
        return {
            "id": number,
            "type": group.type if group else None,
            "devices": self.members[number],
            "endpoints": endpoints,
            "state": state,
            "isolated": len(slots) == 1 if trusted and endpoints else None,
            "bind_set": unbound,
            "reserved_regions": None
            if group is None or group.regions is None
            else [{"start": first, "end": last, "type": kind} for first, last, kind in group.regions],
            "reasons": reasons,
        }

    def devices(self) -> list[Facts]:
        judged = self._judged()
        return [self._device(device, judged[device.address]) for device in self.hardware.devices]

    def _device(self, device: Device, hazards: list[Facts]) -> Facts:
        own = {hazard["code"] for hazard in hazards if hazard["device"] == device.address}
        unknown_use = {code for code in own if code.startswith("unknown_")}
        in_use: bool | None = bool(own - {*_NO_USE} - unknown_use)
        if device.bridge:
            in_use = not {*self.use.hazards.get(device.address, ())} <= {*_NO_USE, "unknown_data"}
        if not in_use and unknown_use - {"unknown_group", "unknown_data"}:
            in_use = None
        drivers, vfio_driver = self._drivers(device.modalias)
        vendor_name, device_names = (self.catalogue.names or {}).get(device.vendor or "", (None, {}))
        facts: Facts = {
            "address": device.address,
            "identity": {
                "key": self._key(device),
                "serial": device.serial,
                "slot": device.slot,
                "path": device.path,
            },
            "vendor": device.vendor,
            "device": device.device,
            "subsystem": device.subsystem,
            "revision": device.revision,
            "vendor_name": vendor_name,
            "device_name": device_names.get(device.device or ""),
            "class": device.class_code,
            "class_name": class_name(device.class_code),
            "header": _header(device),
            "group": self.group_of[device.address],
            "iommu_unit": device.unit,
            "driver": device.driver,
            "driver_override": device.driver_override,
            "drivers_available": drivers,
            "vfio_driver": vfio_driver,
            "functions": [one for one in self.slots[device.address.rpartition(".")[0]] if one != device.address],
            "numa_node": device.numa_node,
            "boot_vga": device.boot_vga,
            "boot_display": device.boot_display,
            "power_state": device.power,
            "link": None if device.link is None else dataclasses.asdict(device.link),
            "reset_methods": None if device.resets is None else list(device.resets),
            "acs_path": self._acs_path(device),
            "sriov": _sriov(device),
            "mdev": {"types": list(device.mdev_types), "model": device.mdev},
            "bars": None
            if device.bars is None
            else [{"n": n, "bytes": size, "resizable": resizable} for n, size, resizable in device.bars],
            "in_use": in_use,
            "hazards": hazards,
            "runtime_bind": _runtime_bind(device),
            "ids_collateral": self._ids_collateral(device),
            "libvirt": _libvirt(device.address),
        }
        optional = {
            "vendor_name",
            "device_name",
            "subsystem",
            "driver_override",
            "boot_display",
            "sriov",
            "boot_vga",
            "driver",
            "group",
            "iommu_unit",
            "link",
        }
        unknown = [name for name, value in facts.items() if value is None and name not in optional]
        if not device.driver_known:
            unknown.append("driver")
        if device.silent:
            unknown.append("driver_override")
        if not device.link_known:
            unknown.append("link")
        if facts["group"] is None and self.state["state"] != "off":
            unknown.append("group")
        if device.boot_vga is None and (device.class_code or "").startswith("0300"):
            unknown.append("boot_vga")
        if any(bridge["cap"] is None for bridge in facts["acs_path"]):
            unknown.append("acs_path")
        facts["unknown"] = sorted(unknown)
        return facts

    def _drivers(self, modalias: str | None) -> tuple[list[str] | None, str | None]:
        if modalias not in self.drivers:
            self.drivers[modalias] = (
                None if modalias is None else self.catalogue.drivers_for(modalias),
                None if modalias is None else self.catalogue.variant_for(modalias),
            )
        return self.drivers[modalias]

    def _acs_path(self, device: Device) -> list[Facts]:
        """The bridges above, the outermost first: they explain the group, which alone counts."""
        path = []
        for address in device.path.split("/")[:-1]:
            bridge = self.by_address.get(address)
            if bridge is not None and bridge.bridge:
                acs = bridge.acs
                path.append(
                    {
                        "bridge": address,
                        "cap": None if acs is None else acs.there,
                        "enabled": None
                        if acs is None
                        else [name for bit, name in enumerate(_ACS_BITS) if acs.control >> bit & 1],
                    }
                )
        return path

    def _key(self, device: Device) -> str | None:
        """What tells a card from its twin and survives renumbering: its ids, and where it is plugged in.

        Bus numbers change when a card is added; the device and function numbers on the way from the
        root do not. A serial number that only a driver tells would be gone with the driver.
        """
        if not (device.vendor and device.device):
            return None
        way = [part for part in device.path.split("/") if PCI_ADDRESS.match(part)]
        function = int(device.address[-1])
        place = device.own_serial or device.slot
        if place is None:
            place = "/".join([way[0].rpartition(":")[0], *(part.rpartition(":")[2] for part in way)]) if way else "?"
        elif function:
            place += f".{function}"
        return f"{device.vendor}:{device.device}/{device.subsystem or '-'}@{place}"

    def _ids_collateral(self, device: Device) -> list[str] | None:
        """Who else is taken when vfio-pci is told to take these ids. Long lists are cut after 16."""
        if not (device.vendor and device.device):
            return None
        twins = self.same[f"{device.vendor}:{device.device}"]
        return [twin for twin in twins[:17] if twin != device.address][:16]


def _header(device: Device) -> str | None:
    """Endpoint, bridge or cardbus.

    Not from the configuration space: reading that wakes a sleeping device up. The kernel accepts the
    class PCI bridge from bridges only, and CardBus from CardBus bridges only (pci_setup_device()),
    and it gives only bridges a bus.
    """
    if device.class_code is None:
        return None
    if device.class_code.startswith("0607"):
        return "cardbus"
    return "bridge" if device.bridge or device.class_code.startswith(("0604", "0609")) else "endpoint"


def _sriov(device: Device) -> Facts | None:
    if device.sriov is None and device.physfn is None:
        return None
    sriov = device.sriov
    return {
        "totalvfs": sriov.total if sriov else None,
        "numvfs": sriov.number if sriov else None,
        "autoprobe": sriov.autoprobe if sriov else None,
        "vfs": list(sriov.functions) if sriov else [],
        "physfn": device.physfn,
    }


def _runtime_bind(device: Device) -> str | None:
    """How safely its driver lets go of it while the system runs."""
    kind = device.class_code
    if kind is None or not device.driver_known:
        return None
    if device.bridge or kind.startswith(PLATFORM):
        return "never"
    if device.driver is None or is_vfio(device.driver):
        return "safe"
    if kind.startswith("03"):
        return "reboot_preferred" if device.driver == "nvidia" or device.boot_vga else "risky"
    return "risky" if kind.startswith("04") else "safe"


def _libvirt(address: str) -> Facts:
    domain, bus, slot, function = order(address)
    return {
        "nodedev": "pci_" + address.replace(":", "_").replace(".", "_"),
        "address": {"domain": domain, "bus": bus, "slot": slot, "function": function},
    }
