# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""XML, through lxml only, with entities off.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import os
import re
import typing as t

from .errors import PhyllomeError

try:
    from lxml import etree
except ImportError:
    etree = None  # type: ignore[assignment]

if t.TYPE_CHECKING:
    Element = etree._Element

# A slash in a namespace or a predicate does not separate.
_STEP = re.compile(r"(?:\{[^}]*\}|\[[^\]]*\]|[^/])+")
GUEST_NS = "https://phyllome.org/xmlns/virt/guest/1"
"""Namespace of our element in a domain's ``metadata``: who made the guest, and what of it is ours."""
MIGRATION_NS = "https://phyllome.org/xmlns/virt/migration/1"
"""Namespace of a migration's journal there. libvirt keeps one element for each namespace."""


def _etree() -> t.Any:
    if etree is None:
        raise PhyllomeError(
            "The Python library lxml is missing on this host",
            "guests are described in XML",
            "Install python3-lxml; the role phyllome.virt.hypervisor does.",
        )
    return etree


def parse(text: str) -> Element:
    """The root element of an XML text; entities and the network are off, white space between elements is dropped.

    Raises:
        PhyllomeError: not well-formed.
    """
    lib = _etree()
    parser = lib.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_blank_text=True)
    try:
        root: Element = lib.fromstring(text.encode(), parser)
    except (lib.XMLSyntaxError, UnicodeEncodeError) as exc:
        raise PhyllomeError("This XML cannot be read", str(exc), "Correct the XML.") from exc
    if root.getroottree().docinfo.doctype:
        raise PhyllomeError("This XML has a document type", "entities are not accepted", "Remove the DOCTYPE.")
    return root


def dump(element: Element) -> str:
    """The element as indented text."""
    lib = _etree()
    text: str = lib.tostring(element, pretty_print=True, encoding="unicode")
    return text


def canonical(element: Element) -> str:
    """The same text for the same element, whatever stands around it (exclusive XML canonicalization)."""
    text: bytes = _etree().tostring(element, method="c14n", exclusive=True)
    return text.decode()


def element(tag: str, text: str | None = None, /, **attributes: str) -> Element:
    """A new element. A trailing underscore in an attribute's name is dropped (``type_``)."""
    made: Element = _etree().Element(tag, {name.rstrip("_"): value for name, value in attributes.items()})
    made.text = text
    return made


def child(parent: Element, tag: str, text: str | None = None, /, **attributes: str) -> Element:
    """Append a new element to parent and return it."""
    made = element(tag, text, **attributes)
    parent.append(made)
    return made


def first(root: Element, path: str) -> Element | None:
    """The first element that an ElementPath finds, or None."""
    return root.find(path)


def ensure(root: Element, path: str) -> Element:
    """The first element at a path of plain tags and ``[@name='value']`` predicates; made when missing.

    A tag may be in the ``{namespace}tag`` form only where it exists already.
    """
    here = root
    for step in _STEP.findall(path):
        found = here.find(step)
        if found is None:
            tag, dummy, rest = step.partition("[")
            attributes = dict(predicate.strip("@]").split("=", 1) for predicate in rest.split("[") if predicate)
            found = child(here, tag, None, **{name: value.strip("'") for name, value in attributes.items()})
        here = found
    return here


def drop(root: Element, path: str) -> None:
    """Remove every element that an ElementPath finds."""
    for found in root.findall(path):
        parent = found.getparent()
        if parent is not None:
            parent.remove(found)


def violation(root: Element, schema: str) -> str | None:
    """What a RELAX NG schema does not allow in an element.

    Args:
        root: the element.
        schema: path of the schema's file.

    Returns:
        The first violation; None when there is none, or no such file.
    """
    lib = _etree()
    if not os.path.exists(schema):
        return None
    grammar = lib.RelaxNG(file=schema)
    return None if grammar.validate(parse(dump(root))) else str(grammar.error_log[0].message)
