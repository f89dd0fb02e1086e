# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The door of this room: look at both hosts, find the row, do what brings it forward, look again.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import traceback
import typing as t

from .._core import virt
from .._core.errors import PhyllomeError
from .._core.plan import Plan
from . import judge, postcopy, undo
from .apply import Mover, Told
from .cold import Cold
from .journal import Busy, Journal
from .plan import Blocker, blockers, modes, plan, unknown
from .progress import Progress, closed, opened
from .read import Pair, Side
from .read_guest import Disk, Guest, guest, needed_by_others
from .read_offer import offer
from .read_shared import not_shared
from .spec import accept

_ROUNDS = 12
_TRIES = 2
"""A try whose last message was lost is made again, once."""
_DECIDE = (
    "Look which host has the right one, and say truth: source or truth: destination. The other one is stopped then, and what "
    "it has written stays on its host under other names."
)


def move(params: dict[str, t.Any], check_mode: bool, progress: Progress | None = None) -> dict[str, t.Any]:
    """Move a guest.

    Args:
        params: the module's.
        check_mode: only look and plan.
        progress: where to tell how far it is.

    Raises:
        PhyllomeError: the guest is not at the destination afterwards, or not everything of it is;
            the facts say where it is and what is left where.
    """
    order, began = accept(params), time.monotonic()
    with Pair(order, Journal()) as pair:
        return _Run(pair, progress or Progress(), began, check_mode).go()


