#!/usr/bin/env python3
"""Run ``ansible-test sanity`` of one ansible-core on a copy of the collection.

``sanity.py 2.19 [arguments of ansible-test sanity]`` shows only what is wrong; the rest is in .cache/logs.

Two things need help where only package registries can be reached:

- ansible-test fetches a script that installs pip into its environments. A stand-in of the same name
  does that with ensurepip instead.
- ansible-test keeps its environments in the home directory; it is given one below .cache, so that
  nothing of ours lies in the user's, with the user's pip configuration linked into it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys

import tree
import venvs

HOME = venvs.CACHE / "home"
STAND_IN = '''\
"""Installs the pip that comes with Python; see tests/tools/sanity.py."""
import ensurepip

ensurepip.bootstrap()
'''
#: ansible-core 2.16 and 2.17, 2.18 to 2.20, 2.21
PIP_VERSIONS = ("23_1_2", "24_2", "25_2")


def prepare_home() -> None:
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in PIP_VERSIONS:
        path = cache / f"get_pip_{version}.py"
        if not path.exists() or path.read_text() != STAND_IN:
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_text(STAND_IN)
            fresh.replace(path)
    real = pathlib.Path.home()
    for name in (".config/pip", ".pip", ".cache/pip", ".pyenv"):
        link = HOME / name
        if (real / name).exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # the run beside us was quicker
                link.symlink_to(real / name)


def main(version: str, arguments: list[str]) -> int:
    core = next(core for core in venvs.CORES if core.version == version)
    # A tree for each core: they run at the same time, and each writes into tests/output.
    target = venvs.CACHE / f"tree-{version}" / "ansible_collections" / "phyllome" / "virt"
    tree.copy(target)
    prepare_home()
    environment = {
        **os.environ,
        "HOME": str(HOME),
        "PATH": f"{core.bin}:{os.environ['PATH']}",
        "ANSIBLE_LOCAL_TEMP": str(HOME / "tmp"),
    }
    environment.pop("PYTHONPATH", None)
    python = next(core.link.glob("lib/python3.*")).name.removeprefix("python")
    command = [
        str(core.bin / "ansible-test"), "sanity", "--local", "--python", python, "--requirements",
        "--color", "no", *arguments,
    ]  # fmt: skip
    log = venvs.CACHE / "logs" / f"sanity-{version}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as file:
        status = subprocess.run(
            command, cwd=target, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        ).returncode
    if status:
        lines = log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith(("ERROR:", "FATAL:"))]
        print("\n".join(errors or lines[-40:]))
        print(f"(all of it: {log.relative_to(venvs.ROOT)})")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
