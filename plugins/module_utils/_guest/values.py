# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How values of a guest's fields are written by users and by libvirt.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t
import uuid

from .._core.errors import PhyllomeError
from .._core.fields import INT, MEMORY, STR, Kind
from .._core.names import check_name, check_path
from .._core.units import format_size, parse_size

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_PCI = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_IDENTITY = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}/(-|[0-9a-f]{4}:[0-9a-f]{4})@[\x21-\x7e]+")
_HEX = re.compile(r"0x[0-9a-f]{4}")
_PORT = re.compile(r"[1-9][0-9]*-[1-9][0-9]*(\.[1-9][0-9]*)*")
_CPUS = re.compile(r"\^?[0-9]{1,4}(-[0-9]{1,4})?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,35}")
_KEY = re.compile(r"[A-Za-z0-9._-]{1,40}")
_WORDS = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]+")
_MAX_CPU = 4095


def _wrong(option: str, value: t.Any, what: str, rule: str, remedy: str) -> PhyllomeError:
    return PhyllomeError(f"{option}: {value!r:.80} is not {what}", rule, remedy)


def _mac(value: str, option: str) -> str:
    lower = value.lower()
    if not _MAC.fullmatch(lower) or int(lower[:2], 16) & 1:
        raise _wrong(
            option,
            value,
            "a MAC address of a network card",
            "it has six pairs of hexadecimal digits, and the first pair is even (unicast)",
            "Leave it out to get a stable one, or write for instance 52:54:00:12:34:56.",
        )
    return lower


def between(low: int, high: int) -> Kind:
    """A whole number of this range."""

    def accept(value: int, option: str) -> int:
        if value < low:
            raise PhyllomeError(f"{option}: {value} is too small", f"it counts from {low}", f"Write {low} or more.")
        if value > high:
            raise PhyllomeError(f"{option}: {value} is too big", f"it ends at {high}", f"Write {high} or less.")
        return value

    return dataclasses.replace(INT, accept=accept)


def _media(value: str, option: str) -> str:
    return check_path(value, option) if value else ""


def _name_or_none(value: str, option: str) -> str:
    return check_name(value, option) if value else ""


def _pci(value: str, option: str) -> str:
    found = _PCI.fullmatch(value.lower())
    if not found:
        raise _wrong(
            option,
            value,
            "a PCI address",
            "it is domain:bus:slot.function in hexadecimal digits",
            "Write for instance '0000:01:00.0', as lspci -D and iommu_facts tell it.",
        )
    domain, bus, slot, function = found.groups()
    return f"{domain or '0000'}:{bus}:{slot}.{function}"


def _pci_device(value: str, option: str) -> str:
    if "@" not in value:
        return _pci(value, option)
    if not _IDENTITY.fullmatch(value):
        raise _wrong(
            option,
            value,
            "the identity of a PCI device",
            "it is vendor:device/subsystem@place",
            "Copy it from identity.key of iommu_facts.",
        )
    return value


def _hex(value: str, option: str) -> str:
    lower = value.lower()
    if not _HEX.fullmatch(lower):
        raise _wrong(
            option,
            value,
            "a USB identifier",
            "it is 0x and four hexadecimal digits",
            "Write it as '0x8087', in quotes.",
        )
    return lower


