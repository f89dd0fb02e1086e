# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jinja's door to the placement of guests."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.phyllome.virt.plugins.module_utils._host import equals
from ansible_collections.phyllome.virt.plugins.module_utils._migration.placement import place

DOCUMENTATION = r"""
name: placement
short_description: What each host has to do so that every guest is where it belongs
version_added: 0.1.0
description:
  - Compares the inventory's C(phyllome_guests) with what M(phyllome.virt.phyllome_vm_info) found on every host.
  - Decides nothing else and does nothing; P(phyllome.virt.placement#filter) is what the playbook
    C(phyllome.virt.site) asks before it touches anything.
author:
  - Contributors to the phyllome.virt project (@phyllome)
options:
  _input:
    description: The declared guests, each with its C(host).
    type: list
    elements: dict
    required: true
  found:
    description: The guests that were found, by host; anything but a list for a host that did not answer.
    type: dict
    required: true
  evacuated:
    version_added: 0.2.0
    description: Hosts that are to stay empty. A guest that belongs there stays where it is.
    type: list
    elements: str
    default: []
  keep_cpu:
    version_added: 0.2.0
    description:
      - What V(fleet) in the option C(cpu) of M(phyllome.virt.phyllome_vm) stands for is not known now, since a host did not tell what it can do.
        A guest that exists keeps the CPU it has.
    type: bool
    default: false
  devices:
    version_added: 0.2.0
    description:
      - C(phyllome_iommu) of M(phyllome.virt.iommu_facts) with C(devices) and C(groups), by host; anything else for a host that did not tell.
      - A guest with PCI devices gets those that it is declared with, else what is of the same vendor, kind and card, with VFIO, free, and not
        what another guest is declared with.
      - Without this no devices are exchanged, and M(phyllome.virt.vm_migrate) refuses to move the guest.
    type: dict
"""

EXAMPLES = r"""
- name: Show which guests would move away from this host
  ansible.builtin.debug:
    msg: "{{ (phyllome_guests | phyllome.virt.placement(found))[inventory_hostname].moves }}"
  vars:
    found:
      alpha: []
      beta: []
"""

RETURN = r"""
_value:
  description:
    - By host, C(moves) with C(guest), C(destination) and, for a guest that gets other devices, C(hostdevs); C(guests) for
      M(phyllome.virt.phyllome_vm); and C(problems), a message for each guest that is left alone.
  type: dict
"""


def placement(
    declared: t.Any, found: t.Any, evacuated: t.Any = (), keep_cpu: bool = False, devices: t.Any = None
) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    if not isinstance(declared, (list, tuple)) or not all(isinstance(guest, t.Mapping) for guest in declared):
        raise AnsibleFilterError("phyllome_guests must be a list of guests, each a dictionary with name and host.")
    for number, guest in enumerate(declared, 1):
        if not guest.get("name"):
            known = ", ".join(map(str, guest)) or "nothing"  # not the values, which may be passwords
            raise AnsibleFilterError(
                f"phyllome_guests: every guest needs a name; entry {number} has none, but {known}."
            )
    answers = {host: guests if isinstance(guests, list) else None for host, guests in found.items()}
    return place(declared, answers, [*evacuated], bool(keep_cpu), equals.told(devices))


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Names and functions."""
        return {"placement": placement}
