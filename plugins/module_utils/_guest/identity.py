# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest consists of besides its definition: disks, UEFI variables, TPM state; where it is and how it is copied.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import typing as t
import urllib.parse

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.program import run
from . import luks
from .spec import disk_serial, mac_address
from .tables import DISKS, DOMAIN, NETWORKS, TARGET, device_id

if t.TYPE_CHECKING:
    from .._core.xml import Element

COPY_TIMEOUT = 24 * 3600
"""Seconds that copying one file may take."""

_TPM_NOISE = (".lock", "swtpm.log")


@dataclasses.dataclass(frozen=True)
class Places:
    """Where libvirt and we keep things (src/qemu/qemu_conf.c).

    Attributes:
        nvram: UEFI variable stores.
        swtpm: a folder for each guest with an emulated TPM.
        save: saved memory of guests.
        ours: what this collection keeps; only its owner may look.
    """

    nvram: str
    swtpm: str
    save: str
    ours: str


def places(uri: str) -> Places:
    """The places of a local libvirt.

    Raises:
        PhyllomeError: the URI names another host.
    """
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc or "+" in parts.scheme:
        raise PhyllomeError(
            f"uri: {uri!r} is on another host",
            "the guest's files are read and written where this module runs",
            "Run the task on that host, with a local URI such as qemu:///system.",
        )
    if parts.path != "/session":
        return Places(
            "/var/lib/libvirt/qemu/nvram",
            "/var/lib/libvirt/swtpm",
            "/var/lib/libvirt/qemu/save",
            "/var/lib/libvirt/phyllome",
        )
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    base = f"{base}/libvirt"
    return Places(f"{base}/qemu/nvram", f"{base}/qemu/swtpm", f"{base}/qemu/save", f"{base}/phyllome")


@dataclasses.dataclass(frozen=True)
class Drive:
    """A disk of a guest; removable media are none.

    Attributes:
        target: its target name.
        label: its id, else its target name.
        path: of its file; None when it is not in a file.
        format: as the definition has it.
        odd: why it can be neither copied nor put back, or None.
        encrypted: whether its content cannot be read without its passphrase.
    """

    target: str
    label: str
    path: str | None
    format: str
    odd: str | None = None
    encrypted: bool = False


@dataclasses.dataclass(frozen=True)
class Identity:
    """What makes a guest that guest.

    Attributes:
        drives: in the order of the definition.
        nvram: file of UEFI variables, whether it is there or not; None for a guest with BIOS.
        tpm: folder of the emulated TPM's state, whether it is there or not; None without such a TPM.
        odd: further reasons why the guest cannot be copied whole.
    """

    name: str
    uuid: str
    drives: tuple[Drive, ...]
    nvram: str | None
    tpm: str | None
    odd: tuple[str, ...] = ()

    def reasons(self, encrypted: bool = False) -> tuple[str, ...]:
        """All that stands against a whole copy; ``encrypted`` where that is no reason."""
        locked = [drive for drive in self.drives if drive.encrypted and not encrypted]
        told = [f"disk {drive.label} {drive.odd}" for drive in self.drives if drive.odd]
        return (*told, *(f"disk {drive.label} is encrypted" for drive in locked), *self.odd)


def of(config: Element, live: Element | None, where: Places) -> Identity:
    """What a guest consists of.

    Args:
        config: element of its definition.
        live: of the running guest, which tells the variable store that libvirt chose; None when it is off.
        where: see Places.
    """
    name, uuid = config.findtext("name", ""), config.findtext("uuid", "")
    nvram, odd = _nvram(config, live, f"{where.nvram}/{name}_VARS.fd")
    backend = xml.first(config, "devices/tpm/backend")
    tpm = None
    if backend is not None and backend.get("type") == "emulator":
        tpm = f"{where.swtpm}/{uuid}"
        if xml.first(backend, "source") is not None or xml.first(backend, "encryption") is not None:
            odd += ("its TPM keeps its state at a place of its own, or encrypted",)
    elif backend is not None:
        odd += (f"its TPM is of type {backend.get('type')}",)
    return Identity(name, uuid, tuple(_drive(found) for found in DISKS.elements(config)), nvram, tpm, odd)


def _nvram(config: Element, live: Element | None, usual: str) -> tuple[str | None, tuple[str, ...]]:
    if DOMAIN["firmware"][0].read(config) != "uefi":
        return None, ()
    found = xml.first(config, "os/nvram")
    if live is not None and (found is None or not (found.text or found.find("source") is not None)):
        found = xml.first(live, "os/nvram")
    if found is None:
        return usual, ()
    source = xml.first(found, "source")
    path = (found.text or "").strip() or (None if source is None else source.get("file"))
    if source is not None and path is None:
        return None, ("its UEFI variables are not in a file",)
    odd = () if found.get("format", "raw") == "raw" else (f"its UEFI variables are in {found.get('format')}",)
    return path or usual, odd


def _drive(found: Element) -> Drive:
    target, form = TARGET.read(found) or "", DISKS.row("format").read(found) or "raw"
    path = DISKS.row("path").read(found)
    odd = None
    if path is None:
        odd = f"is of type {found.get('type')}, not a file"
    elif found.find("shareable") is not None:
        odd = "is shareable: another guest may write to it"
    elif found.find("transient") is not None:
        odd = "is transient"
    elif form not in ("qcow2", "raw"):
        odd = f"has the format {form}"
    return Drive(target, device_id(found) or target, path, form, odd, luks.encryption(found) is not None)


