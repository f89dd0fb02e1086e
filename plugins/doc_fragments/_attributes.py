# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to this collection: other collections must not extend these fragments.
"""Documentation attributes that the modules of this collection share.

A module says for itself how far it supports check mode, diff mode and idempotency, because these
differ; the texts are the same everywhere and live here::

    extends_documentation_fragment:
      - phyllome.virt._attributes
      - phyllome.virt._attributes.actiongroup_virt
    attributes:
      check_mode:
        support: full
"""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
  diff_mode:
    description: Returns details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that nothing else changes the target in between.
  platform:
    description: Target operating systems the module can be run against.
    support: full
    platforms: linux
"""

    # For modules that are a member of the action group, see meta/runtime.yml.
    ACTIONGROUP_VIRT = r"""
options: {}
attributes:
  action_group:
    description:
      - Use C(group/phyllome.virt.virt) in C(module_defaults) to set defaults, for example C(uri), for every module
        of this collection that talks to libvirt.
    support: full
    membership:
      - phyllome.virt.virt
"""

    # For modules that look and do not touch.
    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module does not modify the target.
  diff_mode:
    support: N/A
    details:
      - This module does not modify the target.
  idempotent:
    support: full
    details:
      - This module does not modify the target.
"""

    # For modules that return nothing but facts.
    FACTS = r"""
options: {}
attributes:
  facts:
    description: Action returns an C(ansible_facts) dictionary that will update existing host facts.
    support: full
"""
