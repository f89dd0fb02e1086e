# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jinja's door to what a host has lost."""

from __future__ import annotations

import typing as t

from ansible_collections.phyllome.virt.plugins.module_utils._host import compare

DOCUMENTATION = r"""
name: health
short_description: What a host has lost between two looks at it
version_added: 0.2.0
description:
  - Compares what M(phyllome.virt.host_facts) returned before and after something was done to a host. The playbook C(phyllome.virt.upgrade)
    fills a host again only if it has lost nothing.
author:
  - Contributors to the phyllome.virt project (@phyllome)
options:
  _input:
    description: C(phyllome_host) before.
    type: dict
    required: true
  after:
    description: C(phyllome_host) now. Anything else means that the host did not answer.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Look at this host
  phyllome.virt.host_facts:
  register: before

- name: Look at it again
  phyllome.virt.host_facts:
  register: after

- name: Say what it has lost
  ansible.builtin.debug:
    msg: "{{ before.ansible_facts.phyllome_host | phyllome.virt.health(after.ansible_facts.phyllome_host) }}"
"""

RETURN = r"""
_value:
  description: What it has lost, in words. Nothing when it is as well as it was.
  type: list
  elements: str
"""


def health(before: t.Any, after: t.Any) -> list[str]:
    """See DOCUMENTATION."""
    if not isinstance(after, dict) or "manifest" not in after:
        return ["it does not answer"]
    return compare.health(before, after)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"health": health}
