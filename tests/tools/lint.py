#!/usr/bin/env python3
"""Every check that runs nothing of ours. ``lint.py [name …]`` runs only those named.

Checks run two at a time (the machines we know have two cores), the long ones first. A check that
passes is one line; one that fails is shown whole.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import time
import typing as t

import results
import tree
import venvs

ROOT = venvs.ROOT
BIN = venvs.CACHE / "venv" / "bin"
PYTHONPATH = venvs.CACHE / "pythonpath"
#: The checkout as seen from PYTHONPATH, for tools that must know module names.
AS_COLLECTION = "ansible_collections/phyllome/virt"


class Job(t.NamedTuple):
    command: list[str]
    cwd: pathlib.Path = ROOT
    #: removed from the output, so that paths read as in the checkout
    prefix: str = ""
    mypypath: pathlib.Path | None = None


def shell_scripts() -> list[str]:
    found = []
    for name in tree.files():
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                first = file.readline()
            if first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash"):
                found.append(name)
    return found


def typed_files() -> tuple[list[str], list[str]]:
    """What mypy looks at: files that are modules of the collection, and our tools with their tests.

    The tools are programs that import each other as plain neighbours, hence the two runs.
    """
    python = [name for name in tree.files() if name.endswith(".py") and name.startswith(("plugins/", "tests/"))]
    tools = [name for name in python if name.startswith(("tests/tools/", "tests/unit/tools/"))]
    return sorted(set(python) - set(tools)), tools


#: Judged once, by the main core: style, release notes, and imports, which the unit tests of every core do as well.
SKIPPED = [f"--skip-test={test}" for test in ("changelog", "import", "pep8", "pylint", "shellcheck", "yamllint")]


def jobs() -> dict[str, Job]:
    """Name → what to run."""
    found = {
        f"sanity-{core.version}": Job(
            [sys.executable, "tests/tools/sanity.py", core.version, *([] if core.main else SKIPPED)]
        )
        for core in venvs.installed()
    }
    found["ansible-lint"] = Job([f"{BIN}/ansible-lint", "--offline", "--profile", "production", "--nocolor", "-q"])
    found["antsibull-docs"] = Job(
        [
            f"{BIN}/antsibull-docs", "lint-collection-docs", "--plugin-docs",
            "--validate-collection-refs", "self", "--disallow-unknown-collection-refs", ".",
        ],
        venvs.CACHE / "tree-lint" / AS_COLLECTION,
    )  # fmt: skip
    collection, tools = typed_files()
    mypy = [f"{BIN}/mypy", "--config-file", f"{ROOT}/pyproject.toml"]
    found["mypy"] = Job(
        [*mypy, "--cache-dir", f"{venvs.CACHE}/mypy", *(f"{AS_COLLECTION}/{name}" for name in collection)],
        PYTHONPATH,
        prefix=AS_COLLECTION + "/",
        mypypath=PYTHONPATH,
    )
    found["mypy-tools"] = Job(
        [*mypy, "--cache-dir", f"{venvs.CACHE}/mypy-tools", *tools], mypypath=ROOT / "tests" / "tools"
    )
    found["antsibull-changelog"] = Job(
        [f"{BIN}/antsibull-changelog", "lint"], venvs.CACHE / "tree-lint" / AS_COLLECTION
    )
    found["yamllint"] = Job([f"{BIN}/yamllint", "--strict", "--format", "parsable", "."])
    found["ruff"] = Job([f"{BIN}/ruff", "check", "--output-format", "concise", "--no-fix", "."])
    found["ruff-format"] = Job([f"{BIN}/ruff", "format", "--check", "--output-format", "concise", "."])
    found["names"] = Job([sys.executable, "tests/tools/names.py"])
    found["registries"] = Job([sys.executable, "tests/tools/registries.py"])
    found["shellcheck"] = Job(["shellcheck", *shell_scripts()])
    python39 = venvs.find_python(("3.9",), modules="sys")
    if python39:  # else ruff's target-version has to do
        found["python3.9"] = Job([python39, "tests/tools/compile_all.py", "plugins"])
    return found


def environment() -> dict[str, str]:
    values = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(PYTHONPATH),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
    }
    values.pop("PYTHONPATH", None)
    return values


def run(name: str, job: Job) -> results.Check:
    start = time.monotonic()
    try:
        done = subprocess.run(
            job.command,
            cwd=job.cwd,
            env={**environment(), **({"MYPYPATH": str(job.mypypath)} if job.mypypath else {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=3600,
        )
        failed, output = done.returncode != 0, done.stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, output = True, f"{error}\n"
    seconds = time.monotonic() - start
    if job.prefix:
        output = output.replace(job.prefix, "")
    if failed:
        print(f"FAILED  {name}  {seconds:.1f} s\n{output}", flush=True)
    else:
        print(f"ok      {name}  {seconds:.1f} s", flush=True)
    return results.Check(name, seconds, output if failed else None)


def main(wanted: list[str]) -> int:
    known = jobs()
    chosen = {
        name: job for name, job in known.items() if not wanted or name in wanted or name.rpartition("-")[0] in wanted
    }
    missing = [word for word in wanted if not any(word in (n, n.rpartition("-")[0]) for n in known)]
    if missing:
        print(f"no check called {', '.join(missing)}; there are: {', '.join(known)}")
        return 2
    tree.copy(venvs.CACHE / "tree-lint" / AS_COLLECTION)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        checks = list(pool.map(run, chosen, chosen.values()))
    results.write("lint", checks)
    bad = [check.name for check in checks if check.output is not None]
    print(f"lint: {', '.join(bad)} failed" if bad else f"lint: {len(checks)} checks passed")
    if "ruff-format" in bad:
        print("lint: `make format` puts files in shape")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
