# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files of disks: what is in them, and making and growing them so that a kill at any moment loses nothing.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import stat
import struct
import typing as t

from .._core.errors import PhyllomeError
from .._core.program import run
from .._core.units import format_size
from . import luks

_COPY_TIMEOUT = 24 * 3600
_OVERHEAD = 4 * 1024**2
"""Bytes that an empty image takes, generously."""
_MOUNTS = "/proc/self/mountinfo"

_NOT_IMAGES = (
    # first bytes, what it is, remedy
    (b"\xfd7zXZ\x00", "an xz archive", "Unpack it first: unxz FILE."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first: gunzip FILE."),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it first: unzstd FILE."),
    (b"BZh", "a bzip2 archive", "Unpack it first: bunzip2 FILE."),
    (b"PK\x03\x04", "a zip archive", "Unpack it first: unzip FILE."),
    (b"<", "a web page or XML", "The download went wrong; fetch it again."),
)


@dataclasses.dataclass(frozen=True)
class Image:
    """A disk image.

    Attributes:
        format: as qemu-img names it; ``raw`` for LUKS and nothing around it.
        capacity: bytes that the guest sees.
        needs: bytes that a copy of it takes at most.
        refers: another file that holds a part of its content.
        encrypted: whether nothing is in it for who does not know its passphrase.
    """

    format: str
    capacity: int
    needs: int
    refers: str | None = None
    encrypted: bool = False


