# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a running guest can take: devices into sockets that are free, values within what it was started with. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core import xml
from .._core.fields import Field

if t.TYPE_CHECKING:
    from .._core.xml import Element

_SOCKETS = (
    # element, where its kind stands, the socket that each kind takes. Tried with libvirt 9.0 and QEMU 7.2, but for hostdev,
    # virtiofs and vsock, which are libvirt's word (src/qemu/qemu_hotplug.c). What is not here (SATA, IDE, e1000, rtl8139,
    # sound, video, TPM, watchdog) was refused by a running q35 guest.
    ("disk", Field("bus", "target/@bus"), {"virtio": "pci", "scsi": "scsi", "usb": "usb"}),
    ("interface", Field("model", "model/@type"), {"virtio": "pci", "e1000e": "pci"}),
    ("hostdev", Field("type", "@type"), {"pci": "pci", "mdev": "pci", "usb": "usb"}),
    ("filesystem", Field("driver", "driver/@type"), {"virtiofs": "pci"}),
    ("input", Field("bus", "@bus"), {"virtio": "pci", "usb": "usb"}),
    ("rng", Field("model", "@model"), {"virtio": "pci"}),
    ("vsock", Field("model", "@model"), {"virtio": "pci"}),
    ("channel", Field("target", "target/@type"), {"virtio": "virtio-serial"}),
)
_PORTS = ("pcie-root-port", "pcie-switch-downstream-port")
_OLD_SLOTS = 31
"""Of the one bus of an i440fx machine; its slot 0 is the host bridge."""

SCSI = "devices/controller[@type='scsi'][@model='virtio-scsi']"


def socket(device: Element) -> str | None:
    """What a device is plugged into while its guest runs; None when that cannot be."""
    for tag, row, kinds in _SOCKETS:
        if device.tag == tag:
            return kinds.get(row.read(device))
    return None


def slots_free(root: Element) -> int:
    """PCI ports that nothing is plugged into: so many devices can be added while the guest runs."""
    used = root.findall("devices/*/address[@type='pci']")
    controllers = root.findall("devices/controller[@type='pci']")
    if any(found.get("model") == "pci-root" for found in controllers):
        slots = {found.get("slot") for found in used if int(found.get("bus", "0"), 16) == 0}
        return max(_OLD_SLOTS - len(slots - {"0x00"}), 0)
    ports = {
        found.get("index")
        for found in controllers
        if found.get("model") in _PORTS and xml.first(found, "target[@hotplug='off']") is None
    }
    return len(ports - {str(int(found.get("bus", "0"), 16)) for found in used})


@dataclasses.dataclass
class Room:
    """What a running guest has left to plug into.

    Args:
        live: the running guest's element.
        cgroups: whether libvirt has control groups for it.
    """

    live: dataclasses.InitVar[Element]
    cgroups: bool = True
    slots: int = 0
    scsi: bool = False

    def __post_init__(self, live: Element) -> None:
        self.slots = slots_free(live)
        self.scsi = xml.first(live, SCSI) is not None
        self._kinds = {found.get("type") for found in live.findall("devices/controller")}
        self._shared = xml.first(live, "memoryBacking/access[@mode='shared']") is not None

    def take(self, device: Element) -> str:
        """Reserve a socket for a device.

        Returns:
            Why there is none; empty when there is.
        """
        kind = socket(device)
        needs = 1 if kind == "pci" or (kind == "scsi" and not self.scsi) else 0
        if kind is None:
            return "a device of this kind cannot be added to a running guest"
        if device.tag == "filesystem" and not self._shared:
            return "the running guest's memory is not shared, which virtiofs needs"
        if device.tag == "filesystem" and not self.cgroups:
            return "libvirt has no control groups on this host, and its daemon would die of it (seen with 9.0)"
        if kind in ("usb", "virtio-serial") and kind not in self._kinds:
            return f"the running guest has no {kind} controller"
        if needs > self.slots:
            return "the running guest has no free PCI port left"
        self.slots -= needs
        self.scsi = self.scsi or kind == "scsi"
        return ""


def removable(device: Element) -> bool:
    """Whether a device can be taken out of a running guest; whether the guest lets go of it is another matter."""
    return socket(device) is not None
