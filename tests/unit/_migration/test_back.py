# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back goes on from the retained copy, if that is what its journal says it is."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt
from ansible_collections.phyllome.virt.plugins.module_utils._migration import back, files, journal
from ansible_collections.phyllome.virt.plugins.module_utils._migration.copying import Item
from ansible_collections.phyllome.virt.plugins.module_utils._migration.manifest import Manifest
from ansible_collections.phyllome.virt.tests.unit._migration.world import UUID, Lib

FORMER, OP = "op1", "op2"
DISK = "/images/web.raw"
KEPT = f"{DISK}.phyllome-retained-{FORMER}"
VARS = "/nvram/web_VARS.fd"
STAMP = [3 * 1024**2, 1795651606 * 10**9 + 4801831]
RECORD = journal.Record(OP, UUID, "web", "beta", "alpha", mode="cold")
ITEMS = [Item("disks.vda", DISK, "", 3 * 1024**2, 5, 4096, DISK), Item("nvram", VARS, "", 10, 5, 4096, VARS)]
RETAINED = {DISK: KEPT, VARS: f"{VARS}.phyllome-retained-{FORMER}"}
SAID = {"phase": "done", "source": "alpha", "retained": RETAINED}
NOTE = {"path": DISK, "start": 0, "end": 3 * 1024**2, "entries": ["0001aa", "", "0001bb"], "stamp": STAMP, "sent": 9}


class Volume:
    def __init__(self, there, name, text=""):
        self.there, self.name, self.text = there, name, text

    def XMLDesc(self):
        changed = "1795651606.004801831"
        return f"<volume><physical>{3 * 1024**2}</physical><target><timestamps><mtime>{changed}</mtime></timestamps></target></volume>"

    def delete(self):
        del self.there[self.name]


@pytest.fixture
def there(monkeypatch):
    """What alpha has, by path; its libvirt shows folders of it."""
    found: dict[str, Volume] = {}

    def put(path, text):
        found[path] = Volume(found, path, text)

    put(f"{journal.DIRECTORY}/{FORMER}.json", json.dumps(SAID))
    put(f"{journal.DIRECTORY}/{FORMER}.notes", "\n" + json.dumps(NOTE) + "\n")
    for path in RETAINED.values():
        put(path, "")

    @contextlib.contextmanager
    def folder(connection, path, op):
        yield {name.rpartition("/")[2]: one for name, one in found.items() if name.rpartition("/")[0] == path}

    monkeypatch.setattr(virt, "libvirt", Lib())
    monkeypatch.setattr(files, "folder", folder)
    monkeypatch.setattr(files, "read", lambda connection, volume: volume.text.encode())
    monkeypatch.setattr(back, "_volume", lambda connection, path, op: found.get(path))
    return found


@pytest.fixture
def log(tmp_path):
    made = journal.Journal(str(tmp_path))
    made.save(RECORD)
    return made


def take_over(log, record=RECORD):
    return back.take_over(None, FORMER, "boot", record, ITEMS, log)


def test_the_retained_copy_becomes_the_beginning(there, log):
    record = take_over(log)
    assert record.staged == {DISK: KEPT} and log.load(OP) == record
    manifest = Manifest(DISK, lambda said, sync: None, log.notes(OP))
    assert (manifest.entries, manifest.end, manifest.sent) == (NOTE["entries"], NOTE["end"], 0)
    assert not manifest.same(0, 1024**2, STAMP)  # what is here now has to be looked at
    assert log.notes(OP)[0] == {"boot": "boot"}
    assert list(there) == [KEPT]  # nobody goes back to what is changed from now on
    assert take_over(log, record) == record


@pytest.mark.parametrize("kept", [2, 3, 4])
def test_cut_off_before_the_journal_there_is_gone_it_is_done_again(there, log, monkeypatch, kept):
    def delete(self):
        if len(there) == kept:
            raise InterruptedError
        del there[self.name]

    with monkeypatch.context() as context, pytest.raises(InterruptedError):
        context.setattr(Volume, "delete", delete)
        take_over(log)
    assert take_over(log, log.load(OP)).staged == {DISK: KEPT}
    assert list(there) == [KEPT]


@pytest.mark.parametrize(
    "wrong",
    [
        {"phase": "returned"},
        {"source": "gamma"},
        {"retained": {DISK: "/images/somebodys.raw"}},
        {"retained": {}},
    ],
)
def test_what_is_not_of_the_last_move_is_left_alone(there, log, wrong):
    there[f"{journal.DIRECTORY}/{FORMER}.json"].text = json.dumps({**SAID, **wrong})
    before = list(there)
    assert take_over(log) == RECORD and list(there) == before


def test_a_copy_that_was_touched_is_not_used(there, log, monkeypatch):
    before = list(there)
    monkeypatch.setattr(files, "stamp", lambda text: [STAMP[0], STAMP[1] + 1])
    assert take_over(log) == RECORD and list(there) == before
    monkeypatch.setattr(files, "stamp", lambda text: None)
    assert take_over(log) == RECORD and list(there) == before


def test_nothing_is_used_of_a_journal_that_is_gone_or_broken(there, log):
    there[f"{journal.DIRECTORY}/{FORMER}.json"].text = "{"
    assert take_over(log) == RECORD
    there.pop(f"{journal.DIRECTORY}/{FORMER}.json")
    assert take_over(log) == RECORD
    begun = dataclasses.replace(RECORD, staged={DISK: "/images/.phy-op2-web.raw.partial"})
    assert take_over(log, begun) == begun


def test_the_time_of_change_of_a_volume():
    assert files.stamp(Volume({}, "").XMLDesc()) == STAMP
    assert files.stamp("<volume><physical>5</physical></volume>") is None
    text = "<volume><physical>5</physical><target><timestamps><mtime>7.12</mtime></timestamps></target></volume>"
    assert files.stamp(text) == [5, 7_120_000_000]


@pytest.mark.parametrize(("ahead", "said"), [(0, None), (-4.4, None), (6, 6), (-3600, -3600)])
def test_clocks_that_differ(ahead, said):
    there = 1795651606 * 10**9 + 4801831
    assert files.skew(Volume({}, "").XMLDesc(), there - int(ahead * 10**9)) == said
    assert files.skew("<volume/>", there) is None
