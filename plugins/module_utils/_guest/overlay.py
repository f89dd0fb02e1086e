# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Raw XML that is merged into a guest or into one of its devices: the last resort, compared and shown like any field.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import copy
import dataclasses
import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.fields import Field, Flag
from .._core.names import check_id
from .values import BOOL

if t.TYPE_CHECKING:
    from .._core.xml import Element

_OURS = {
    # what of the root element is not for an overlay, and where it belongs
    "domain": {
        "name": "declare name",
        "uuid": "declare uuid",
        "metadata": "it is kept by phyllome.virt; declare metadata",
        "devices": "say it by the device's id, below xml.devices",
    },
    "": {"alias": "it holds the device's id"},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Overlay:
    """One fragment.

    Attributes:
        path: how messages and plans name it.
        device: id of the device; None for the guest itself.
        root: the fragment.
        rows: each value that it sets.
    """

    path: str
    device: str | None
    root: Element
    rows: tuple[tuple[Field, t.Any], ...]


@dataclasses.dataclass(frozen=True)
class _Whole(Field):
    """An element whose children cannot be told apart: it is compared and replaced as a whole.

    Attributes:
        parent: path of the element that it is in.
    """

    parent: str = ""

    def read(self, root: Element) -> t.Any:
        found = xml.first(root, self.path)
        return None if found is None else _text(found)

    def write(self, root: Element, value: t.Any) -> None:
        found = xml.first(root, self.path)
        made = xml.parse(value)
        if found is None:
            (xml.ensure(root, self.parent) if self.parent else root).append(made)
        else:
            found.getparent().replace(found, made)  # type: ignore[union-attr]


def overlays(given: t.Mapping[str, t.Any]) -> tuple[Overlay, ...]:
    """The fragments of the option ``xml``.

    Raises:
        PhyllomeError: one of them cannot be read, or touches what is not for it.
    """
    found = [] if given.get("guest") is None else [_overlay("xml.guest", None, given["guest"])]
    for name, text in (given.get("devices") or {}).items():
        found.append(_overlay(f"xml.devices.{name}", check_id(str(name), "xml.devices"), str(text)))
    return tuple(found)


def _overlay(path: str, device: str | None, text: str) -> Overlay:
    try:
        root = xml.parse(text)
    except PhyllomeError as exc:
        raise PhyllomeError(f"{path}: {exc.what[:1].lower()}{exc.what[1:]}", exc.why, exc.remedy) from exc
    if (root.tag == "domain") != (device is None):
        raise PhyllomeError(
            f"{path}: its outermost element is <{root.tag!s}>",
            "xml.guest has <domain>, xml.devices has the element of the device",
            "Correct it.",
        )
    for tag, where in _OURS["domain" if device is None else ""].items():
        if xml.first(root, tag) is not None:
            raise PhyllomeError(f"{path}: <{tag}> is not for an overlay", where, "Take it out.")
    rows = tuple(_rows(root, ""))
    if not rows:
        raise PhyllomeError(f"{path}: it says nothing", "neither an attribute nor text is in it", "Take it out.")
    return Overlay(path, device, root, rows)


def _rows(root: Element, path: str) -> t.Iterator[tuple[Field, t.Any]]:
    """Each attribute and text, with its path."""
    for name, value in ((str(name), str(value)) for name, value in root.attrib.items()):
        key = f"{path}/@{name}" if path else f"@{name}"
        if not path.endswith(f"[@{name}='{value}']"):
            yield Field(key, key), value
    if len(root) == 0 and path:
        if root.text:
            yield Field(path, path), root.text
        elif not root.attrib:
            yield Flag(path, path, BOOL), True
    steps = [_step(child) for child in root if isinstance(child.tag, str)]
    for child in root:
        if not isinstance(child.tag, str):
            continue
        step = _step(child)
        below = f"{path}/{step}" if path else step
        if steps.count(step) > 1:
            raise PhyllomeError(
                f"xml: <{child.tag!s}> is in <{root.tag!s}> more than once",
                "which of them is meant cannot be told without a name",
                "Give one of them, or put all that belongs to them into a namespace of its own.",
            )
        if child.tag.startswith("{"):
            # qemu:commandline and the like: lists of things without names
            yield _Whole(option=below, path=below, parent=path), _text(child)
        else:
            yield from _rows(child, below)


def _step(child: Element) -> str:
    """Children of one tag are told apart by their names."""
    name = child.get("name")
    return f"{child.tag!s}[@name='{name}']" if name and "'" not in name and "/" not in name else str(child.tag)


def _text(found: Element) -> str:
    """The same text for the same element, wherever it stands."""
    copied = copy.deepcopy(found)
    copied.tail = None
    return xml.canonical(copied)
