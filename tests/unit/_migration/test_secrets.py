# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What disks are encrypted with goes along, and nobody else's is overwritten."""

from __future__ import annotations

import base64
import types
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._migration import cold, journal
from ansible_collections.phyllome.virt.tests.unit._migration.world import UUID, Error, Lib

RECORD = journal.Record("op", UUID, "web", "alpha", "beta", mode="cold")
GUEST: t.Any = types.SimpleNamespace(name="web", secrets=(UUID,))


class Secret:
    def __init__(self, value=b"open sesame", private=False, usage="/images/web.qcow2"):
        self.held, self.private, self.usage = value, private, usage

    def value(self):
        if self.private:
            raise Error(virt.libvirt.VIR_ERR_INVALID_SECRET, "secret is private")
        if self.held is None:
            raise Error(virt.libvirt.VIR_ERR_NO_SECRET, "it has no value")
        return self.held

    def setValue(self, value):
        self.held = value

    def UUIDString(self):
        return UUID

    def usageType(self):
        return 1

    def usageID(self):
        return self.usage

    def XMLDesc(self):
        return "<secret/>"


class Side:
    name = "beta"

    def __init__(self, secret=None):
        self.secret = secret

    @property
    def connection(self):
        return self

    def secretLookupByUUIDString(self, uuid):
        if self.secret is None:
            raise Error(virt.libvirt.VIR_ERR_NO_SECRET, "no secret with matching uuid")
        return self.secret

    def secretDefineXML(self, text):
        self.secret = Secret(None)
        return self.secret


@pytest.fixture
def take(tmp_path, monkeypatch):
    monkeypatch.setattr(virt, "libvirt", Lib())
    monkeypatch.setattr(cold, "_SECRETS", str(tmp_path))
    log = journal.Journal(str(tmp_path / "journal"))

    def run(here, there, record=RECORD):
        pair = types.SimpleNamespace(source=Side(here), destination=there, journal=log)
        mover: t.Any = types.SimpleNamespace(pair=pair, order=None, told=None)
        cold.Cold(mover)._take_secrets(GUEST, record)
        return log.load("op")

    return run


def test_a_secret_is_brought_and_remembered_before(take):
    there = Side()
    assert take(Secret(), there).secrets == (UUID,)
    assert there.secret.held == b"open sesame"


def test_a_private_one_is_read_where_libvirt_keeps_it(take, tmp_path):
    there = Side()
    with pytest.raises(PhyllomeError, match="secret is private"):
        take(Secret(b"another", private=True), there)
    for text in (b"not base64!", base64.b64encode(b"open sesame")):
        (tmp_path / f"{UUID}.base64").write_bytes(text)
        if text.startswith(b"not"):
            with pytest.raises(PhyllomeError, match="secret is private"):
                take(Secret(private=True), there)
    take(Secret(private=True), there)
    assert there.secret.held == b"open sesame"


@pytest.mark.parametrize("theirs", [Secret(), Secret(None), Secret(b"older", private=True)])
def test_one_that_is_there_for_the_same_disk_gets_the_value(take, theirs):
    assert take(Secret(), Side(theirs)) is None  # it is not this move's to remove
    assert theirs.held == b"open sesame"


@pytest.mark.parametrize(
    ("theirs", "said"),
    [(Secret(b"another"), "its value differs"), (Secret(private=True, usage="/other"), "it is for /other")],
)
def test_another_one_is_not_overwritten(take, theirs, said):
    held = theirs.held
    with pytest.raises(PhyllomeError, match=said):
        take(Secret(), Side(theirs))
    assert theirs.held == held
