# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying a file with holes, against a libvirt that is played; the lab has the real one."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import stream

BLOCK = 4096


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(stream, "SEGMENT", 16 * BLOCK)
    monkeypatch.setattr(stream, "BLOCK", BLOCK)
    monkeypatch.setattr(stream, "CHUNK", 4 * BLOCK)
    monkeypatch.setattr(stream, "PAGE", 512)
    monkeypatch.setattr(stream, "_AHEAD", 3)
    monkeypatch.setattr(stream, "_SEND", 3 * 1000)
    monkeypatch.setattr(stream, "_ZEROS", bytes(BLOCK))


class Volume:
    """A file as libvirt's daemon writes it: a hole makes the file end behind it."""

    def __init__(self, path, size, fails_after=None):
        self.path, self.left = path, fails_after
        with open(path, "wb") as file:
            file.truncate(size)

    def newStream(self):
        return self

    def upload(self, dummy, offset, length, flags):
        self.at = offset

    def download(self, dummy, offset, length, flags):
        self.at, self.length = offset, length

    def send(self, data):
        if self.left is not None and self.left <= 0:
            raise RuntimeError("the line is cut")
        data = data[:1000]
        if self.left is not None:
            self.left -= len(data)
        with open(self.path, "r+b") as file:
            file.seek(self.at)
            file.write(data)
        self.at += len(data)
        return len(data)

    def sendHole(self, length):
        self.at += length
        os.truncate(self.path, self.at)

    def sparseRecvAll(self, fill, skip, opaque):
        with open(self.path, "rb") as file:
            whole = file.read()[self.at : self.at + self.length]
        half = len(whole) // 2 // BLOCK * BLOCK
        fill(self, whole[:half], opaque)
        if whole[half:].strip(b"\0"):
            fill(self, whole[half:], opaque)
        else:
            skip(self, len(whole) - half, opaque)

    def finish(self):
        pass

    abort = finish


class Lib:
    VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM = 1
    VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM = 1
    libvirtError = ValueError


@pytest.fixture(autouse=True)
def played(monkeypatch):
    monkeypatch.setattr(stream.virt, "libvirt", Lib)


def write(path, size, parts):
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in parts:
            if offset < size:
                file.seek(offset)
                file.write(data[: size - offset])
    return size


def copy(source, volume, begin=0, pace=None, sums=True):
    """Append a file from a byte on; its entries and the bytes that went."""
    size, entries, sent = os.path.getsize(source), [], 0
    with open(source, "rb") as file:
        for start in range(begin, size, stream.SEGMENT):
            end = min(size, start + stream.SEGMENT)
            found = list(stream.chunks(file.fileno(), start, end, sums))
            entries += [one.entry for one in found]
            sent += stream.append(volume, volume, found, start, end, end == size, pace or stream.Pace(0, 0))
    return entries, sent


parts = st.lists(
    st.tuples(st.integers(0, 60 * BLOCK), st.sampled_from([b"a", b"b" * 100, b"c" * BLOCK, bytes(3 * BLOCK), b"d" * 5 * BLOCK])),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60 * BLOCK), parts)
