# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a guest can move to another host at all, whatever host that is. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core import xml

if t.TYPE_CHECKING:
    from .._core.xml import Element

_QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"

_DEVICES = (
    # path, code, what, remedy. Source: research/migration.md 1.1, "Pre-checks libvirt does".
    ("devices/hostdev", "host_device", "it has a device of this host", "Take it out of the guest first."),
    ("devices/interface[@type='hostdev']", "host_device", "a network card is one of this host", "Take it out first."),
    ("devices/interface[@type='vdpa']", "host_device", "a network card is one of this host", "Take it out first."),
    ("devices/filesystem", "shared_directory", "it has a directory of this host", "Take it out of the guest first."),
    ("devices/shmem", "shared_memory", "it shares memory with other guests", "Take the device out first."),
    ("devices/memory[@model='nvdimm']", "host_memory", "it has persistent memory of this host", "Take it out first."),
    ("devices/tpm/backend[@type='passthrough']", "host_tpm", "it has the TPM of this host", "Give it an emulated one."),
    (
        "devices/tpm/backend[@type='external']",
        "host_tpm",
        "its TPM is run by somebody else",
        "Give it an emulated one.",
    ),
    (
        "launchSecurity",
        "encrypted_memory",
        "its memory is encrypted by this host's processor",
        "Stop it and move it cold.",
    ),
    (
        f"{{{_QEMU_NS}}}commandline/*",
        "qemu_commandline",
        "it has QEMU arguments that libvirt does not know (qemu:commandline)",
        "Say the same in libvirt's own words, or remove them.",
    ),
    (
        "cpu/feature[@name='invtsc'][@policy='require']",
        "invtsc",
        "its time stamp counter is promised not to change (invtsc)",
        "Remove the feature, or fix the frequency with <timer name='tsc' frequency=.../>.",
    ),
    (
        "cpu[@mode='host-passthrough'][@migratable='off']",
        "cpu",
        "its CPU is declared not migratable",
        "Use host-model.",
    ),
)


def judge(domain: Element, persistent: bool, snapshots: int | None, checkpoints: int | None) -> dict[str, t.Any]:
    """What stands against moving this guest, apart from what the destination has.

    Args:
        domain: the running guest's element, or that of its definition when it is off.
        persistent: whether it is defined.
        snapshots: how many libvirt knows; None when unknown.
        checkpoints: likewise.

    Returns:
        ``possible`` and ``reasons`` ({code, what, fix}).
    """
    fixed = xml.first(domain, "clock/timer[@name='tsc'][@frequency]") is not None
    reasons = [
        _reason(code, what, fix)
        for path, code, what, fix in _DEVICES
        if xml.first(domain, path) is not None and not (fixed and code == "invtsc")
    ]
    if not persistent:
        reasons.append(_reason("transient", "it is not defined: libvirt forgets it when it stops", "Define it."))
    for count, name in ((snapshots, "snapshot"), (checkpoints, "checkpoint")):
        if count is None:
            reasons.append(_reason(f"{name}s", f"whether it has {name}s is not known", "Look with virsh."))
        elif count:
            reasons.append(
                _reason(f"{name}s", f"it has {count} {name}(s), which libvirt does not move", "Delete them.")
            )
    for disk in domain.findall("devices/disk"):
        reasons.extend(_disk(disk))
    return {"possible": not reasons, "reasons": reasons}


def _disk(disk: Element) -> t.Iterator[dict[str, str]]:
    target = xml.first(disk, "target")
    name = "?" if target is None else target.get("dev", "?")
    if disk.get("device", "disk") in ("cdrom", "floppy"):
        return
    if disk.get("type") != "file":
        yield _reason("disk_type", f"disk {name} is no file but {disk.get('type')}", "Copy it into a file.")
    if disk.get("device") == "lun":
        yield _reason("disk_type", f"disk {name} passes SCSI commands to a device of this host", "Make it a disk.")
    for tag, why in (("shareable", "is shared with other guests"), ("transient", "is thrown away at power-off")):
        if xml.first(disk, tag) is not None:
            yield _reason(f"disk_{tag}", f"disk {name} {why}", f"Remove <{tag}/>.")
    if xml.first(disk, "readonly") is not None:
        yield _reason("disk_readonly", f"disk {name} is read-only, which libvirt does not copy", "Make it a CD-ROM.")


def _reason(code: str, what: str, fix: str) -> dict[str, str]:
    return {"code": code, "what": what, "fix": fix}
