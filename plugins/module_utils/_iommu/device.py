# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The PCI functions: as the kernel says it, nothing concluded.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core.sysfs import LINK, PCI_ADDRESS, Tree

_ACS = 0x000D  # id of the extended capability, include/uapi/linux/pci_regs.h
HEX = re.compile(r"^(?:0[xX])?[0-9a-fA-F]{1,16}$")
_IDS = re.compile(r"^[0-9A-Fa-f]{4}:[0-9A-Fa-f]{4}$")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_REVISION = re.compile(r"^0x[0-9a-fA-F]{2}$")
_SPEED = re.compile(r"^([0-9]{1,3}(?:\.[0-9])?) GT/s\b")
_CLASS = re.compile(r"^0x[0-9a-fA-F]{6}$")
GROUP = re.compile(r"[0-9]{1,10}\Z")


@dataclasses.dataclass(frozen=True)
class Sriov:
    """What a physical function says of its virtual functions; None is unknown."""

    total: int | None
    number: int | None
    autoprobe: bool | None
    functions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Connector:
    """A plug of a graphics card; ``enabled`` says whether it shows a picture now."""

    name: str
    enabled: bool | None


@dataclasses.dataclass(frozen=True)
class Acs:
    """Access control of a bridge (PCI Express base specification 7.7.11).

    Attributes:
        there: whether it has the capability.
        control: what is switched on, as the control register has it.
    """

    there: bool
    control: int


