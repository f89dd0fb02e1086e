"""Results of checks and tests as JUnit XML, the one form that pytest writes and that can be added up."""

from __future__ import annotations

import pathlib
import typing as t
import xml.etree.ElementTree as ET

import venvs

FOLDER = venvs.CACHE / "results"


class Check(t.NamedTuple):
    name: str
    seconds: float
    output: str | None  #: what a failed check said; None when it passed


class Count(t.NamedTuple):
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Count) -> Count:  # type: ignore[override]
        return Count(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def __str__(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


def path(name: str) -> pathlib.Path:
    """Where the results called ``name`` go; an earlier run's are removed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{name}.xml"
    file.unlink(missing_ok=True)
    return file


def write(name: str, checks: t.Iterable[Check]) -> None:
    suite = ET.Element("testsuite", name=name)
    for check in checks:
        case = ET.SubElement(suite, "testcase", name=check.name, time=f"{check.seconds:.1f}")
        if check.output is not None:
            ET.SubElement(case, "failure", message="failed").text = "".join(
                letter for letter in check.output if letter >= " " or letter in "\n\t"
            )
    ET.ElementTree(suite).write(path(name), encoding="utf-8", xml_declaration=True)


def count(name: str) -> Count | None:
    """What a run came to, or None when it left no result because it died."""
    file = FOLDER / f"{name}.xml"
    if not file.exists():
        return None
    try:
        cases = list(ET.parse(file).iter("testcase"))
    except ET.ParseError:
        return None
    failed = sum(1 for case in cases if case.find("failure") is not None or case.find("error") is not None)
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    return Count(len(cases) - failed - skipped, failed, skipped)
