# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lies between two hosts: versions, certificates, ports.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import re
import socket
import typing as t

from .._core import program
from .._core.errors import PhyllomeError
from .read import Pair
from .spec import Order

PORTS = (49152, 49215)
"""The first and the last port that libvirt takes for memory and disks (qemu.conf: migration_port_min and _max)."""
_KNOCK = 2.0
"""Seconds for an answer: a network with more delay than this is none for a live move."""

_QEMU_CONF = "/etc/libvirt/qemu.conf"
_CERTIFICATES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")


@dataclasses.dataclass(frozen=True)
class Way:
    """What lies between the hosts. None is unknown, an empty text is that nothing is wrong.

    Attributes:
        qemu: versions at the source and at the destination, as libvirt counts: 7002000 is 7.2.0.
        libvirt: likewise.
        certificates: what is wrong with the source's certificates for the data.
        ports: what the network answers at the ports for the data, when that means that nothing gets through.
    """

    qemu: tuple[int, int]
    libvirt: tuple[int, int]
    certificates: str | None
    ports: str


def address(order: Order) -> str:
    """Where memory and disks go: the address that was given, or the first one of the destination as this host knows it.

    Raises:
        PhyllomeError: nobody knows it.
    """
    if order.migrate_address:
        return order.migrate_address
    try:
        return str(socket.getaddrinfo(order.host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as exc:
        raise PhyllomeError(
            f"destination_uri: {order.host!r} has no address", str(exc), "Give migrate_address, or correct the name."
        ) from exc


def way(pair: Pair) -> Way:
    """What lies between the hosts.

    Raises:
        PhyllomeError: libvirt does not say.
    """
    ssh = pair.order.ssh  # that libvirt answers at all says all that there is to say
    where = "" if ssh else address(pair.order)
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as beside:
        certificates = beside.submit(lambda: "" if ssh else check(folder()))
        ports = beside.submit(knock, where, () if ssh else PORTS)
        (qemu_here, libvirt_here), (qemu_there, libvirt_there) = (
            side.ask(lambda connection: (int(connection.getVersion()), int(connection.getLibVersion())))
            for side in (pair.source, pair.destination)
        )
    return Way((qemu_here, qemu_there), (libvirt_here, libvirt_there), certificates.result(), ports.result())


def shown(version: int) -> str:
    """A version that libvirt has counted, for people. Pure."""
    return f"{version // 10**6}.{version // 1000 % 1000}.{version % 1000}"


def knock(host: str, ports: t.Iterable[int] = PORTS) -> str:
    """What stands between this host and the ports for data of another one.

    Nothing listens there before a move, so a refusal by the host itself is the good answer: the
    knock was heard. Silence, and an answer by somebody on the way, are not.
    """
    for port in ports:
        try:
            socket.create_connection((host, port), timeout=_KNOCK).close()
        except ConnectionRefusedError:
            continue
        except (socket.timeout, TimeoutError):  # one name for two things, from Python 3.10 on
            return f"port {port} of {host} does not answer, as behind a firewall"
        except OSError as exc:
            return f"port {port} of {host}: {exc.strerror or exc}"
    return ""


def folder() -> str:
    """Where this host's certificates for migration data are.

    qemu.conf: migrate_tls_x509_cert_dir, /etc/pki/libvirt-migrate if that exists,
    default_tls_x509_cert_dir, /etc/pki/qemu.
    """
    settings = {}
    with contextlib.suppress(OSError), open(_QEMU_CONF, encoding="utf-8") as stream:
        settings = dict(re.findall(r'^\s*(\w+)\s*=\s*"([^"]*)"', stream.read(), re.MULTILINE))
    place = settings.get("migrate_tls_x509_cert_dir") or "/etc/pki/libvirt-migrate"
    if not os.path.isdir(place):
        place = settings.get("default_tls_x509_cert_dir") or "/etc/pki/qemu"
    return place


def check(place: str) -> str | None:
    """What is wrong with the certificates in a folder; None when the program that can tell is not there."""
    missing = [name for name in _CERTIFICATES if not os.path.exists(os.path.join(place, name))]
    if missing:
        return f"{place} has no {', '.join(missing)}"
    authority, certificate = (os.path.join(place, name) for name in _CERTIFICATES[:2])
    try:
        program.run(["openssl", "verify", "-purpose", "sslclient", "-CAfile", authority, certificate])
    except PhyllomeError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            return None
        said = re.search(r"error \d+ at \d+ depth lookup: *(.*)", exc.why)
        return f"{certificate}: {said.group(1) if said else exc.why}"
    return ""
