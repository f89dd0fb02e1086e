#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tell what guests there are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: phyllome_vm_info
short_description: Tell what guests (libvirt domains) a host has
version_added: 0.1.0
description:
  - Returns state, devices, addresses, pending changes and the owner of every guest, over one connection.
  - An ordinary user who may not change the host's guests gets the same, but for addresses that only a guest's agent knows.
author:
  - The Phyllome OS community (@phyllome)
requirements:
  - python3-libvirt and python3-lxml on the host, which the role P(phyllome.virt.hypervisor#role) installs
extends_documentation_fragment:
  - phyllome.virt._attributes
  - phyllome.virt._attributes.actiongroup_virt
  - phyllome.virt._attributes.info_module
options:
  names:
    description:
      - Only these guests. One that does not exist is not in the result.
    type: list
    elements: str
  uri:
    description:
      - Libvirt connection.
    type: str
    default: qemu:///system
seealso:
  - module: phyllome.virt.phyllome_vm
"""

EXAMPLES = r"""
- name: What guests are there
  phyllome.virt.phyllome_vm_info:
  register: found

- name: Those that wait for a power cycle
  ansible.builtin.debug:
    msg: "{{ found.guests | selectattr('pending') | map(attribute='name') }}"
"""

RETURN = r"""
guests:
  description:
    - The guests, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    uuid:
      description: Its UUID.
      type: str
    state:
      description: V(running), V(paused), V(stopped), V(stopping), V(crashed), V(suspended) or V(unknown).
      type: str
    state_reason:
      description: Why it is so, as libvirt says.
      type: str
      sample: booted
    owned:
      description: Whether M(phyllome.virt.phyllome_vm) made it or was told to take it over.
      type: bool
    migration:
      description:
        - What M(phyllome.virt.vm_migrate) noted in the guest (C(op_id), C(source), C(destination), C(phase) and more). Null if it never moved.
        - A move whose C(phase) is not V(done) has not been finished.
      type: dict
    owner:
      description: C(marker), C(profile), C(protected), and the C(devices) and C(volumes) that are ours.
      type: dict
    persistent:
      description: Whether it is defined. Libvirt forgets other guests when they stop.
      type: bool
    autostart:
      description: Whether it starts together with the host.
      type: bool
    autostart_order:
      description: C(order) and C(delay) of a guest that starts with the host in an order; null without.
      type: dict
    type:
      description: V(kvm), or V(qemu) for an emulated guest.
      type: str
    machine:
      description: Its machine type.
      type: str
    memory:
      description: Bytes.
      type: int
    vcpus:
      description: Number of virtual CPUs.
      type: int
    firmware:
      description: C(type), C(secure_boot) and C(enrolled_keys). Null is unknown.
      type: dict
    tpm:
      description: C(model).
      type: dict
    addresses:
      description: IP addresses of a running guest, from the leases of libvirt's networks, else from its agent.
      type: list
      elements: str
    disks:
      description:
        - C(id), C(target), C(bus), C(path), C(format), whether it is C(encrypted), and bytes of C(capacity) and C(allocation), null if the
          file cannot be read.
      type: list
      elements: dict
    cdroms:
      description: C(id), C(target) and C(path).
      type: list
      elements: dict
    networks:
      description: C(id), C(network) or C(bridge), C(mac) and C(model).
      type: list
      elements: dict
    hostdevs:
      description:
        - C(id), and the C(device) of the host, for example V(pci 0000:01:00.0); network cards of the host among them.
        - Whether it is C(defined). One that is not was only plugged into the running guest, and is gone when that is off; one that is may
          wait for the next start.
      type: list
      elements: dict
    plugs:
      description:
        - USB devices that are given to the guest whenever they are plugged in, as C(id), C(vendor), C(product), C(serial) and C(port),
          and whether it has one now (C(attached)).
      type: list
      elements: dict
    filesystems:
      description: C(id), C(driver), C(source), C(tag), and whether it is C(readonly).
      type: list
      elements: dict
    graphics:
      description: C(type), C(listen) and C(port) of its displays.
      type: list
      elements: dict
    hotplug_slots_free:
      description: How many devices can be added while it runs.
      type: int
    snapshots:
      description: How many libvirt knows of.
      type: int
    managed_save:
      description: Whether it has a saved state that it will continue from.
      type: bool
    pending:
      description: What is in its definition and waits for a power cycle, as C(path), C(from) and C(to).
      type: list
      elements: dict
    migratable:
      description: Whether it can move at all (C(possible)), and all C(reasons) against it as C(code), C(what) and C(fix).
      type: dict
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._guest.converge import tell


def main() -> None:
    serve({"names": {"type": "list", "elements": "str"}, "uri": {"type": "str", "default": "qemu:///system"}}, tell)


if __name__ == "__main__":
    main()
