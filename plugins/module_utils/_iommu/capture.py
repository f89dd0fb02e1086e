# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine as an archive: what its facts are computed from, and nothing else.

The facts are gathered, and what was looked at on the way is kept; so no list of files can go stale.
Of files that say more than the facts need (environments, logs, command lines) only what is needed is
kept. Serial numbers, MAC addresses and the host's name are replaced, the same by the same everywhere.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
import typing as t

from .._core.errors import PhyllomeError
from .._core.sysfs import Tree, pci_functions
from . import catalogue
from .archive import Capture
from .facts import gather_from
from .masks import HANDLE, Masks
from .reduce import reduced

Facts = dict[str, t.Any]

# Entries of directories of devices that count by being there, whatever they hold.
_COUNTS = re.compile(
    r"reset|resource\d+_resize|partition|dm|loop|bonding|brif|master|drm|nvme|nvidia|pci_bus|physfn|virtfn\d+"
    r"|secondary_bus_number|mdev_supported_types|graphics|(?:lower|upper)_.+|nvme\d+|card\d+.*"
    r"|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)
_LISTS = ("holders", "slaves", "brif", "mdev_supported_types")
_DULL_NODE = re.compile(r"/dev/(?:null|zero|full|u?random|tty\d*|ptmx|pts/\d+|input/.*|hidraw\d+)( \(deleted\))?\Z")
_PROCESS = re.compile(r"proc/(\d+)/(.+)")


class Recorder(Tree):
    """A tree that remembers what was looked at, by its real path.

    Attributes:
        files: content.
        links: target.
        listed: directory → names in it.
        seen: what is known to be there.
        denied: path as it was asked for → why it could not be read.
    """

    def __init__(self, root: str, option: str, patience: float | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.listed: dict[str, tuple[str, ...]] = {}
        self.seen: set[str] = set()
        self.denied: dict[str, str] = {}
        super().__init__(root, option, patience)

    def _where(self, path: str) -> str:
        head, dummy, name = path.rpartition("/")
        return f"{self._real(head)}/{name}" if head else name

    def _keep_why(self, path: str) -> None:
        why = self.unread.get(path, "missing")
        if why != "missing":
            self.denied[path] = why

    def exists(self, path: str) -> bool:
        found = super().exists(path)
        if found:
            self.seen.add(self._where(path))
        return found

    def data(self, path: str, limit: int = 4096) -> bytes | None:
        found = super().data(path, limit)
        if found is None:
            self._keep_why(path)
        return found

    def _content(self, path: str, limit: int) -> bytes:
        self.files[path] = found = super()._content(path, limit)
        return found

    def names(self, path: str) -> tuple[str, ...] | None:
        found = super().names(path)
        self._keep_why(path)
        if found is not None:
            self.listed[str(self._real(path))] = found
        return found

    def link(self, path: str) -> str | None:
        found = super().link(path)
        if found is None:
            self._keep_why(path)
        return found

    def claimed(self, path: str) -> bool | None:
        found = super().claimed(path)
        if found is None:
            self._keep_why(path)
        else:
            self.files[self._where(path)] = b"claimed\n" if found else b"free\n"
        return found

    def _readlink(self, path: str) -> str:
        target = super()._readlink(path)
        self.links[path] = target
        return target


def capture(root: str) -> tuple[Capture, Facts]:
    """Take a machine down, and try out whether it replays.

    Args:
        root: directory that holds ``sys`` and ``proc``.

    Returns:
        The capture, and the facts that it has to give, which are the machine's with names replaced.

    Raises:
        PhyllomeError: root is no such directory.
    """
    tree = Recorder(root, "sysfs_root")
    known: list[catalogue.Catalogue] = []

    def look_up(*of: t.Any) -> catalogue.Catalogue:
        known.append(catalogue.read_catalogue(*of))
        return known[-1]

    facts = gather_from(tree, look_up=look_up)
    host = (tree.text("proc/sys/kernel/hostname") or "").strip()
    tree.files.pop("proc/sys/kernel/hostname", None)
    tree.seen.discard("proc/sys/kernel/hostname")
    for prune in (True, False):
        taken = _taken(tree, facts, known[0], prune)
        masks = Masks(taken, host)
        taken, wanted = masks.of_capture(taken), masks.of_facts(facts)
        with tempfile.TemporaryDirectory() as place:
            again = gather_from(Tree(taken.write(os.path.join(place, "m")), "sysfs_root"))
        taken.replays = masks.of_facts(again) == wanted
        if taken.replays:
            break
    return taken, wanted


def save(root: str, dest: str, check_mode: bool = False) -> Facts:
    """Write a capture to a file, whole or not at all; in check mode only say what would be.

    Raises:
        PhyllomeError: the file cannot be written.
    """
    taken = capture(root)[0]
    data = taken.archive()
    try:
        with open(dest, "rb") as file:
            before: bytes | None = file.read(len(data) + 1)
    except OSError:
        before = None
    if before != data:
        _replace(dest, data, check_mode)
    return {
        "changed": before != data,
        "dest": dest,
        "bytes": len(data),
        "files": len(taken.files),
        "replays": taken.replays,
        "warnings": []
        if taken.replays
        else ["The facts computed from this capture are not quite those of the machine; please say so with it."],
    }


def _replace(dest: str, data: bytes, check_mode: bool) -> None:
    folder, partial = os.path.dirname(dest) or ".", None
    try:
        os.stat(os.path.join(folder, ""))
        if os.path.isdir(dest):
            raise OSError("it is a directory")
        if check_mode:
            return
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            partial = file.name
            file.write(data)
        os.replace(partial, dest)
    except OSError as exc:
        if partial is not None:
            os.unlink(partial)
        raise PhyllomeError(
            f"dest: {dest!r} cannot be written", exc.strerror or str(exc), "Name a file in a directory that is there."
        ) from exc


# what is kept


def _taken(tree: Recorder, facts: Facts, drivers: catalogue.Catalogue, prune: bool) -> Capture:
    files = {path: reduced(path, content) for path, content in tree.files.items()}
    _ask_catalogue(drivers, files, facts)
    links = {path: target for path, target in tree.links.items() if not _is_dull(path, target)}
    entries = {
        f"{folder}/{name}"
        for folder, names in tree.listed.items()
        for name in names
        if folder != "proc"
        and (not folder.endswith("/fd") or f"{folder}/{name}" in tree.denied)
        and (
            not prune
            or not folder.startswith("sys/devices/")
            or folder.endswith(_LISTS)
            or _COUNTS.fullmatch(name)
            or f"{folder}/{name}" in tree.denied
        )
    }
    known = {*files, *tree.links, *tree.listed, *_parents({*files, *links, *tree.listed})}
    files.update({path: b"" for path in (entries | tree.seen) - known if path})
    processes = {"1"} | {
        match.group(1)
        for path in (*links, *files, *tree.denied)
        for match in [_PROCESS.match(path)]
        if match and match.group(2) not in ("comm", "fd")
    }

    def wanted(path: str) -> bool:
        match = re.match(r"proc/(\d+)(?:/|\Z)", path)
        return match is None or match.group(1) in processes

    files = {path: content for path, content in files.items() if wanted(path)}
    links = {path: target for path, target in links.items() if wanted(path)}
    full = _parents({*files, *links})
    return Capture(files, links, {path for path in tree.listed if wanted(path)} - full, dict(tree.denied))


def _parents(paths: t.Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        parent = posixpath.dirname(path)
        while parent and parent not in found:
            found.add(parent)
            parent = posixpath.dirname(parent)
    return found


def _is_dull(path: str, target: str) -> bool:
    """Whether a link says nothing about PCI functions: what processes have open, and nodes of other devices."""
    if HANDLE.match(path):
        return not target.startswith("/dev/") or bool(_DULL_NODE.match(target))
    return path.startswith(("sys/dev/char/", "sys/dev/block/")) and not pci_functions(target)


def _ask_catalogue(known: catalogue.Catalogue, files: dict[str, bytes], facts: Facts) -> None:
    """Of the lists of drivers and names only what is about the devices that are here."""
    ids = {(device["vendor"], device["device"]) for device in facts["devices"]}
    wanted = {
        line.partition(":")[2]
        for path, content in files.items()
        if path.endswith("/uevent")
        for line in content.decode("utf-8", "replace").splitlines()
        if line.startswith("MODALIAS=pci:")
    }
    aliases, names = catalogue.extract(known, wanted, ids)
    for path in files:
        if path.endswith("/modules.alias"):
            files[path] = aliases.encode()
        elif path.endswith("/modules.builtin.modinfo"):
            files[path] = b""
        elif path.endswith("/pci.ids"):
            files[path] = names.encode()
