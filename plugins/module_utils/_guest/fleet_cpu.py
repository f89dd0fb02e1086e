# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``cpu: fleet``, the CPU that every host of a fleet can give to a guest.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core.errors import PhyllomeError

OPTIONS: dict[str, dict[str, t.Any]] = {
    "model": {"type": "str", "required": True},
    "features": {"type": "dict", "required": True},
}


def accept(cpu: t.Mapping[str, t.Any], everywhere: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    """What ``cpu: fleet`` stands for.

    Raises:
        PhyllomeError: nobody said what all hosts can be, or there is more than the mode.
    """
    more = sorted(name for name, value in cpu.items() if name != "mode" and value is not None)
    if more:
        raise PhyllomeError(
            f"cpu.{more[0]}: {cpu[more[0]]} with cpu.mode: fleet",
            "the guest gets exactly the CPU that every host of the fleet can give it",
            f"Leave {more[0]} out, or declare cpu.mode: custom with a model.",
        )
    if everywhere is None:
        raise PhyllomeError(
            "cpu: fleet is declared, and fleet_cpu is not given",
            "one host alone does not know what the others can do",
            "Run the playbook phyllome.virt.site, which asks every host, or give fleet_cpu as host_facts returns it for cpus.",
        )
    return {"mode": "custom", "model": everywhere["model"], "features": everywhere["features"]}
