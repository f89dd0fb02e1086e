#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: phyllome_pool
short_description: Manage libvirt storage pools
version_added: 0.1.0
description:
  - Creates, changes, starts, stops and removes storage pools of the type C(dir), which are directories.
  - No file and no directory is ever removed.
author:
  - The Phyllome OS community (@phyllome)
extends_documentation_fragment:
  - phyllome.virt._attributes
  - phyllome.virt._attributes.actiongroup_virt
attributes:
  check_mode:
    support: full
    details:
      - On a host where libvirt is not installed yet, it says what would be done as if no pool were there.
  diff_mode:
    support: full
  idempotent:
    support: full
requirements:
  - libvirt-python and lxml on the managed host
options:
  name:
    description: Name of the pool in libvirt.
    type: str
    required: true
  state:
    description:
      - V(active) is defined and started, V(inactive) is defined and stopped, V(present) is defined and otherwise left alone.
      - V(absent) is removed; the directory and all that is in it stay.
    type: str
    choices: [active, inactive, present, absent]
    default: active
  autostart:
    description: Whether the pool starts with the host.
    type: bool
  path:
    description:
      - The directory; needed for a new pool. It is made when the pool is started, with mode 0711 unless O(mode) says otherwise.
      - The path of an existing pool is changed as long as the pool holds no volumes.
    type: path
  mode:
    description: Mode of the directory, for example V('0711').
    type: str
  owner:
    description: Name of the user who owns the directory.
    type: str
  group:
    description: Name of the group that owns the directory.
    type: str
  uri:
    description: Connection URI of libvirt.
    type: str
    default: qemu:///system
"""

EXAMPLES = r"""
- name: Have a pool for installer images
  phyllome.virt.phyllome_pool:
    name: isos
    path: /var/lib/libvirt/isos
    autostart: true

- name: Have it no more; the images stay where they are
  phyllome.virt.phyllome_pool:
    name: isos
    state: absent
"""

RETURN = r"""
pool:
  description: The pool as it is after the run, in check mode as it is before; null where there is none.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      returned: success
    uuid:
      description: Its identity in libvirt.
      type: str
      returned: success
    active:
      description: Whether it is started.
      type: bool
      returned: success
    autostart:
      description: Whether it starts with the host.
      type: bool
      returned: success
    path:
      description: Its directory.
      type: str
      returned: success
    volumes:
      description: Number of volumes in it; null where it is not active.
      type: int
      returned: success
plan:
  description: What is changed, in order; each entry has C(path), C(from), C(to), C(when) and sometimes C(why).
  returned: success
  type: list
  elements: dict
  sample: [{path: active, from: false, to: true, when: live}]
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._pool.apply import body


def main() -> None:
    serve(
        {
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["active", "inactive", "present", "absent"], "default": "active"},
            "autostart": {"type": "bool"},
            "path": {"type": "path"},
            "mode": {"type": "str"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "uri": {"type": "str", "default": "qemu:///system"},
        },
        body,
    )


if __name__ == "__main__":
    main()
