"""What a machine is made of, as QEMU is told it; tests compare what Linux says with this table.

Machines are bare: neither the CPU nor the firmware says that it is emulated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .image import MAC

#: Debian's build of the firmware for virtual machines; the second file is what it keeps variables in.
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
NVME_SIZE = 64 << 20

#: The IOMMUs a machine can have. QEMU must be given one before any other device.
IOMMUS: dict[str, str | None] = {
    "intel": "intel-iommu,intremap=on,caching-mode=on",
    # with interrupt remapping QEMU 7.2's stalls while Linux boots
    "amd": "amd-iommu,intremap=off",
    "virtio": "virtio-iommu-pci,id=iommu,bus=pcie.0,addr=0x1e",
    "none": None,
}

#: Words without which a machine stalls: QEMU 7.2 loses devices' interrupts where its AMD IOMMU translates.
NEEDED = {"amd": "iommu=pt"}

#: Plugged in behind the root ports, in this order: QEMU's driver, its id, the bus, further properties.
DEVICES = (
    ("e1000e", "nic", "port-1", ""),
    ("virtio-net-pci", "vnic", "port-2", "iommu_platform=on,disable-legacy=on,romfile="),
    ("qemu-xhci", "usb", "port-3", ""),
    ("usb-kbd", "keyboard", "usb.0", ""),
    ("usb-tablet", "tablet", "usb.0", ""),
    # a graphics card with its sound: two functions of one slot
    ("secondary-vga", "gpu", "port-4", "addr=0.0,multifunction=on"),
    ("ich9-intel-hda", "gpu-audio", "port-4", "addr=0.1"),
    ("hda-output", "speaker", "gpu-audio.0", "audiodev=silence"),
    # two cards that a bridge to conventional PCI makes one group
    ("pcie-pci-bridge", "bridge", "port-5", ""),
    ("e1000", "old-1", "bridge", "addr=0x1,romfile="),
    ("e1000", "old-2", "bridge", "addr=0x2,romfile="),
    ("x3130-upstream", "switch", "port-6", ""),
    ("xio3130-downstream", "switch-1", "switch", "addr=0x0,chassis=21"),
    ("xio3130-downstream", "switch-2", "switch", "addr=0x1,chassis=22"),
    ("e1000e", "far-1", "switch-1", "romfile="),
    ("e1000e", "far-2", "switch-2", "romfile="),
)
PORTS = 8
#: Plugged into the running machine, since no state can be saved with an NVMe in it.
LATE: tuple[dict[str, object], ...] = (
    {"driver": "nvme", "id": "ssd", "bus": "port-7", "serial": "LAB-SSD", "drive": "ssd"},
    {
        "driver": "nvme",
        "id": "sriov",
        "bus": "port-8",
        "serial": "LAB-SRIOV",
        "subsys": "subsystem",
        "sriov_max_vfs": 2,
        "sriov_vq_flexible": 4,
        "sriov_vi_flexible": 2,
    },
)


@dataclass(frozen=True)
class Files:
    """What a machine's command line names, all in the machine's own folder."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The layer above the image that this machine writes to."""
        return self.folder / "root.qcow2"

    @property
    def ssd(self) -> Path:
        """The medium of the NVMe drive `ssd`, raw."""
        return self.folder / "ssd.raw"

    @property
    def variables(self) -> Path:
        """The firmware's variables."""
        return self.folder / "variables.fd"

    @property
    def qmp(self) -> Path:
        """QEMU's control socket."""
        return self.folder / "qmp"

    @property
    def port(self) -> Path:
        """Holds the number of the outer machine's port that leads to ssh."""
        return self.folder / "port"

    @property
    def console(self) -> Path:
        """All that came out of the serial console."""
        return self.folder / "console.log"


def _options(iommu: str, files: Files) -> Iterable[tuple[str, str]]:
    yield "name", "metal"
    yield "machine", "q35,vmport=off"
    yield "accel", "tcg,thread=multi,tb-size=1024"
    # without the two that make the kernel copy byte by byte, which emulated takes eight times as long
    yield "cpu", "max,la57=off,-hypervisor,-erms,-fsrm"
    yield "smp", "2"
    yield "m", "3G"
    yield "rtc", "base=utc"
    yield "display", "none"
    yield "vga", "none"
    yield "smbios", "type=0,vendor=Phyllome,version=lab"
    yield "smbios", "type=1,manufacturer=Phyllome,product=Metal"
    yield "smbios", "type=2,manufacturer=Phyllome,product=Metal"
    yield "smbios", "type=3,manufacturer=Phyllome"
    yield "serial", f"file:{files.console}"
    yield "qmp", f"unix:{files.qmp},server=on,wait=off"
    yield "drive", f"if=none,id=root,file={files.disk},format=qcow2,cache=unsafe,discard=unmap"
    yield "drive", f"if=none,id=ssd,file={files.ssd},format=raw,cache=unsafe"
    yield "netdev", "user,id=management,hostfwd=tcp:127.0.0.1:0-:22"
    yield "audiodev", "none,id=silence"
    yield "device", "nvme-subsys,id=subsystem"
    if IOMMUS[iommu]:
        yield "device", str(IOMMUS[iommu])
    yield "device", "virtio-blk-pci,id=root-disk,bus=pcie.0,addr=0x2,drive=root,bootindex=1"
    yield "device", f"virtio-net-pci,id=management-nic,bus=pcie.0,addr=0x3,netdev=management,mac={MAC},romfile="
    for number in range(1, PORTS + 1):
        yield "device", f"pcie-root-port,id=port-{number},bus=pcie.0,addr={3 + number:#x},chassis={number}"
    for driver, name, bus, more in DEVICES:
        yield "device", ",".join(filter(None, (driver, f"id={name}", f"bus={bus}", more)))


def command(iommu: str, files: Files) -> list[str]:
    """QEMU's command line for a machine, without how it is to boot."""
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config"]
    return words + [word for name, value in _options(iommu, files) for word in (f"-{name}", value)]


def firmware(files: Files) -> list[str]:
    """More of the command line: UEFI, which starts the boot loader on the disk."""
    code, _ = FIRMWARE
    drives = f"if=pflash,format=raw,readonly=on,file={code}", f"if=pflash,format=raw,file={files.variables}"
    return [word for drive in drives for word in ("-drive", drive)]
