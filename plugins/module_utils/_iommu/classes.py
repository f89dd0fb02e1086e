# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Short names of the classes of PCI (https://pci-ids.ucw.cz/read/PD/).

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

CLASSES = {
    "0100": "scsi", "0101": "ide", "0104": "raid", "0106": "sata", "0107": "sas", "0108": "nvme",
    "0200": "ethernet", "0207": "infiniband", "0280": "network",
    "0300": "vga", "0302": "3d", "0380": "display",
    "0400": "video", "0401": "audio", "0403": "audio", "0480": "multimedia",
    "0500": "memory", "0502": "cxl",
    "0600": "host_bridge", "0601": "isa_bridge", "0604": "pci_bridge", "0607": "cardbus", "0609": "pci_bridge",
    "0700": "serial", "0780": "communication",
    "0805": "sd", "0806": "iommu", "0880": "system",
    "0c00": "firewire", "0c03": "usb", "0c04": "fibre_channel", "0c05": "smbus", "0c07": "ipmi",
    "0d11": "bluetooth", "0d80": "wireless",
}  # fmt: skip
BASE_CLASSES = {
    "01": "storage", "02": "network", "03": "display", "04": "multimedia", "05": "memory", "06": "bridge",
    "07": "communication", "08": "system", "09": "input", "0b": "processor", "0c": "serial_bus", "0d": "wireless",
    "10": "encryption", "11": "signal_processing", "12": "accelerator", "13": "instrumentation",
}  # fmt: skip


def class_name(class_code: str | None) -> str | None:
    """A short name of a PCI class."""
    if class_code is None:
        return None
    return CLASSES.get(class_code[:4]) or BASE_CLASSES.get(class_code[:2], "other")
