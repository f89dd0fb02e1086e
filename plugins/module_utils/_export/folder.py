# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An exported guest as a folder: what its manifest says, and whether the folder is what it says.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import typing as t

from .._core.errors import PhyllomeError
from .._guest import identity

MANIFEST = "manifest.json"
DEFINITION = "domain.xml"
NVRAM = "nvram.fd"
TPM = "tpm"
KIND = "phyllome.virt guest"
VERSION = 1
_ROLES = ("definition", "disk", "nvram", "tpm")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A file of an export.

    Attributes:
        file: its path in the folder.
        role: definition, disk, nvram or tpm.
        sha256: of its content, in hexadecimal digits.
        size: in bytes.
        target: of a disk, its target name.
        format: of a disk, qcow2 or raw.
        capacity: of a disk, bytes that the guest sees.
        owner, group, mode: of a TPM's file.
    """

    file: str
    role: str
    sha256: str
    size: int
    target: str | None = None
    format: str | None = None
    capacity: int | None = None
    owner: str | None = None
    group: str | None = None
    mode: int | None = None

    def as_dict(self) -> dict[str, t.Any]:
        """As the manifest has it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is in a folder.

    Attributes:
        name, uuid: of the guest.
        created: seconds since 1970.
        source: what the guest's files looked like; the export is up to date while they do.
        pieces: all files but the manifest.
    """

    name: str
    uuid: str
    created: float
    source: t.Mapping[str, t.Any]
    pieces: tuple[Piece, ...]

    def of(self, role: str) -> tuple[Piece, ...]:
        """The pieces of that role."""
        return tuple(piece for piece in self.pieces if piece.role == role)

    def as_dict(self) -> dict[str, t.Any]:
        """As it is written."""
        return {
            "kind": KIND,
            "schema_version": VERSION,
            "guest": {"name": self.name, "uuid": self.uuid},
            "created": self.created,
            "source": dict(self.source),
            "pieces": [piece.as_dict() for piece in self.pieces],
        }


def manifest(path: str) -> Manifest | None:
    """What the manifest in a folder says; None when there is none.

    Raises:
        PhyllomeError: it is of another release, or says what no export of ours says.
    """
    told = identity.load(f"{path}/{MANIFEST}")
    if told is None or told.get("kind") != KIND:
        return None
    if told.get("schema_version") != VERSION:
        raise PhyllomeError(
            f"path: {path} has the schema version {told.get('schema_version')!r}",
            f"this release of phyllome.virt knows {VERSION}",
            "Use the release that has made it.",
        )
    try:
        pieces = tuple(_piece(piece) for piece in told["pieces"])
        return Manifest(
            str(told["guest"]["name"]), str(told["guest"]["uuid"]), float(told["created"]), told["source"], pieces
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise PhyllomeError(f"path: {path}/{MANIFEST} is not a manifest", str(exc), "Fetch the export again.") from exc


def _piece(told: t.Any) -> Piece:
    piece = Piece(**told)
    parts = piece.file.split("/")
    if piece.role not in _ROLES or not _DIGEST.fullmatch(piece.sha256) or not isinstance(piece.size, int):
        raise ValueError(f"piece {piece.file!r:.80}")
    if piece.file.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in piece.file:
        raise ValueError(f"piece {piece.file!r:.80} is outside of the folder")
    if piece.role == "disk" and (piece.format not in ("qcow2", "raw") or not piece.target):
        raise ValueError(f"disk {piece.file!r:.80}")
    if piece.role == "tpm" and (parts[0] != TPM or len(parts) < 2):
        raise ValueError(f"TPM state {piece.file!r:.80}")
    return piece


def complete(path: str, found: Manifest) -> bool:
    """Whether all pieces are there with their sizes; contents are not read."""
    return all(_size(f"{path}/{piece.file}") == piece.size for piece in found.pieces)


def damage(path: str, found: Manifest) -> tuple[str, ...]:
    """What is wrong with the pieces, every byte of them read; empty when nothing is."""
    told = []
    for piece in found.pieces:
        file = f"{path}/{piece.file}"
        size = _size(file)
        if size is None:
            told.append(f"{piece.file} is missing or not a file")
        elif size != piece.size:
            told.append(f"{piece.file} has {size} bytes instead of {piece.size}")
        elif identity.digest(file) != piece.sha256:
            told.append(f"{piece.file} has another content")
    return tuple(told)


def _size(path: str) -> int | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
