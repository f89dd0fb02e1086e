#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_capture
short_description: Pack what the facts of a machine are computed from into one small archive
version_added: 0.2.0
description:
  - Gathers the facts of M(phyllome.virt.iommu_facts), and packs the files and links that were looked at on the way. With
    the archive everything that this collection decides about the machine can be reproduced elsewhere, without the machine.
  - Serial numbers, MAC addresses and the host's name are replaced, the same by the same everywhere. Of environments, logs,
    command lines, boot configurations and mounts only what the facts need is kept. Names of disks and volumes, mount
    points, IP addresses, and names of processes that have devices open stay as they are.
  - Before it is written, the archive is tried out. It gives the facts of the machine, with these replacements.
author:
  - The Phyllome OS community (@phyllome)
options:
  dest:
    description:
      - File to write, a tar file packed with gzip. Its directory must be there.
    type: path
    required: true
  sysfs_root:
    description:
      - Directory that holds C(sys), C(proc), C(dev), C(etc), C(boot), C(run) and C(usr) of the machine.
    type: path
    default: /
notes:
  - Run it as root. As another user it sees less, and so does whoever replays the archive.
  - To look at a captured machine, unpack the archive into an empty directory and give that to O(phyllome.virt.iommu_facts#module:sysfs_root).
  - Without Ansible, unpack the collection's tarball on the machine and run C(python3 scripts/capture.py FILE).
extends_documentation_fragment:
  - phyllome.virt._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - The same machine gives the same archive, but processes come and go on a machine that runs.
seealso:
  - module: phyllome.virt.iommu_facts
"""

EXAMPLES = r"""
- name: Capture this machine
  phyllome.virt.machine_capture:
    dest: /root/office-pc.tar.gz
  become: true

# mkdir office-pc && tar xzf office-pc.tar.gz -C office-pc
- name: Look at a machine that somebody sent
  phyllome.virt.iommu_facts:
    sysfs_root: /srv/captures/office-pc
  delegate_to: localhost
"""

RETURN = r"""
dest:
  description: The file.
  returned: success
  type: str
  sample: /root/office-pc.tar.gz
bytes:
  description: Its size.
  returned: success
  type: int
  sample: 7195
files:
  description: How many files of the machine are in it.
  returned: success
  type: int
  sample: 243
replays:
  description: Whether the facts computed from it are those of the machine. It is an error of this collection if not.
  returned: success
  type: bool
  sample: true
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.capture import save


def main() -> None:
    serve(
        {"dest": {"type": "path", "required": True}, "sysfs_root": {"type": "path", "default": "/"}},
        lambda params, check_mode: save(params["sysfs_root"], params["dest"], check_mode),
    )


if __name__ == "__main__":
    main()
