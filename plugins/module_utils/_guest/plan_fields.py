# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for the fields of the guest itself, and what a new guest is made of. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core.errors import PhyllomeError
from .._core.fields import Difference, Field, compare
from .._core.units import format_size
from . import build, values
from .tables import DOMAIN, settle

if t.TYPE_CHECKING:
    from .draft import Draft


def new(draft: Draft) -> None:
    """Begin the definition of a guest that does not exist yet."""
    host = draft.world.host
    if host is None:  # not looked at: a mistake of ours, said in our own way
        raise PhyllomeError("This host was not looked at", "a new guest needs it", "Report this as a bug.")
    for group, defaults in draft.profile.fields.items():
        draft.values[group] = {**defaults, **draft.wanted.fields.get(group, {})}
    _displayed(draft)
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
        vcpus=draft.values["vcpus"].get("maximum") or draft.values[""]["vcpus"],
        pointer=draft.values["graphics"]["type"] != "none" and "inputs" not in draft.wanted.devices,
        ports=build.ports(declared, draft.profile, draft.values) + (draft.wanted.cloud_init is not None),
    )
    if firmware["type"] == "uefi":
        build.firmware(root, draft.uuid, host)
        store = build.store(host, draft.uuid)
        if draft.world.exists.get(store) and draft.wanted.reset_nvram:
            draft.note("store.reset", "firmware.nvram", store, None, why="an earlier guest left it", file=store)
        elif draft.world.exists.get(store):
            draft.warnings.append(
                f"Guest {draft.wanted.name} continues with the UEFI variables and keys that an earlier guest with its "
                f"uuid has left in {store}. For fresh ones say firmware.nvram: reset."
            )
    draft.note("config", "uuid", None, draft.uuid)
    draft.note("config", "profile", None, draft.marker.profile)
    if host.type == "qemu":
        draft.warnings.append(
            f"Guest {draft.wanted.name} is emulated, which is slow: this host offers no KVM. "
            "Switch virtualisation on in its firmware and load kvm_intel or kvm_amd."
        )
    draft.root = root


def _displayed(draft: Draft) -> None:
    """What of the profile depends on the display."""
    display = draft.values["graphics"]["type"]
    if display != "spice" and "channels" not in draft.wanted.fields.get("", {}):
        draft.values[""]["channels"] = tuple(word for word in draft.values[""]["channels"] if word != "spice")
    if display != "none" and draft.world.host is not None:
        model = next((name for name in draft.profile.video if name in draft.world.host.video), "vga")
        draft.values["video"].setdefault("model", model)


def fields(draft: Draft) -> None:
    """What is declared of the guest itself."""
    firmware = draft.values["firmware"]
    if draft.there is not None and draft.wanted.reset_nvram and firmware.get("secure_boot"):
        firmware.setdefault("enrolled_keys", True)
    for group, rows in DOMAIN.items():
        for difference in compare(rows, draft.root, draft.values.get(group, {})):
            _field(draft, group, difference)
        for row in rows:
            _behind(draft, group, row)
    _room(draft)


def together(draft: Draft) -> None:
    """Fields and devices have been written: make fit what belongs together."""
    draft.problems.extend(settle(draft.root, draft.values, {change.path for change in draft.changes}))


def _room(draft: Draft) -> None:
    """Whether the host has what is declared."""
    memory, vcpus, world = draft.values.get("", {}).get("memory"), draft.values["vcpus"], draft.world
    if memory is not None and memory > world.memory:
        draft.problem(
            f"memory: {format_size(memory)} is more than this host has",
            f"it has {world.memory // 1024**2}MiB",
            "Declare less, or put the guest elsewhere.",
        )
    host = world.host
    maximum = vcpus.get("maximum") or draft.values.get("", {}).get("vcpus") or 0
    if host is not None and host.vcpus is not None and maximum > host.vcpus:
        draft.problem(f"vcpus: {maximum}", f"this host's QEMU gives a guest at most {host.vcpus}", "Declare less.")
    if world.cpus is not None:
        pins = {"emulator_pins": {"": vcpus.get("emulator_pins", "")}}
        pins.update({option: vcpus.get(option, {}) for option in ("pins", "iothread_pins")})
        for option, chosen in pins.items():
            for key, text in chosen.items():
                missing = [cpu for cpu in values.cpus(text) if cpu >= world.cpus] if text else []
                if missing:
                    draft.problem(
                        f"vcpus.{option}{'.' + key if key else ''}: {text}",
                        f"this host has no CPU {missing[0]}; its CPUs are 0 to {world.cpus - 1}",
                        "Correct the list.",
                    )
    pages = draft.values["memory"].get("hugepages")
    if pages and pages not in world.hugepages:
        offered = ", ".join(format_size(size) for size in sorted(world.hugepages)) or "none"
        draft.problem(
            f"memory.hugepages: {format_size(pages)}", f"this host has pages of {offered}", "Choose one of these."
        )


