# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for a guest's power. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core.units import format_size
from . import admission, luks
from .tables import CDROMS, DISKS, HOSTDEVS, NETWORKS, device_id, host_device

if t.TYPE_CHECKING:
    from .draft import Draft


VSOCK, DRI = "/dev/vhost-vsock", "/dev/dri"

POWER: dict[tuple[str, str], tuple[str, ...]] = {
    # what it is, what is wanted: what to do
    ("stopped", "running"): ("start",),
    ("paused", "running"): ("resume",),
    ("suspended", "running"): ("wakeup",),
    ("crashed", "running"): ("destroy", "start"),
    ("stopped", "paused"): ("start_paused",),
    ("running", "paused"): ("suspend",),
    ("suspended", "paused"): ("wakeup", "suspend"),
    ("crashed", "paused"): ("destroy", "start_paused"),
    ("running", "stopped"): ("shutdown",),
    ("stopping", "stopped"): ("shutdown",),
    ("paused", "stopped"): ("resume", "shutdown"),
    ("suspended", "stopped"): ("wakeup", "shutdown"),
    ("crashed", "stopped"): ("destroy",),
}
"""A crashed guest is dead already: ``destroy`` only clears it away. Nothing else here kills a guest."""

POWER_RESULT = {
    "start": "running",
    "resume": "running",
    "wakeup": "running",
    "start_paused": "paused",
    "suspend": "paused",
    "shutdown": "stopped",
    "destroy": "stopped",
}
"""What each step leads to."""


def power(draft: Draft) -> None:
    """The steps to the declared power state."""
    state = "stopped" if draft.there is None else draft.there.state
    target = draft.wanted.state
    if target in ("present", state):
        return
    steps = POWER.get((state, target))
    if steps is None:
        draft.problem(
            f"state: {target} is declared, the guest is {state}",
            "that is on its way to another state" if state == "stopping" else "libvirt does not say more",
            "Run again when it has come to rest.",
        )
        return
    if steps[-1].startswith("start"):
        _startable(draft)
    before = "absent" if draft.there is None else state
    for step in steps:
        draft.note(step, "state", before, POWER_RESULT[step])
        before = POWER_RESULT[step]


def cycle(draft: Draft) -> None:
    """Stop and start a guest for which something waits, where that was said."""
    there = draft.there
    if draft.wanted.apply != "restart" or there is None or there.state not in ("running", "paused"):
        return
    waiting = draft.waiting()
    target = there.state if draft.wanted.state == "present" else draft.wanted.state
    if not waiting or target == "stopped":
        return
    _startable(draft)
    why = f"{', '.join(dict.fromkeys(each['path'] for each in waiting))} would wait otherwise"
    state = (
        POWER_RESULT[draft.changes[-1].action] if draft.changes and draft.changes[-1].path == "state" else there.state
    )
    for step in (*POWER[state, "stopped"], *POWER["stopped", target]):
        draft.note(step, "state", state, POWER_RESULT[step], why=why)
        state = POWER_RESULT[step]


def _startable(draft: Draft) -> None:
    if draft.world.clones:
        draft.problem(
            f"state: {draft.wanted.state} of the base of linked clones",
            f"the disks of {', '.join(draft.world.clones)} are only what differs from its own, and it would write to them",
            "Leave it off, as their template. To use it, make a clone of it, or remove the linked ones first.",
        )
    if draft.there is not None and draft.there.managed_save:
        draft.warnings.append(
            f"Guest {draft.wanted.name} has a saved state (virsh managedsave) and continues from it, with the "
            "devices of that time; virsh managedsave-remove throws it away."
        )
    for found in NETWORKS.elements(draft.root):
        name = NETWORKS.row("network").read(found)
        if name and draft.world.networks.get(name) is False:
            draft.problem(
                f"networks.{NETWORKS.label(found)}.network: {name}",
                "the network is not active, and a guest cannot start without it",
                f"Start it: virsh net-start {name}.",
            )
    _memory(draft)
    for path, file, option, remedy in _FILES:
        if draft.root.find(path) is not None and draft.world.exists.get(file) is False:
            draft.problem(option, f"this host has no {file}, and the guest cannot start without it", remedy)
    said = {device.id for device in draft.wanted.devices.get(HOSTDEVS.option, ())}
    for found in HOSTDEVS.elements(draft.root):
        name, policy = host_device(found), HOSTDEVS.row("startup_policy").read(found)
        needed = policy not in ("optional", "requisite") and (device_id(found) not in said or str(name)[:3] == "usb")
        if name and needed and draft.world.passthrough.there.get(name) is False:
            draft.problem(
                f"hostdevs.{HOSTDEVS.label(found)}: {name}",
                "the device is not plugged in, and the guest cannot start without it",
                "Plug it in, or declare startup_policy: optional for it.",
            )
    given = {change.args["uuid"] for change in draft.changes if change.action == "secret.set"}
    for found in DISKS.elements(draft.root):
        secret = luks.secret_of(found)
        if secret and secret not in given and draft.world.secrets.get(secret, luks.SET) != luks.SET:
            draft.problem(
                f"disks.{DISKS.label(found)}.encryption: libvirt does not know its passphrase",
                f"this host has no secret {secret}, and the guest cannot start without it",
                "Declare encryption.passphrase of the disk.",
            )
    declared = {device.id for devices in draft.wanted.devices.values() for device in devices}
    made = {change.args["file"] for change in draft.changes if change.action == "medium.create"}
    for kind in (CDROMS, DISKS):
        for found in kind.elements(draft.root):
            path, label = kind.row("path").read(found), kind.label(found)
            if path in made or found.find("source[@startupPolicy='optional']") is not None:
                continue
            if path and draft.world.exists.get(path) is False and not (kind is DISKS and label in declared):
                draft.problem(
                    f"{kind.option}.{label}.path: {path}",
                    "this host has no such file",
                    "Put it there, or correct the path.",
                )


_FILES = (
    ("devices/vsock", VSOCK, "vsock.cid", "Load the kernel module vhost_vsock, or declare vsock.cid: none."),
    (
        "devices/graphics[@type='egl-headless']",
        DRI,
        "graphics.gl: headless",
        "It needs a GPU with a driver: declare none.",
    ),
)
"""Devices that need something of the host: where they stand in the XML, and what they need."""


def _memory(draft: Draft) -> None:
    pages, size = admission.memory(draft.root)
    left = draft.world.hugepages.get(pages, 0) * pages if pages else draft.world.available
    if left is None or (pages and pages not in draft.world.hugepages):
        return
    given, back = admission.memory(None if draft.there is None else draft.there.live)
    left += back if given == pages else 0  # it gives that back before it starts again
    if size > left and pages:
        draft.problem(
            f"memory.hugepages: {-(-size // pages)} pages of {format_size(pages)} are needed",
            f"{max(left, 0) // pages} are free on this host",
            "Reserve more (kernel parameters hugepagesz and hugepages), or stop other guests.",
        )
    elif size > left:
        draft.problem(
            f"memory: {format_size(size)} are needed",
            f"{max(left, 0) // 1024**2}MiB are available on this host",
            "Stop other guests, or declare less: memory, or memory.current for a guest that gives memory back.",
        )
