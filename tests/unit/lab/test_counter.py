"""What a counter guest writes, and what is read from it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.tests.lab.counter import MAGIC, SECTOR, Counter, parse_console, parse_counter
from ansible_collections.phyllome.virt.tests.lab.errors import LabError

U32 = st.integers(0, 2**32 - 1)


@given(U32, U32)
def test_sector_holds_boots_then_count(boots: int, count: int) -> None:
    sector = (MAGIC + struct.pack("<II", boots, count)).ljust(SECTOR, b"\0")
    assert parse_counter(sector) == Counter(boots, count)


@pytest.mark.parametrize("sector", [b"", bytes(512), MAGIC, b"phycount" + bytes(504)])
def test_other_sectors_are_refused(sector: bytes) -> None:
    with pytest.raises(LabError, match="not a counter"):
        parse_counter(sector)


def test_console_gives_whole_lines_only() -> None:
    text = "Connected\r\nount 17\r\nboot 1 count 18\r\nboot 1 count 36 write error\r\nboot 2 count 5"
    assert parse_console(text) == [Counter(1, 18), Counter(1, 36)]


def test_a_later_boot_is_later_whatever_was_counted() -> None:
    assert Counter(1, 900) < Counter(2, 4)
