# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A failure is counted wherever it hides: the sum decides whether a change lands."""

from __future__ import annotations

import pathlib

import pytest
import results
import suites


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def test_checks_are_counted() -> None:
    results.write("lint", [results.Check("a", 1, None), results.Check("b", 1, "bad \x1b[0m\n")])
    assert results.count("lint") == results.Count(1, 1, 0)


def test_pytest_reports_are_counted(folder: pathlib.Path) -> None:
    (folder / "unit.xml").write_text(
        "<testsuites><testsuite><testcase/><testcase><skipped/></testcase><testcase><failure/></testcase>"
        "<testcase><error/></testcase></testsuite></testsuites>"
    )
    assert results.count("unit") == results.Count(1, 2, 1)


def test_a_run_that_died_has_no_count(folder: pathlib.Path) -> None:
    assert results.count("unit") is None
    (folder / "unit.xml").write_text("<testsuites><testsuite>")
    assert results.count("unit") is None


def test_an_earlier_result_does_not_stand_in_for_a_run_that_died() -> None:
    results.write("unit", [results.Check("a", 1, None)])
    results.path("unit")
    assert results.count("unit") is None


@pytest.mark.parametrize(
    ("good", "checks", "line", "status"),
    [
        (True, [None], "1 passed, 0 failed", 0),
        (False, [None], "1 passed, 1 failed", 1),  # for instance a fixture of the session that failed at the end
        (False, None, "0 passed, 1 failed", 1),
        (True, None, "0 passed, 1 failed", 1),
        (False, ["bad"], "0 passed, 1 failed", 1),
    ],
)
def test_the_sum_is_the_last_line(
    good: bool,
    checks: list[str | None] | None,
    line: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unit() -> dict[str, bool]:
        if checks is not None:
            results.write("unit", [results.Check("a", 1, output) for output in checks])
        return {"unit": good}

    monkeypatch.setattr(suites, "unit", unit)
    assert suites.main("unit") == status
    assert capsys.readouterr().out.splitlines()[-1] == line
