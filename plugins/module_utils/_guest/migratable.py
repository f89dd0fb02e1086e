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

_OUT = "Take it out of the guest for the move."
_EMULATED = "Give it an emulated TPM at the usual place."
_QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"

_DEVICES = (
    # path, code, what, remedy, whether only a running guest is kept by it.
    # Source: research/migration.md 1.1, "Pre-checks libvirt does"; and what vm_migrate does not carry over yet.
    ("devices/hostdev", "hostdevs", "it has a device of this host", _OUT, False),
    ("devices/interface[@type='hostdev']", "hostdevs", "a network card is one of this host", _OUT, False),
    ("devices/interface[@type='vdpa']", "vdpa", "a network card is a vDPA device of this host", _OUT, False),
    ("devices/filesystem", "filesystems", "it has a directory of this host", _OUT, False),
    ("devices/shmem", "shared_memory", "it shares memory with other guests", _OUT, True),
    ("devices/memory[@model='nvdimm']", "host_memory", "it has persistent memory of this host", _OUT, False),
    ("devices/tpm/backend[@type='passthrough']", "tpm_kind", "it has the TPM of this host", _EMULATED, False),
    ("devices/tpm/backend[@type='external']", "tpm_kind", "its TPM is run by somebody else", _EMULATED, False),
    ("devices/tpm/backend/source", "tpm_kind", "the state of its TPM is at a place of its own", _EMULATED, False),
    ("devices/tpm/backend/encryption", "tpm_kind", "the state of its TPM is encrypted", _EMULATED, False),
    ("launchSecurity", "encrypted_memory", "its memory is encrypted by this host's processor", "Stop it first.", True),
    (
        f"{{{_QEMU_NS}}}commandline/*",
        "qemu_commandline",
        "it has QEMU arguments that libvirt does not know (qemu:commandline)",
        "Say the same in libvirt's own words, or remove them.",
        False,
    ),
    (
        "cpu/feature[@name='invtsc'][@policy='require']",
        "invtsc",
        "its time stamp counter is promised not to change (invtsc)",
        "Remove the feature, or fix the frequency with <timer name='tsc' frequency=.../>.",
        True,
    ),
    (
        "cpu[@mode='host-passthrough'][@migratable='off']",
        "cpu",
        "its CPU is declared not migratable",
        "Use host-model.",
        True,
    ),
)


def judge(
    domain: Element,
    persistent: bool,
    snapshots: int | None,
    checkpoints: int | None,
    running: bool = True,
    chained: t.Container[str] = (),
) -> dict[str, t.Any]:
    """What stands against moving this guest, apart from what the destination has.

    ``phyllome_vm`` tells it, ``vm_migrate`` refuses by it.

    Args:
        domain: the running guest's element, or that of its definition when it is off.
        persistent: whether it is defined.
        snapshots: how many libvirt knows; None when unknown.
        checkpoints: likewise.
        running: whether its memory is to be moved too.
        chained: target names of disks that are overlays; libvirt does not tell that of a guest that is off.

    Returns:
        ``possible`` and ``reasons`` ({code, what, fix}).
    """
    fixed = xml.first(domain, "clock/timer[@name='tsc'][@frequency]") is not None
    reasons = [
        _reason(code, what, fix)
        for path, code, what, fix, live in _DEVICES
        if (running or not live) and xml.first(domain, path) is not None and not (fixed and code == "invtsc")
    ]
    if not persistent:
        reasons.append(_reason("transient", "it is not defined: libvirt forgets it when it stops", "Define it."))
    for count, name in ((snapshots, "snapshot"), (checkpoints, "checkpoint")):
        if count is None:
            reasons.append(_reason(f"{name}s", f"whether it has {name}s is not known", "Look with virsh."))
        elif count and running:
            fix = f"Shut the guest down: it moves while it is off (mode: cold). Or delete them: virsh {name}-delete."
            reasons.append(
                _reason(f"{name}s", f"it has {count} {name}(s), which libvirt does not move while it runs", fix)
            )
    for disk in domain.findall("devices/disk"):
        reasons.extend(_disk(disk, chained, running))
    return {"possible": not reasons, "reasons": reasons}


def _disk(disk: Element, chained: t.Container[str], running: bool) -> t.Iterator[dict[str, str]]:
    target, source, driver = (xml.first(disk, tag) for tag in ("target", "source", "driver"))
    name = "?" if target is None else target.get("dev", "?")
    if disk.get("device", "disk") in ("cdrom", "floppy") or xml.first(disk, "readonly") is not None:
        return  # not copied; the destination has to have its own
    if disk.get("device") == "lun":
        yield _reason("disk_kind", f"disk {name} passes SCSI commands to a device of this host", "Make it a disk.")
    elif disk.get("type") != "file":
        yield _reason("disk_kind", f"disk {name} is no file but {disk.get('type')}", "Copy it into a file.")
    elif driver is not None and driver.get("type", "raw") not in ("raw", "qcow2"):
        yield _reason("disk_kind", f"disk {name} has the format {driver.get('type')}", "Convert it: qemu-img convert.")
    for path in ("encryption", "source/encryption"):
        if running and xml.first(disk, path) is not None:
            fix = "Shut the guest down: it moves while it is off (mode: cold)."
            yield _reason(
                "encrypted", f"disk {name} is encrypted, and a running guest would arrive with plain disks", fix
            )
            break
    for tag, why in (("shareable", "is shared with other guests"), ("transient", "is thrown away at power-off")):
        if xml.first(disk, tag) is not None:
            yield _reason("disk_kind", f"disk {name} {why}", f"Remove <{tag}/>.")
    below = xml.first(disk, "backingStore/source"), xml.first(disk, "source/backingStore/source")
    if running and source is not None and (name in chained or any(found is not None for found in below)):
        what = f"disk {name} has a backing file, and the copy would become a full one"
        fix = (
            f"Shut the guest down: it moves while it is off (mode: cold). Or virsh blockpull GUEST {name} --wait first."
        )
        yield _reason("backing_chain", what, fix)


def _reason(code: str, what: str, fix: str) -> dict[str, str]:
    return {"code": code, "what": what, "fix": fix}
