"""Benchmarks print figures and ratios; they never fail on time."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet.conftest import bare, installed

__all__ = ["bare", "installed"]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> t.Callable[[str], None]:
    """Print a line that pytest does not swallow."""

    def print_it(line: str) -> None:
        with capsys.disabled():
            print(f"\n    {line}", end="", flush=True)

    return print_it
