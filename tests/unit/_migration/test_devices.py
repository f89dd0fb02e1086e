# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices of a host, found in a guest and exchanged for those of another one."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._migration import devices

VGPU = "11111111-1111-4111-8111-111111111111"
GUEST = f"""<domain><devices>
<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x01' slot='0x00' function='0x1'/></source>
 <alias name='ua-gpu'/><address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/></hostdev>
<hostdev mode='subsystem' type='usb'><source><vendor id='0x8087'/><product id='0x0a2b'/></source><alias name='ua-bt'/></hostdev>
<hostdev mode='subsystem' type='mdev'><source><address uuid='{VGPU}'/></source><alias name='ua-vgpu'/></hostdev>
<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source></hostdev>
<interface type='hostdev'><source><address type='pci' domain='0x0000' bus='0x02' slot='0x10' function='0x0'/></source></interface>
</devices></domain>"""


def test_devices_have_an_id_a_kind_and_what_they_are_now():
    assert devices.of(xml.parse(GUEST)) == (
        devices.Device("gpu", "pci", "0000:01:00.1"),
        devices.Device("bt", "usb", "8087:0a2b"),
        devices.Device("vgpu", "mdev", VGPU),
        devices.Device("scsi", "other", "scsi"),
        devices.Device("0000:02:10.0", "pci", "0000:02:10.0"),
    )


def test_only_what_is_named_is_exchanged():
    root = xml.parse(GUEST)
    other = VGPU.replace("1", "2")
    devices.exchange(root, {"gpu": "0000:41:00.0", "vgpu": other, "0000:02:10.0": "0001:03:10.2"})
    assert [one.now for one in devices.of(root)] == ["0000:41:00.0", "8087:0a2b", other, "scsi", "0001:03:10.2"]
    # where the guest sees it stays
    assert root.find("devices/hostdev/address").get("bus") == "0x05"


class Node:
    def __init__(self, name, text=""):
        self._name, self._text = name, text

    def name(self):
        return self._name

    def XMLDesc(self):
        return f"<device>{self._text}</device>"


class Lib:
    VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV = 1
    VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV = 2
    VIR_ERR_NO_NODE_DEVICE = VIR_ERR_NO_DOMAIN = VIR_ERR_NO_NETWORK = VIR_ERR_NO_STORAGE_POOL = 5
    VIR_ERR_NO_STORAGE_VOL = 5

    class libvirtError(Exception):
        def get_error_code(self):
            return 5


class Connection:
    def listAllDevices(self, flag):
        if flag == Lib.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV:
            return [Node(f"mdev_{VGPU.replace('-', '_')}_0000_06_00_0")]
        ids = "<vendor id='0x8087'>Intel</vendor><product id='0x0a2b'/>"
        return [Node("usb_1", f"<capability>{ids}</capability>"), Node("usb_2", "<capability/>")]

    def nodeDeviceLookupByName(self, name):
        if name != "pci_0000_41_00_0":
            raise Lib.libvirtError
        return Node(name, "<driver><name>vfio-pci</name></driver>")


@pytest.mark.parametrize(
    ("gpu", "driver"), [("0000:41:00.0", "vfio-pci"), ("0000:42:00.0", None)], ids=["there", "not there"]
)
def test_what_the_destination_has(monkeypatch, gpu, driver):
    monkeypatch.setattr(devices.virt, "libvirt", Lib)
    had = [one for one in devices.of(xml.parse(GUEST)) if one.id in ("gpu", "bt", "vgpu")]
    found = devices.offered(Connection(), had, {"gpu": gpu})
    assert found == {"gpu": driver, "bt": "usb", "vgpu": "mdev"}
