# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The room's doors: converge guests, and tell of them.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.names import check_name, guest_uuid
from .._core.plan import Plan
from . import clone, domain, identity, plan, plan_first, read, spec, storage
from . import wait as waiting
from .apply import LIVE, Apply, defines
from .draft import Decision
from .values import PCI_DEVICE
from .world import Look


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
        look = Look(connection, params["uri"])
        if check and params.get("assume_bound"):
            look.foreseen = frozenset(PCI_DEVICE.accept(each, "assume_bound") for each in params["assume_bound"])
        if params.get("guests") is None:
            return _one(look, spec.accept(declared[0], params.get("fleet_cpu")), check)
        look.declared = tuple(_with_host_devices(declared, params.get("fleet_cpu")))
        # All are begun before one of them is waited for: they install and boot side by side.
        runs = [_begun(look, guest, params.get("fleet_cpu"), check) for guest in declared]
        results = [_ended(guest, run) for guest, run in zip(declared, runs)]
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
        told = (_told(each) for each in found if each is not None)
        return sorted((guest for guest in told if guest is not None), key=lambda guest: guest["name"])


def _find(connection: t.Any, name: str) -> t.Any:
    return virt.found(lambda: connection.lookupByName(name))


def _told(found: t.Any) -> dict[str, t.Any] | None:
    try:
        guest = read.guest(found, secrets=False)
    except PhyllomeError as exc:
        if exc.facts.get("libvirt_code") == virt.libvirt.VIR_ERR_NO_DOMAIN:
            return None  # it went away after it was found, as one does that moves
        raise
    return domain.report(guest, waiting.addresses(found, guest.live))


def _with_host_devices(declared: t.Iterable[dict[str, t.Any]], cpu: t.Any = None) -> t.Iterator[spec.Wanted]:
    for guest in declared:
        if guest.get("hostdevs"):
            with contextlib.suppress(PhyllomeError):  # said when its turn comes
                wanted = spec.accept(guest, cpu)
                if wanted.state != "absent":
                    yield wanted


def _begun(look: Look, declared: dict[str, t.Any], cpu: t.Any, check: bool) -> _Run | PhyllomeError:
    try:
        run = _Run(look, spec.accept(declared, cpu), check)
        run.begin()
    except PhyllomeError as exc:
        return exc
    return run


def _ended(declared: dict[str, t.Any], run: _Run | PhyllomeError) -> dict[str, t.Any]:
    name = declared.get("name")
    try:
        if isinstance(run, PhyllomeError):
            raise run
        return {"name": name, "failed": False, **run.end()}
    except PhyllomeError as exc:
        return {"name": name, "failed": True, "changed": False, "msg": str(exc), **exc.facts}


def _one(look: Look, wanted: spec.Wanted, check: bool) -> dict[str, t.Any]:
    run = _Run(look, wanted, check)
    run.begin()
    return run.end()


