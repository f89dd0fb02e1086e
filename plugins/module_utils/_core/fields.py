# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table engine: one row says all about a field of a guest, a network or a pool.

Argument spec, comparison, plan and edit are derived from the rows; nothing else knows where a
field lives in the XML.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from . import xml
from .plan import When
from .units import format_size, parse_scaled, parse_size


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a value is written by users, by libvirt, and in a plan.

    Attributes:
        ansible: the option's type in the argument spec.
        accept: canonical value of what the user gave; gets the option's name for its message.
        parse: canonical value of XML text and ``unit`` attribute.
        format: XML text of a canonical value.
        show: what a plan shows.
        unit: the ``unit`` attribute to write beside the text.
        elements: of a list, the type of what is in it.
        options: of dictionaries in a list, their argument spec.
        secret: whether nobody gets to see the value.
    """

    ansible: str
    accept: t.Callable[[t.Any, str], t.Any] = lambda value, option: value
    parse: t.Callable[[str, str | None], t.Any] = lambda text, unit: text
    format: t.Callable[[t.Any], str] = str
    show: t.Callable[[t.Any], t.Any] = lambda value: value
    unit: str | None = None
    elements: str | None = None
    options: t.Mapping[str, t.Any] | None = None
    secret: bool = False

    def spec(self) -> dict[str, t.Any]:
        """The option's part of an argument spec."""
        spec: dict[str, t.Any] = {"type": self.ansible}
        if self.elements:
            spec["elements"] = self.elements
        if self.options:
            spec["options"] = dict(self.options)
        if self.secret:
            spec["no_log"] = True
        return spec


def _switch(on: str, off: str) -> Kind:
    return Kind("bool", parse=lambda text, unit: text == on, format=lambda value: on if value else off)


STR = Kind("str")
INT = Kind("int", parse=lambda text, unit: int(text))
YES_NO = _switch("yes", "no")
ON_OFF = _switch("on", "off")
MEMORY = Kind(
    "str",
    accept=lambda value, option: -(-parse_size(value, option) // 1024) * 1024,
    parse=parse_scaled,
    format=lambda value: str(-(-value // 1024)),
    show=format_size,
    unit="KiB",
)
"""A size in bytes; libvirt rounds memory up to KiB."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One row: where a field lives and how it behaves.

    Attributes:
        option: name in the interface; ``rate.bytes`` is ``bytes`` in the dictionary ``rate``.
        path: ElementPath below the object's element; a last step ``@name`` means that attribute,
            otherwise the element's text is meant.
        kind: see Kind.
        when: when a change of it takes effect on a running guest.
        default: what libvirt means when it is not there.
        choices: allowed values.
        same: whether two canonical values mean the same, where equality is too strict; the second is the declared one.
        offered: what of the host's offers the value has to be among (``read.Host.offers``).
        call: how a running guest is told, where ``when`` is live and it is not by the device that the field is of.
    """

    option: str
    path: str
    kind: Kind = STR
    when: When = "next_boot"
    default: t.Any = None
    choices: tuple[t.Any, ...] = ()
    same: t.Callable[[t.Any, t.Any], bool] = lambda before, after: bool(before == after)
    offered: str = ""
    call: str = ""

    def read(self, root: xml.Element) -> t.Any:
        """The canonical value in the XML, the default when it is not there."""
        path, attribute = _split(self.path)
        found = root if path in ("", ".") else xml.first(root, path)
        if found is None:
            return self.default
        text = found.get(attribute) if attribute else found.text
        if text is None:
            return self.default
        return self.kind.parse(text, None if attribute else found.get("unit"))

    def write(self, root: xml.Element, value: t.Any) -> None:
        """Put a canonical value into the XML in place; elements on the way are made."""
        path, attribute = _split(self.path)
        found = root if path in ("", ".") else xml.ensure(root, path)
        text = self.kind.format(value)
        if attribute:
            found.set(attribute, text)
            return
        found.text = text
        if self.kind.unit:
            found.set("unit", self.kind.unit)

    def waiting(self, live: xml.Element, config: xml.Element) -> tuple[t.Any, t.Any] | None:
        """What the running guest has and what its definition says, where the two differ."""
        now, then = self.read(live), self.read(config)
        return None if now == then else (now, then)

    def fits(self, live: xml.Element, value: t.Any) -> bool:
        """Whether the running guest can take a value of a field whose ``when`` is live."""
        return True

    def shown(self, value: t.Any) -> t.Any:
        """The value as a plan shows it."""
        return None if value is None else self.kind.show(value)


class Flag(Field):
    """An element that is there or not; ``kind`` is ``bool``."""

    def read(self, root: xml.Element) -> t.Any:
        return xml.first(root, self.path) is not None

    def write(self, root: xml.Element, value: t.Any) -> None:
        if value:
            xml.ensure(root, self.path)
        else:
            xml.drop(root, self.path)


@functools.cache
def _split(path: str) -> tuple[str, str | None]:
    head, dummy, last = path.rpartition("/")
    return (head, last[1:]) if last.startswith("@") else (path, None)


def argument_spec(rows: t.Iterable[Field]) -> dict[str, dict[str, t.Any]]:
    """The rows' part of an argument spec."""
    spec: dict[str, dict[str, t.Any]] = {}
    for row in rows:
        here = spec
        *groups, last = row.option.split(".")
        for group in groups:
            here = here.setdefault(group, {"type": "dict", "options": {}})["options"]
        here[last] = row.kind.spec()
        if row.choices:
            here[last]["choices"] = list(row.choices)
    return spec


def accept(rows: t.Iterable[Field], given: t.Mapping[str, t.Any], prefix: str = "") -> dict[str, t.Any]:
    """Canonical values of the options that are given; None means not managed.

    Args:
        rows: the table.
        given: options as Ansible passed them.
        prefix: what stands before the option's name in messages, for instance ``disks.root.``.

    Raises:
        PhyllomeError: from the row's kind.
    """
    values = ((row, _given(given, row.option)) for row in rows)
    return {row.option: row.kind.accept(value, prefix + row.option) for row, value in values if value is not None}


def _given(given: t.Mapping[str, t.Any], option: str) -> t.Any:
    value: t.Any = given
    for name in option.split("."):
        value = None if value is None else value.get(name)
    return value


@dataclasses.dataclass(frozen=True)
class Difference:
    """A declared field whose value in the XML is another."""

    row: Field
    before: t.Any
    after: t.Any

    @property
    def shown(self) -> tuple[t.Any, t.Any]:
        """Both values as a plan shows them."""
        return (self.row.shown(self.before), self.row.shown(self.after))


def compare(rows: t.Iterable[Field], root: xml.Element, wanted: t.Mapping[str, t.Any]) -> list[Difference]:
    """The declared fields that differ, in the order of the table.

    Args:
        rows: the table.
        root: the object's element.
        wanted: canonical values by option, as ``accept`` returns them.
    """
    differences = []
    for row in rows:
        if row.option in wanted:
            before = row.read(root)
            if before is None or not row.same(before, wanted[row.option]):
                differences.append(Difference(row, before, wanted[row.option]))
    return differences
