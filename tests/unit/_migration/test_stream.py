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
    monkeypatch.setattr(stream, "_READ", 4 * BLOCK)
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
    sent: list[stream.Sent] = []
    stream.send(volume, volume, str(source), begin, pace or stream.Pace(0, 0), sent.append, sums)
    return sent


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
    sent = copy(source, volume)
    assert (folder / "copy").read_bytes() == source.read_bytes()
    assert [one.start for one in sent] == list(range(0, size, stream.SEGMENT))
    full = folder / "full"
    full.write_bytes(source.read_bytes())
    again = copy(full, Volume(folder / "copy2", size))
    assert [(one.start, one.digest) for one in again] == [(one.start, one.digest) for one in sent]
    assert list(stream.read_back(volume, volume, size)) == [(one.start, one.digest) for one in sent]
    assert sum(one.size for one in sent) <= os.stat(source).st_blocks * 512 + BLOCK


def test_a_copy_that_was_cut_off_goes_on_after_the_last_whole_segment(tmp_path):
    source = tmp_path / "source"
    size = write(source, 60 * BLOCK, [(0, os.urandom(40 * BLOCK)), (50 * BLOCK, b"x")])
    volume = Volume(tmp_path / "copy", size, fails_after=20 * BLOCK)
    sent: list[stream.Sent] = []
    with pytest.raises(RuntimeError, match="cut"):
        stream.send(volume, volume, str(source), 0, stream.Pace(0, 0), sent.append)
    assert [one.start for one in sent] == [0]
    volume.left = None
    sent += copy(source, volume, begin=stream.SEGMENT)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert stream.root(size, ((one.start, one.digest) for one in sent)) == stream.root(
        size, stream.read_back(volume, volume, size)
    )


def test_one_changed_byte_changes_the_digest(tmp_path):
    size = write(tmp_path / "a", 20 * BLOCK, [(5000, b"x")])
    write(tmp_path / "b", 20 * BLOCK, [(5001, b"x")])
    a, b = (copy(tmp_path / name, Volume(tmp_path / "copy", size)) for name in "ab")
    assert a[0].digest != b[0].digest and a[1].digest == b[1].digest is None
    roots = {stream.root(size, ((one.start, one.digest) for one in sent)) for sent in (a, b)}
    assert len(roots | {stream.root(size + 1, ())}) == 3


def test_without_digests_all_is_copied_as_well(tmp_path):
    size = write(tmp_path / "a", 20 * BLOCK, [(5000, b"x")])
    sent = copy(tmp_path / "a", Volume(tmp_path / "copy", size), sums=False)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "a").read_bytes()
    assert {one.digest for one in sent} == {None}


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


def test_a_file_that_becomes_shorter_is_an_error(tmp_path):
    source = tmp_path / "a"
    write(source, 4 * BLOCK, [(0, b"x" * 4 * BLOCK)])
    with open(source, "rb") as file, pytest.raises(PhyllomeError, match="became shorter"):
        walk = stream.pieces(file.fileno(), 0, 8 * BLOCK, stream.Sum())
        monkey = [(0, 8 * BLOCK)]
        stream.extents, kept = (lambda *dummy: iter(monkey)), stream.extents
        try:
            list(walk)
        finally:
            stream.extents = kept
