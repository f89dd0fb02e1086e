# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wait until a guest is ready: its agent, an address, cloud-init, a port. Each is a rung that stands on those before.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from . import domain

if t.TYPE_CHECKING:
    from .._core.xml import Element

RUNGS = ("agent", "address", "cloud_init", "port")
_BELOW = {"cloud_init": "agent", "port": "address"}

OPTIONS: dict[str, dict[str, t.Any]] = {
    "for": {"type": "list", "elements": "str", "choices": list(RUNGS), "required": True},
    "timeout": {"type": "int"},
    "port": {"type": "int"},
}

_POLL = {"agent": 10.0, "address": 1.0, "cloud_init": 2.0, "port": 1.0}
"""Seconds between two looks, where no event comes; for the agent one does."""

_RESULT = "/run/cloud-init/result.json"
"""cloud-init writes it when it is done, in every boot
(https://cloudinit.readthedocs.io/en/latest/reference/datasource_dsname_matrix.html and explanation/analyze.html)."""

_FORBIDDEN = ("disabled", "not allowed", "CommandNotFound", "not been found")


@dataclasses.dataclass(frozen=True)
class Wait:
    """What to wait for.

    Attributes:
        rungs: in the order of ``RUNGS``.
        timeout: seconds for all of it.
        port: TCP port.
    """

    rungs: tuple[str, ...]
    timeout: int
    port: int


def accept(options: t.Mapping[str, t.Any]) -> Wait:
    """Check the options of ``wait``.

    Raises:
        PhyllomeError: a number is out of range, or there is nothing to wait for.
    """
    named = set(options["for"])
    if not named:
        raise PhyllomeError(
            "wait.for is empty", "there is nothing to wait for", f"Name some of {', '.join(RUNGS)}, or leave wait out."
        )
    timeout, port = options.get("timeout"), options.get("port")
    if timeout is not None and timeout < 1:
        raise PhyllomeError(f"wait.timeout: {timeout} is too small", "it counts seconds", "Write 1 or more.")
    if port is not None and not 0 < port < 65536:
        raise PhyllomeError(f"wait.port: {port} is no TCP port", "these are 1 to 65535", "Write for instance 22.")
    if port is not None and "port" not in named:
        raise PhyllomeError(
            "wait.port is given, but wait.for has no port", "nobody would look", "Add port to wait.for."
        )
    needed = named | {_BELOW[rung] for rung in named if rung in _BELOW}
    return Wait(
        rungs=tuple(rung for rung in RUNGS if rung in needed),
        timeout=300 if timeout is None else timeout,
        port=22 if port is None else port,
    )


def until_ready(connection: t.Any, found: t.Any, wanted: Wait) -> dict[str, float]:
    """Climb the ladder.

    Args:
        connection: that delivers events.
        found: the guest's ``libvirt.virDomain``.
        wanted: how far.

    Returns:
        Seconds after which each rung was reached.

    Raises:
        PhyllomeError: it was not reached in time, or cannot be. It says how far the guest came.
    """
    begun, reached = time.monotonic(), {"running": 0.0}
    with _news(connection, found) as news:
        for rung in wanted.rungs:
            while True:
                missing = _LOOK[rung](found, _live(found, reached, rung), wanted)
                if missing is None:
                    reached[rung] = round(time.monotonic() - begun, 1)
                    break
                left = begun + wanted.timeout - time.monotonic()
                if left <= 0:
                    raise _late(found, wanted, rung, missing, reached)
                news.wait(min(left, _POLL[rung]))
                news.clear()
    return {rung: after for rung, after in reached.items() if rung != "running"}


