# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jinja's door to choosing devices by what they are, on the controller, where jmespath is."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._vfio import spec

DOCUMENTATION = r"""
name: passthrough_devices
short_description: Devices that are chosen by what they are
version_added: 0.2.0
description:
  - What the role C(phyllome.virt.passthrough) makes of C(select) in an entry of C(phyllome_passthrough).
  - That a guest has a device which is with VFIO does not stand against the device, so that C([?!hazards].address) yields the same
    before and after the guest was started.
author:
  - The Phyllome OS community (@phyllome)
options:
  _input:
    description: C(devices) of M(phyllome.virt.iommu_facts).
    type: list
    elements: dict
    required: true
  select:
    description: JMESPath over them that yields addresses.
    type: str
    required: true
  expect_count:
    description: How many it has to yield; any other number is an error. Without it, only none is one.
    type: int
"""

EXAMPLES = r"""
- name: Show which NVMe drives a guest can have
  ansible.builtin.debug:
    msg: "{{ phyllome_iommu.devices | phyllome.virt.passthrough_devices(\"[?class_name=='nvme' && !hazards].address\") }}"
"""

RETURN = r"""
_value:
  description: PCI addresses.
  type: list
  elements: str
"""


def passthrough_devices(devices: t.Any, select: str, expect_count: int | None = None) -> list[str]:
    """See DOCUMENTATION."""
    try:
        return list(spec.select(select, {"devices": devices}, expect_count))
    except PhyllomeError as exc:
        raise AnsibleFilterError(f"phyllome_passthrough: {exc}") from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Names and functions."""
        return {"passthrough_devices": passthrough_devices}
