# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts compared, as ``facts.gather`` told of them: where guests can go, and how hosts have drifted apart. Pure.

What is not known counts as a reason against a move. research/hardware.md 5.1 has the rules.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import os
import re
import typing as t

from . import equals

Facts = t.Mapping[str, t.Any]
Reason = dict[str, str]

_SHOWN = 6
_Q35 = re.compile(r"^pc-q35-.*?\d")


def reasons(source: Facts, target: Facts) -> list[Reason]:
    """What stands against moving a guest that uses all that its host has to offer.

    Args:
        source: facts of the host that has the guest.
        target: facts of the host that would get it.
    """
    found = [*_between(source, target)]
    here, there = source["manifest"], target["manifest"]
    newest = max((name for name in here["machines"] or () if _Q35.match(name)), key=_numbers, default=None)
    found += _machine(newest, there)
    found += _emulator(here["emulator"], there)
    missing = sorted(set(here["firmware"] or ()) - set(there["firmware"] or ()))
    if here["firmware"] is None or there["firmware"] is None:
        found.append(_unknown("firmware", "firmware"))
    elif missing:
        found.append(_reason("firmware", f"it lacks firmware {_some(missing)}", "Install the same firmware package."))
    found += _cpu(here["cpu"]["features"], here["cpu"]["vendor"], there)
    for kind, what in (("networks", "network"), ("pools", "pool")):
        found += _named(kind, what, here[kind], there)
    return found


def guest_reasons(guest: Facts, source: Facts, target: Facts) -> list[Reason]:
    """What stands against moving this guest, apart from room.

    Args:
        guest: as phyllome_vm_info tells of it.
        source: facts of the host that has it.
        target: facts of the host that would get it.
    """
    found = [
        _reason(one["code"], one["what"], one.get("fix") or "")
        for one in (guest.get("migratable") or {}).get("reasons", ())
    ]
    found += _between(source, target)
    there = target["manifest"]
    claim = next((one for one in source["capacity"]["guests"] or () if one["uuid"] == guest["uuid"]), None)
    for other in target["capacity"]["guests"] or ():
        if (other["uuid"] == guest["uuid"]) != (other["name"] == guest["name"]):
            found.append(
                _reason("clash", f"it has another guest of that name or uuid ({other['name']})", "Rename one of them.")
            )
    found += _machine(guest["machine"], there)
    if guest["type"] == "kvm" and there["type"] != "kvm":
        found.append(_reason("type", "it has no KVM", "See virtualization in its facts."))
    if claim is None:
        found.append(_unknown("guest", "what the guest claims"))
    else:
        found += _emulator(claim["emulator"], there)
        if (claim["loader"] or "").startswith("/") and claim["loader"] not in (there["firmware"] or ()):
            found.append(
                _reason("firmware", f"it lacks the firmware {claim['loader']}", "Install the same firmware package.")
            )
        if claim["active"]:
            found += _running_cpu(claim, source["manifest"], there)
    for card in guest.get("networks") or ():
        if card.get("network") and card["network"] not in (there["networks"] or ()):
            found.append(
                _reason("network", f"it has no active network {card['network']}", "Add it to hypervisor_networks.")
            )
    paths = {pool["path"] for pool in (there["pools"] or {}).values()}
    for folder in sorted({os.path.dirname(disk["path"]) for disk in guest.get("disks") or () if disk.get("path")}):
        if folder not in paths:
            found.append(_reason("pool", f"it has no active pool at {folder}", "Add it to hypervisor_pools."))
    return list({(one["code"], one["what"]): one for one in found}.values())


def _between(source: Facts, target: Facts) -> t.Iterator[Reason]:
    """What concerns every guest."""
    here, there = source["manifest"], target["manifest"]
    for facts in (source, target):
        if facts["identity"]["libvirt_error"]:
            yield _reason("libvirt", facts["identity"]["libvirt_error"], "Run the playbook phyllome.virt.site.")
            return
    if source["identity"]["host_uuid"] == target["identity"]["host_uuid"]:
        yield _reason(
            "same_host", "both have the same host uuid", "Give one of them a new /etc/machine-id, and reboot it."
        )
    for section, what in (("arch", "architecture"), ("type", "kind of virtualisation")):
        if here[section] is None or there[section] is None:
            yield _unknown(section, what)
        elif here[section] != there[section] and section == "arch":
            yield _reason(section, f"it is {there[section]}, not {here[section]}", "")
    for name in ("libvirt", "qemu"):
        old, new = here["versions"][name], there["versions"][name]
        if old is None or new is None:
            yield _unknown(f"versions.{name}", f"the version of {name}")
        elif _numbers(old) > _numbers(new):
            yield _reason(
                f"versions.{name}",
                f"its {name} {new} is older than {old}",
                "Upgrade it first: only from old to new is safe.",
            )
    if here["authority"] is None or there["authority"] is None:
        yield _unknown("authority", "the certificate authority")
    elif here["authority"] != there["authority"] or not there["authority"]:
        yield _reason(
            "authority",
            "the two do not trust each other's certificates",
            "Run the playbook phyllome.virt.site over both.",
        )


