# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each seeded error is caught, at its line, and the sound collection passes."""

from __future__ import annotations

import pathlib

import names
import pytest

MODULE = '''
DOCUMENTATION = r"""
module: phyllome_vm
options:
  name: {type: str, aliases: [guest]}
  state: {type: str, choices: [running, stopped]}
  memory: {type: str}
  disks:
    type: list
    elements: dict
    suboptions:
      id: {type: str}
      source:
        type: dict
        suboptions:
          path: {type: path}
  metadata: {type: dict}
  guests: {type: list, elements: dict}
  defaults: {type: dict}
extends_documentation_fragment: [phyllome.virt._libvirt]
"""

EXAMPLES = r"""
- name: A guest
  phyllome.virt.phyllome_vm:
    name: web
    uri: qemu:///system
    disks: [{id: root, source: {path: /x}}]
  register: made

- name: See
  ansible.builtin.debug:
    msg: "{{ made.guest.addresses[0].ip }}"
"""

RETURN = r"""
guest:
  type: dict
  contains:
    addresses:
      type: list
      elements: dict
      contains:
        ip: {type: str}
pending: {type: list, elements: str}
"""
'''

FACTS = '''
DOCUMENTATION = r"""
module: iommu_facts
"""
RETURN = r"""
ansible_facts:
  type: dict
  contains:
    phyllome_iommu:
      type: dict
      contains:
        devices:
          type: list
          elements: dict
          contains:
            address: {type: str}
"""
'''

FRAGMENT = '''
class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  uri: {type: str}
"""
'''

SPECS = """
argument_specs:
  main:
    options:
      guests_wanted:
        type: dict
        options:
          depth: {type: int}
      guests_wait: {type: bool, default: true}
  restore:
    options: {}
"""

README = """# A collection

The role `guests` reads `guests_wait`; phyllome.virt.phyllome_vm does the work.

1. An inventory:

   ```yaml
   phyllome_hosts:
     hosts:
       alpha: {guests_wait: false}
     vars:
       phyllome_guests:
         - name: web
           host: alpha
           disks: [{id: root}]
   ```
"""

PLAYBOOK = """---
- name: Everything
  hosts: phyllome_hosts
  module_defaults:
    group/phyllome.virt.virt:
      uri: qemu:///session
  roles:
    - role: phyllome.virt.guests
      vars:
        guests_wanted: {depth: 1}
"""

TASKS = """---
- name: Make guests
  phyllome.virt.phyllome_vm:
    guests: "{{ phyllome_guests }}"
  register: guests_made

- name: Look
  phyllome.virt.iommu_facts:

- name: Fail
  ansible.builtin.fail:
    msg: "{{ item.address }} {{ guests_made.pending | first }}"
  loop: "{{ ansible_facts.phyllome_iommu.devices }}"
  when: guests_made.guest.addresses | map(attribute='ip') | list and guests_wait
"""


