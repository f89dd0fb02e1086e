# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wrong on each host, in words, from what the modules found. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._host import compare

Facts = dict[str, t.Any]

SCHEMA_VERSION = 1
SEVERITIES = ("problem", "warning", "note")
"""A problem keeps the host from its purpose; a warning may; a note is worth knowing."""
_MISSING = {
    "vfio": "CONFIG_VFIO",
    "vfio_pci": "CONFIG_VFIO_PCI",
    "vfio_iommu_type1": "CONFIG_VFIO_IOMMU_TYPE1",
}


def report(
    names: t.Sequence[str],
    iommu: t.Sequence[Facts],
    guests: t.Sequence[Facts],
    when: str,
    hosts: t.Sequence[Facts] | None = None,
) -> Facts:
    """What there is to say.

    Args:
        names: of the hosts.
        iommu: for each host, what the module iommu_facts returned, whether it went well or not.
        guests: for each host, what the module phyllome_vm_info returned, likewise.
        when: point in time, as text.
        hosts: for each host, what the module host_facts returned, likewise.

    Returns:
        ``schema_version``, ``when``, ``hosts`` sorted by name, and ``fleet`` (see compare.fleet), None with fewer than two hosts
        that can be compared.
    """
    rows = sorted(zip(names, iommu, guests, hosts or [{}] * len(names)), key=lambda row: row[0])
    comparable = {name: facts for name, dummy_looked, dummy_listed, said in rows if (facts := _known(said))}
    listed = {name: found.get("guests") or () for name, dummy_looked, found, dummy_said in rows}
    devices = {name: _iommu(looked) for name, looked, dummy_listed, dummy_said in rows}
    return {
        "schema_version": SCHEMA_VERSION,
        "when": when,
        "hosts": [_host(*row) for row in rows],
        "fleet": compare.fleet(comparable, listed, devices) if len(comparable) > 1 else None,
    }


def _known(said: Facts) -> Facts | None:
    facts: Facts | None = (said.get("ansible_facts") or {}).get("phyllome_host")
    return facts


def _iommu(looked: Facts) -> Facts | None:
    facts: Facts | None = (looked.get("ansible_facts") or {}).get("phyllome_iommu")
    return facts


def _host(name: str, looked: Facts, listed: Facts, said: Facts) -> Facts:
    iommu = _iommu(looked)
    guests = listed.get("guests")
    findings = []
    if not iommu:
        findings.append(
            _finding(
                "no_answer",
                "problem",
                "Nothing is known about this host",
                [str(looked.get("msg") or "it gave no reason")],
                "See whether ansible -m ansible.builtin.ping gets an answer.",
            )
        )
    else:
        findings += [*_unasked(listed, said), *_virtualisation(iommu, _known(said)), *_machine(iommu)]
        findings += [*_isolation(iommu), *_bindings(iommu), *_knowledge(iommu)]
    findings += [finding for guest in guests or () for finding in _guest(guest)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding["severity"]))  # stable: else as found
    worst = findings[0]["severity"] if findings else "fine"
    return {
        "name": name,
        "state": "unreachable" if not iommu else "fine" if worst == "note" else worst,
        "machine": _description(iommu) if iommu else None,
        "findings": findings,
        "groups": _groups(iommu) if iommu else [],
        "ungrouped": [_device(device) for device in _endpoints(iommu) if device["group"] is None] if iommu else [],
        "guests": None if guests is None else [{"name": one["name"], "state": one["state"]} for one in guests],
    }


def _finding(code: str, severity: str, what: str, evidence: t.Iterable[str], remedy: str | None) -> Facts:
    return {"code": code, "severity": severity, "what": what, "evidence": list(evidence), "remedy": remedy}


def _description(facts: Facts) -> Facts:
    host, board = facts["host"], facts["host"]["board"] or {}
    parts = [board.get("board_vendor") or board.get("sys_vendor"), board.get("board_name") or board.get("product_name")]
    return {
        "board": " ".join(part for part in parts if part) or None,
        "firmware": board.get("bios_version"),
        "kernel": host["kernel"],
        "cpu_vendor": host["cpu_vendor"],
        "chassis": host["chassis"],
        "virtualization": host["virtualization"],
        "iommu": facts["iommu"]["state"],
    }


def _unasked(listed: Facts, said: Facts) -> t.Iterator[Facts]:
    """What a module could not say of a host that answers. One that was not run has no message."""
    known = _known(said)
    dead = known["identity"]["libvirt_error"] if known else None
    if dead:
        yield _finding(
            "no_libvirt",
            "problem",
            "libvirt does not answer, so there are no guests to be had",
            [dead],
            "Run phyllome.virt.site, which installs and starts it.",
        )
    elif "guests" not in listed and listed.get("msg"):
        yield _finding(
            "guests_unknown",
            "warning",
            "Which guests this host has could not be found out",
            [listed["msg"]],
            "Run phyllome.virt.phyllome_vm_info on it by itself, and do what it says.",
        )
    if not known and said.get("msg"):
        yield _finding(
            "host_unknown",
            "warning",
            "What this host can do for guests could not be found out",
            [said["msg"]],
            "Run phyllome.virt.host_facts on it by itself, and do what it says.",
        )