def _machine(machine: str | None, there: Facts) -> t.Iterator[Reason]:
    if machine is None or there["machines"] is None:
        yield _unknown("machines", "machine types")
    elif machine not in there["machines"]:
        yield _reason("machines", f"its QEMU has no machine type {machine}", "Install a QEMU that has it.")


def _emulator(path: str | None, there: Facts) -> t.Iterator[Reason]:
    if path is None or there["emulator"] is None:
        yield _unknown("emulator", "the path of QEMU")
    elif path != there["emulator"]:
        yield _reason("emulator", f"its QEMU is {there['emulator']}, not {path}", "Hosts of one family move guests.")


def _running_cpu(claim: Facts, here: Facts, there: Facts) -> t.Iterator[Reason]:
    if claim["cpu"] is not None:
        yield from _cpu(claim["cpu"], here["cpu"]["vendor"], there)
    elif here["cpu"] != there["cpu"] or here["microcode"] != there["microcode"]:
        yield _reason(
            "cpu",
            "its CPU is not exactly the same, and the guest has been given the whole CPU of its host",
            "Move it while it is off, or declare cpu: fleet and power-cycle it.",
        )


def _cpu(wanted: t.Iterable[str] | None, vendor: str | None, there: Facts) -> t.Iterator[Reason]:
    if wanted is None or there["cpu"]["features"] is None:
        yield _unknown("cpu", "what its CPU can do")
        return
    missing = sorted(set(wanted) - set(there["cpu"]["features"]))
    fix = "Declare cpu: fleet for the guest and power-cycle it, or move it while it is off."
    if vendor != there["cpu"]["vendor"]:
        yield _reason("cpu", f"its CPU is of {there['cpu']['vendor']}, not of {vendor}", "Move it while it is off.")
    elif missing:
        yield _reason("cpu", f"its CPU lacks {_some(missing)}", fix)


def _named(kind: str, what: str, here: Facts | None, there: Facts) -> t.Iterator[Reason]:
    if here is None or there[kind] is None:
        yield _unknown(kind, f"its {kind}")
        return
    names = set(here) if kind == "networks" else {pool["path"] for pool in here.values()}
    present = set(there[kind]) if kind == "networks" else {pool["path"] for pool in there[kind].values()}
    for name in sorted(str(name) for name in names - present):
        yield _reason(kind, f"it has no active {what} {name}", f"Add it to hypervisor_{kind}.")


def _reason(code: str, what: str, fix: str) -> Reason:
    return {"code": code, "what": what, "fix": fix}


def _unknown(code: str, what: str) -> Reason:
    return _reason(code, f"{what} could not be found out", "Run this as root.")


