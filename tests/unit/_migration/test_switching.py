# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a migration, and when nothing is."""

from __future__ import annotations

import threading
import types
import typing as t
import unittest.mock

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._migration import transfer


@pytest.fixture
def mover():
    said = []
    told = types.SimpleNamespace(stats={})
    progress = types.SimpleNamespace(say=lambda phase, **figures: said.append(phase))
    return types.SimpleNamespace(switching=False, told=told, progress=progress, said=said)


def test_nothing_is_asked_while_the_guest_stands_still(mover, monkeypatch):
    kinds = {"VIR_DOMAIN_EVENT_SUSPENDED": 3, "VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED": 1, "VIR_DOMAIN_EVENT_RESUMED": 4}
    monkeypatch.setattr(transfer.virt, "libvirt", types.SimpleNamespace(**kinds, libvirtError=OSError))
    monkeypatch.setattr(transfer, "POLL", 0)
    domain = unittest.mock.Mock()
    domain.jobStats.return_value = {"type": 1}
    side = types.SimpleNamespace(state="running")
    view: t.Any = types.SimpleNamespace(uuid="u", source=side, destination=side)
    monitor = transfer.Monitor(mover, view, domain, runs=False)
    handover = transfer.Handover.__new__(transfer.Handover)
    handover._mover, handover._over, handover._stopped = mover, False, threading.Event()
    monitor.look()
    handover._note(None, None, 3, 1, None)
    monitor.look()
    assert domain.jobStats.call_count == len(mover.said) == 1
    handover._note(None, None, 4, 1, None)
    monitor.look()
    assert domain.jobStats.call_count == 2 and handover._over