def inspect(path: str, checksum: str | None = None) -> Image:
    """What is in a file.

    Args:
        path: of the file.
        checksum: ``sha256:<hex>`` that it must have.

    Raises:
        PhyllomeError: it cannot be read, is no image, or has another checksum.
    """
    try:
        with open(path, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise PhyllomeError(f"{path} is not a file", "disks are kept in files", "Give the path of an image.")
            head = stream.read(512)
            if checksum is not None:
                _verify(path, stream, checksum)
    except OSError as exc:
        raise PhyllomeError(f"{path} cannot be read", str(exc), "Put the image there, or correct the path.") from exc
    info = json.loads(run(["qemu-img", "info", "-U", "--output=json", path], remedy="Is it a disk image?"))
    if info["format"] == "raw":
        _check_raw(path, head, info["virtual-size"])
    details = info.get("format-specific", {}).get("data") or {}
    encrypted = info["format"] == "luks" or bool(info.get("encrypted"))
    return Image(
        format="raw" if info["format"] == "luks" else info["format"],
        capacity=info["virtual-size"],
        needs=info["virtual-size"] if encrypted else _needs(path, info),
        refers=info.get("backing-filename") or details.get("data-file"),
        encrypted=encrypted,
    )


def _needs(path: str, info: dict[str, t.Any]) -> int:
    measured = json.loads(run(["qemu-img", "measure", "-U", "--output=json", "-O", "qcow2", path]))
    return int(measured.get("required", info["virtual-size"]))


def _check_raw(path: str, head: bytes, size: int) -> None:
    for magic, what, remedy in _NOT_IMAGES:
        if head.startswith(magic):
            raise PhyllomeError(f"{path} is not a disk image", f"it is {what}", remedy)
    # qemu-img takes whatever it does not know for a raw image, and rounds its size up to sectors.
    if not size or os.path.getsize(path) % 512:
        raise PhyllomeError(
            f"{path} is not a disk image",
            "it has no known format, and a raw image consists of sectors of 512 bytes",
            "Give the path of an image; 'qemu-img info FILE' should tell its format.",
        )


def _verify(path: str, stream: t.BinaryIO, checksum: str) -> None:
    digest = hashlib.sha256()
    stream.seek(0)
    for block in iter(lambda: stream.read(1024**2), b""):
        digest.update(block)
    found = f"sha256:{digest.hexdigest()}"
    if found != checksum:
        raise PhyllomeError(
            f"{path} has another checksum than declared",
            f"declared {checksum}, found {found}",
            "Fetch the image again, or correct the checksum.",
        )


def chain(path: str, form: str | None) -> tuple[str, ...]:
    """The files below an overlay, nearest first; empty when it is none or cannot be read.

    Args:
        path: of the file.
        form: as which a guest has it. What is in a raw one is the guest's, who may have written there that it is an overlay.
    """
    with contextlib.suppress(PhyllomeError):
        if form == "qcow2":
            told = json.loads(run(["qemu-img", "info", "-U", "--backing-chain", "-f", form, "--output=json", path]))
            return tuple(layer["filename"] for layer in told[1:])
    return ()


def based(path: str) -> bool:
    """Whether a qcow2 file is an overlay of another one, by its header; False when it cannot be read.

    https://www.qemu.org/docs/master/interop/qcow2.html: magic, version, then eight bytes of backing_file_offset.
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(16)
    except OSError:
        return False
    return head[:4] == b"QFI\xfb" and any(head[8:16])


def backing(path: str) -> str | None:
    """The name in the header of a qcow2 file of what it is an overlay of, from the root; None when there is none to be read.

    It may be one that only QEMU understands. Source: as for ``based``, with four bytes of backing_file_size after them.
    """
    try:
        with open(path, "rb") as stream:
            magic, dummy, offset, size = struct.unpack(">4sIQI", stream.read(20))
            stream.seek(offset)
            name = os.fsdecode(stream.read(size)) if magic == b"QFI\xfb" and offset and size <= 1023 else ""
    except (OSError, struct.error, OverflowError):
        return None
    return os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else None


def free(directory: str) -> int:
    """Bytes that can still be written there, or where it will be made."""
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def shares(source: str, directory: str) -> bool:
    """Whether a file there can have the blocks of another one (ioctl_ficlonerange(2)): on one btrfs or XFS."""
    number, kind = _mount(source)
    return kind in ("btrfs", "xfs") and (number, kind) == _mount(directory)


def _mount(path: str) -> tuple[str, str]:
    """Number and type of the file system that a path is on (proc_pid_mountinfo(5)): subvolumes of btrfs have one of both."""
    real, found = os.path.realpath(path), ("", "", "")
    with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            words = line.split()
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
            if f"{real}/".startswith(f"{point.rstrip('/')}/") and len(point) >= len(found[0]):
                found = (point, words[2], words[words.index("-") + 1])
    return found[1:]


def system(path: str) -> int:
    """Number of the file system where a file is, or will be made."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev


def needed(size: int, source: Image | None, whole: bool = False) -> int:
    """Bytes that making a sparse disk takes at once; ``whole`` for a copy that cannot have holes."""
    return _OVERHEAD + (0 if source is None else size if whole else source.needs)


def create(
    path: str, form: str, size: int, source: str | None, method: str = "full", passphrase: str | None = None
) -> None:
    """Make a disk's file: sparse, complete under another name first, then linked to its own.

    Whatever lies under that other name without anybody working on it is from a run that was cut off, and is
    thrown away. The new file belongs to root alone; libvirt gives it to QEMU while the guest runs.

    Args:
        path: of the file, which must not exist.
        form: ``qcow2`` or ``raw``.
        size: bytes that the guest sees.
        source: image to make it from.
        method: ``full`` copies it; ``reflink`` shares its blocks with it, where the file system can; ``linked`` only
            writes down what differs from it, so the image has to stay as it is.
        passphrase: by which it is encrypted with LUKS; None for a disk that is not. It cannot share blocks then.

    Raises:
        PhyllomeError: it exists, somebody else is making it, or the copy fails.
    """
    remedy = "Look at the disk space and at the image, then run again: what is half made is made anew."
    made, key = ([form], "") if passphrase is None else (luks.making(form), passphrase)
    with making(path) as partial:
        if source is None:
            run(["qemu-img", "create", "-q", "-f", *made, partial, str(size)], luks.TIMEOUT, remedy, stdin=key)
        elif method == "linked":
            made += ["-b", source, "-F", inspect(source).format]
            run(["qemu-img", "create", "-q", "-f", *made, partial, str(size)], luks.TIMEOUT, remedy, stdin=key)
        elif method == "reflink":
            remedy = "Say method: full, or put both on one btrfs or XFS file system."
            run(["cp", "--reflink=always", "--no-preserve=all", source, partial], remedy=remedy)
            _enlarge(partial, form, size)
        else:
            argv = ["qemu-img", "convert", "-q", "-O", *made, source, partial]
            run(argv, timeout=_COPY_TIMEOUT, remedy=remedy, stdin=key)
            _enlarge(partial, form, size, passphrase)


@contextlib.contextmanager
def making(path: str) -> t.Iterator[str]:
    """The name of an empty file, mode 0600, that is written now and gets its own name at the end, complete.

    Args:
        path: its own name, which must not exist.

    Raises:
        PhyllomeError: it exists, somebody else is making it, or it cannot be made.
    """
    directory, name = os.path.split(path)
    partial = os.path.join(directory, f".{name}.phyllome-partial")
    try:
        os.makedirs(directory, 0o711, exist_ok=True)  # only an ordinary user's own is ever missing
        with _only_us(partial) as descriptor:
            yield partial
            os.fsync(descriptor)
            os.link(partial, path)
            os.unlink(partial)
            _sync(directory)
    except OSError as exc:
        raise PhyllomeError(f"Cannot make {path}", str(exc), "Repair what is named and run again.") from exc


@contextlib.contextmanager
def _only_us(partial: str) -> t.Iterator[int]:
    """An empty file of our own under this name; removed unless it was linked elsewhere."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        descriptor = os.open(partial, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(descriptor)
            raise PhyllomeError(
                f"{partial} is being written", "another run makes this disk right now", "Wait for that run to end."
            ) from exc
        if not os.fstat(descriptor).st_size and _is(descriptor, partial):
            break
        # Left over: a program of the run that was cut off may still write into it, so it gets no second life.
        if _is(descriptor, partial):
            os.unlink(partial)
        os.close(descriptor)
    try:
        yield descriptor
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    finally:
        os.close(descriptor)


def _is(descriptor: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _enlarge(path: str, form: str, size: int, passphrase: str | None = None) -> None:
    if _capacity(path, form, passphrase is not None, "-U") < size:
        _resize(path, form, size, passphrase)


def _capacity(path: str, form: str, encrypted: bool, *flags: str) -> int:
    kind = "luks" if encrypted and form == "raw" else form
    return int(json.loads(run(["qemu-img", "info", *flags, "--output=json", "-f", kind, path]))["virtual-size"])


def _resize(path: str, form: str, size: int, passphrase: str | None) -> None:
    if passphrase is None:
        run(["qemu-img", "resize", "-q", "-f", form, path, str(size)])
    else:
        run(["qemu-img", "resize", "-q", *luks.opening(path, form), str(size)], luks.TIMEOUT, stdin=passphrase)


def grow(path: str, form: str, size: int, passphrase: str | None = None) -> None:
    """Make a disk bigger that nobody uses; QEMU's image lock refuses when somebody does.

    Raises:
        PhyllomeError: it is bigger already, or qemu-img fails.
    """
    if _capacity(path, form, passphrase is not None) > size:
        raise PhyllomeError(
            f"{path} would shrink to {format_size(size)}", "its end would be cut off", "Disks only grow."
        )
    _resize(path, form, size, passphrase)


def aside(path: str) -> str:
    """The name of a file that was set aside."""
    return f"{path}.before-reset"


def set_aside(path: str) -> None:
    """Rename a file, so that libvirt makes it anew; it may not be there, and an older one set aside is lost."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, aside(path))
    except OSError as exc:
        raise PhyllomeError(f"Cannot set {path} aside", str(exc), "Repair what is named and run again.") from exc


def remove(path: str) -> None:
    """Delete a disk's file, and what a run that was cut off left of it."""
    directory, name = os.path.split(path)
    try:
        for victim in (path, os.path.join(directory, f".{name}.phyllome-partial")):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(victim)
    except OSError as exc:
        raise PhyllomeError(f"Cannot delete {path}", str(exc), "Repair what is named and run again.") from exc
