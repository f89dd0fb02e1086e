# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write a file so that a power cut leaves the old one or the new one.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import os

from .errors import PhyllomeError


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
            if os.path.lexists(full):
                os.unlink(full)
            return
        full = os.path.realpath(full)
        aside = f"{full}.phyllome-new"
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
    except OSError as exc:
        raise PhyllomeError(
            f"/{path} cannot be written", exc.strerror or str(exc), "Run this as root; make room."
        ) from exc
