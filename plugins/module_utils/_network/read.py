# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read what libvirt and the kernel know about networks.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from .._core import virt, xml
from . import spec

ROUTES = "/proc/net/route"


@dataclasses.dataclass(frozen=True)
class Found:
    """A network that exists.

    Attributes:
        uuid: its identity in libvirt.
        active: it has been started.
        persistent: it survives being stopped.
        autostart: it starts with the host.
        values: canonical values by option, None where the XML says nothing.
        xml: the persistent XML, the live one of a transient network.
        users: names of the running guests that are connected to it.
    """

    uuid: str
    active: bool
    persistent: bool
    autostart: bool
    values: t.Mapping[str, t.Any]
    xml: str
    users: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class World:
    """What the plan is made from.

    Attributes:
        found: the network, or None.
        taken: IPv4 networks that the host routes to by interfaces of its own, and other networks of
            libvirt; the network's own bridge does not count.
    """

    found: Found | None
    taken: tuple[ipaddress.IPv4Network, ...]


def read(connection: t.Any, name: str, routes: str) -> World:
    """The network and its surroundings.

    Args:
        connection: a libvirt connection.
        name: the network's name.
        routes: text of /proc/net/route of the connection's host; empty when it is not this host.

    Raises:
        PhyllomeError: libvirt refuses.
    """
    with virt.saying(f"Cannot read network {name}"):
        network = virt.found(lambda: connection.networkLookupByName(name))
        found = None if network is None else _found(connection, network)
        others = [
            subnet(xml.parse(other.XMLDesc(0))) for other in connection.listAllNetworks(0) if other.name() != name
        ]
    own = found.values["bridge"] if found and found.active else None
    return World(found, tuple(other for other in others if other) + routed(routes, own))


def _found(connection: t.Any, network: t.Any) -> Found:
    persistent = bool(network.isPersistent())
    flags = virt.libvirt.VIR_NETWORK_XML_INACTIVE if persistent else 0
    text = network.XMLDesc(flags)
    root = xml.parse(text)
    return Found(
        uuid=network.UUIDString(),
        active=bool(network.isActive()),
        persistent=persistent,
        autostart=persistent and bool(network.autostart()),
        values={row.option: row.read(root) for row in spec.FIELDS},
        xml=text,
        users=_users(connection, network.name(), root),
    )


def _users(connection: t.Any, name: str, root: xml.Element) -> tuple[str, ...]:
    bridge = xml.first(root, "bridge")
    own = None if bridge is None else bridge.get("name")
    users = set()
    for domain, (text,) in virt.domains(connection, which=virt.libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        for source in xml.parse(text).findall("devices/interface/source"):
            if source.get("network") == name or (own and source.get("bridge") == own):
                users.add(domain.name())
    return tuple(sorted(users))


def subnet(root: xml.Element) -> ipaddress.IPv4Network | None:
    """The IPv4 network that a network's XML gives to its guests."""
    found = spec.ipv4(root)
    if found is None:
        return None
    mask = found.get("prefix") or found.get("netmask")
    return ipaddress.IPv4Interface(f"{found.get('address')}/{mask}").network


def routed(text: str, own: str | None = None) -> tuple[ipaddress.IPv4Network, ...]:
    """The IPv4 networks in /proc/net/route, the default route left out.

    The file has addresses in hexadecimal in the byte order of the host, which is little-endian on x86-64
    (fib_route_seq_show in net/ipv4/fib_trie.c). libvirt reads the same file to refuse a network that is in use.

    Args:
        text: the file's text.
        own: an interface to leave out.
    """
    networks = []
    for line in text.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 8 or columns[0] == own:
            continue
        address, mask = (int.from_bytes(bytes.fromhex(columns[index]), "little") for index in (1, 7))
        if mask:
            networks.append(ipaddress.IPv4Network((address, bin(mask).count("1"))))
    return tuple(networks)
