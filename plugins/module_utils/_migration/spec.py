# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was asked for, checked.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t
import urllib.parse
import uuid as uuids

from .._core.errors import PhyllomeError
from .._core.names import check_name
from .policy import Policy

if t.TYPE_CHECKING:
    from .read_guest import Disk

_REFUSED = {
    "tcp": "plain TCP neither hides the guest's memory nor proves who the other host is",
    "unix": "a destination is another host",
}
MOST_CONNECTIONS = 255
"""multifd-channels of QEMU's migration parameters (uint8)."""
_SSH_QUERY = frozenset({"keyfile", "no_tty", "mode", "socket"})
"""What a URI with ssh may add: the rest would run another program, or not check who the other host is."""


@dataclasses.dataclass(frozen=True)
class Order:
    """A move that was asked for.

    Attributes:
        name: the guest's, None when only the uuid was given.
        uuid: the guest's, in libvirt's form; None when only the name was given.
        source: inventory name of the source; None for its hostname.
        destination: inventory name.
        destination_uri: libvirt of the destination, as the source sees it; TLS or ssh.
        ssh: whether it is ssh; then memory and disks go through ssh too.
        host: the host part of that URI, which its certificates have to name.
        migrate_address: IP address for the data; None for the host part, resolved.
        mode: ``auto``, ``live``, ``warm`` or ``cold``.
        allow: the modes that ``auto`` may take; empty for what it takes by itself.
        policy: what to do about a guest that writes faster than the network carries.
        bandwidth_mib: MiB a second at most; 0 for no limit.
        timeout: seconds for copying; 0 for no limit.
        purge: delete the source's disks instead of retaining them.
        source_is_dead: the operator's word that the source will not come back by itself.
        truth: the operator's word which of two copies is the guest: ``source``, ``destination`` or None.
        suspend_both: stop both when there are two.
        uri: libvirt of the source.
        verify: how a cold move proves what it copied: ``stream``, ``none`` or ``full``.
        power_after: ``same``, ``running`` or ``off``.
        shutdown_timeout: seconds that a running guest gets to shut down for a cold move.
        destroy: pull the plug when it does not.
        state: ``migrated``, ``rolled_back``, ``committed`` or ``cleaned``.
        hostdevs: which device of the destination the guest gets, by the id of the one that it has.
        parallel: connections for the memory; 0 for QEMU's usual single stream.
        flatten: make one file of a disk and all that is below it.
        storage: ``copy`` or ``shared``, by a disk's id or target; under no name for all others.
    """

    name: str | None
    uuid: str | None
    source: str | None
    destination: str
    destination_uri: str
    ssh: bool
    host: str
    migrate_address: str | None
    mode: str
    policy: Policy
    bandwidth_mib: int
    timeout: int
    purge: bool
    source_is_dead: bool
    uri: str
    verify: str = "stream"
    power_after: str = "same"
    shutdown_timeout: int = 120
    destroy: bool = False
    state: str = "migrated"
    hostdevs: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    allow: tuple[str, ...] = ()
    parallel: int = 0
    truth: str | None = None
    suspend_both: bool = False
    flatten: bool = False
    storage: t.Mapping[str, str] = dataclasses.field(default_factory=lambda: {"": "copy"})

    @property
    def shown(self) -> str:
        """The guest, for people."""
        return self.name or self.uuid or ""

    def shares(self, disk: Disk) -> bool:
        """Whether both hosts are said to have a disk."""
        said = self.storage.get(disk.id) if disk.id else None
        return (said or self.storage.get(disk.target) or self.storage[""]) == "shared"


