# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt session: the only place that imports libvirt.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import typing as t

from .errors import PhyllomeError

try:
    import libvirt

    libvirt.registerErrorHandler(lambda context, error: None, None)
except ImportError:
    libvirt = None

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
            what, exc.get_error_message() or str(exc), remedy, libvirt_code=exc.get_error_code()
        ) from exc


@contextlib.contextmanager
def session(uri: str, read_only: bool = False) -> t.Iterator[t.Any]:
    """One connection for one module run: a ``libvirt.virConnect``, closed at the end.

    Args:
        uri: https://libvirt.org/uri.html.
        read_only: enough for facts; a read-only connection cannot see secrets such as the VNC password.

    Raises:
        PhyllomeError: libvirt-python is missing, or the daemon does not answer.
    """
    if libvirt is None:
        raise PhyllomeError(
            "The Python library libvirt is missing on this host",
            "guests are managed through libvirt's own interface",
            "Install python3-libvirt; the role phyllome.virt.hypervisor does.",
        )
    with saying(f"Cannot connect to libvirt at {uri}", "Is the daemon there? systemctl status libvirtd virtqemud"):
        connection = libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
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
