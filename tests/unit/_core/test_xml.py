# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError

NS = "{https://phyllome.org/xmlns/virt/guest/1}"


def test_white_space_between_elements_is_dropped_and_made_anew():
    assert xml.dump(xml.parse("<a>\n\n   <b x='1'/>  <c>t </c></a>")) == '<a>\n  <b x="1"/>\n  <c>t </c>\n</a>\n'


@pytest.mark.parametrize(
    "text", ["", "   ", "plain", "<a>", "<a></b>", "<a/><b/>", "<a b=1/>", "<a>\0</a>", "<a>\udc80</a>", "<a>&x;</a>"]
)
def test_what_is_no_xml_is_refused(text):
    with pytest.raises(PhyllomeError, match="(?s)^This XML cannot be read: .* Correct the XML"):
        xml.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
        "<!DOCTYPE a SYSTEM 'http://127.0.0.1:9/x.dtd'><a/>",
        "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/hostname'>]><a>&x;</a>",
    ],
)
def test_entities_are_not_accepted(text):
    with pytest.raises(PhyllomeError, match="This XML has a document type: entities are not accepted"):
        xml.parse(text)


@given(st.text(max_size=60))
def test_any_text_is_xml_or_refused(text):
    for candidate in (text, f"<a>{text}</a>"):
        with contextlib.suppress(PhyllomeError):
            xml.parse(candidate)


def test_elements():
    root = xml.element("disk", type_="file", device="disk")
    made = xml.child(root, "source", None, file="/x")
    assert xml.child(made, "seclabel", "text") is made[0]
    assert xml.dump(root).split() == (
        [
            "<disk",
            'type="file"',
            'device="disk">',
            "<source",
            'file="/x">',
            "<seclabel>text</seclabel>",
            "</source>",
            "</disk>",
        ]
    )


def test_text_is_escaped():
    root = xml.element("a", "<b>&", x="\"'<>")
    assert xml.parse(xml.dump(root)).text == "<b>&"
    assert xml.parse(xml.dump(root)).get("x") == "\"'<>"


def test_first():
    root = xml.parse("<a><b n='1'/><b n='2'/></a>")
    assert xml.first(root, "b").get("n") == "1"
    assert xml.first(root, "b[@n='2']").get("n") == "2"
    assert xml.first(root, "c/d") is None


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("os", "<a><os/></a>"),
        ("os/boot", "<a><os><boot/></os></a>"),
        (
            "features/hyperv[@mode='custom']/relaxed",
            '<a><features><hyperv mode="custom"><relaxed/></hyperv></features></a>',
        ),
        ("c[@type='unix'][@n='x.y']", '<a><c type="unix" n="x.y"/></a>'),
        ("c[@path='/dev/x']/d", '<a><c path="/dev/x"><d/></c></a>'),
    ],
)
def test_ensure_makes_what_is_missing_once(path, made):
    root = xml.parse("<a/>")
    first = xml.ensure(root, path)
    assert xml.ensure(root, path) is first
    assert xml.dump(root).replace("\n", "").replace("  ", "") == made


def test_ensure_uses_what_is_there():
    root = xml.parse("<a><c type='pty'/><c type='unix'><d/></c></a>")
    assert xml.ensure(root, "c[@type='unix']/d") is root[1][0]
    assert len(root) == 2


def test_ensure_goes_through_namespaces():
    root = xml.parse(f"<a><metadata><p:guest xmlns:p='{NS[1:-1]}'/></metadata></a>")
    assert xml.ensure(root, f"metadata/{NS}guest") is root[0][0]
    assert xml.ensure(root, f"metadata/{NS}guest/owner").getparent() is root[0][0]


def test_drop():
    root = xml.parse("<a><b/><c><b/></c><b n='2'/></a>")
    xml.drop(root, "b[@n='2']")
    assert len(root) == 2
    xml.drop(root, ".//b")
    assert xml.dump(root).split() == ["<a>", "<c/>", "</a>"]
    xml.drop(root, "nothing/here")


def test_without_lxml_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(xml, "etree", None)
    for call in (lambda: xml.parse("<a/>"), lambda: xml.element("a")):
        with pytest.raises(PhyllomeError, match="lxml is missing on this host.*Install python3-lxml"):
            call()


def test_a_schema_says_what_it_does_not_allow(tmp_path):
    schema = tmp_path / "s.rng"
    grammar = "http://relaxng.org/ns/structure/1.0"
    schema.write_text(f'<element name="a" xmlns="{grammar}"><optional><attribute name="b"/></optional></element>')
    assert xml.violation(xml.parse('<a b="1"/>'), str(schema)) is None
    assert "c" in xml.violation(xml.parse('<a c="1"/>'), str(schema))
    assert xml.violation(xml.parse("<z/>"), str(tmp_path / "none")) is None