class _Run:
    """One guest being converged: first what is done at once, then what has to be waited for.

    Args:
        look: at this host.
        wanted: what is declared.
        check: whether only to say what would be done.
    """

    def __init__(self, look: Look, wanted: spec.Wanted, check: bool) -> None:
        self._look, self._wanted, self._check = look, wanted, check
        self._done = Plan()
        self._refused: dict[str, str] = {}
        self._warnings: list[str] = []
        self._begun = False
        self._foreseen: read.Guest | None = None

    def begin(self) -> None:
        """Plan, and do it.

        Raises:
            PhyllomeError: the guest cannot be as declared.
        """
        self._clone()
        self._decide()
        self._warnings += self._decision.warnings
        if self._check and self._wanted.overlays:
            self._validate()
        if self._look.fleeting and any(change.action == "start" for change in self._decision.plan):
            self._warnings.append(
                f"Guest {self._wanted.name} may be lost sight of when its user logs out. To keep the user's libvirt, say "
                "as root: loginctl enable-linger USER."
            )
        there, config = self._there, self._decision.config
        self._converge()
        live = None if there is None else there.live
        self._look.promised.add(self._wanted.name, self._done, live, config, storage.system)

    def end(self) -> dict[str, t.Any]:
        """Wait for what is declared, do what comes after it, look whether all of it stuck, and tell.

        Raises:
            PhyllomeError: what was waited for did not come, or something did not stick.
        """
        ready: dict[str, float] = {}
        if not self._check:
            with self._telling():
                if any(change.action == "install.end" for change in self._done):
                    self._install()
                wanted = self._wanted.wait
                if wanted is not None and self._wanted.state == "running":
                    ready = waiting.until_ready(self._look.connection, self._found, wanted)
                    self._decide()
                    self._converge()
            if self._begun and any(change.path == "install" for change in self._decision.plan):
                self._converge()  # an installer that was not to be waited for has ended all the same
            if self._begun:
                _stuck(self._wanted, self._done, self._decision)
        return self._told(ready)

    def _validate(self) -> None:
        """What libvirt would say of raw XML, by its own schema; everything else is right by our tables."""
        config = self._decision.config
        why = None if config is None else xml.violation(config, _SCHEMA)
        if why is not None:
            raise PhyllomeError(
                f"Guest {self._wanted.name} cannot be defined", f"xml: {why}", "Correct the option xml."
            )

    def _clone(self) -> None:
        """Make the guest as a copy of another one, where that is declared and not done yet."""
        wanted, connection = self._wanted, self._look.connection
        if wanted.clone is None or wanted.state == "absent":
            return
        with virt.saying(f"Guest {wanted.name} cannot be looked up"):
            found, namesake = self._look.lookup(wanted)
        if namesake is not None:
            return  # said when the rest is planned
        where = identity.places(self._look.uri)
        free = functools.partial(self._look.free, wanted.name)
        world = clone.look(connection, wanted, None if found is None else read.guest(found), where, free)
        decision = clone.plan(wanted, world, where)
        if not decision.plan:
            return
        self._done += decision.plan
        self._warnings += decision.warnings
        if self._check:
            self._foreseen = clone.foreseen(decision, world)
            return
        self._begun = True
        with self._telling():
            clone.apply(connection, wanted, world, decision)
        self._look.forget_clones()

    def _decide(self) -> None:
        foreseen = {} if self._foreseen is None else {"foreseen": self._foreseen}
        self._found, self._there, self._decision = _decide(self._look, self._wanted, self._refused, **foreseen)

    def _converge(self, silent: bool = False) -> None:
        """Carry the decision out; ``silent`` when the plan has said it already."""
        done = self._decision.plan
        if not silent:
            self._done += done
        if self._check or not done.changed:
            return
        for dummy in range(_ROUNDS):
            step = Apply(self._look.connection, self._found, self._wanted)
            with self._telling():
                try:
                    step.run(self._decision)
                finally:
                    self._begun = self._begun or step.begun
            self._refused.update(step.refused)
            self._look.forget_images()
            if _cycled(done):
                self._wanted = dataclasses.replace(self._wanted, apply="live")  # once is enough
            self._decide()
            done = self._decision.plan
            if not _cycled(done) or self._wanted.apply != "restart":
                break
            self._done += done  # the running guest refused something, and may be restarted for it

    @contextlib.contextmanager
    def _telling(self) -> t.Iterator[None]:
        """An error says as well what was going to be done, and whether anything was."""
        try:
            yield
        except PhyllomeError as exc:
            facts = {**exc.facts, "changed": self._begun, "plan": self._done.as_list()}
            raise PhyllomeError(exc.what, exc.why, exc.remedy, **facts) from exc

    def _install(self) -> None:
        """The guest turns itself off when its system is installed; then it becomes what it shall be from then on."""
        wanted = self._wanted
        waiting.until_off(self._look.connection, self._found, wanted.install.timeout if wanted.install else 0)
        self._decide()
        ours = self._decision.marker
        if ours is None or ours.install != plan_first.DONE:
            reason = "unknown" if self._there is None else self._there.reason
            raise PhyllomeError(
                f"Guest {wanted.name}: its installer ended, but did not install",
                "it left nothing on the guest's first disk"
                if reason == "shutdown"
                else f"libvirt says about its end: {reason}",
                "Look at its console and its log in /var/log/libvirt/qemu. The next run starts the installer again.",
            )
        self._converge(silent=True)

    def _told(self, ready: dict[str, float]) -> dict[str, t.Any]:
        wanted, decision = self._wanted, self._decision
        changes, changed = _done(self._done, self._refused) if not self._check else (self._done, self._done.changed)
        self._warnings += [
            f"Guest {wanted.name}: {path} waits for a power cycle, the running guest refused it: {message}"
            for path, message in self._refused.items()
            if not _cycled(self._done)
        ]
        report = {"name": wanted.name, "uuid": wanted.uuid or guest_uuid(wanted.name), "state": "absent"}
        if self._there is not None:
            report = domain.report(self._there, waiting.addresses(self._found, self._there.live))
        return {
            "changed": changed,
            "guest": report,
            "plan": changes.as_list(),
            "pending": list(decision.pending),
            "restart_required": bool(decision.pending),
            "ready": ready,
            "migratable": report.get("migratable"),
            "diff": changes.diff(f"guest {wanted.name}"),
            "warnings": self._warnings,
        }


_SCHEMA = "/usr/share/libvirt/schemas/domain.rng"
"""It comes with libvirt, which judges every definition by it (VIR_DOMAIN_DEFINE_VALIDATE)."""

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
    look: Look, wanted: spec.Wanted, refused: t.Collection[str] = (), foreseen: read.Guest | None = None
) -> tuple[t.Any, read.Guest | None, Decision]:
    with virt.saying(f"Guest {wanted.name} cannot be looked up"):
        found, namesake = look.lookup(wanted)
    there = foreseen
    if there is None and found is not None:
        there = read.guest(found)
    world = look.world(wanted, there, namesake)
    if foreseen is not None:
        world = clone.as_made(world, foreseen)
    return found, there, plan.decide(wanted, there, world, refused)
