# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for raw XML: merged in where it differs, after all that has an option. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from . import domain
from .tables import DOMAIN, KINDS

if t.TYPE_CHECKING:
    from .._core.xml import Element
    from .draft import Draft
    from .overlay import Overlay


def overlays(draft: Draft) -> None:
    """What is declared as raw XML."""
    for overlay in draft.wanted.overlays:
        found = draft.root if overlay.device is None else _device(draft, overlay)
        if found is None:
            continue
        declared = _declared(draft, overlay.device)
        for row, value in overlay.rows:
            option = declared.get(row.path)
            before = row.read(found)
            if option is not None:
                draft.problem(
                    f"{overlay.path}: {row.path} is declared as {option} as well",
                    "one value has one place",
                    f"Take it out of the XML, or leave {option} out.",
                )
            elif before != value:
                row.write(found, value)
                draft.note("config", f"{overlay.path}.{row.path}", before, value, draft.when(row))


def _device(draft: Draft, overlay: Overlay) -> Element | None:
    for kind in KINDS:
        found = domain.device(kind, draft.root, overlay.device or "")
        if found is not None and found.tag == overlay.root.tag:
            return found
        if found is not None:
            draft.problem(
                f"{overlay.path}: its outermost element is <{overlay.root.tag!s}>",
                f"the device is a <{found.tag!s}>",
                "Correct it.",
            )
            return None
    draft.problem(f"{overlay.path}: the guest has no device of this id", "it is merged into one", "Declare the device.")
    return None


def _declared(draft: Draft, device: str | None) -> dict[str, str]:
    """The options that are declared, by the path of what they stand for."""
    if device is None:
        return {
            row.path: f"{group}.{row.option}" if group else row.option
            for group, rows in DOMAIN.items()
            for row in rows
            if row.path and row.option in draft.wanted.fields.get(group, {})
        }
    return {
        row.path: f"{declared.path}.{row.option}"
        for kind in KINDS
        for declared in draft.wanted.devices.get(kind.option, ())
        if declared.id == device
        for row in kind.rows
        if row.path and row.option in declared.values
    }
