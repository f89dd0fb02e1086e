# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the user wants of a guest's snapshots.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import typing as t

from .._core.errors import PhyllomeError
from .._core.names import check_name

ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "name": {"type": "str", "required": True},
    "snapshot": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "reverted", "absent"], "default": "present"},
    "description": {"type": "str"},
    "retention": {
        "type": "dict",
        "options": {
            "keep": {"type": "int"},
            "max_age_days": {"type": "int"},
            "match": {"type": "str", "default": "*"},
        },
    },
    "uri": {"type": "str", "default": "qemu:///system"},
}


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which snapshots of ours stay.

    Attributes:
        keep: at most so many, the newest; None for all.
        max_age: seconds; None for any age.
        match: pattern of the names that this is about.
    """

    keep: int | None
    max_age: int | None
    match: str

    def about(self, name: str) -> bool:
        """Whether a snapshot of that name is meant."""
        return fnmatch.fnmatchcase(name, self.match)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is declared; None is not managed."""

    guest: str
    snapshot: str | None
    state: str
    description: str | None
    retention: Retention | None


def wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    """The module's parameters, checked.

    Raises:
        PhyllomeError: a value that is none, or options that do not belong together.
    """
    state, snapshot = params["state"], params["snapshot"]
    given = params["retention"]
    if snapshot is None and (state != "present" or given is None):
        raise PhyllomeError(
            f"state: {state} without snapshot",
            "it is about one snapshot; only retention is about all of them",
            "Give the snapshot's name.",
        )
    if given is not None and state != "present":
        raise PhyllomeError(
            f"retention: given with state: {state}", "retention belongs to state: present", "Leave one of them out."
        )
    if params["description"] is not None and (state != "present" or snapshot is None):
        raise PhyllomeError(
            "description: there is no snapshot to describe",
            "it belongs to the snapshot that is declared present",
            "Leave it out.",
        )
    return Wanted(
        guest=check_name(params["name"], "name"),
        snapshot=None if snapshot is None else check_name(snapshot, "snapshot"),
        state=state,
        description=params["description"],
        retention=None if given is None else _retention(given),
    )


def _retention(given: t.Mapping[str, t.Any]) -> Retention:
    keep, days = given["keep"], given["max_age_days"]
    if keep is None and days is None:
        raise PhyllomeError(
            "retention: it says neither keep nor max_age_days", "something has to limit it", "Say for instance keep: 7."
        )
    for option, value in (("keep", keep), ("max_age_days", days)):
        if value is not None and value < 1:
            raise PhyllomeError(
                f"retention.{option}: {value} is too small",
                "one is the least",
                "Remove single snapshots by state: absent.",
            )
    return Retention(keep, None if days is None else days * 86400, given["match"])
