# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wanted of the kernel's command line.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core.errors import PhyllomeError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_VALUE = re.compile(r"[A-Za-z0-9_.,:=/@+%~^-]+\Z")
_LOADERS = {"root", "ro", "rw", "BOOT_IMAGE", "initrd", "ostree"}
"""Names that the boot loader's own configuration makes; a machine does not start without them."""


def same(name: str) -> str:
    """The name as the kernel compares it: ``-`` is ``_`` (parameq in kernel/params.c)."""
    return name.replace("-", "_")


def name_of(token: str) -> str:
    """The name of an argument, as the kernel compares it."""
    return same(token.partition("=")[0])


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Options of kernel_cmdline.

    Attributes:
        names: name, as ``same`` returns it → the tokens that it stands for; none where it is to be absent.
        undo: whether what was done is to be taken back; of ``names``, or of all when there are none.
    """

    names: t.Mapping[str, tuple[str, ...]]
    undo: bool


def wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    """Check options.

    Raises:
        PhyllomeError: an argument cannot be managed, or is to be there and absent at once.
    """
    names: dict[str, tuple[str, ...]] = {}
    for name, value in (params["args"] or {}).items():
        key = _checked(str(name), "args", names)
        many = value if isinstance(value, list) else [value]
        names[key] = tuple(_token(str(name), each) for each in many)
        if not many:
            raise PhyllomeError(
                f"args.{name}: an empty list", "it names no value", f"Name {name} in absent if it is not to be there."
            )
    for name in params["absent"] or ():
        names[_checked(name, "absent", names)] = ()
    undo = params["state"] == "original"
    if not undo and not names:
        raise PhyllomeError(
            "args and absent: both empty", "nothing is asked for", "Name an argument, or say state: original."
        )
    return Wanted(names, undo)


def _checked(name: str, option: str, taken: t.Container[str]) -> str:
    key = same(name)
    if not _NAME.match(name):
        raise PhyllomeError(
            f"{option}: {name!r} is no name of a kernel argument",
            "it has characters other than letters, digits, '_', '.' and '-'",
            "Write the name in front of the '=', and the value as value.",
        )
    if name in _LOADERS:
        raise PhyllomeError(
            f"{option}: {name} cannot be managed",
            "the boot loader's own configuration makes it, and the machine does not start without it",
            "Change it where the boot loader is configured.",
        )
    if key in taken:
        raise PhyllomeError(
            f"{option}: {name} is named twice",
            "the kernel takes '-' and '_' for the same, and args and absent exclude each other",
            "Name it once; several values of one argument are a list.",
        )
    return key


def _token(name: str, value: t.Any) -> str:
    if value is None:
        return name
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise PhyllomeError(
            f"args.{name}: {value!r} is not text",
            "YAML reads on, off, yes and no without quotes as true and false",
            f"Put the value in quotes, for instance {name}: 'on', or write null for an argument without a value.",
        )
    text = str(value)
    if not _VALUE.match(text):
        raise PhyllomeError(
            f"args.{name}: {text!r} cannot be given to every boot loader",
            "boot loaders and their shells read spaces, quotes, '$', ';', '*' and the like each in a way of its own",
            "Set this argument where the boot loader is configured.",
        )
    return f"{name}={text}"