def _uuid(value: str, option: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError as exc:
        raise _wrong(option, value, "a UUID", str(exc), "Write 8-4-4-4-12 hexadecimal digits.") from exc


def usb_port(value: str, option: str) -> str:
    """Where a USB device is plugged in, in the kernel's words.

    Raises:
        PhyllomeError: it is no such place.
    """
    if not _PORT.fullmatch(value):
        raise _wrong(
            option,
            value,
            "a USB port",
            "it is the bus, a dash, and the numbers of the ports on the way from there, with dots between",
            "Write for instance '1-2.3': ls /sys/bus/usb/devices shows those that are in use.",
        )
    return value


def cpus(text: str, option: str = "") -> tuple[int, ...]:
    """The numbers meant by a list such as ``0-3,^2,8``.

    Raises:
        PhyllomeError: it is no such list, or it is empty.
    """
    chosen: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dummy, last = part.lstrip("^").partition("-")
        if not _CPUS.fullmatch(part) or int(last or first) > _MAX_CPU or int(last or first) < int(first):
            break
        numbers = set(range(int(first), int(last or first) + 1))
        chosen = chosen - numbers if part.startswith("^") else chosen | numbers
    else:
        if chosen:
            return tuple(sorted(chosen))
    raise _wrong(
        option, text, "a list of CPUs", "it has numbers and ranges, separated by commas", "Write for instance '0-3,8'."
    )


def cpu_list(numbers: t.Sequence[int]) -> str:
    """The shortest way to write such a list: what libvirt writes."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(str(number) for number in part) for part in parts)


def _cpuset(value: str, option: str) -> str:
    return cpu_list(cpus(value, option))


def _tag(value: str, option: str) -> str:
    if not _TAG.fullmatch(value):
        raise _wrong(
            option,
            value,
            "a mount tag",
            "it has 1 to 36 ASCII letters, digits, '_', '.', ':' or '-'",
            "The guest mounts the directory by it: mount -t virtiofs TAG /mnt.",
        )
    return value


def _words(value: str, option: str) -> str:
    if not _WORDS.fullmatch(value.strip()) or len(value) > 1000:
        raise _wrong(option, value, "one line of text", "it has up to 1000 printable characters", "Shorten it.")
    return value.strip()


def _lines(value: str, option: str) -> str:
    text = value.strip()
    if len(text) > 10000 or not all(_WORDS.fullmatch(line) for line in re.split(r"[\n\t]", text) if line):
        raise _wrong(option, value, "text", "it has up to 10000 printable characters and line ends", "Shorten it.")
    return text


def _serial(value: str, option: str) -> str:
    if not _TAG.fullmatch(value):
        raise _wrong(
            option,
            value,
            "a serial number",
            "it has 1 to 36 ASCII letters, digits, '_', '.', ':' or '-'",
            "Shorten it.",
        )
    return value


def _secret(value: str, option: str) -> str:
    if not _WORDS.fullmatch(value):
        raise PhyllomeError(f"{option}: it is not a password", "it has one or more printable characters", "Write one.")
    return value


def _encryption(value: t.Mapping[str, t.Any], option: str) -> str:
    """What the XML says of it; the passphrase is no part of that."""
    _secret(value["passphrase"], f"{option}.passphrase")
    return "luks"


def _bytes(value: str, option: str) -> int:
    return 0 if value == "0" else parse_size(value, option)


def _pages(value: str, option: str) -> int:
    if value == "none":
        return 0
    size = parse_size(value, option)
    if size % 4096 or size & (size - 1):
        raise _wrong(option, value, "a page size", "it is a power of two", "Write 2MiB, 1GiB or none.")
    return size


def _cid(value: str, option: str) -> str:
    if value in ("auto", "none") or (value.isascii() and value.isdigit() and 3 <= int(value) < 2**32 - 1):
        return value if value in ("auto", "none") else str(int(value))
    raise _wrong(
        option, value, "a context id", "guests have 3 to 4294967294", "Write auto to get a free one, none, or a number."
    )


def _port(value: str, option: str) -> str:
    if value == "auto" or (value.isascii() and value.isdigit() and 5900 <= int(value) <= 65535):
        return value
    raise _wrong(option, value, "a display port", "displays have 5900 to 65535", "Write auto, or a number.")


def _listen(value: str, option: str) -> str:
    if value == "none" or re.fullmatch(r"[0-9a-fA-F:.]{2,45}", value):
        return value
    raise _wrong(
        option,
        value,
        "an address",
        "it is an IP address of this host",
        "Write for instance 127.0.0.1, 0.0.0.0 or none.",
    )


def _map(name: t.Callable[[str, str], str], each: t.Callable[[str, str], str]) -> t.Callable[[t.Any, str], t.Any]:
    def accept(value: t.Mapping[t.Any, t.Any], option: str) -> dict[str, str]:
        return {name(str(key), option): each(str(item), f"{option}.{key}") for key, item in value.items()}

    return accept


def _number(value: str, option: str) -> str:
    if not (value.isascii() and value.isdigit() and int(value) <= _MAX_CPU):
        raise _wrong(option, value, "a number", "the keys are numbers", "Write for instance {0: '2', 1: '3'}.")
    return str(int(value))


def _feature(value: str, option: str) -> str:
    if not _KEY.fullmatch(value):
        raise _wrong(option, value, "the name of a CPU feature", "virsh cpu-models and lscpu know them", "Correct it.")
    return value


def _policy(value: str, option: str) -> str:
    policies = ("force", "require", "optional", "disable", "forbid")
    word = {"True": "require", "False": "disable"}.get(value, value)
    if word not in policies:
        raise _wrong(option, value, "a policy", f"there are {', '.join(policies)}", "Write require or disable.")
    return word


def _cells(value: t.Sequence[t.Mapping[str, t.Any]], option: str) -> tuple[tuple[str, int], ...]:
    return tuple(
        (_cpuset(cell["cpus"], f"{option}.{number}.cpus"), MEMORY.accept(cell["memory"], f"{option}.{number}.memory"))
        for number, cell in enumerate(value)
    )


def _words_of(*words: str) -> t.Callable[[t.Any, str], tuple[str, ...]]:
    def accept(value: t.Sequence[str], option: str) -> tuple[str, ...]:
        for each in value:
            if each not in words:
                raise _wrong(option, each, "known", f"there are {' and '.join(words)}", "Choose among these.")
        return tuple(word for word in words if word in value)

    return accept


MAC = dataclasses.replace(STR, accept=_mac, parse=lambda text, unit: text.lower())
COUNT = between(1, 2**31 - 1)
NUMBER = between(0, 2**31 - 1)
BOOL = Kind("bool")
NAME = dataclasses.replace(STR, accept=check_name)
NAME_OR_NONE = dataclasses.replace(STR, accept=_name_or_none)
PATH = Kind("path", accept=check_path)
MEDIA = Kind("path", accept=_media)
TEXT = dataclasses.replace(STR, accept=_words)
LINES = dataclasses.replace(STR, accept=_lines, parse=lambda text, unit: text.strip())
TAG = dataclasses.replace(STR, accept=_tag)
SERIAL = dataclasses.replace(STR, accept=_serial)
SECRET = Kind("str", accept=_secret, show=lambda value: "(not shown)", secret=True)
ENCRYPTION = Kind("dict", accept=_encryption, options={"passphrase": {"type": "str", "required": True, "no_log": True}})
PCI = dataclasses.replace(STR, accept=_pci)
PCI_DEVICE = dataclasses.replace(STR, accept=_pci_device)
USB_ID = dataclasses.replace(STR, accept=_hex, parse=lambda text, unit: text.lower())
UUID = dataclasses.replace(STR, accept=_uuid)
CPUS = dataclasses.replace(STR, accept=_cpuset, parse=lambda text, unit: _cpuset(text, ""))
BYTES = Kind(
    "str", accept=_bytes, parse=lambda text, unit: int(text), show=lambda value: format_size(value) if value else "0"
)
PAGES = Kind("str", accept=_pages, show=lambda value: format_size(value) if value else "none")
CID = dataclasses.replace(STR, accept=_cid)
PORT = dataclasses.replace(STR, accept=_port)
LISTEN = dataclasses.replace(STR, accept=_listen)
PINS = Kind("dict", accept=_map(_number, _cpuset))
FEATURES = Kind("dict", accept=_map(_feature, _policy))
CHANNELS = Kind("list", elements="str", accept=_words_of("agent", "spice"), show=list)
CELLS = Kind(
    "list",
    elements="dict",
    options={"cpus": {"type": "str", "required": True}, "memory": {"type": "str", "required": True}},
    accept=_cells,
    show=lambda value: [{"cpus": text, "memory": format_size(size)} for text, size in value],
)


ON = ("require", "force", "optional")
"""Policies by which a guest has, or may have, a feature."""


class Whole(dict[str, t.Any]):
    """Features that are all there shall be: each one that is not named is off."""


def within(before: t.Mapping[str, t.Any] | None, after: t.Mapping[str, t.Any]) -> bool:
    """Whether what is declared of a dictionary is there; its other keys are not managed, unless it is a whole."""
    if isinstance(after, Whole) and any(value in ON for key, value in (before or {}).items() if key not in after):
        return False
    return all((before or {}).get(key) == value for key, value in after.items())


MEMORY_OR_NONE = dataclasses.replace(
    MEMORY,
    accept=lambda value, option: 0 if value == "0" else MEMORY.accept(value, option),
    show=lambda value: format_size(value) if value else "0",
)
CPU_MODEL = dataclasses.replace(STR, accept=_feature)