class _Run:
    def __init__(self, pair: Pair, progress: Progress, began: float, check_mode: bool) -> None:
        self._pair = pair
        self._progress = progress
        self._began = began
        self._mover = Mover(pair, progress)
        self._cold = Cold(self._mover)
        self._undo = undo.Undo(self._mover, self._cold)
        self._plan = Plan()
        self._blockers: list[Blocker] = []
        self._warnings: list[str] = []
        self._mode: tuple[str | None, str] = (None, "")
        self._check_mode = check_mode
        self._held = False
        self._look()

    def _look(self) -> None:
        """Both hosts, and what they mean.

        Raises:
            PhyllomeError: it is not known what they mean, or a person has to decide.
        """
        view = self._view = self._pair.view()
        self._mover.op = view.op_id
        here, there = view.source, view.destination
        row = judge.CLASH if here.clash or there.clash else judge.classify(
            here.state, there.state, here.job, view.mark, view.committed
        )  # fmt: skip
        words = judge.words(row, here.state, there.state, view.mark, here.job)
        if self._pair.order.truth in words:
            row = dataclasses.replace(row or judge.ALONE, action="decide")
        self._row: judge.Row = row  # type: ignore[assignment]
        if (row is None or row.action == "refuse") and not self._gone():
            raise self._refusal(row)

    def _gone(self) -> bool:
        """Whether there is no guest any more and none of its moves is under way, so that what they have left is all there is.

        Raises:
            PhyllomeError: it is not known which guest is meant.
        """
        order, view, pair = self._pair.order, self._view, self._pair
        sides = (view.source, view.destination)
        if order.state not in ("cleaned", "committed") or any(one.state != "absent" or one.clash for one in sides):
            return False
        records = pair.journal.of_guest(order.uuid or "", order.name)
        uuids = sorted({record.uuid for record in records})
        if len(uuids) > 1:
            raise self._failed(
                PhyllomeError(
                    f"There were several guests {order.name}",
                    f"the journal of {view.source.host} knows moves of {', '.join(uuids)}, and neither host has one of them",
                    "Say uuid instead of name, and clean them one by one.",
                ),
                "refused",
            )
        uuid = "".join(uuids)

        def renamed(connection: t.Any) -> bool:
            return virt.found(lambda: connection.lookupByUUIDString(uuid)) is not None

        if any(record.phase not in ("done", "returned") for record in records):
            return False
        if uuid and (pair.source.ask(renamed) or pair.destination.ask(renamed)):
            return False
        last = max(
            (one for one in records if one.destination == view.destination.host),
            key=lambda one: one.started,
            default=None,
        )
        known = dataclasses.replace(view.source, name=order.name or order.uuid, uuid=uuid)
        self._view = dataclasses.replace(view, source=known, op_id=last.op_id if last else view.op_id, record=last)
        self._mover.op, self._row = self._view.op_id, judge.GONE
        return True

    def go(self) -> dict[str, t.Any]:
        """Bring it about, or say what would be done."""
        if self._pair.order.state != "migrated":
            return self._settle(self._check_mode)
        return self._move(self._check_mode)

    def _settle(self, check_mode: bool) -> dict[str, t.Any]:
        """What comes after a move, or instead of its end."""
        state, journal = self._pair.order.state, self._pair.journal
        records = journal.of_guest(self._view.uuid)
        try:
            self._plan = undo.plan(state, self._view, self._row, records)
        except PhyllomeError as exc:
            raise self._failed(exc, "refused") from exc
        if any(one.action == "move" for one in self._plan):
            self._refuse_clones()
        chosen = [one for one in records if state == "cleaned" or one.op_id == self._view.op_id]
        if state != "rolled_back":
            self._refuse_used({name for record in chosen for name in record.retained.values()})
        if check_mode or not len(self._plan):
            return self._result(changed=bool(len(self._plan)), phase="planned" if len(self._plan) else state)
        with self._only():
            if state != "rolled_back":
                self._undo.purge(chosen)
                self._look()
                return self._result(changed=True, phase=state)
            for dummy in range(_ROUNDS):
                self._look()
                try:
                    if not len(undo.plan(state, self._view, self._row, records)):
                        return self._result(changed=True, phase=state)
                    self._undo.step(self._view, self._row)
                except PhyllomeError as exc:
                    raise self._failed(exc, "moving") from exc
        raise self._failed(self._stuck(), "moving")

    def _refuse_clones(self) -> None:
        """Take no disk away from the destination that another guest there needs.

        Raises:
            PhyllomeError: one does.
        """
        mark = self._view.destination.mark
        if mark is not None and mark.phase != "returning":
            try:
                self._undo.refuse_clones(self._view, mark)
            except PhyllomeError as exc:
                raise self._failed(exc, "refused") from exc

    def _refuse_used(self, names: t.Collection[str]) -> None:
        """Delete nothing that a guest of the source has now.

        Raises:
            PhyllomeError: one has some of it.
        """
        connection = self._pair.source.connection
        used = {name: guest for name, guest in needed_by_others(connection, "").items() if name in names}
        if used:
            raise self._failed(
                PhyllomeError(
                    f"What moves of {self._view.name} have left cannot be removed",
                    "; ".join(f"the guest {guest} has {name}, or stands on it" for name, guest in sorted(used.items())),
                    "Give these guests other disks first, or remove them.",
                ),
                "refused",
            )

    @contextlib.contextmanager
    def _only(self) -> t.Iterator[None]:
        """Be the only run that moves the guest.

        Raises:
            Busy: another one is at it.
        """
        if self._held:
            yield
            return
        with self._pair.journal.alone(self._view.uuid):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def _stuck(self) -> PhyllomeError:
        return PhyllomeError(
            f"The move of {self._view.name} does not come forward",
            f"after {_ROUNDS} steps: {self._row.meaning}",
            "Look at the journal of libvirt on both hosts.",
        )

    def _move(self, check_mode: bool) -> dict[str, t.Any]:
        if self._row.action == "none":
            return self._result(changed=False, phase="done")
        if self._row.action == "decide" and self._pair.order.truth == "source":
            self._refuse_clones()
        if check_mode:
            self._judge()
            return self._result(changed=True, phase="planned")
        view, progress, journal = self._view, self._progress, self._pair.journal
        while True:
            try:
                with self._only():
                    return self._alone()
            except Busy as busy:
                answer = progress.attend(view.uuid, view.op_id, journal, busy)
                if answer is not None:
                    return opened(answer)

    def _alone(self) -> dict[str, t.Any]:
        """Move the guest, which nobody else does, and leave word for those who wait for it."""
        view, progress = self._view, self._progress
        progress.begin(
            view.uuid, view.op_id, name=view.name, source=view.source.host, destination=view.destination.host
        )
        try:
            result = self._moved()
        except PhyllomeError as exc:
            progress.end(closed(exc))
            raise
        except Exception:  # a fault of ours: whoever follows or waits has nothing else to read
            progress.end({"crash": traceback.format_exc()})
            raise
        progress.end({"result": result})
        return result

    def _moved(self) -> dict[str, t.Any]:
        self._advance()
        if self._mover.told.wrong:
            raise self._failed(
                PhyllomeError(
                    f"The guest {self._view.name} is on {self._view.destination.host}, but not all of it is right",
                    "; ".join(self._mover.told.wrong),
                    f"Compare with what {self._view.source.host} has retained (leftovers) before you remove that.",
                ),
                "done",
            )
        return self._result(changed=True, phase="done")

    def _advance(self) -> None:
        """Do what the row asks for until the guest is where it belongs.

        Raises:
            PhyllomeError: it did not come about; both hosts say where the guest is.
        """
        stumbled: set[str] = set()
        tries = 0
        for dummy in range(_ROUNDS):
            try:
                self._look()
            except PhyllomeError as exc:
                raise exc if exc.facts else self._failed(exc, "moving") from exc
            action, view, mover = self._row.action, self._view, self._mover
            if action == "none":
                return
            try:
                made_of = self._judge()
            except PhyllomeError as exc:
                mover.failure = mover.failure or exc
            if action == "start" and mover.failure is not None:
                (self._cold if Cold.has(view) else mover).roll_back(view)
                raise self._failed(mover.failure, mover.failure.facts.get("phase", "rolled_back"))
            try:
                with virt.saying(f"The move of {view.name} was interrupted", "Run it again: it goes on from here."):
                    if action == "start":
                        tries += 1
                        if self._mode[0] in ("warm", "cold"):
                            self._cold.start(view, made_of, "warm" if self._mode[0] == "warm" else "cold")
                        else:
                            mover.start(view, made_of)
                    elif action == "discard":
                        (self._cold if Cold.has(view) else mover).discard(view)
                        if tries < _TRIES:
                            mover.failure = None
                    elif action == "hand_over" or (action == "finish" and Cold.has(view)):
                        getattr(self._cold, action)(view)
                    elif action in ("take_back", "decide"):
                        getattr(self._undo, action)(view)
                    elif action == "recover":
                        postcopy.recover(mover, view)
                    else:
                        getattr(mover, action)(view)
            except PhyllomeError as exc:
                if action in stumbled:
                    raise self._failed(exc, "moving") from exc
                stumbled.add(action)  # a daemon may just have been restarted: look again, once
        raise self._failed(self._stuck(), "moving")

    def _judge(self) -> Guest:
        """Plan, and find all that stands against it.

        Raises:
            PhyllomeError: something does.
        """
        pair, view, row = self._pair, self._view, self._row
        starts = row.action in ("start", "discard")
        side = pair.destination if view.source.state in ("absent", "unreachable") else pair.source
        begun = None
        if Cold.has(view):
            begun = view.record.mode if view.record is not None and view.record.by_files else "cold"
        ways: list[tuple[str | None, str]] = [*modes(pair.order, view.source.state, begun)]
        if row.action in ("none", "finish", "destroy_source", "decide"):
            ways = [self._mode]
        made_of = self._fitting(side, ways if starts else ways[:1], starts or row.action in ("wait", "resume_source"))
        if not len(self._plan):
            self._plan = plan(pair.order, view, row, made_of)
        if self._blockers:
            raise self._failed(
                PhyllomeError(
                    f"The guest {view.name} cannot move to {view.destination.host}",
                    "; ".join(blocker.what for blocker in self._blockers),
                    " ".join(blocker.fix for blocker in self._blockers),
                ),
                "blocked",
            )
        return made_of

    def _fitting(self, side: Side, ways: t.Sequence[tuple[str | None, str]], sizes: bool) -> Guest:
        """Choose the first way that nothing stands against, or else the first one; the guest as it is read for it."""
        self._mode = ways[0]
        made_of, self._blockers = self._tried(side, ways[0], sizes)
        for way in ways[1:]:
            if not self._blockers:
                break
            other, found = self._tried(side, way, sizes)
            if not found:
                self._mode = way[0], f"{ways[0][0]} is not possible: {self._blockers[0].what}"
                made_of, self._blockers = other, found
        return made_of

    def _tried(self, side: Side, way: tuple[str | None, str], sizes: bool) -> tuple[Guest, list[Blocker]]:
        """The guest as it is read for a way, and what stands against it."""
        view = self._view
        mark = None if self._row.action in ("start", "discard") else view.destination.mark or view.source.mark

        def shares(disk: Disk) -> bool:
            return self._pair.order.shares(disk) if mark is None else disk.path in mark.shared

        by_files = way[0] in ("warm", "cold")
        flatten = self._pair.order.flatten
        made_of = guest(side, view.uuid, sizes=sizes, shares=shares, cold=by_files, flatten=flatten)
        made_of = dataclasses.replace(
            made_of,
            seeds=tuple(filter(os.path.exists, made_of.seeds)),
            former=tuple(filter(os.path.exists, made_of.former)),
        )
        return made_of, self._against(made_of, way[0] or "live") if self._row.action in ("start", "discard") else []

    def _against(self, made_of: Guest, mode: str) -> list[Blocker]:
        """What stands against moving the guest like that."""
        view = self._view
        offered = offer(self._pair, made_of, mode)
        if made_of.shared:
            apart = not_shared(self._pair.destination, made_of, view.op_id, write=not self._check_mode)
            offered = dataclasses.replace(offered, not_shared=apart)
        ours: t.Collection[str] = ()
        if view.record is not None and view.record.phase == "started":
            ours = view.record.staged.values() if view.record.by_files else view.record.pieces.values()
        arrived = view.destination.mark
        if arrived is not None and arrived.op_id == view.op_id:
            ours = [*ours, *arrived.files]
        self._warnings = unknown(made_of, offered, view.destination.host)
        if made_of.shared and self._check_mode:
            self._warnings.append(
                "That the storage is the same on both hosts is proved when the guest moves: that takes writing to it."
            )
        return blockers(self._pair.order, view, made_of, offered, mode, ours)

    def _refusal(self, row: judge.Row | None) -> PhyllomeError:
        view = self._view
        here, there = view.source, view.destination
        guest_name = view.name or self._pair.order.shown
        where = f"{here.host}: {here.detail or here.state}; {there.host}: {there.detail or there.state}"
        words = judge.words(row, here.state, there.state, view.mark, here.job)
        if here.state == there.state == "absent":
            error = PhyllomeError(
                f"There is no guest {guest_name}",
                f"neither {here.host} nor {there.host} has it",
                "Correct name or uuid.",
            )
        elif row is judge.CLASH:
            error = PhyllomeError(
                f"The guest {guest_name} cannot move to {there.host}",
                "; ".join(filter(None, (here.clash, there.clash))),
                "Rename or remove the other guest; nothing was touched.",
            )
        elif view.mark == "other" and (here.mark or there.mark) and there.state == "absent":
            mark = here.mark or there.mark
            error = PhyllomeError(
                f"The guest {guest_name} is on another move",
                f"from {mark.source} to {mark.destination} (op_id {mark.op_id}), which is not finished",  # type: ignore[union-attr]
                f"Finish that one first: run it again with destination: {mark.destination} on {mark.source}.",  # type: ignore[union-attr]
            )
        elif row is not None and row.meaning == judge.LOST:
            error = postcopy.lost(view)
        elif row is None and words:
            error = PhyllomeError(
                f"The guest {guest_name} cannot be moved: {judge.ALONE.meaning}",
                where,
                f"Nothing was touched. If the copy on {here.host} is the right one, say truth: source: it goes on there, and then it "
                "moves again.",
            )
        elif row is None:
            error = PhyllomeError(
                f"The guest {guest_name} cannot be moved: what is seen has no safe meaning",
                f"{where}; job: {here.job}, mark: {view.mark}",
                "Nothing was touched. Look which host has the right one, and undefine the other.",
            )
        elif row.number == 5:
            error = self._twice(row, where, bool(words))
        elif words:
            error = PhyllomeError(f"The guest {guest_name} cannot be moved: {row.meaning}", where, _DECIDE)
        else:
            error = PhyllomeError(
                f"The guest {guest_name} cannot be moved: {row.meaning}",
                where,
                "Nothing was touched. Look which host has the right one, and stop or undefine the other.",
            )
        return self._failed(error, "refused")

    def _twice(self, row: judge.Row, where: str, decidable: bool) -> PhyllomeError:
        """Two guests where there was one; they are suspended if that was asked for."""
        view, order = self._view, self._pair.order
        done = "Nothing was touched."
        if order.suspend_both and not self._check_mode and view.source.job == "none":
            with self._only():
                self._undo.suspend_both(view)
            done = "Where it ran it is suspended now, and nothing else was touched."
        if decidable:
            remedy = _DECIDE
        else:
            where += "; truth does not help, as they are not copies by one move" if order.truth else ""
            remedy = "Look which host has the right one, and stop or undefine the other."
        return PhyllomeError(f"The guest {view.name} cannot be moved: {row.meaning}", where, f"{done} {remedy}")

    def _failed(self, error: PhyllomeError, phase: str) -> PhyllomeError:
        """The error, with everything that is known."""
        known = self._result(changed=False, phase=phase)
        known.pop("changed")
        known["changed"] = phase == "done"
        error.facts = {**known, **error.facts}
        return error

    def _result(self, changed: bool, phase: str) -> dict[str, t.Any]:
        view = getattr(self, "_view", None)
        told: Told = self._mover.told
        row = getattr(self, "_row", None)
        result: dict[str, t.Any] = {
            "changed": changed,
            "phase": phase,
            "classification": row.number if row is not None else None,
            "mode_used": told.mode or self._mode[0],
            "mode_reason": self._mode[1],
            "plan": self._plan.as_list(),
            "blockers": [vars(blocker) for blocker in self._blockers],
            "disks": told.disks,
            "identity": told.identity,
            "stats": {**told.stats, "total_s": round(time.monotonic() - self._began, 3)},
            "leftovers": told.leftovers,
            "warnings": [*self._warnings, *told.warnings],
        }
        if view is not None:
            result["op_id"] = view.op_id if view.uuid else None
            result["source"] = view.source.as_dict()
            result["destination"] = view.destination.as_dict()
            result["diff"] = self._plan.diff(f"guest {view.name}")
        return result