def test_a_copy_is_the_same_and_its_digest_does_not_depend_on_holes(tmp_path_factory, size, parts):
    folder = tmp_path_factory.mktemp("copy")
    source = folder / "source"
    write(source, size, parts)
    volume = Volume(folder / "copy", size)
    entries, sent = copy(source, volume)
    assert (folder / "copy").read_bytes() == source.read_bytes()
    full = folder / "full"
    full.write_bytes(source.read_bytes())
    assert copy(full, Volume(folder / "copy2", size))[0] == entries
    assert list(stream.read_back(volume, volume, size)) == entries
    assert sent <= os.stat(source).st_blocks * 512
    assert os.stat(folder / "copy").st_blocks <= os.stat(source).st_blocks


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60 * BLOCK), parts, parts)
def test_what_changed_is_made_the_same_with_no_more_than_that(tmp_path_factory, size, parts, later):
    folder = tmp_path_factory.mktemp("patch")
    write(folder / "source", size, parts)
    volume = Volume(folder / "copy", size)
    before, dummy = copy(folder / "source", volume)
    with open(folder / "source", "r+b") as file:
        for offset, data in later:
            if offset < size:
                file.seek(offset)
                file.write(data[: size - offset])
        file.flush()
        found = list(stream.chunks(file.fileno(), 0, size))
    changed = [(one, was) for one, was in zip(found, before, strict=True) if one.entry != was]
    pieces = [piece for one, was in changed for piece in one.pieces(stream.mask_of(was))]
    sent = stream.patch(volume, volume, pieces, stream.Pace(0, 0))
    assert (folder / "copy").read_bytes() == (folder / "source").read_bytes()
    assert list(stream.read_back(volume, volume, size)) == [one.entry for one in found]
    assert sent == sum(len(data) for dummy, data in pieces) <= sum(one.size for one, dummy in changed)


def test_a_volume_is_cut_where_an_interrupted_copy_may_have_left_something(tmp_path):
    size = write(tmp_path / "a", 40 * BLOCK, [(0, os.urandom(20 * BLOCK))])
    volume = Volume(tmp_path / "copy", size, fails_after=18 * BLOCK)
    with pytest.raises(RuntimeError, match="cut"):
        copy(tmp_path / "a", volume)
    volume.left = None
    with open(tmp_path / "a", "r+b") as file:  # what was being sent is empty now
        os.truncate(tmp_path / "a", 16 * BLOCK)
        os.truncate(tmp_path / "a", size)
        stream.cut(volume, volume, 16 * BLOCK)
        assert os.path.getsize(tmp_path / "copy") == 16 * BLOCK
        copy(tmp_path / "a", volume, begin=16 * BLOCK)
        assert (tmp_path / "copy").read_bytes() == file.read()


def test_one_changed_byte_changes_the_digest(tmp_path):
    size = write(tmp_path / "a", 20 * BLOCK, [(5000, b"x")])
    write(tmp_path / "b", 20 * BLOCK, [(5001, b"x")])
    a, b = (copy(tmp_path / name, Volume(tmp_path / "copy", size))[0] for name in "ab")
    assert a[0] != b[0] and a[1:] == b[1:] == [""] * 4
    assert len({stream.root(size, a), stream.root(size, b), stream.root(size + 1, a)}) == 3


def test_without_digests_all_is_copied_as_well(tmp_path):
    size = write(tmp_path / "a", 20 * BLOCK, [(5000, b"x")])
    entries, dummy = copy(tmp_path / "a", Volume(tmp_path / "copy", size), sums=False)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "a").read_bytes()
    assert entries == ["0002-", "", "", "", ""]


def test_too_long_is_an_error(tmp_path, monkeypatch):
    size = write(tmp_path / "a", 20 * BLOCK, [(0, b"x")])
    pace = stream.Pace(0, 1)
    pace._began -= 2
    with pytest.raises(TimeoutError):
        copy(tmp_path / "a", Volume(tmp_path / "copy", size), pace=pace)


def test_bandwidth_is_kept(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(stream.time, "sleep", slept.append)
    pace = stream.Pace(1000, 0)
    pace.tell(500)
    assert 0.4 < sum(slept) <= 0.5
    assert pace.figures(1000) | {"mib_s": 0} == {"percent": 50, "remaining_mib": 0.0, "mib_s": 0}
    assert pace.figures(0)["percent"] == 99


def test_a_file_that_becomes_shorter_is_an_error(tmp_path, monkeypatch):
    source = tmp_path / "a"
    write(source, 4 * BLOCK, [(0, b"x" * 4 * BLOCK)])
    monkeypatch.setattr(stream, "extents", lambda *dummy: iter([(0, 8 * BLOCK)]))
    with open(source, "rb") as file, pytest.raises(PhyllomeError, match="became shorter"):
        list(stream.chunks(file.fileno(), 0, 8 * BLOCK))
