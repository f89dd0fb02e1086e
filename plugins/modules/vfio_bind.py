#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vfio_bind
short_description: Take PCI devices from the host for guests, and give them back
version_added: 0.2.0
description:
  - Binds PCI devices to VFIO, from which guests get them, now and at every boot, or gives them back to the drivers of the host.
  - Whole IOMMU groups are planned, since a guest can only have a device when the host drives nothing else in its group.
  - What the host stands on is not taken from it. Whatever stands against taking a device is refused with its evidence,
    for all devices at once and before anything is changed. Most hazards can be lifted, each with a word of its own in
    O(consent). What is not known counts as a hazard that no word lifts.
  - One device after the other gets its C(driver_override), is released by its driver and taken by the new one, which is
    verified. When a member of a group fails, the whole group gets back what it had.
  - A driver may never let go of a device. After O(timeout) seconds the module ends with the evidence of the kernel; the
    device is V(stuck), and is left alone until a reboot.
  - What is done is written down in C(/var/lib/phyllome/vfio/ledger.json) before it is done, so that it can be undone
    exactly, and so that a run that was interrupted can be finished or undone by the next one.
  - The next boot does the same by one file of rules for udev, C(/etc/udev/rules.d/59-phyllome-vfio.rules). They match a device by
    its address and by its ids, so that another card in the same slot is left to the host. Where C(initramfs-tools), C(dracut) or
    C(mkinitcpio) makes the initramfs, a drop-in has the rules in it too, so that they come before every driver. The images
    are made anew when that content has changed, and only then. Those before are kept in
    C(/var/lib/phyllome/vfio/initramfs) for the undo.
  - The machine is never rebooted.
author:
  - The Phyllome OS community (@phyllome)
extends_documentation_fragment:
  - phyllome.virt._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  devices:
    description:
      - PCI addresses, or identities as C(identity.key) of M(phyllome.virt.iommu_facts) has them, which stay the same when a
        card is added.
    type: list
    elements: str
  select:
    description:
      - JMESPath over C(ansible_facts.phyllome_iommu.devices), yielding addresses. The facts are taken anew by this module.
      - Ask for what a device is, not for its driver, which is another one afterwards.
      - That a guest uses a device which is with VFIO is no hazard here, so that C([?!hazards].address) yields the same before and after
        the guest was started.
      - Needs the Python library C(jmespath) on the target.
      - Mutually exclusive with O(devices).
    type: str
  expect_count:
    description:
      - How many devices O(select) has to yield; any other number is an error. Without it, only none is one.
    type: int
  functions:
    description:
      - Virtual functions of SR-IOV cards to make and to bind as well. Drivers of the host do not take them.
      - Another number than the one there is goes through 0, which removes all functions of the card. That is refused while
        one of them is in use.
    type: list
    elements: dict
    suboptions:
      device:
        description: Address or identity of the physical function, which stays with its driver.
        type: str
        required: true
      count:
        description: How many.
        type: int
        default: 1
  state:
    description:
      - V(bound) gives the devices to VFIO.
      - V(unbound) leaves them without any driver, for instance so that the rest of their group can be used.
      - V(original) takes back what this module did, to the named devices or to all. What somebody else has changed since is
        left alone, with a warning. A device that a guest uses is refused.
    type: str
    choices: [bound, unbound, original]
    default: bound
  driver:
    description:
      - A driver of VFIO. V(auto) is the variant that knows most of a device, such as V(mlx5_vfio_pci), or else V(vfio-pci). What is
        with one already stays there.
    type: str
    default: auto
  group_policy:
    description:
      - What to do with other devices of a group that the host drives.
      - V(refuse_partial) refuses. V(companions) takes other functions of the same card, such as the sound of a graphics card, and
        refuses if there are more. V(whole_group) takes them all; their hazards count as well.
    type: str
    choices: [refuse_partial, companions, whole_group]
    default: refuse_partial
  persist:
    description:
      - Whether every boot does the same. Without it, what this module wrote for that is removed.
      - Nothing is written for a device that something else binds at boot already.
    type: bool
    default: true
  runtime:
    description:
      - V(auto) takes a device now where its driver can be trusted to let go of it, and leaves display, sound and the like,
        with their group, to the next boot. V(never) leaves everything to it, V(force) nothing.
      - What waits for the next boot has the result V(deferred) and needs O(persist).
    type: str
    choices: [auto, never, force]
    default: auto
  consent:
    description:
      - Hazards that are accepted. The running root file system has no word.
      - With V(mounted_storage), file systems, swap and volumes on a device are torn away from whoever uses them.
      - With V(has_data), the guest can read and overwrite what is on it.
      - With V(mgmt_nic), the host may not be reached any more; with V(nic_used), whatever talks over the card is cut off.
      - With V(primary_gpu), the screen of the host goes dark.
      - With V(usb_boot), what the boot loader is read from is gone from the host.
      - With V(collateral), virtual functions and the like that were made of it are gone with it.
      - With V(acs_override), groups prove nothing any more. Devices of different groups may reach each other past the IOMMU, and a
        guest that has one of them may through that reach the memory of the host and of other guests.
      - With V(unsafe_interrupts), a guest can send interrupts of its choice to the host, and so crash it or take it over.
      - With V(risky_unbind), who has the device open loses it, or its driver waits for them and hangs.
      - With V(no_reset), the device keeps its state, and perhaps the data, of one user for the next.
    type: list
    elements: str
    choices: [mounted_storage, has_data, mgmt_nic, nic_used, primary_gpu, usb_boot, collateral, acs_override,
      unsafe_interrupts, risky_unbind, no_reset]
    default: []
  protect:
    description: Network interfaces, disks and PCI addresses to be treated as in use, as in M(phyllome.virt.iommu_facts).
    type: list
    elements: str
    default: []
  timeout:
    description: How many seconds a driver has to let go of, or to take, one device.
    type: int
    default: 30
  initramfs:
    description:
      - When the initramfs is made that is due. With V(later) by another run, for instance the last of several. It is written down
        that it is due, and devices are only certain at the next boot once it is made.
      - V(only) does nothing but make the one that runs before left, if there is one, and is given without devices.
    type: str
    choices: [now, later, only]
    default: now
  sysfs_root:
    description:
      - As in M(phyllome.virt.iommu_facts). With another machine than this one, only check mode is possible.
    type: path
    default: /