def until_off(connection: t.Any, found: t.Any, timeout: float) -> None:
    """Wait until a guest that is being installed is off.

    Raises:
        PhyllomeError: it still runs after ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    with _news(connection, found) as news, virt.saying(f"Guest {found.name()} cannot be looked at"):
        while found.isActive():
            left = end - time.monotonic()
            if left <= 0:
                raise PhyllomeError(
                    f"Guest {found.name()}: its system is not installed after {timeout:g} s",
                    "it still runs, and was left running",
                    "Run again to wait on, or look at its console: an installer may be asking something.",
                )
            news.wait(min(left, 5))
            news.clear()


def addresses(found: t.Any, live: Element | None) -> list[str]:
    """Addresses of a running guest, from its agent, else from leases of libvirt's networks, else from the neighbours
    that this host knows. Best effort; loopback and link-local ones are left out.
    """
    if live is None:
        return []
    libvirt = virt.libvirt
    sources = [
        libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
        libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
    ]
    if domain.agent_connected(live):
        sources.insert(0, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
    for source in sources:
        with contextlib.suppress(libvirt.libvirtError):
            cards = found.interfaceAddresses(source) or {}
            told = [
                address["addr"]
                for name, card in sorted(cards.items())
                if name != "lo"
                for address in card.get("addrs") or ()
                if not address["addr"].startswith(("fe80:", "127.", "::1"))
            ]
            if told:
                return told
    return []


def cloud_init_done(found: t.Any) -> bool:
    """Whether cloud-init has done all of its work in this boot.

    Raises:
        PhyllomeError: the guest's agent may not read files, or cloud-init reports errors.
        libvirt.libvirtError: the agent does not answer.
    """
    name = found.name()
    try:
        handle = virt.agent(found, "guest-file-open", path=_RESULT, mode="r")
    except virt.libvirt.libvirtError as exc:
        said = exc.get_error_message() or str(exc)
        if any(word in said for word in _FORBIDDEN):
            raise PhyllomeError(
                f"Guest {name}: its agent may not read files",
                said,
                "Allow guest-file-open, guest-file-read and guest-file-close in the guest (BLACKLIST_RPC in "
                "/etc/sysconfig/qemu-ga), or do not wait for cloud_init.",
            ) from exc
        if "No such file" in said:
            return False
        raise
    try:
        text = virt.agent_read(found, handle)
    finally:
        with contextlib.suppress(virt.libvirt.libvirtError):
            virt.agent(found, "guest-file-close", handle=handle)
    try:
        errors = json.loads(text)["v1"]["errors"]
    except (ValueError, KeyError, TypeError):
        return False  # being written
    if errors:
        raise PhyllomeError(
            f"Guest {name}: cloud-init is done, with {len(errors)} errors",
            "; ".join(str(error) for error in errors),
            "See /var/log/cloud-init.log in the guest.",
        )
    return True


def _agent(found: t.Any, live: Element, wanted: Wait) -> str | None:
    del wanted
    if xml.first(live, "devices/channel/target[@name='org.qemu.guest_agent.0']") is None:
        raise PhyllomeError(
            f"Guest {found.name()} cannot have an agent",
            "it has no channel for one",
            "Give it one and power it off and on, or do not wait for agent or cloud_init.",
        )
    return None if domain.agent_connected(live) else "its agent is not connected"


def _address(found: t.Any, live: Element, wanted: Wait) -> str | None:
    del wanted
    return None if addresses(found, live) else "neither its agent nor a lease nor a neighbour tells an address"


def _cloud_init(found: t.Any, live: Element, wanted: Wait) -> str | None:
    del live, wanted
    try:
        return None if cloud_init_done(found) else f"it has no {_RESULT} yet"
    except virt.libvirt.libvirtError as exc:
        return f"its agent does not answer: {exc.get_error_message() or exc}"


def _port(found: t.Any, live: Element, wanted: Wait) -> str | None:
    known = addresses(found, live)
    said = "it has lost its address"
    for address in known:
        try:
            socket.create_connection((address, wanted.port), timeout=2).close()
            return None
        except OSError as exc:
            said = f"{address} port {wanted.port}: {exc.strerror or exc}"
    return said


_LOOK: dict[str, t.Callable[[t.Any, t.Any, Wait], str | None]] = {
    "agent": _agent,
    "address": _address,
    "cloud_init": _cloud_init,
    "port": _port,
}
"""What is missing for a rung, or None."""

_REMEDY = {
    "agent": "Is qemu-guest-agent installed and started in the guest? Look at its console.",
    "address": "Is its network card on the right network, and does somebody give it an address?",
    "cloud_init": "Is cloud-init installed in the guest? See /var/log/cloud-init.log there.",
    "port": "Does the service listen, and does the guest's firewall let this host in?",
}


def _live(found: t.Any, reached: t.Mapping[str, float], rung: str) -> Element:
    with virt.saying(f"Guest {found.name()} cannot be looked at while waiting for {rung}"):
        state = found.state()[0]
        if state in (virt.libvirt.VIR_DOMAIN_RUNNING, virt.libvirt.VIR_DOMAIN_BLOCKED):
            return xml.parse(found.XMLDesc())
    raise PhyllomeError(
        f"Guest {found.name()} stopped running while it was waited for",
        f"it had come as far as {_told(reached)}; next was {rung}",
        "Look at its console and its log in /var/log/libvirt/qemu, then run again.",
        reached=list(reached),
    )


def _late(found: t.Any, wanted: Wait, rung: str, missing: str, reached: t.Mapping[str, float]) -> PhyllomeError:
    return PhyllomeError(
        f"Guest {found.name()} is not ready after {wanted.timeout} s: {missing}",
        f"it came as far as {_told(reached)}; next was {rung}",
        f"{_REMEDY[rung]} Or raise wait.timeout.",
        reached=list(reached),
    )


def _told(reached: t.Mapping[str, float]) -> str:
    return ", ".join(f"{rung} (after {after:g} s)" if after else rung for rung, after in reached.items())


@contextlib.contextmanager
def _news(connection: t.Any, found: t.Any) -> t.Iterator[threading.Event]:
    """Set when the guest's agent or its state changes."""
    libvirt, news = virt.libvirt, threading.Event()

    def told(*dummy: t.Any) -> None:
        news.set()

    kinds = (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE)
    with virt.saying(f"Cannot watch guest {found.name()}"):
        numbers = [connection.domainEventRegisterAny(found, kind, told, None) for kind in kinds]
    try:
        yield news
    finally:
        for number in numbers:
            with contextlib.suppress(libvirt.libvirtError):
                connection.domainEventDeregisterAny(number)
