# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what was seen of a migration to what is done about it."""

from __future__ import annotations

import dataclasses
import types
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._migration import policy, transfer
from ansible_collections.phyllome.virt.plugins.module_utils._migration.apply import Mover, Told
from ansible_collections.phyllome.virt.plugins.module_utils._migration.journal import Journal, Record
from ansible_collections.phyllome.virt.plugins.module_utils._migration.policy import Policy, Sample, Verdict
from ansible_collections.phyllome.virt.plugins.module_utils._migration.progress import Progress
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read import Sight, View
from ansible_collections.phyllome.virt.tests.unit._migration.world import Lib

DEFAULT = Policy()


def seen(*remaining):
    return [Sample(number, left) for number, left in enumerate(remaining, 1)]


@pytest.mark.parametrize(
    ("remaining", "limit", "last"),
    [
        ((), 300, None),
        ((900, 100), 300, None),
        ((0, 100, 90, 80, 70, 60, 50, 40, 30, 20), 300, None),  # it converges; the first round tells nothing
        ((900, 100, 100), 725, None),
        ((900, 100, 120, 90, 95), 725, None),
        ((900, 100, 100, 100), 1150, None),
        ((900, 100, 110, 120, 130), 1575, None),
        ((900, 100, 110, 120, 130, 140), 2000, None),
        ((900, 100, 110, 120, 130, 140, 150), 2000, None),
        ((900, 100, 110, 120, 130, 140, 150, 160), 2000, "suspend"),
        ((900, 100, 110, 120, 130, 140, 150, 160, 10), 2000, "suspend"),  # what was granted stays
    ],
)
def test_the_schedule(remaining, limit, last):
    assert policy.decide(DEFAULT, seen(*remaining)) == Verdict(limit, last)


def test_a_guest_that_is_slowed_down_gets_more_time():
    slowed = dataclasses.replace(DEFAULT, auto_converge=True, on_stall="abort")
    assert policy.decide(slowed, seen(900, *[100] * 24)) == Verdict(2000, None)
    assert policy.decide(slowed, seen(900, *[100] * 25)) == Verdict(2000, "abort")


def test_a_round_counts_once_however_often_it_is_looked_at():
    history: tuple[Sample, ...] = ()
    for sample in (Sample(1, 90), Sample(2, 50), Sample(2, 40), Sample(2, 30), Sample(3, 60)):
        history = policy.extended(history, sample)
    assert history == (Sample(1, 90), Sample(2, 50), Sample(3, 60))


@given(
    st.lists(st.integers(0, 2**40), max_size=60),
    st.integers(1, 10**5),
    st.integers(0, 10**5),
    st.booleans(),
    st.sampled_from(["suspend", "abort"]),
)
def test_nothing_granted_is_taken_back(remaining, least, more, slowed, last):
    asked = Policy(least, least + more, slowed, last)
    verdicts = [policy.decide(asked, seen(*remaining[:length])) for length in range(len(remaining) + 1)]
    limits = [verdict.downtime_ms for verdict in verdicts]
    assert limits == sorted(limits) and limits[0] == least and limits[-1] <= least + more
    resorts = [verdict.last_resort is not None for verdict in verdicts]
    assert resorts == sorted(resorts)
    assert all(verdict.downtime_ms == least + more for verdict in verdicts if verdict.last_resort)


class Stalled:
    """A guest at the source whose migration makes no progress."""

    def __init__(self):
        self.round, self.done = 1, []

    def jobStats(self):
        self.round += 1
        return {"type": 2, "memory_iteration": self.round, "memory_remaining": 100}

    def migrateSetMaxDowntime(self, limit):
        self.done.append(limit)

    def migrateStartPostCopy(self):
        self.done.append("post_copy")

    def abortJob(self):
        self.done.append("abort")


def test_a_guest_whose_memory_is_fetched_is_given_up_and_not_aborted_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer.virt, "libvirt", Lib())
    monkeypatch.setattr(transfer, "POLL", 0)
    guest, journal = Stalled(), Journal(str(tmp_path))
    journal.save(Record("op", "uuid", "web", "alpha", "beta", pieces={"disks.vda": "/a"}))
    sight = Sight("alpha", "running")
    view = View(sight, Sight("beta", "incoming"), "op", 0, "moving", None)
    mover: t.Any = types.SimpleNamespace(
        pair=types.SimpleNamespace(journal=journal),
        progress=Progress(),
        order=types.SimpleNamespace(policy=Policy(on_stall="post_copy")),
        told=Told(),
        switching=False,
        commit=lambda view, sync: Mover.commit(mover, view, sync),
    )
    monitor = transfer.Monitor(mover, view, guest, True)
    for dummy in range(12):
        monitor.look()
    assert guest.done == [725, 1150, 1575, 2000, "post_copy"]
    assert monitor.fetches and not monitor.aborted and mover.told.stats["post_copy"]
    record = journal.load("op")
    assert record.phase == "committed" and record.pieces == {"disks.vda": "/a"}
    assert transfer.Monitor(mover, dataclasses.replace(view, source=Sight("alpha", "postcopy")), guest, True).fetches
