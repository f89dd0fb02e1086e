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

import dataclasses
import gzip
import io
import ipaddress
import json
import os
import posixpath
import re
import tarfile
import tempfile
import typing as t
import zlib
from xml.sax.saxutils import quoteattr

from .._boot.read import is_repair, tokens
from .._core.errors import PhyllomeError
from .._core.sysfs import PCI_ADDRESS, UNREAD, Tree, pci_functions
from .._host.read import BOOT_SCREENS, nodes_in
from . import catalogue
from .diagnose import relevant
from .facts import gather_from
from .read import CONFIG, is_of_iommu

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
_HANDLE = re.compile(r"proc/\d+/fd/\d+\Z")
_MAC = re.compile(r"(?<![0-9A-Fa-f:.])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:.])")
_MAC_NAME = re.compile(r"\b(en|wl)x([0-9a-f]{12})\b")
_EUI = re.compile(r"\b([0-9a-f]{16})([0-9a-f]{6})fffe([0-9a-f]{6})\b")  # as ipv6_route has addresses
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:.])")
_SERIAL = re.compile(r"/serial(?:_number)?\Z")
# What people name: the host's name is looked for here, and not in what the kernel names.
_NAMED_BY_PEOPLE = re.compile(r"/mountinfo\Z|^proc/swaps\Z|/dm/name\Z|/backing_file\Z")
_SPOKEN = ("via", "detail")  # keys of facts that hold such text


class Recorder(Tree):
    """A tree that remembers what was looked at, by its real path.

    Attributes:
        files: content.
        links: target.
        listed: directory → names in it.
        seen: what is known to be there.
        denied: path as it was asked for → why it could not be read.
    """

    def __init__(self, root: str, option: str) -> None:
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.listed: dict[str, tuple[str, ...]] = {}
        self.seen: set[str] = set()
        self.denied: dict[str, str] = {}
        super().__init__(root, option)

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

    def _drain(self, handle: int, path: str, limit: int) -> bytes | None:
        found = super()._drain(handle, path, limit)
        if found is not None:
            self.files[self._where(path)] = found
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
    if before != data and not check_mode:
        _replace(dest, data)
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


def _replace(dest: str, data: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(dest) or ".", delete=False) as file:
            file.write(data)
        os.replace(file.name, dest)
    except OSError as exc:
        raise PhyllomeError(
            f"dest: {dest!r} cannot be written", exc.strerror or str(exc), "Name a file in a directory that is there."
        ) from exc


# what is kept


