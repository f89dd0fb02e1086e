# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.fields import (
    INT,
    MEMORY,
    ON_OFF,
    STR,
    YES_NO,
    Field,
    accept,
    argument_spec,
    compare,
)

TABLE = (
    Field("memory", "memory", MEMORY),
    Field("vcpus", "vcpu", INT, when="live"),
    Field("type", "os/@firmware", choices=("uefi", "bios")),
    Field("secure", "os/feature[@name='secure-boot']/@enabled", YES_NO),
    Field("acpi", "features/acpi/@state", ON_OFF, default=True),
    Field("kind", "@type"),
    Field("note", "."),
)
DOMAIN = """\
<domain type='kvm'>
  <memory unit='MiB'>2048</memory>
  <vcpu>4</vcpu>
  <os firmware='efi'><feature enabled='no' name='secure-boot'/></os>
</domain>"""


@pytest.fixture
def domain() -> t.Any:
    return xml.parse(DOMAIN)


def read(domain: t.Any) -> dict[str, t.Any]:
    return {row.option: row.read(domain) for row in TABLE}


def test_reading_gives_canonical_values(domain):
    assert read(domain) == {
        "memory": 2 * 1024**3,
        "vcpus": 4,
        "type": "efi",
        "secure": False,
        "acpi": True,  # by default
        "kind": "kvm",
        "note": None,
    }


def test_reading_nothing_gives_the_defaults():
    assert {name for name, value in read(xml.parse("<domain/>")).items() if value is not None} == {"acpi"}


def test_what_is_written_is_read_back(domain):
    values = {"memory": 1024**3, "vcpus": 2, "type": "bios", "secure": True, "acpi": False, "kind": "qemu", "note": "x"}
    for empty in (domain, xml.parse("<domain/>")):
        for row in TABLE:
            row.write(empty, values[row.option])
        assert read(empty) == values
    assert xml.first(domain, "memory").get("unit") == "KiB"


def test_writing_touches_nothing_else(domain):
    before = xml.dump(domain)
    TABLE[1].write(domain, 8)
    assert xml.dump(domain) == before.replace("<vcpu>4<", "<vcpu>8<")


def test_an_argument_spec():
    assert argument_spec(TABLE[:4]) == {
        "memory": {"type": "str"},
        "vcpus": {"type": "int"},
        "type": {"type": "str", "choices": ["uefi", "bios"]},
        "secure": {"type": "bool"},
    }


def test_what_is_not_given_is_not_managed():
    assert accept(TABLE, {"memory": "2GiB", "vcpus": None, "other": 1, "secure": False}) == {
        "memory": 2 * 1024**3,
        "secure": False,
    }


def test_a_refusal_names_the_option_in_full():
    with pytest.raises(PhyllomeError, match=r"^guests.web.memory: 'much' is not a size"):
        accept(TABLE, {"memory": "much"}, "guests.web.")


def test_only_what_is_declared_and_differs_is_a_difference(domain):
    wanted = accept(TABLE, {"memory": "2GiB", "vcpus": 2, "secure": True, "kind": "kvm", "acpi": True})
    differences = compare(TABLE, domain, wanted)
    assert [(one.row.option, one.before, one.after) for one in differences] == [
        ("vcpus", 4, 2),
        ("secure", False, True),
    ]


def test_a_difference_is_shown_as_people_write_it(domain):
    (difference,) = compare(TABLE, domain, accept(TABLE, {"memory": "4GiB"}))
    assert difference.shown == ("2GiB", "4GiB")
    (difference,) = compare(TABLE, xml.parse("<domain/>"), accept(TABLE, {"memory": "4GiB"}))
    assert difference.shown == (None, "4GiB")


def test_a_looser_sameness():
    row = Field("mac", "@mac", STR, same=lambda before, after: before.lower() == after.lower())
    assert compare((row,), xml.parse("<a mac='AA'/>"), {"mac": "aa"}) == []
    assert len(compare((row,), xml.parse("<a/>"), {"mac": "aa"})) == 1


@given(st.integers(1, 2**50), st.sampled_from(["B", "KB", "KiB", "MB"]))
def test_memory_of_any_size_converges(number, unit):
    """libvirt keeps memory in KiB: what was written and rounded must not differ from what was asked for."""
    domain = xml.parse("<domain/>")
    wanted = accept(TABLE, {"memory": f"{number}{unit}"})
    TABLE[0].write(domain, wanted["memory"])
    assert compare(TABLE, domain, wanted) == []
