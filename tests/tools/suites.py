#!/usr/bin/env python3
"""Run test suites and add up what they came to: ``suites.py unit|fleet|metal|bench|all``.

The last line is ``N passed, N failed`` alone, over every pytest run and, for ``all``, every check of
lint. The exit status is not zero when anything failed, and when a run died without a result.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import typing as t

import results
import venvs

ROOT = venvs.ROOT
LAB_LOG = venvs.CACHE / "logs" / "lab-build.log"
MAIN = venvs.CACHE / "venv" / "bin"
#: Unit tests make and remove very many small files, which keeps a disk busy for longer than all the rest of them takes.
MEMORY = pathlib.Path("/dev/shm")
CPUS = str(os.cpu_count() or 1)
#: Long tests of code that Ansible has no part in, to which one ansible-core is as good as another.
PURE = (
    "test_bases.py",
    "test_bind.py",
    "test_capture.py",
    "test_cold.py",
    "test_compressed.py",
    "test_corpus.py",
    "test_decide.py",
    "test_flatten.py",
    "test_fuzz.py",
    "test_judge.py",
    "test_properties.py",
    "test_shared.py",
    "test_playbooks.py",  # whole playbooks, which other tests run under one core as well
)
#: What a laboratory's suite is run with. A fleet mostly waits, so two work side by side, each for whole files, in the
#: order of tests/fleet/conftest.py.
LABS = {"fleet": ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"), "metal": (), "bench": ()}


def pytest(
    name: str, python: pathlib.Path, *arguments: str, log: t.IO[bytes] | None = None, **variables: str
) -> subprocess.Popen[bytes]:
    """Start pytest, its result called ``name``, with these variables in its environment."""
    command = [
        str(python), "-m", "pytest", f"--junit-xml={results.path(name)}", "-p", "no:cacheprovider",
        *arguments,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(venvs.CACHE / "pythonpath"),
        "PYTHONPATH": str(venvs.CACHE / "pythonpath"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def unit() -> dict[str, bool]:
    outcome = {}
    for core in venvs.installed():
        print(f"== unit tests, ansible-core {core.version}", flush=True)
        name = f"unit-{core.version}"
        more = (
            []
            if core.main
            else ["-q", "--no-header", "-m", "not one_core", *(f"--ignore-glob=*/{file}" for file in PURE)]
        )
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            suite = pytest(name, core.bin / "python", "-n", CPUS, *more, "tests/unit", TMPDIR=folder)
            outcome[name] = suite.wait() == 0
    return outcome


def lab_pytest(name: str, log: t.IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a suite that needs a lab, under the main environment only."""
    print(f"== {name}", flush=True)
    return pytest(name, MAIN / "python", "-v", *LABS[name], f"tests/{name}", log=log)


def labs() -> dict[str, bool]:
    """The fleet, the bare machines beside it, and lint in the time that both leave; what these say comes after."""
    logs = {name: venvs.CACHE / "logs" / f"{name}.log" for name in ("metal", "lint")}
    with open(logs["metal"], "wb") as metal, open(logs["lint"], "wb") as static:
        suites = {"metal": lab_pytest("metal", metal), "lint": lint(static), "fleet": lab_pytest("fleet")}
    try:
        outcome = {name: suite.wait() == 0 for name, suite in suites.items()}
    finally:
        for suite in suites.values():  # asked to end, pytest takes its lab down
            if suite.poll() is None:
                suite.send_signal(signal.SIGINT)
                suite.wait()
    for log in logs.values():
        print(log.read_text(errors="replace"), flush=True)
    return outcome


def lint(log: t.IO[bytes]) -> subprocess.Popen[bytes]:
    """Start every check that runs nothing of ours, behind everything else: no clock matters to it."""
    print("== lint", flush=True)
    command = ["nice", "-n", "10", sys.executable, "tests/tools/lint.py"]
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def start_lab() -> subprocess.Popen[bytes] | None:
    """Build what the labs start from while other things run; their fixtures wait for it by themselves."""
    lab = ROOT / "tests" / "lab" / "lab"
    if not lab.exists():
        return None
    with open(LAB_LOG, "wb") as log:
        return subprocess.Popen([str(lab), "build"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def finish_lab(build: subprocess.Popen[bytes] | None) -> dict[str, bool]:
    if build is None:
        return {}
    if build.wait() == 0:
        return {}
    log = LAB_LOG.read_text(errors="replace")
    print("== the lab could not be built\n" + "\n".join(log.splitlines()[-40:]), flush=True)
    return {"lab-build": False}


def main(suite: str) -> int:
    start = time.monotonic()
    (venvs.CACHE / "logs").mkdir(exist_ok=True)
    if suite == "all":
        lab = start_lab()
        outcome = {**unit(), **finish_lab(lab), **labs()}
    elif suite == "unit":
        outcome = unit()
    else:
        outcome = {suite: lab_pytest(suite).wait() == 0}
    total = results.Count()
    for name, good in outcome.items():
        count = results.count(name)
        # A run that is not good must show in the sum, even when it left no count or a clean one.
        if count is None or (not good and not count.failed):
            count = (count or results.Count()) + results.Count(failed=1)
            print(f"{name}: ended badly without saying which test failed")
        total += count
        print(f"{name}: {count}")
    print(f"{time.monotonic() - start:.0f} s")
    print(total)
    return 0 if all(outcome.values()) and not total.failed else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
