#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: iommu_facts
short_description: Find out which PCI devices a guest can have, what stands against it, and why the IOMMU is off
version_added: 0.1.0
description:
  - Reads what the kernel says of the IOMMU, its groups and the PCI devices, and what the host itself uses of them.
    Judges each group and each device.
  - Finds the disks behind mounts, swap, device mapper, LVM, LUKS, md, btrfs, ZFS, loop devices and NVMe multipath, the
    network cards behind the default routes and the SSH connection through bonds, bridges and VLANs, the graphics card
    that shows a picture, device nodes that processes have open, guests that run, consoles and the only keyboard.
  - Whatever stands against giving a device to a guest is one of its C(hazards). The devices of a group share them, since
    they can only be given away together. A fact that is needed for this and that cannot be read is a hazard itself,
    V(unknown_…), so that the expression C(!hazards) of JMESPath selects nothing that might be unsafe.
  - Where the IOMMU is off, every cause that is found is named, with its evidence and what to do about it.
  - A device that is locked for good, since a driver does not let go of it, holds this up for some seconds and is then left
    alone. It has the hazard V(unknown_driver).
  - Only reads. For a moment it opens disks as if for exclusive use, to see whether the kernel uses them. It starts no
    other program, does not wake up sleeping devices, and reads no more of a file than it can
    have in earnest.
author:
  - The Phyllome OS community (@phyllome)
options:
  sysfs_root:
    description:
      - Directory that holds C(sys), C(proc), C(dev), C(etc), C(boot), C(run) and C(usr) of the machine to look at.
      - This machine, or a tree that M(phyllome.virt.machine_capture) has captured. No link in a captured tree is followed
        out of it.
    type: path
    default: /
  gather:
    description:
      - Which parts of the facts to return. The others are left out.
      - V(host) and V(iommu) are there in milliseconds. The others need a look at every device and every process.
    type: list
    elements: str
    choices: [all, host, iommu, groups, devices, vfio, bindings, boot]
    default: [all]
  protect:
    description:
      - Network interfaces, disks (V(sda), V(/dev/disk/by-id/…)) and PCI addresses to be treated as in use by the host.
      - Each device that carries one of them gets the hazard V(protected), and so does its group.
      - What is not there is an error, since it would not be protected.
    type: list
    elements: str
    default: []
notes:
  - Run it as root (O(ignore:become=true)). As another user it knows less, says so in C(unknown) and C(unread), and
    adds hazards.
  - Nothing is known about groups before the IOMMU is on. Until then each device has the hazard V(unknown_group).
  - In a container the host's disks, mounts and processes are out of sight. There each device has the hazard
    V(unknown_host_use).
  - Disks of guests and pools that are defined in C(/etc/libvirt) count as in use (V(guest_disk)), running or not. Those of
    ordinary users' guests that do not run are known by what is on them only (V(has_data)).
extends_documentation_fragment:
  - phyllome.virt._attributes
  - phyllome.virt._attributes.facts
  - phyllome.virt._attributes.info_module
seealso:
  - module: phyllome.virt.machine_capture
  - name: VFIO
    description: What the kernel says about groups and their viability.
    link: https://docs.kernel.org/driver-api/vfio.html
  - name: JMESPath
    description: The language to select devices with.
    link: https://jmespath.org/
"""

EXAMPLES = r"""
- name: Look at the hardware
  phyllome.virt.iommu_facts:
  become: true

- name: Say why the IOMMU is off, and what to do
  ansible.builtin.debug:
    msg: "{{ ansible_facts.phyllome_iommu.iommu.evidence }} {{ ansible_facts.phyllome_iommu.iommu.remedy }}"
  when: ansible_facts.phyllome_iommu.iommu.state != 'on'

- name: Graphics cards that a guest can have
  ansible.builtin.debug:
    msg: >-
      {{ ansible_facts.phyllome_iommu.devices
         | community.general.json_query("[?class_name=='vga' && !hazards].address") }}

