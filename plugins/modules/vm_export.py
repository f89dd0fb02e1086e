#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_export
short_description: A guest as one folder, out of one host and into another
version_added: 0.2.0
description:
  - Makes a folder that has all of a guest, its definition, disks, UEFI variables and TPM state, with a manifest and the SHA-256
    of every file; and makes a guest of such a folder, on the same host or on another one.
  - The folder is whole or it is not there. It is made beside its place under another name, and takes its place at the end.
  - An import reads every byte of the folder and checks it before anything on the host is touched.
notes:
  - Disks are exported flat, without backing files and snapshots, and sparse. Their format stays.
  - The folder belongs to whoever runs the module, and nobody else may look into it; the definition has the guest's passwords,
    the TPM state its keys.
  - A guest that runs is not exported, because its parts would be of different moments. Take a snapshot of it with
    M(phyllome.virt.vm_snapshot) and export that with O(snapshot); the guest goes on running.
  - Files that an import which was cut off has left are recognised by their content, and used.
  - ISO images in CD-ROM drives are not part of a guest. After an import to another host they have to be there, or be declared anew.
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
    support: full
requirements:
  - libvirt-python, lxml and qemu-img on the managed host
options:
  name:
    description:
      - Name of the guest. Needed with O(state=exported).
      - With O(state=imported) the name that it gets; the one in the folder if this is not given.
    type: str
  path:
    description: The folder, on the managed host. The one above it has to exist.
    type: path
    required: true
  state:
    description:
      - V(exported), the folder has the guest as it is now. If the guest has changed since it was exported, it is exported again.
      - V(imported), this host has the guest in the folder. It is off after that; M(phyllome.virt.phyllome_vm) starts it. A guest
        with its name, its uuid and its disks where they belong is taken for it, whatever has happened to it since.
    type: str
    choices: [exported, imported]
    required: true
  snapshot:
    description: Export the guest as it was in this snapshot of M(phyllome.virt.vm_snapshot), without its memory.
    type: str
  identity:
    description:
      - V(keep) imports it as the same guest. The one that was exported must not run any more.
      - V(new) imports it as another guest, with a uuid, MAC addresses, serial numbers and a generation id of its own.
        UEFI variables and TPM state are those of the export.
      - V(keep) where this is not given.
    type: str
    choices: [keep, new]
  pool:
    description: Pool that the disks are imported to, V(images) if this is not given. They are named after the guest.
    type: str
  uri:
    description: Connection URI of libvirt. It has to be one of this host.
    type: str
    default: qemu:///system
seealso:
  - module: phyllome.virt.vm_snapshot
  - module: phyllome.virt.phyllome_vm
"""

EXAMPLES = r"""
- name: Put a guest that is off on a disk that goes to the new machine
  phyllome.virt.vm_export:
    name: web
    path: /mnt/usb/web
    state: exported

- name: Have it there
  phyllome.virt.vm_export:
    path: /mnt/usb/web
    state: imported

- name: Or carry the folder over the network, run for the new machine
  ansible.posix.synchronize:
    src: /srv/out/web
    dest: /srv/out/
  delegate_to: alpha

- name: Have a second one like it
  phyllome.virt.vm_export:
    name: web-staging
    path: /mnt/usb/web
    state: imported
    identity: new

- name: Export a guest that runs, as it was last night
  phyllome.virt.vm_export:
    name: web
    path: /srv/backup/web
    state: exported
    snapshot: nightly-2026-11-22
"""

RETURN = r"""
guest:
  description: The guest, with C(name) and C(uuid).
  returned: success
  type: dict
  sample: {name: web, uuid: 6c8f2c3e-8d83-5f1b-9c1b-2f2f4f0b5a11}
path:
  description: The folder.
  returned: success
  type: str
pieces:
  description: Files of the export; each entry has C(file), C(role), C(sha256), C(size), and C(target), C(format) and C(capacity) of a disk.
  returned: success
  type: list
  elements: dict
plan:
  description: What is changed, in order; each entry has C(path), C(from), C(to), C(when) and sometimes C(why).
  returned: success
  type: list
  elements: dict
  sample: [{path: disks.vda, from: null, to: "qcow2, 20GiB", when: live}]
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._export.apply import body
from ansible_collections.phyllome.virt.plugins.module_utils._export.spec import ARGUMENTS


def main() -> None:
    serve(ARGUMENTS, body)


if __name__ == "__main__":
    main()
