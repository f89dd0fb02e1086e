# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.program import run


def test_what_it_prints():
    assert run(["printf", "%s|%s", "a b", "$(x)"]) == "a b|$(x)"  # no shell looks at it


def test_its_environment_is_known(monkeypatch):
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "x")
    assert sorted(run(["env"]).split()) == ["LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    assert "LANG=x" in run(["env"], language={"LANG": "x"}).split()
    assert "LC_ALL" not in run(["env"], language={"LANG": "x"})


def test_it_gets_no_input():
    assert run(["cat"]) == ""


def test_what_is_not_utf_8_does_not_hurt():
    assert run(["printf", r"caf\351"]) == "caf�"


def test_a_failure_says_what_the_program_said():
    with pytest.raises(PhyllomeError) as failure:
        run(["sh", "-c", "echo no such image >&2; exit 3"], remedy="Look for it.")
    assert str(failure.value) == (
        "sh -c echo no such image >&2; exit 3 failed with status 3: no such image. Look for it."
    )


def test_a_failure_without_a_word():
    with pytest.raises(PhyllomeError, match="false failed with status 1: it printed no error"):
        run(["false"])


def test_a_program_that_is_missing():
    with pytest.raises(
        PhyllomeError, match="phyllome-no-such-program is not installed.*phyllome.virt.hypervisor installs"
    ):
        run(["phyllome-no-such-program"])


@pytest.mark.parametrize("argv", [["/etc"], ["true", "x" * (1 << 22)]])
def test_a_program_that_cannot_be_run(argv):
    with pytest.raises(PhyllomeError, match="cannot be run: "):
        run(argv)


def test_a_program_that_does_not_end():
    start = time.monotonic()
    with pytest.raises(PhyllomeError, match=r"sleep 60 did not end within 0.2 s: timeout. Wait."):
        run(["sleep", "60"], timeout=0.2, remedy="Wait.")
    assert time.monotonic() - start < 30
