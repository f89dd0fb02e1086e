# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy for Ansible's tools follows the checkout: what appears, changes and goes."""

from __future__ import annotations

import pathlib
import subprocess

import pytest
import tree


@pytest.fixture
def checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    root = tmp_path / "checkout"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / ".gitignore").write_text("/secret\n")
    (root / "secret").write_text("")
    (root / "roles").mkdir()
    (root / "roles" / "a.yml").write_text("a")
    (root / "tests" / "lab").mkdir(parents=True)
    (root / "tests" / "lab" / "lab").write_text("")
    monkeypatch.setattr(tree, "ROOT", root)
    return root


def copied(target: pathlib.Path) -> list[str]:
    names = (path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith(".git/"))


def test_the_copy_follows(checkout: pathlib.Path, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "copy"
    tree.copy(target)
    assert copied(target) == [".gitignore", "roles/a.yml"]
    untouched = (target / ".gitignore").stat().st_ino

    (checkout / "roles" / "a.yml").unlink()
    (checkout / "plugins").mkdir()
    (checkout / "plugins" / "b.py").write_text("b")
    (target / "tests" / "output").mkdir(parents=True)
    (target / "tests" / "output" / "kept").write_text("")
    tree.copy(target)
    assert copied(target) == [".gitignore", "plugins/b.py", "tests/output/kept"]
    assert not (target / "roles").exists()
    assert (target / ".gitignore").stat().st_ino == untouched
