# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process of a guest on this host, and what libvirt has decided about it.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal

RUN = "/run/libvirt/qemu"
"""Where libvirt keeps each running guest's process number and state."""
_PF_EXITING = 0x4
_CONFIRMED = re.compile(rb"<job [^>]*phase='confirm3'")


class Qemu:
    """A guest's QEMU.

    Args:
        name: the guest's.
        uuid: the guest's.
    """

    def __init__(self, name: str, uuid: str) -> None:
        self._name = name
        self._handle: int | None = None
        self._seen: tuple[int, int] | None = None
        self.pid = _pid(name, uuid)
        with contextlib.suppress(OSError, AttributeError):  # Linux 5.3, and a Python that was built for it
            self._handle = os.pidfd_open(self.pid) if self.pid else None

    @property
    def known(self) -> bool:
        """Whether libvirt's files say which process it is."""
        return self.pid is not None

    def owner(self) -> int | None:
        """The user that it runs as, None when there is no such process."""
        try:
            return None if self.pid is None else os.stat(f"/proc/{self.pid}").st_uid
        except FileNotFoundError:
            return None

    def is_gone(self) -> bool:
        """Whether it will never run a thread of its own again.

        Linux sets PF_EXITING (include/linux/sched.h) when the main thread leaves through exit_group,
        which kills all others first. Memory is freed after that, which for a big guest takes long.
        """
        try:
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
        except OSError:
            return True
        return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)

    def is_given_up(self) -> bool:
        """Whether libvirt has been told that the guest arrived: from then on it does nothing but kill this process.

        It does so too when its daemon is restarted there (qemuProcessRecoverMigrationOut in src/qemu/qemu_process.c:
        QEMU_MIGRATION_PHASE_CONFIRM3).
        """
        try:
            status = os.stat(f"{RUN}/{self._name}.xml")
            seen = (
                status.st_ino,
                status.st_mtime_ns,
            )  # libvirt replaces the file; asked often, it is read when that happened
            if seen == self._seen:
                return False
            with open(f"{RUN}/{self._name}.xml", "rb") as stream:
                self._seen = seen
                return _CONFIRMED.search(stream.read()) is not None
        except OSError:
            return False

    def kill(self) -> None:
        """Do at once what libvirt does politely: QEMU would take its time to close what nobody needs any more."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _pid(name: str, uuid: str) -> int | None:
    try:
        with open(f"{RUN}/{name}.pid", encoding="ascii") as stream:
            pid = int(stream.read())
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return pid if uuid.encode() in stream.read() else None
    except (OSError, ValueError):
        return None
