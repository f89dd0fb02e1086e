# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's files of a machine, the live one or a captured one.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import typing as t

from .apart import PATIENCE, SILENCE, Apart, Job, Silent, content
from .errors import PhyllomeError
from .names import check_path

PAGE = 4096
"""Bytes: no sysfs attribute is longer (https://docs.kernel.org/filesystems/sysfs.html)."""
PCI_ADDRESS = re.compile(r"^([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])\Z")
"""Domain, bus, device, function. A domain behind Intel VMD has five digits."""
MANAGED_DMA = ("pcieport", "pci-stub")
"""Drivers that share an IOMMU group with VFIO (driver_managed_dma of struct pci_driver)."""
LINK = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width")
"""Attributes of a function on PCI Express, of https://docs.kernel.org/ABI/testing/sysfs-bus-pci.html."""
_NUMBER = re.compile(r"^-?(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})$")
_MAX_LINKS = 40  # as the kernel, path_resolution(7)
# Attributes whose reader waits for whoever has the device locked (device_lock() in uevent_show(), driver_override_show()
# and sriov_numvfs_show()), resets it, or brings it to another state of power (pci_wait_cfg() and
# pci_config_pm_runtime_get() of the others). Opening a disk waits for it as well.
_SLOW = ("config", "driver_override", "sriov_numvfs", "uevent", *LINK)
UNREAD = "unread.json"
"""In a captured tree: path → why it could not be read on the machine itself."""
_NO_TEXT = "a name in it is not text"


