#!/usr/bin/env python3
"""Copy what belongs to the collection to where Ansible's own tools insist on finding it.

ansible-test works only below ``…/ansible_collections/phyllome/virt`` and follows no symbolic link.
The copy holds every file git knows or would add, without what only we run (tests, labs, tools,
benchmarks): that is no Ansible content, and ruff and mypy judge it.
"""

from __future__ import annotations

import filecmp
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS_ALONE = (
    ".ci/",
    "tests/bench/",
    "tests/fleet/",
    "tests/lab/",
    "tests/metal/",
    "tests/requirements/",
    "tests/tools/",
    "tests/unit/",
)


def files() -> list[str]:
    """Every file git knows or would add, relative to the root, in order."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return sorted({name for name in listing.split("\0") if name and os.path.lexists(ROOT / name)})


def kept(name: str) -> bool:
    """Whether this belongs to the copy itself: its repository, and what ansible-test wrote."""
    return name == ".git" or name.startswith((".git/", "tests/output"))


def copy(target: pathlib.Path) -> None:
    """Make ``target`` equal to the collection's files; files that are equal already stay untouched."""
    wanted = {name for name in files() if not name.startswith(OURS_ALONE)}
    target.mkdir(parents=True, exist_ok=True)
    if not (target / ".git").exists():
        # ansible-test asks the nearest repository for its files; the checkout's would call all of
        # this ignored.
        subprocess.run(["git", "init", "-q", str(target)], check=True)
    for path in list(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if kept(name) or (path.is_dir() and not path.is_symlink()):
            continue
        if name not in wanted:
            path.unlink()
    for name in wanted:
        source, copied = ROOT / name, target / name
        if (
            copied.is_file()
            and not source.is_symlink()
            and not copied.is_symlink()
            and filecmp.cmp(source, copied, shallow=False)
            and source.stat().st_mode == copied.stat().st_mode
        ):
            continue
        copied.parent.mkdir(parents=True, exist_ok=True)
        if copied.is_symlink():
            copied.unlink()
        shutil.copy2(source, copied, follow_symlinks=False)
    for path in sorted(target.rglob("*"), reverse=True):
        name = path.relative_to(target).as_posix()
        if not kept(name) and path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


if __name__ == "__main__":
    copy(pathlib.Path(sys.argv[1]))
