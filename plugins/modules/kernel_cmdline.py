#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_cmdline
short_description: Manage arguments of the kernel
version_added: 0.2.0
description:
  - Brings arguments of the kernel's command line to what is declared, for every entry that boots by itself, one argument
    at a time. Arguments that are not named stay as they are. Nothing is written when all is as declared.
  - The boot loader is found from what started the machine, not from the name of the distribution.
  - With GRUB as Debian has it, C(/etc/default/grub.d/zz-phyllome.cfg) is written and C(update-grub) run; where
    C(grub-mkconfig) does not read that directory, a marked block at the end of C(/etc/default/grub) does the same.
  - With GRUB or systemd-boot and entries of the Boot Loader Specification (C(/boot/loader/entries)), their C(options) are
    changed, and C(/etc/kernel/cmdline) where there is one, which the entries of later kernels are made from.
  - With unified kernel images, C(/etc/kernel/cmdline) is changed and C(kernel-install) or C(mkinitcpio) makes the images anew.
  - With ostree, C(rpm-ostree kargs) is used.
  - What was changed is recorded in C(/var/lib/phyllome/boot/cmdline.json) before it is changed, so that it can be undone
    exactly, also after a power cut.
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
  args:
    description:
      - Arguments that are to be there, name and value. The value null stands for an argument without a value, such as V(quiet);
        a list for one that is given several times, such as C(console), in this order.
      - Put V(on) and V(off) in quotes, which YAML otherwise reads as true and false.
      - An argument that is there with another value is replaced. The kernel takes C(-) and C(_) in names for the same.
      - Values are letters, digits and any of C(_.,:=/@+%~^-); boot loaders and their shells agree on no other character.
    type: dict
  absent:
    description: Names of arguments that are not to be there, whatever their value.
    type: list
    elements: str
  state:
    description:
      - V(present) brings O(args) and O(absent) about.
      - V(original) takes back what this module changed, all of it, or that of the names in O(args) and O(absent).
        An argument that somebody else has changed since is left alone, with a warning.
    type: str
    choices: [present, original]
    default: present
"""

EXAMPLES = r"""
- name: Switch the IOMMU on, and let devices of the host bypass it
  phyllome.virt.kernel_cmdline:
    args:
      intel_iommu: "on"
      iommu: pt
    absent: [quiet, splash]
  register: cmdline

- name: Reboot where that is needed
  ansible.builtin.reboot:
  when: cmdline.reboot_required

- name: Have the kernel's arguments as they were before this collection
  phyllome.virt.kernel_cmdline:
    state: original
"""

RETURN = r"""
loader:
  description: What starts this machine.
  returned: success
  type: str
  sample: grub
  choices: [grub, grub-bls, systemd-boot, uki, ostree]
running:
  description: The arguments that the running kernel was started with; null where they cannot be read.
  returned: success
  type: list
  elements: str
  sample: [BOOT_IMAGE=/vmlinuz, root=/dev/sda1, ro, quiet]
configured:
  description:
    - By place, the arguments of every entry that may boot next, those that people pick to repair something left out, and
      of the file that later entries are made from. In check mode as they are before the run.
  returned: success
  type: dict
  sample: {/boot/grub/grub.cfg:1: [root=/dev/sda1, ro, intel_iommu=on]}
reboot_required:
  description:
    - Whether the arguments that are named, or were changed by this module, differ between the running kernel and the next
      boot. After an undo of everything, whether any differ but those that a boot loader adds. Null where that is unknown.
  returned: success
  type: bool
plan:
  description: What is changed, in order; each entry has C(path), C(from), C(to), C(when) and sometimes C(why).
  returned: success
  type: list
  elements: dict
  sample: [{path: args.intel_iommu, from: null, to: intel_iommu=on, when: next_boot}]
"""

from ansible_collections.phyllome.virt.plugins.module_utils._boot.apply import body
from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve


def main() -> None:
    serve(
        {
            "args": {"type": "dict"},
            "absent": {"type": "list", "elements": "str"},
            "state": {"type": "str", "choices": ["present", "original"], "default": "present"},
        },
        body,
    )


if __name__ == "__main__":
    main()
