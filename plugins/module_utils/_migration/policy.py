# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What to do about a guest that writes faster than the network carries: a schedule, as data.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

OnStall = t.Literal["suspend", "post_copy", "abort"]

STEPS: tuple[tuple[int, float], ...] = ((1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0))
"""After so many rounds without progress: how far from downtime_ms to max_downtime_ms the limit is raised."""
LAST = 6
"""Rounds without progress after which ``on_stall`` is done."""
LAST_SLOWED = 24
"""The same while QEMU slows the CPUs down, by a tenth in every second of its rounds: that needs its time."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a live move comes to its end.

    Attributes:
        downtime_ms: how long the guest may stand still; the default is QEMU's.
        max_downtime_ms: how long when it makes no progress.
        auto_converge: slow its CPUs down then.
        on_stall: what is done when all that does not help. ``suspend`` stops the guest until it has arrived;
            ``post_copy`` has it go on at the destination at once, and fetches its memory from the source.
    """

    downtime_ms: int = 300
    max_downtime_ms: int = 2000
    auto_converge: bool = False
    on_stall: OnStall = "suspend"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One look at a migration: QEMU's round through the memory, and bytes of memory that are still to be sent."""

    round: int
    remaining: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the limit of the downtime has to be, and whether it is time for the last resort."""

    downtime_ms: int
    last_resort: OnStall | None = None


def extended(history: tuple[Sample, ...], sample: Sample) -> tuple[Sample, ...]:
    """The history with one more look, if it shows another round than the last one. Pure."""
    if history and history[-1].round == sample.round:
        return history
    return (*history, sample)


def decide(policy: Policy, history: t.Sequence[Sample]) -> Verdict:
    """What has to be done. Pure; what was once granted is not taken back.

    The first round sends everything and tells nothing. From then on a look that finds no less to
    be sent than the least so far is a round without progress.

    Args:
        policy: what was asked for.
        history: one sample for each round that was seen.
    """
    least: int | None = None
    idle = most_idle = 0
    for sample in history:
        if sample.round <= 1:
            continue
        if least is None or sample.remaining < least:
            least, idle = sample.remaining, 0
        else:
            idle += 1
        most_idle = max(most_idle, idle)
    share = max((share for rounds, share in STEPS if most_idle >= rounds), default=0.0)
    limit = policy.downtime_ms + round(share * (policy.max_downtime_ms - policy.downtime_ms))
    patience = LAST_SLOWED if policy.auto_converge else LAST
    return Verdict(limit, policy.on_stall if most_idle >= patience else None)


SMALL = 64 * 1024**2
"""Bytes of a round of a warm move that are little enough: the guest is stopped for about as many."""
SHRINKS = 0.7
"""A round that sends more than this share of the one before it does not come to an end."""
ROUNDS = 10


def enough(sent: t.Sequence[int]) -> bool:
    """Whether another round through a running guest's disks would be of no use. Pure.

    Args:
        sent: bytes that each round so far has sent; a round sends what was written during the one before it.
    """
    if not sent:
        return False
    shrinks = len(sent) < 2 or sent[-1] <= SHRINKS * sent[-2]
    return sent[-1] <= SMALL or not shrinks or len(sent) >= ROUNDS
