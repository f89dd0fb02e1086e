#!/usr/bin/python
# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_migrate
short_description: Move a guest to another host without losing it
description:
  - Moves a guest from the host it runs on to another one, with its disks, its UEFI variables, its TPM, its metadata, and whether and in
    which order it starts with its host.
    No shared storage is needed, but it can be used (O(storage)).
  - The guest is copied peer-to-peer over TLS or ssh, arrives paused, and is resumed only after the source is known to have given it up.
    So there is never a moment at which it runs on both hosts.
  - What to do is decided from what both hosts say, each time anew. Whatever was killed in the middle, running the module again finishes the move.
  - Whatever happens, the exit status is what both hosts say afterwards, not what a call returned.
  - The move belongs to a process of its own on this host, in the systemd unit C(phyllome-mig-OP_ID.scope). Whatever happens to Ansible or to the
    controller does not disturb it, and running the module again in the meantime waits for it and returns its result.
version_added: 0.1.0
author:
  - Contributors to the phyllome.virt project (@phyllome)
extends_documentation_fragment:
  - phyllome.virt._attributes
  - phyllome.virt._attributes.actiongroup_virt
attributes:
  check_mode:
    support: full
    details:
      - Reads both hosts, returns the plan and fails with every blocker at once. Nothing is written.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description: Name of the guest. With O(uuid) both have to belong to the same guest.
    type: str
  uuid:
    description: UUID of the guest.
    type: str
  source:
    description:
      - Inventory name of this host, for messages and the journal. The default is its hostname.
      - Give the same one each time.
    type: str
  destination:
    description:
      - Inventory name of the destination, for messages and the journal. The default is the host part of O(destination_uri).
      - Give the same one each time.
    type: str
  destination_uri:
    description:
      - Libvirt URI of the destination as this host sees it.
      - C(qemu+tls://HOST/system) needs certificates on both hosts, and carries memory and disks from QEMU to QEMU, over TLS too.
      - C(qemu+ssh://root@HOST/system) needs nothing but port 22. Libvirt's commands, memory and disks go through ssh, with the key and the known
        hosts of root on this host; nobody is asked anything. It may have C(keyfile), C(mode) and C(socket) as libvirt knows them.
      - Nothing else is accepted.
    type: str
    required: true
  migrate_address:
    description:
      - IP address of the destination for memory and disk data. The default is the host part of O(destination_uri), resolved on this host.
      - With ssh there is none.
    type: str
  state:
    description:
      - V(migrated), the guest is at the destination.
      - V(rolled_back), a move that is not finished is taken back; so is one that is finished, as long as the source has its retained copy.
        The guest has to be off at the destination then, because what was written there since the move stays behind, under names that end in
        C(.phyllome-retained-) and the C(op_id). To keep it, move the guest back instead. No other guest there may stand on its disks.
      - V(committed), the move is finished for good, and the source's retained copy is deleted.
      - V(cleaned), nothing is left on the source of all moves of this guest, and nothing at this destination of those that did not come about.
      - V(committed) and V(cleaned) also do so where neither host has the guest any more, because it has moved on or was removed. What another guest
        of the source has by now is not deleted. Where several guests had the name, O(uuid) says which is meant.
      - Run each of them where the move was run, with the same O(source) and O(destination).
    type: str
    choices: [migrated, rolled_back, committed, cleaned]
    default: migrated
  mode:
    description:
      - V(live) moves a guest that runs or is paused.
      - V(warm) copies the disks of a guest while it runs, over and over what it has written meanwhile, until that is little
        (at most 64 MiB, or not less than before, or ten rounds). Then the guest is shut down, what changed since is copied, and it
        starts at the destination. It is off for as long as that takes, not for the whole copying, and neither CPU nor QEMU
        of both hosts have to agree.
      - V(cold) moves a guest that is off, and shuts one that runs down first. Its files are copied as they are, with chains of
        backing files, snapshots, dirty bitmaps and encryption. It takes no memory on either host.
      - V(auto) takes V(live) for a guest that runs and V(cold) for one that is off, unless O(allow) says more.
      - A guest that is off moves V(cold), also when V(warm) was asked for.
    type: str
    choices: [auto, live, warm, cold]
    default: auto
  allow:
    version_added: 0.2.0
    description:
      - Modes that V(auto) may take. Of these it takes the first of V(live), V(warm) and V(cold) that nothing stands against, and says
        in RV(mode_reason) why it takes no better one. So with V([live, warm]) a guest whose CPU the destination cannot offer is shut down
        for a short time instead of being refused.
      - Without it, a guest that runs is not shut down unless O(hostdevs) or O(power_after=off) ask for it.
    type: list
    elements: str
    choices: [live, warm, cold]
  convergence:
    description: What to do about a guest that writes faster than the network carries.
    type: dict
    suboptions:
      downtime_ms:
        description: How many milliseconds the guest may stand still at the end. The default is QEMU's, V(300).
        type: int
      max_downtime_ms:
        version_added: 0.2.0
        description:
          - How many milliseconds it may stand still when it makes no progress. The limit rises to this in four steps, one for each
            round through its memory that leaves no less to be sent than a former one.
          - The default is V(2000), or O(convergence.downtime_ms) when that is more.
        type: int
      auto_converge:
        description: Slow the guest's CPUs down, more and more, while it makes no progress.
        type: bool
        default: false
      on_stall:
        version_added: 0.2.0
        description:
          - What is done after six rounds without progress (24 with O(convergence.auto_converge)), when the above has not helped.
          - V(suspend) stops the guest's CPUs, sends the rest, and lets it go on at the destination.
          - V(abort) ends the move. The guest goes on where it was, and the module fails.
          - V(post_copy) has the guest go on at the destination at once, which fetches from the source what it lacks of its memory.
            It arrives however much it writes, and what it waits for takes as long as the network does. But until all is fetched, each
            host has a part of its memory. If the network fails meanwhile, that stops where it is, and goes on when the module is run
            again with the network back (libvirt 8.5 on both hosts). If the guest's QEMU at the source or at the destination dies, or one
            of the hosts does, the guest is lost but for what is on its disks at the destination, as if its power had failed. The module
            says so, and with O(truth=destination) starts it anew from them.
          - With V(post_copy) libvirt starts the guest at the destination, not this module, also when it was not needed in the end.
            So if the network fails in the very moment of the change, the guest may run on both hosts; the module finds that and
            refuses to decide. Say it only where that is better than a guest that is suspended for some seconds.
          - V(post_copy) needs a destination that lets QEMU handle page faults. That is libvirt 10.1 with QEMU 8.0, or
            C(vm.unprivileged_userfaultfd=1) among its kernel's settings. It cannot be combined with O(parallel).
        type: str
        choices: [suspend, post_copy, abort]
        default: suspend
  bandwidth_mib:
    description: At most so many MiB a second; V(0) for no limit. Empty parts of disks count too.
    type: int
    default: 0
  timeout:
    description: Seconds for the copying. Then it is aborted, and the guest goes on where it was. V(0) for no limit.
    type: int
    default: 0
  parallel:
    version_added: 0.2.0
    description:
      - Send the memory of a live move through so many connections at once, for networks that one CPU with TLS does not fill.
        V(0) is a single one.
      - Not with ssh.
    type: int
    default: 0
  source_disks:
    description:
      - V(retain) keeps disks, UEFI variables, TPM state and the CD of cloud-init at the source under names that end in
        C(.phyllome-retained-) and the C(op_id).
        The next move of the same guest away from that host replaces them. A warm or cold move back to it begins with what a warm or cold
        move has retained there, if nobody touched that, and sends only what changed since.
      - V(purge) deletes them, once the guest is at the destination and found complete.
    type: str
    choices: [retain, purge]
    default: retain
  storage:
    version_added: 0.2.0
    description:
      - V(copy) copies the disks. V(shared) leaves them where they are, because both hosts have them at the same path.
      - A dictionary says it for single disks, by the id that each has in M(phyllome.virt.phyllome_vm) or by its target; the others are copied.
      - That both hosts have the same disk is proved, not believed. Its beginning is compared, and a small file that this host writes beside
        it has to be seen, read, and missed again at the destination. Check mode, which writes nothing, only compares.
      - A shared disk is never deleted or renamed, whatever O(source_disks) says. There is no retained copy of it, so
        V(rolled_back) leaves on it what the guest has written since the move.
      - The owner that libvirt gives a disk while a guest uses it stays on the file systems that libvirt knows as shared (NFS, CephFS,
        GFS2 and others). On another one the source gives the file back to root when the guest has left.
    type: raw
    default: copy
  power_after:
    version_added: 0.2.0
    description:
      - Whether the guest runs at the destination. V(same) is as it was when the move began.
      - With V(off), a guest that runs is shut down and moved cold.
    type: str
    choices: [same, running, 'off']
    default: same
  verify:
    version_added: 0.2.0
    description:
      - How a cold move proves the disks that it has copied. UEFI variables and TPM state are always read back.
      - V(stream) computes digests of what is sent while it is sent. TLS guards it on its way, libvirt at the destination confirms each part,
        and lengths and allocation are compared.
      - V(full) also reads everything back from the destination and compares the digests, which takes as long again.
      - V(none) computes no digests.
      - QEMU copies the disks of a live move, without digests.
    type: str
    choices: [stream, none, full]
    default: stream
  shutdown:
    version_added: 0.2.0
    description: How a guest that runs is shut down for a warm or cold move.
    type: dict
    suboptions:
      timeout:
        description: Seconds that the guest is given. Its agent is asked first, then its power button is pressed.
        type: int
        default: 120
      then:
        description: V(fail) lets it run on where it is; V(destroy) pulls the plug.
        type: str
        choices: [fail, destroy]
        default: fail
  hostdevs:
    version_added: 0.2.0
    description:
      - Which device of the destination the guest gets for one that it has of this host, by the id it has in M(phyllome.virt.phyllome_vm);
        a device without an id is named by its PCI address.
      - It is a PCI address, or the UUID of a mediated device. USB devices that are known by vendor and product need no entry.
      - The guest moves cold. A PCI device has to be bound to VFIO at the destination already, with its whole IOMMU group, and be no other guest's.
      - The playbooks find devices that are equal to those the guest has, see P(phyllome.virt.moves#filter).
    type: dict
  source_is_dead:
    description:
      - Your word that the source is off and will not come back by itself, for a guest that waits at the destination.
      - Say it only if you know it. Run on the destination then, with O(source) and O(uri) those of the dead host.
    type: bool
    default: false
  chain:
    version_added: 0.2.0
    description:
      - What becomes of a disk that is an overlay of other files. With V(keep) all of them go, as they are, which takes a guest that is
        off (O(mode=cold) or V(warm)). What the destination has already, with the same content, is used; files below that are not the
        guest's own, such as an image, stay here as well.
      - With V(flatten) the destination gets a single file of each such disk, with all that its guest sees of it, and nothing of what is
        below goes. That works live too. In a cold move the file is made beside the disk at the source first, compared with it, and removed
        in the end. Snapshots inside of the overlay, checkpoints and encryption would be lost, so they are refused; O(mode=warm) cannot do it.
    type: str
    choices: [keep, flatten]
    default: keep
  truth:
    version_added: 0.2.0
    description:
      - Your word which of two copies is the guest, where both hosts run it, or have run it, and neither may be lost by a guess.
      - The other one is stopped at once, without a shutdown. What it has written stays on its host under names that end in
        C(.phyllome-retained-) and the C(op_id), until O(state=committed) or O(state=cleaned). With V(destination) the move is finished
        then, with V(source) it is made anew from there; whether anything stands against that is looked at once the other one is off.
      - V(destination) is also the word for a guest that crashed in the middle of a post-copy migration. What is left of it is stopped, and it
        is started anew from its disks at the destination.
      - V(source) is also the word for a guest that the source has given up, also by O(on_split_brain=suspend_both), where somebody has
        removed the destination's copy. It goes on at the source then, and moves again. Files that are still at the destination
        stand against that.
      - It counts only in these states, and only for the copies of one move.
    type: str
    choices: [source, destination]
  on_split_brain:
    version_added: 0.2.0
    description:
      - What is done where the guest runs on both hosts. V(fail) touches nothing and says so.
      - With V(suspend_both) neither goes on, so that neither writes what the other does not know. The module fails in either case,
        until O(truth) is said. Check mode suspends nothing.
    type: str
    choices: [fail, suspend_both]
    default: fail
  _detach:
    version_added: 0.2.0
    description: Only for this collection's own action plugin, which follows the move from the controller. Do not use it.
    type: bool
    default: false
  uri:
    description: Libvirt URI of the source. The module runs there.
    type: str
    default: qemu:///system
notes:
  - Runs on the source host as root. The destination needs nothing but libvirt.
  - >-
    While a guest moves for more than two seconds, lines on standard error tell how far it is: at each new phase, each tenth of the
    way, and every ten seconds.
  - >-
    Not moved yet: guests with directories of the host, disks that several guests share, or disks that are not files.
    Guests with snapshots, backing chains (unless O(chain=flatten)), encrypted disks or devices of the host (O(hostdevs)) move
    only while they are off.
    Each of these is a blocker that is named.
  - >-
    While a guest moves, and after it has, the source does not start it, by whatever way: a hook of libvirt that the role
    P(phyllome.virt.hypervisor#role) installs refuses. A warm or cold move needs that hook at the destination too, and is refused
    without it before the guest is shut down.
requirements:
  - libvirt-python
  - lxml
  - qemu-img, for disks in the format qcow2
seealso:
  - module: phyllome.virt.phyllome_vm
"""

EXAMPLES = r"""
- name: Move a guest while it runs
  phyllome.virt.vm_migrate:
    name: web
    destination: beta
    destination_uri: qemu+tls://10.78.0.2/system

- name: Move a guest through the network for moves, slowly, and give up after an hour
  phyllome.virt.vm_migrate:
    name: db
    destination: beta
    destination_uri: qemu+tls://beta.example.org/system
    migrate_address: 192.0.2.12
    bandwidth_mib: 100
    timeout: 3600
    convergence:
      auto_converge: true
      downtime_ms: 500

- name: Move a guest to a host that only ssh reaches, and leave it where it is if it writes too fast
  phyllome.virt.vm_migrate:
    name: web
    destination: branch
    destination_uri: qemu+ssh://root@branch.example.org/system
    convergence:
      max_downtime_ms: 1000
      on_stall: abort

- name: Move a guest with a GPU, which is shut down for it and gets the GPU of the destination
  phyllome.virt.vm_migrate:
    name: games
    destination: beta
    destination_uri: qemu+tls://10.78.0.2/system
    hostdevs:
      gpu: "0000:41:00.0"

- name: Move a guest to a host with an older CPU, copying its disks while it runs
  phyllome.virt.vm_migrate:
    name: db
    mode: warm
    destination: gamma
    destination_uri: qemu+tls://10.78.0.3/system

- name: Move a guest whose big disk is on NFS, and copy the others
  phyllome.virt.vm_migrate:
    name: db
    destination: beta
    destination_uri: qemu+tls://10.78.0.2/system
    storage:
      data: shared

- name: Take that back, while the guest is off at the destination
  phyllome.virt.vm_migrate:
    name: games
    state: rolled_back
    destination: beta
    destination_uri: qemu+tls://10.78.0.2/system

- name: Start a guest that waits on this host, because alpha has burnt down in the middle of its move
  phyllome.virt.vm_migrate:
    name: web
    source: alpha
    destination: beta
    uri: qemu+tls://10.78.0.1/system
    destination_uri: qemu+tls://10.78.0.2/system
    source_is_dead: true
"""

RETURN = r"""
op_id:
  description: Name of this move. The same guest, destination and number of moves before always give the same.
  returned: when a guest was found
  type: str
  sample: 0f1f6c0b-50a2-5a63-9f6f-8c3ad0f34f40
mode_used:
  description: V(live), V(warm), V(cold), or null when there was nothing to copy.
  returned: always
  type: str
  sample: live
mode_reason:
  description: Why this mode.
  returned: always
  type: str
phase:
  description: V(planned) in check mode, V(blocked) or V(refused) when nothing was touched, V(rolled_back), V(moving), V(done), V(committed), V(cleaned).
  returned: always
  type: str
  sample: done
classification:
  description: Number of the row of the state table that both hosts are in at the end. 2 means that all is well. Null for a state that is not known.
  returned: always
  type: int
  sample: 2
source:
  description: What the source says about the guest at the end.
  returned: when a guest was looked for
  type: dict
  sample: {host: alpha, state: absent, defined: false}
destination:
  description: What the destination says about the guest at the end.
  returned: when a guest was looked for
  type: dict
  sample: {host: beta, state: running, defined: true, reason: running}
plan:
  description: What is done, in order.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: What changes.
      type: str
    from:
      description: Value before.
      type: raw
    to:
      description: Value after.
      type: raw
    when:
      description: When it takes effect, always V(live).
      type: str
    why:
      description: The reason, where it is not obvious.
      type: str
blockers:
  description: Everything that stands against the move.
  returned: always
  type: list
  elements: dict
  contains:
    code:
      description: For programs.
      type: str
      sample: network_missing
    what:
      description: What was found.
      type: str
    fix:
      description: What to do about it.
      type: str
disks:
  description: The disks at the destination.
  returned: always
  type: list
  elements: dict
  contains:
    target:
      description: Name of the disk in the guest's definition. Null for a file below a disk that is not the guest's own, and stays at the source.
      type: str
      sample: vda
    path:
      description: The file, of a cold move.
      type: str
    virtual:
      description: Bytes that the guest sees.
      type: int
    allocated_before:
      description: Bytes that the file took at the source.
      type: int
    allocated_after:
      description: >-
        Bytes that the file takes at the destination. More than 5 % and 16 MiB above is an error; above what qemu-img measures, where QEMU
        writes a qcow2 file anew (live, or with O(chain=flatten)), because compressed data does not stay compressed then.
      type: int
    bytes_sent:
      description: Bytes of the file that went over the network, of a cold move.
      type: int
    digest:
      description: >-
        Of a warm or cold move. SHA-256 of the digests of the file's parts of 1 MiB, each of its blocks of 64 KiB that are not zeros.
      type: str
    verified:
      description: V(stream), V(full) or V(none), as O(verify), of a cold move.
      type: str
identity:
  description: What else of the guest arrived. Empty when there was nothing to do.
  returned: always
  type: dict
  contains:
    nvram:
      description: SHA-256 of the UEFI variables at the source and at the destination, and whether they are the same. Null without UEFI.
      type: dict
    tpm:
      description: The same for the state of the TPM.
      type: dict
    snapshots:
      description: >-
        What M(phyllome.virt.vm_snapshot) keeps of the guest beside its disks, which goes with a warm or cold move: the folder, and the digest of
        each file in it. A snapshot with memory can be gone back to where the CPU has what it had.
      type: dict
    autostart:
      description: Whether the guest starts with the destination.
      type: bool
    metadata:
      description: Whether the metadata arrived.
      type: bool
stats:
  description: Times.
  returned: always
  type: dict
  contains:
    total_s:
      description: Seconds that the module took.
      type: float
    setup_ms:
      description: Milliseconds until the copying began.
      type: int
    migrate_ms:
      description: Milliseconds that libvirt took for the migration; of a warm or cold move, for copying the files of the guest that is off.
      type: int
    warm_ms:
      description: Milliseconds that the disks of a guest that ran were copied, of a warm move.
      type: int
    rounds:
      description: How often that went through its disks.
      type: int
    transferred:
      description: Bytes of all files that went over the network, of a warm or cold move.
      type: int
    downtime_ms:
      description:
        - Milliseconds from the stop of the CPUs at the source to their start at the destination, by one clock.
        - Of a warm or cold move, from when the guest was asked to shut down to its start at the destination.
        - Not there when it was not seen, for instance because the move was found at its end.
      type: int
    downtime_limit_ms:
      description: The limit that was set, when it was not QEMU's.
      type: int
    slowed_percent:
      description: How far the CPUs were slowed down at last, when they were.
      type: int
    suspended:
      description: V(true) when the guest was suspended because it made no progress.
      type: bool
    post_copy:
      description: V(true) when the guest went on at the destination before all of its memory was there.
      type: bool
    resumed:
      description: V(true) when the network was cut meanwhile and the memory was fetched all the same.
      type: bool
leftovers:
  description: Files that are left, at the source where no host is named.
  returned: always
  type: list
  elements: str
"""

from ansible_collections.phyllome.virt.plugins.module_utils._core.door import serve
from ansible_collections.phyllome.virt.plugins.module_utils._migration.unit import apart


def main() -> None:
    serve(
        {
            "name": {"type": "str"},
            "uuid": {"type": "str"},
            "source": {"type": "str"},
            "destination": {"type": "str"},
            "destination_uri": {"type": "str", "required": True},
            "migrate_address": {"type": "str"},
            "state": {
                "type": "str",
                "choices": ["migrated", "rolled_back", "committed", "cleaned"],
                "default": "migrated",
            },
            "mode": {"type": "str", "choices": ["auto", "live", "warm", "cold"], "default": "auto"},
            "allow": {"type": "list", "elements": "str", "choices": ["live", "warm", "cold"]},
            "convergence": {
                "type": "dict",
                "options": {
                    "downtime_ms": {"type": "int"},
                    "max_downtime_ms": {"type": "int"},
                    "auto_converge": {"type": "bool", "default": False},
                    "on_stall": {"type": "str", "choices": ["suspend", "post_copy", "abort"], "default": "suspend"},
                },
            },
            "bandwidth_mib": {"type": "int", "default": 0},
            "timeout": {"type": "int", "default": 0},
            "parallel": {"type": "int", "default": 0},
            "source_disks": {"type": "str", "choices": ["retain", "purge"], "default": "retain"},
            "source_is_dead": {"type": "bool", "default": False},
            "chain": {"type": "str", "choices": ["keep", "flatten"], "default": "keep"},
            "truth": {"type": "str", "choices": ["source", "destination"]},
            "on_split_brain": {"type": "str", "choices": ["fail", "suspend_both"], "default": "fail"},
            "storage": {"type": "raw", "default": "copy"},
            "power_after": {"type": "str", "choices": ["same", "running", "off"], "default": "same"},
            "verify": {"type": "str", "choices": ["stream", "none", "full"], "default": "stream"},
            "hostdevs": {"type": "dict"},
            "shutdown": {
                "type": "dict",
                "options": {
                    "timeout": {"type": "int", "default": 120},
                    "then": {"type": "str", "choices": ["fail", "destroy"], "default": "fail"},
                },
            },
            "uri": {"type": "str", "default": "qemu:///system"},
            "_detach": {"type": "bool", "default": False},
        },
        apart,
        required_one_of=[("name", "uuid")],
    )


if __name__ == "__main__":
    main()
