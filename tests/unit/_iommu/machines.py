# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines composed by hand, for the tests: a description of a few lines becomes a tree like /sys and /proc.

A tree can also be kept as text, one file a line, which git and tarballs carry better than a thousand
small files with colons in their names::

    sys/class/net/eth0 -> ../../devices/pci0000:00/0000:00:03.0/net/eth0
    proc/cmdline = root=/dev/vda quiet\\n
    sys/firmware/acpi/tables/DMAR hex 444d4152…
    sys/kernel/iommu_groups/
"""

from __future__ import annotations

import json
import pathlib
import posixpath
import re
import tempfile
import typing as t

from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather

KERNEL = "6.12.9"
CONFIG = {"PCI": "y", "INTEL_IOMMU": "y", "AMD_IOMMU": "y", "IRQ_REMAP": "y"}
CONFIG |= {"VFIO": "m", "VFIO_PCI": "m", "VFIO_IOMMU_TYPE1": "m"}
ALIASES = """\
# Aliases extracted from modules themselves.
alias pci:v000010DEd*sv*sd*bc03sc02i00* nvidia
alias pci:v000010DEd*sv*sd*bc03sc00i00* nvidia
alias pci:v000010DEd*sv*sd*bc03sc*i* nouveau
alias pci:v*d*sv*sd*bc04sc03i00* snd_hda_intel
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias pci:v000015B3d00001015sv*sd*bc*sc*i* mlx5_core
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000015B3d00001015sv*sd*bc*sc*i* mlx5_vfio_pci
alias usb:v1D6Bp*d*dc*dsc*dp*ic*isc*ip*in* hub
"""
PCI_IDS = """\
# Maintained by people
10de  NVIDIA Corporation
\t2204  GA102 [GeForce RTX 3090]
\t\t1043 87d9  TUF
144d  Samsung Electronics Co Ltd

