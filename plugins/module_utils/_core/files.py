# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write a file so that a power cut leaves the old one or the new one.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import os

from .errors import PhyllomeError

_ASIDE = ".phyllome-new"


def write(root: str, path: str, content: str | None, mode: int = 0o644) -> None:
    """Write a text; None removes the file. One that is there keeps its mode.

    Args:
        root: directory that the path is below.
        path: without a leading slash.
        content: what was undecodable may be in it as surrogates.
        mode: of a file that is new.

    Raises:
        PhyllomeError: it cannot be written.
    """
    full = os.path.join(root, path)
    try:
        if content is None:
            clear(root, path)
            if os.path.lexists(full):
                os.unlink(full)
                _settle(full)
            return
        full = os.path.realpath(full)
        aside = f"{full}{_ASIDE}"
        if os.path.exists(full):
            mode = os.stat(full).st_mode & 0o7777
        os.makedirs(os.path.dirname(full), exist_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(aside, full)
        _settle(full)
    except OSError as exc:
        raise PhyllomeError(
            f"/{path} cannot be written", exc.strerror or str(exc), "Run this as root; make room."
        ) from exc


def clear(root: str, path: str) -> None:
    """Remove what is left beside a file when the power is cut while it is written; see write for the arguments."""
    aside = f"{os.path.realpath(os.path.join(root, path))}{_ASIDE}"
    if os.path.lexists(aside):
        os.unlink(aside)


def _settle(path: str) -> None:
    """Have a name, or its absence, survive a power cut (https://man7.org/linux/man-pages/man2/fsync.2.html)."""
    with contextlib.suppress(OSError):  # the folder is gone, or of a file system that cannot
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