def _taken(tree: Recorder, facts: Facts, drivers: catalogue.Catalogue, prune: bool) -> Capture:
    files = {path: _reduced(path, content) for path, content in tree.files.items()}
    _ask_catalogue(drivers, files, facts)
    links = {path: target for path, target in tree.links.items() if not _is_dull(path, target)}
    entries = {
        f"{folder}/{name}"
        for folder, names in tree.listed.items()
        for name in names
        if folder != "proc"
        and (not folder.endswith("/fd") or f"{folder}/{name}" in tree.denied)
        and (not prune or not folder.startswith("sys/devices/") or folder.endswith(_LISTS) or _COUNTS.fullmatch(name))
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
    if _HANDLE.match(path):
        return not target.startswith("/dev/") or bool(_DULL_NODE.match(target))
    return path.startswith(("sys/dev/char/", "sys/dev/block/")) and not pci_functions(target)


def _reduced(path: str, content: bytes) -> bytes:
    for pattern, reduce in _REDUCE:
        if pattern.search(path):
            return reduce(content)
    return content


def _by_line(keep: t.Callable[[str], str | None]) -> t.Callable[[bytes], bytes]:
    """Lines as ``keep`` gives them back, those left out for which it gives None."""

    def reduce(content: bytes) -> bytes:
        lines = (keep(line) for line in content.decode("utf-8", "surrogateescape").splitlines())
        text = "".join(f"{line}\n" for line in lines if line is not None)
        if not content.endswith(b"\n"):
            text = text[:-1]
        return text.encode("utf-8", "surrogateescape")

    return reduce


def _words(line: str) -> str:
    """Of a kernel command line what the facts ask for; never empty, so that it stays a line."""
    asked = {*relevant(tokens(line))}
    return " ".join(word for word in tokens(line) if word in asked or is_repair(word) or word == "$kernelopts") or "ro"


def _mount(line: str) -> str:
    match = re.match(r"(\d+ \d+ \d+:\d+) \S+ (\S+) \S+ (?:\S+ )*?- (\S+) (\S*) \S*$", line)
    if match is None:
        return line
    head, point, fstype, source = match.groups()
    local = source.startswith("/dev/") or fstype in ("btrfs", "bcachefs", "zfs")
    return f"{head} / {point} rw - {fstype} {source if local else '-'} rw"


def _grub(line: str) -> str | None:
    match = re.match(r"\s*(linux(?:16|efi)?)\s+\S+\s+(.*)$", line)
    if match:
        return f"{match.group(1)} /vmlinuz {_words(match.group(2))}"
    return line if line.strip() == "blscfg" else None


def _entry(line: str) -> str | None:
    words = line.split(None, 1)
    return f"options {_words(words[1])}" if len(words) == 2 and words[0] == "options" else None


def _kernelopts(line: str) -> str | None:
    name, equals, value = line.partition("=")
    return f"{name}={_words(value)}" if name == "kernelopts" and equals else None


def _config_line(line: str) -> str | None:
    match = re.match(r"(?:# )?CONFIG_(\w+)(?:=| is not set$)", line)
    return line if match and match.group(1) in (*CONFIG, "PCI") else None


def _config_packed(content: bytes) -> bytes:
    try:
        return gzip.compress(_by_line(_config_line)(gzip.decompress(content)), mtime=0)
    except (OSError, EOFError, zlib.error):
        return content[:16]


def _environment(content: bytes) -> bytes:
    return b"".join(entry + b"\0" for entry in content.split(b"\0") if entry.startswith(b"SSH_CONNECTION="))


def _stat(content: bytes) -> bytes:
    words = content.rpartition(b")")[2].split()
    return b"0 (-) %b %b\n" % (words[0], words[1]) if len(words) > 1 else b""


def _cpu(content: bytes) -> bytes:
    kept = []
    for line in content.decode("utf-8", "replace").splitlines():
        key, colon, dummy = line.partition(":")
        if not colon:
            break
        if key.strip() in ("vendor_id", "flags", "Features", "CPU implementer"):
            kept.append(line)
    return "".join(f"{line}\n" for line in kept).encode()


def _routes_elsewhere(content: bytes) -> bytes:
    """Of fib_trie the names of the tables, and their default routes."""
    kept, leaf = [], ""
    for line in content.decode("utf-8", "replace").splitlines():
        text = line.strip()
        if text.startswith("|--"):
            leaf = text[3:].strip()
        if text.endswith(":") or (leaf == "0.0.0.0" and text.startswith(("|--", "/0 "))):
            kept.append(line)
    return ("\n".join(kept) + "\n" * content.endswith(b"\n")).encode()


def _bridge(content: bytes) -> bytes:
    """Of a bridge's configuration space the chain of extended capabilities, and access control."""
    end = 0x100
    kept = bytearray(b"\xff" * len(content))
    offset, seen = 0x100, set()
    while 0x100 <= offset <= len(content) - 8 and offset not in seen:
        seen.add(offset)
        head = int.from_bytes(content[offset : offset + 4], "little")
        size = 8 if head & 0xFFFF == 0x0D else 4
        kept[offset : offset + size] = content[offset : offset + size]
        end = max(end, offset + 8)
        offset = head >> 20 & 0xFFC
    return bytes(kept[:end])


def _range(line: str) -> str | None:
    """Of the map of memory what lies in what, without where."""
    dummy, dummy, name = line.lstrip(" ").partition(" : ")
    if not re.match(r" *[0-9a-fA-F]+-[0-9a-fA-F]+ : .", line):
        return "?"
    told = PCI_ADDRESS.match(name) or name.startswith(BOOT_SCREENS)
    return f"{' ' * (len(line) - len(line.lstrip(' ')))}0-0 : {name}" if told else None


def _memory(content: bytes) -> bytes:
    return _by_line(_range)(content) or (content and b"0-0 : Reserved\n")


def _definition(content: bytes) -> bytes:
    """Of a definition of libvirt the disks."""
    nodes = nodes_in(content)
    if nodes is None:
        return b"<"
    return b"<d>%b</d>\n" % "".join(f"<source dev={quoteattr(node)}/>" for node in nodes).encode()


def _rule(line: str) -> str | None:
    return line if "vfio" in line or "driver_override" in line else None


_REDUCE: tuple[tuple[re.Pattern[str], t.Callable[[bytes], bytes]], ...] = (
    (re.compile(r"^proc/\d+/environ$"), _environment),
    (re.compile(r"^proc/\d+/stat$"), _stat),
    (re.compile(r"^proc/\d+/mountinfo$"), _by_line(_mount)),
    (re.compile(r"^proc/cpuinfo$"), _cpu),
    (re.compile(r"^proc/cmdline$"), _by_line(_words)),
    (re.compile(r"^proc/net/fib_trie$"), _routes_elsewhere),
    (re.compile(r"^proc/config\.gz$"), _config_packed),
    (re.compile(r"^(?:boot/config-[^/]*|(?:usr/)?lib/modules/[^/]*/config)$"), _by_line(_config_line)),
    (re.compile(r"/loader/entries/[^/]*$"), _by_line(_entry)),
    (re.compile(r"^boot/grub2?/grub\.cfg$"), _by_line(_grub)),
    (re.compile(r"^boot/grub2?/grubenv$"), _by_line(_kernelopts)),
    (re.compile(r"^dev/kmsg$"), _by_line(lambda line: line if is_of_iommu(line.partition(";")[2]) else None)),
    (re.compile(r"^sys/firmware/acpi/tables/DMAR$"), lambda content: content[:48]),
    (re.compile(r"^sys/devices/.*/config$"), _bridge),
    (re.compile(r"^proc/iomem$"), _memory),
    (re.compile(r"^etc/libvirt/.*\.xml$"), _definition),
    (re.compile(r"^(?:etc|run|(?:usr/)?lib)/(?:modprobe\.d|udev/rules\.d)/"), _by_line(_rule)),
    (
        re.compile(r"^run/udev/data/"),
        _by_line(
            lambda line: (
                line if re.match(r"[IE]:(?:\d+$|ID_(?:FS_TYPE|PART_TABLE_TYPE|PART_ENTRY_UUID)=)", line) else None
            )
        ),
    ),
)


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


# what is replaced


class Masks:
    """What stands for serial numbers, MAC addresses and the host's name: the same for the same, everywhere."""

    def __init__(self, taken: Capture, host: str) -> None:
        self.serials: dict[str, str] = {}
        macs: set[str] = set()
        for path in taken.paths():
            content = taken.files.get(path, b"").decode("utf-8", "replace")
            if _SERIAL.search(path) and content.strip():
                self.serials.setdefault(content.strip(), f"SERIAL-{len(self.serials) + 1}")
            macs.update(found.lower().replace(":", "") for found in _MAC.findall(content))
            macs.update(name for dummy, name in _MAC_NAME.findall(f"{path} {taken.links.get(path, '')}"))
            macs.update(self._mac_in(found.group()) for found in _EUI.finditer(content))
            macs.update(self._mac_of(found.group()) or "" for found in _IPV6.finditer(content))
        own = sorted(mac for mac in macs if mac and not mac.startswith("02000000") and mac.strip("0f"))
        self.macs = {mac: f"02000000{number:04x}" for number, mac in enumerate(own, 1)}
        short = host.partition(".")[0]
        hosts = [re.escape(name) for name in dict.fromkeys((host, short)) if name and name != "localhost"]
        self.host = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(hosts)})(?![A-Za-z0-9])") if hosts else None

    @staticmethod
    def _mac_in(packed: str) -> str:
        """The MAC address in the 32 digits of an address of IPv6 (RFC 4291, appendix A)."""
        return f"{int(packed[16:18], 16) ^ 2:02x}{packed[18:22]}{packed[26:32]}"

    def _mac_of(self, address: str) -> str | None:
        try:
            packed = ipaddress.IPv6Address(address).packed.hex()
        except ValueError:
            return None
        return self._mac_in(packed) if packed[22:26] == "fffe" else None

    def _with_mac(self, packed: str) -> str:
        mac = self.macs.get(self._mac_in(packed))
        return packed if mac is None else f"{packed[:16]}{int(mac[:2], 16) ^ 2:02x}{mac[2:6]}fffe{mac[6:]}"

    def text(self, text: str, people: bool = False) -> str:
        """A text with everything replaced.

        Args:
            text: a path, the target of a link, or the content of a file.
            people: whether it has names that people gave, among which the host's may be.
        """
        text = _MAC_NAME.sub(lambda found: f"{found[1]}x{self.macs.get(found[2], found[2])}", text)
        text = _MAC.sub(self._mac, text)
        text = _EUI.sub(lambda found: self._with_mac(found.group()), text)
        text = _IPV6.sub(self._address, text)
        for serial in sorted(self.serials, key=len, reverse=True):
            if len(serial) >= 6 and re.search("[A-Za-z]", serial) and re.search("[0-9]", serial):
                text = text.replace(serial, self.serials[serial])
        return self.host.sub("host", text) if people and self.host else text

    def _mac(self, found: re.Match[str]) -> str:
        plain = found.group().lower().replace(":", "")
        return ":".join(re.findall("..", self.macs.get(plain, plain)))

    def _address(self, found: re.Match[str]) -> str:
        if self._mac_of(found.group()) is None:
            return found.group()
        packed = self._with_mac(ipaddress.IPv6Address(found.group()).packed.hex())
        return str(ipaddress.IPv6Address(bytes.fromhex(packed)))

    def of_capture(self, taken: Capture) -> Capture:
        """The same capture with everything replaced."""
        return Capture(
            files={self.text(path): self._content(path, content) for path, content in taken.files.items()},
            links={self.text(path): self._target(path, target) for path, target in taken.links.items()},
            directories={self.text(path) for path in taken.directories},
            unread={self.text(path): why for path, why in taken.unread.items()},
        )

    def _target(self, path: str, target: str) -> str:
        return self.text(target, people=bool(_HANDLE.match(path)))

    def _content(self, path: str, content: bytes) -> bytes:
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return content
        if _SERIAL.search(path):
            return (self.serials.get(text.strip(), "") + "\n").encode()
        return self.text(text, people=bool(_NAMED_BY_PEOPLE.search(path))).encode()

    def of_facts(self, facts: Facts) -> Facts:
        """Facts of the machine, as the capture gives them."""
        return t.cast("Facts", self._of(facts, None))

    def _of(self, value: t.Any, key: str | None) -> t.Any:
        if isinstance(value, dict):
            return {name: self._of(below, name) for name, below in value.items()}
        if isinstance(value, list):
            return [self._of(below, key) for below in value]
        if not isinstance(value, str):
            return value
        if key == "serial":
            return self.serials.get(value, value)
        if key == "key":
            head, at, place = value.partition("@")
            serial = next((one for one in self.serials if place in (one, f"{one}.{place[-1:]}")), None)
            return value if serial is None else head + at + self.serials[serial] + place[len(serial) :]
        return self.text(value, people=key in _SPOKEN)
