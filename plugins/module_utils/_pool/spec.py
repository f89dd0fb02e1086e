# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a pool is in our interface, and what the user wants of one.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._core import fields
from .._core.errors import PhyllomeError
from .._core.names import check_name, check_path

PATH = fields.Field("path", "target/path", fields.Kind("path", accept=check_path))
DIRECTORY = ("mode", "owner", "group")
"""Options about the directory itself, which is a matter of the file system and not of libvirt."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user declared; None is not managed.

    Attributes:
        name: the pool's name in libvirt.
        state: present, active, inactive or absent.
        autostart: whether it starts with the host.
        path: the directory.
        directory: mode (octal, four digits), owner and group (names) of the directory, where declared.
    """

    name: str
    state: str
    autostart: bool | None
    path: str | None
    directory: t.Mapping[str, str]


def wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    """The module's parameters, checked.

    Raises:
        PhyllomeError: a value that no pool can have.
    """
    directory = {option: params[option] for option in DIRECTORY if params[option] is not None}
    if "mode" in directory:
        if not re.match(r"^0?[0-7]{3}$", directory["mode"]):
            raise PhyllomeError(
                f"mode: {directory['mode']!r} is not a mode",
                "it is three octal digits",
                "Write for instance '0711', in quotes.",
            )
        directory["mode"] = directory["mode"].zfill(4)
    return Wanted(
        name=check_name(params["name"], "name"),
        state=params["state"],
        autostart=params["autostart"],
        path=fields.accept((PATH,), params).get("path"),
        directory=directory,
    )
