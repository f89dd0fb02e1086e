# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The initramfs: made anew when what of ours is in it has changed, with the one before kept.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import hashlib
import os
import shutil
import typing as t

from .._core.errors import PhyllomeError
from .kernel import Kernel
from .ledger import Image, Ledger
from .persistence import MAKERS, RULES, files, in_initramfs
from .read import World

KEPT = "var/lib/phyllome/vfio/initramfs"
_PARTIAL = ".partial"
_UNDONE = (".new", _PARTIAL, "bak")
"""Ends of names beside an image: what update-initramfs, or we, had not finished when the power was cut, and older ones."""


class Images:
    """The images of a machine."""

    def __init__(self, kernel: Kernel, world: World, later: bool, save: t.Callable[[Ledger], None]) -> None:
        self.kernel = kernel
        self.maker = MAKERS.get(world.maker or "")
        self.name = world.maker
        self.was = world.ledger
        self.later = later
        self.save = save

    def begin(self, during: Ledger, after: Ledger) -> Ledger:
        """The ledger before anything is done: it knows the images as they are, so that an undo tells whether ours were made."""
        if self.was.built is not None or self._wanted(after) is None:
            return during
        seen = {path: Image(_digest(self._path(path)), None) for path in self._there()}
        return dataclasses.replace(during, images={**seen, **during.images})

    def _wanted(self, ledger: Ledger) -> str | None:
        return in_initramfs(files(ledger, self.name), self.name)

    def bring(self, during: Ledger, after: Ledger) -> Ledger:
        """Have in the images what a ledger wants there.

        Args:
            during: the ledger as it is on disk now.
            after: the ledger once all is done.

        Returns:
            The latter, with what became of the images.
        """
        built = self._wanted(after)
        if built == self.was.built:
            return dataclasses.replace(after, built=built, images=self.was.images)
        if self.later:
            return dataclasses.replace(after, built="?", images=during.images)
        if built is None:
            images = self._give_back(during.images)
        else:
            during = dataclasses.replace(during, images=self._keep(during.images))
            self.save(during)
            images = self._make(during.images)
        return dataclasses.replace(after, built=built, images=images)

    def _there(self) -> list[str]:
        """Paths of the images, without a leading slash."""
        found = []
        for folder, pattern in self.maker.images if self.maker else ():
            for path in glob.glob(f"{glob.escape(self.kernel.root)}/{folder}/*"):
                name = os.path.basename(path)
                if fnmatch.fnmatchcase(name, pattern) and not name.endswith(_UNDONE) and os.path.isfile(path):
                    found.append(os.path.relpath(path, self.kernel.root))
        return sorted(found)

    def _path(self, path: str) -> str:
        return os.path.join(self.kernel.root, path)

    def _kept(self, path: str) -> str:
        return os.path.join(self.kernel.root, KEPT, path.replace("/", "!"))

    def _keep(self, known: t.Mapping[str, Image]) -> dict[str, Image]:
        """Keep images that ours will replace."""
        images = {}
        there = self._there()
        for path in there:
            now = _digest(self._path(path))
            old = known.get(path)
            if old is None or (old.before == now and not os.path.exists(self._kept(path))):
                self._copy(self._path(path), self._kept(path))
                images[path] = Image(now, None)
            elif old.after in (None, now):
                images[path] = Image(old.before, None)
            else:  # made anew by others: what was kept is out of date
                images[path] = Image("", None)
        for path in {*known}.difference(there):
            _remove(self._kept(path))
        return images

    def _make(self, kept: t.Mapping[str, Image]) -> dict[str, Image]:
        if self.maker is None:  # nothing of ours is in an initramfs then
            return dict(kept)
        self.kernel.run(self.maker.command)
        os.sync()  # programs do not wait until what they wrote would survive a power cut
        for path in self._there():
            if RULES not in self.kernel.run([*self.maker.listing, f"/{path}"]):
                raise PhyllomeError(
                    f"/{path} was made anew without what binds devices",
                    f"/{RULES} is not in it",
                    f"See what {self.maker.command[0]} says.",
                )
        return {
            path: Image(kept[path].before if path in kept else "", _digest(self._path(path))) for path in self._there()
        }

    def _give_back(self, known: t.Mapping[str, Image]) -> dict[str, Image]:
        """Put those back that were kept; where that would undo what others did since, make all anew instead."""
        there = self._there() if self.maker else [path for path in known if os.path.exists(self._path(path))]
        if all(self._is_kept(path, known.get(path)) for path in there):
            for path in there:
                if _digest(self._path(path)) != known[path].before:
                    self._copy(self._kept(path), self._path(path))
        elif self.maker:
            self.kernel.run(self.maker.command)
        os.sync()
        for path, image in known.items():
            for kept in (self._kept(path), f"{self._kept(path)}{_PARTIAL}", f"{self._path(path)}{_PARTIAL}"):
                _remove(kept)
            if image.after is None:  # the power may have been cut while it was made
                _remove(f"{self._path(path)}.new")
        return {}

    def _is_kept(self, path: str, image: Image | None) -> bool:
        if image is None:
            return False
        now = _digest(self._path(path))
        if now == image.before:
            return True
        return (
            image.after in (None, now)
            and os.path.exists(self._kept(path))
            and _digest(self._kept(path)) == image.before
        )

    def _copy(self, source: str, target: str) -> None:
        """Copy an image with its mode; a power cut leaves no half of one under its name."""
        try:
            os.makedirs(self._path(KEPT), mode=0o700, exist_ok=True)
            partial = f"{target}{_PARTIAL}"
            shutil.copy2(source, partial)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.rename(partial, target)
        except OSError as exc:
            raise PhyllomeError(
                f"{source} cannot be copied to {target}", exc.strerror or str(exc), "Make room there."
            ) from exc


def _digest(path: str) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)