@dataclasses.dataclass(frozen=True)
class Link:
    """A link of PCI Express; None is unknown.

    Attributes:
        speed: millions of transfers a second, on each lane.
        width: lanes; 0 when there is nothing at the other end.
    """

    speed: int | None
    width: int | None
    max_speed: int | None
    max_width: int | None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a function is in the tree, and what is there; nothing when it went away meanwhile.

    Attributes:
        power: its state of power; None when the kernel (before 5.11) does not say.
    """

    address: str
    path: str | None
    there: frozenset[str]
    power: str | None

    @property
    def bridge(self) -> bool:
        """Whether it has a bus behind it."""
        return bool(self.there & {"pci_bus", "secondary_bus_number"})

    def slow(self) -> t.Iterator[str]:
        """The files that may take long, but for those that would wake it, or what it is behind, up."""
        wanted = ["uevent", "driver_override", "sriov_numvfs"]
        wanted += ["config"] if self.bridge and self.power not in ("D3cold", "unknown") else []
        wanted += LINK if self.power in (None, "D0", "D1", "D2") else ()
        return (name for name in wanted if name in self.there)


@dataclasses.dataclass(frozen=True)
class Device:
    """A PCI function: https://docs.kernel.org/PCI/sysfs-pci.html. None is unknown or absent.

    Attributes:
        path: below ``sys/devices``.
        vendor: four hex digits, as all ids.
        class_code: six hex digits.
        modalias: as the kernel looks for a driver, without ``pci:``.
        revision: two hex digits.
        bridge: whether it has a bus behind it.
        silent: the kernel does not answer when it is asked about it, as while a driver lets go of it, or never does.
        power: D0 when it is on, D3hot or D3cold when it sleeps.
        link: None when it has none, and when it sleeps; see link_known.
        acs: of a bridge; None when unknown.
        unit: name of the IOMMU that it is behind.
        driver: None without one; see driver_known.
        driver_known: whether the kernel said what drives it, were it nothing.
        reset: whether the kernel can reset it.
        resets: ways to do so, the preferred one first; None when the kernel (before 5.15) does not say.
        connectors: None without a DRM device.
        mdev: ``mdev`` where types can be made of it, ``nvidia_vf`` where NVIDIA's driver has its own way
            (https://docs.kernel.org/driver-api/vfio-mediated-device.html), else ``none``.
        serial: as the function itself or the driver that has it now says.
        own_serial: the same, only if the function itself says it: whatever drives it.
        mdevs: UUIDs of the mediated devices that were made of it.
    """

    address: str
    path: str
    vendor: str | None
    device: str | None
    subsystem: str | None
    revision: str | None
    class_code: str | None
    modalias: str | None
    bridge: bool
    silent: bool
    power: str | None
    link: Link | None
    link_known: bool
    acs: Acs | None
    group: int | None
    unit: str | None
    driver: str | None
    driver_known: bool
    driver_override: str | None
    numa_node: int | None
    boot_vga: bool | None
    boot_display: bool | None
    reset: bool
    resets: tuple[str, ...] | None
    sriov: Sriov | None
    physfn: str | None
    bars: tuple[tuple[int, int, bool], ...] | None
    connectors: tuple[Connector, ...] | None
    mdev: str
    mdev_types: tuple[str, ...]
    mdevs: tuple[str, ...]
    serial: str | None
    own_serial: str | None
    slot: str | None


def order(address: str) -> tuple[int, ...]:
    """Sorts PCI addresses as numbers, whatever their domain's width."""
    match = PCI_ADDRESS.match(address)
    return tuple(int(part, 16) for part in match.groups()) if match else (-1,)


def read_place(tree: Tree, address: str) -> Place:
    path = tree.follow(f"sys/bus/pci/devices/{address}")
    there = frozenset((tree.names(path) if path is not None else None) or ())
    return Place(address, path, there, tree.text(f"{path}/power_state") or None if "power_state" in there else None)


def read_device(tree: Tree, place: Place, slots: t.Mapping[str, str]) -> Device | None:
    address, path, there = place.address, place.path, place.there
    if path is None or not there:
        return None
    slow = frozenset(place.slow())
    event = _event(tree, path, address, there)
    driver = (tree.follow(f"{path}/driver") or "").rpartition("/")[2] if "driver" in there else ""
    vendor, device = _ids(tree, path, there, event.get("PCI_ID"), "vendor", "device")
    sub_vendor, sub_device = _ids(tree, path, there, event.get("PCI_SUBSYS_ID"), "subsystem_vendor", "subsystem_device")
    override = _override(tree, path, there)
    sriov = _sriov(tree, path, there)
    acs = _acs(tree, path) if "config" in slow else None
    link, link_known = _link(tree, path, there, slow)
    silent = tree.is_silent(path)
    return Device(
        address=address,
        path=path[len("sys/devices/") :] if path.startswith("sys/devices/") else path,
        vendor=vendor,
        device=device,
        subsystem=f"{sub_vendor}:{sub_device}" if sub_vendor and sub_device else None,
        revision=_revision(tree, path, there),
        class_code=_class(tree, path, there),
        modalias=event["MODALIAS"].partition(":")[2] if "MODALIAS" in event else None,
        bridge=place.bridge,
        silent=silent,
        power=place.power,
        link=link,
        link_known=link_known,
        acs=acs,
        group=_group_of(tree, path, there),
        unit=(tree.follow(f"{path}/iommu") or "").rpartition("/")[2] or None if "iommu" in there else None,
        driver=driver or event.get("DRIVER"),
        # Two witnesses: a missing link alone is not taken for a missing driver.
        driver_known=bool(event) and driver == event.get("DRIVER", "") and not silent,
        driver_override=override,
        numa_node=_number(tree, path, there, "numa_node"),
        boot_vga=_flag(tree, path, there, "boot_vga"),
        boot_display=_boot_display(tree, path, there),
        reset=bool(there & {"reset", "reset_method"}),
        resets=_resets(tree, path, there),
        sriov=sriov,
        physfn=(tree.follow(f"{path}/physfn") or "").rpartition("/")[2] or None if "physfn" in there else None,
        bars=_bars(tree, path, there),
        connectors=_connectors(tree, path, there),
        mdev="mdev" if "mdev_supported_types" in there else "nvidia_vf" if "nvidia" in there else "none",
        mdev_types=(tree.names(f"{path}/mdev_supported_types") or ()) if "mdev_supported_types" in there else (),
        mdevs=tuple(sorted(filter(_UUID.match, there))),
        serial=_own_serial(tree, path, there) or _serial(tree, path, there),
        own_serial=_own_serial(tree, path, there),
        slot=slots.get(address.rpartition(".")[0]),
    )


def _event(tree: Tree, path: str, address: str, there: frozenset[str]) -> dict[str, str]:
    """The device's ``uevent``; empty when it is not that of this device."""
    text = tree.text(f"{path}/uevent") if "uevent" in there else None
    if text is None:
        return {}
    event = dict(line.partition("=")[::2] for line in text.splitlines())
    if event.get("PCI_SLOT_NAME") != address:
        tree.note(f"{path}/uevent", "not of this device")
        return {}
    return event


def _ids(tree: Tree, path: str, there: frozenset[str], both: str | None, *files: str) -> tuple[str | None, str | None]:
    if both and _IDS.match(both):
        first, dummy, second = both.lower().partition(":")
        return first, second
    values = [tree.text(f"{path}/{name}") or "" if name in there else "" for name in files]
    good = [value[2:].lower() if re.fullmatch(r"0x[0-9a-fA-F]{4}", value) else None for value in values]
    return good[0], good[1]


def _class(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    text = tree.text(f"{path}/class")
    if text is not None and not _CLASS.match(text):
        tree.note(f"{path}/class", "not a class")
        return None
    return None if text is None else text[2:].lower()


def _group_of(tree: Tree, path: str, there: frozenset[str]) -> int | None:
    if "iommu_group" not in there:
        return None
    name = (tree.follow(f"{path}/iommu_group") or "").rpartition("/")[2]
    return int(name) if GROUP.match(name) else None


def _override(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    text = tree.text(f"{path}/driver_override") if "driver_override" in there else None
    return None if text in ("(null)", "") else text


def _number(tree: Tree, path: str, there: frozenset[str], name: str) -> int | None:
    """A number of 0 or more; -1 is how the kernel says that it does not know."""
    value = tree.number(f"{path}/{name}") if name in there else None
    return None if value is None or value < 0 else value


def _flag(tree: Tree, path: str, there: frozenset[str], name: str) -> bool | None:
    value = _number(tree, path, there, name)
    return None if value not in (0, 1) else bool(value)


def _revision(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    text = tree.text(f"{path}/revision") if "revision" in there else None
    return text[2:].lower() if text and _REVISION.match(text) else None


def _link(tree: Tree, path: str, there: frozenset[str], slow: frozenset[str]) -> tuple[Link | None, bool]:
    """The link, and whether that is all there is to know; what is a part of the chipset says Unknown of all."""
    if not there & {*LINK}:
        return None, True
    said = [tree.text(f"{path}/{name}") if name in slow else None for name in LINK]
    speeds = [_SPEED.match(text or "") for text in said[::2]]
    # 255 is how the kernel says that it does not know.
    widths = [int(text) if text and text.isdigit() and len(text) < 3 else None for text in said[1::2]]
    if not speeds[1] and not widths[1]:
        return None, None not in said
    speed, max_speed = (int(float(match.group(1)) * 1000) if match else None for match in speeds)
    return Link(speed, widths[0], max_speed, widths[1]), None not in said


def _acs(tree: Tree, path: str) -> Acs | None:
    """From the extended configuration space, which only root may read."""
    config = tree.data(f"{path}/config")
    if config is None or len(config) < 256:
        return None
    offset, seen = 0x100, set()
    while 0x100 <= offset <= len(config) - 8 and offset not in seen:
        seen.add(offset)
        head = int.from_bytes(config[offset : offset + 4], "little")
        if head == 0xFFFFFFFF:  # it does not answer
            return None
        if head & 0xFFFF == _ACS:
            return Acs(True, int.from_bytes(config[offset + 6 : offset + 8], "little"))
        offset = head >> 20 & 0xFFC
    return Acs(False, 0)


def _boot_display(tree: Tree, path: str, there: frozenset[str]) -> bool | None:
    """``boot_display`` of one of its DRM cards (https://docs.kernel.org/ABI/testing/sysfs-class-drm.html), from 6.18 on."""
    for card in _cards(tree, path, there):
        if tree.exists(f"{card}/boot_display"):
            return tree.number(f"{card}/boot_display") == 1
    return _flag(tree, path, there, "boot_display")


def _cards(tree: Tree, path: str, there: frozenset[str]) -> list[str]:
    if "drm" not in there:
        return []
    return [f"{path}/drm/{name}" for name in tree.names(f"{path}/drm") or () if re.match(r"^card\d+$", name)]


def _connectors(tree: Tree, path: str, there: frozenset[str]) -> tuple[Connector, ...] | None:
    found = []
    cards = _cards(tree, path, there)
    for card in cards:
        for name in tree.names(card) or ():
            if name.startswith(card.rpartition("/")[2] + "-"):
                text = tree.text(f"{card}/{name}/enabled")
                found.append(Connector(name, {"enabled": True, "disabled": False}.get(text or "")))
    return tuple(found) if cards else None


def _resets(tree: Tree, path: str, there: frozenset[str]) -> tuple[str, ...] | None:
    if "reset_method" in there:
        text = tree.text(f"{path}/reset_method")
        return None if text is None else tuple(text.split())
    return None if "reset" in there else ()


def _sriov(tree: Tree, path: str, there: frozenset[str]) -> Sriov | None:
    functions = [
        (tree.follow(f"{path}/{name}") or "?").rpartition("/")[2] for name in there if re.match(r"^virtfn\d+$", name)
    ]
    if not functions and not there & {"sriov_totalvfs", "sriov_numvfs"}:
        return None
    return Sriov(
        total=_number(tree, path, there, "sriov_totalvfs"),
        number=_number(tree, path, there, "sriov_numvfs"),
        autoprobe=_flag(tree, path, there, "sriov_drivers_autoprobe"),
        functions=tuple(sorted(functions, key=order)),
    )


def _bars(tree: Tree, path: str, there: frozenset[str]) -> tuple[tuple[int, int, bool], ...] | None:
    """(number, bytes, resizable): the first six lines of ``resource`` are ``start end flags`` of the BARs."""
    text = tree.text(f"{path}/resource")
    if text is None:
        return None
    bars = []
    for number, line in enumerate(text.splitlines()[:6]):
        words = line.split()
        if len(words) != 3 or not all(HEX.match(word) for word in words):
            tree.note(f"{path}/resource", "a line of it is not understood")
            return None
        start, end, flags = (int(word, 16) for word in words)
        if flags and end >= start:
            bars.append((number, end - start + 1, f"resource{number}_resize" in there))
    return tuple(bars)


def _own_serial(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    """From the device serial number capability (https://docs.kernel.org/ABI/testing/sysfs-bus-pci.html), since 6.18."""
    return (tree.text(f"{path}/serial_number") or None) if "serial_number" in there else None


def _serial(tree: Tree, path: str, there: frozenset[str]) -> str | None:
    """Not from the vital product data: reading that can take seconds, and wakes a sleeping device up."""
    for controller in (tree.names(f"{path}/nvme") or ()) if "nvme" in there else ():
        return tree.text(f"{path}/nvme/{controller}/serial") or None
    return None
