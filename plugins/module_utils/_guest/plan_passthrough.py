# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for devices of the host: which one is meant, whether it is ready, plug-in rules. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from . import domain, plug
from .passthrough import Pci, is_key, placed
from .tables import HOSTDEVS, KINDS, host_device

if t.TYPE_CHECKING:
    from .draft import Draft
    from .spec import Device, Wanted
    from .world import World

_BIND = "Bind it first: list it in phyllome_passthrough, or call vfio_bind."
_TAKE = "A device of the host has one guest: take it out of the other one first."


def found(wanted: Wanted, world: World) -> Wanted:
    """What is wanted, with the addresses that identity keys stand for on this host."""
    return placed(wanted, world.passthrough.pci) if HOSTDEVS.option in wanted.devices else wanted


def rules(draft: Draft) -> None:
    """Plug-in rules: they stand in the guest's metadata, and the device comes and goes in the running guest alone."""
    listed = draft.wanted.devices.get(HOSTDEVS.option)
    if listed is None:
        return
    declared = {device.id: device.rule for device in listed if device.rule is not None}
    others = {device.id for device in listed} - set(declared)
    known = {rule.id: rule for rule in draft.marker.plugs}
    for name, rule in declared.items():
        if any(domain.device(kind, draft.root, name) is not None for kind in KINDS if kind is not HOSTDEVS):
            draft.problem(
                f"hostdevs.{name}: the id is taken by another of the guest's devices",
                "each device of a guest has its own id, whatever its kind",
                "Choose another id.",
            )
        defined = domain.device(HOSTDEVS, draft.root, name)
        if defined is not None:
            draft.note("config", f"hostdevs.{name}", domain.summary(HOSTDEVS, defined), None)
            defined.getparent().remove(defined)  # type: ignore[union-attr]
        if known.get(name) != rule:
            draft.note("config", f"hostdevs.{name}.plug", _told(known.get(name)), str(rule))
    dropped = {name for name in set(known) - set(declared) if draft.wanted.prune or name in others}
    for name in sorted(dropped):
        draft.note("config", f"hostdevs.{name}.plug", str(known[name]), None)
        running = None if draft.live is None else domain.device(HOSTDEVS, draft.live, name)
        if running is not None and name not in others:
            draft.unplug(HOSTDEVS, running)
    kept = tuple(rule for name, rule in known.items() if name not in declared and name not in dropped)
    draft.marker = dataclasses.replace(
        draft.marker,
        plugs=(*kept, *declared.values()),
        devices=tuple(name for name in draft.marker.devices if name not in declared),
    )


def _told(rule: plug.Rule | None) -> str | None:
    return None if rule is None else str(rule)


def check(draft: Draft) -> None:
    """Whether the host can give what is declared, and gives it to nobody else. After the power is planned."""
    places: dict[str, str] = {}
    for device in draft.wanted.devices.get(HOSTDEVS.option, ()):
        if device.rule is not None:
            _check_rule(draft, device, device.rule)
        elif is_key(device.values.get("pci")):
            _unknown(draft, device)
        else:
            defined = domain.device(HOSTDEVS, draft.root, device.id)
            name = None if defined is None else host_device(defined)
            if name is not None:
                _check_device(draft, device, name)
                if name in places:
                    draft.problem(f"{device.path}: {name}", f"it is {places[name]} as well", "Keep one of them.")
                places[name] = device.path
    _settle(draft)


def _unknown(draft: Draft, device: Device) -> None:
    pci = draft.world.passthrough.pci
    twins = [] if pci is None else pci.at(device.values["pci"])
    draft.problem(
        f"{device.path}.pci: {device.values['pci']}",
        f"{', '.join(twins)} all have this identity" if twins else "this host has no such device",
        "Name it by its address." if twins else "iommu_facts lists what it has, as identity.key.",
    )


def _check_device(draft: Draft, device: Device, name: str) -> None:
    world = draft.world.passthrough
    kind, dummy, address = name.partition(" ")
    if kind == "usb":
        rule = plug.Rule(device.id, *address.split(":"))
        _claimed(draft, device, rule)
        return
    if world.owners.get(name):
        guests = ", ".join(world.owners[name])
        draft.problem(f"{device.path}: {name}", f"the device belongs to guest {guests}", _TAKE)
    if world.there.get(name) is False:
        draft.problem(f"{device.path}: {name}", "this host has no such device", "iommu_facts lists what it has.")
    elif kind == "pci" and world.pci is not None and _needed(draft, device):
        _ready(draft, device, address, world.pci)


