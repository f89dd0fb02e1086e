#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Declare guests and converge them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: phyllome_vm
short_description: Declare guests (libvirt domains) and keep them as declared
version_added: 0.1.0
description:
  - Creates, changes, starts, stops and removes guests of a libvirt host, as often as it is run.
  - Only what is declared is touched. An option that is not given is not managed, and is never reset to a default.
  - A running guest is never killed or restarted to apply a change. What cannot change while it runs is written into its
    definition and returned in RV(pending) until it has been powered off and started again. A reboot from inside is not enough.
  - A new guest gets what its O(profile) says wherever nothing is declared.
author:
  - The Phyllome OS community (@phyllome)
requirements:
  - python3-libvirt, python3-lxml and qemu-img on the host, which the role P(phyllome.virt.hypervisor#role) installs
  - libvirt 9.0 or later (older ones were not tried)
extends_documentation_fragment:
  - phyllome.virt._attributes
  - phyllome.virt._attributes.actiongroup_virt
attributes:
  check_mode:
    support: full
    details:
      - Everything is checked, images and their checksums included, and nothing is written.
  diff_mode:
    support: full
    details:
      - The diff is the plan, one line for each value.
  idempotent:
    support: full
options:
  name:
    description:
      - Name of the guest.
      - Exactly one of O(name) and O(guests) is required.
    type: str
  uuid:
    description:
      - UUID of the guest, for a guest that is created. Without it the UUID is computed from the name, so it is the same on every host.
      - If there is a guest with the name and another UUID, the module fails.
    type: str
  uri:
    description:
      - Libvirt connection. It has to be on the host the module runs on.
    type: str
    default: qemu:///system
  state:
    description:
      - V(running), V(stopped) and V(paused) also create the guest.
      - V(present) creates it and leaves its power state alone.
      - V(absent) shuts the guest down and removes it. See O(delete) for what goes with it.
      - The default is V(running).
    type: str
    choices: [present, running, stopped, paused, absent]
  profile:
    description:
      - What a new guest gets where nothing is declared. It never changes an existing guest.
      - V(linux) has UEFI, virtio devices, a serial console, a display on VNC on the loopback address, an agent channel and a
        random number generator. All profiles have 14 spare PCIe ports for devices that are added later.
      - V(windows11) has Secure Boot with Microsoft's keys, an emulated TPM 2.0, and those Hyper-V enlightenments
        that the host offers and that do not keep the guest from moving. Windows needs the virtio drivers at installation.
      - V(generic) is for whatever boots from UEFI and may lack virtio drivers. Disks are SATA, network cards e1000e.
      - V(legacy) boots from a BIOS.
      - The default is V(linux).
    type: str
    choices: [linux, windows11, generic, legacy]
  memory:
    description:
      - Size with a unit, for example V(2GiB).
    type: str
  vcpus:
    description:
      - Number of virtual CPUs.
    type: int
  firmware:
    description:
      - Firmware. It is settled when the guest is made. Declaring another for an existing guest is refused.
    type: dict
    suboptions:
      type:
        description:
          - Kind of firmware.
        type: str
        choices: [uefi, bios]
      secure_boot:
        description:
          - Whether UEFI starts signed boot loaders only.
        type: bool
      enrolled_keys:
        description:
          - Whether the guest starts with the usual keys of Secure Boot. They are there unless this is V(false).
        type: bool
  tpm:
    description:
      - Emulated TPM 2.0.
    type: dict
    suboptions:
      model:
        description:
          - Interface of the TPM. V(none) takes it away.
        type: str
        choices: [tpm-crb, tpm-tis, none]
  disks:
    description:
      - Disks of the guest. Those that are not in the list are left alone, see O(unmanaged_devices).
    type: list
    elements: dict
    suboptions:
      id:
        description:
          - What makes it this disk, in the list and in the guest. It is unique among all devices of the guest.
        type: str
        required: true
      size:
        description:
          - Size with a unit. A smaller disk grows, at once if the guest runs. A disk is never shrunk.
          - A new disk needs this or O(disks[].source), or an existing file in O(disks[].path).
        type: str
      format:
        description:
          - Format of a new disk. The default is V(qcow2), or what an existing file in O(disks[].path) has.
        type: str
        choices: [qcow2, raw]
      pool:
        description:
          - Storage pool for a new disk. It has to be a directory. The file is named after guest and disk.
          - The default is V(images).
        type: str
      path:
        description:
          - File of the disk, instead of a pool.
          - A file that exists is used as it is, belongs to somebody else, and is never deleted.
        type: path
      source:
        description:
          - Image that a new disk is copied from. It is converted if it has another format, and then grown to O(disks[].size).
          - The copy gets its name when it is complete. A run that was cut off is made good by the next one.
        type: dict
        suboptions:
          path:
            description:
              - File on the host.
            type: path
            required: true
          checksum:
            description:
              - V(sha256:) and the digits. It is compared before anything is made.
            type: str
      bus:
        description:
          - How the guest sees the disk. The default for a new disk comes from the profile.
        type: str
        choices: [virtio, scsi, sata, usb]
      boot:
        description:
          - Place in the boot order, from 1. If no device of a new guest has one, its disks come first, then its CD-ROMs.
        type: int
  cdroms:
    description:
      - CD-ROM drives of the guest.
    type: list
    elements: dict
    suboptions:
      id:
        description:
          - As in O(disks[].id). V(cloud-init), V(install-iso) and V(install-files) are taken.
        type: str
        required: true
      path:
        description:
          - ISO image on the host. It is changed while the guest runs. An empty string empties the drive.
        type: path
      bus:
        description:
          - How the guest sees the drive. The default for a new one is V(sata), which every system knows.
        type: str
        choices: [sata, scsi, usb]
      boot:
        description:
          - As in O(disks[].boot).
        type: int
  networks:
    description:
      - Network cards of the guest.
    type: list
    elements: dict
    suboptions:
      id:
        description:
          - As in O(disks[].id).
        type: str
        required: true
      network:
        description:
          - Libvirt network that it is connected to. A running guest is reconnected at once.
          - A new card needs this or O(networks[].bridge).
        type: str
      bridge:
        description:
          - Bridge of the host that it is connected to, instead of a network.
        type: str
      mac:
        description:
          - MAC address. Without it a new card gets one that is computed from the guest's UUID and O(networks[].id).
        type: str
      model:
        description:
          - Model of the card. The default for a new one comes from the profile.
        type: str
        choices: [virtio, e1000e, e1000, rtl8139]
      boot:
        description:
          - As in O(disks[].boot).
        type: int
  graphics:
    description:
      - Display. It listens on the loopback address of the host.
    type: dict
    suboptions:
      type:
        description:
          - Protocol, or V(none).
        type: str
        choices: [vnc, spice, none]
  apply:
    description:
      - When changes reach a running guest.
      - V(live) changes what can change while it runs. The rest waits for a power cycle and is returned in RV(pending). This is the default.
      - V(next_boot) leaves the running guest as it is. A disk grows only when the module runs while the guest is off.
      - V(restart) does as V(live), then shuts the guest down as O(shutdown) says and starts it again, if anything still waits.
    type: str
    choices: [live, next_boot, restart]
  on_unplug_timeout:
    description:
      - Seconds that a running guest is given to let go of a device, or of memory. What it keeps is returned in RV(pending).
      - The default is V(20).
    type: int
  cloud_init:
    description:
      - What cloud-init finds in the guest at its first boot. It gets a CD with it (NoCloud, label C(cidata)) in a drive of its own.
      - The CD image is made on the host, which needs xorriso, genisoimage or mkisofs for it. It belongs to the guest and is removed with it.
      - The instance id is made from the guest's UUID and the content, so a copy of a guest is a new instance.
      - Removing this option leaves the CD where it is.
    type: dict
    suboptions:
      user_data:
        description:
          - A text that begins as user data does, for example with C(#cloud-config), or a mapping that is written as C(#cloud-config).
          - Nothing of it is ever shown or logged. It is on the CD, which everybody can read who is root on the host or in the guest.
        type: raw
      meta_data:
        description:
          - Keys besides C(instance-id) and C(local-hostname), which is the name of the guest. They can be given here as well.
        type: dict
      network_config:
        description:
          - Network configuration, as a text or a mapping. Without it the image's own is used.
        type: raw
      keep_seed:
        description:
          - V(until_done) takes the CD out and deletes it when a run finds that cloud-init is done, by asking the guest's agent.
            The same run does if it waits for V(cloud_init), see O(wait.for).
          - The default is V(always). The guest ignores the CD at later boots.
        type: str
        choices: [always, until_done]
      on_change:
        description:
          - What happens when the content is no longer what the guest was seeded with. V(report) warns and changes nothing.
          - V(reseed) makes a new CD with a new instance id. At its next boot cloud-init does all of its work again, with new host keys.
          - The default is V(report).
        type: str
        choices: [report, reseed]
  install:
    description:
      - Install a system on the guest's first disk, once, if nothing was ever written to it. A guest whose disk has something on it is never
        installed again, whatever is declared here.
      - While it is being installed the guest has the installer's media and kernel, and turns itself off instead of rebooting.
        That is the end of the installation. The media are then taken away, and the guest is started if O(state=running).
      - A run that was cut off is continued by the next one.
      - For an installer that somebody sits in front of, an entry in O(cdroms) is enough. The guest boots from it as long as its disk is empty.
    type: dict
    suboptions:
      iso:
        description:
          - The installer's ISO image on the host. It comes after the disks in the boot order.
        type: path
      location:
        description:
          - Directory on the host with the tree of a distribution. Its kernel and initrd are started, and all of it is put on a CD for the guest.
          - The trees of Fedora, EL, Debian, Ubuntu and openSUSE are known.
        type: path
      kernel:
        description:
          - Kernel on the host that is started, instead of a boot loader. Firmware with Secure Boot only starts a signed one.
        type: path
      initrd:
        description:
          - Initrd on the host for O(install.kernel).
        type: path
      cmdline:
        description:
          - Words for the kernel. With O(install.location) they come after those that let the installer find its tree.
        type: str
      kickstart:
        description:
          - Text of a kickstart file. The installer (Anaconda) finds it on a CD with the label C(OEMDRV), without a network and without being told.
          - Nothing of it is ever shown or logged.
        type: str
      timeout:
        description:
          - Seconds that a run waits for the end of the installation. Guests in O(guests) are installed side by side.
          - V(0) does not wait; a later run finds the guest off and completes it.
          - The default is V(3600).
        type: int
  wait:
    description:
      - What to wait for with O(state=running), in every run. The module fails if it does not come, and says how far the guest came.
    type: dict
    suboptions:
      for:
        description:
          - V(agent) is the guest's agent being connected.
          - V(address) is an address, from the agent, from the leases of a libvirt network or from the host's table of neighbours.
          - V(cloud_init) is cloud-init being done without errors, as its agent tells. It includes V(agent).
          - V(port) is O(wait.port) at one of the addresses accepting connections from the host. It includes V(address).
        type: list
        elements: str
        choices: [agent, address, cloud_init, port]
        required: true
      timeout:
        description:
          - Seconds for all of it together. The default is V(300).
        type: int
      port:
        description:
          - TCP port. The default is V(22).
        type: int
  autostart:
    description:
      - Whether the guest starts together with the host. libvirt starts such guests in no particular order.
    type: bool
  adopt:
    description:
      - Whether a guest that this module did not make may be changed or removed. Its disks are not ours even then, and are not deleted.
      - Devices without an id are recognised by path, MAC address or network. The module fails if that is not clear.
    type: bool
  protected:
    description:
      - V(true) refuses O(state=absent) and the removal of disks, until V(false) is declared. The guest remembers it.
    type: bool
  unmanaged_devices:
    description:
      - What happens to a device that this module made and that is no longer in its list.
      - V(keep) is the default. V(prune) takes it out of the definition, and out of the running guest if that lets go of it.
        The file of a disk stays.
      - Devices that somebody else added are left alone in any case, and so are those whose whole list is not given.
    type: str
    choices: [keep, prune]
  delete:
    description:
      - What O(state=absent) deletes besides the definition.
    type: dict
    suboptions:
      disks:
        description:
          - V(owned) deletes the disks that this module made. It fails if another guest uses one of them.
          - The default is V(none).
        type: str
        choices: [none, owned]
      nvram:
        description:
          - Whether the UEFI variables are deleted. The default is to do as O(delete.disks) says.
        type: bool
      tpm:
        description:
          - Whether the state of the TPM is deleted, and what is sealed with it lost. The default is to do as O(delete.disks) says.
        type: bool
      snapshots:
        description:
          - V(metadata) lets libvirt forget the guest's snapshots; V(refuse) does not remove a guest that has some.
          - The default is V(metadata).
        type: str
        choices: [metadata, refuse]
  shutdown:
    description:
      - How a running guest is stopped.
    type: dict
    suboptions:
      timeout:
        description:
          - Seconds that the guest is given. The default is V(120).
        type: int
      then:
        description:
          - What happens if it still runs then. V(destroy) pulls the plug. The default is V(fail).
        type: str
        choices: [fail, destroy]
  guests:
    description:
      - Many guests instead of one, over one connection. Each entry has the options of this module but O(uri), O(guests) and O(defaults).
      - A guest that fails does not keep the others from being done. The module fails at the end, with all RV(results).
    type: list
    elements: dict
  defaults:
    description:
      - Options for all O(guests) that do not have them. An option is taken as a whole; dictionaries and lists are not merged.
    type: dict
seealso:
  - module: phyllome.virt.phyllome_vm_info
  - module: phyllome.virt.vm_migrate
"""

EXAMPLES = r"""
- name: A guest from an image
  phyllome.virt.phyllome_vm:
    name: web
    memory: 2GiB
    vcpus: 2
    disks:
      - id: root
        size: 20GiB
        source:
          path: /var/lib/libvirt/images/debian-12.qcow2
    networks:
      - id: lan
        network: default
    autostart: true

- name: Windows 11, to be installed from its ISO with the virtio drivers
  phyllome.virt.phyllome_vm:
    name: win11
    profile: windows11
    memory: 8GiB
    vcpus: 4
    disks:
      - id: root
        size: 64GiB
    cdroms:
      - id: installer
        path: /var/lib/libvirt/isos/win11.iso
      - id: drivers
        path: /var/lib/libvirt/isos/virtio-win.iso
    networks:
      - id: lan
        network: default

- name: A cloud image with a user of one's own, ready to be logged in to when the task ends
  phyllome.virt.phyllome_vm:
    name: web
    memory: 2GiB
    disks:
      - id: root
        size: 20GiB
        source:
          path: /var/lib/libvirt/images/debian-12.qcow2
    networks:
      - id: lan
        network: default
    cloud_init:
      user_data:
        users:
          - name: admin
            sudo: ALL=(ALL) NOPASSWD:ALL
            ssh_authorized_keys: ["{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"]
        packages: [qemu-guest-agent]
    wait:
      for: [address, port]

- name: Fedora, installed without anybody watching
  phyllome.virt.phyllome_vm:
    name: desktop
    memory: 4GiB
    disks:
      - id: root
        size: 40GiB
    networks:
      - id: lan
        network: default
    install:
      iso: /var/lib/libvirt/isos/fedora-everything.iso
      kickstart: "{{ lookup('ansible.builtin.template', 'desktop.ks') }}"

- name: Many guests at once
  phyllome.virt.phyllome_vm:
    defaults:
      profile: linux
      memory: 1GiB
    guests:
      - name: one
        disks:
          - id: root
            size: 10GiB
      - name: two
        memory: 4GiB
        disks:
          - id: root
            size: 40GiB

- name: Give a guest more memory, and see what waits for its next start
  phyllome.virt.phyllome_vm:
    name: web
    state: present
    memory: 4GiB
  register: result

- name: Remove a guest and its disks
  phyllome.virt.phyllome_vm:
    name: web
    state: absent
    delete:
      disks: owned
"""

RETURN = r"""
guest:
  description:
    - The guest as it is now. In check mode, as it was before.
    - The same as an entry of RV(phyllome.virt.phyllome_vm_info#module:guests). Of a guest that is not there, C(name), C(uuid) and C(state) only.
  returned: with O(name)
  type: dict
  sample: {name: web, uuid: 2f0a7f8e-0b6f-5f43-9d0b-2f1a3c0a9a11, state: running, addresses: [192.168.122.17], hotplug_slots_free: 14}
plan:
  description:
    - What was done, or would be done in check mode.
  returned: with O(name)
  type: list
  elements: dict
  contains:
    path:
      description: What changes, in the words of the options.
      type: str
      sample: disks.root.size
    from:
      description: The value that was there.
      type: raw
    to:
      description: The value that is there afterwards.
      type: raw
    when:
      description: V(live) for at once, V(next_boot) for after the next power cycle, V(refused) for not at all.
      type: str
    why:
      description: A reason, where the change does not explain itself.
      type: str
pending:
  description:
    - What is in the definition and waits for a power cycle of the running guest, whoever put it there.
  returned: with O(name)
  type: list
  elements: dict
  contains:
    path:
      description: What is different.
      type: str
    from:
      description: What the running guest has.
      type: raw
    to:
      description: What it will have.
      type: raw
ready:
  description:
    - What was waited for, and after how many seconds it was there.
  returned: with O(name)
  type: dict
  sample: {agent: 21.5, address: 24.0}
restart_required:
  description:
    - Whether something is pending.
  returned: with O(name)
  type: bool
migratable:
  description:
    - Whether the guest can move to another host at all, and all reasons against it.
  returned: with O(name), if the guest exists
  type: dict
  sample: {possible: true, reasons: []}
problems:
  description:
    - Every reason why the guest cannot be as declared.
  returned: on failure
  type: list
  elements: dict
  contains:
    what:
      description: Option and value.
      type: str
    why:
      description: The rule that stands against it.
      type: str
    remedy:
      description: What to do.
      type: str
results:
  description:
    - For each guest its C(name), whether it C(failed) and with which C(msg), whether it C(changed), and all of the above.
  returned: with O(guests)
  type: list
  elements: dict
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._guest.converge import converge
from ansible_collections.phyllome.virt.plugins.module_utils._guest.spec import ARGUMENTS, SECRET


def main() -> None:
    serve(ARGUMENTS, converge, secret=SECRET)


if __name__ == "__main__":
    main()
