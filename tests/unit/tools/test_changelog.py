# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What says that it came with a release is in that release's notes; else no release notes would ever tell of it."""

from __future__ import annotations

import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
PLUGINS = sorted([*ROOT.glob("plugins/modules/*.py"), *ROOT.glob("plugins/filter/*.py")])


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_version_added(path: pathlib.Path) -> None:
    releases = yaml.safe_load((ROOT / "changelogs/changelog.yaml").read_text())["releases"]
    (added,) = re.findall(r"^version_added: (\S+)$", path.read_text(), re.MULTILINE)
    told = {
        version: {one["name"] for one in [*release.get("modules", ()), *release.get("plugins", {}).get("filter", ())]}
        for version, release in releases.items()
    }
    assert [version for version, names in told.items() if path.stem in names] == [added] * (added in told)