def _needed(draft: Draft, device: Device) -> bool:
    """Whether the guest gets the device now, or is defined with it; what it has already need not be got ready."""
    live = None if draft.there is None else draft.there.live
    if live is not None and domain.device(HOSTDEVS, live, device.id) is not None:
        return False
    begins = any(change.action.startswith("start") for change in draft.changes)
    return begins or draft.hot or (HOSTDEVS.option, device.id) in draft.added


def _ready(draft: Draft, device: Device, address: str, pci: Pci) -> None:
    function = pci.functions.get(address)
    keys = {one.key: one.address for one in pci.functions.values()}
    foreseen = {keys.get(name, name) for name in draft.world.passthrough.foreseen}
    what = f"{device.path}: pci {address}"
    if address in foreseen and pci.state != "on":
        return  # groups are not known before it is
    if function is None or function.group is None or function.group not in pci.groups:
        off = f"the IOMMU is {pci.state}" if pci.state != "on" else "it has no IOMMU group"
        draft.problem(what, f"{off}, and nothing would keep the device from reading all memory", pci.remedy or _BIND)
        return
    group = pci.groups[function.group]
    if address not in group.endpoints:
        draft.problem(what, "it is a part of the machine itself", "Choose an endpoint: iommu_facts lists them.")
        return
    bound = address in foreseen or (function.driver is not None and address not in group.hosted)
    rest = [name for name in group.hosted if name != address and name not in foreseen]
    managed = HOSTDEVS.row("managed").read(domain.device(HOSTDEVS, draft.root, device.id))  # type: ignore[arg-type]
    if not bound and not managed:
        has = f"driver {function.driver} has it" if function.driver else "no driver has it"
        draft.problem(what, f"{has}, not VFIO", _BIND)
    elif not bound and function.hazards:
        draft.problem(
            f"{what} with managed: true",
            f"libvirt would take it from the host without asking, and it has the hazards {', '.join(function.hazards)}",
            "Leave managed out and bind it with vfio_bind, which asks for consent.",
        )
    if rest:
        drivers = ", ".join(f"{name} ({pci.functions[name].driver})" for name in rest)
        draft.problem(
            what, f"the host uses others of its IOMMU group {function.group}: {drivers}", f"All go together. {_BIND}"
        )
    for other in group.endpoints:
        guests = () if other == address else draft.world.passthrough.owners.get(f"pci {other}", ())
        if guests:
            draft.problem(
                what, f"{other} of its IOMMU group {function.group} belongs to guest {', '.join(guests)}", _TAKE
            )


def _check_rule(draft: Draft, device: Device, rule: plug.Rule) -> None:
    world = draft.world.passthrough
    _claimed(draft, device, rule)
    for other in draft.marker.plugs:
        if other.id < rule.id and plug.overlap(rule, other, world.usb):
            draft.problem(
                f"{device.path}.usb: {rule}", f"hostdevs.{other.id} is the same device ({other})", "Keep one of them."
            )
    if world.session:
        draft.problem(
            f"{device.path}.plug: true for a guest of qemu:///session",
            "the host gives devices to guests of qemu:///system only",
            "Declare the guest there, or leave plug, serial and port out.",
        )
    elif world.program is False:
        draft.problem(
            f"{device.path}.plug: true",
            "nothing on this host plugs devices in",
            "Run the role phyllome.virt.hypervisor, which installs it.",
        )
    if draft.root.find("devices/controller[@type='usb']") is None:
        draft.problem(f"{device.path}.plug: true", "the guest has no USB controller", "Add one with xml.")


def _claimed(draft: Draft, device: Device, rule: plug.Rule) -> None:
    for name, other in draft.world.passthrough.claims:
        if plug.overlap(rule, other, draft.world.passthrough.usb):
            draft.problem(f"{device.path}: usb {rule}", f"the device belongs to guest {name} ({other})", _TAKE)


def _settle(draft: Draft) -> None:
    """What plugging in will do to this guest, as far as that can be seen now."""
    rules_, states = draft.marker.plugs, [change.after for change in draft.changes if change.path == "state"]
    state = states[-1] if states else (None if draft.there is None else draft.there.state)
    if not rules_ or state not in ("running", "paused") or draft.problems:
        return
    if not states and draft.untouched:
        return
    live = None if draft.there is None else draft.there.live
    begins = live is None or any(change.action.startswith("start") for change in draft.changes)
    has = {} if begins else plug.attached(live, rules_)
    others = [plug.Guest(name, (rule,)) for name, rule in draft.world.passthrough.claims]
    steps, dummy = plug.settle(draft.world.passthrough.usb, [plug.Guest(draft.wanted.name, rules_, has), *others])
    for step in steps:
        after = None if step.device is None else str(step.device)
        before = "a device that is not there any more" if step.device is None else None
        draft.note("plug.settle", f"hostdevs.{step.id}", before, after)
