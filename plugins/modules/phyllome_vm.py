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
      - V(qemu:///session) has the guests of the user that the module runs as, who need not be root.
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
      - V(linux-desktop) has SPICE with its channel, sound and 4GiB besides.
      - V(windows11) has Secure Boot with Microsoft's keys, an emulated TPM 2.0, sound, and those Hyper-V enlightenments
        that the host offers and that do not keep the guest from moving. Windows needs the virtio drivers at installation.
      - V(windows10) is the same without Secure Boot and TPM.
      - V(bsd) is V(linux) with a VGA card, which the BSDs can draw on.
      - V(generic) is for whatever boots from UEFI and may lack virtio drivers. Disks are SATA, network cards e1000e.
      - V(legacy) boots from a BIOS.
      - The default is V(linux).
    type: str
    choices: [linux, linux-desktop, windows11, windows10, bsd, generic, legacy]
  memory:
    description:
      - Size with a unit, for example V(2GiB), or a dictionary with what follows.
      - C(size) is that size.
      - C(current) is what the guest has of it right now (balloon). It is changed at once.
      - A guest is only started where the host has so much memory available. With C(current) that much has to be.
      - C(maximum) is what it can ever have together with memory devices, and C(slots) the number of DIMMs
        that can be plugged, V(16) where it is not declared.
      - C(virtio_mem) is memory that is plugged in small pieces, within C(maximum). It has C(size), its limit, and
        C(requested), how much of it the guest is to have, which is changed at once. A C(size) of V(0) takes it away.
      - C(hugepages) is the size of the host's pages that the memory is made of, for example V(2MiB) or V(1GiB), or V(none).
      - C(shared) is whether other processes of the host may see the memory, which virtiofs needs.
      - C(locked) is whether it stays in the host's memory.
      - C(nodes) are the NUMA nodes of the host that it is on, for example V(0-1), and C(nodes_mode) how strictly
        (V(strict), V(preferred), V(interleave) or V(restrictive)).
    type: raw
  vcpus:
    description:
      - Number of virtual CPUs, or a dictionary with what follows.
      - C(current) is that number.
      - C(maximum) is how many can be switched on. Without it C(current) is the maximum as well, unless the guest has one.
      - C(topology) has C(sockets), C(dies), C(cores) and C(threads), which multiply to the maximum. Cores that are not declared
        are computed.
      - C(pins) are the host's CPUs that each virtual CPU may run on, by its number, C(emulator_pins) those for
        QEMU itself, and C(iothread_pins) those for each I/O thread. They are changed at once.
      - C(iothreads) is the number of threads that disks can be given to. They count from 1.
      - C(numa) is a list of NUMA cells for the guest, each with C(cpus), for example V(0-1), and C(memory). Each virtual CPU is
        in one of them, and the guest's memory is their sum.
    type: raw
  cpu:
    version_added: 0.2.0
    description:
      - Virtual CPU, as its mode or as a dictionary with what follows. A new guest gets V(host-model), on hosts without KVM V(maximum).
      - >-
        C(mode) V(host-model) is all of this host's CPU that libvirt can name and move. V(host-passthrough) is the host's CPU itself.
        V(maximum) is all that QEMU can do. V(custom) is what C(model) says. V(fleet) is O(fleet_cpu): what every host of the fleet can do,
        so that the guest can run on each of them. When that changes, the guest gets it at its next power cycle.
      - C(model) is the model for V(custom), one of those that this host can run (C(virsh domcapabilities)). Another model is never taken in
        its place.
      - C(migratable) is whether V(host-passthrough) and V(maximum) leave out what would keep the guest from moving. Libvirt's default is V(true).
      - C(features) are features by name, each with C(require), C(disable), C(force), C(optional) or C(forbid). V(true) and V(false) mean the first
        two. Features that are not named are left alone.
    type: raw
  firmware:
    description:
      - Firmware. It is settled when the guest is made. Declaring another for an existing guest is refused, but see O(firmware.nvram).
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
      nvram:
        version_added: 0.2.0
        description:
          - What happens to UEFI variables that are there. They hold boot entries and the keys of Secure Boot.
          - V(keep) is the default. V(reset) lets an existing guest that is off change O(firmware.secure_boot) and O(firmware.enrolled_keys), and
            gives a new guest fresh variables where an earlier guest has left some. The old file is renamed to end in C(.before-reset).
        type: str
        choices: [keep, reset]
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
          - The default is V(images). Guests of a user have C(~/.local/share/libvirt/images) where there is no such pool.
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
          method:
            version_added: 0.2.0
            description:
              - V(full) copies the image and is the default.
              - V(reflink) shares its blocks until they are written to. It needs one btrfs or XFS file system for both, and the image's format.
              - V(linked) only writes what differs from the image, which has to stay as it is. It needs V(qcow2).
            type: str
            choices: [full, reflink, linked]
      bus:
        description:
          - How the guest sees the disk. The default for a new disk comes from the profile.
          - V(nvme) needs libvirt 11.5 or newer. Each such disk has a controller and a serial number of its own.
        type: str
        choices: [virtio, scsi, sata, usb, nvme]
      encryption:
        version_added: 0.2.0
        description:
          - Encrypts a new disk with LUKS, in its file. Nothing can be read from the file without the passphrase.
          - libvirt of this host keeps the passphrase as a private secret of the disk, to start the guest with it. The secret is removed
            together with the disk.
          - With O(disks[].source.method=linked) only what differs from the image is encrypted.
          - M(phyllome.virt.vm_snapshot) and M(phyllome.virt.vm_export) refuse a guest with such a disk.
          - A disk is not encrypted, decrypted or given another passphrase by declaring it.
        type: dict
        suboptions:
          passphrase:
            description:
              - Passphrase of the disk. Without it in later runs the disk stays as it is, but cannot grow while the guest is off.
              - A copy by O(clone_from) has the passphrase of its source, and it has to be declared for the copy as well.
            type: str
            required: true
      boot:
        description:
          - Place in the boot order, from 1. If no device of a new guest has one, its disks come first, then its CD-ROMs.
        type: int
      block:
        version_added: 0.2.0
        description:
          - Block device of this host, instead of a file. It belongs to somebody else, and is never made, grown or deleted.
        type: path
      cache:
        version_added: 0.2.0
        description:
          - How the host caches. V(none) and V(directsync) go past its page cache.
        type: str
        choices: [none, writeback, writethrough, directsync, unsafe]
      io:
        version_added: 0.2.0
        description:
          - How QEMU reads and writes. V(native) needs O(disks[].cache=none) or V(directsync).
        type: str
        choices: [native, threads, io_uring]
      discard:
        version_added: 0.2.0
        description:
          - Whether what the guest discards is given back. It is V(unmap) for new disks.
        type: str
        choices: [unmap, ignore]
      detect_zeroes:
        version_added: 0.2.0
        description:
          - Whether zeros that are written become holes.
        type: str
        choices: ["off", "on", unmap]
      iothread:
        version_added: 0.2.0
        description:
          - Number of one of O(vcpus)'s C(iothreads) that serves this disk. Only for V(virtio).
        type: int
      queues:
        version_added: 0.2.0
        description:
          - Number of queues. Only for V(virtio).
        type: int
      serial:
        version_added: 0.2.0
        description:
          - Serial number that the guest sees, for C(/dev/disk/by-id).
        type: str
      readonly:
        version_added: 0.2.0
        description:
          - Whether the guest can only read it.
        type: bool
      shareable:
        version_added: 0.2.0
        description:
          - Whether several guests may have it at once. It needs O(disks[].format=raw).
        type: bool
      iotune:
        version_added: 0.2.0
        description:
          - Limits, changed at once. V(0) is no limit. C(total) and its parts exclude each other.
        type: dict
        suboptions:
          total_bytes_sec:
            description:
              - Size for each second, for example V(100MiB).
            type: str
          read_bytes_sec:
            description:
              - Likewise, for reading.
            type: str
          write_bytes_sec:
            description:
              - Likewise, for writing.
            type: str
          total_iops_sec:
            description:
              - Operations for each second.
            type: int
          read_iops_sec:
            description:
              - Likewise, for reading.
            type: int
          write_iops_sec:
            description:
              - Likewise, for writing.
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
      direct:
        version_added: 0.2.0
        description:
          - Network interface of the host that the card is put on (macvtap).
        type: str
      mode:
        version_added: 0.2.0
        description:
          - How cards on one O(networks[].direct) see each other. It is V(bridge) for a new card. The host itself is not reached by any of them.
        type: str
        choices: [bridge, vepa, private, passthrough]
      user:
        version_added: 0.2.0
        description:
          - V(true) for user networking. It needs no rights on the host, and lets nobody in.
        type: bool
      queues:
        version_added: 0.2.0
        description:
          - Number of queues of a V(virtio) card.
        type: int
      vlan:
        version_added: 0.2.0
        description:
          - VLAN tag. V(0) is none. It needs Open vSwitch, or an SR-IOV function in O(networks[].mode=passthrough); else libvirt does not start the guest.
        type: int
      mtu:
        version_added: 0.2.0
        description:
          - Size of the biggest packet, in bytes.
        type: int
      link:
        version_added: 0.2.0
        description:
          - Whether the cable is plugged in. It is changed at once.
        type: str
        choices: [up, down]
      filter:
        version_added: 0.2.0
        description:
          - Network filter (C(virsh nwfilter-list)). An empty string takes it away.
        type: str
      bandwidth:
        version_added: 0.2.0
        description:
          - Limits, changed at once. V(0) is no limit.
        type: dict
        suboptions:
          inbound:
            description:
              - What the guest receives.
            type: dict
            suboptions:
              average:
                description:
                  - KiB for each second.
                type: int
              peak:
                description:
                  - KiB for each second, for a while.
                type: int
              burst:
                description:
                  - KiB that may go at the peak.
                type: int
          outbound:
            description:
              - What the guest sends.
            type: dict
            suboptions:
              average:
                description:
                  - KiB for each second.
                type: int
              peak:
                description:
                  - KiB for each second, for a while.
                type: int
              burst:
                description:
                  - KiB that may go at the peak.
                type: int
      acpi_index:
        version_added: 0.2.0
        description:
          - Number that systemd names the card by (eno1 for V(1)), wherever it is plugged in. New V(virtio) and V(e1000e) cards get the next one that
            is free.
        type: int
  assume_bound:
    version_added: 0.2.0
    description:
      - PCI addresses, or identities, of devices to take for bound to VFIO in check mode, because something before this task would bind them.
        Without check mode it makes no difference.
    type: list
    elements: str
  hostdevs:
    version_added: 0.2.0
    description:
      - Devices of the host. Each has one guest. The module fails if another guest has the device, running or not, or if the host does not have it.
      - A PCI device, a function of an SR-IOV card among them, has to be bound to VFIO with its whole IOMMU group before the guest
        is defined with it or started; M(phyllome.virt.vfio_bind) does that. The module fails, with all reasons, if it is not, or if
        another guest has a device of the group.
    type: list
    elements: dict
    suboptions:
      id:
        description:
          - As in O(disks[].id).
        type: str
        required: true
      pci:
        description:
          - PCI address, for example V(0000:01:00.0), or C(identity.key) of M(phyllome.virt.iommu_facts), which stays the same
            when cards are added and addresses change.
        type: str
      usb:
        description:
          - USB device. By O(hostdevs[].usb.vendor) and O(hostdevs[].usb.product) alone it may be plugged in anywhere.
          - Libvirt knows neither serial numbers nor ports, so with one of them O(hostdevs[].plug) is V(true).
        type: dict
        suboptions:
          vendor:
            description:
              - Vendor, for example V(0x8087).
            type: str
          product:
            description:
              - Product, for example V(0x0a2b).
            type: str
          serial:
            description:
              - Serial number, as the kernel shows it in C(/sys/bus/usb/devices/*/serial).
            type: str
          port:
            description:
              - Where it is plugged in, as the kernel names it, for example V(1-2.3). Alone, it means whatever is plugged in there.
            type: str
      plug:
        description:
          - Whether the USB device belongs to the guest whenever it is plugged in. It is attached when the guest starts, if it is there
            then, and at every plug while the guest runs, and taken back when it is unplugged. The guest starts without it.
          - The role C(phyllome.virt.hypervisor) installs what does this on the host. It works for guests of C(qemu:///system) that run with KVM;
            without KVM, a device that is there already when somebody else starts the guest comes at its next plug.
          - Two guests that claim one device are an error.
        type: bool
      mdev:
        description:
          - UUID of a mediated device, such as a vGPU.
        type: str
      managed:
        description:
          - Whether libvirt takes a PCI device from its driver when the guest starts, and gives it back. It is V(false) for a new one,
            because libvirt does not look whether the host needs the device, and M(phyllome.virt.vfio_bind) does.
          - V(true) is accepted for a device that nothing stands against, see C(hazards) of M(phyllome.virt.iommu_facts).
        type: bool
      startup_policy:
        description:
          - Whether a guest starts without a USB device that is not plugged in. Libvirt's default is V(mandatory).
        type: str
        choices: [mandatory, requisite, optional]
      rom:
        description:
          - Option ROM of a PCI device.
        type: dict
        suboptions:
          bar:
            description:
              - Whether the guest sees it.
            type: bool
          file:
            description:
              - File on the host to show instead.
            type: path
      display:
        description:
          - Whether the guest's display shows what a vGPU draws.
        type: bool
      boot:
        description:
          - As in O(disks[].boot).
        type: int
  filesystems:
    version_added: 0.2.0
    description:
      - Directories of the host that the guest can mount.
      - V(virtiofs) needs shared memory (C(shared) in O(memory)), which is switched on with it, and waits for a power cycle where that was off,
        and in guests of an ordinary user.
    type: list
    elements: dict
    suboptions:
      id:
        description:
          - As in O(disks[].id).
        type: str
        required: true
      driver:
        description:
          - V(virtiofs) is the default. V(9p) is slower, and needs no shared memory.
        type: str
        choices: [virtiofs, 9p]
      source:
        description:
          - Directory on the host. A new one needs it.
        type: path
      tag:
        description:
          - What the guest mounts it by. The default for a new one is its id.
        type: str
      readonly:
        description:
          - Whether the guest can only read it. Only for V(9p).
        type: bool
  graphics:
    description:
      - Display.
    type: dict
    suboptions:
      type:
        description:
          - Protocol, or V(none).
        type: str
        choices: [vnc, spice, none]
      listen:
        version_added: 0.2.0
        description:
          - Address of this host that the display listens on. It is V(127.0.0.1) for a new display. V(none) leaves the way through libvirt only
            (C(virt-viewer --attach)).
        type: str
      port:
        version_added: 0.2.0
        description:
          - TCP port, or V(auto), which is the default for a new display.
        type: str
      password:
        version_added: 0.2.0
        description:
          - Password of the display, up to 8 characters for VNC. It is never shown, and changed at once.
        type: str
      gl:
        version_added: 0.2.0
        description:
          - Who draws 3D for O(video.accel3d). V(local) is for a SPICE viewer on this host, with O(graphics.listen=none). V(headless) lets this host's
            GPU draw for any display.
        type: str
        choices: [none, local, headless]
  video:
    version_added: 0.2.0
    description:
      - Graphics card.
    type: dict
    suboptions:
      model:
        description:
          - Model. The default for a new guest with a display comes from the profile. V(none) is no card.
        type: str
        choices: [virtio, vga, qxl, bochs, cirrus, ramfb, none]
      heads:
        description:
          - Number of screens.
        type: int
      accel3d:
        description:
          - Whether the card draws in 3D (VirGL). It needs O(video.model=virtio) and O(graphics.gl).
        type: bool
  sound:
    version_added: 0.2.0
    description:
      - Sound card.
    type: dict
    suboptions:
      model:
        description:
          - Model. V(none) takes it away.
        type: str
        choices: [ich9, ich6, ac97, usb, none]
  inputs:
    version_added: 0.2.0
    description:
      - Keyboards, mice and tablets. A new guest with a display gets a tablet if the list is not given.
    type: list
    elements: dict
    suboptions:
      id:
        description:
          - As in O(disks[].id).
        type: str
        required: true
      type:
        description:
          - V(evdev) sends events of a device of this host, V(passthrough) is the device itself.
        type: str
        choices: [tablet, mouse, keyboard, evdev, passthrough]
      bus:
        description:
          - How it is connected. V(passthrough) is V(virtio), V(evdev) has none, others are V(usb) by default.
        type: str
        choices: [usb, virtio, ps2]
      path:
        description:
          - Device of the host for V(evdev) and V(passthrough), for example C(/dev/input/by-id/NAME-event-kbd).
        type: path
      grab:
        description:
          - V(all) takes all of the host's devices together with this one. Only for V(evdev), as the next ones.
        type: str
        choices: [all]
      grab_toggle:
        description:
          - Keys that change between host and guest.
        type: str
        choices: [ctrl-ctrl, alt-alt, shift-shift, meta-meta, scrolllock, ctrl-scrolllock]
      repeat:
        description:
          - Whether a key that is held repeats.
        type: bool
  rng:
    version_added: 0.2.0
    description:
      - Source of random numbers. All profiles have one.
    type: dict
    suboptions:
      backend:
        description:
          - V(random) reads O(rng.source), V(builtin) asks QEMU. V(none) takes it away.
        type: str
        choices: [random, builtin, none]
      source:
        description:
          - Device of the host. The default is C(/dev/urandom).
        type: path
      rate:
        description:
          - Limit.
        type: dict
        suboptions:
          bytes:
            description:
              - Bytes in each period.
            type: int
          period:
            description:
              - Milliseconds.
            type: int
  watchdog:
    version_added: 0.2.0
    description:
      - Watchdog. A guest that feeds it and then stops doing so is restarted.
    type: dict
    suboptions:
      model:
        description:
          - Model. V(none) takes it away.
        type: str
        choices: [i6300esb, none]
      action:
        description:
          - What happens to a guest that does not feed it. The default is V(reset).
        type: str
        choices: [reset, shutdown, poweroff, pause, none, dump, inject-nmi]
  vsock:
    version_added: 0.2.0
    description:
      - Sockets between host and guest.
    type: dict
    suboptions:
      cid:
        description:
          - V(auto) for a free context id, V(none) for no vsock, or the number.
        type: str
  channels:
    version_added: 0.2.0
    description:
      - Channels between host and guest. The list is complete, so what is not in it is taken away.
      - V(agent) is for the QEMU guest agent, V(spice) for clipboard and window size on SPICE.
    type: list
    elements: str
  boot:
    version_added: 0.2.0
    description:
      - The firmware's menu. What is booted is said by C(boot) of disks, CD-ROMs, networks and host devices.
    type: dict
    suboptions:
      menu:
        description:
          - Whether it is offered.
        type: bool
      timeout:
        description:
          - Milliseconds that it is offered.
        type: int
  metadata:
    version_added: 0.2.0
    description:
      - Words for people. They are changed at once.
    type: dict
    suboptions:
      title:
        description:
          - One line.
        type: str
      description:
        description:
          - Text.
        type: str
  xml:
    version_added: 0.2.0
    description:
      - Raw XML, merged in where it differs. It is the last resort, and what has an option is refused here. An attribute or a text is set, an element
        without both is made. Nothing is ever taken away.
      - See U(https://libvirt.org/formatdomain.html).
    type: dict
    suboptions:
      guest:
        description:
          - A C(domain) element with what is to be merged into the guest. Elements with a namespace, such as C(qemu:commandline), are replaced as a
            whole.
        type: str
      devices:
        description:
          - By the id of a device, an element like that of the device.
        type: dict
  apply:
    version_added: 0.2.0
    description:
      - When changes reach a running guest.
      - V(live) changes what can change while it runs. The rest waits for a power cycle and is returned in RV(pending). This is the default.
      - V(next_boot) leaves the running guest as it is. A disk grows only when the module runs while the guest is off.
      - V(restart) does as V(live), then shuts the guest down as O(shutdown) says and starts it again, if anything still waits.
    type: str
    choices: [live, next_boot, restart]
  on_unplug_timeout:
    version_added: 0.2.0
    description:
      - Seconds that a running guest is given to let go of a device, or to give or take memory. What it keeps is returned in RV(pending).
      - The default is V(20).
    type: int
  cloud_init:
    version_added: 0.2.0
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
  clone_from:
    version_added: 0.2.0
    description:
      - Make a new guest as a copy of another one, which has to be off. It gets a uuid, MAC addresses, disk serial numbers and a
        generation id of its own. All other options are applied to it afterwards; what is not declared is as with the source.
      - Where the guest exists already, nothing is copied. A run that was cut off is made good by the next one.
      - Devices of the host, and what cloud-init or an installer was told, are not copied.
    type: dict
    suboptions:
      guest:
        description:
          - Name of the source.
        type: str
        required: true
      method:
        description:
          - V(linked) only writes what differs from the source's disks. The source is a template from then on. It is not started,
            reverted, or removed with its disks while such clones are there.
          - V(reflink) shares blocks with the source's disks until they are written to. It needs btrfs or XFS.
          - V(full) copies, without backing files and snapshots.
          - V(auto) shares blocks where the file system can, and copies where it cannot. It is the default.
          - What copies take is counted beforehand, also of several clones of one call. That is nothing where blocks are shared.
        type: str
        choices: [auto, linked, reflink, full]
      nvram:
        description:
          - Whether the clone's UEFI variables are a copy, with boot entries and keys, or V(fresh) from the firmware. The default is V(copy).
        type: str
        choices: [copy, fresh]
      tpm:
        description:
          - Whether the clone's TPM has the state of the source's, with the keys that its disks may be sealed with, or is V(fresh).
            The default is V(copy).
        type: str
        choices: [copy, fresh]
  install:
    version_added: 0.2.0
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
    version_added: 0.2.0
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
      - Whether the guest starts together with the host. With V(true) libvirt starts it, in no particular order.
      - A dictionary gives it a place in an order instead. C(order) is a number, and lower ones start first. C(delay) is how many seconds
        are waited afterwards before guests of a higher number start, V(0) by default. Within a number the names decide.
      - An order needs the unit that the role P(phyllome.virt.hypervisor#role) installs, and a guest of the system.
      - A guest that is moved starts together with its new host, in the same place of the order there.
    type: raw
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
        The file of a disk stays, on this host also when the guest moves to another one.
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
        version_added: 0.2.0
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
      - Disk space, memory and huge pages that they need are added up, in check mode too. A guest for which too little is left
        after those before it is refused.
    type: list
    elements: dict
  fleet_cpu:
    version_added: 0.2.0
    description:
      - What V(fleet) in O(cpu) stands for, as M(phyllome.virt.host_facts) returns it for the CPUs of all hosts. The playbook
        C(phyllome.virt.site) gives it by itself.
    type: dict
    suboptions:
      model:
        description: A model that every host has.
        type: str
        required: true
      features:
        description: Every feature that the guest has, or that the model has and the guest has not. A feature that is not named is off.
        type: dict
        required: true
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

- name: A desktop with a graphics card, a Bluetooth dongle and a directory of the host
  phyllome.virt.phyllome_vm:
    name: desk
    profile: linux-desktop
    memory:
      size: 8GiB
      hugepages: 2MiB
    vcpus:
      current: 4
      maximum: 8
      topology:
        sockets: 1
        threads: 2
      pins: {0: "2", 1: "3", 2: "4", 3: "5"}
    cpu:
      mode: host-passthrough
    disks:
      - id: root
        source:
          path: /var/lib/libvirt/images/debian-12.qcow2
          method: linked
        cache: none
        io: native
    networks:
      - id: lan
        bridge: br0
    hostdevs:
      - id: gpu
        pci: "0000:01:00.0"
      - id: bluetooth
        usb:
          vendor: "0x8087"
          product: "0x0a2b"
        plug: true
    filesystems:
      - id: projects
        source: /srv/projects

- name: A database, and ten seconds after it what needs it, whenever the host starts
  phyllome.virt.phyllome_vm:
    guests:
      - name: database
        autostart:
          order: 1
          delay: 10
      - name: web
        autostart:
          order: 2

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
