# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""CD images that we make for a guest: the seed of cloud-init, and what an installer needs.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import typing as t

from .._core.errors import PhyllomeError
from .._core.program import run
from . import storage

_EPOCH = "2000010100000000"
PROGRAMS = (
    # The dates are the same in every image, as far as the program lets us say so: same content, same bytes.
    ("xorriso", "-as", "mkisofs", "-quiet", f"--modification-date={_EPOCH}", "--set_all_file_dates", _EPOCH),
    ("genisoimage", "-quiet"),
    ("mkisofs", "-quiet"),
)
"""Programs that make ISO 9660 images with mkisofs' arguments, best first."""

CLOUD_INIT, INSTALL_ISO, INSTALL_FILES = RESERVED = ("cloud-init", "install-iso", "install-files")
"""Ids of drives that are ours: no declared device has one of them."""

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT = 3600


@dataclasses.dataclass(frozen=True)
class Medium:
    """A CD image that is ours.

    Attributes:
        id: of its drive and of its volume.
        label: of the file system, by which the guest finds it.
        files: content by name.
        tree: directory that is packed as well.
    """

    id: str
    label: str
    files: t.Mapping[str, bytes] = dataclasses.field(repr=False)
    tree: str | None = None

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for what is asked for."""
        total = hashlib.sha256(f"{self.label}\0{self.tree or ''}\0".encode())
        for name in sorted(self.files):
            total.update(f"{name}\0{hashlib.sha256(self.files[name]).hexdigest()}\0".encode())
        return total.hexdigest()[:12]

    def file(self, guest: str) -> str:
        """Its name says whose it is and what is in it: another content is another file."""
        return f"{guest}-{self.id}-{self.digest}.iso"


def program() -> tuple[str, ...] | None:
    """The first program and its arguments that this host has."""
    return next((argv for argv in PROGRAMS if shutil.which(argv[0], path=_PATH)), None)


def stale(directory: str, guest: str, medium: str, keep: t.Collection[str]) -> tuple[str, ...]:
    """Files that earlier content of this medium has left."""
    ours = re.compile(rf"{re.escape(guest)}-{re.escape(medium)}-[0-9a-f]{{12}}\.iso")
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return ()
    paths = [os.path.join(directory, name) for name in names if ours.fullmatch(name)]
    return tuple(path for path in paths if path not in keep)


def size(tree: str) -> int:
    """Bytes of the files below a directory."""
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, dummy, names in os.walk(tree) for name in names)


def create(path: str, medium: Medium) -> None:
    """Make the image; a run that was cut off leaves nothing that the next one does not clear away.

    Raises:
        PhyllomeError: there is no program for it, it fails, or the file exists.
    """
    argv = program()
    if argv is None:
        raise PhyllomeError(
            "No program makes CD images on this host",
            f"looked for {', '.join(each[0] for each in PROGRAMS)}",
            "Install xorriso; the role phyllome.virt.hypervisor does.",
        )
    with storage.making(path) as partial:
        scratch = f"{partial}.d"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            os.mkdir(scratch, 0o700)
            for name, content in medium.files.items():
                with open(os.path.join(scratch, name), "xb") as stream:
                    stream.write(content)
            folders = [scratch, *([medium.tree] if medium.tree else [])]
            options = ["-V", medium.label, "-J", "-joliet-long", "-r", "-o", partial]
            run([*argv, *options, *folders], timeout=_TIMEOUT, remedy="See the message; is the disk full?")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
