#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: phyllome_network
short_description: Manage libvirt networks
version_added: 0.1.0
description:
  - Creates, changes, starts, stops and removes the networks that libvirt gives to guests.
  - An existing network is changed in place. What is not declared stays as it is.
  - A network that running guests use is never stopped. A change that would need it is refused, and the guests are named.
author:
  - The Phyllome OS community (@phyllome)
extends_documentation_fragment:
  - phyllome.virt._attributes
  - phyllome.virt._attributes.actiongroup_virt
attributes:
  check_mode:
    support: full
    details:
      - On a host where libvirt is not installed yet, it says what would be done as if no network were there.
  diff_mode:
    support: full
  idempotent:
    support: full
requirements:
  - libvirt-python and lxml on the managed host
options:
  name:
    description: Name of the network in libvirt.
    type: str
    required: true
  state:
    description:
      - V(active) is defined and started, V(inactive) is defined and stopped, V(present) is defined and otherwise left alone.
      - V(absent) is removed.
    type: str
    choices: [active, inactive, present, absent]
    default: active
  autostart:
    description: Whether the network starts with the host.
    type: bool
  forward:
    description:
      - How guests reach the world. V(nat) and V(route) through the host, V(isolated) not at all,
        V(bridge) as if plugged into the bridge of the host that O(bridge) names.
      - A new network has V(nat) where this is not given.
    type: str
    choices: [nat, route, isolated, bridge]
  bridge:
    description:
      - Name of the bridge interface. With O(forward=bridge) a bridge that the host has, otherwise the one that libvirt makes.
    type: str
  address:
    description:
      - The host's own IPv4 address in the network with its prefix length, for example V(192.168.150.1/24).
      - V(auto) keeps the address of an existing network, as long as the network is active or clashes with nothing.
        Otherwise it takes the first of V(192.168.122.0/24) to V(192.168.253.0/24), V(10.122.0.0/24) to V(10.122.255.0/24) and
        V(172.30.0.0/24) to V(172.30.255.0/24) that the host has no route to and that no other libvirt network has.
      - A new network has V(auto) where this is not given, except with O(forward=bridge).
    type: str
  dhcp:
    description:
      - The range of addresses that are leased to guests, first and last with V(-) between them.
      - V(auto) is the largest range that leaves out the host's own address, V(none) leases nothing.
      - A new network has V(auto) where this is not given, except with O(forward=bridge).
      - This is changed on a running network without stopping it.
    type: str
  domain:
    description: DNS domain of the guests.
    type: str
  mtu:
    description: MTU of the bridge and of the guests' interfaces.
    type: int
  uri:
    description: Connection URI of libvirt.
    type: str
    default: qemu:///system
"""

EXAMPLES = r"""
- name: Have the usual network, wherever there is room for it
  phyllome.virt.phyllome_network:
    name: default
    address: auto
    autostart: true

- name: Have a lab network of its own
  phyllome.virt.phyllome_network:
    name: lab
    forward: isolated
    address: 192.168.150.1/24
    dhcp: 192.168.150.100-192.168.150.200
    domain: lab.internal

- name: Connect guests to a bridge that the host has
  phyllome.virt.phyllome_network:
    name: lan
    forward: bridge
    bridge: br0

- name: Have it no more
  phyllome.virt.phyllome_network:
    name: lab
    state: absent
"""

RETURN = r"""
network:
  description: The network as it is after the run, in check mode as it is before; null where there is none.
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
    forward:
      description: As the option.
      type: str
      returned: success
    bridge:
      description: As the option.
      type: str
      returned: success
    address:
      description: As the option; null where the host has none in it.
      type: str
      returned: success
    dhcp:
      description: As the option, V(none) where nothing is leased.
      type: str
      returned: success
    domain:
      description: As the option.
      type: str
      returned: success
    mtu:
      description: As the option; null for the kernel's default.
      type: int
      returned: success
plan:
  description: What is changed, in order; each entry has C(path), C(from), C(to), C(when) and sometimes C(why).
  returned: success
  type: list
  elements: dict
  sample: [{path: dhcp, from: none, to: 192.168.150.100-192.168.150.200, when: live}]
guests:
  description: The running guests that stand in the way.
  returned: when a change is refused because of them
  type: list
  elements: str
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core import fields
from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._network.apply import body
from ansible_collections.phyllome.virt.plugins.module_utils._network.spec import FIELDS


def main() -> None:
    serve(
        {
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["active", "inactive", "present", "absent"], "default": "active"},
            "autostart": {"type": "bool"},
            "uri": {"type": "str", "default": "qemu:///system"},
            **fields.argument_spec(FIELDS),
        },
        body,
    )


if __name__ == "__main__":
    main()
