# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Of files that say more than the facts need what they need: so a capture tells no more of a machine. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import gzip
import re
import typing as t
import zlib
from xml.sax.saxutils import quoteattr

from .._boot.read import is_repair, tokens
from .._core.sysfs import PCI_ADDRESS
from .._host.definitions import nodes_in
from .._host.nodes import BOOT_SCREENS
from .diagnose import relevant
from .read import CONFIG, is_of_iommu


def reduced(path: str, content: bytes) -> bytes:
    """What of a file's content the facts ask for."""
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