- name: NVMe disks that only have data on them in the way
  ansible.builtin.debug:
    msg: >-
      {{ ansible_facts.phyllome_iommu.devices
         | community.general.json_query("[?class_name=='nvme' && hazards[].code == ['has_data']].identity.key") }}

- name: What stands against the network card in slot 3
  ansible.builtin.debug:
    msg: >-
      {{ ansible_facts.phyllome_iommu.devices
         | community.general.json_query("[?identity.slot=='3'].hazards[].[code, join(', ', via)]") }}

- name: Groups that could be bound as a whole, and what to bind
  ansible.builtin.debug:
    msg: >-
      {{ ansible_facts.phyllome_iommu.groups
         | community.general.json_query("[?state=='bindable'].{group: id, bind: bind_set}") }}

- name: Keep the card for backups out of it, whatever it does at the moment
  phyllome.virt.iommu_facts:
    protect: [ens7f0, /dev/disk/by-id/nvme-Samsung_SSD_990_PRO_S7KGNU0X100000]
  become: true

- name: Only ask whether the IOMMU is on
  phyllome.virt.iommu_facts:
    gather: [iommu]

- name: Look at a machine that somebody sent
  phyllome.virt.iommu_facts:
    sysfs_root: /srv/captures/office-pc
"""

RETURN = r"""
ansible_facts:
  description:
    - The facts. Null means unknown, or that there is no such thing; what is unknown is named in an C(unknown) list.
    - Sizes are in bytes, addresses and numbers are integers. All lists have a stable order.
  returned: always
  type: dict
  contains:
    phyllome_iommu:
      description: Everything that was found.
      type: dict
      returned: always
      contains:
        schema_version:
          description: Version of what is described here. It changes when something changes its meaning.
          type: int
          returned: always
          sample: 1
        host:
          description: What machine this is.
          type: dict
          returned: with V(host) in O(gather)
          contains:
            virtualization:
              description:
                - V(none) on a real machine; V(kvm), V(vmware), V(virtualbox), V(hyperv), V(parallels), V(apple) or V(xen)
                  in a guest, V(vm) in a guest of something else; V(xen_dom0) under Xen.
              type: str
              returned: always
              sample: none
            container:
              description: Whether the module ran in a container, out of sight of the host.
              type: bool
              returned: always
            chassis:
              description: V(desktop), V(laptop), V(tablet), V(server), V(embedded) or V(vm), from the firmware.
              type: str
              returned: always
              sample: desktop
            cpu_vendor:
              description: V(intel), V(amd), V(hygon), V(arm), or as the CPU says it.
              type: str
              returned: always
              sample: amd
            vtx:
              description: Whether the CPU offers VT-x or AMD-V.
              type: bool
              returned: always
            nested:
              description: Whether guests of this host can have guests of their own. Null while KVM is not loaded.
              type: bool
              returned: always
            kernel:
              description: Release of the running kernel.
              type: str
              returned: always
              sample: 6.12.9
            board:
              description: Vendor and name of system and board, and version of the firmware, as far as the firmware says.
              type: dict
              returned: always
              sample: {board_vendor: ASRock, board_name: X570 Taichi, bios_version: P5.00}
        iommu:
          description: The state of the IOMMU.
          type: dict
          returned: with V(iommu) in O(gather)
          contains:
            state:
              description:
                - V(on) when there are groups and units; V(off); V(unknown) when that could not be read.
              type: str
              returned: always
              sample: 'off'
            causes:
              description:
                - Why it is not on, everything that was found, in the order in which it is dealt with best.
                - V(owned_by_xen), V(guest_without_viommu), V(no_firmware_table) (switched off in the firmware setup, or
                  not supported), V(kernel_without_driver), V(disabled_on_cmdline), V(needs_intel_iommu_on),
                  V(reboot_pending), V(init_failed), V(undetermined).
              type: list
              elements: str
              returned: always
              sample: [needs_intel_iommu_on, reboot_pending]
            evidence:
              description: What was seen that leads to O(ignore:state) and O(ignore:causes), in words.
              type: list
              elements: str
              returned: always
              sample: [CONFIG_INTEL_IOMMU_DEFAULT_ON is not set and the command line has no intel_iommu=on]
            remedy:
              description: What to do, in words. Null when it is on.
              type: str
              returned: always
              sample: Add intel_iommu=on to the kernel command line and reboot.
            units:
              description:
                - The IOMMUs. C(type) is V(intel), V(amd), V(arm), V(virtio) or V(other); C(address), C(cap), C(ecap),
                  C(features) and C(version) are registers in hexadecimal digits; C(interrupt_remapping) says whether the
                  unit is capable of it.
              type: list
              elements: dict
              returned: always
              sample: [{name: dmar0, type: intel, address: '0xfed91000', interrupt_remapping: true}]
            firmware:
              description:
                - The firmware's table of IOMMUs (V(DMAR), V(IVRS), V(IORT) or V(VIOT)), and the flags of DMAR that say
                  whether it asks for DMA protection (C(opt_in)) and whether interrupts can be remapped (C(intr_remap)).
              type: dict
              returned: always
              sample: {table: DMAR, opt_in: true, intr_remap: true}
            cmdline:
              description:
                - What of the kernel's arguments bears on the IOMMU, in the running kernel (C(running)) and in all entries
                  that may boot next (C(next_boot), null where they differ or cannot be read), and whether the two differ
                  (C(reboot_pending)).
              type: dict
              returned: always
              sample: {running: [], next_boot: [intel_iommu=on], reboot_pending: true}
            kernel_config:
              description: Options of the kernel's configuration without C(CONFIG_), each V(y), V(m) or V(n).
              type: dict
              returned: always
              sample: {INTEL_IOMMU: 'y', INTEL_IOMMU_DEFAULT_ON: 'n', VFIO_PCI: m}
            interrupt_remapping:
              description: V(enabled), V(disabled) or V(unknown).
              type: str
              returned: always
              sample: enabled
            unsafe:
              description:
                - What makes isolation untrustworthy. C(acs_override) has the kernel's arguments that override ACS, null
                  without. C(unsafe_interrupts) and C(noiommu) say whether VFIO was told to do without.
              type: dict
              returned: always
              sample: {acs_override: null, unsafe_interrupts: false, noiommu: false}
        groups:
          description: The IOMMU groups, by number. A group is given away as a whole, or not at all.
          type: list
          elements: dict
          returned: with V(groups) in O(gather)
          contains:
            id:
              description: Number of the group. It may change from boot to boot.
              type: int
              returned: always
              sample: 14
            type:
              description: How the host itself uses the IOMMU for it, for instance V(DMA-FQ) or V(identity).
              type: str
              returned: always
              sample: DMA-FQ
            devices:
              description: Addresses of all that is in it.
              type: list
              elements: str
              returned: always
              sample: ['0000:00:01.0', '0000:01:00.0', '0000:01:00.1']
            endpoints:
              description: Those that a guest could have, without bridges and what the machine itself is made of.
              type: list
              elements: str
              returned: always
              sample: ['0000:01:00.0', '0000:01:00.1']
            state:
              description:
                - V(ready) when all endpoints are bound to VFIO; V(bindable) when nothing stands against that; V(shared) when
                  nothing does, and there is more than one card in it; V(blocked) when C(reasons) do; V(untrusted) when
                  isolation is not proved.
              type: str
              returned: always
              sample: bindable
            isolated:
              description: Whether all endpoints are functions of one card. Null when that is not proved.
              type: bool
              returned: always
            bind_set:
              description: Endpoints to bind to VFIO for the group to become ready.
              type: list
              elements: str
              returned: always
              sample: ['0000:01:00.0', '0000:01:00.1']
            reserved_regions:
              description: Address ranges that DMA cannot use freely. V(direct) ones bar the group from guests.
              type: list
              elements: dict
              returned: always
              sample: [{start: 4276092928, end: 4277141503, type: msi}]
            reasons:
              description: What stands against it. Codes are those of hazards, and V(no_endpoint).
              type: list
              elements: dict
              returned: always
              sample: [{code: mgmt_nic, device: '0000:05:00.0', detail: default route on enp5s0}]
        devices:
          description: The PCI functions, by address.
          type: list
          elements: dict
          returned: with V(devices) in O(gather)
          contains:
            address:
              description: Domain, bus, device and function. A domain can have more than four digits.
              type: str
              returned: always
              sample: '0000:01:00.0'
            identity:
              description:
                - What tells it from its twin. C(key) is made of the ids and the serial number that the function itself has,
                  the slot or the way there. It survives that other cards are added, and is the same whatever drives it.
                  C(serial) may be known to its driver only. C(path) is its place in the tree of devices.
              type: dict
              returned: always
              sample: {key: '10de:2204/1043:87d9@1', serial: null, slot: '1', path: 'pci0000:00/0000:00:01.1/0000:01:00.0'}
            vendor:
              description: Vendor id, four hexadecimal digits.
              type: str
              returned: always
              sample: 10de
            device:
              description: Device id, four hexadecimal digits.
              type: str
              returned: always
              sample: '2204'
            subsystem:
              description: Vendor and device id of the card.
              type: str
              returned: always
              sample: '1043:87d9'
            revision:
              description: Revision of the chip, two hexadecimal digits.
              type: str
              returned: always
              sample: a1
            vendor_name:
              description: Name from the distribution's C(pci.ids), where it is installed.
              type: str
              returned: always
              sample: NVIDIA Corporation
            device_name:
              description: Name from the distribution's C(pci.ids), where it is installed.
              type: str
              returned: always
              sample: GA102 [GeForce RTX 3090]
            class:
              description: Class, subclass and interface, six hexadecimal digits.
              type: str
              returned: always
              sample: '030000'
            class_name:
              description:
                - The class in a word, such as V(vga), V(3d), V(display), V(audio), V(nvme), V(sata), V(sas), V(raid), V(scsi),
                  V(storage), V(ethernet), V(network) (Wi-Fi as well), V(infiniband), V(usb), V(serial), V(accelerator),
                  V(host_bridge), V(pci_bridge), V(isa_bridge), V(smbus), V(other).
              type: str
              returned: always
              sample: vga
            header:
              description: V(endpoint), V(bridge) or V(cardbus). Only endpoints can be given to a guest.
              type: str
              returned: always
              sample: endpoint
            group:
              description: Number of its IOMMU group; null without one.
              type: int
              returned: always
              sample: 14
            iommu_unit:
              description: Name of the IOMMU that it is behind, one of C(iommu.units); null where the kernel names none.
              type: str
              returned: always
              sample: dmar0
            driver:
              description: The driver that has it now; null without one.
              type: str
              returned: always
              sample: nouveau
            driver_override:
              description: The only driver that may take it; null when any may.
              type: str
              returned: always
            drivers_available:
              description: Modules of this kernel that want it, and the driver for VFIO.
              type: list
              elements: str
              returned: always
              sample: [nouveau, vfio-pci]
            vfio_driver:
              description: The driver for VFIO that knows most of it, V(vfio-pci) where there is none of its own.
              type: str
              returned: always
              sample: vfio-pci
            functions:
              description: The other functions of the same card.
              type: list
              elements: str
              returned: always
              sample: ['0000:01:00.1']
            numa_node:
              description: The NUMA node it is near to; null when the kernel does not know.
              type: int
              returned: always
              sample: 0
            boot_vga:
              description: Whether the firmware used it for its screen. Only graphics cards have it.
              type: bool
              returned: always
            boot_display:
              description: The same from newer kernels, which also look at what is not a VGA card.
              type: bool
              returned: always
            power_state:
              description: V(D0) when it is on, V(D3hot) or V(D3cold) when it sleeps, V(unknown) before any driver had it.
              type: str
              returned: always
              sample: D0
            link:
              description:
                - Of its link of PCI Express C(speed), in millions of transfers a second on each lane, and C(width), in
                  lanes, as they are now and at most. Cards slow their links down while they idle; a C(width) below
                  C(max_width) says that the slot is narrower than the card. Null without a link, and while it sleeps,
                  since it is not woken up for this.
              type: dict
              returned: always
              sample: {speed: 16000, width: 4, max_speed: 16000, max_width: 16}
            reset_methods:
              description: How the kernel can reset the function by itself, the best way first.
              type: list
              elements: str
              returned: always
              sample: [flr, bus]
            acs_path:
              description:
                - The bridges above it, the outermost first. C(cap) says whether it has access control (ACS), C(enabled) which
                  of V(SV), V(TB), V(RR), V(CR), V(UF), V(EC), V(DT) are on. It explains the group, which alone counts.
              type: list
              elements: dict
              returned: always
              sample: [{bridge: '0000:00:01.1', cap: true, enabled: [SV, RR, CR, UF]}]
            sriov:
              description:
                - Of a physical function C(totalvfs), C(numvfs), C(autoprobe) and the addresses of the virtual ones in C(vfs);
                  of a virtual one the address of the physical one in C(physfn). Null for neither.
              type: dict
              returned: always
              sample: {totalvfs: 8, numvfs: 2, autoprobe: true, vfs: ['0000:5e:10.0', '0000:5e:10.1'], physfn: null}
            mdev:
              description: Types of mediated devices, and C(model), one of V(mdev), V(nvidia_vf) and V(none).
              type: dict
              returned: always
              sample: {types: [], model: none}
            bars:
              description: The memory and port ranges of the function, with C(bytes) and whether they can be resized.
              type: list
              elements: dict
              returned: always
              sample: [{n: 1, bytes: 25769803776, resizable: true}]
            in_use:
              description: Whether the host, or a guest that runs, uses this function itself. Null when that is unknown.
              type: bool
              returned: always
            hazards:
              description: All that stands against giving it to a guest, its own and those of its group, each code once.
              type: list
              elements: dict
              returned: always
              contains:
                code:
                  description:
                    - V(platform) (the machine itself), V(root_fs), V(rmrr), V(other_member) (something in the group is no
                      PCI device), V(bridge_driver), V(noiommu), V(protected), V(guest_disk), V(other_guest);
                    - V(boot_disk), V(usb_boot), V(mounted), V(swap), V(claimed) (by device mapper, md, bcache, ZFS or another),
                      V(has_data), V(mgmt_nic), V(nic_used), V(primary_gpu), V(opened) (by a process), V(console), V(usb_input)
                      (the only keyboard), V(vf_parent), V(bus_parent) (other functions are behind it), V(no_reset),
                      V(acs_override), V(unsafe_interrupts);
                    - V(unknown_acs_override), V(unknown_claims), V(unknown_class), V(unknown_connection),
                      V(unknown_consoles), V(unknown_data), V(unknown_definitions), V(unknown_display), V(unknown_driver), V(unknown_group),
                      V(unknown_host_use), V(unknown_interfaces), V(unknown_keyboards), V(unknown_mgmt_nic),
                      V(unknown_mounts), V(unknown_nic_state), V(unknown_noiommu), V(unknown_openers),
                      V(unknown_reserved_regions), V(unknown_routes), V(unknown_screens), V(unknown_storage), V(unknown_swaps),
                      V(unknown_unsafe_interrupts), V(unknown_vfs) for what could not be found out.
                  type: str
                  returned: always
                  sample: mounted
                severity:
                  description: V(refuse) when a word of consent lifts it, V(never) when none does, V(unknown) for the unknown.
                  type: str
                  returned: always
                  sample: refuse
                consent:
                  description: The word of consent that lifts it; null where there is none.
                  type: str
                  returned: always
                  sample: mounted_storage
                via:
                  description: What was found, in words, for instance the way from a mount down to the disk.
                  type: list
                  elements: str
                  returned: always
                  sample: [/data on dm-1 on dm-0 on nvme0n1p3]
                device:
                  description: The function that it comes from, itself or another one of its group.
                  type: str
                  returned: always
                  sample: '0000:01:00.0'
            runtime_bind:
              description:
                - How well its driver lets go of it while the system runs, hazards aside. V(safe), V(risky), V(reboot_preferred)
                  or V(never).
              type: str
              returned: always
              sample: risky
            ids_collateral:
              description: Up to 16 others with the same ids, which C(vfio-pci.ids=) would take as well.
              type: list
              elements: str
              returned: always
              sample: ['0000:02:00.0']
            libvirt:
              description: Its name among libvirt's node devices, and its address as numbers.
              type: dict
              returned: always
              sample: {nodedev: pci_0000_01_00_0, address: {domain: 0, bus: 1, slot: 0, function: 0}}
            unknown:
              description: Names of the values of this device that are null because they could not be found out.
              type: list
              elements: str
              returned: always
              sample: [numa_node]
        vfio:
          description:
            - What of VFIO there is. C(modules) says for each of V(vfio), V(vfio_pci) and V(vfio_iommu_type1) whether it is
              V(builtin), V(loaded), V(available) or V(missing). C(iommufd) says whether C(/dev/iommu) is there.
          type: dict
          returned: with V(vfio) in O(gather)
          sample: {modules: {vfio: loaded, vfio_pci: loaded, vfio_iommu_type1: loaded}, iommufd: false}
        bindings:
          description:
            - What is bound to VFIO now (C(live)), and what is configured to be after the next boot (C(persistent)), with
              C(source), one of V(driverctl), V(modprobe), V(udev) and V(cmdline), and C(file). C(address) is null where the
              devices cannot be told from it.
          type: dict
          returned: with V(bindings) in O(gather)
          sample:
            live: [{address: '0000:01:00.0', driver: vfio-pci}]
            persistent: [{address: '0000:01:00.0', driver: vfio-pci, source: modprobe, file: /etc/modprobe.d/vfio.conf}]
        boot:
          description:
            - How the machine boots. C(loader) is V(grub), V(grub-bls) or V(systemd-boot). C(initramfs) is V(dracut),
              V(initramfs-tools), V(mkinitcpio) or V(booster). C(host_kind) is V(package), V(ostree) or V(transactional). Null
              where that is not certain.
          type: dict
          returned: with V(boot) in O(gather)
          sample: {loader: grub, initramfs: initramfs-tools, host_kind: package}
        unknown:
          description: Names of values outside of groups and devices that could not be found out, or not yet.
          type: list
          elements: str
          returned: always
          sample: [iommu.cmdline.next_boot]
        unread:
          description: Files that are there and could not be read or understood, with the reason; up to 200 of them.
          type: list
          elements: dict
          returned: always
          sample: [{path: /proc/1/fd, why: Permission denied}]
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import PARTS, gather


def main() -> None:
    serve(
        {
            "sysfs_root": {"type": "path", "default": "/"},
            "gather": {"type": "list", "elements": "str", "choices": ["all", *PARTS], "default": ["all"]},
            "protect": {"type": "list", "elements": "str", "default": []},
        },
        lambda params, check_mode: {
            "ansible_facts": {"phyllome_iommu": gather(params["sysfs_root"], params["gather"], params["protect"])}
        },
    )


if __name__ == "__main__":
    main()
