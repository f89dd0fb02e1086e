# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Carry a plan out, and nothing else.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.plan import Change
from . import domain, read, storage
from .draft import Decision
from .plan_power import POWER_RESULT
from .spec import Wanted

_POLL = 0.25
"""Seconds between two looks at a guest that is shutting down."""

_FINISH = "What was done stays; repair what is named and run again."


class Apply:
    """One guest's plan being carried out.

    Args:
        connection: a ``libvirt.virConnect``.
        found: the guest's domain; None when it does not exist yet.
        wanted: for the way of shutting it down.
    """

    def __init__(self, connection: t.Any, found: t.Any, wanted: Wanted) -> None:
        self._connection, self._found, self._wanted = connection, found, wanted
        self.begun = False
        """Whether anything has been done."""
        self.refused: dict[str, str] = {}
        """What the running guest did not take, by path: it waits for a power cycle."""

    def run(self, decision: Decision) -> None:
        """Do all of it, in order.

        Raises:
            PhyllomeError: a step failed; the steps before it stay.
        """
        self._marker = decision.marker
        if any(change.action == "config" for change in decision.plan) and decision.config is not None:
            self._define(decision.config)
        for change in decision.plan:
            if "device" in change.args:
                self._update(change)
            elif change.action in _STEPS:
                with virt.saying(f"Guest {self._wanted.name}: {change.path} cannot be changed", _FINISH):
                    self._step(change)
            self.begun = True

    def _step(self, change: Change) -> None:
        try:
            _STEPS[change.action](self, change)
        except virt.libvirt.libvirtError:
            # libvirt may still have been busy with what a run that was cut off had asked for: is it there now?
            result = POWER_RESULT.get(change.action)
            if result is None or read.STATES.get(self._found.state()[0]) != result:
                raise

    def _define(self, config: t.Any) -> None:
        libvirt = virt.libvirt
        with virt.saying(f"Guest {self._wanted.name} cannot be defined", "Nothing was changed; see the message."):
            self._found = self._connection.defineXMLFlags(xml.dump(config), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        self.begun = True

    def _update(self, change: Change) -> None:
        """The definition is right already; what the guest refuses now it gets at its next start."""
        try:
            self._found.updateDeviceFlags(xml.dump(change.args["device"]), virt.libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except virt.libvirt.libvirtError as exc:
            self.refused[change.path] = exc.get_error_message() or str(exc)

    def _create(self, change: Change) -> None:
        args = change.args
        storage.create(args["file"], args["form"], args["size"], args["source"])
        self._finish(change)
        self._refresh(args["file"])

    def _finish(self, change: Change) -> None:
        if self._marker is None:
            return
        libvirt = virt.libvirt
        self._marker = self._marker.made({change.args["id"]})
        scope = libvirt.VIR_DOMAIN_AFFECT_CONFIG
        if self._found.isActive():
            scope |= libvirt.VIR_DOMAIN_AFFECT_LIVE
        self._found.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml.dump(self._marker.fragment()), "phyllome", xml.GUEST_NS, scope
        )

    def _grow(self, change: Change) -> None:
        args = change.args
        if args["target"] is None:
            storage.grow(args["file"], args["form"], args["size"])
            self._refresh(args["file"])
        else:
            self._found.blockResize(args["target"], args["size"], virt.libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    def _remove(self, change: Change) -> None:
        storage.remove(change.args["file"])
        self._refresh(change.args["file"])

    def _refresh(self, path: str) -> None:
        """libvirt reads a pool's directory only when told to; a pool that is off or not there needs nothing."""
        with contextlib.suppress(virt.libvirt.libvirtError):
            self._connection.storagePoolLookupByTargetPath(os.path.dirname(path)).refresh()

    def _autostart(self, change: Change) -> None:
        self._found.setAutostart(int(change.after))

    def _start(self, change: Change) -> None:
        self._found.createWithFlags(0)

    def _start_paused(self, change: Change) -> None:
        self._found.createWithFlags(virt.libvirt.VIR_DOMAIN_START_PAUSED)

    def _resume(self, change: Change) -> None:
        self._found.resume()

    def _suspend(self, change: Change) -> None:
        self._found.suspend()

    def _wakeup(self, change: Change) -> None:
        self._found.pMWakeup()

    def _destroy(self, change: Change) -> None:
        self._found.destroyFlags(virt.libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def _undefine(self, change: Change) -> None:
        self._found.undefineFlags(change.args["flags"])

    def _shutdown(self, change: Change) -> None:
        """Ask the guest's agent when it is there, then press the power button, twice; then do as declared."""
        libvirt = virt.libvirt
        timeout = float(self._wanted.shutdown_timeout)
        ways = [libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN] * 2
        if domain.agent_connected(xml.parse(self._found.XMLDesc())):
            ways.insert(0, libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        for way in ways:
            with contextlib.suppress(libvirt.libvirtError):  # an agent may be gone, a guest may stop meanwhile
                self._found.shutdownFlags(way)
            if self._stopped(timeout / len(ways)):
                return
        if not self._wanted.destroy:
            raise PhyllomeError(
                f"Guest {self._wanted.name} did not shut down within {timeout:g} s",
                "it was asked by its agent and its power button, as far as it has them",
                "Wait and run again, raise shutdown.timeout, or say shutdown.then: destroy to pull the plug.",
            )
        try:
            self._found.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
        except libvirt.libvirtError:
            self._found.destroy()  # QEMU did not end within 10 s either; plugs were to be pulled

    def _stopped(self, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while self._found.isActive():
            if time.monotonic() > end:
                return False
            time.sleep(_POLL)
        return True


_STEPS: dict[str, t.Callable[[Apply, Change], None]] = {
    "volume.create": Apply._create,
    "volume.finish": Apply._finish,
    "volume.grow": Apply._grow,
    "volume.remove": Apply._remove,
    "autostart": Apply._autostart,
    "start": Apply._start,
    "start_paused": Apply._start_paused,
    "resume": Apply._resume,
    "suspend": Apply._suspend,
    "wakeup": Apply._wakeup,
    "destroy": Apply._destroy,
    "undefine": Apply._undefine,
    "shutdown": Apply._shutdown,
}
