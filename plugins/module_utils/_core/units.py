# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes with units, as libvirt reads them (https://libvirt.org/formatdomain.html#memory-allocation).

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import re

from .errors import PhyllomeError

_BINARY = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4, "p": 1024**5}
_DECIMAL = {"k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "p": 1000**5}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(bytes|b|[kmgtp](?:ib|b)?)\s*$", re.IGNORECASE)


def parse_size(value: object, option: str) -> int:
    """Bytes meant by a size such as ``2GiB``, ``512M`` (binary) or ``20GB`` (decimal).

    Args:
        value: what the user gave.
        option: the option's name, for the message.

    Raises:
        PhyllomeError: no size, no unit, zero, or not a whole number of bytes.
    """
    match = _SIZE.match(str(value))
    if match is None:
        raise PhyllomeError(
            f"{option}: {value!r} is not a size",
            "a size is a number with a unit",
            "Write for instance 2GiB, 512MiB or 20GB.",
        )
    number, unit = match.group(1), match.group(2).lower()
    if unit in ("b", "bytes"):
        factor = 1
    elif len(unit) == 2:
        factor = _DECIMAL[unit[0]]
    else:
        factor = _BINARY[unit[0]]
    whole, dummy, fraction = number.partition(".")
    scaled = int(whole + fraction) * factor
    size, rest = divmod(scaled, 10 ** len(fraction))
    if rest or not size:
        raise PhyllomeError(
            f"{option}: {value!r} is not a whole number of bytes greater than zero",
            "the kernel and QEMU count in bytes",
            "Use a smaller unit without a fraction.",
        )
    return size


def parse_scaled(number: str, unit: str | None) -> int:
    """Bytes meant by libvirt's number and unit; its default unit for memory is KiB.

    Args:
        number: the element's text.
        unit: the element's ``unit`` attribute.
    """
    return parse_size(f"{number.strip()}{unit or 'KiB'}", "unit")


def format_size(size: int) -> str:
    """The shortest exact form of a size: 2147483648 is ``2GiB``."""
    for unit, factor in (("PiB", 1024**5), ("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
