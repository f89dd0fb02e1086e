# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names and paths that come from users: checked before anything is built from them.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import os
import re
import uuid

from .errors import PhyllomeError

_GUESTS = uuid.uuid5(uuid.NAMESPACE_URL, "https://phyllome.org/xmlns/virt/guest/1")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,31}")
# Control characters, and halves of characters, which neither XML nor a terminal can show.
_UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def check_name(value: str, option: str) -> str:
    """A name of a guest, network or pool: it becomes part of file names and of XML.

    Raises:
        PhyllomeError: anything but 1 to 64 letters, digits and ``_ . + -``, not starting with a sign.
    """
    if not _NAME.fullmatch(value):
        raise PhyllomeError(
            f"{option}: {_short(value)!r} is not a valid name",
            "names have 1 to 64 ASCII letters, digits, '_', '.', '+' or '-', and start with a letter, digit or '_'",
            "Choose another name; what a person should read can go into the guest's metadata.",
        )
    return value


def check_id(value: str, option: str) -> str:
    """An id of a device; it becomes the libvirt user alias ``ua-<id>``.

    libvirt allows letters, digits, ``_`` and ``-`` there
    (https://libvirt.org/formatdomain.html#devices).

    Raises:
        PhyllomeError: anything but 1 to 32 of these, not starting with ``-``.
    """
    if not _ID.fullmatch(value):
        raise PhyllomeError(
            f"{option}: {_short(value)!r} is not a valid id",
            "an id has 1 to 32 ASCII letters, digits, '_' or '-', and does not start with '-'",
            "Choose another id.",
        )
    return value


def check_path(value: str, option: str) -> str:
    """An absolute path without ``..`` or control characters.

    Raises:
        PhyllomeError: anything else.
    """
    if not value.startswith("/") or len(value) > 4096 or ".." in value.split("/") or _UNSHOWABLE.search(value):
        raise PhyllomeError(
            f"{option}: {_short(value)!r} is not a valid path",
            "a path is absolute, without '..' and without control characters",
            "Write the whole path.",
        )
    return os.path.normpath(f"/{value.lstrip('/')}")  # normpath keeps two leading slashes


def guest_uuid(name: str) -> str:
    """The uuid that a new guest of this name gets, the same on every host and at every run (RFC 9562, version 5)."""
    return str(uuid.uuid5(_GUESTS, name))


def _short(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:77]}..."
