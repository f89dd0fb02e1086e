#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_facts
short_description: Find out what a host is made of, whether it can run guests at full speed, and what it has left
version_added: 0.2.0
description:
  - Returns a manifest of what makes one host differ from another, with three digests of it. Hosts whose digests are equal need
    not be compared any further. The same host gives the same digests until something is changed on it.
  - Where guests cannot run at full speed, every cause that is found is named, with its evidence and what to do about it.
  - Tells what memory, CPUs and space the host has, what its guests claim of it, and what is left.
  - Only reads, over one connection to libvirt. /dev/kvm is opened for a moment. Packages are read from the database of dpkg or
    pacman; rpm is asked once.
author:
  - The Phyllome OS community (@phyllome)
options:
  uri:
    description: Libvirt connection.
    type: str
    default: qemu:///system
  gather:
    description:
      - Which parts of the facts to return. The others are left out; an empty list returns no facts.
      - V(reboot) and V(evacuated) do not ask libvirt.
    type: list
    elements: str
    choices: [all, identity, virtualization, manifest, cpu, capacity, reboot, evacuated]
    default: [all]
  cpus:
    description:
      - Processors, each as C(phyllome_host.cpu) of a host. RV(fleet_cpu) is what all of them can be.
      - Run it once, on any host, with those of all hosts.
    type: list
    elements: str
    default: []
notes:
  - Run it as root (O(ignore:become=true)). Libvirt does not tell an ordinary user of firmware and CPU models, nor may everybody read
    certificates; what is not known is null, and the digests are not those that root gets.
  - Without libvirt-python or without libvirt the rest of the facts is there all the same; C(identity.libvirt_error) says why.
requirements:
  - python3-libvirt and python3-lxml on the host, for what only libvirt knows
extends_documentation_fragment:
  - phyllome.virt._attributes
  - phyllome.virt._attributes.actiongroup_virt
  - phyllome.virt._attributes.facts
  - phyllome.virt._attributes.info_module
seealso:
  - module: phyllome.virt.iommu_facts
  - module: phyllome.virt.phyllome_vm_info
"""

EXAMPLES = r"""
- name: Look at the host
  phyllome.virt.host_facts:
  become: true

- name: Say why guests are slow here, and what to do
  ansible.builtin.debug:
    msg: "{{ ansible_facts.phyllome_host.virtualization.evidence }} {{ ansible_facts.phyllome_host.virtualization.remedy }}"
  when: ansible_facts.phyllome_host.virtualization.state != 'on'

- name: Find the CPU that every host can give to a guest
  phyllome.virt.host_facts:
    gather: []
    cpus: "{{ groups.phyllome_hosts | map('extract', hostvars) | map(attribute='ansible_facts.phyllome_host.cpu') | unique }}"
  become: true
  register: shared
  run_once: true

- name: Have a guest that can run on every host
  phyllome.virt.phyllome_vm:
    name: web
    cpu: fleet
    fleet_cpu: "{{ shared.fleet_cpu }}"
  become: true
"""

RETURN = r"""
ansible_facts:
  description: Facts about the host.
  returned: unless O(gather) is empty
  type: dict
  contains:
    phyllome_host:
      description: What the host is. Null is unknown.
      type: dict
      returned: always
      contains:
        schema_version:
          description: Changes when the meaning of a value does.
          type: int
          returned: always
          sample: 1
        identity:
          description: C(hostname) and C(host_uuid) as libvirt has them, and C(libvirt_error), why libvirt could not be asked.
          type: dict
          returned: with V(identity) in O(gather)
        virtualization:
          description:
            - C(state) is V(on), V(off) or V(unknown), C(kind) V(vmx) or V(svm), C(nested) whether guests can have guests.
            - C(causes) are V(firmware), V(cpu), V(not_nested), V(xen), V(module_missing), V(blacklisted), V(module_not_loaded),
              V(permission), V(busy), V(node), V(libvirt) and V(unreadable). C(evidence) and C(remedy) are for people.
          type: dict
          returned: with V(virtualization) in O(gather)
          sample:
            state: "off"
            kind: svm
            nested: null
            causes: [firmware]
            evidence: ["kvm: disabled by bios"]
            remedy: Switch on SVM (AMD-V) in the firmware setup.
        manifest:
          description:
            - C(os), C(kernel), C(cmdline), C(microcode), C(kvm), C(packages), C(versions), C(daemons), C(arch), C(type), C(emulator),
              C(machines), C(firmware), C(capabilities), C(cpu), C(networks), C(pools), C(definitions), C(authority), C(security),
              C(settings), C(tuned) and C(vfio).
            - Serial numbers, addresses, UUIDs and times are not in it.
          type: dict
          returned: with V(manifest) in O(gather)
        digests:
          description:
            - C(strict) of the whole manifest, C(stack) of the software, C(migrate) of what decides where a guest can go.
          type: dict
          returned: with V(manifest) in O(gather)
        cpu:
          description: What C(host-model) stands for on this host, as XML; for O(cpus).
          type: str
          returned: with V(cpu) in O(gather)
        capacity:
          description:
            - C(memory) with C(total), C(available), C(claimed) by running guests and C(free) in bytes, C(hugepages) with C(size) in KiB and
              the number of C(free) ones, C(cpus), C(vcpus_claimed), C(pools) with C(path) and bytes C(available), and C(guests) with what each
              claims.
            - Pools of the same C(filesystem) have their space in common.
          type: dict
          returned: with V(capacity) in O(gather)
        reboot:
          description: Whether a reboot is C(required) for what was installed to take effect, and C(why).
          type: dict
          returned: with V(reboot) in O(gather)
          sample: {required: true, why: [/run/reboot-required is there]}
        evacuated:
          description:
            - Names of the C(guests) that were taken away from here when the host was evacuated, their C(destinations), C(by) which playbook,
              and C(before), by which an upgrade knows whether the host is well again. Null if it was not evacuated.
          type: dict
          returned: with V(evacuated) in O(gather)
fleet_cpu:
  description: The CPU that all O(cpus) can be, C(model) and C(features), for the option C(fleet_cpu) of M(phyllome.virt.phyllome_vm).
  returned: with O(cpus)
  type: dict
  sample: {model: EPYC, features: {avx2: require, sha-ni: disable}}
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._host.facts import PARTS, tell


def main() -> None:
    serve(
        {
            "uri": {"type": "str", "default": "qemu:///system"},
            "gather": {"type": "list", "elements": "str", "choices": ["all", *PARTS], "default": ["all"]},
            "cpus": {"type": "list", "elements": "str", "default": []},
        },
        tell,
    )


if __name__ == "__main__":
    main()
