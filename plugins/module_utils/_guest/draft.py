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
from .live import SCSI, Room, removable, socket
from .plan_power import POWER_RESULT
from .profiles import PROFILES
from .tables import ALIAS, device_id

if t.TYPE_CHECKING:
    from .._core.fields import Field
    from .._core.xml import Element
    from .read import Guest
    from .spec import Device, Wanted
    from .tables import DeviceKind
    from .world import World


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

    def __init__(self, wanted: Wanted, there: Guest | None, world: World, waits: t.Collection[str] = ()) -> None:
        self.wanted, self.there, self.world, self.waits = wanted, there, world, waits
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
        self.later: list[dict[str, t.Any]] = []
        self.room = None if self.live is None else Room(self.live, world.cgroups)

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
        return "next_boot" if row is None or not self.hot else row.when

    @property
    def hot(self) -> bool:
        """Whether the guest runs, goes on running, and may be changed while it does."""
        return self.live is not None and not self.untouched and self.wanted.state != "stopped"

    @property
    def untouched(self) -> bool:
        """Whether the running guest is to be left as it is."""
        return self.wanted.apply == "next_boot" and self.wanted.state != "stopped"

    def waiting(self) -> list[dict[str, t.Any]]:
        """What will wait for a power cycle when all of this is done."""
        return [*domain.pending(self.live, self.root), *self.later]

    def plug(self, kind: DeviceKind, found: Element) -> str:
        """Put a device of the definition into the running guest too.

        Returns:
            Why that cannot be; empty when it can, or when the guest does not run.
        """
        path = f"{kind.option}.{kind.label(found)}"
        if not self.hot or self.live is None or self.room is None or path in self.waits:
            return ""
        if domain.device(kind, self.live, kind.label(found)) is not None:
            return ""  # it is there already: by a rule, or because the guest did not let go of it
        scsi = self.room.scsi
        why = self.room.take(found)
        if why:
            return why
        devices = self.live.find("devices")
        if socket(found) == "scsi" and not scsi:
            controller = self.root.find(SCSI)
            if controller is not None:
                devices.append(copy.deepcopy(controller))  # type: ignore[union-attr]
                self.note("plug", "controllers.scsi", None, "virtio-scsi", find=SCSI)
        devices.append(copy.deepcopy(found))  # type: ignore[union-attr]
        self.note(
            "plug",
            path,
            None,
            domain.summary(kind, found),
            find=f"devices/{kind.tag}/alias[@name='{ALIAS}{kind.label(found)}']/..",
        )
        return ""

    def unplug(self, kind: DeviceKind, running: Element, define: bool = False) -> bool:
        """Take a device out of the running guest.

        Args:
            kind: of the device.
            running: the device there.
            define: whether the definition loses it as well.

        Returns:
            Whether that can be tried.
        """
        path, alias = f"{kind.option}.{kind.label(running)}", xml.first(running, "alias")
        if not self.hot or path in self.waits or not removable(running) or alias is None:
            return False
        args: dict[str, t.Any] = {"alias": alias.get("name"), "id": kind.label(running), "define": define}
        self.note("unplug", path, domain.summary(kind, running), None, **args)
        running.getparent().remove(running)  # type: ignore[union-attr]
        return True

    def own_device(self, device: Device) -> None:
        """The device is ours from now on."""
        self.added.add((device.kind.option, device.id))
        if device.id not in self.marker.devices:
            self.marker = dataclasses.replace(self.marker, devices=(*self.marker.devices, device.id))

    def running(self, kind: DeviceKind, found: Element) -> Element | None:
        """The running guest's twin of a device of the definition."""
        if self.live is None:
            return None
        name = device_id(found)
        twin = None if name is None else domain.device(kind, self.live, name)
        if twin is not None:
            return twin
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
            pending=[] if off else self.waiting(),
            warnings=self.warnings,
        )


ORDER = {
    # The definition comes first: it says which files are ours before they are made, so no run can leave a
    # file that nobody knows about. What is taken out then leaves its place to what comes.
    "medium.create": -1,  # before a running guest gets it into its drive
    "unplug": 1,
    "secret.set": 1,
    "volume.create": 2,
    "volume.finish": 2,
    "volume.grow": 3,
    "plug": 4,
    "live": 5,
    "medium.remove": 6,
    "autostart": 6,
    **dict.fromkeys(POWER_RESULT, 7),
    "install.end": 8,
    "plug.settle": 8,
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
