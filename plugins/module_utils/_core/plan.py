# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run will do, as data: ordered changes, each with from, to, when and why.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

When = t.Literal["live", "next_boot", "refused"]
"""When a change takes effect: at once, at the next power cycle of the guest, or not at all."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One step from what is there to what is wanted.

    Attributes:
        action: the verb that ``apply`` looks up; a person does not see it.
        path: what changes, in the words of the interface, for instance ``disks.root.size``.
        before: the value that is there; None when there is none.
        after: the value that will be there; None when it goes away.
        when: see When.
        why: a reason, where the change does not explain itself.
        args: what ``apply`` needs besides; a person does not see it.
    """

    action: str
    path: str
    before: t.Any = None
    after: t.Any = None
    when: When = "live"
    why: str = ""
    args: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, t.Any]:
        """The change as users see it in ``plan[]``."""
        shown = {"path": self.path, "from": self.before, "to": self.after, "when": self.when}
        if self.why:
            shown["why"] = self.why
        return shown


@dataclasses.dataclass(frozen=True)
class Plan:
    """An ordered list of changes. Check mode stops here; the diff is this, printed."""

    changes: tuple[Change, ...] = ()

    def __iter__(self) -> t.Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.changes + other.changes)

    @property
    def changed(self) -> bool:
        """Whether carrying the plan out changes anything."""
        return any(change.when != "refused" for change in self.changes)

    def as_list(self) -> list[dict[str, t.Any]]:
        """The plan as users see it in the module's result."""
        return [change.as_dict() for change in self.changes]

    def diff(self, header: str) -> dict[str, t.Any]:
        """The plan as Ansible's ``diff``: only what differs, one line a value.

        Args:
            header: what the values belong to, for instance ``guest web``.
        """
        carried_out = [change for change in self.changes if change.when != "refused"]
        return {
            "before_header": header,
            "after_header": header,
            "before": _lines((change.path, change.before) for change in carried_out),
            "after": _lines((change.path, change.after) for change in carried_out),
        }


def _lines(values: t.Iterable[tuple[str, t.Any]]) -> str:
    return "".join(f"{path}: {value}\n" for path, value in values if value is not None)
