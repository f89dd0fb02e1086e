# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest starts together with its host, and in which order: what is declared, and the plan. Pure.

libvirt knows no order. A guest that has one has it in our marker, libvirt's own flag is off, and a unit of the role
phyllome.virt.hypervisor starts it. So it goes where the guest goes, and not before a move of it is finished.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.parsing.convert_bool import boolean

from .._core.errors import PhyllomeError
from .domain import Order

if t.TYPE_CHECKING:
    from .draft import Draft

STARTER = "/etc/systemd/system/multi-user.target.wants/phyllome-autostart.service"
"""There where the unit is enabled."""

_OPTIONS = {"order": {"type": "int", "required": True}, "delay": {"type": "int", "default": 0}}
_MOST = {"order": 9999, "delay": 3600}


@dataclasses.dataclass(frozen=True)
class Autostart:
    """What is declared: ``flag`` is libvirt's own, which is off for a guest that has an order."""

    flag: bool
    order: Order | None = None


def accept(given: t.Any) -> Autostart:
    """Check the option ``autostart``.

    Raises:
        PhyllomeError: it is neither true or false nor an order.
    """
    if not isinstance(given, t.Mapping):
        try:
            return Autostart(bool(boolean(given)))
        except TypeError as exc:
            raise PhyllomeError(
                f"autostart: {given!r:.80} is neither true nor false",
                "a guest starts with its host or does not",
                "Write true, false, or an order: {order: 1, delay: 10}.",
            ) from exc
    checked = ArgumentSpecValidator(_OPTIONS).validate(dict(given))
    if checked.error_messages:
        raise PhyllomeError(
            "autostart: its options are not valid",
            "; ".join(checked.error_messages),
            "Write for instance {order: 1, delay: 10}.",
        )
    for option, most in _MOST.items():
        value = checked.validated_parameters[option]
        if not 0 <= value <= most:
            raise PhyllomeError(f"autostart.{option}: {value}", f"it goes from 0 to {most}", "Correct the number.")
    return Autostart(False, Order(**checked.validated_parameters))


def plan(draft: Draft) -> None:
    """The change of libvirt's flag and of our marker."""
    wanted = draft.wanted.autostart
    if wanted is None:
        return
    there = draft.there
    flag, order = there is not None and there.autostart, draft.marker.order
    if wanted.order is not None and draft.world.exists.get(STARTER) is False:
        draft.problem(
            f"autostart.order: {wanted.order.order}",
            "this host has no phyllome-autostart.service, which starts guests of the system in their order",
            "The role phyllome.virt.hypervisor installs it. A guest of a user can only have autostart: true.",
        )
    if (flag, order) == (wanted.flag, wanted.order):
        return
    draft.marker = dataclasses.replace(draft.marker, order=wanted.order)
    before, after = (_shown(*each) for each in ((flag, order), (wanted.flag, wanted.order)))
    changed = wanted.flag if flag != wanted.flag else None
    draft.note("autostart", "autostart", before, after, flag=changed, define=order != wanted.order)


def _shown(flag: bool, order: Order | None) -> t.Any:
    return flag if order is None else order.as_dict()
