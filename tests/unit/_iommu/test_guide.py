# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipes of docs/passthrough.md yield what the guide says."""

from __future__ import annotations

import json
import pathlib
import re
import typing as t

import jmespath
import pytest

ROOT = pathlib.Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "passthrough.md").read_text()
RECIPE = re.compile(r"^```jmespath\n(.+?)\n```\n\n((?:- [^\n]*\n)+)", re.MULTILINE | re.DOTALL)
RESULT = re.compile(r"- `([a-z0-9-]+)`: `(.*)`")


def promises() -> t.Iterator[tuple[str, str, str]]:
    for query, results in RECIPE.findall(GUIDE):
        for line in results.splitlines():
            match = RESULT.fullmatch(line)
            assert match, line
            yield (query, *match.groups())


@pytest.mark.parametrize(("query", "machine", "expected"), [*promises()])
def test_recipe(query, machine, expected):
    facts = json.loads((ROOT / "tests" / "unit" / "captures" / machine / "facts.json").read_text())
    assert jmespath.search(query, facts) == json.loads(expected)


def test_every_recipe_is_tried():
    assert GUIDE.count("```jmespath") == len(RECIPE.findall(GUIDE)) >= 10
