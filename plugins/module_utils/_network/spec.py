# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a network is in our interface: its fields, and what the user wants of one.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import typing as t

from .._core import fields, xml
from .._core.errors import PhyllomeError
from .._core.names import check_name

AUTO = "auto"
NONE = "none"
FORWARDS = ("nat", "route", "isolated", "bridge")

CANDIDATES: tuple[ipaddress.IPv4Network, ...] = (
    *(ipaddress.IPv4Network(f"192.168.{third}.0/24") for third in range(122, 254)),
    *(ipaddress.IPv4Network(f"10.122.{third}.0/24") for third in range(256)),
    *(ipaddress.IPv4Network(f"172.30.{third}.0/24") for third in range(256)),
)
"""Where ``address: auto`` looks, in this order; the first is what libvirt's own packages use."""


class _Forward(fields.Field):
    """The forward mode; an isolated network has no ``forward`` element."""

    def write(self, root: xml.Element, value: t.Any) -> None:
        xml.drop(root, "forward")
        if value != "isolated":
            root.insert(0, xml.element("forward", None, mode=value))


class _Address(fields.Field):
    """The host's own IPv4 address in the network with its prefix length; libvirt writes a netmask or a prefix."""

    def read(self, root: xml.Element) -> t.Any:
        found = ipv4(root)
        if found is None:
            return None
        return f"{found.get('address')}/{_prefix(found)}"

    def write(self, root: xml.Element, value: t.Any) -> None:
        found = ipv4(root)
        if found is None:
            found = xml.child(root, "ip")
        interface = ipaddress.IPv4Interface(value)
        found.attrib.pop("prefix", None)
        found.set("address", str(interface.ip))
        found.set("netmask", str(interface.netmask))


class _Dhcp(fields.Field):
    """The first DHCP range as ``FIRST-LAST``, ``none`` when there is none."""

    def read(self, root: xml.Element) -> t.Any:
        found = ipv4(root)
        leases = None if found is None else xml.first(found, "dhcp/range")
        return NONE if leases is None else f"{leases.get('start')}-{leases.get('end')}"

    def write(self, root: xml.Element, value: t.Any) -> None:
        found = ipv4(root)
        if found is None:
            return
        if value == NONE:
            xml.drop(found, "dhcp")
            return
        leases = xml.ensure(found, "dhcp/range")
        start, dummy, end = value.partition("-")
        leases.set("start", start)
        leases.set("end", end)


FIELDS: tuple[fields.Field, ...] = (
    _Forward("forward", "forward/@mode", default="isolated", choices=FORWARDS),
    fields.Field("bridge", "bridge/@name"),
    fields.Field("mtu", "mtu/@size", fields.INT),
    fields.Field("domain", "domain/@name"),
    _Address("address", "ip/@address"),
    _Dhcp("dhcp", "ip/dhcp/range/@start", default=NONE),
)
"""In the order in which they are written: DHCP needs the address."""

NOT_FOR_BRIDGE = ("mtu", "domain", "address", "dhcp")
"""What the host's bridge, and not libvirt, decides (https://libvirt.org/formatnetwork.html#connectivity)."""


def ipv4(root: xml.Element) -> t.Any:
    """The network's IPv4 ``ip`` element, or None; its family defaults to ipv4."""
    return next((found for found in root.findall("ip") if found.get("family", "ipv4") == "ipv4"), None)


def _prefix(found: xml.Element) -> int:
    if found.get("prefix"):
        return int(found.get("prefix", ""))
    return ipaddress.IPv4Network(f"0.0.0.0/{found.get('netmask', '255.255.255.255')}").prefixlen


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user declared; a field that is missing or None is not managed.

    Attributes:
        name: the network's name in libvirt.
        state: present, active, inactive or absent.
        autostart: whether it starts with the host.
        fields: canonical values by option; address and dhcp may be ``auto``.
    """

    name: str
    state: str
    autostart: bool | None
    fields: t.Mapping[str, t.Any]


def wanted(params: t.Mapping[str, t.Any]) -> Wanted:
    """The module's parameters, checked.

    Raises:
        PhyllomeError: a value that no network can have, or options that exclude each other.
    """
    name = check_name(params["name"], "name")
    values = fields.accept(FIELDS, params)
    if "bridge" in values and not 0 < len(values["bridge"]) < 16:
        raise PhyllomeError(
            f"bridge: {values['bridge']!r} is not an interface name",
            "the kernel allows 1 to 15 characters",
            "Choose a shorter name.",
        )
    if "mtu" in values and not 1280 <= values["mtu"] <= 65535:
        raise PhyllomeError(
            f"mtu: {values['mtu']} is out of range",
            "guests need 1280 for IPv6, and the kernel allows 65535",
            "Give a value between 1280 and 65535.",
        )
    if values.get("address", AUTO) != AUTO:
        values["address"] = _address(values["address"])
    if values.get("dhcp", AUTO) not in (AUTO, NONE):
        values["dhcp"] = "-".join(str(_ip(part, values["dhcp"])) for part in values["dhcp"].partition("-")[::2])
    if values.get("forward") == "bridge":
        foreign = [option for option in NOT_FOR_BRIDGE if option in values]
        if foreign:
            raise PhyllomeError(
                f"forward: 'bridge' does not go with {', '.join(foreign)}",
                "the network is the one behind the host's bridge, which libvirt does not configure",
                f"Remove {', '.join(foreign)}, or choose another forward mode.",
            )
    return Wanted(name, params["state"], params["autostart"], values)


def _address(value: str) -> str:
    try:
        interface = ipaddress.IPv4Interface(value)
    except ValueError:
        interface = None
    if (
        interface is None
        or "/" not in value
        or interface.network.prefixlen > 30
        or interface.ip in (interface.network.network_address, interface.network.broadcast_address)
    ):
        raise PhyllomeError(
            f"address: {value!r} is not an address in a network",
            "it is the host's own IPv4 address in the network, with a prefix length of at most 30",
            "Write for instance 192.168.150.1/24, or auto.",
        )
    return str(interface)


def _ip(value: str, given: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(value.strip())
    except ValueError as exc:
        raise PhyllomeError(
            f"dhcp: {given!r} is not a range of addresses",
            "it is auto, none, or the first and the last address with '-' between them",
            "Write for instance 192.168.150.100-192.168.150.200.",
        ) from exc
