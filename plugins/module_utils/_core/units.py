# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes with units, as libvirt reads them (https://libvirt.org/formatdomain.html#memory-allocation).

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import re

from .errors import PhyllomeError

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_SIZE = re.compile(r"\s*([0-9]{1,30})(?:\.([0-9]{1,30}))?\s*(bytes|b|([kmgtpe])(?:i?b)?)\s*", re.IGNORECASE)


def parse_size(value: object, option: str) -> int:
    """Bytes meant by a size such as ``2GiB``, ``512M`` (binary) or ``20GB`` (decimal).

    Args:
        value: what the user gave.
        option: the option's name, for the message.

    Raises:
        PhyllomeError: no size, no unit, zero, or not a whole number of bytes.
    """
    scaled = _scaled(str(value))
    if scaled is None:
        raise PhyllomeError(
            f"{option}: {value!r:.80} is not a size",
            "a size is a number with a unit",
            "Write for instance 2GiB, 512MiB or 20GB.",
        )
    size, rest = scaled
    if rest or not size:
        raise PhyllomeError(
            f"{option}: {value!r} is not a whole number of bytes greater than zero",
            "the kernel and QEMU count in bytes",
            "Use a smaller unit without a fraction.",
        )
    return size


def _scaled(text: str) -> tuple[int, int] | None:
    """Whole bytes, and whether there is a rest; None when it is no size."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    whole, fraction, unit, power = match.groups(default="")
    base = 1000 if len(unit) == 2 else 1024
    scaled = int(whole + fraction) * base ** _POWERS[power.lower()]
    return divmod(scaled, 10 ** len(fraction))


def parse_scaled(number: str, unit: str | None) -> int:
    """Bytes meant by libvirt's number and unit; its default unit for memory is KiB.

    Args:
        number: the element's text.
        unit: the element's ``unit`` attribute.

    Raises:
        PhyllomeError: libvirt does not write such a number or unit.
    """
    scaled = _scaled(f"{number}{unit or 'KiB'}")
    if scaled is None or scaled[1]:
        raise PhyllomeError(
            f"{number!r} {unit or 'KiB'} is not a size",
            "libvirt writes whole numbers with a unit",
            "Correct the definition with virsh edit.",
        )
    return scaled[0]


def format_size(size: int) -> str:
    """The shortest exact form of a size: 2147483648 is ``2GiB``."""
    for unit, factor in (("PiB", 1024**5), ("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
