# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Encrypted disks (LUKS): what QEMU's tools are told, and the secret by which libvirt knows a disk's passphrase.

The secret is private, so nobody gets the passphrase back from libvirt; it is given to programs by their standard
input, so nobody sees it in a list of processes.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t
import uuid as uuids

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.program import run

if t.TYPE_CHECKING:
    from .._core.xml import Element

NONE, BEGUN, SET = "none", "begun", "set"
"""There is no such secret; it was defined, perhaps without a value; it has its value."""

_KEY = "phyllome"
_STDIN = ("--object", f"secret,id={_KEY},file=/dev/stdin")
_UNFINISHED = " (not complete)"
_WRONG = "Invalid password"
TIMEOUT = 300
"""Seconds for what makes or opens a lock: seconds of a processor, which others may be using."""


def secret_uuid(guest: str, disk: str) -> str:
    """The uuid of the secret of a guest's disk."""
    return str(uuids.uuid5(uuids.UUID(guest), f"disk/{disk}"))


def definition(uuid: str, path: str, done: bool) -> str:
    """A secret as libvirt takes it (https://libvirt.org/formatsecret.html).

    Args:
        uuid: the secret's.
        path: of the disk's file, which it belongs to.
        done: whether it has its value.
    """
    root = xml.element("secret", None, ephemeral="no", private="yes")
    xml.child(root, "uuid", uuid)
    xml.child(root, "description", f"phyllome.virt: passphrase of {path}{'' if done else _UNFINISHED}")
    xml.child(xml.child(root, "usage", None, type_="volume"), "volume", path)
    return xml.dump(root)


def state(text: str) -> str:
    """What the definition of a secret says of it: ``BEGUN`` or ``SET``."""
    return BEGUN if (xml.parse(text).findtext("description") or "").endswith(_UNFINISHED) else SET


def encryption(disk: Element) -> Element | None:
    """The element that says that a disk is encrypted; libvirt knows two places for it."""
    found = xml.first(disk, "source/encryption")
    return xml.first(disk, "encryption") if found is None else found


def secret_of(disk: Element) -> str | None:
    """The uuid of the secret that a disk names; None when it is not encrypted, or names it in another way."""
    found = encryption(disk)
    secret = None if found is None else xml.first(found, "secret")
    return None if secret is None else secret.get("uuid")


def set_secret(disk: Element, uuid: str) -> None:
    """Let a disk name this secret."""
    found = encryption(disk)
    if found is not None:
        xml.drop(found, "secret")
        xml.child(found, "secret", None, type_="passphrase", uuid=uuid)


def making(form: str) -> list[str]:
    """Format and options of a new image for ``qemu-img create`` (``-f``) and ``convert`` (``-O``), without that word."""
    if form == "raw":
        return ["luks", *_STDIN, "-o", f"key-secret={_KEY}"]
    return [form, *_STDIN, "-o", f"encrypt.format=luks,encrypt.key-secret={_KEY}"]


def opening(path: str, form: str) -> list[str]:
    """An existing image, as a command of ``qemu-img`` takes it."""
    key = f"driver=luks,key-secret={_KEY}" if form == "raw" else f"driver={form},encrypt.key-secret={_KEY}"
    return [*_STDIN, "--image-opts", f"{key},file.driver=file,file.filename={path.replace(',', ',,')}"]


def opens(path: str, form: str, passphrase: str) -> bool:
    """Whether a passphrase opens a disk. That takes as long as was decided when it was made: a second or two.

    Raises:
        PhyllomeError: the file cannot be read, or is no such image.
    """
    try:
        argv = ["qemu-img", "map", "-U", "--max-length=512", "--output=json", *opening(path, form)]
        run(argv, timeout=TIMEOUT, stdin=passphrase)
    except PhyllomeError as exc:
        if _WRONG in exc.why:
            return False
        raise
    return True