def _field(draft: Draft, group: str, difference: Difference) -> None:
    row, path = difference.row, f"{group}.{difference.row.option}" if group else difference.row.option
    before, after = difference.shown
    _offered(draft, path, row, difference.after)
    if draft.there is not None and row.when == "refused" and not _reset(draft, path):
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
    told = {} if path in draft.waits else _call(draft, row, difference.after)
    draft.note(
        "config",
        path,
        before if draft.there is not None else None,
        after,
        draft.when(row if told else None),
        **told,
    )


def _behind(draft: Draft, group: str, row: Field) -> None:
    """The definition is as declared, the running guest is not yet: an earlier run was cut off."""
    value = draft.values.get(group, {}).get(row.option)
    path = f"{group}.{row.option}" if group else row.option
    if value is None or draft.live is None or not draft.hot or row.when != "live" or path in draft.waits:
        return
    before = row.read(draft.live)
    if row.same(row.read(draft.root), value) and row.waiting(draft.live, draft.root):
        told = _call(draft, row, value)
        if told:
            draft.note("live", path, row.shown(before), row.shown(value), **told)


def _call(draft: Draft, row: Field, value: t.Any) -> dict[str, t.Any]:
    """How the running guest is told, as ``apply`` takes it."""
    if draft.live is None or not draft.hot or row.when != "live" or not row.fits(draft.live, value):
        return {}
    try:
        row.write(draft.live, value)
    except PhyllomeError:
        return {}  # the running guest has no such device: it waits
    if row.call == "display":
        shown = next(found for found in draft.live.findall("devices/graphics") if found.get("passwd"))
        return {"device": shown}
    return {"call": row.call, "value": value}


def _reset(draft: Draft, path: str) -> bool:
    """Secure Boot can change together with the variable store that holds its keys, while nobody uses that."""
    if path not in ("firmware.secure_boot", "firmware.enrolled_keys") or not draft.wanted.reset_nvram:
        return False
    if draft.live is not None:
        draft.problem(
            f"{path}: the guest runs",
            "its UEFI variables cannot be made anew while it uses them",
            "Stop it first: state: stopped, then run with this again.",
        )
        return True
    if not any(change.action == "store.reset" for change in draft.changes):
        host = draft.world.host
        file = draft.root.findtext("os/nvram") or (f"{host.store}/{draft.wanted.name}_VARS.fd" if host else "")
        draft.note("store.reset", "firmware.nvram", file, None, why="its keys are those of the old firmware", file=file)
    return True


def _offered(draft: Draft, path: str, row: Field, value: t.Any) -> None:
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
    elif path == "graphics.gl" and value == "headless" and "egl-headless" not in host.graphics:
        draft.problem("graphics.gl: headless", "this host's QEMU has no egl-headless", install)
    elif path == "cpu.model" and isinstance(draft.values["cpu"].get("features"), values.Whole):
        return  # what the model has and the host lacks is switched off
    else:
        offered_here(draft, path, row, value)


def offered_here(draft: Draft, path: str, row: Field, value: t.Any) -> None:
    """A value that libvirt does not list for this host is a problem."""
    known = None if draft.world.host is None else draft.world.host.offers.get(row.offered)
    if known is None or value in known or value in ("none", False):
        return
    listed = sorted(known & set(row.choices)) if row.choices else sorted(known)[:12]
    draft.problem(f"{path}: {value}", f"this host offers {', '.join(listed) or 'none'}", "Choose one of these.")
