# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is kept of a machine, and the two forms that it is kept in: an archive, and a tree of files.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import tarfile

from .._core.sysfs import UNREAD


@dataclasses.dataclass
class Capture:
    """Files, links and empty directories, by path, and what to say about them.

    Attributes:
        unread: path → why it could not be read.
        replays: whether the facts computed from this are those of the machine.
    """

    files: dict[str, bytes]
    links: dict[str, str]
    directories: set[str]
    unread: dict[str, str]
    replays: bool = False

    def paths(self) -> list[str]:
        """All of them, sorted."""
        return sorted({*self.files, *self.links, *self.directories})

    def archive(self) -> bytes:
        """A tar file packed with gzip; the same machine gives the same bytes."""
        files = {**self.files, UNREAD: (json.dumps(self.unread, indent=1, sort_keys=True) + "\n").encode()}
        packed = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as squeezed,
            tarfile.open(fileobj=squeezed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in [*self.paths(), UNREAD]:
                entry = tarfile.TarInfo(path)
                entry.mode = 0o644
                if path in self.links:
                    entry.type, entry.linkname = tarfile.SYMTYPE, self.links[path]
                    tar.addfile(entry)
                elif path in files:
                    entry.size = len(files[path])
                    tar.addfile(entry, io.BytesIO(files[path]))
                else:
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(entry)
        return packed.getvalue()

    def write(self, root: str) -> str:
        """Lay the tree out below a new directory, and return that."""
        for path in self.paths():
            place = os.path.join(root, path)
            os.makedirs(place if path in self.directories else os.path.dirname(place), exist_ok=True)
            if path in self.links:
                os.symlink(self.links[path], place)
            elif path in self.files:
                with open(place, "wb") as file:
                    file.write(self.files[path])
        with open(os.path.join(root, UNREAD), "w", encoding="utf-8") as file:
            json.dump(self.unread, file)
        return root
