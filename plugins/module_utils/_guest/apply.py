# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Carry a plan out, and nothing else.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.fields import MEMORY
from .._core.plan import Change
from .._core.program import run
from . import domain, identity, luks, media, read, spec, storage
from .domain import Marker
from .draft import Decision
from .passthrough import PROGRAM
from .plan_power import POWER_RESULT
from .spec import Wanted
from .table_cpu import VIRTIO_MEM, size_of
from .values import cpus

_POLL = 0.25
"""Seconds between two looks at a guest that is shutting down."""

LIVE = ("live", "plug", "unplug")
"""Actions on a running guest that it may refuse: then they wait for a power cycle."""

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
        self._settled = False
        self.refused: dict[str, str] = {}
        """What the running guest did not take, by path: it waits for a power cycle."""

    def run(self, decision: Decision) -> None:
        """Do all of it, in order.

        Raises:
            PhyllomeError: a step failed; the steps before it stay.
        """
        self._marker = decision.marker
        for change in decision.plan:
            if change.action == "store.reset":
                # Before the definition: what is cut off here is done again, and the guest keeps no keys of the old one.
                storage.set_aside(change.args["file"])
                self.begun = True
        if any(defines(change) for change in decision.plan) and decision.config is not None:
            self._define(decision.config)
        unplugs = [change for change in decision.plan if change.action == "unplug"]
        if unplugs:
            # All at once, so that a guest that answers none of them is waited for once.
            with virt.saying(f"Guest {self._wanted.name}: {unplugs[0].path} cannot be taken out", _FINISH):
                self._unplug(unplugs)
            self.begun = True
        for change in decision.plan:
            if change.action == "unplug":
                continue
            if change.action in LIVE or {"device", "call"} & set(change.args):
                self._live(change)
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

    def _live(self, change: Change) -> None:
        """The definition is right already; what the guest refuses now it gets at its next start."""
        try:
            if "device" in change.args:
                self._update(change)
            elif "call" in change.args:
                _CALLS[change.args["call"]](self, change)
            else:
                self._plug(change)
        except virt.libvirt.libvirtError as exc:
            self.refused[change.path] = _message(exc)

    def _update(self, change: Change) -> None:
        self._found.updateDeviceFlags(xml.dump(change.args["device"]), virt.libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _balloon(self, change: Change) -> None:
        """libvirt counts what is plugged of virtio-mem into what the guest has, but not into what it is to have."""
        wanted = change.args["value"]
        self._found.setMemoryFlags(wanted // 1024, virt.libvirt.VIR_DOMAIN_AFFECT_LIVE)
        self._driven(change, lambda: bool(self._found.info()[2] * 1024 - self._plugged() == wanted))

    def _virtio_mem(self, change: Change) -> None:
        for device in xml.parse(self._found.XMLDesc()).findall(VIRTIO_MEM):  # a guest has one at most
            requested = xml.ensure(device, "target/requested")
            requested.text = MEMORY.format(change.args["value"])
            requested.set("unit", "KiB")
            self._found.updateDeviceFlags(xml.dump(device), virt.libvirt.VIR_DOMAIN_AFFECT_LIVE)
        self._driven(change, lambda: self._plugged() == change.args["value"])

    def _plugged(self) -> int:
        return size_of(xml.first(xml.parse(self._found.XMLDesc()), f"{VIRTIO_MEM}/target/current"))

    def _driven(self, change: Change, done: t.Callable[[], bool]) -> None:
        """The call only asked the guest's driver; what that did is seen afterwards."""
        end = time.monotonic() + self._wanted.unplug_timeout
        while not done():
            if time.monotonic() > end:
                self.refused[change.path] = f"the guest did not do it within {self._wanted.unplug_timeout:g} s"
                return
            time.sleep(_POLL)

    def _pin(self, change: Change) -> None:
        """``call`` is the method of ``libvirt.virDomain``, which takes a number first where there are several."""
        pin, value = getattr(self._found, change.args["call"]), change.args["value"]
        for number, text in value.items() if isinstance(value, dict) else [("", value)]:
            which, chosen = [int(number)] if number else [], cpus(text)
            wanted = tuple(cpu in chosen for cpu in range(chosen[-1] + 1))
            pin(*which, wanted, virt.libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _vcpus(self, change: Change) -> None:
        self._found.setVcpusFlags(change.args["value"], virt.libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _iotune(self, change: Change) -> None:
        target, limits = change.args["value"]
        self._found.setBlockIoTune(target, limits, virt.libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _title(self, change: Change) -> None:
        libvirt = virt.libvirt
        kind = getattr(libvirt, f"VIR_DOMAIN_METADATA_{change.args['call'].upper()}")
        self._found.setMetadata(kind, change.args["value"] or None, None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _plug(self, change: Change) -> None:
        """With the address that the definition has got, so that the guest finds it there after a power cycle too."""
        libvirt = virt.libvirt
        config = xml.parse(self._found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))
        device = xml.first(config, change.args["find"])
        if device is None:
            self.refused[change.path] = "libvirt did not take it into the definition"
            return
        try:
            self._found.attachDeviceFlags(xml.dump(device), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError:
            if xml.first(device, "address") is None:
                raise
            xml.drop(device, "address")  # in the running guest something else is there
            self._found.attachDeviceFlags(xml.dump(device), libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _unplug(self, changes: t.Sequence[Change]) -> None:
        """The calls only ask the guest; what it did is told by events, and is seen in the end.

        https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainDetachDeviceAlias
        """
        libvirt = virt.libvirt
        left = {change.args["alias"]: change for change in changes}
        told: queue.Queue[tuple[str, str]] = queue.Queue()

        def heard(connection: t.Any, found: t.Any, alias: str, answer: str) -> None:
            told.put((alias, answer))

        events = (
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, ""),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, "the guest refuses to let go of it"),
        )
        answers: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            for event, answer in events:
                handle = self._connection.domainEventRegisterAny(self._found, event, heard, answer)
                stack.callback(self._connection.domainEventDeregisterAny, handle)
            for alias in list(left):
                try:
                    self._found.detachDeviceAlias(alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
                except libvirt.libvirtError as exc:
                    self.refused[left.pop(alias).path] = _message(exc)
            end = time.monotonic() + self._wanted.unplug_timeout
            while set(left) - set(answers):
                with contextlib.suppress(queue.Empty):
                    alias, answer = told.get(timeout=max(end - time.monotonic(), 0))
                    answers[alias] = answer
                    continue
                break
        still = {found.get("name") for found in xml.parse(self._found.XMLDesc()).findall("devices/*/alias")}
        late = f"the guest did not let go of it within {self._wanted.unplug_timeout:g} s"
        for alias, change in left.items():
            if alias in still:
                self.refused[change.path] = answers.get(alias) or late
            elif self._marker is not None:
                self._note(self._marker.without(change.args["id"]))

    def _create(self, change: Change) -> None:
        args = change.args
        key = spec.passphrase(self._wanted, args["id"])
        storage.create(args["file"], args["form"], args["size"], args["source"], args.get("method", "full"), key)
        self._finish(change)
        self._refresh(args["file"])

    def _finish(self, change: Change) -> None:
        if self._marker is not None:
            self._note(self._marker.made({change.args["id"]}))

    def _note(self, marker: Marker) -> None:
        libvirt = virt.libvirt
        self._marker = marker
        scope = libvirt.VIR_DOMAIN_AFFECT_CONFIG
        if self._found.isActive():
            scope |= libvirt.VIR_DOMAIN_AFFECT_LIVE
        self._found.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml.dump(marker.fragment()), "phyllome", xml.GUEST_NS, scope
        )

    def _create_medium(self, change: Change) -> None:
        media.create(change.args["file"], change.args["medium"])
        self._finish(change)
        self._refresh(change.args["file"])

    def _remove_medium(self, change: Change) -> None:
        self._remove(change)
        if self._marker is not None and "id" in change.args:
            self._note(self._marker.without_volume(change.args["id"]))

    def _grow(self, change: Change) -> None:
        args = change.args
        if args["target"] is None:
            storage.grow(args["file"], args["form"], args["size"], spec.passphrase(self._wanted, args["id"]))
            self._refresh(args["file"])
        else:
            self._found.blockResize(args["target"], args["size"], virt.libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    def _remove(self, change: Change) -> None:
        storage.remove(change.args["file"])
        self._refresh(change.args["file"])

    def _set_secret(self, change: Change) -> None:
        """Nobody can ask whether a private secret has its value, so only what is complete is called so."""
        args, key = change.args, spec.passphrase(self._wanted, change.args["id"]) or ""
        for done in (False, True):
            secret = self._connection.secretDefineXML(luks.definition(args["uuid"], args["file"], done))
            if not done:
                secret.setValue(key.encode())

    def _remove_secret(self, change: Change) -> None:
        self._connection.secretLookupByUUIDString(change.args["uuid"]).undefine()

    def _remove_snapshots(self, change: Change) -> None:
        identity.remove_tree(change.args["folder"])

    def _refresh(self, path: str) -> None:
        """libvirt reads a pool's directory only when told to; a pool that is off or not there needs nothing."""
        with contextlib.suppress(virt.libvirt.libvirtError):
            self._connection.storagePoolLookupByTargetPath(os.path.dirname(path)).refresh()

    def _autostart(self, change: Change) -> None:
        if change.args["flag"] is not None:
            self._found.setAutostart(int(change.args["flag"]))

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

    def _forget(self, change: Change) -> None:
        """libvirt removes the variables together with the guest, but not those that were set aside."""
        if change.args["file"].startswith("/"):
            storage.remove(storage.aside(change.args["file"]))

    def _undefine(self, change: Change) -> None:
        self._found.undefineFlags(change.args["flags"])

    def _settle(self, change: Change) -> None:
        """All rules of the guest at once, in turn with those that udev has the program run for."""
        if not self._settled:
            self._settled = True
            run(["/usr/bin/python3", "-I", PROGRAM, self._found.name()], timeout=300, remedy=_FINISH)

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


def _message(exc: t.Any) -> str:
    return (exc.get_error_message() or str(exc)).strip()


def defines(change: Change) -> bool:
    """Whether a change is one of the definition."""
    return change.action == "config" or bool(change.args.get("define"))


_CALLS: dict[str, t.Callable[[Apply, Change], None]] = {
    "balloon": Apply._balloon,
    "virtio_mem": Apply._virtio_mem,
    **dict.fromkeys(("pinVcpuFlags", "pinIOThread", "pinEmulator"), Apply._pin),
    "vcpus": Apply._vcpus,
    "iotune": Apply._iotune,
    "title": Apply._title,
    "description": Apply._title,
}
"""How a running guest is told of a field, by ``Field.call``."""

_STEPS: dict[str, t.Callable[[Apply, Change], None]] = {
    "volume.create": Apply._create,
    "volume.finish": Apply._finish,
    "volume.grow": Apply._grow,
    "volume.remove": Apply._remove,
    "secret.set": Apply._set_secret,
    "secret.remove": Apply._remove_secret,
    "store.remove": Apply._forget,
    "snapshots.remove": Apply._remove_snapshots,
    "medium.create": Apply._create_medium,
    "medium.remove": Apply._remove_medium,
    "autostart": Apply._autostart,
    "start": Apply._start,
    "start_paused": Apply._start_paused,
    "resume": Apply._resume,
    "suspend": Apply._suspend,
    "wakeup": Apply._wakeup,
    "destroy": Apply._destroy,
    "undefine": Apply._undefine,
    "shutdown": Apply._shutdown,
    "plug.settle": Apply._settle,
}