@pytest.fixture
def collection(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small collection in which everything is right."""
    for name, text in {
        "README.md": README,
        "meta/runtime.yml": "action_groups: {virt: [phyllome_vm]}\n",
        "plugins/modules/phyllome_vm.py": MODULE,
        "plugins/modules/iommu_facts.py": FACTS,
        "plugins/doc_fragments/_libvirt.py": FRAGMENT,
        "roles/guests/meta/argument_specs.yml": SPECS,
        "roles/guests/defaults/main.yml": "---\nguests_wait: true\n",
        "roles/guests/tasks/main.yml": TASKS,
        "playbooks/site.yml": PLAYBOOK,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_sound_collection_passes(collection: pathlib.Path) -> None:
    assert names.check(collection) == []


SEEDED = [
    # file, what is replaced, by what, the message
    ("plugins/modules/phyllome_vm.py", "    name: web", "    nmae: web", "phyllome_vm: option nmae does not exist; name?"),
    ("plugins/modules/phyllome_vm.py", "{path: /x}", "{pth: /x}", "disks: source: option pth does not exist; path?"),
    ("plugins/modules/phyllome_vm.py", "[0].ip", "[0].ipv4", "return value ipv4 does not exist"),
    ("plugins/modules/phyllome_vm.py", "made.guest", "made['gest']", "return value gest does not exist; guest?"),
    ("plugins/modules/phyllome_vm.py", "    name: web", "    state: runing", "runing is not one of running, stopped"),
    ("README.md", "virt.phyllome_vm", "virt.phyllome_mv", "name phyllome.virt.phyllome_mv does not exist"),
    ("README.md", "`guests_wait`", "`guests_await`", "variable guests_await does not exist; guests_wait?"),
    ("README.md", "{guests_wait:", "{guests_weight:", "variable guests_weight does not exist"),
    ("README.md", "host: alpha", "hots: alpha", "phyllome_guests: option hots does not exist; host?"),
    ("README.md", "{id: root}", "{di: root}", "phyllome_guests: disks: option di does not exist"),
    ("README.md", "phyllome_guests:", "phyllome_gests:", "variable phyllome_gests does not exist"),
    ("README.md", "hosts:\n", "hosts: [\n", "not YAML"),
    ("playbooks/site.yml", "virt.guests", "virt.gests", "name phyllome.virt.gests does not exist; phyllome.virt.guests?"),
    ("playbooks/site.yml", "virt.guests", "virt.phyllome_vm", "phyllome.virt.phyllome_vm is no role"),
    ("playbooks/site.yml", "depth: 1", "debth: 1", "guests_wanted: option debth does not exist; depth?"),
    ("playbooks/site.yml", "uri:", "url:", "option url does not exist"),
    ("roles/guests/tasks/main.yml", "guests: \"", "gests: \"", "phyllome_vm: option gests does not exist; guests?"),
    ("roles/guests/tasks/main.yml", "{{ phyllome_guests", "{{ phyllome_guest", "variable phyllome_guest does not exist"),
    ("roles/guests/tasks/main.yml", ".pending", ".pendign", "return value pendign does not exist; pending?"),
    ("roles/guests/tasks/main.yml", "item.address", "item.adress", "return value adress does not exist; address?"),
    ("roles/guests/tasks/main.yml", "'ip'", "'mac'", "return value mac does not exist"),
    ("roles/guests/tasks/main.yml", "_iommu.devices", "_iommu.device", "return value device does not exist; devices?"),
    ("roles/guests/tasks/main.yml", "phyllome_iommu", "phyllome_immu", "fact phyllome_immu does not exist"),
    ("roles/guests/tasks/main.yml", "ansible_facts.phy", "phy", "phyllome_iommu is a fact"),
    ("roles/guests/tasks/main.yml", "and guests_wait", "and guests_await", "variable guests_await does not exist"),
    ("roles/guests/tasks/main.yml", "phyllome.virt.iommu_facts", "iommu_facts", "iommu_facts is written without"),
    ("roles/guests/tasks/main.yml", "phyllome.virt.iommu_facts", "phyllome.virt.guests", "phyllome.virt.guests is no module"),
    ("roles/guests/defaults/main.yml", "guests_wait", "guests_wiat", "argument guests_wiat does not exist; guests_wait?"),
    ("roles/guests/defaults/main.yml", "true", "false", "guests_wait is False here and True in the argument"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "right", "false", "message"), SEEDED)
def test_a_seeded_error_is_caught(collection: pathlib.Path, name: str, right: str, false: str, message: str) -> None:
    path = collection / name
    sound = path.read_text()
    assert right in sound
    line = sound[: sound.index(right)].count("\n") + 1
    path.write_text(sound.replace(right, false, 1))
    found = [wrong for wrong in names.check(collection) if message in wrong]
    assert found, names.check(collection)
    if message != "not YAML":
        assert found[0].startswith(f"{name}:{line}:")


TASK_FILES = [
    ("a loop puts results in a list", """
- name: All
  phyllome.virt.phyllome_vm: {name: "{{ item }}"}
  loop: [a, b]
  register: all
- name: Say
  ansible.builtin.debug: {msg: "{{ all.results[0].guest.X }}"}
""", "return value X"),
    ("entry points of roles", """
- name: Again
  ansible.builtin.include_role: {name: phyllome.virt.guests, tasks_from: restor}
""", "entry point restor does not exist; restore?"),
    ("guests in a list", """
- name: All
  phyllome.virt.phyllome_vm:
    guests: [{name: web, memry: 1}]
""", "phyllome_vm: guests: option memry does not exist; memory?"),
    ("facts of another host", """
- name: Say
  ansible.builtin.debug: {msg: "{{ hostvars['beta'].ansible_facts.phyllome_iommu.X }}"}
""", "return value X"),
    ("what a filter selects", """
- name: Say
  ansible.builtin.debug:
    msg: "{{ ansible_facts.phyllome_iommu.devices | selectattr('adress', 'eq', 'x') | map(attribute='address') }}"
""", "return value adress"),
    ("assertions", """
- name: One
  phyllome.virt.phyllome_vm: {name: web}
  register: one
- name: Sure
  ansible.builtin.assert: {that: [one.guest.X is defined]}
""", "return value X"),
    ("blocks", """
- name: Both
  block:
    - name: One
      phyllome.virt.phyllome_vm: {nme: web}
""", "option nme"),
]  # fmt: skip


@pytest.mark.parametrize(("tasks", "message"), [pytest.param(*rest, id=name) for name, *rest in TASK_FILES])
def test_tasks_are_understood(collection: pathlib.Path, tasks: str, message: str) -> None:
    (collection / "roles/guests/tasks/more.yml").write_text(tasks)
    assert any(message in wrong for wrong in names.check(collection)), names.check(collection)


def test_what_cannot_be_known_is_left_alone(collection: pathlib.Path) -> None:
    (collection / "roles/guests/tasks/more.yml").write_text(
        """
- name: One
  phyllome.virt.phyllome_vm: "{{ anything }}"
  register: same
- name: Other
  ansible.builtin.command: {cmd: "true"}
  register: same
- name: Say
  ansible.builtin.debug: {msg: "{{ same.stdout }} {{ same.guest.metadata.any.thing }} {{ broken"}
- name: Set
  ansible.builtin.set_fact: {guests_here: "{{ same.guest[key] | dict2items }}"}
- name: Methods and loops of templates
  ansible.builtin.debug:
    msg: "{% for host in phyllome_guests %}{{ host.x }}{% endfor %}{{ guests_here.items() }} {{ hostvars[h].guests_here }}"
"""
    )
    assert names.check(collection) == []
