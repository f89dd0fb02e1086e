# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jinja's door to the evacuation of a host."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.phyllome.virt.plugins.module_utils._host import equals
from ansible_collections.phyllome.virt.plugins.module_utils._migration.evacuation import evacuate

DOCUMENTATION = r"""
name: evacuation
short_description: Where the guests of a host can go when it has to be empty
version_added: 0.2.0
description:
  - Finds a host for each guest that can run it, from what M(phyllome.virt.host_facts) and M(phyllome.virt.phyllome_vm_info) found on
    every host. Neither memory, huge pages nor space are given away twice.
  - Each guest moves once, and no other guest moves. Either there is a place for all of them, or the answer is what stands against it.
  - Does nothing. The playbook C(phyllome.virt.evacuate) asks it before it touches anything.
author:
  - Contributors to the phyllome.virt project (@phyllome)
options:
  _input:
    description: Name of the host.
    type: str
    required: true
  found:
    description: The guests that were found, by host; anything but a list for a host that did not answer.
    type: dict
    required: true
  facts:
    description: C(phyllome_host) with C(identity), C(manifest), C(capacity) and C(evacuated), by host; anything else for one that is not known.
    type: dict
    required: true
  together:
    description: Groups of names of guests that are never to be on different hosts.
    type: list
    elements: list
    default: []
  apart:
    description: Groups of names of guests of which no two are ever to be on one host.
    type: list
    elements: list
    default: []
  running_only:
    description: Leave guests that are off where they are.
    type: bool
    default: false
  devices:
    description:
      - C(phyllome_iommu) of M(phyllome.virt.iommu_facts) with C(devices) and C(groups), by host; anything else for a host that did not tell.
      - A guest with PCI devices goes where devices of the same vendor, kind and card are with VFIO and free. Without this it goes nowhere.
    type: dict
  inventory:
    description: The inventory's C(phyllome_guests). The devices that they are declared with at a host are given to nobody else there.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Show where the guests of alpha would go
  ansible.builtin.debug:
    msg: "{{ ('alpha' | phyllome.virt.evacuation(found, facts, apart=[['dc1', 'dc2']])).moves }}"
  vars:
    found: {alpha: [], beta: []}
    facts: {alpha: null, beta: null}
"""

RETURN = r"""
_value:
  description:
    - C(moves) by destination, each with C(guest), C(source), C(destination) and, for a guest that gets other devices, C(hostdevs), in the order in which
      they are best done; C(guests),
      the names of all that go; C(bytes) of their disks; C(rechosen), why a guest does not go where C(evacuated.destinations) of the host
      says; C(problems). Where there is a problem nothing moves.
  type: dict
"""


def evacuation(
    host: str,
    found: t.Any,
    facts: t.Any,
    together: t.Any = (),
    apart: t.Any = (),
    running_only: bool = False,
    devices: t.Any = None,
    inventory: t.Any = (),
) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    for option, groups in (("phyllome_together", together), ("phyllome_apart", apart)):
        if isinstance(groups, str) or any(
            isinstance(group, str) or not all(isinstance(name, str) for name in group) for group in groups
        ):
            raise AnsibleFilterError(
                f"{option} is a list of groups, each a list of names of guests: [[web, db], [dc1, dc2]]."
            )
    return evacuate(
        host,
        {name: guests if isinstance(guests, list) else None for name, guests in found.items()},
        {name: known if isinstance(known, dict) and "capacity" in known else None for name, known in facts.items()},
        together,
        apart,
        bool(running_only),
        equals.told(devices),
        inventory,
    )


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"evacuation": evacuation}
