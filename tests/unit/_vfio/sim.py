# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel that is a directory: drivers that take devices and let go of them, and a boot that reads udev's rules."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import re
import shutil
import typing as t

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._vfio import spec
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.apply import converge
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.kernel import Hung, Kernel
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.persistence import RULES
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

CAPTURES = pathlib.Path(__file__).parents[1] / "captures"
DEVICES = "sys/bus/pci/devices"
BOOT_ID = "proc/sys/kernel/random/boot_id"
HOOK = "etc/initramfs-tools/hooks/phyllome-vfio"
IMAGES = ("boot/initrd.img-6.1.0-1", "boot/initrd.img-6.1.0-2")
DEFAULTS: dict[str, t.Any] = {name: option.get("default") for name, option in spec.ARGUMENTS.items()}


class PowerCut(BaseException):
    """Nothing after this is done."""


class Sim(Kernel):
    """A machine of the tests of iommu_facts that devices can be bound on.

    Attributes:
        hangs: addresses whose driver does not let go.
        refuses: addresses that no VFIO driver takes.
        cut: how many more effects there are before the power is cut; None for no end.
        did: every effect.
    """

    def __init__(self, folder: pathlib.Path, machine: machines.Machine, initramfs: bool = True) -> None:
        machine.files.setdefault(
            "boot/grub/grub.cfg", b"menuentry 'D' {\n\tlinux /vmlinuz root=/dev/sda1 ro quiet\n}\n"
        )
        machine.file(BOOT_ID, "boot-0\n")
        if initramfs:
            machine.file("usr/sbin/update-initramfs", "")
            for path in IMAGES:
                machine.file(path, "stock")
        self.root = machine.write(folder)
        for address in self.addresses():
            self.ids(address)
            if self.path(DEVICES, address, "sriov_totalvfs").exists():
                self.path(DEVICES, address, "sriov_offset").write_text("1\n")
                self.path(DEVICES, address, "sriov_stride").write_text("1\n")
        self.native = {address: self.driver(address) for address in self.addresses()}
        for driver in filter(None, self.native.values()):
            self.path("sys/bus/pci/drivers", driver).mkdir(parents=True, exist_ok=True)
        self.hangs: set[str] = set()
        self.refuses: set[str] = set()
        self.cut: int | None = None
        self.did: list[str] = []

    def ids(self, address: str, ids: str | None = None) -> None:
        """Have the ids of a device in files of their own as well, which captures leave out; or have another one there."""
        folder = self.path(DEVICES, address)
        event = (folder / "uevent").read_text()
        if ids:
            event = re.sub(r"(?m)^PCI_ID=.*$", f"PCI_ID={ids.upper()}", event)
            (folder / "uevent").write_text(event)
        for line, names in (
            ("PCI_ID", ("vendor", "device")),
            ("PCI_SUBSYS_ID", ("subsystem_vendor", "subsystem_device")),
        ):
            values = re.findall(rf"(?m)^{line}=(\w+):(\w+)$", event)[0]
            for name, value in zip(names, values, strict=True):
                (folder / name).write_text(f"0x{value.lower()}\n")

    def addresses(self) -> list[str]:
        return sorted(os.listdir(self.path(DEVICES)))

    def path(self, *parts: str) -> pathlib.Path:
        return pathlib.Path(self.root, *parts)

    def _effect(self, what: str) -> None:
        if self.cut is not None:
            if self.cut == 0:
                raise PowerCut
            self.cut -= 1
        self.did.append(what)

    # what the module does to the kernel

    def write(self, path: str, text: str) -> None:
        self._effect(f"{path} = {text!r}")
        if path.endswith("driver_override"):
            text = "(null)" if text == "\n" else text
        self.path(path).write_text(f"{text}\n")

    def patiently(self, path: str, text: str, timeout: float) -> None:
        self._effect(f"{path} = {text!r}")
        if path.endswith("/unbind"):
            if text in self.hangs:
                self.path("proc/666/fd").mkdir(parents=True, exist_ok=True)
                self.path("proc/666/stat").write_text("666 (python3) D 1 666\n")
                raise Hung(666, ["process 666 did not come back", "state: d (disk sleep)"])
            self._set(text, None)
        elif path.endswith("/sriov_numvfs"):
            self._functions(path.split("/")[-2], int(text))
        else:
            assert path == "sys/bus/pci/drivers_probe"
            self.probe(text)

    def run(self, argv: t.Sequence[str]) -> str:
        try:
            self._effect(" ".join(argv))
        except PowerCut:
            if argv[0] == "update-initramfs":
                self.path(f"{IMAGES[0]}.new").write_text("hal")
            raise
        if argv[0] == "modprobe":
            self.path("sys/bus/pci/drivers", argv[-1]).mkdir(parents=True, exist_ok=True)
            self.path("sys/module/vfio").mkdir(parents=True, exist_ok=True)  # Debian's has no parameters
        elif argv[0] == "update-initramfs":
            self.path(f"{IMAGES[0]}.new").unlink(missing_ok=True)
            for path in IMAGES:
                ours = self.path(RULES).read_text() if self.path(HOOK).exists() else ""
                self.path(path).write_text(f"made with {RULES} {ours}" if ours else "made without")
        elif argv[0] == "lsinitramfs":
            return self.path(argv[1].lstrip("/")).read_text()
        else:
            raise PhyllomeError(argv[0], "not here", "Install it.")
        return ""

    def _functions(self, parent: str, count: int) -> None:
        """What the kernel does when the number of virtual functions of a card is written."""
        folder = self.path(DEVICES, parent).resolve()
        number = folder / "sriov_numvfs"
        if count and number.read_text().strip() != "0":
            raise OSError(errno.EBUSY, "Device or resource busy")
        number.write_text(f"{count}\n")
        for link in folder.glob("virtfn*"):
            address = link.resolve().name
            shutil.rmtree(link.resolve())
            self.path(DEVICES, address).unlink()
            shutil.rmtree(self.path("sys/kernel/iommu_groups", f"90{address[-1]}"))
            link.unlink()
        for function in range(1, count + 1):
            address = f"{parent[:-1]}{function}"
            made = folder.parent / address
            shutil.copytree(
                folder, made, symlinks=True, ignore=shutil.ignore_patterns("sriov_*", "driver", "nvme", "virtfn*")
            )
            event = (folder / "uevent").read_text().replace(f"SLOT_NAME={parent}", f"SLOT_NAME={address}")
            (made / "uevent").write_text(event)
            group = self.path("sys/kernel/iommu_groups", f"90{function}")
            (group / "devices").mkdir(parents=True)
            (group / "reserved_regions").write_text("")
            (group / "devices" / address).symlink_to(made)
            for link, target in (
                (made / "iommu_group", group),
                (made / "physfn", folder),
                (folder / f"virtfn{function - 1}", made),
            ):
                link.unlink(missing_ok=True)
                link.symlink_to(os.path.relpath(target, link.parent))
            self.path(DEVICES, address).symlink_to(os.path.relpath(made, self.path(DEVICES)))
            self._set(address, None)
            (made / "driver_override").write_text("(null)\n")
            self.native[address] = None if (folder / "sriov_drivers_autoprobe").read_text().strip() == "0" else "nvme"
            self._udev(address)
            self.probe(address)

    def probe(self, address: str) -> None:
        if self.driver(address) is None:
            override = (self.text(address, "driver_override") or "(null)").replace("(null)", "")
            driver = override or self.native.get(address)
            if driver and driver != "none" and self.has_driver(driver):
                if address in self.refuses and "vfio" in driver:
                    raise OSError(errno.EINVAL, "Invalid argument")
                self._set(address, driver)

    def _set(self, address: str, driver: str | None) -> None:
        folder = self.path(DEVICES, address).resolve()
        link = folder / "driver"
        if link.is_symlink():
            link.unlink()
        if driver:
            target = self.path("sys/bus/pci/drivers", driver)
            target.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(target, folder))
        event = [line for line in (folder / "uevent").read_text().splitlines() if not line.startswith("DRIVER=")]
        (folder / "uevent").write_text("\n".join([*([f"DRIVER={driver}"] if driver else []), *event]) + "\n")

    # what happens without it

    def reboot(self) -> None:
        """Forget what the kernel knew; then udev's rules, and after that drivers."""
        number = int(self.path(BOOT_ID).read_text().split("-")[1])
        self.path(BOOT_ID).write_text(f"boot-{number + 1}\n")
        self.cut = None
        self.hangs.clear()
        shutil.rmtree(self.path("proc/666"), ignore_errors=True)
        for address in self.addresses():
            if self.path(DEVICES, address, "sriov_numvfs").exists():
                self._functions(address, 0)
                self.path(DEVICES, address, "sriov_drivers_autoprobe").write_text("1\n")
        for address in self.addresses():
            self._set(address, None)
            self.path(DEVICES, address, "driver_override").write_text("(null)\n")
            self._udev(address)
            self.probe(address)
            self._udev(address, "sriov_numvfs")

    def _udev(self, address: str, attribute: str = "driver_override") -> None:
        """What the rules do with a device: the lines about it that set an attribute."""
        rules = self.path(RULES).read_text() if self.path(RULES).exists() else ""
        for line in rules.splitlines():
            if f'KERNEL=="{address}"' not in line or f"{{{attribute}}}" not in line:
                continue
            matches = re.findall(r'ATTR\{(\w+)\}=="([^"]*)"', line)
            assert len(matches) == 4
            if all(self.text(address, name) == value for name, value in matches):
                for name, value in re.findall(r'ATTR\{(\w+)\}="([^"]*)"', line):
                    if name == "sriov_numvfs":
                        self._functions(address, int(value))
                    else:
                        self.path(DEVICES, address, name).write_text(f"{value}\n")
                    if name == "driver_override":
                        self.path("sys/bus/pci/drivers", value).mkdir(parents=True, exist_ok=True)

    # the module

    def do(self, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        wanted = spec.wanted({**DEFAULTS, **options}, check)
        return converge(dataclasses.replace(wanted, root=self.root), check, self)

    def fails(self, check: bool = False, **options: t.Any) -> PhyllomeError:
        try:
            done = self.do(check, **options)
        except PhyllomeError as exc:
            return exc
        raise AssertionError(f"it did not fail: {done}")

    def snapshot(self) -> dict[str, t.Any]:
        """Everything that is kept: files by content, and the devices."""
        kept = {}
        for folder in ("etc", "boot", "var"):
            for path in self.path(folder).rglob("*") if self.path(folder).exists() else ():
                if path.is_file():
                    kept[str(path.relative_to(self.root))] = path.read_bytes()
        return {**kept, **self.drivers()}

    def drivers(self) -> dict[str, t.Any]:
        return {address: (self.driver(address), self.text(address, "driver_override")) for address in self.addresses()}


def capture(name: str) -> machines.Machine:
    """A captured machine."""
    return machines.Machine.from_text((CAPTURES / name / "tree.txt").read_text())


def free(facts_of: machines.Machine, folder: pathlib.Path) -> list[str]:
    """Addresses of what nothing stands against."""
    facts = machines.gather(facts_of.write(folder))
    return [each["address"] for each in facts["devices"] if not each["hazards"]]
