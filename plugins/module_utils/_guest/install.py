# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Installing a guest's system, once: what is declared, what the installer gets, how the definition differs. Pure.

While a system is being installed, the definition says so: it has the installer's media and kernel, and ends the guest
where it would reboot. So the end of an installation is a guest that is off, and nobody has to watch for it.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.names import check_path
from .media import INSTALL_FILES as FILES_ID
from .media import Medium

if t.TYPE_CHECKING:
    from .._core.xml import Element

OPTIONS: dict[str, dict[str, t.Any]] = {
    "iso": {"type": "path"},
    "location": {"type": "path"},
    "kernel": {"type": "path"},
    "initrd": {"type": "path"},
    "cmdline": {"type": "str"},
    "kickstart": {"type": "str"},
    "timeout": {"type": "int"},
}

_LABEL = "OEMDRV"
"""Anaconda looks for a file ks.cfg on a volume of this name by itself
(https://anaconda-installer.readthedocs.io/en/latest/user-guide/boot-options.html#inst-ks)."""

TREES = (
    # kernel, initrd, what the installer has to be told to find its own tree on our CD
    ("images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", f"inst.stage2=hd:LABEL={_LABEL}"),  # Fedora, EL
    ("install.amd/vmlinuz", "install.amd/initrd.gz", ""),  # Debian
    ("casper/vmlinuz", "casper/initrd", ""),  # Ubuntu
    ("boot/x86_64/loader/linux", "boot/x86_64/loader/initrd", f"install=hd:LABEL={_LABEL}"),  # openSUSE
)
"""Where distributions have the kernel of their installer in their tree."""

_TIMEOUT = 3600


@dataclasses.dataclass(frozen=True)
class Install:
    """How a system is installed.

    Attributes:
        iso: the installer's CD.
        location: directory with the distribution's tree.
        kernel, initrd: files to start instead of a boot loader.
        cmdline: words for the kernel.
        kickstart: for Anaconda.
        timeout: seconds to wait for the end; 0 leaves it to a later run.
    """

    iso: str | None
    location: str | None
    kernel: str | None
    initrd: str | None
    cmdline: str | None
    kickstart: str | None = dataclasses.field(repr=False)
    timeout: int

    @property
    def tree(self) -> tuple[tuple[str, str, str], ...]:
        """Kernel, initrd and words that the tree may have."""
        if self.location is None:
            return ()
        return tuple((os.path.join(self.location, a), os.path.join(self.location, b), words) for a, b, words in TREES)


@dataclasses.dataclass(frozen=True)
class Boot:
    """A kernel that is started directly."""

    kernel: str
    initrd: str | None
    cmdline: str


def accept(options: t.Mapping[str, t.Any]) -> Install:
    """Check the options of ``install``.

    Raises:
        PhyllomeError: they do not go together.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("iso", "location", "kernel", "initrd"):
        if name in given:
            given[name] = check_path(given[name], f"install.{name}")
    starts = [name for name in ("iso", "location", "kernel") if name in given]
    if not starts:
        raise PhyllomeError(
            "install: there is nothing to start",
            "an installer comes from iso, from a tree in location, or from kernel and initrd",
            "Give one of them.",
        )
    for name, needs in (("location", "iso"), ("location", "kernel"), ("location", "initrd")):
        if name in given and needs in given:
            raise PhyllomeError(
                f"install: {name} and {needs} are both given",
                "a tree brings its own kernel and is put on a CD as a whole",
                "Keep one of them.",
            )
    for name in ("initrd", "cmdline"):
        if name in given and not {"kernel", "location"} & set(given):
            raise PhyllomeError(
                f"install.{name} is given without kernel or location",
                "an ISO image starts its own boot loader, which does not hear of it",
                "Give kernel as well, or leave it out.",
            )
    if given.get("timeout", 0) < 0:
        raise PhyllomeError(
            f"install.timeout: {given['timeout']} is too small", "it counts seconds", "Write 0 or more."
        )
    if "kickstart" in given and not given["kickstart"].strip():
        raise PhyllomeError("install.kickstart is empty", "Anaconda would ask", "Give its text, or leave it out.")
    return Install(
        iso=given.get("iso"),
        location=given.get("location"),
        kernel=given.get("kernel"),
        initrd=given.get("initrd"),
        cmdline=given.get("cmdline"),
        kickstart=given.get("kickstart"),
        timeout=given.get("timeout", _TIMEOUT),
    )


def medium(wanted: Install) -> Medium | None:
    """The CD that we make for the installer: its tree, its kickstart, or both."""
    if wanted.location is None and wanted.kickstart is None:
        return None
    files = {} if wanted.kickstart is None else {"ks.cfg": wanted.kickstart.encode()}
    return Medium(FILES_ID, _LABEL, files, wanted.location)


def boot(wanted: Install, exists: t.Mapping[str, bool]) -> Boot | None:
    """The kernel to start; None where a boot loader is on the ISO image, or the tree has no kernel.

    Args:
        wanted: what is declared.
        exists: whether there is a file, by path.
    """
    if wanted.kernel is not None:
        words = "" if wanted.kickstart is None else f"inst.ks=hd:LABEL={_LABEL}:/ks.cfg"
        return Boot(wanted.kernel, wanted.initrd, _words(wanted.cmdline or words))
    for kernel, initrd, words in wanted.tree:
        if exists.get(kernel) and exists.get(initrd):
            return Boot(kernel, initrd, _words(words, wanted.cmdline))
    return None


def _words(*words: str | None) -> str:
    return " ".join(word.strip() for word in words if word and word.strip())


def begin(root: Element, kernel: Boot | None) -> None:
    """Let the guest end where it would reboot, and start this kernel."""
    xml.ensure(root, "on_reboot").text = "destroy"
    if kernel is None:
        return
    system = xml.ensure(root, "os")
    for tag, value in (("kernel", kernel.kernel), ("initrd", kernel.initrd), ("cmdline", kernel.cmdline)):
        if value:
            xml.ensure(system, tag).text = value


def end(root: Element) -> None:
    """Take away what ``begin`` brought."""
    for path in ("os/kernel", "os/initrd", "os/cmdline", "on_reboot"):
        xml.drop(root, path)
