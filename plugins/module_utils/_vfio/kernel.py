# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is done to the kernel's devices, one at a time.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import os
import select
import typing as t

from .._core.apart import detach
from .._core.errors import PhyllomeError
from .._core.program import run
from .ledger import NOTHING

_TIMEOUT = 1800
"""Seconds: the images of several kernels are packed on a slow machine."""
_DEVICES = "sys/bus/pci/devices"


class Hung(Exception):
    """Something was written to the kernel, and the kernel did not come back.

    Attributes:
        pid: of the process that waits; no signal ends it.
        evidence: what the kernel says it waits for.
    """

    def __init__(self, pid: int, evidence: list[str]) -> None:
        self.pid = pid
        self.evidence = evidence
        super().__init__("; ".join(evidence))


class Kernel:
    """This machine."""

    root = "/"

    def run(self, argv: t.Sequence[str]) -> str:
        """Run a program; see _core.program."""
        return run(argv, _TIMEOUT)

    def write(self, path: str, text: str) -> None:
        """Write an attribute that the kernel takes at once."""
        with open(os.path.join(self.root, path), "w", encoding="ascii") as file:
            file.write(text)

    def patiently(self, path: str, text: str, timeout: float) -> None:
        """Write an attribute that makes the kernel wait for a driver, which may never end.

        A process that waits so cannot be killed. So it is another one, which holds nothing of ours open.

        Raises:
            OSError: the kernel refuses.
            Hung: it did not come back in time.
        """
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os._exit(_child(os.path.join(self.root, path), text.encode("ascii"), writer))
        os.close(writer)
        try:
            if not select.select([reader], [], [], timeout)[0]:  # it closes with the process
                raise Hung(pid, _evidence(pid))
        finally:
            os.close(reader)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            raise OSError(abs(status), os.strerror(abs(status)))

    def driver(self, address: str) -> str | None:
        """What drives a function now."""
        try:
            return os.path.basename(os.readlink(f"{self.root}/{_DEVICES}/{address}/driver"))
        except OSError:
            return None

    def text(self, address: str, name: str) -> str | None:
        """An attribute of a function."""
        try:
            with open(f"{self.root}/{_DEVICES}/{address}/{name}", encoding="ascii", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return None

    def has_driver(self, name: str) -> bool:
        """Whether a driver is there to be bound to."""
        return os.path.isdir(f"{self.root}/sys/bus/pci/drivers/{name}")


def _child(path: str, data: bytes, keep: int) -> int:
    """What the other process does; returns its exit status."""
    try:
        detach(keep)
        handle = os.open(path, os.O_WRONLY)
        os.write(handle, data)
    except OSError as exc:
        return exc.errno or 1
    return 0


def _evidence(pid: int) -> list[str]:
    """What the kernel says of a process that does not come back (https://man7.org/linux/man-pages/man5/proc.5.html)."""
    found = [f"process {pid} did not come back"]
    for name in ("wchan", "stack"):
        try:
            with open(f"/proc/{pid}/{name}", encoding="ascii", errors="replace") as file:
                text = file.read().strip()
        except OSError:
            continue
        lines = [line.rpartition("] ")[2] or line for line in text.splitlines()][:8]
        if lines and lines != ["0"]:
            found.append(f"{name}: {' < '.join(lines)}")
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            found += [" ".join(line.split()).lower() for line in file if line.startswith("State:")]
    except OSError:
        pass
    return found


@dataclasses.dataclass(frozen=True)
class Drive:
    """What a function is to be driven by.

    Attributes:
        to: the driver; None for none.
        override: driver_override afterwards.
        module: to load when the driver is not there; None for one of the driver's name.
        power: power/control afterwards; None to leave it.
    """

    address: str
    to: str | None
    override: str | None
    module: str | None = None
    power: str | None = None


def drive(kernel: Kernel, wanted: Drive, timeout: float) -> None:
    """Give a function to a driver. The override comes first, so that nobody else gets it in between.

    Raises:
        PhyllomeError: the kernel refuses, or the driver did not take it.
        Hung: a driver does not let go.
    """
    folder = f"{_DEVICES}/{wanted.address}"
    now = kernel.driver(wanted.address)
    try:
        if wanted.to is not None and now != wanted.to and not kernel.has_driver(wanted.to):
            kernel.run(["modprobe", "--", wanted.module or wanted.to])
        if now != wanted.to:
            kernel.write(f"{folder}/driver_override", wanted.to or NOTHING)
            if now is not None:
                kernel.patiently(f"{folder}/driver/unbind", wanted.address, timeout)
            if wanted.to is not None:
                kernel.patiently("sys/bus/pci/drivers_probe", wanted.address, timeout)
        override = kernel.text(wanted.address, "driver_override")
        if override != (wanted.override or "(null)"):
            kernel.write(f"{folder}/driver_override", wanted.override or "\n")
        if wanted.power is not None and kernel.text(wanted.address, "power/control") != wanted.power:
            kernel.write(f"{folder}/power/control", wanted.power)
    except OSError as exc:
        raise PhyllomeError(
            f"{wanted.address} cannot be given to {wanted.to or 'no driver'}",
            exc.strerror or str(exc),
            "See the kernel's log.",
        ) from exc
    after = kernel.driver(wanted.address)
    if after != wanted.to:
        raise PhyllomeError(
            f"{wanted.address} was not taken by {wanted.to or 'nobody'}",
            f"the kernel accepted everything, and {after or 'no driver'} has it now",
            "See the kernel's log for what the driver has against it.",
        )


def functions(kernel: Kernel, address: str, count: int, autoprobe: bool | None, timeout: float) -> None:
    """Have a number of virtual functions, which no driver of the host takes by itself where autoprobe is off.

    Raises:
        PhyllomeError: the kernel refuses.
        Hung: a driver does not let go of one.
    """
    folder = f"{_DEVICES}/{address}"
    now = kernel.text(address, "sriov_numvfs")
    try:
        if autoprobe is not None:
            kernel.write(f"{folder}/sriov_drivers_autoprobe", str(int(autoprobe)))
        if now not in ("0", str(count)):
            kernel.patiently(f"{folder}/sriov_numvfs", "0", timeout)
        if count and now != str(count):
            kernel.patiently(f"{folder}/sriov_numvfs", str(count), timeout)
    except OSError as exc:
        raise PhyllomeError(
            f"{address} does not give {count} virtual functions",
            exc.strerror or str(exc),
            "See the kernel's log; its firmware may need to have SR-IOV switched on.",
        ) from exc
