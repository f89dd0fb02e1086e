# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the user wants a new guest to be a copy of.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.names import check_name

METHODS = ("auto", "linked", "reflink", "full")
OPTIONS: dict[str, dict[str, t.Any]] = {
    "guest": {"type": "str", "required": True},
    "method": {"type": "str", "choices": list(METHODS)},
    "nvram": {"type": "str", "choices": ["copy", "fresh"]},
    "tpm": {"type": "str", "choices": ["copy", "fresh"]},
}


@dataclasses.dataclass(frozen=True)
class Clone:
    """What is declared.

    Attributes:
        guest: name of the source.
        method: one of ``METHODS``.
        nvram, tpm: whether UEFI variables and TPM state are the source's.
    """

    guest: str
    method: str = "auto"
    nvram: bool = True
    tpm: bool = True


def accept(given: t.Mapping[str, t.Any]) -> Clone:
    """Check the option ``clone_from``.

    Raises:
        PhyllomeError: the source's name is none.
    """
    return Clone(
        guest=check_name(given["guest"], "clone_from.guest"),
        method=given.get("method") or "auto",
        nvram=given.get("nvram") != "fresh",
        tpm=given.get("tpm") != "fresh",
    )
