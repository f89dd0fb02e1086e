# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt session: the only place that imports libvirt.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import threading
import typing as t

from .errors import PhyllomeError

try:
    import libvirt

    libvirt.registerErrorHandler(lambda context, error: None, None)
except ImportError:
    libvirt = None

try:
    import libvirt_qemu  # comes with the other
except ImportError:
    libvirt_qemu = None

_QEMU_CONF = "/etc/libvirt/qemu.conf"
REMEDY = "See the journal of libvirtd (or virtqemud) on that host."


@contextlib.contextmanager
def saying(what: str, remedy: str = REMEDY) -> t.Iterator[None]:
    """Turn a libvirtError into a PhyllomeError that says what was being done.

    Args:
        what: for instance ``Cannot define guest web``.
        remedy: what to do then.

    Raises:
        PhyllomeError: with the fact ``libvirt_code`` (https://libvirt.org/html/libvirt-virterror.html).
    """
    try:
        yield
    except libvirt.libvirtError as exc:
        raise PhyllomeError(
            what, (exc.get_error_message() or str(exc)).strip(), remedy, libvirt_code=exc.get_error_code()
        ) from exc


_events: threading.Thread | None = None


def start_events() -> None:
    """Let connections that are opened from now on deliver events and answer keep-alives.

    libvirt wants its event loop registered before the first connection
    (https://libvirt.org/html/libvirt-libvirt-event.html#virEventRegisterDefaultImpl).
    """
    global _events
    if _events is None:
        libvirt.virEventRegisterDefaultImpl()
        _events = threading.Thread(target=_run_events, name="libvirt events", daemon=True)
        _events.start()


def _run_events() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def patience() -> tuple[int, int]:
    """After how many silent seconds this host's libvirt asks another one whether it is there, and how often it asks.

    qemu.conf: keepalive_interval and keepalive_count; what it has as its default where it is switched off, since
    nobody wants to wait for ever.
    """
    set_to = {"interval": 5, "count": 5}
    with contextlib.suppress(OSError), open(_QEMU_CONF, encoding="utf-8") as stream:
        found = re.findall(r"^\s*keepalive_(interval|count)\s*=\s*(\d+)", stream.read(), re.MULTILINE)
        set_to.update({name: int(value) for name, value in found if int(value) > 0})
    return set_to["interval"], set_to["count"]


def _own_runtime(uri: str) -> None:
    """A user's libvirt is where the user's login says; become does not say it, and libvirt would start another one."""
    runtime = f"/run/user/{os.getuid()}"
    if uri.split("?")[0].endswith("/session") and "XDG_RUNTIME_DIR" not in os.environ and os.path.isdir(runtime):
        os.environ["XDG_RUNTIME_DIR"] = runtime


@contextlib.contextmanager
def session(uri: str, read_only: bool = False, keep_alive: bool = False) -> t.Iterator[t.Any]:
    """One connection for one module run: a ``libvirt.virConnect``, closed at the end.

    Args:
        uri: https://libvirt.org/uri.html.
        read_only: enough for facts; a read-only connection cannot see secrets such as the VNC password.
        keep_alive: deliver events, and notice that the other end is gone as soon as this host's libvirt would.

    Raises:
        PhyllomeError: libvirt-python is missing, or the daemon does not answer.
    """
    if libvirt is None:
        raise PhyllomeError(
            "The Python library libvirt is missing on this host",
            "guests are managed through libvirt's own interface",
            "Install python3-libvirt; the role phyllome.virt.hypervisor does.",
        )
    _own_runtime(uri)
    with saying(f"Cannot connect to libvirt at {uri}", "Is the daemon there? systemctl status libvirtd virtqemud"):
        if keep_alive:
            start_events()
        connection = libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
    if keep_alive:
        with contextlib.suppress(libvirt.libvirtError):  # not every transport has keep-alives
            connection.setKeepAlive(*patience())
    try:
        yield connection
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()


def found(lookup: t.Callable[[], t.Any], *missing: int) -> t.Any:
    """What a look-up finds, or None when libvirt answers that it does not exist.

    Args:
        lookup: for instance ``lambda: connection.lookupByName(name)``.
        missing: further error codes that mean the same.
    """
    codes = {
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_NO_NETWORK,
        libvirt.VIR_ERR_NO_STORAGE_POOL,
        libvirt.VIR_ERR_NO_STORAGE_VOL,
        *missing,
    }
    try:
        return lookup()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() in codes:
            return None
        raise


def domains(connection: t.Any, *flags: int, which: int = 0) -> t.Iterator[tuple[t.Any, list[str]]]:
    """Domains and their XML, once for each of ``flags``; one that goes away while they are asked is left out.

    Args:
        connection: a ``libvirt.virConnect``.
        flags: virDomainXMLFlags; none for the XML as it is.
        which: virConnectListAllDomainsFlags.

    Raises:
        libvirt.libvirtError: libvirt does not tell.
    """
    for domain in connection.listAllDomains(which):
        texts = found(lambda domain=domain: [domain.XMLDesc(each) for each in flags or (0,)])  # type: ignore[misc]
        if texts is not None:
            yield domain, texts


_AGENT_TIMEOUT = 10


def agent(domain: t.Any, command: str, **arguments: t.Any) -> t.Any:
    """Ask a guest's agent (https://qemu-project.gitlab.io/qemu/interop/qemu-ga-ref.html).

    Args:
        domain: a ``libvirt.virDomain``.
        command: for instance ``guest-file-open``.
        arguments: of the command.

    Returns:
        The value of ``return``.

    Raises:
        libvirt.libvirtError: it does not answer within 10 s, or refuses.
    """
    asked = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuAgentCommand(domain, asked, _AGENT_TIMEOUT, 0))["return"]


def agent_read(domain: t.Any, handle: int, count: int = 65536) -> str:
    """The first bytes of a file that the agent has opened, as text.

    Raises:
        libvirt.libvirtError: as ``agent``.
    """
    read = agent(domain, "guest-file-read", handle=handle, count=count)
    return base64.b64decode(read["buf-b64"]).decode(errors="replace")
