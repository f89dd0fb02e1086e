# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the guests of one run take of the host together. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import collections
import typing as t

from .tables import DOMAIN

if t.TYPE_CHECKING:
    from .._core.plan import Change
    from .._core.xml import Element

_MEMORY = DOMAIN[""][0]
_ROWS = {row.option: row for row in DOMAIN["memory"]}


def memory(root: Element | None) -> tuple[int, int]:
    """Size of the huge pages that a guest's memory is made of, 0 for the usual ones, and bytes that it takes to start.

    Huge pages are reserved whole; of the others the guest has what its balloon leaves.
    """
    if root is None:
        return 0, 0
    pages, size = _ROWS["hugepages"].read(root) or 0, _MEMORY.read(root) or 0
    return pages, size if pages else min(size, _ROWS["current"].read(root) or size)


class Promised:
    """What was promised to guests of this run, of what the host had when the run began: the same in check mode."""

    def __init__(self) -> None:
        self._taken: dict[str, collections.Counter[tuple[str, int]]] = {}

    def others(self, name: str, what: str, which: int = 0) -> int:
        """Bytes that other guests than this take.

        Args:
            name: of the guest.
            what: ``memory`` or ``space``.
            which: size of the pages, or number of the file system.
        """
        return sum(taken[what, which] for guest, taken in self._taken.items() if guest != name)

    def add(
        self,
        name: str,
        changes: t.Iterable[Change],
        live: Element | None,
        config: Element | None,
        system: t.Callable[[str], int],
    ) -> None:
        """A guest was admitted.

        Args:
            name: of the guest.
            changes: what is done for it.
            live: the guest as it ran before.
            config: its definition.
            system: tells the number of the file system of a file.
        """
        taken = self._taken.setdefault(name, collections.Counter())
        for change in changes:
            if change.action in ("start", "start_paused"):
                pages, size = memory(config)
                taken["memory", pages] += size
            elif change.action in ("shutdown", "destroy"):
                pages, size = memory(live)
                taken["memory", pages] -= size
            elif "needs" in change.args:
                taken["space", system(change.args["file"])] += change.args["needs"]
