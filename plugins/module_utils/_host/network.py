# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The network of the host: interfaces, routes and the connection that we came through, as the kernel says it.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import sys
import typing as t

from .._core.sysfs import Tree

MIB = 1 << 20
_RTF_REJECT = 0x200  # include/uapi/linux/route.h


@dataclasses.dataclass(frozen=True)
class Interface:
    """A network interface.

    Attributes:
        hardware: path of the device it belongs to; None for a virtual one.
        below: names of the interfaces it is made of.
        above: names of those that are made of it.
        state: operstate (RFC 2863); None when unknown.
    """

    name: str
    hardware: str | None
    below: tuple[str, ...]
    above: tuple[str, ...]
    state: str | None


@dataclasses.dataclass(frozen=True)
class Route:
    """A route of the kernel."""

    interface: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network


def read_interfaces(tree: Tree, unknown: set[str]) -> dict[str, Interface]:
    names = tree.names("sys/class/net")
    if names is None or "sys/class/net" in tree.unread:
        unknown.add("interfaces")
    interfaces = {}
    for name in names or ():
        if name == "bonding_masters":  # a file, not an interface
            continue
        path = tree.follow(f"sys/class/net/{name}")
        there = None if path is None else tree.names(path)
        if path is None or there is None:
            unknown.add("interfaces")
            continue
        below = [entry[6:] for entry in there if entry.startswith("lower_")]
        above = [entry[6:] for entry in there if entry.startswith("upper_")]
        if "bonding" in there:
            below += (tree.text(f"{path}/bonding/slaves") or "").split()
        if "brif" in there:
            below += tree.names(f"{path}/brif") or ()
        if "master" in there:
            above.append((tree.follow(f"{path}/master") or "?").rpartition("/")[2])
        interfaces[name] = Interface(
            name=name,
            hardware=None if "/virtual/" in path else path,
            below=tuple(sorted({*below})),
            above=tuple(sorted({*above})),
            state=tree.text(f"{path}/operstate") or None,
        )
    return interfaces


def read_routes(tree: Tree, unknown: set[str]) -> tuple[tuple[Route, ...], bool]:
    """Routes of IPv4's main table and of all tables of IPv6, and see _default_elsewhere."""
    four = tree.lines("proc/net/route", 16 * MIB)
    if not four or not four[0].startswith("Iface"):
        unknown.add("routes")
    # Without IPv6 neither file is there; with it there is a route at least for lo.
    with_six = tree.exists("proc/net/ipv6_route") or tree.exists("proc/net/if_inet6")
    six = tree.lines("proc/net/ipv6_route", 16 * MIB) if with_six else None
    if with_six and not six:
        unknown.add("routes")
    routes = [*_parsed(tree, "proc/net/route", _route4, (four or ())[1:], unknown)]
    routes += _parsed(tree, "proc/net/ipv6_route", _route6, six or (), unknown)
    return tuple(routes), _default_elsewhere(tree, unknown)


def _parsed(
    tree: Tree, path: str, parse: t.Callable[[list[str]], Route | None], lines: t.Iterable[str], unknown: set[str]
) -> t.Iterator[Route]:
    for line in lines:
        try:
            route = parse(line.split())
        except (ValueError, IndexError, OverflowError):
            tree.note(path, "a line of it is not understood")
            unknown.add("routes")
        else:
            if route is not None:
                yield route


def _route4(words: list[str]) -> Route | None:
    if int(words[3], 16) & _RTF_REJECT:
        return None
    # The kernel prints the number as it lies in memory.
    network, mask = (ipaddress.IPv4Address(int(word, 16).to_bytes(4, sys.byteorder)) for word in (words[1], words[7]))
    return Route(words[0], ipaddress.IPv4Network(f"{network}/{mask}"))


def _route6(words: list[str]) -> Route | None:
    if int(words[8], 16) & _RTF_REJECT or words[9] == "lo":
        return None
    network = ipaddress.IPv6Address(bytes.fromhex(words[0]))
    return Route(words[9], ipaddress.IPv6Network(f"{network}/{int(words[1], 16)}"))


def _default_elsewhere(tree: Tree, unknown: set[str]) -> bool:
    """Whether a table besides main and local has a default route; ``fib_trie`` shows all tables."""
    lines = tree.lines("proc/net/fib_trie", 16 * MIB)
    if not any(line in ("Main:", "Local:") for line in lines or ()):  # there is no kernel without them
        unknown.add("routes")
    table, leaf = "", ""
    for line in lines or ():
        text = line.strip()
        if text.endswith(":"):
            table = text
        elif text.startswith("|--"):
            leaf = text[3:].strip()
        elif text.startswith("/0 ") and leaf == "0.0.0.0" and table not in ("Main:", "Local:") and "UNICAST" in text:
            return True
    return False


def read_connection(tree: Tree, unknown: set[str]) -> tuple[str, ...]:
    """Our own SSH connection. sudo drops the variable, so our ancestors are asked as well."""
    process = "self"
    for dummy in range(64):
        environ = tree.data(f"proc/{process}/environ", MIB)
        if environ is None:
            unknown.add("connection")
        for entry in (environ or b"").split(b"\0"):
            if entry.startswith(b"SSH_CONNECTION="):
                words = entry.decode("ascii", "replace").partition("=")[2].split()
                if len(words) == 4:
                    unknown.discard("connection")
                    return words[0], words[2]
                unknown.add("connection")
        stat = (tree.text(f"proc/{process}/stat") or "").rpartition(")")[2].split()
        if len(stat) < 2 or not stat[1].isdigit():
            unknown.add("connection")
            return ()
        process = stat[1]
        if process in ("0", "1"):
            return ()
    unknown.add("connection")
    return ()
