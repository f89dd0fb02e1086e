# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are written, and what a power cut leaves of them."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import files


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the kernel was told to keep, in order: whether it is a folder."""
    seen: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(stat.S_ISDIR(os.fstat(handle).st_mode)))
    return seen


def test_a_file_is_kept_before_its_name(tmp_path: pathlib.Path, synced: list[bool]) -> None:
    files.write(str(tmp_path), "etc/ours", "text", 0o600)
    assert (tmp_path / "etc/ours").read_text() == "text" and synced == [False, True]
    assert stat.S_IMODE((tmp_path / "etc/ours").stat().st_mode) == 0o600


def test_so_is_that_it_is_gone_with_what_was_left_beside_it(tmp_path: pathlib.Path, synced: list[bool]) -> None:
    for name in ("ours", "ours.phyllome-new", "others"):
        (tmp_path / name).write_text("half")
    files.write(str(tmp_path), "ours", None)
    assert [path.name for path in tmp_path.iterdir()] == ["others"] and synced == [True]
    files.write(str(tmp_path), "ours", None)
    assert synced == [True]
