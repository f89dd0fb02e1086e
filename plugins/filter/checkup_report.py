# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jinja's door to the check-up as data."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.phyllome.virt.plugins.module_utils._checkup.judge import report

DOCUMENTATION = r"""
name: checkup_report
short_description: What is wrong on each host, as data
version_added: 0.2.0
description:
  - Puts what M(phyllome.virt.iommu_facts), M(phyllome.virt.phyllome_vm_info) and M(phyllome.virt.host_facts) found on each host into words.
  - The playbook C(phyllome.virt.checkup) writes its JSON with it.
author:
  - Contributors to the phyllome.virt project (@phyllome)
options:
  _input:
    description: Names of the hosts.
    type: list
    elements: str
    required: true
  iommu:
    description: For each of them, what M(phyllome.virt.iommu_facts) returned, whether it went well or not.
    type: list
    elements: dict
    required: true
  guests:
    description: For each of them, what M(phyllome.virt.phyllome_vm_info) returned, whether it went well or not.
    type: list
    elements: dict
    required: true
  when:
    description: When that was, as text.
    type: str
    required: true
  hosts:
    description: For each host, what M(phyllome.virt.host_facts) returned, whether it went well or not.
    type: list
    elements: dict
"""

EXAMPLES = r"""
- name: Look at the hardware
  phyllome.virt.iommu_facts:
  register: looked

- name: Say what is wrong on this host
  ansible.builtin.debug:
    msg: "{{ ([inventory_hostname] | phyllome.virt.checkup_report([looked], [{}], 'now')).hosts[0].findings }}"
"""

RETURN = r"""
_value:
  description:
    - C(hosts), each with C(name), C(state) (V(fine), V(warning), V(problem) or V(unreachable)), C(findings) (each with
      C(code), C(severity), C(what), C(evidence), C(remedy)), C(groups) with their devices, and C(guests).
    - C(fleet) with C(domains) (groups of hosts in which every guest can go everywhere), C(alike), C(pairs) with their C(verdict)
      (V(identical), V(stack-equal), V(migration-compatible) or V(incompatible)) and C(direction), C(guests) with where each can go and why not,
      and C(drift). Null where fewer than two hosts can be compared.
  type: dict
"""


def checkup_report(names: t.Any, iommu: t.Any, guests: t.Any, when: str, hosts: t.Any = None) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    called, hardware, listed = [*names], [*iommu], [*guests]
    known = None if hosts is None else [*hosts]
    if not len(called) == len(hardware) == len(listed) or len(known or called) != len(called):
        raise AnsibleFilterError(
            f"For {len(called)} hosts there are {len(hardware)} results of iommu_facts, {len(listed)} of"
            f" phyllome_vm_info and {len(known or called)} of host_facts: give one of each for each host."
        )
    return report(called, hardware, listed, when, known)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Names and functions."""
        return {"checkup_report": checkup_report}
