# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way to fail.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t


class PhyllomeError(Exception):
    """Something cannot be done, said so that a person knows what to do next.

    Args:
        what: what was asked for or found, with the option and the value when there is one.
        why: the rule that stands against it, or what the kernel or libvirt answered.
        remedy: what to do now.
        facts: further keys of the module's result (``plan``, ``blockers``, ...).
    """

    def __init__(self, what: str, why: str, remedy: str, **facts: t.Any) -> None:
        self.what = what
        self.why = why
        self.remedy = remedy
        self.facts = facts
        super().__init__(f"{what}: {why.rstrip('.')}. {remedy}")
