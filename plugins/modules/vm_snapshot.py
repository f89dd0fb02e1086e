#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot
short_description: Snapshots of a guest, with its memory, UEFI variables and TPM
version_added: 0.2.0
description:
  - Takes snapshots of a guest, goes back to them, removes them, and keeps only as many as are wanted.
  - A snapshot is whole. It has the disks, the UEFI variables, the state of an emulated TPM, the definition, and the memory
    if the guest runs.
  - A snapshot that a run which was cut off has left unfinished is finished, or removed, by the next run.
notes:
  - A running guest is saved and goes on where it was, as with C(virsh managedsave), so it stands still for as long as
    its memory takes to be written and read; under one second for a small guest. The same happens when a snapshot of
    a running guest is removed, because the images can only be worked on while no guest uses them.
  - libvirt gives the guest a new generation id then, and after every revert, if its definition has one (C(genid)).
    Guests that know it notice that their time has jumped.
  - libvirt before 10.10 refuses snapshots inside a guest with UEFI, and none of its snapshots has the TPM of a guest
    that is off. This module therefore does the work itself, and then tells libvirt of the snapshot, so that
    C(virsh snapshot-list) and Cockpit show it. C(virsh snapshot-revert) refuses one with memory, and of a guest that was
    off brings back the disks only. Use this module for snapshots that it has made.
  - A guest that has snapshots cannot be moved with M(phyllome.virt.vm_migrate), which says so. Remove them first.
  - Disks have to be qcow2 files. What is not on a disk is kept in C(/var/lib/libvirt/phyllome/snapshots), for guests of
    C(qemu:///session) in C(~/.config/libvirt/phyllome/snapshots), readable by its owner only.
author:
  - The Phyllome OS community (@phyllome)
extends_documentation_fragment:
  - phyllome.virt._attributes
  - phyllome.virt._attributes.actiongroup_virt
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - With O(state=reverted) a guest is reverted again if it has run, or was written to, since it was reverted.
requirements:
  - libvirt-python, lxml and qemu-img on the managed host
options:
  name:
    description: Name of the guest.
    type: str
    required: true
  snapshot:
    description:
      - Name of the snapshot. It can be left out where O(retention) is all that is wanted.
    type: str
  state:
    description:
      - V(present), there is a snapshot of that name. If there is one already, it stays as it is.
      - V(reverted), the guest goes back to it. Whatever it has done since then is lost. It runs afterwards if it ran when the
        snapshot was taken, and is off otherwise. Its definition goes back too; it has to have the same disks as then.
      - V(absent), there is none. Snapshots that this module did not make are not removed.
    type: str
    choices: [present, reverted, absent]
    default: present
  description:
    description: A text for people.
    type: str
  retention:
    description:
      - Which of the guest's snapshots stay, once the one that is declared has been taken. The others are removed.
      - Only snapshots that this module has made are counted and removed, and never the one that is declared.
    type: dict
    suboptions:
      keep:
        description: So many, the newest.
        type: int
      max_age_days:
        description: Those that are not older.
        type: int
      match:
        description: Which names it is about; C(*) and C(?) stand for any text and any character.
        type: str
        default: '*'
  uri:
    description: Connection URI of libvirt. It has to be one of this host.
    type: str
    default: qemu:///system
seealso:
  - module: phyllome.virt.phyllome_vm
  - module: phyllome.virt.vm_migrate
"""

EXAMPLES = r"""
- name: Take a snapshot before the upgrade
  phyllome.virt.vm_snapshot:
    name: web
    snapshot: before-upgrade
    description: Debian 12, all updates

- name: Go back to it
  phyllome.virt.vm_snapshot:
    name: web
    snapshot: before-upgrade
    state: reverted

- name: Take one every night, and keep a week of them
  phyllome.virt.vm_snapshot:
    name: web
    snapshot: "nightly-{{ now(fmt='%Y-%m-%d') }}"
    retention:
      keep: 7
      match: nightly-*
"""

RETURN = r"""
guest:
  description: The guest, with C(name), C(uuid) and C(state).
  returned: success
  type: dict
  sample: {name: web, uuid: 6c8f2c3e-8d83-5f1b-9c1b-2f2f4f0b5a11, state: running}
snapshots:
  description: The guest's snapshots after the run, in check mode before it; ours with the oldest first, then those of others.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      returned: success
    owned:
      description: Whether this module has made it.
      type: bool
      returned: success
    whole:
      description: Whether nothing of it is gone; null where it is not ours.
      type: bool
      returned: success
    description:
      description: The text for people; null where it is not ours.
      type: str
      returned: success
    created:
      description: When, in seconds since 1970; null where it is not ours.
      type: int
      returned: success
    state:
      description: What the guest did then, V(running), V(paused) or V(stopped); null where it is not ours.
      type: str
      returned: success
    memory:
      description: Bytes of saved memory; null where there is none.
      type: int
      returned: success
plan:
  description: What is changed, in order; each entry has C(path), C(from), C(to), C(when) and sometimes C(why).
  returned: success
  type: list
  elements: dict
  sample: [{path: snapshots.nightly-2026-11-22, from: null, to: "disks root, memory", when: live}]
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._snapshot.apply import body
from ansible_collections.phyllome.virt.plugins.module_utils._snapshot.spec import ARGUMENTS


def main() -> None:
    serve(ARGUMENTS, body)


if __name__ == "__main__":
    main()
