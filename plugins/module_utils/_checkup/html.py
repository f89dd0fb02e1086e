# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Elements of HTML, with everything escaped that is not HTML already. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import html
import typing as t

MARKS = {"fine": "✓", "free": "✓", "problem": "✗", "never": "✗", "unreachable": "✗"}  # others: !


class Html(str):
    """Text that is HTML already; everything else is escaped."""


def tag(name: str, *children: str | None, **attributes: str) -> Html:
    """An element. A trailing underscore in an attribute's name is dropped (``class_``)."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    inside = "".join(child if isinstance(child, Html) else html.escape(child) for child in children if child)
    return Html(f"<{name}{given}>{inside}</{name}>\n")


def join(parts: t.Iterable[str]) -> Html:
    """Parts one after the other."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def badge(kind: str, text: str) -> Html:
    """A verdict with its mark."""
    return tag("span", f"{MARKS.get(kind, '!')} {text}", class_=f"badge {kind}")