C 01  Mass storage controller
\t2204  no device
"""
_LINE = re.compile(r"(.+?) (->|hex|=)(?: (.*))?$")  # no editor leaves a space at the end of a line
FIRST_NAMESPACE = "pid:[4026531836]"


class Machine:
    """Files, links and empty directories, by path."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.directories: set[str] = set()
        self.unit: str | None = None

    # the tree

    def file(self, path: str, content: str | bytes) -> None:
        self.files[path] = content.encode() if isinstance(content, str) else content

    def more(self, path: str, line: str) -> None:
        self.files[path] = self.files.get(path, b"") + line.encode()

    def link(self, path: str, target: str) -> None:
        """A relative link to a path of the tree, as the kernel makes them."""
        self.links[path] = posixpath.relpath(target, posixpath.dirname(path))

    def remove(self, path: str) -> None:
        """A file, a link or a whole directory."""
        for kept in (self.files, self.links):
            for name in [name for name in kept if name == path or name.startswith(path + "/")]:
                del kept[name]
        self.directories = {name for name in self.directories if name != path and not name.startswith(path + "/")}

    def write(self, root: pathlib.Path) -> str:
        root.mkdir(parents=True, exist_ok=True)
        made: set[pathlib.Path] = set()
        for path in self.directories:
            (root / path).mkdir(parents=True, exist_ok=True)
        for path in [*self.files, *self.links]:
            parent = (root / path).parent
            if parent not in made:
                parent.mkdir(parents=True, exist_ok=True)
                made.add(parent)
        for path, content in self.files.items():
            (root / path).write_bytes(content)
        for path, target in self.links.items():
            (root / path).symlink_to(target)
        return str(root)

    def text(self) -> str:
        lines = [f"{path}/" for path in self.directories]
        lines += [f"{path} -> {target}" for path, target in self.links.items()]
        for path, content in self.files.items():
            try:
                plain = content.decode().replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
                if not plain.isprintable():
                    raise ValueError
                lines.append(f"{path} = {plain}")
            except ValueError:
                lines.append(f"{path} hex {content.hex()}")
        return "\n".join(sorted(lines)) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Machine:
        machine = cls()
        for line in text.splitlines():
            match = _LINE.match(line)
            if match is None:
                machine.directories.add(line.rstrip("/"))
                continue
            path, sign, value = match.groups(default="")
            if sign == "->":
                machine.links[path] = value
            elif sign == "hex":
                machine.files[path] = bytes.fromhex(value)
            else:
                parts = [part.replace("\\n", "\n").replace("\\t", "\t") for part in value.split("\\\\")]
                machine.files[path] = "\\".join(parts).encode()
        return machine

    # what is in it

    def host(
        self,
        *,
        vendor: str = "GenuineIntel",
        flags: str = "vmx",
        tables: t.Iterable[str] = (),
        cmdline: str = "quiet",
        config: t.Mapping[str, str] | None = None,
        chassis: int = 3,
        sys_vendor: str = "ASRock",
        board: str = "X570 Taichi",
    ) -> None:
        """What every machine has, with nothing in it."""
        self.file("proc/cpuinfo", f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
        self.file("proc/sys/kernel/osrelease", f"{KERNEL}\n")
        self.file("proc/cmdline", f"BOOT_IMAGE=/vmlinuz root=/dev/mapper/root {cmdline}\n")
        self.links["proc/self"] = "4242"
        self.links["proc/4242/ns/pid"] = FIRST_NAMESPACE
        self.file("proc/4242/environ", b"PATH=/usr/bin\0LANG=C\0")
        self.file("proc/4242/stat", "4242 (python3 (x)) S 1 4242 4242 0 -1\n")
        self.file("proc/4242/comm", "python3\n")
        self.file("proc/4242/mountinfo", "22 1 0:21 / /proc rw,nosuid shared:12 - proc proc rw\n")
        self.directories.add("proc/4242/fd")
        self.file("proc/1/comm", "systemd\n")
        self.links["proc/1/fd/0"] = "/dev/null"
        self.file("proc/swaps", "Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n")
        self.file("proc/iomem", "00000000-00000fff : Reserved\n00100000-7fffffff : System RAM\n")
        self.file("proc/consoles", "tty0                 -WU (EC  p  )    4:1\n")
        self.file(
            "proc/net/route", "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        )
        self.file("proc/net/if_inet6", "00000000000000000000000000000001 01 80 10 80       lo\n")
        self.file("proc/net/ipv6_route", f"{'0' * 31}1 80 {'0' * 32} 00 {'0' * 32} 00000000 2 0 80200001       lo\n")
        self.file(
            "proc/net/fib_trie",
            "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n",
        )
        names = ("bus/pci/devices", "class/block", "class/net", "class/input", "class/iommu", "dev/char", "dev/block")
        self.directories |= {f"sys/{name}" for name in (*names, "kernel/iommu_groups")}
        self.interface("lo", state="unknown")
        self.directories.add("sys/firmware/acpi/tables")
        for table in tables:
            self.table(table)
        for number, chip in enumerate(("IO-APIC", "PCI-MSI-0000:00:1f.2")):
            self.file(f"sys/kernel/irq/{number}/chip_name", f"{chip}\n")
        self.file(
            f"boot/config-{KERNEL}",
            "".join(f"CONFIG_{key}={value}\n" for key, value in {**CONFIG, **(config or {})}.items() if value != "n")
            + "# CONFIG_INTEL_IOMMU_SVM is not set\n",
        )
        self.file(f"usr/lib/modules/{KERNEL}/modules.alias", ALIASES)
        self.file("usr/share/misc/pci.ids", PCI_IDS)
        dmi = {"sys_vendor": sys_vendor, "board_vendor": sys_vendor, "board_name": board, "bios_version": "P5.00"}
        for key, value in {**dmi, "chassis_type": str(chassis)}.items():
            self.file(f"sys/class/dmi/id/{key}", f"{value}\n")

    def table(self, name: str, flags: int = 1) -> None:
        """A firmware table; ``flags`` is the flags byte of a DMAR."""
        self.file(f"sys/firmware/acpi/tables/{name}", name.encode() + b"\0" * 32 + bytes([38, flags]) + b"\0" * 10)

    def iommu_on(self, units: t.Iterable[str] = ("dmar0",), remapping: bool = True) -> None:
        """The functions that are added from now on are behind the last of the units."""
        for unit in units:
            kind = "intel" if unit.startswith("dmar") else "amd"
            path = f"sys/devices/virtual/iommu/{unit}"
            self.file(f"{path}/{kind}-iommu/cap", "d2008c40660462\n")
            if kind == "intel":
                self.file(f"{path}/{kind}-iommu/ecap", "f050da\n")
                self.file(f"{path}/{kind}-iommu/address", "fed91000\n")
            self.link(f"sys/class/iommu/{unit}", path)
            self.unit = path
        if remapping:
            self.file("sys/kernel/irq/1/chip_name", "IR-PCI-MSI-0000:00:1f.2\n")

    def pci(
        self,
        address: str,
        ids: str,
        kind: str,
        *,
        behind: str | None = None,
        group: int | None = None,
        driver: str | None = None,
        subsystem: str = "1849:ffff",
        reset: str | None = "flr bus",
        bars: t.Iterable[int] = (),
        link: str | None = None,
        **attributes: str,
    ) -> str:
        """A function; ``behind`` is the bridge it is behind, ``link`` such as ``8.0 x4 of 16.0 x16``. Returns its path."""
        root = f"pci{address.rpartition(':')[0]}"
        if behind is None:
            path = f"sys/devices/{root}/{address}"
        else:
            above = posixpath.normpath(
                posixpath.join("sys/bus/pci/devices", self.links[f"sys/bus/pci/devices/{behind}"])
            )
            # Another domain than that of what it is behind: a host bridge of its own, as VMD makes them.
            middle = "" if address.partition(":")[0] == behind.partition(":")[0] else f"/{root}"
            path = f"{above}{middle}/{address}"
        vendor, dummy, device = ids.partition(":")
        sub_vendor, dummy, sub_device = subsystem.partition(":")
        self.link(f"sys/bus/pci/devices/{address}", path)
        event = [f"PCI_CLASS={kind.lstrip('0').upper()}", f"PCI_ID={ids.upper()}", f"PCI_SUBSYS_ID={subsystem.upper()}"]
        values = {
            "vendor": f"0x{vendor}",
            "device": f"0x{device}",
            "subsystem_vendor": f"0x{sub_vendor}",
            "subsystem_device": f"0x{sub_device}",
            "class": f"0x{kind}",
            "revision": "0x01",
            "numa_node": "-1",
            "power_state": "D0",
            "driver_override": "(null)",
            "modalias": f"pci:v0000{vendor.upper()}d0000{device.upper()}sv0000{sub_vendor.upper()}sd0000"
            f"{sub_device.upper()}bc{kind[:2].upper()}sc{kind[2:4].upper()}i{kind[4:].upper()}",
            **attributes,
        }
        if link:
            speed, width, max_speed, max_width = re.split(r" x| of ", link)
            values |= {"current_link_speed": f"{speed} GT/s PCIe", "current_link_width": width}
            values |= {"max_link_speed": f"{max_speed} GT/s PCIe", "max_link_width": max_width}
        event = [*([f"DRIVER={driver}"] if driver else []), *event, f"PCI_SLOT_NAME={address}"]
        self.file(f"{path}/uevent", "\n".join([*event, f"MODALIAS={values['modalias']}"]) + "\n")
        if reset is not None:
            values["reset_method"] = reset
        for name, value in values.items():
            self.file(f"{path}/{name}", f"{value}\n")
        start = 0x8000000000
        regions = []
        for size in bars:
            regions.append(f"0x{start:016x} 0x{start + size - 1:016x} 0x000000000014220c")
            start += size
        regions += [f"0x{0:016x} 0x{0:016x} 0x{0:016x}"] * (13 - len(regions))
        self.file(f"{path}/resource", "\n".join(regions) + "\n")
        if kind.startswith("0604"):
            self.file(f"{path}/secondary_bus_number", "1\n")
        if driver:
            self.link(f"{path}/driver", f"sys/bus/pci/drivers/{driver}")
            self.link(f"sys/bus/pci/drivers/{driver}/{address}", path)
        if group is not None:
            self.link(f"{path}/iommu_group", f"sys/kernel/iommu_groups/{group}")
            if self.unit:
                self.link(f"{path}/iommu", self.unit)
            self.link(f"sys/kernel/iommu_groups/{group}/devices/{address}", path)
            self.file(f"sys/kernel/iommu_groups/{group}/type", "DMA-FQ\n")
            reserved = b"0x00000000fee00000 0x00000000feefffff msi\n"
            self.files.setdefault(f"sys/kernel/iommu_groups/{group}/reserved_regions", reserved)
        return path

    def acs(self, address: str, control: int | None) -> None:
        """Configuration space of a bridge; ``control`` of its access control, None for none."""
        # An extended capability of another kind first: 0x0001, version 2, next at 0x148.
        config = bytearray(4096)
        config[0x100:0x104] = (0x148 << 20 | 2 << 16 | 1).to_bytes(4, "little")
        config[0x148:0x14C] = (1 << 16 | (0x10 if control is None else 0x0D)).to_bytes(4, "little")
        config[0x14E:0x150] = (control or 0).to_bytes(2, "little")
        self.file(f"{self.path_of(address)}/config", bytes(config))

    def path_of(self, address: str) -> str:
        return posixpath.normpath(posixpath.join("sys/bus/pci/devices", self.links[f"sys/bus/pci/devices/{address}"]))

    def gpu(self, address: str, card: int, connectors: t.Mapping[str, bool]) -> None:
        path = f"{self.path_of(address)}/drm/card{card}"
        self.file(f"{path}/dev", f"226:{card}\n")
        self.node("char", f"226:{card}", path)
        for name, enabled in connectors.items():
            self.file(f"{path}/card{card}-{name}/enabled", "enabled\n" if enabled else "disabled\n")

    def console(self, address: str, buffer: int) -> None:
        """The text console on the frame buffer of a graphics card."""
        for number, (name, bound) in enumerate((("(S) dummy device", 0), ("(M) frame buffer device", 1))):
            path = f"sys/devices/virtual/vtconsole/vtcon{number}"
            self.file(f"{path}/name", f"{name}\n")
            self.file(f"{path}/bind", f"{bound}\n")
            self.link(f"sys/class/vtconsole/vtcon{number}", path)
        path = f"{self.path_of(address)}/graphics/fb{buffer}"
        self.file(f"{path}/name", "drmfb\n")
        self.link(f"sys/class/graphics/fb{buffer}", path)

    def node(self, kind: str, number: str, path: str) -> None:
        self.link(f"sys/dev/{kind}/{number}", path)

    def _block(self, path: str, number: str, content: str | None) -> None:
        name = posixpath.basename(path)
        self.file(f"{path}/dev", f"{number}\n")
        self.directories.add(f"{path}/holders")
        self.link(f"sys/class/block/{name}", path)
        self.node("block", number, path)
        self.file(f"dev/{name}", "free\n")
        if content is not None:
            self.file(f"run/udev/data/b{number}", f"I:1\nE:ID_PATH=x\n{content}")

    def disk(
        self, name: str, on: str, number: str, parts: t.Mapping[str, str] | None = None, content: str = ""
    ) -> None:
        """A disk of a PCI function; ``parts`` are partitions and their contents."""
        major, dummy, minor = number.partition(":")
        where = f"nvme/{name.partition('n1')[0]}" if name.startswith("nvme") else "ata1/host0/target0:0:0/0:0:0:0/block"
        path = f"{self.path_of(on)}/{where}/{name}"
        kind = "PART_TABLE_TYPE=gpt" if parts else f"FS_TYPE={content}"
        self._block(path, number, f"E:ID_{kind}\n" if parts or content else "")
        self.directories.add(f"{path}/slaves")
        for count, (part, kind) in enumerate((parts or {}).items(), 1):
            self._block(f"{path}/{part}", f"{major}:{int(minor) + count}", f"E:ID_FS_TYPE={kind}\n" if kind else "")
            self.file(f"{path}/{part}/partition", f"{count}\n")

    def stacked(self, name: str, number: str, below: t.Iterable[str], alias: str | None = None) -> None:
        """A device mapper or md device made of others."""
        path = f"sys/devices/virtual/block/{name}"
        self._block(path, number, None)
        self.directories.add(f"{path}/slaves")
        for lower in below:
            lower_path = posixpath.normpath(posixpath.join("sys/class/block", self.links[f"sys/class/block/{lower}"]))
            self.link(f"{path}/slaves/{lower}", lower_path)
            self.link(f"{lower_path}/holders/{name}", path)
        if alias:
            self.file(f"{path}/dm/name", f"{alias}\n")

    def mount(self, number: str, point: str, fstype: str, source: str) -> None:
        self.more("proc/4242/mountinfo", f"30 1 {number} / {point} rw,relatime shared:1 - {fstype} {source} rw\n")

    def swap(self, path: str, kind: str = "partition") -> None:
        self.more("proc/swaps", f"{path}\t{kind}\t8388604\t0\t-2\n")

    def interface(
        self,
        name: str,
        on: str | None = None,
        *,
        state: str = "up",
        below: t.Iterable[str] = (),
        master: str | None = None,
    ) -> None:
        path = f"sys/devices/virtual/net/{name}" if on is None else f"{self.path_of(on)}/net/{name}"
        self.link(f"sys/class/net/{name}", path)
        self.file(f"{path}/operstate", f"{state}\n")
        self.file(f"{path}/address", "52:54:00:12:34:56\n")
        for lower in below:
            lower_path = posixpath.normpath(posixpath.join("sys/class/net", self.links[f"sys/class/net/{lower}"]))
            self.link(f"{path}/lower_{lower}", lower_path)
            self.link(f"{lower_path}/upper_{name}", path)
        if master:
            self.link(f"{path}/master", f"sys/devices/virtual/net/{master}")

    def route(self, interface: str, destination: str = "00000000", mask: str = "00000000", flags: str = "0003") -> None:
        gateway = "0100A8C0" if flags == "0003" else "00000000"
        self.more("proc/net/route", f"{interface}\t{destination}\t{gateway}\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0   \n")

    def process(self, pid: int, name: str, opened: t.Iterable[str]) -> None:
        self.file(f"proc/{pid}/comm", f"{name}\n")
        for number, path in enumerate(opened):
            self.links[f"proc/{pid}/fd/{number}"] = path

    def keyboard(self, number: int, path: str, name: str = "Keyboard") -> None:
        path = f"{path}/input/input{number}"
        self.link(f"sys/class/input/input{number}", path)
        self.file(f"{path}/capabilities/key", "10000 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe\n")
        self.file(f"{path}/name", f"{name}\n")


# Machines. Addresses, ids and groups are those of real ones; what does not matter is left out.


def desktop() -> Machine:
    """AMD desktop: two identical graphics cards, one for the screen; a disk in use, a partitioned and an empty one."""
    m = Machine()
    m.host(vendor="AuthenticAMD", flags="svm", tables=["IVRS"], cmdline="quiet iommu=pt")
    m.iommu_on(["ivhd0"])
    m.pci("0000:00:00.0", "1022:1480", "060000", group=0, reset=None)
    for slot, group in (("01", 1), ("03", 3), ("07", 5)):
        m.pci(f"0000:00:{slot}.0", "1022:1482", "060000", group=group, reset=None)
    m.pci("0000:00:01.1", "1022:1483", "060400", group=2, driver="pcieport", reset="pm")
    m.pci("0000:00:01.2", "1022:1483", "060400", group=6, driver="pcieport", reset="pm")
    m.pci("0000:00:01.3", "1022:1483", "060400", group=7, driver="pcieport", reset="pm")
    m.pci("0000:00:01.4", "1022:1483", "060400", group=8, driver="pcieport", reset="pm")
    m.pci("0000:00:03.1", "1022:1483", "060400", group=4, driver="pcieport", reset="pm")
    m.pci("0000:00:03.2", "1022:1483", "060400", group=9, driver="pcieport", reset="pm")
    m.pci("0000:00:14.0", "1022:790b", "0c0500", group=10, driver="piix4_smbus", reset=None)
    m.pci("0000:00:14.3", "1022:790e", "060100", group=10, reset=None)
    # The first card in the slot of the second: bus numbers do not say which one is which.
    for bus, bridge, group, boot in (("0a", "0000:00:01.1", 20, "1"), ("0b", "0000:00:03.1", 21, "0")):
        m.pci(f"0000:{bus}:00.0", "10de:2204", "030000", behind=bridge, group=group, driver="nouveau",
              subsystem="1043:87d9", boot_vga=boot, reset="bus", bars=[16 << 20, 24 << 30],
              link="2.5 x16 of 16.0 x16" if boot == "1" else "16.0 x4 of 16.0 x16", revision="0xa1")  # fmt: skip
        m.pci(f"0000:{bus}:00.1", "10de:1aef", "040300", behind=bridge, group=group, driver="snd_hda_intel",
              subsystem="1043:87d9", reset=None)  # fmt: skip
    m.file("sys/bus/pci/slots/1/address", "0000:0a:00\n")
    m.file("sys/bus/pci/slots/2/address", "0000:0b:00\n")
    m.gpu("0000:0a:00.0", 0, {"DP-1": True, "HDMI-A-1": False})
    m.gpu("0000:0b:00.0", 1, {"DP-2": False})
    nvme = (
        ("0000:01:00.0", "0000:00:01.2", 22),
        ("0000:02:00.0", "0000:00:01.3", 23),
        ("0000:03:00.0", "0000:00:01.4", 24),
    )
    for number, (address, bridge, group) in enumerate(nvme):
        path = m.pci(address, "144d:a80a", "010802", behind=bridge, group=group, driver="nvme", bars=[16384])
        m.file(f"{path}/nvme/nvme{number}/serial", f"S5GXNX0T{number}\n")
    m.disk("nvme0n1", "0000:01:00.0", "259:0", {"nvme0n1p1": "vfat", "nvme0n1p2": "ext4"})
    m.disk("nvme1n1", "0000:02:00.0", "259:8", {"nvme1n1p1": "ntfs"})
    m.disk("nvme2n1", "0000:03:00.0", "259:16")
    m.mount("259:2", "/", "ext4", "/dev/nvme0n1p2")
    m.mount("259:1", "/boot/efi", "vfat", "/dev/nvme0n1p1")
    m.swap("/swapfile", "file")
    m.pci("0000:05:00.0", "8086:1539", "020000", behind="0000:00:03.2", group=25, driver="igb", bars=[1 << 17])
    m.interface("enp5s0", "0000:05:00.0")
    m.route("enp5s0")
    m.route("enp5s0", "0000A8C0", "00FFFFFF", "0001")
    usb = m.pci("0000:07:00.3", "1022:149c", "0c0330", group=26, driver="xhci_hcd")
    m.pci("0000:07:00.1", "1022:149c", "0c0330", group=27, driver="xhci_hcd")
    m.keyboard(3, f"{usb}/usb1/1-2/1-2:1.0/0003:046D:C31C.0001")
    m.process(700, "Xorg", ["/dev/tty1", "/dev/dri/card0", "/dev/input/event3"])
    m.file("sys/module/kvm_amd/parameters/nested", "1\n")
    m.console("0000:0a:00.0", 0)
    return m


def laptop() -> Machine:
    """Intel laptop: root on LUKS on an NVMe in a five-digit domain behind VMD; Wi-Fi is the way out."""
    m = Machine()
    m.host(tables=["DMAR"], config={"INTEL_IOMMU_DEFAULT_ON": "y"}, chassis=10, sys_vendor="LENOVO", board="20XW")
    m.table("DMAR", flags=5)
    m.iommu_on(["dmar0", "dmar1"])
    m.pci("0000:00:00.0", "8086:9a14", "060000", group=1, reset=None)
    m.pci("0000:00:02.0", "8086:9a49", "030000", group=0, driver="i915", boot_vga="1", reset="flr", bars=[1 << 24])
    m.gpu("0000:00:02.0", 0, {"eDP-1": True})
    m.pci("0000:00:0e.0", "8086:9a0b", "010400", group=5, driver="vmd", reset=None, bars=[1 << 25])
    m.pci("10000:e0:06.0", "8086:9a09", "060400", behind="0000:00:0e.0", group=5, driver="pcieport", reset="pm")
    m.pci("10000:e1:00.0", "144d:a80b", "010802", behind="10000:e0:06.0", group=5, driver="nvme", bars=[16384])
    m.disk("nvme0n1", "10000:e1:00.0", "259:0", {"nvme0n1p1": "vfat", "nvme0n1p2": "ext4", "nvme0n1p3": "crypto_LUKS"})
    m.stacked("dm-0", "253:0", ["nvme0n1p3"], "luks-root")
    m.stacked("dm-1", "253:1", ["dm-0"], "fedora-root")
    m.mount("253:1", "/", "xfs", "/dev/mapper/fedora-root")
    m.mount("259:2", "/boot", "ext4", "/dev/nvme0n1p2")
    m.pci("0000:00:14.0", "8086:a0ed", "0c0330", group=7, driver="xhci_hcd")
    m.pci("0000:00:14.3", "8086:a0f0", "028000", group=8, driver="iwlwifi", reset="flr")
    m.interface("wlp0s20f3", "0000:00:14.3")
    m.route("wlp0s20f3")
    # What sits on the PCH shares a group with its ISA and SMBus functions.
    m.pci("0000:00:1f.0", "8086:a082", "060100", group=11, reset=None)
    m.pci("0000:00:1f.3", "8086:a0c8", "040100", group=11, driver="sof-audio-pci-intel-tgl", reset=None)
    m.pci("0000:00:1f.4", "8086:a0a3", "0c0500", group=11, driver="i801_smbus", reset=None)
    m.keyboard(0, "sys/devices/platform/i8042/serio0")
    return m


def server() -> Machine:
    """Intel server: bridge on VLAN on bond for the host; LVM on md on two NVMe; a spare NIC and an HBA in one group."""
    m = Machine()
    m.host(tables=["DMAR"], cmdline="intel_iommu=on iommu=pt", chassis=23, sys_vendor="Dell Inc.", board="0M83RX")
    m.table("DMAR", flags=1)
    m.iommu_on(["dmar0", "dmar1"])
    for number, bus in enumerate(("17", "3a", "5d")):
        m.pci(f"0000:{bus}:00.0", "8086:2030", "060400", group=30 + number, driver="pcieport", reset="pm")
    for function, group in ((0, 40), (1, 41)):
        m.pci(f"0000:18:00.{function}", "15b3:1015", "020000", behind="0000:17:00.0", group=group, driver="mlx5_core",
              numa_node="0", sriov_totalvfs="8", sriov_numvfs="0", sriov_drivers_autoprobe="1")  # fmt: skip
        m.interface(f"eno{function + 1}", f"0000:18:00.{function}")
    m.interface("bond0", below=["eno1", "eno2"])
    for name in ("eno1", "eno2"):
        m.link(
            f"{m.path_of('0000:18:00.' + str(int(name[-1]) - 1))}/net/{name}/master", "sys/devices/virtual/net/bond0"
        )
    m.file("sys/devices/virtual/net/bond0/bonding/slaves", "eno1 eno2\n")
    m.file("sys/class/net/bonding_masters", "bond0\n")
    m.interface("bond0.100", below=["bond0"])
    m.interface("br0", below=["bond0.100"])
    m.link("sys/devices/virtual/net/bond0.100/master", "sys/devices/virtual/net/br0")
    m.route("br0")
    m.route("br0", "0000A8C0", "00FFFFFF", "0001")
    for number, address in enumerate(("0000:3b:00.0", "0000:3c:00.0")):
        bridge = m.pci(
            f"0000:3a:0{number + 1}.0", "8086:2031", "060400", group=50 + number, driver="pcieport", reset="pm"
        )
        m.pci(address, "8086:0a54", "010802", behind=posixpath.basename(bridge), group=52 + number, driver="nvme",
              numa_node="0")  # fmt: skip
        name = f"nvme{number}n1"
        m.disk(name, address, f"259:{number * 8}", {f"{name}p1": "vfat", f"{name}p2": "linux_raid_member"})
    m.stacked("md127", "9:127", ["nvme0n1p2", "nvme1n1p2"])
    m.stacked("dm-0", "253:0", ["md127"], "vg-root")
    m.stacked("dm-1", "253:1", ["md127"], "vg-swap")
    m.mount("253:0", "/", "xfs", "/dev/mapper/vg-root")
    m.mount("259:1", "/boot/efi", "vfat", "/dev/nvme0n1p1")
    m.swap("/dev/dm-1")
    # A riser without ACS: NIC and HBA can only be given away together.
    m.pci("0000:5e:00.0", "8086:1521", "020000", behind="0000:5d:00.0", group=60, driver="igb")
    m.pci("0000:5e:01.0", "1000:0097", "010700", behind="0000:5d:00.0", group=60, driver="mpt3sas")
    m.interface("ens1", "0000:5e:00.0", state="down")
    m.pci("0000:02:00.0", "102b:0536", "030000", group=33, driver="mgag200", boot_vga="1")
    m.gpu("0000:02:00.0", 0, {"VGA-1": False})
    return m


def sriov() -> Machine:
    """The server with two virtual functions, one of them with a running guest."""
    m = server()
    path = m.path_of("0000:5e:00.0")
    m.file(f"{path}/sriov_totalvfs", "7\n")
    m.file(f"{path}/sriov_numvfs", "2\n")
    for number in (0, 1):
        address = f"0000:5e:10.{number}"
        driver = "vfio-pci" if number else "igbvf"
        below = m.pci(address, "8086:1520", "020000", behind="0000:5d:00.0", group=70 + number, driver=driver)
        m.link(f"{below}/physfn", path)
        m.link(f"{path}/virtfn{number}", below)
    m.interface("ens1v0", "0000:5e:10.0", state="down")
    m.process(3000, "qemu-system-x86", ["/dev/kvm", "/dev/vfio/71", "/dev/vfio/vfio"])
    return m


def guest() -> Machine:
    """A virtual machine without an IOMMU, and a kernel that shows an empty iommu_groups."""
    m = Machine()
    m.host(flags="vmx hypervisor", config={"INTEL_IOMMU": "n"}, sys_vendor="QEMU", chassis=1, board="Standard PC")
    m.pci("0000:00:01.0", "1234:1111", "030000", driver="bochs-drm", boot_vga="1", reset=None)
    m.gpu("0000:00:01.0", 0, {"Virtual-1": True})
    m.pci("0000:00:03.0", "1af4:1000", "020000", driver="virtio-pci", reset=None)
    m.interface("eth0", "0000:00:03.0")
    m.route("eth0")
    path = m.pci("0000:00:04.0", "1af4:1001", "010000", driver="virtio-pci", reset=None)
    m._block(f"{path}/virtio1/block/vda", "254:0", "E:ID_FS_TYPE=ext4\n")
    m.directories.add(f"{path}/virtio1/block/vda/slaves")
    m.mount("254:0", "/", "ext4", "/dev/vda")
    return m


def bare(**host: t.Any) -> Machine:
    """An Intel machine with an IOMMU that is not on, one disk and one NIC."""
    m = Machine()
    m.host(**host)
    m.pci("0000:00:17.0", "8086:a352", "010601", driver="ahci", reset=None)
    m.disk("sda", "0000:00:17.0", "8:0", {"sda1": "ext4"})
    m.mount("8:1", "/", "ext4", "/dev/sda1")
    m.pci("0000:00:1f.6", "8086:15bc", "020000", driver="e1000e", reset="pm")
    m.interface("eno1", "0000:00:1f.6")
    m.route("eno1")
    return m


def one_group() -> Machine:
    """Intel desktop of 2014: its processor's ports lack access control, so NIC and HBA share a group with both."""
    m = Machine()
    m.host(tables=["DMAR"], cmdline="intel_iommu=on", sys_vendor="ASUSTeK COMPUTER INC.", board="Z97-WS")
    m.iommu_on(["dmar0", "dmar1"])
    m.pci("0000:00:00.0", "8086:0c00", "060000", group=0, reset=None)
    for function in (0, 1):
        m.pci(f"0000:00:01.{function}", f"8086:0c0{1 + 4 * function}", "060400", group=1, driver="pcieport", reset="pm")
        m.acs(f"0000:00:01.{function}", None)
    for function in (0, 1):
        m.pci(f"0000:01:00.{function}", "8086:10fb", "020000", behind="0000:00:01.0", group=1, driver="ixgbe",
              subsystem="8086:000c", bars=[1 << 19])  # fmt: skip
        m.interface(f"enp1s0f{function}", f"0000:01:00.{function}", state="down" if function else "up")
    m.route("enp1s0f0")
    m.pci("0000:02:00.0", "1000:0072", "010700", behind="0000:00:01.1", group=1, driver="mpt3sas",
          subsystem="1000:3020", bars=[1 << 8, 1 << 14])  # fmt: skip
    m.disk("sdb", "0000:02:00.0", "8:16", {"sdb1": "ext4"})
    m.pci("0000:00:1f.0", "8086:8cc6", "060100", group=9, driver="lpc_ich", reset=None)
    m.pci("0000:00:1f.2", "8086:8c82", "010601", group=9, driver="ahci", reset=None)
    m.pci("0000:00:1f.3", "8086:8ca2", "0c0500", group=9, driver="i801_smbus", reset=None)
    m.disk("sda", "0000:00:1f.2", "8:0", {"sda1": "ext4"})
    m.mount("8:1", "/", "ext4", "/dev/sda1")
    return m


def no_table() -> Machine:
    """Intel office PC whose firmware has VT-d switched off, and VT-x as well."""
    m = bare(flags="", config={"INTEL_IOMMU_DEFAULT_ON": "y"}, sys_vendor="Dell Inc.", board="0T10XW")
    m.pci("0000:00:02.0", "8086:9bc8", "030000", driver="i915", boot_vga="1", reset="flr", bars=[1 << 24])
    m.gpu("0000:00:02.0", 0, {"DP-1": True})
    return m


def disabled() -> Machine:
    """AMD machine with its table, and ``amd_iommu=off`` on the command line of this boot and of the next."""
    m = bare(vendor="AuthenticAMD", flags="svm", tables=["IVRS"], cmdline="amd_iommu=off", sys_vendor="Gigabyte",
             board="B550 AORUS")  # fmt: skip
    m.file("boot/grub/grub.cfg", "menuentry 'Debian' {\n\tlinux /vmlinuz root=/dev/sda1 ro quiet amd_iommu=off\n}\n")
    m.file("usr/sbin/update-initramfs", "")
    return m


def without_driver() -> Machine:
    """Intel mini PC with its table, and a kernel of its own without any IOMMU driver: ``iommu_groups`` is there, empty."""
    config = {"INTEL_IOMMU": "n", "AMD_IOMMU": "n", "IRQ_REMAP": "n"}
    return bare(tables=["DMAR"], config=config, sys_vendor="Intel Corporation", board="NUC8BEB", chassis=35)


def multipath() -> Machine:
    """Server whose root is one NVMe namespace that two controllers, in two groups, lead to."""
    m = Machine()
    m.host(vendor="AuthenticAMD", flags="svm", tables=["IVRS"], chassis=23, sys_vendor="Supermicro", board="H12SSW-NT")
    m.iommu_on(["ivhd0", "ivhd1"])
    below = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    for number, bus in enumerate(("21", "41")):
        m.pci(f"0000:{bus}:01.0", "1022:1483", "060400", group=10 + number, driver="pcieport", reset="pm")
        address = f"0000:{int(bus, 16) + 1:02x}:00.0"
        path = m.pci(address, "144d:a824", "010802", behind=f"0000:{bus}:01.0", group=20 + number, driver="nvme",
                     numa_node=str(number), bars=[1 << 15])  # fmt: skip
        m.file(f"{path}/nvme/nvme{number}/serial", "S64GNE0T100001\n")
        m.link(f"{below}/nvme{number}", f"{path}/nvme/nvme{number}")
    head = f"{below}/nvme0n1"
    m._block(head, "259:0", "E:ID_PART_TABLE_TYPE=gpt\n")
    m.directories.add(f"{head}/slaves")
    for part, (point, fstype) in enumerate((("/boot/efi", "vfat"), ("/", "xfs")), 1):
        m._block(f"{head}/nvme0n1p{part}", f"259:{part}", f"E:ID_FS_TYPE={fstype}\n")
        m.file(f"{head}/nvme0n1p{part}/partition", f"{part}\n")
        m.mount(f"259:{part}", point, fstype, f"/dev/nvme0n1p{part}")
    m.pci("0000:61:00.0", "14e4:16d8", "020000", group=30, driver="bnxt_en", numa_node="0")
    m.interface("eno1np0", "0000:61:00.0")
    m.route("eno1np0")
    return m


def overridden() -> Machine:
    """The desktop with the ACS override: every function has a group of its own, and none of them proves anything."""
    m = desktop()
    m.file("proc/cmdline", "BOOT_IMAGE=/vmlinuz quiet iommu=pt pcie_acs_override=downstream,multifunction\n")
    for group, address in ((40, "0000:0a:00.1"), (41, "0000:0b:00.1")):
        path = m.path_of(address)
        old = posixpath.basename(m.links[f"{path}/iommu_group"])
        m.remove(f"sys/kernel/iommu_groups/{old}/devices/{address}")
        m.link(f"{path}/iommu_group", f"sys/kernel/iommu_groups/{group}")
        m.link(f"sys/kernel/iommu_groups/{group}/devices/{address}", path)
        m.file(f"sys/kernel/iommu_groups/{group}/type", "identity\n")
        m.file(f"sys/kernel/iommu_groups/{group}/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi\n")
    return m


def usb_boot() -> Machine:
    """Home server that runs from a USB stick; its six-port SATA controller has disks of the pool it serves."""
    m = Machine()
    m.host(tables=["DMAR"], config={"INTEL_IOMMU_DEFAULT_ON": "y"}, sys_vendor="ASRock", board="J5040-ITX")
    m.iommu_on(["dmar0"])
    m.pci("0000:00:02.0", "8086:3184", "030000", group=0, driver="i915", boot_vga="1", reset="flr", bars=[1 << 24])
    m.gpu("0000:00:02.0", 0, {"HDMI-A-1": False})
    usb = m.pci("0000:00:15.0", "8086:31a8", "0c0330", group=5, driver="xhci_hcd", bars=[1 << 16])
    m.keyboard(4, f"{usb}/usb1/1-3/1-3:1.0/0003:046D:C52B.0002")
    stick = f"{usb}/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdc"
    m._block(stick, "8:32", "E:ID_PART_TABLE_TYPE=gpt\n")
    m.directories.add(f"{stick}/slaves")
    for part, (point, fstype) in enumerate((("/boot/efi", "vfat"), ("/", "ext4")), 1):
        m._block(f"{stick}/sdc{part}", f"8:{32 + part}", f"E:ID_FS_TYPE={fstype}\n")
        m.file(f"{stick}/sdc{part}/partition", f"{part}\n")
        m.mount(f"8:{32 + part}", point, fstype, f"/dev/sdc{part}")
    m.pci("0000:00:13.0", "8086:31d8", "060400", group=3, driver="pcieport", reset="pm")
    m.pci("0000:01:00.0", "1b21:1166", "010601", behind="0000:00:13.0", group=6, driver="ahci", reset="pm bus")
    m.disk("sda", "0000:01:00.0", "8:0", {"sda1": "zfs_member"})
    m.pci("0000:00:13.1", "8086:31d9", "060400", group=4, driver="pcieport", reset="pm")
    m.pci("0000:02:00.0", "10ec:8168", "020000", behind="0000:00:13.1", group=7, driver="r8169")
    m.interface("enp2s0", "0000:02:00.0")
    m.route("enp2s0")
    return m


def arm() -> Machine:
    """Arm server with one SMMU per PCI domain; its console is on the graphics of the management controller."""
    m = Machine()
    config = {"INTEL_IOMMU": "n", "AMD_IOMMU": "n", "IRQ_REMAP": "n", "ARM_SMMU": "y", "ARM_SMMU_V3": "y"}
    m.host(tables=["IORT"], config=config, chassis=23, sys_vendor="GIGABYTE", board="MP32-AR1-00",
           cmdline="console=ttyAMA0")  # fmt: skip
    m.file(
        "proc/cpuinfo",
        "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm aes crc32 atomics cpuid\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n\nprocessor\t: 1\n",
    )
    m.file("proc/consoles", "ttyAMA0              -W- (EC   a  )  204:64\n")
    for number, chip in enumerate(("GICv3", "ITS-PCI-MSI-0001:01:00.0")):
        m.file(f"sys/kernel/irq/{number}/chip_name", f"{chip}\n")
    for number in range(3):
        unit = f"arm-smmu-v3.{number}.auto"
        m.directories.add(f"sys/devices/platform/{unit}/iommu/smmu3.{number}/devices")
        m.link(f"sys/class/iommu/smmu3.{number}", f"sys/devices/platform/{unit}/iommu/smmu3.{number}")
    for domain in range(3):
        m.pci(f"000{domain}:00:00.0", "1def:e100", "060000", group=10 * domain, reset=None)
        m.pci(f"000{domain}:00:01.0", "1def:e101", "060400", group=10 * domain + 1, driver="pcieport", reset="pm")
    m.pci("0000:01:00.0", "15b3:1015", "020000", behind="0000:00:01.0", group=2, driver="mlx5_core", numa_node="0")
    m.interface("enP0p1s0", "0000:01:00.0")
    m.route("enP0p1s0")
    m.pci("0001:01:00.0", "144d:a808", "010802", behind="0001:00:01.0", group=12, driver="nvme", numa_node="0")
    m.disk("nvme0n1", "0001:01:00.0", "259:0", {"nvme0n1p1": "vfat", "nvme0n1p2": "ext4"})
    m.mount("259:2", "/", "ext4", "/dev/nvme0n1p2")
    m.mount("259:1", "/boot/efi", "vfat", "/dev/nvme0n1p1")
    # A bridge to conventional PCI, and behind it the management controller's graphics.
    m.pci("0002:01:00.0", "1a03:1150", "060400", behind="0002:00:01.0", group=22, reset=None)
    m.pci("0002:02:00.0", "1a03:2000", "030000", behind="0002:01:00.0", group=22, driver="ast", boot_vga="1",
          reset=None)  # fmt: skip
    m.gpu("0002:02:00.0", 0, {"VGA-1": True})
    m.pci("0002:00:02.0", "1def:e102", "060400", group=23, driver="pcieport", reset="pm")
    m.pci("0002:03:00.0", "10de:1eb8", "030200", behind="0002:00:02.0", group=24, driver=None, bars=[1 << 24, 1 << 34])
    return m


def emulated() -> Machine:
    """The stored machine that was captured from a running one."""
    return Machine.from_text((pathlib.Path(__file__).parents[1] / "captures" / "emulated-q35" / "tree.txt").read_text())


CAPTURES = {
    "acs-override": overridden,
    "amd-desktop-two-gpus": desktop,
    "arm-server-smmu": arm,
    "disabled-on-cmdline": disabled,
    "intel-laptop-vmd": laptop,
    "kernel-without-driver": without_driver,
    "nic-and-hba-in-one-group": one_group,
    "no-firmware-table": no_table,
    "nvme-multipath-root": multipath,
    "server-bond-lvm": server,
    "sriov-in-use": sriov,
    "usb-boot": usb_boot,
    "vm-without-iommu": guest,
}


def store(directory: pathlib.Path) -> None:
    """Write the machines of CAPTURES out, and the facts that all that are there have now."""
    for name, compose in CAPTURES.items():
        (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / name / "tree.txt").write_text(compose().text())
    for tree in directory.glob("*/tree.txt"):
        with tempfile.TemporaryDirectory() as root:
            facts = gather(Machine.from_text(tree.read_text()).write(pathlib.Path(root) / "tree"))
        (tree.parent / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    store(pathlib.Path(__file__).parents[1] / "captures")
