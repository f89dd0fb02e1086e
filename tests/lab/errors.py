"""The lab's one exception, and running an outer program with a checked exit status."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence


class LabError(RuntimeError):
    """The lab could not do what was asked; the message says what and why."""


def describe(argv: Sequence[str], status: int, output: bytes) -> str:
    """One message for a program that failed, ending with the last of what it printed."""
    return f"{shlex.join(argv)} exited with {status}: {output.decode(errors='replace').strip()[-2000:]}"


def call(*argv: str, check: bool = True, input: bytes | None = None) -> str:
    """Run a program of the outer machine and return its standard output."""
    done = subprocess.run(argv, input=input, capture_output=True, check=False)
    if check and done.returncode:
        raise LabError(describe(argv, done.returncode, done.stderr or done.stdout))
    return done.stdout.decode(errors="replace")