def _some(names: t.Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def pair(first: Facts, second: Facts) -> dict[str, t.Any]:
    """How two hosts relate.

    Returns:
        ``verdict`` (``identical``, ``stack-equal``, ``migration-compatible`` or ``incompatible``), ``direction``
        (``both``, ``forward``, ``backward`` or None), ``forward`` and ``backward`` reasons, and ``paths`` of the
        manifest that differ, the first ones.
    """
    forward, backward = reasons(first, second), reasons(second, first)
    direction = "both" if not forward + backward else "forward" if not forward else "backward" if not backward else None
    verdict = "migration-compatible" if direction else "incompatible"
    if direction == "both":
        for name, digest in (("identical", "strict"), ("stack-equal", "stack")):
            if first["digests"][digest] == second["digests"][digest]:
                verdict = name
                break
    here, there = flat(first["manifest"]), flat(second["manifest"])
    differing = [path for path in sorted({*here, *there}) if here.get(path) != there.get(path)]
    return {
        "verdict": verdict,
        "direction": direction,
        "forward": forward,
        "backward": backward,
        "paths": differing[: 2 * _SHOWN],
    }


def flat(manifest: t.Any, path: str = "") -> dict[str, t.Any]:
    """A manifest as path → value; lists become one value for each member, so that a member that is missing is named."""
    if isinstance(manifest, t.Mapping) and manifest:
        return {
            name: value
            for key, below in manifest.items()
            for name, value in flat(below, f"{path}.{key}" if path else key).items()
        }
    if isinstance(manifest, (list, tuple)):
        return {f"{path}[{value}]": "there" for value in manifest}
    return {path: manifest}


def drift(hosts: t.Mapping[str, Facts]) -> list[dict[str, t.Any]]:
    """What is not the same everywhere: ``path``, ``usual`` (what most hosts have) and ``others`` (host → value)."""
    flats = {name: flat(facts["manifest"]) for name, facts in hosts.items()}
    found = []
    for path in sorted({path for one in flats.values() for path in one}):
        values = {name: one.get(path) for name, one in flats.items()}
        counts: dict[str, int] = {}
        for value in values.values():
            counts[repr(value)] = counts.get(repr(value), 0) + 1
        if len(counts) == 1:
            continue
        most = max(counts.values())
        usual = next(value for name, value in sorted(values.items()) if counts[repr(value)] == most)
        found.append(
            {
                "path": path,
                "usual": usual,
                "others": {name: value for name, value in sorted(values.items()) if value != usual},
            }
        )
    return found


def domains(hosts: t.Mapping[str, Facts]) -> list[list[str]]:
    """Groups of hosts between which every guest can go in both directions; each host is in one of them."""
    known: dict[tuple[str, ...], bool] = {}

    def both(one: Facts, other: Facts) -> bool:
        if one["identity"]["host_uuid"] == other["identity"]["host_uuid"]:
            return False
        key = tuple(sorted(facts["digests"]["migrate"] for facts in (one, other)))
        if key not in known:
            known[key] = not reasons(one, other) + reasons(other, one)
        return known[key]

    found: list[list[str]] = []
    for name in sorted(hosts):
        group = next((group for group in found if all(both(hosts[one], hosts[name]) for one in group)), None)
        if group is None:
            found.append([name])
        else:
            group.append(name)
    return found


def fleet(
    hosts: t.Mapping[str, Facts],
    guests: t.Mapping[str, t.Sequence[Facts]],
    devices: t.Mapping[str, Facts | None] | None = None,
) -> dict[str, t.Any]:
    """Everything there is to say of several hosts.

    Args:
        hosts: facts by host; those that did not answer are left out.
        guests: guests by host, as phyllome_vm_info tells of them.
        devices: ``phyllome_iommu`` by host; None for a host that did not tell.

    Returns:
        ``domains``, ``alike`` (hosts whose manifests are equal), ``pairs`` (of the first hosts of these, each with its
        two ``hosts``), ``guests`` (``name``, ``host``, ``can`` and ``cannot``: host → what stands against it) and ``drift``.
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(hosts):
        alike.setdefault(hosts[name]["digests"]["strict"], []).append(name)
    names = [group[0] for group in alike.values()]
    exchange = equals.Exchange(guests, devices)
    return {
        "domains": domains(hosts),
        "alike": list(alike.values()),
        "pairs": [
            {"hosts": [one, other], **pair(hosts[one], hosts[other])}
            for number, one in enumerate(names)
            for other in names[number + 1 :]
        ],
        "guests": [
            _where(guest, host, hosts, exchange)
            for host in sorted(hosts)
            for guest in guests.get(host) or ()
            if len(hosts) > 1
        ],
        "drift": drift(hosts),
    }


def _where(guest: Facts, host: str, hosts: t.Mapping[str, Facts], exchange: equals.Exchange) -> dict[str, t.Any]:
    against: dict[str, list[str]] = {}
    exchanged = equals.exchangeable(guest)
    for other, facts in sorted(hosts.items()):
        if other != host:
            found = guest_reasons(guest, hosts[host], facts)
            against[other] = [one["what"] for one in found if not (exchanged and one["code"] == "hostdevs")]
            unequal = exchange.against(guest, host, other) if exchanged else None
            against[other] += [unequal] if unequal else []
    return {
        "name": guest["name"],
        "host": host,
        "can": [other for other, whats in against.items() if not whats],
        "cannot": {other: whats for other, whats in against.items() if whats},
    }


def health(before: Facts, after: Facts) -> list[str]:
    """What a host has lost between two looks at it, in words; nothing when it is as well as it was."""
    if after["identity"]["libvirt_error"]:
        return [f"libvirt does not answer: {after['identity']['libvirt_error']}"]
    said = []
    if before["virtualization"]["state"] == "on" and after["virtualization"]["state"] != "on":
        said.append(
            f"virtualisation is {after['virtualization']['state']}: {'; '.join(after['virtualization']['evidence'])}"
        )
    for kind, what in (("networks", "network"), ("pools", "pool")):
        lost = sorted(set(before["manifest"][kind] or ()) - set(after["manifest"][kind] or ()))
        said += [f"{what} {name} is not active any more" for name in lost]
    missing = sorted(set(before["manifest"]["cpu"]["features"] or ()) - set(after["manifest"]["cpu"]["features"] or ()))
    if missing:
        said.append(f"its CPU has lost {_some(missing)}")
    if after["reboot"]["required"]:
        said.append(f"it still has to be rebooted: {'; '.join(after['reboot']['why'])}")
    return said