def _virtualisation(facts: Facts, known: Facts | None) -> t.Iterator[Facts]:
    host = facts["host"]
    guest = host["virtualization"] not in ("none", None)
    if known:
        found = known["virtualization"]
        if found["state"] != "on":
            yield _finding(
                "no_virtualisation",
                "problem" if found["state"] == "off" else "warning",
                "Guests cannot run at full speed"
                if found["state"] == "off"
                else "Whether guests can run at full speed could not be found out",
                found["evidence"],
                found["remedy"],
            )
        if known["reboot"]["required"]:
            yield _finding(
                "reboot_required",
                "warning",
                "What was installed takes effect only after a reboot",
                known["reboot"]["why"],
                "Empty it with phyllome.virt.evacuate, reboot it, and fill it again with phyllome.virt.restore.",
            )
        if known["evacuated"]:
            yield _finding(
                "evacuated",
                "note",
                "This host was evacuated, and stays empty",
                [f"{', '.join(known['evacuated']['guests']) or 'no guest'} went away"],
                "When it is to have guests again, run phyllome.virt.restore.",
            )
    elif host["vtx"] is False:
        yield _finding(
            "no_virtualisation",
            "problem",
            "The processor does not offer virtualisation, so guests are slow",
            ["/proc/cpuinfo has neither vmx nor svm among the flags"],
            "This is a virtual machine: let its host pass virtualisation on (nested)."
            if guest
            else "Switch on VT-x (Intel) or SVM (AMD) in the firmware setup.",
        )


def _machine(facts: Facts) -> t.Iterator[Facts]:
    iommu = facts["iommu"]
    if iommu["state"] != "on":
        yield _finding(
            "iommu_off",
            "problem" if iommu["state"] == "off" else "warning",
            "The IOMMU is off, so no device can be given to a guest"
            if iommu["state"] == "off"
            else "Whether the IOMMU is on could not be found out",
            [f"{', '.join(iommu['causes'])}: {'; '.join(iommu['evidence'])}"],
            iommu["remedy"],
        )
    elif iommu["interrupt_remapping"] == "disabled":
        yield _finding(
            "no_interrupt_remapping",
            "warning",
            "Interrupts are not remapped, so a guest with a device can send the host any interrupt",
            ["no interrupt controller is called IR-…"],
            "Look for interrupt remapping or x2APIC in the firmware setup, and for intremap=off on the command line.",
        )
    if iommu["cmdline"]["reboot_pending"] and "reboot_pending" not in iommu["causes"]:
        running, following = iommu["cmdline"]["running"] or [], iommu["cmdline"]["next_boot"] or []
        yield _finding(
            "reboot_pending",
            "note",
            "The next boot has other arguments for the IOMMU than this one",
            [f"now: {' '.join(running) or 'none'}; next: {' '.join(following) or 'none'}"],
            "Reboot when it suits you, or take the change back.",
        )
    missing = [option for module, option in _MISSING.items() if facts["vfio"]["modules"][module] == "missing"]
    if (iommu["kernel_config"] or {}).get("IOMMUFD") in ("y", "m"):  # takes the place of this one
        missing = [option for option in missing if option != "CONFIG_VFIO_IOMMU_TYPE1"]
    if missing:
        yield _finding(
            "no_vfio",
            "problem",
            "The kernel cannot give devices to guests",
            [f"{option} is not set" for option in missing],
            "Boot a kernel that has VFIO.",
        )


def _isolation(facts: Facts) -> t.Iterator[Facts]:
    unsafe = facts["iommu"]["unsafe"]
    if unsafe["acs_override"]:
        yield _finding(
            "acs_override",
            "warning",
            "Groups prove nothing on this host: a guest with a device may reach others",
            [unsafe["acs_override"]],
            "Take it off the kernel command line, and try other slots.",
        )
    for name, what in (
        ("unsafe_interrupts", "VFIO is told to do without interrupt remapping"),
        ("noiommu", "VFIO is told to do without an IOMMU: a guest with a device can read and write all memory"),
    ):
        if unsafe[name]:
            yield _finding(name, "warning", what, ["parameter of a module of VFIO"], "Take the parameter back.")
    for group in facts["groups"]:
        cards = {address.rpartition(".")[0] for address in group["endpoints"]}
        if len(cards) > 1 and not unsafe["acs_override"]:
            yield _finding(
                "shared_group",
                "note",
                f"Group {group['id']}: {len(cards)} cards can only be given away together",
                [", ".join(group["endpoints"])],
                "A card that should be alone needs another slot.",
            )
        regions = [reason["detail"] for reason in group["reasons"] if reason["code"] == "rmrr"]
        if regions and group["endpoints"]:
            yield _finding(
                "rmrr",
                "note",
                f"Group {group['id']}: the firmware keeps memory of it for itself, so no guest can have it",
                regions,
                "Look for a setting of shared or reserved memory (RMRR) of the slot in the firmware setup.",
            )


