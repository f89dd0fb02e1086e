# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The room's doors: converge guests, and tell of them.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError
from .._core.names import check_name, guest_uuid
from .._core.plan import Plan
from . import domain, plan, read, spec
from .apply import LIVE, Apply, defines
from .draft import Decision


def converge(params: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """What ``phyllome_vm`` does.

    Args:
        params: its options.
        check: whether only to say what would be done.

    Raises:
        PhyllomeError: a guest cannot be as declared. With ``guests`` the others are done all the same, and the
            error has their ``results``.
    """
    declared = spec.guests(params)
    with virt.session(params["uri"], keep_alive=True) as connection:
        look = read.Look(connection, params["uri"])
        if params.get("guests") is None:
            return _one(look, spec.accept(declared[0]), check)
        results = [_isolated(look, guest, check) for guest in declared]
    changed = any(result["changed"] for result in results)
    warnings = [text for result in results for text in result.pop("warnings", ())]
    diff = [result.pop("diff") for result in results if "diff" in result]
    failed = [result for result in results if result["failed"]]
    if failed:
        raise PhyllomeError(
            f"{len(failed)} of {len(results)} guests failed ({', '.join(str(result['name']) for result in failed)})",
            " ".join(result["msg"] for result in failed),
            "The others are as declared.",
            changed=changed,
            results=results,
            diff=diff,
            warnings=warnings,
        )
    return {"changed": changed, "results": results, "diff": diff, "warnings": warnings}


def tell(params: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """What ``phyllome_vm_info`` does.

    Args:
        params: its options.
        check: makes no difference.

    Raises:
        PhyllomeError: libvirt does not answer.
    """
    del check
    names = None if params["names"] is None else [check_name(name, "names") for name in params["names"]]
    try:
        return {"changed": False, "guests": _all(params["uri"], names, False)}
    except PhyllomeError:
        # An ordinary user may look at what belongs to the system.
        return {"changed": False, "guests": _all(params["uri"], names, True)}


def _all(uri: str, names: list[str] | None, read_only: bool) -> list[dict[str, t.Any]]:
    with virt.session(uri, read_only=read_only) as connection:
        if names is None:
            with virt.saying("Cannot list the guests"):
                found = connection.listAllDomains()
        else:
            with virt.saying("Cannot look the guests up"):
                found = [_find(connection, name) for name in names]
        return sorted((_told(each) for each in found if each is not None), key=lambda guest: guest["name"])


def _find(connection: t.Any, name: str) -> t.Any:
    return virt.found(lambda: connection.lookupByName(name))


def _told(found: t.Any) -> dict[str, t.Any]:
    guest = read.guest(found, secrets=False)
    return domain.report(guest, read.addresses(found, guest.live))


def _isolated(look: read.Look, declared: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    name = declared.get("name")
    try:
        return {"name": name, "failed": False, **_one(look, spec.accept(declared), check)}
    except PhyllomeError as exc:
        return {"name": name, "failed": True, "changed": False, "msg": str(exc), **exc.facts}


def _one(look: read.Look, wanted: spec.Wanted, check: bool) -> dict[str, t.Any]:
    found, there, decision = _decide(look, wanted)
    changes, warnings = decision.plan, list(decision.warnings)
    changed = changes.changed
    if changed and not check:
        refused: dict[str, str] = {}
        done = changes
        for dummy in range(_ROUNDS):
            step = Apply(look.connection, found, wanted)
            try:
                step.run(decision)
            except PhyllomeError as exc:
                facts = {**exc.facts, "changed": step.begun or done is not changes, "plan": done.as_list()}
                raise PhyllomeError(exc.what, exc.why, exc.remedy, **facts) from exc
            refused.update(step.refused)
            look.forget_images()
            if _cycled(done):
                wanted = dataclasses.replace(wanted, apply="live")  # once is enough
            found, there, decision = _decide(look, wanted, refused)
            if not _cycled(decision.plan) or wanted.apply != "restart":
                break
            done += decision.plan  # the running guest refused something, and may be restarted for it
        changes, changed = _done(done, refused)
        warnings += [
            f"Guest {wanted.name}: {path} waits for a power cycle, the running guest refused it: {message}"
            for path, message in refused.items()
            if any(each["path"].startswith(path) for each in decision.pending)
        ]
        _stuck(wanted, done, decision)
    report = {"name": wanted.name, "uuid": wanted.uuid or guest_uuid(wanted.name), "state": "absent"}
    if there is not None:
        report = domain.report(there, read.addresses(found, there.live))
    return {
        "changed": changed,
        "guest": report,
        "plan": changes.as_list(),
        "pending": list(decision.pending),
        "restart_required": bool(decision.pending),
        "migratable": report.get("migratable"),
        "diff": changes.diff(f"guest {wanted.name}"),
        "warnings": warnings,
    }


_ROUNDS = 2
"""One, and another for the power cycle that what a guest refused makes necessary."""


def _done(changes: Plan, refused: t.Mapping[str, str]) -> tuple[Plan, bool]:
    """The plan as it went, and whether anything was changed by it."""
    changed = any(change.path not in refused or change.action not in LIVE or defines(change) for change in changes)
    told = [
        dataclasses.replace(change, when="next_boot", why=refused[change.path]) if change.path in refused else change
        for change in changes
    ]
    return Plan(tuple(told)), changed


def _cycled(changes: Plan) -> bool:
    return any(change.action == "shutdown" for change in changes)


def _stuck(wanted: spec.Wanted, done: Plan, decision: Decision) -> None:
    left = [change.as_dict() for change in decision.plan]
    if not left and _cycled(done):
        left = [{**each, "why": "it still waits after a power cycle"} for each in decision.pending]
    if left:
        raise PhyllomeError(
            f"Guest {wanted.name}: {', '.join(dict.fromkeys(each['path'] for each in left))} did not stick",
            "libvirt took the change, but what it says now is another",
            "Report this with the guest's XML (virsh dumpxml).",
            changed=True,
            plan=done.as_list(),
            left=left,
        )


def _decide(
    look: read.Look, wanted: spec.Wanted, refused: t.Collection[str] = ()
) -> tuple[t.Any, read.Guest | None, Decision]:
    with virt.saying(f"Guest {wanted.name} cannot be looked up"):
        found, namesake = look.lookup(wanted)
    there = None if found is None else read.guest(found)
    return found, there, plan.decide(wanted, there, look.world(wanted, there, namesake), refused)