notes:
  - Run it as root (O(ignore:become=true)).
  - Where the IOMMU is off, nothing is bound. If the next boot has it on, the devices are V(deferred) and nothing is written, since
    groups are not known before; else it is an error that says why it is off and what to do.
seealso:
  - module: phyllome.virt.iommu_facts
  - module: phyllome.virt.kernel_cmdline
"""

EXAMPLES = r"""
- name: Have a graphics card with its sound for guests
  phyllome.virt.vfio_bind:
    devices: ["0000:0b:00.0"]
    group_policy: companions
  register: bound

- name: Reboot where that is needed
  ansible.builtin.reboot:
  when: bound.reboot_required

- name: Have every NVMe disk that nobody uses and that is empty
  phyllome.virt.vfio_bind:
    select: "[?class_name=='nvme' && !hazards].address"
    expect_count: 2

- name: Have a disk whatever is on it, and wherever it is plugged in next
  phyllome.virt.vfio_bind:
    devices: ["144d:a80a/144d:a801@3"]
    consent: [has_data]

- name: Have four virtual functions of a network card
  phyllome.virt.vfio_bind:
    functions:
      - {device: "0000:18:00.1", count: 4}

- name: Give one device back to the host
  phyllome.virt.vfio_bind:
    devices: ["0000:0b:00.0", "0000:0b:00.1"]
    state: original

- name: Have everything as it was before this collection
  phyllome.virt.vfio_bind:
    state: original
"""

RETURN = r"""
devices:
  description:
    - The devices that were named, and those that come with them. After a failure, only those that were reached.
    - C(result) is V(bound), V(unbound) or V(restored) where a driver was changed, V(already) where it did not have to be, V(deferred)
      where it will be by the next boot, V(refused), V(stuck) or V(rolled_back).
  returned: always but for errors in options
  type: list
  elements: dict
  sample:
    - {address: '0000:01:00.0', identity: '8086:10d3/8086:0000@2', group: 14, driver_before: e1000e, driver_after: vfio-pci,
      result: bound}
refused:
  description:
    - What stands against it. C(evidence) is a list of what was seen, C(consent) the word that lifts it or null, C(lost) what is
      given up with it.
  returned: always but for errors in options
  type: list
  elements: dict
  sample:
    - {address: '0000:02:00.0', hazard: has_data, evidence: [gpt on nvme1n1], consent: has_data,
      lost: the guest can read and overwrite what is on it}
plan:
  description: What is changed, in order; each entry has C(path), C(from), C(to), C(when) and sometimes C(why).
  returned: always but for errors in options
  type: list
  elements: dict
  sample: [{path: 'devices.0000:01:00.0.driver', from: e1000e, to: vfio-pci, when: live}]
next_boot:
  description:
    - What the next boot does with each of the devices, as it is configured on the host after the run.
    - C(driver) is the one that it gets, or null. C(held) says whether something decides that; without it, the host's driver has
      the device. C(source) is V(udev), V(driverctl), V(modprobe) or V(cmdline). C(initramfs) says whether that comes before every driver.
      C(certain) is false where configuration could not be read.
  returned: success
  type: list
  elements: dict
  sample: [{address: '0000:01:00.0', driver: vfio-pci, held: true, source: udev, initramfs: true, certain: true}]
reboot_required:
  description: Whether something that was asked for is only there after a reboot.
  returned: always but for errors in options
  type: bool
hostdevs:
  description: The devices that are with VFIO, as O(phyllome.virt.phyllome_vm#module:hostdevs) takes them.
  returned: always but for errors in options
  type: list
  elements: dict
  sample: [{id: pci-0000-01-00-0, pci: '0000:01:00.0'}]
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.apply import body
from ansible_collections.phyllome.virt.plugins.module_utils._vfio.spec import ARGUMENTS


def main() -> None:
    serve(ARGUMENTS, body)


if __name__ == "__main__":
    main()