def reborn(root: Element, name: str, uuid: str, store: str, fresh: bool) -> None:
    """Give a copied definition its own name and uuid, in place.

    Args:
        root: the definition.
        name: the new guest's.
        uuid: the new guest's.
        store: directory of UEFI variables; the new store is named by the uuid.
        fresh: whether it is another guest than the one it was copied from: then its network cards, serial numbers and
            generation id are new too, so that nothing on the network or inside takes it for the other one.
    """
    xml.ensure(root, "name").text = name
    xml.ensure(root, "uuid").text = uuid
    for entry in root.findall("sysinfo/system/entry[@name='uuid']"):
        entry.text = uuid  # libvirt refuses one that differs from the guest's
    if DOMAIN["firmware"][0].read(root) == "uefi":
        found = xml.ensure(root, "os/nvram")
        xml.drop(found, "source")
        found.attrib.pop("type", None)
        found.text = f"{store}/{uuid}_VARS.fd"
    if not fresh:
        return
    if xml.first(root, "genid") is not None:
        xml.ensure(root, "genid").text = None  # libvirt makes one
    for number, card in enumerate(NETWORKS.elements(root)):
        xml.ensure(card, "mac").set("address", mac_address(uuid, device_id(card) or f"card{number}"))
    for disk in DISKS.elements(root):
        serial = xml.first(disk, "serial")
        if serial is not None:
            serial.text = disk_serial(uuid, device_id(disk) or TARGET.read(disk) or "")


def snapshot_folder(where: Places, uuid: str) -> str:
    """Where what is not on the disks of a guest's snapshots is kept."""
    return f"{where.ours}/snapshots/{uuid}"


def snapshots(path: str) -> dict[str, int]:
    """Names of the snapshots inside a qcow2 image, in use or not, with how many have that name.

    Raises:
        PhyllomeError: it cannot be read.
    """
    argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path]
    told = json.loads(run(argv, remedy="Is the disk's file there, and qcow2?"))
    names: dict[str, int] = {}
    for entry in told.get("snapshots", ()):
        names[entry["name"]] = names.get(entry["name"], 0) + 1
    return names


def digest(path: str) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        PhyllomeError: it cannot be read.
    """
    found = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1024**2), b""):
                found.update(block)
    except OSError as exc:
        raise PhyllomeError(f"{path} cannot be read", exc.strerror or str(exc), "Repair it and run again.") from exc
    return found.hexdigest()


def files(folder: str) -> list[str]:
    """Paths of a TPM's files below its folder, without locks and logs; sorted; empty when it is not there."""
    found = []
    for where, dummy, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(where, name), folder) for name in names if name not in _TPM_NOISE]
    return sorted(found)


def copy(source: str, path: str) -> None:
    """Copy a file with its owner and mode, sparse and sharing blocks where the file system can.

    What is there is replaced in one step, so that a kill leaves the old file or the new one.

    Raises:
        PhyllomeError: it fails.
    """
    partial = f"{path}.phyllome-partial"
    remedy = "Look at the disk space and the message, then run again."
    run(
        ["cp", "--reflink=auto", "--sparse=always", "--preserve=mode,ownership", "-T", "--", source, partial],
        timeout=COPY_TIMEOUT,
        remedy=remedy,
    )
    with doing(f"Cannot write {path}"):
        flush(partial)
        os.replace(partial, path)
        flush_folder(os.path.dirname(path))


def link_or_copy(source: str, path: str) -> None:
    """The same content under another name, at no cost where both are in one file system."""
    with doing(f"Cannot write {path}"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        try:
            os.link(source, path)
        except OSError:
            copy(source, path)


def copy_tree(source: str, folder: str) -> None:
    """Copy a TPM's folder with owners and modes; what is there is replaced.

    Raises:
        PhyllomeError: it fails.
    """
    partial = f"{folder}.phyllome-partial"
    with doing(f"Cannot copy {source} to {folder}"):
        shutil.rmtree(partial, ignore_errors=True)
        _like(source, partial)
        for where, names, dummy in os.walk(source):
            for name in names:
                at = os.path.join(where, name)
                _like(at, os.path.join(partial, os.path.relpath(at, source)))
        for name in files(source):
            copy(os.path.join(source, name), os.path.join(partial, name))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
        flush_folder(os.path.dirname(folder))


def _like(source: str, folder: str) -> None:
    """A folder with the owner and mode of another; the mode is there from the beginning."""
    status = os.stat(source)
    os.mkdir(folder, 0o700)
    os.chown(folder, status.st_uid, status.st_gid)
    os.chmod(folder, status.st_mode & 0o7777)


def private_folder(path: str) -> None:
    """A folder that only its owner may look into, made with all that is above it."""
    with doing(f"Cannot make {path}"):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def write(path: str, text: str) -> None:
    """Write a small file that only its owner may read: all of it or nothing."""
    partial = f"{path}.phyllome-partial"
    with doing(f"Cannot write {path}"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        os.replace(partial, path)
        flush_folder(os.path.dirname(path))


def load(path: str) -> dict[str, t.Any] | None:
    """What a JSON file of ours says; None when it is not there or was cut off."""
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def remove_tree(folder: str) -> None:
    """Remove a folder of ours; nothing happens when it is not there."""
    with doing(f"Cannot remove {folder}"), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


@contextlib.contextmanager
def doing(what: str) -> t.Iterator[None]:
    """Say what was being done when the file system refuses."""
    try:
        yield
    except OSError as exc:
        raise PhyllomeError(what, str(exc), "Repair what is named and run again.") from exc


def flush(path: str) -> None:
    """A file's content survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: str) -> None:
    """What was renamed in a folder stays renamed after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
