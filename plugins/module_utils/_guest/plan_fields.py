# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for the fields of the guest itself, and what a new guest is made of. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core.errors import PhyllomeError
from .._core.fields import Difference, compare
from .._core.units import format_size
from . import build
from .tables import DOMAIN

if t.TYPE_CHECKING:
    from .draft import Draft


def new(draft: Draft) -> None:
    """Begin the definition of a guest that does not exist yet."""
    host = draft.world.host
    if host is None:  # not looked at: a mistake of ours, said in our own way
        raise PhyllomeError("This host was not looked at", "a new guest needs it", "Report this as a bug.")
    for group, values in draft.profile.fields.items():
        draft.values[group] = {**values, **draft.wanted.fields.get(group, {})}
    firmware = draft.values["firmware"]
    if firmware["type"] == "bios":
        draft.values["firmware"] = {"type": "bios"}
    elif firmware.get("secure_boot"):
        firmware.setdefault("enrolled_keys", True)
    else:
        firmware.pop("enrolled_keys", None)
    declared = [device for devices in draft.wanted.devices.values() for device in devices]
    root = build.guest(
        name=draft.wanted.name,
        uuid=draft.uuid,
        profile=draft.profile,
        host=host,
        vcpus=draft.values[""]["vcpus"],
        display=draft.values["graphics"]["type"] != "none",
        ports=build.ports(declared, draft.profile) + (draft.wanted.cloud_init is not None),
    )
    if firmware["type"] == "uefi":
        build.firmware(root, draft.uuid, host, bool(firmware.get("secure_boot")))
        store = build.store(host, draft.uuid)
        if draft.world.exists.get(store):
            draft.warnings.append(
                f"Guest {draft.wanted.name} continues with the UEFI variables and keys that an earlier guest with its "
                f"uuid has left in {store}. For fresh ones remove the guest, then the file."
            )
    draft.note("config", "uuid", None, draft.uuid)
    draft.note("config", "profile", None, draft.marker.profile)
    if host.type == "qemu":
        draft.warnings.append(
            f"Guest {draft.wanted.name} is emulated, which is slow: this host offers no KVM. "
            "Switch virtualisation on in its firmware and load kvm_intel or kvm_amd."
        )
    draft.root = root


def fields(draft: Draft) -> None:
    """What is declared of the guest itself."""
    for group, rows in DOMAIN.items():
        for difference in compare(rows, draft.root, draft.values.get(group, {})):
            _field(draft, group, difference)
    memory = draft.values.get("", {}).get("memory")
    if memory is not None and memory > draft.world.memory:
        draft.problem(
            f"memory: {format_size(memory)} is more than this host has",
            f"it has {draft.world.memory // 1024**2}MiB",
            "Declare less, or put the guest elsewhere.",
        )


def _field(draft: Draft, group: str, difference: Difference) -> None:
    row, path = difference.row, f"{group}.{difference.row.option}" if group else difference.row.option
    before, after = difference.shown
    _offered(draft, path, difference.after)
    if draft.there is not None and row.when == "refused":
        draft.note("refused", path, before, after, "refused")
        draft.problem(
            f"{path}: {after} is declared, the guest has {before}",
            "this is settled when a guest is made, and part of what its disks were installed with",
            f"Declare {before}, or make another guest.",
        )
        return
    try:
        row.write(draft.root, difference.after)
    except PhyllomeError as exc:
        draft.problems.append(exc)
        return
    draft.note("config", path, before if draft.there is not None else None, after, draft.when(row))


def _offered(draft: Draft, path: str, value: t.Any) -> None:
    host = draft.world.host
    if host is None:
        return
    install = "The role phyllome.virt.hypervisor installs what is missing."
    if path == "firmware.type" and value == "uefi" and not host.uefi:
        draft.problem("firmware.type: uefi", "this host has no UEFI firmware for guests (OVMF)", install)
    elif path == "firmware.secure_boot" and value and not host.secure_boot:
        draft.problem("firmware.secure_boot: true", "this host's UEFI firmware has no Secure Boot", install)
    elif path == "tpm.model" and value not in ("none", *host.tpm):
        draft.problem(f"tpm.model: {value}", "this host cannot emulate it (swtpm)", install)
    elif path == "graphics.type" and value not in ("none", *host.graphics):
        offered = ", ".join(sorted(host.graphics & {"vnc", "spice"})) or "none"
        draft.problem(f"graphics.type: {value}", f"this host's QEMU offers {offered}", "Choose one of these.")
