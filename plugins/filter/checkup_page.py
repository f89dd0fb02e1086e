# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jinja's door to the check-up as a page."""

from __future__ import annotations

import typing as t

from ansible_collections.phyllome.virt.plugins.module_utils._checkup.page import page

DOCUMENTATION = r"""
name: checkup_page
short_description: What is wrong on each host, as a page of HTML
version_added: 0.2.0
description:
  - Makes one page of what P(phyllome.virt.checkup_report#filter) returned. It needs no other file and no network.
author:
  - Contributors to the phyllome.virt project (@phyllome)
options:
  _input:
    description: What P(phyllome.virt.checkup_report#filter) returned.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Look at the hardware
  phyllome.virt.iommu_facts:
  register: looked

- name: Write a page about this host
  ansible.builtin.copy:
    content: "{{ [inventory_hostname] | phyllome.virt.checkup_report([looked], [{}], 'now') | phyllome.virt.checkup_page }}"
    dest: checkup.html
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""


def checkup_page(report: dict[str, t.Any]) -> str:
    """See DOCUMENTATION."""
    return page(report)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Names and functions."""
        return {"checkup_page": checkup_page}
