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
    VIR_DOMAIN_XML_INACTIVE = 2
    VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV = 1
    VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV = 2
    VIR_ERR_NO_NODE_DEVICE = VIR_ERR_NO_DOMAIN = VIR_ERR_NO_NETWORK = VIR_ERR_NO_STORAGE_POOL = 5
    VIR_ERR_NO_STORAGE_VOL = 5

    class libvirtError(Exception):
        def get_error_code(self):
            return 5


class Domain:
    def __init__(self, name, text=""):
        self._name, self._text = name, text

    def UUIDString(self):
        return f"uuid-{self._name}"

    def name(self):
        return self._name

    def XMLDesc(self, flags):
        # a device that the running guest has been given, and not its definition
        return GUEST.replace("bus='0x01'", self._text) if flags == 0 else "<domain/>"


GROUP = "<iommuGroup><address bus='0x41' slot='0x00' function='0x0'/><address bus='0x41' slot='0x00' function='0x1'/></iommuGroup>"
NODES = {
    "pci_0000_41_00_0": f"<driver><name>vfio-pci</name></driver><capability type='pci'>{GROUP}</capability>",
    "pci_0000_41_00_1": "<driver><name>snd_hda_intel</name></driver>",
    "pci_0000_43_00_0": "<capability type='pci'/>",
}


class Connection:
    def __init__(self, *domains):
        self._domains = domains

    def listAllDomains(self, flags=0):
        return [Domain("self", "bus='0x43'"), *self._domains]

    def listAllDevices(self, flag):
        if flag == Lib.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV:
            return [Node(f"mdev_{VGPU.replace('-', '_')}_0000_06_00_0")]
        ids = "<vendor id='0x8087'>Intel</vendor><product id='0x0a2b'/>"
        return [Node("usb_1", f"<capability>{ids}</capability>"), Node("usb_2", "<capability/>")]

    def nodeDeviceLookupByName(self, name):
        if name not in NODES:
            raise Lib.libvirtError
        return Node(name, NODES[name])


@pytest.fixture(autouse=True)
def lib(monkeypatch):
    monkeypatch.setattr(devices.virt, "libvirt", Lib)


Offered = devices.Offered


def test_what_the_destination_has():
    had = [one for one in devices.of(xml.parse(GUEST)) if one.id in ("gpu", "bt", "vgpu")]
    there = {"bt": Offered("usb"), "vgpu": Offered("mdev")}
    for address, gpu in (
        ("0000:41:00.0", Offered("vfio-pci", hosted=("0000:41:00.1",))),
        ("0000:43:00.0", Offered("")),
        ("0000:42:00.0", None),
    ):
        assert devices.offered(Connection(), "uuid-self", had, {"gpu": address}) == {"gpu": gpu, **there}
    # whoever runs with one of the group has all of it
    other = Connection(Domain("other", "bus='0x41'"))
    found = devices.offered(other, "uuid-self", had, {"gpu": "0000:41:00.0", "vgpu": VGPU})
    assert found["gpu"].guests == ("other",) and found["vgpu"].guests == ("other",) and found["bt"].guests == ()


@pytest.mark.parametrize(
    ("driver", "hosts"), [("", False), ("pcieport", False), ("vfio-pci", False), ("nouveau", True)]
)
def test_which_drivers_keep_a_group_from_a_guest(monkeypatch, driver, hosts):
    monkeypatch.setitem(NODES, "pci_0000_41_00_1", f"<driver><name>{driver}</name></driver>")
    (gpu,) = (one for one in devices.of(xml.parse(GUEST)) if one.id == "gpu")
    found = devices.offered(Connection(), "uuid-self", [gpu], {"gpu": "0000:41:00.0"})
    assert found["gpu"].hosted == (("0000:41:00.1",) if hosts else ())


def test_a_device_that_the_host_uses_is_not_said_to_be_a_mate_of_its_own(monkeypatch):
    own = f"<driver><name>nouveau</name></driver><capability type='pci'>{GROUP}</capability>"
    monkeypatch.setitem(NODES, "pci_0000_41_00_0", own)
    (gpu,) = (one for one in devices.of(xml.parse(GUEST)) if one.id == "gpu")
    found = devices.offered(Connection(), "uuid-self", [gpu], {"gpu": "0000:41:00.0"})
    assert found["gpu"] == Offered("nouveau", hosted=("0000:41:00.1",))


@pytest.mark.parametrize("flags", [0, Lib.VIR_DOMAIN_XML_INACTIVE])
def test_a_guest_has_what_it_runs_with_and_what_it_is_defined_with(monkeypatch, flags):
    other = Domain("other")
    held = GUEST.replace("bus='0x01'", "bus='0x41'")
    monkeypatch.setattr(other, "XMLDesc", lambda asked: held if asked == flags else "<domain/>")
    (gpu,) = (one for one in devices.of(xml.parse(GUEST)) if one.id == "gpu")
    assert devices.offered(Connection(other), "uuid-self", [gpu], {"gpu": "0000:41:00.0"})["gpu"].guests == ("other",)