class Tree:
    """The files below a directory that holds ``sys/`` and ``proc/``, read as if it were ``/``.

    Paths have no leading slash. Links are followed as after a chroot: neither an absolute target nor
    ``..`` leads out of the tree. Nothing here raises because of what a file is or holds: what could
    not be read is None, and its path is in ``unread``.

    Attributes:
        root: the directory.
        unread: path → why it could not be read; ``missing`` when it is not there.
    """

    def __init__(self, root: str, option: str, patience: float | None = None) -> None:
        """Look at a directory.

        Args:
            root: absolute path.
            option: name of the option that says so, for the message.
            patience: seconds, see Apart; without, files that lie in a directory like others are read as they are,
                since it takes a kernel not to answer.

        Raises:
            PhyllomeError: there is no such directory, or it does not hold ``sys``.
        """
        root = check_path(root, option)
        if not os.path.isdir(os.path.join(root, "sys")):
            if not os.path.lexists(root):
                why = "it does not exist"
            elif not os.path.isdir(root):
                why = "it is not a directory"
            else:
                why = "it has no directory sys, or it may not be entered"
            raise PhyllomeError(
                f"{option}: {root!r} is not the root of a machine",
                why,
                "Name the directory that holds sys and proc, or leave the option out to look at this machine.",
            )
        self.root = root
        self.unread: dict[str, str] = {}
        self._base = os.path.join(os.path.realpath(root), "")
        self._plain: set[str] = set()
        self._known: dict[str, str] = {}
        self._apart = Apart(PATIENCE if patience is None else patience)
        self._guarded = patience is not None or _is_mounted(self._base, "sys")
        self._denied = self._captured_unread() if self._base != "/" else {}

    def _captured_unread(self) -> dict[str, str]:
        try:
            with open(self._base + UNREAD, encoding="utf-8") as file:
                found = json.loads(file.read(1 << 24))
        except (OSError, ValueError):  # a tree that was not captured by us, or is spoilt
            return {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {path: why for path, why in pairs if isinstance(why, str)}

    def exists(self, path: str) -> bool:
        """Whether something is there; a dangling link is something."""
        head, dummy, name = path.rpartition("/")
        parent = self._real(head)
        return parent is not None and os.path.lexists(f"{self._base}{parent}/{name}")

    def data(self, path: str, limit: int = PAGE) -> bytes | None:
        """The content of a file.

        Args:
            path: below the root.
            limit: bytes; what is longer is not read at all, since half of it may mean something else.
        """
        if path in self._denied:
            return self._unread(path, self._denied[path])
        head, dummy, name = path.rpartition("/")
        parent = self._real(head)
        if parent is None:
            return self._unread(path, "too many links")
        try:
            return self._content(f"{parent}/{name}", limit)
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                return self._unread(path, f"longer than {limit} bytes" if exc.errno == errno.EFBIG else exc)
            real = self._real(path)  # it is a link, which few files are: hence only now
            if real in (None, path):
                return self._unread(path, exc)
            data = self.data(real, limit)
            return self._unread(path, self.unread[real]) if data is None else data
        except ValueError as exc:
            return self._unread(path, exc)

    def ahead(self, paths: t.Iterable[str] = (), disks: t.Iterable[str] = ()) -> None:
        """Have files that are slow, and the claims on disks, looked at meanwhile; best read in this order afterwards."""
        jobs = [self._job(path, PAGE) for path in paths if path not in self._denied and self._is_slow(path)]
        if self._base == "/":
            jobs += [Job(f"/{real}", f"/{real}", None) for real in map(self._real, disks) if real]
        if jobs:
            self._apart.begin(jobs)

    def is_silent(self, path: str) -> bool:
        """Whether the kernel did not answer when one of the slow files of a directory was read."""
        return any(self.unread.get(f"{path}/{name}") == SILENCE for name in _SLOW)

    def _job(self, path: str, limit: int) -> Job:
        return Job(path.rpartition("/")[0], self._base + path, limit)

    def _content(self, path: str, limit: int) -> bytes:
        """The content of a file that is known by its real path."""
        return self._apart.ask(self._job(path, limit)) if self._is_slow(path) else content(self._base + path, limit)

    def _is_slow(self, path: str) -> bool:
        return (
            self._guarded
            and path.endswith(_SLOW)
            and path.startswith("sys/devices/")
            and path.rpartition("/")[2] in _SLOW
        )

    def claimed(self, path: str) -> bool | None:
        """Whether the kernel has given a disk, or a part of it, to a file system, to swap, to device mapper or the like.

        Of this machine the node is opened for a moment as if for exclusive use, O_EXCL of open(2), which
        reads nothing from the disk; in a captured tree the file in its place says ``claimed`` or ``free``.

        Args:
            path: of the disk's node, such as ``dev/sda``.
        """
        if path in self._denied:
            return self._unread(path, self._denied[path])
        real = self._real(path)
        try:
            mode = os.lstat(f"{self._base}{real}").st_mode
            if real is None or (stat.S_ISBLK(mode) and self._base != "/"):
                return self._unread(path, "a device where there should be a file")
            if stat.S_ISBLK(mode):
                self._apart.ask(Job(f"/{real}", f"/{real}", None))
                return False
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                return True
            if exc.errno in (errno.ENOMEDIUM, errno.ENXIO):  # a drive with nothing in it
                return False
            return self._unread(path, exc)
        except ValueError as exc:
            return self._unread(path, exc)
        said = {"claimed": True, "free": False}.get(self.text(path) or "")
        return self._unread(path, "neither claimed nor free") if said is None else said

    def text(self, path: str, limit: int = PAGE) -> str | None:
        """The content of a file without white space around it; what is not UTF-8 becomes U+FFFD."""
        data = self.data(path, limit)
        return None if data is None else data.decode("utf-8", "replace").strip()

    def lines(self, path: str, limit: int) -> list[str] | None:
        """Lines of a file of /proc: whole ones, so that a cut one cannot pass for another."""
        data = self.data(path, limit)
        if data is None:
            return None
        if data and not data.endswith(b"\n"):
            return self._unread(path, "it ends within a line")
        return data.decode("utf-8", "replace").splitlines()

    def number(self, path: str) -> int | None:
        """The decimal or ``0x`` number that is all of a file."""
        text = self.text(path)
        if text is None:
            return None
        if not _NUMBER.match(text):
            return self._unread(path, "not a number")
        return int(text, 16 if "x" in text.lower() else 10)

    def names(self, path: str) -> tuple[str, ...] | None:
        """What is in a directory, sorted. A name that is not UTF-8 is left out, and the directory counts as unread."""
        denied = self._denied.get(path, _NO_TEXT)
        if denied != _NO_TEXT:
            return self._unread(path, denied)
        real = self._real(path)
        if real is None:
            return self._unread(path, "too many links")
        try:
            found = sorted(os.listdir(self._base + real))
        except (OSError, ValueError) as exc:
            return self._unread(path, exc)
        good = tuple(name for name in found if name.isprintable())
        if len(good) != len(found) or path in self._denied:
            self._unread(path, _NO_TEXT)
        return good

    def link(self, path: str) -> str | None:
        """The text of a link as it stands there."""
        if path in self._denied:
            return self._unread(path, self._denied[path])
        head, dummy, name = path.rpartition("/")
        parent = self._real(head)
        if parent is None:
            return self._unread(path, "too many links")
        try:
            return self._readlink(f"{parent}/{name}")
        except (OSError, ValueError) as exc:
            return self._unread(path, exc)

    def follow(self, path: str) -> str | None:
        """Where a path leads to once all links are followed; what lies there need not exist.

        None when the path itself is not there, or when links go round in circles.
        """
        if not self.exists(path):
            return self._unread(path, "missing")
        real = self._real(path)
        return self._unread(path, "too many links") if real is None else real

    def log(self) -> tuple[str, ...] | None:
        """The kernel's log, as far as it still has it; None when it may not be read.

        Records are ``priority,number,time,flags;text`` (https://docs.kernel.org/ABI/testing/dev-kmsg.html).
        """
        data = self.data("dev/kmsg", 1 << 25) if self.exists("dev/kmsg") else None
        if data is None:
            return None
        return tuple(line.partition(";")[2].strip() for line in data.decode("utf-8", "replace").splitlines())

    def note(self, path: str, why: str) -> None:
        """Count a file as unread: it was read, and what it says cannot be."""
        self._unread(path, why)

    def _unread(self, path: str, why: str | Exception) -> t.Any:
        """Note why; the answer is always None."""
        if isinstance(why, Silent):
            why = SILENCE
        elif isinstance(why, OSError):
            gone = why.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ESRCH)
            why = "missing" if gone else os.strerror(why.errno or errno.EIO)
        self.unread[path] = str(why)
        return None

    def _readlink(self, path: str) -> str:
        return os.readlink(self._base + path)

    def _real(self, path: str) -> str | None:
        """The path without links, relative to the root; None when there are too many of them."""
        known = self._known.get(path)
        if known is not None:
            return known
        todo = path.split("/")[::-1]
        here = ""
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                here = here.rpartition("/")[0]
                continue
            step = f"{here}/{name}" if here else name
            if step in self._plain:
                here = step
                continue
            try:
                target = self._readlink(step)
            except (OSError, ValueError):  # no link, or nothing there, or a name that cannot be
                self._plain.add(step)
                here = step
                continue
            links += 1
            if links > _MAX_LINKS:
                return None
            if target.startswith("/"):
                here = ""
            todo.extend(target.split("/")[::-1])
        self._known[path] = here
        return here


def _is_mounted(base: str, name: str) -> bool:
    """Whether a directory is another file system than that which it is in."""
    try:
        return os.stat(base + name).st_dev != os.stat(base).st_dev
    except OSError:
        return True


def pci_functions(path: str) -> tuple[str, ...]:
    """The addresses of the PCI functions on a device's path, the outermost first."""
    return tuple(part for part in path.split("/") if PCI_ADDRESS.match(part))


def is_vfio(driver: str | None) -> bool:
    """Whether a driver gives the device to VFIO: vfio-pci or one of its variants, such as mlx5_vfio_pci."""
    return driver is not None and "vfio" in driver.replace("-", "_").split("_")
