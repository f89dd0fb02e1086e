# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.units import format_size, parse_scaled, parse_size

GIB = 1024**3


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("2GiB", 2 * GIB),
        ("2G", 2 * GIB),
        ("2gib", 2 * GIB),
        ("2 GB", 2 * 10**9),
        ("1.5GiB", GIB * 3 // 2),
        (" 512MiB ", 512 * 1024**2),
        ("100KB", 100_000),
        ("4096B", 4096),
        ("4096 bytes", 4096),
        ("1PiB", 1024**5),
        ("3T", 3 * 1024**4),
        ("0.5KiB", 512),
    ],
)
def test_sizes(value, size):
    assert parse_size(value, "memory") == size


@pytest.mark.parametrize(
    "value",
    [
        "",
        "2",
        2,
        2048,
        "GiB",
        "-1GiB",
        "+1GiB",
        "1,5GiB",
        "2GiBB",
        "2XiB",
        "1e3MiB",
        "0x10MiB",
        "2 Gi B",
        "nan",
        None,
        "٢GiB",
    ],
)
def test_what_is_no_size_is_refused(value):
    with pytest.raises(PhyllomeError) as refusal:
        parse_size(value, "disks.root.size")
    assert str(refusal.value) == (
        f"disks.root.size: {value!r} is not a size: a size is a number with a unit. Write for instance 2GiB, 512MiB or 20GB."
    )


@pytest.mark.parametrize("value", ["0B", "0GiB", "0.0MiB", "0.3KiB", "1.5B"])
def test_nothing_and_parts_of_a_byte_are_refused(value):
    with pytest.raises(PhyllomeError, match="is not a whole number of bytes greater than zero"):
        parse_size(value, "memory")


def test_a_number_without_end_is_refused_like_any_other():
    with pytest.raises(PhyllomeError, match="is not a size"):
        parse_size("9" * 5000 + "GiB", "memory")


@pytest.mark.parametrize(
    ("number", "unit", "size"),
    [
        ("2097152", None, 2 * GIB),  # KiB where nothing is said
        (" 2 ", "GiB", 2 * GIB),
        ("1", "KB", 1000),
        ("1", "k", 1024),
        ("7", "b", 7),
        ("7", "bytes", 7),
        ("0", "bytes", 0),  # an empty volume
        ("1", "EiB", 1024**6),
        ("2", "E", 2 * 1024**6),
        ("1", "EB", 10**18),
    ],
)
def test_what_libvirt_writes(number, unit, size):
    assert parse_scaled(number, unit) == size


@pytest.mark.parametrize(("number", "unit"), [("", None), ("two", "GiB"), ("2", "XB"), ("-1", None)])
def test_what_libvirt_never_writes(number, unit):
    with pytest.raises(PhyllomeError):
        parse_scaled(number, unit)


@pytest.mark.parametrize(
    ("size", "text"),
    [(2 * GIB, "2GiB"), (GIB + 1024**2, "1025MiB"), (1024**5, "1PiB"), (1023, "1023B"), (1000, "1000B"), (0, "0B")],
)
def test_the_shortest_exact_form(size, text):
    assert format_size(size) == text


@given(st.integers(1, 1024**6))
def test_what_is_shown_can_be_given(size):
    assert parse_size(format_size(size), "size") == size


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text):
    with contextlib.suppress(PhyllomeError):
        assert parse_size(text, "size") > 0
