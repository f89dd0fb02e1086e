# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A plan in the making: the definition being edited, and what was noted on the way. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import copy
import dataclasses
import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.names import guest_uuid
from .._core.plan import Change, Plan, When
from . import domain
from .domain import Marker
from .plan_power import POWER_RESULT
from .profiles import PROFILES

if t.TYPE_CHECKING:
    from .._core.fields import Field
    from .._core.xml import Element
    from .read import Guest, World
    from .spec import Device, Wanted
    from .tables import DeviceKind


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """What a run will do.

    Attributes:
        plan: ordered changes.
        config: the definition to write where the plan has changes of action ``config``.
        marker: our marker in that definition.
        pending: what will still wait for a power cycle afterwards.
        warnings: for people.
    """

    plan: Plan
    config: Element | None = None
    marker: Marker | None = None
    pending: t.Sequence[dict[str, t.Any]] = ()
    warnings: t.Sequence[str] = ()


class Draft:
    """The definition being edited, and what was noted on the way."""

    def __init__(self, wanted: Wanted, there: Guest | None, world: World) -> None:
        self.wanted, self.there, self.world = wanted, there, world
        self.problems: list[PhyllomeError] = []
        self.changes: list[Change] = []
        self.warnings: list[str] = []
        self.ours = None if there is None else domain.marker(there.config)
        self.adopting = there is not None and self.ours is None
        named = (self.ours.profile if self.ours else None) or wanted.profile or "linux"
        self.profile = PROFILES[named]
        self.marker = self.ours or Marker(profile=None if there is not None else named)
        self.live = None if there is None else copy.deepcopy(there.live)
        self.uuid = wanted.uuid or guest_uuid(wanted.name) if there is None else there.uuid
        self.values = {group: dict(values) for group, values in wanted.fields.items()}
        self.root = xml.element("domain") if there is None else copy.deepcopy(there.config)
        self.added: set[tuple[str, str]] = set()

    def note(self, action: str, path: str, before: t.Any, after: t.Any, when: When = "live", **args: t.Any) -> None:
        """A change; ``args`` is what ``apply`` needs besides, ``why`` is for people."""
        why = args.pop("why", "")
        self.changes.append(Change(action, path, before, after, when, why, args))

    def problem(self, what: str, why: str, remedy: str) -> None:
        """A reason why it cannot be done."""
        self.problems.append(PhyllomeError(what, why, remedy))

    def when(self, row: Field | None = None) -> When:
        """A guest that is off takes every change at once."""
        if self.live is None:
            return "live"
        return "next_boot" if row is None else row.when

    def own_device(self, device: Device) -> None:
        """The device is ours from now on."""
        self.added.add((device.kind.option, device.id))
        if device.id not in self.marker.devices:
            self.marker = dataclasses.replace(self.marker, devices=(*self.marker.devices, device.id))

    def running(self, kind: DeviceKind, found: Element) -> Element | None:
        """The running guest's twin of a device of the definition."""
        if self.live is None:
            return None
        pairs = domain.matched(kind, self.live, self.root)
        return next((running for running, defined in pairs if defined is found), None)

    def protected(self) -> bool:
        """Whether disks may not be taken away."""
        return self.marker.protected if self.wanted.protected is None else self.wanted.protected

    def decision(self) -> Decision:
        """All of it, in order.

        Raises:
            PhyllomeError: there are reasons against it, or the guest is not ours.
        """
        plan = Plan(tuple(sorted(self.changes, key=lambda change: ORDER.get(change.action, 0))))
        if self.problems:
            raise together(self.wanted.name, self.problems, plan)
        if self.adopting and not self.wanted.adopt and plan.changed:
            raise PhyllomeError(
                f"Guest {self.wanted.name} was not made by phyllome.virt",
                f"{', '.join(dict.fromkeys(change.path for change in plan))} would have to change",
                "Say adopt: true to take it over, or give your guest another name.",
                plan=refused(plan),
            )
        off = any(change.action in ("shutdown", "destroy") for change in plan)
        return Decision(
            plan=plan,
            config=self.root,
            marker=self.marker,
            pending=[] if off else domain.pending(self.live, self.root),
            warnings=self.warnings,
        )


ORDER = {
    # The definition comes first: it says which files are ours before they are made, so no run can leave a
    # file that nobody knows about.
    "volume.create": 1,
    "volume.finish": 1,
    "volume.grow": 2,
    "live": 3,
    "autostart": 4,
    **dict.fromkeys(POWER_RESULT, 5),
}


def together(name: str, problems: t.Sequence[PhyllomeError], plan: Plan) -> PhyllomeError:
    """All reasons as one error."""
    told = [{"what": problem.what, "why": problem.why, "remedy": problem.remedy} for problem in problems]
    if len(problems) == 1:
        only = problems[0]
        return PhyllomeError(f"Guest {name}: {only.what}", only.why, only.remedy, problems=told, plan=refused(plan))
    return PhyllomeError(
        f"Guest {name} cannot be as declared",
        f"there are {len(problems)} reasons: " + " ".join(f"({n}) {problem}" for n, problem in enumerate(problems, 1)),
        "Nothing was changed.",
        problems=told,
        plan=refused(plan),
    )


def refused(plan: Plan) -> list[dict[str, t.Any]]:
    """Nothing of it is done, whatever it would have been."""
    return Plan(tuple(dataclasses.replace(change, when="refused") for change in plan)).as_list()
