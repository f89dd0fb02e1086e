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
version_added: 0.1.0
description:
  - Puts what M(phyllome.virt.iommu_facts) and M(phyllome.virt.phyllome_vm_info) found on each host into words.
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
  type: dict
"""


def checkup_report(names: t.Any, iommu: t.Any, guests: t.Any, when: str) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    hosts, hardware, listed = [*names], [*iommu], [*guests]
    if not len(hosts) == len(hardware) == len(listed):
        raise AnsibleFilterError(
            f"For {len(hosts)} hosts there are {len(hardware)} results of iommu_facts and {len(listed)} of"
            " phyllome_vm_info: give one of each for each host."
        )
    return report(hosts, hardware, listed, when)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Names and functions."""
        return {"checkup_report": checkup_report}
