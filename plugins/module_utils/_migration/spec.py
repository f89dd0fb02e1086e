# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was asked for, checked.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t
import urllib.parse
import uuid as uuids

from .._core.errors import PhyllomeError
from .._core.names import check_name

_TLS_ONLY = {
    "tcp": "plain TCP neither hides the guest's memory nor proves who the other host is",
    "ssh": "the source's libvirt would need root's ssh key for the destination, and the data would still go beside ssh",
    "unix": "a destination is another host",
}


@dataclasses.dataclass(frozen=True)
class Order:
    """A move that was asked for.

    Attributes:
        name: the guest's, None when only the uuid was given.
        uuid: the guest's, in libvirt's form; None when only the name was given.
        source: inventory name of the source; None for its hostname.
        destination: inventory name.
        destination_uri: libvirt of the destination, as the source sees it; TLS.
        host: the host part of that URI, which its certificates have to name.
        migrate_address: IP address for the data; None for the host part, resolved.
        mode: ``auto``, ``live`` or ``cold``.
        downtime_ms: the pause to aim for; None for QEMU's default.
        auto_converge: slow the guest down when it writes faster than the network carries.
        bandwidth_mib: MiB a second at most; 0 for no limit.
        timeout: seconds for copying; 0 for no limit.
        purge: delete the source's disks instead of retaining them.
        source_is_dead: the operator's word that the source will not come back by itself.
        uri: libvirt of the source.
    """

    name: str | None
    uuid: str | None
    source: str | None
    destination: str
    destination_uri: str
    host: str
    migrate_address: str | None
    mode: str
    downtime_ms: int | None
    auto_converge: bool
    bandwidth_mib: int
    timeout: int
    purge: bool
    source_is_dead: bool
    uri: str

    @property
    def shown(self) -> str:
        """The guest, for people."""
        return self.name or self.uuid or ""


def accept(params: t.Mapping[str, t.Any]) -> Order:
    """The order in a module's parameters. Pure.

    Raises:
        PhyllomeError: a value that cannot be.
    """
    host = _host(params["destination_uri"])
    convergence = params["convergence"] or {}
    if params["source_is_dead"] and not (params["source"] and "://" in params["uri"] and _has_host(params["uri"])):
        raise PhyllomeError(
            "source_is_dead: true was said without saying which host is dead",
            "the guest is started where it waits, which ends in two of them if the wrong host is meant",
            "Run the module on the destination, with source: its inventory name and uri: its libvirt URI from there.",
        )
    for option, value in (
        ("bandwidth_mib", params["bandwidth_mib"]),
        ("timeout", params["timeout"]),
        ("convergence.downtime_ms", convergence.get("downtime_ms")),
    ):
        least = 1 if option.endswith("downtime_ms") else 0
        if value is not None and value < least:
            raise PhyllomeError(f"{option}: {value} is too small", f"it is at least {least}", "Give another number.")
    return Order(
        name=check_name(params["name"], "name") if params["name"] else None,
        uuid=_uuid(params["uuid"]) if params["uuid"] else None,
        source=params["source"],
        destination=params["destination"] or host,
        destination_uri=params["destination_uri"],
        host=host,
        migrate_address=_address(params["migrate_address"]) if params["migrate_address"] else None,
        mode=params["mode"],
        downtime_ms=convergence.get("downtime_ms"),
        auto_converge=bool(convergence.get("auto_converge")),
        bandwidth_mib=params["bandwidth_mib"],
        timeout=params["timeout"],
        purge=params["source_disks"] == "purge",
        source_is_dead=params["source_is_dead"],
        uri=params["uri"],
    )


def _host(uri: str) -> str:
    """The host part of a destination's URI.

    Raises:
        PhyllomeError: it is not qemu+tls with a host, or it switches the check of certificates off.
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise _bad_uri(uri, str(exc)) from exc
    driver, dummy, transport = parts.scheme.partition("+")
    if driver != "qemu" or parts.path != "/system":
        raise _bad_uri(uri, "guests move between system instances of QEMU")
    if transport != "tls":
        raise _bad_uri(uri, _TLS_ONLY.get(transport or ("tls" if host else "unix"), "it has to say that it means TLS"))
    if not host or port == 0:
        raise _bad_uri(uri, "it names no host")
    if "no_verify" in urllib.parse.parse_qs(parts.query, keep_blank_values=True):
        raise _bad_uri(uri, "no_verify would take any host for the destination")
    return host


def _bad_uri(uri: str, why: str) -> PhyllomeError:
    return PhyllomeError(
        f"destination_uri: {uri!r} cannot be used",
        why,
        "Write qemu+tls://HOST/system with the destination's name or address.",
    )


def _has_host(uri: str) -> bool:
    return bool(urllib.parse.urlsplit(uri).hostname)


def _uuid(value: str) -> str:
    try:
        return str(uuids.UUID(value))
    except ValueError as exc:
        raise PhyllomeError(f"uuid: {value!r} is not a uuid", str(exc), "Copy it from virsh domuuid GUEST.") from exc


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as exc:
        raise PhyllomeError(
            f"migrate_address: {value!r} is not an IP address",
            "names are looked up by whoever reads them, and hosts disagree",
            "Give the address that the destination has in the network for moves.",
        ) from exc
