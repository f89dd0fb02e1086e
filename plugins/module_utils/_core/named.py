# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Libvirt objects that are known by their name, are defined, run and start with the host: networks and pools.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from . import virt
from .errors import PhyllomeError
from .plan import Change, Plan

Step = t.Callable[[t.Any, str, Change], None]
"""What one change does, given a ``libvirt.virConnect``, the object's name and the change."""


def steps(kind: str, look_up: t.Callable[[t.Any, str], t.Any]) -> dict[str, Step]:
    """The steps that are the same for every kind.

    Args:
        kind: for messages.
        look_up: finds the object by its name; raises libvirtError when it is not there.
    """

    def start(connection: t.Any, name: str, change: Change) -> None:
        with virt.saying(f"Cannot start {kind} {name}"):
            look_up(connection, name).create()

    def stop(connection: t.Any, name: str, change: Change) -> None:
        with virt.saying(f"Cannot stop {kind} {name}"):
            look_up(connection, name).destroy()

    def autostart(connection: t.Any, name: str, change: Change) -> None:
        with virt.saying(f"Cannot set autostart of {kind} {name}"):
            look_up(connection, name).setAutostart(int(change.after))

    def undefine(connection: t.Any, name: str, change: Change) -> None:
        with virt.saying(f"Cannot remove {kind} {name}"):
            found = virt.found(lambda: look_up(connection, name))
            if found is not None:  # one that was not defined is gone once it is stopped
                found.undefine()

    return {"start": start, "stop": stop, "autostart": autostart, "undefine": undefine}


def carry_out(
    todo: Plan, how: t.Mapping[str, Step], connection: t.Any, name: str, left: t.Callable[[], Plan], shown: str
) -> None:
    """Do what a plan says, and look whether it stuck.

    Args:
        todo: the plan.
        how: the step of each action.
        connection: a ``libvirt.virConnect``.
        name: the object's.
        left: reads and plans again.
        shown: the object in messages.

    Raises:
        PhyllomeError: a step failed, or what libvirt says afterwards still differs.
    """
    for change in todo:
        if change.action:
            how[change.action](connection, name, change)
    rest = left()
    if rest:
        raise PhyllomeError(
            f"{shown} is not as declared after the changes",
            "what libvirt says now still differs",
            "See plan for what did not stick, and the journal of libvirt.",
            plan=rest.as_list(),
        )
