# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jinja's door to moving named guests."""

from __future__ import annotations

import typing as t

from ansible_collections.phyllome.virt.plugins.module_utils._host import equals
from ansible_collections.phyllome.virt.plugins.module_utils._migration import placement

DOCUMENTATION = r"""
name: moves
short_description: What each host has to do so that named guests are at one host
version_added: 0.2.0
description:
  - Finds the guests among those that M(phyllome.virt.phyllome_vm_info) found on every host, whoever made them.
  - Decides nothing else and does nothing. The playbooks C(phyllome.virt.migrate) and C(phyllome.virt.restore) ask it before they
    touch anything.
author:
  - Contributors to the phyllome.virt project (@phyllome)
options:
  _input:
    description: Names of guests.
    type: list
    elements: str
    required: true
  to:
    description: The host that is to have them.
    type: str
    required: true
  found:
    description: The guests that were found, by host; anything but a list for a host that did not answer.
    type: dict
    required: true
  declared:
    description:
      - The inventory's C(phyllome_guests), for guests that come back. One that is declared at another host goes there, and one that does not
        exist any more is left out. Without it each name has to be there.
    type: list
    elements: dict
  evacuated:
    description: Hosts that are to stay empty.
    type: list
    elements: str
    default: []
  devices:
    description:
      - C(phyllome_iommu) of M(phyllome.virt.iommu_facts) with C(devices) and C(groups), by host; anything else for a host that did not tell.
      - A guest with PCI devices gets those that O(inventory) names, else what is of the same vendor, kind and card, with VFIO and free.
      - Without this no devices are exchanged, and M(phyllome.virt.vm_migrate) refuses to move the guest.
    type: dict
  inventory:
    description:
      - The inventory's C(phyllome_guests). A guest gets the devices that it is declared with at the host where it goes, and none that another
        guest is declared with there. The default is O(declared).
    type: list
    elements: dict
"""

EXAMPLES = r"""
- name: Show who has to move what
  ansible.builtin.debug:
    msg: "{{ (['web', 'db'] | phyllome.virt.moves('beta', found)).moves }}"
  vars:
    found:
      alpha: []
      beta: []
"""

RETURN = r"""
_value:
  description:
    - C(moves) by the host that has the guests now, each with C(guest), C(destination) and, for a guest that gets other devices,
      C(hostdevs); C(problems), a message for each guest that cannot be placed; and C(at), where each guest belongs.
  type: dict
"""


def moves(
    names: t.Any,
    to: str,
    found: t.Any,
    declared: t.Any = None,
    evacuated: t.Any = (),
    devices: t.Any = None,
    inventory: t.Any = None,
) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    answers = {host: guests if isinstance(guests, list) else None for host, guests in found.items()}
    return placement.moves([*names], to, answers, declared, [*evacuated], equals.told(devices), inventory)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"moves": moves}