def _bindings(facts: Facts) -> t.Iterator[Facts]:
    """Whether what is bound to VFIO is what the next boot binds."""
    persistent = facts["bindings"]["persistent"]
    if persistent is None:
        return
    now = {one["address"]: f"{one['address']}: {one['driver']}" for one in facts["bindings"]["live"]}
    then = {one["address"]: f"{one['address']}: {one['file'] or one['source']}" for one in persistent if one["address"]}
    for code, severity, what, devices, remedy in (
        (
            "not_bound",
            "warning",
            "Devices that guests are to have are not bound to VFIO",
            [then[address] for address in sorted(set(then) - set(now))],
            "Reboot, or run phyllome.virt.site, which binds them or says why not.",
        ),
        (
            "bound_until_reboot",
            "note",
            "Devices are bound to VFIO, and will not be after the next boot",
            [now[address] for address in sorted(set(now) - set(then))],
            "List them in phyllome_passthrough to keep them bound.",
        ),
    ):
        if devices:
            yield _finding(code, severity, what, devices, remedy)


def _knowledge(facts: Facts) -> t.Iterator[Facts]:
    if facts["host"]["container"]:
        yield _finding(
            "container",
            "warning",
            "This is a container, and does not see what the host uses",
            ["/proc/self/ns/pid"],
            "Look at the host itself.",
        )
    if facts["unread"]:
        yield _finding(
            "unread",
            "note",
            "Not everything could be read, and what is unknown counts as a reason against giving devices away",
            [f"{one['path']}: {one['why']}" for one in facts["unread"][:10]],
            "Run this as root.",
        )


def _guest(guest: Facts) -> t.Iterator[Facts]:
    name = guest["name"]
    if guest.get("pending"):
        yield _finding(
            "pending",
            "note",
            f"Guest {name} has changes that wait for its next power cycle",
            [f"{one['path']}: {one['from']} → {one['to']}" for one in guest["pending"]],
            "Shut it down and start it again, or set apply: restart.",
        )
    phase = (guest.get("migration") or {}).get("phase")
    if phase not in (None, "done"):
        yield _finding(
            "unfinished_move",
            "warning",
            f"A move of guest {name} has not been finished",
            [f"phase {phase}"],
            "Run phyllome.virt.site again: it goes on from there.",
        )
    reasons = (guest.get("migratable") or {}).get("reasons") or ()
    if reasons:
        yield _finding(
            "cannot_move",
            "note",
            f"Guest {name} cannot move to another host",
            [f"{reason['what']}" for reason in reasons],
            " ".join(reason["fix"] for reason in reasons if reason.get("fix")) or None,
        )


def _endpoints(facts: Facts) -> list[Facts]:
    return [
        device
        for device in facts["devices"]
        if device["header"] != "bridge" and "platform" not in _own(device) and device["class_name"] != "host_bridge"
    ]


def _own(device: Facts) -> set[str]:
    return {hazard["code"] for hazard in device["hazards"] if hazard["device"] == device["address"]}


def _groups(facts: Facts) -> list[Facts]:
    """Those in which there is something that a guest could have."""
    by_address = {device["address"]: device for device in facts["devices"]}
    return [
        {
            "id": group["id"],
            "state": group["state"],
            "isolated": group["isolated"],
            "devices": [_device(by_address[address]) for address in group["endpoints"]],
        }
        for group in facts["groups"]
        if group["endpoints"]
    ]


def _device(device: Facts) -> Facts:
    severities = {hazard["severity"] for hazard in device["hazards"]}
    names = " ".join(name for name in (device["vendor_name"], device["device_name"]) if name)
    return {
        "address": device["address"],
        "identity": device["identity"]["key"],
        "name": names or f"{device['vendor'] or '????'}:{device['device'] or '????'}",
        "class_name": device["class_name"],
        "driver": device["driver"],
        "verdict": "never"
        if "never" in severities
        else "unknown"
        if "unknown" in severities
        else "consent"
        if severities
        else "free",
        "hazards": [
            {
                "code": hazard["code"],
                "consent": hazard["consent"],
                "via": hazard["via"],
                "device": None if hazard["device"] == device["address"] else hazard["device"],
            }
            for hazard in device["hazards"]
        ],
    }
