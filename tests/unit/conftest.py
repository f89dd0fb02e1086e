# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the checkout importable as ``ansible_collections.phyllome.virt``.

``pytest tests/unit`` then works by itself, in any environment that has ansible-core. Under
ansible-test, and wherever the checkout lies in an ``ansible_collections`` tree, nothing is needed.
"""

from __future__ import annotations

import os
import pathlib
import sys

import hypothesis

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _collection_parent() -> pathlib.Path:
    if ROOT.parts[-3:] == ("ansible_collections", "phyllome", "virt"):
        return ROOT.parents[2]
    parent = ROOT / ".cache" / "pythonpath"
    link = parent / "ansible_collections" / "phyllome" / "virt"
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(ROOT, link.parent))
    return parent


PARENT = str(_collection_parent())
if PARENT not in sys.path:
    sys.path.insert(0, PARENT)

# The same examples in every run, and no clock: a busy machine is not a failure.
hypothesis.settings.register_profile("phyllome", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("phyllome")
