#!/usr/bin/env python3
"""Make one Python environment per tested ansible-core below .cache.

=========================  =====================================================================
``.cache/venv``            the main one: ansible-core 2.19 and every tool
``.cache/venv-2.17`` ...   links to the environment of each core
``.cache/envs/<name>-…``   where they really are; the name ends in a hash of what they are made of
=========================  =====================================================================

An environment cannot be moved once it is made, so it is made in its final place and counts only when
its stamp is there. Whatever has no stamp was interrupted and is made anew.

The collections we depend on come from the ``ansible`` package: its wheel is unpacked for those three
only, into site-packages, where ansible-core, ansible-galaxy and ansible-lint all look.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import typing as t
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
STAMP = "complete"
COLLECTIONS = (
    "ansible/posix",
    "community/crypto",
    "community/general",
    "community/library_inventory_filtering_v1",  # community.general asks for it from 13 on
)


class Core(t.NamedTuple):
    """An ansible-core we test with."""

    version: str
    pythons: tuple[str, ...]  #: interpreters it runs on, the preferred first
    ansible: str  #: the release of the ``ansible`` package whose collections belong to this core
    main: bool = False

    @property
    def requirements(self) -> pathlib.Path:
        return ROOT / "tests" / "requirements" / f"core-{self.version}.txt"

    @property
    def link(self) -> pathlib.Path:
        return CACHE / f"venv-{self.version}"

    @property
    def bin(self) -> pathlib.Path:
        return self.link / "bin"


CORES = (
    Core("2.19", ("3.11", "3.12", "3.13"), "12.3.0", main=True),
    Core("2.17", ("3.10", "3.11", "3.12"), "10.7.0"),
    Core("2.21", ("3.13", "3.12", "3.14"), "14.5.0"),
)


def installed() -> list[Core]:
    """The cores that can be tested now: those with a finished environment."""
    return [core for core in CORES if (core.link / STAMP).exists()]


def find_python(versions: tuple[str, ...], modules: str = "ensurepip, sys") -> str | None:
    """Path of an interpreter of one of these versions that can make environments.

    A name on PATH proves nothing: a version manager's shim may point at a version that is not
    selected, and Debian ships python3 without ensurepip. So each candidate is asked.
    """
    for version in versions:
        candidates = [sys.executable, f"python{version}"]
        home = pathlib.Path.home()
        candidates += map(str, sorted(home.glob(f".pyenv/versions/{version}.*/bin/python{version}")))
        for candidate in candidates:
            question = f"import {modules}; print(sys.executable, '%d.%d' % sys.version_info[:2])"
            try:
                answer = subprocess.run([candidate, "-c", question], capture_output=True, text=True, timeout=60)
            except OSError:
                continue
            found = answer.stdout.split()
            if answer.returncode == 0 and len(found) == 2 and found[1] == version:
                # In an environment, sys.executable is the environment's; its base is what we want.
                return os.path.realpath(found[0])
    return None


def fingerprint(core: Core, python: str) -> str:
    """Hash of everything an environment is made of, this file excepted where it only decides how."""
    digest = hashlib.sha256()
    for text in (
        core.requirements.read_text(),
        (core.requirements.parent / "units.txt").read_text(),
        core.ansible,
        " ".join(COLLECTIONS),
        python,
    ):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:12]


def run(*command: str | pathlib.Path) -> None:
    result = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        raise SystemExit(f"setup: {' '.join(map(str, command))} failed:\n{result.stdout}")


def unpack_collections(core: Core, venv: pathlib.Path) -> None:
    pip = venv / "bin" / "pip"
    (site,) = (venv / "lib").glob("python3*/site-packages")
    with tempfile.TemporaryDirectory(dir=venv) as scratch:
        run(pip, "-q", "download", "--no-deps", "--only-binary=:all:", "-d", scratch, f"ansible=={core.ansible}")
        (wheel,) = pathlib.Path(scratch).glob("ansible-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            prefixes = tuple(f"ansible_collections/{name}/" for name in COLLECTIONS)
            archive.extractall(site, [n for n in archive.namelist() if n.startswith(prefixes)])


def make(core: Core) -> str | None:
    """Make the environment of one core unless it is there; return what there is to say about it."""
    python = find_python(core.pythons)
    if python is None:
        return (
            f"ansible-core {core.version} is NOT tested here: it needs Python "
            f"{' or '.join(core.pythons)}, and none was found on PATH or below ~/.pyenv/versions"
        )
    venv = CACHE / "envs" / f"{core.version}-{fingerprint(core, python)}"
    if not (venv / STAMP).exists():
        print(f"setup: making the environment of ansible-core {core.version} with {python}", flush=True)
        shutil.rmtree(venv, ignore_errors=True)
        run(python, "-m", "venv", venv)
        run(venv / "bin" / "pip", "-q", "install", "-r", core.requirements)
        unpack_collections(core, venv)
        (venv / STAMP).touch()
    point(core.link, venv)
    if core.main:
        point(CACHE / "venv", venv)
    return None


def point(link: pathlib.Path, target: pathlib.Path) -> None:
    """Make or turn a symbolic link in one step, so that nobody ever finds it missing."""
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == relative:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(relative)
    fresh.replace(link)


def link_checkout() -> None:
    """Let the checkout be imported and found as the collection phyllome.virt."""
    link = CACHE / "pythonpath" / "ansible_collections" / "phyllome" / "virt"
    link.parent.mkdir(parents=True, exist_ok=True)
    point(link, ROOT)


def main() -> int:
    CACHE.mkdir(exist_ok=True)
    link_checkout()
    with open(CACHE / "setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once wait for each other
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            remarks = [remark for remark in pool.map(make, CORES) if remark]
    for remark in remarks:
        print(f"setup: {remark}")
    if not (CACHE / "venv" / STAMP).exists():
        return 1
    return 1 if remarks and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    raise SystemExit(main())