def accept(params: t.Mapping[str, t.Any]) -> Order:
    """The order in a module's parameters. Pure.

    Raises:
        PhyllomeError: a value that cannot be.
    """
    uri, host, ssh = _destination(params["destination_uri"])
    if ssh and params["migrate_address"]:
        raise PhyllomeError(
            f"migrate_address: {params['migrate_address']} was given with a destination_uri of ssh",
            "memory and disks go through ssh then",
            "Remove it, or write qemu+tls://HOST/system.",
        )
    asked = {name: value for name, value in (params["convergence"] or {}).items() if value is not None}
    if "downtime_ms" in asked:
        asked.setdefault("max_downtime_ms", max(asked["downtime_ms"], Policy.max_downtime_ms))
    policy = Policy(**asked)
    shutdown = {"timeout": 120, "then": "fail", **(params["shutdown"] or {})}
    if params["mode"] == "live" and params["power_after"] == "off":
        raise PhyllomeError(
            "mode: live was asked for together with power_after: off",
            "a guest that shall be off is shut down before it is copied",
            "Say mode: cold, or mode: auto.",
        )
    if params["source_is_dead"] and not (params["source"] and "://" in params["uri"] and _has_host(params["uri"])):
        raise PhyllomeError(
            "source_is_dead: true was said without saying which host is dead",
            "the guest is started where it waits, which ends in two of them if the wrong host is meant",
            "Run the module on the destination, with source: its inventory name and uri: its libvirt URI from there.",
        )
    for given, why in (
        (
            params["state"] != "migrated" and f"state: {params['state']}",
            "what is decided is where the guest goes on from",
        ),
        (params["source_disks"] == "purge" and "source_disks: purge", "what the other copy has written is kept"),
        (params["source_is_dead"] and "source_is_dead: true", "a dead source has no second copy that runs"),
    ):
        if params["truth"] and given:
            raise PhyllomeError(
                f"truth: {params['truth']} was given together with {given}",
                why,
                "Leave that out; say it in a later run.",
            )
    if params["parallel"] > MOST_CONNECTIONS:
        raise PhyllomeError(
            f"parallel: {params['parallel']} is too much",
            f"QEMU makes at most {MOST_CONNECTIONS} connections",
            "One for each CPU that may be busy with a move is enough.",
        )
    if params["parallel"] and policy.on_stall == "post_copy":
        raise PhyllomeError(
            f"parallel: {params['parallel']} was given with convergence.on_stall: post_copy",
            "QEMU fetches memory that the guest waits for through a single stream",
            "Remove one of the two.",
        )
    if params["parallel"] and ssh:
        raise PhyllomeError(
            f"parallel: {params['parallel']} was given with a destination_uri of ssh",
            "ssh is a single stream",
            "Remove it, or write qemu+tls://HOST/system.",
        )
    for option, value in (
        ("bandwidth_mib", params["bandwidth_mib"]),
        ("timeout", params["timeout"]),
        ("parallel", params["parallel"]),
        ("shutdown.timeout", shutdown["timeout"]),
        ("convergence.downtime_ms", policy.downtime_ms),
        ("convergence.max_downtime_ms", policy.max_downtime_ms),
    ):
        least = 1 if option.endswith("_ms") else 0
        if option.endswith("max_downtime_ms"):
            least = policy.downtime_ms
        if value < least:
            raise PhyllomeError(f"{option}: {value} is too small", f"it is at least {least}", "Give another number.")
    if params["allow"] and params["mode"] != "auto":
        raise PhyllomeError(
            f"allow was given together with mode: {params['mode']}", "it limits mode: auto", "Remove one of the two."
        )
    return Order(
        name=check_name(params["name"], "name") if params["name"] else None,
        uuid=_uuid(params["uuid"]) if params["uuid"] else None,
        source=params["source"],
        destination=params["destination"] or host,
        destination_uri=uri,
        ssh=ssh,
        host=host,
        migrate_address=_address(params["migrate_address"]) if params["migrate_address"] else None,
        mode=params["mode"],
        policy=policy,
        bandwidth_mib=params["bandwidth_mib"],
        timeout=params["timeout"],
        parallel=params["parallel"],
        truth=params["truth"],
        suspend_both=params["on_split_brain"] == "suspend_both",
        flatten=params["chain"] == "flatten",
        storage=_storage(params["storage"]),
        purge=params["source_disks"] == "purge",
        source_is_dead=params["source_is_dead"],
        uri=params["uri"],
        verify=params["verify"],
        power_after=params["power_after"],
        shutdown_timeout=shutdown["timeout"],
        destroy=shutdown["then"] == "destroy",
        state=params["state"],
        hostdevs=_hostdevs(params["hostdevs"] or {}),
        allow=tuple(params["allow"] or ()),
    )


_DEVICE = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _hostdevs(given: t.Mapping[str, t.Any]) -> dict[str, str]:
    for name, value in given.items():
        if not _DEVICE.fullmatch(str(value).lower()):
            raise PhyllomeError(
                f"hostdevs.{name}: {value!r} is no device",
                "a device is named by its PCI address, or a mediated one by its uuid",
                "Write for instance 0000:01:00.0; USB devices are found by what they are, and need no entry.",
            )
    return {str(name): str(value).lower() for name, value in given.items()}


def _storage(given: t.Any) -> dict[str, str]:
    """``copy`` or ``shared``, by a disk's id or target; under no name for all others."""
    each = given if isinstance(given, dict) else {"": given}
    if not all(value in ("copy", "shared") for value in each.values()):
        raise PhyllomeError(
            f"storage: {given!r} cannot be",
            "disks are copied, or both hosts have them",
            "Write copy or shared, or one of them for each disk: {data: shared}; the others are copied.",
        )
    return {"": "copy", **{str(name): value for name, value in each.items()}}


def _destination(uri: str) -> tuple[str, str, bool]:
    """A destination's URI as libvirt gets it, its host part, and whether it is ssh.

    Raises:
        PhyllomeError: it is neither qemu+tls nor qemu+ssh with a host, or it switches checks off.
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise _bad_uri(uri, str(exc)) from exc
    driver, dummy, transport = parts.scheme.partition("+")
    if driver != "qemu" or parts.path != "/system":
        raise _bad_uri(uri, "guests move between system instances of QEMU")
    if transport not in ("tls", "ssh"):
        raise _bad_uri(uri, _REFUSED.get(transport or ("tls" if host else "unix"), "it has to say that it means TLS"))
    if not host or port == 0:
        raise _bad_uri(uri, "it names no host")
    query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
    if "no_verify" in query:
        raise _bad_uri(uri, "no_verify would take any host for the destination")
    if transport == "tls":
        return uri, host, False
    if set(query) - _SSH_QUERY:
        raise _bad_uri(uri, f"with ssh it may add {', '.join(sorted(_SSH_QUERY))}, and nothing else")
    if host.startswith("-") or (parts.username or "").startswith("-"):
        raise _bad_uri(uri, "ssh would take it for an option")
    if "no_tty" not in query:  # libvirt's word for: ask nobody
        uri += ("&" if parts.query else "?") + "no_tty=1"
    return uri, host, True


def _bad_uri(uri: str, why: str) -> PhyllomeError:
    return PhyllomeError(
        f"destination_uri: {uri!r} cannot be used",
        why,
        "Write qemu+tls://HOST/system, or qemu+ssh://root@HOST/system, with the destination's name or address.",
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
