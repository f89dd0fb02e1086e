# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a network to what is declared: read, plan, do what the plan says, read again.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core import named, virt, xml
from .._core.plan import Change, Plan
from . import spec
from .plan import plan
from .read import ROUTES, World, read


def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The module phyllome_network."""
    wanted = spec.wanted(params)
    if check_mode and virt.libvirt is None:
        missing = "libvirt is not installed on this host: planned as if no network were there"
        return {**_result(wanted, plan(wanted, World(None, ())), None), "warnings": [missing]}
    with virt.session(params["uri"], read_only=check_mode) as connection:
        routes = _routes(params["uri"])
        before = read(connection, wanted.name, routes)
        todo = plan(wanted, before)
        if check_mode or not todo:
            return _result(wanted, todo, before)
        after = before

        def left() -> Plan:
            nonlocal after
            after = read(connection, wanted.name, routes)
            return plan(wanted, after)

        named.carry_out(todo, _STEPS, connection, wanted.name, left, f"Network {wanted.name}")
        return _result(wanted, todo, after)


def _routes(uri: str) -> str:
    """The routes of this host; a network of another host (``qemu+tls://...``) has nothing to do with them."""
    if "+" in uri.partition(":")[0]:
        return ""
    with open(ROUTES, encoding="ascii") as file:
        return file.read()


def _result(wanted: spec.Wanted, todo: Plan, world: World | None) -> dict[str, t.Any]:
    found = world.found if world else None
    network = None
    if found is not None:
        network = {"name": wanted.name, "uuid": found.uuid, "active": found.active, "autostart": found.autostart}
        network.update(found.values)
    return {
        "changed": todo.changed,
        "plan": todo.as_list(),
        "diff": todo.diff(f"network {wanted.name}"),
        "network": network,
    }


def _define(connection: t.Any, name: str, change: Change) -> None:
    existing = virt.found(lambda: connection.networkLookupByName(name))
    if existing is None:
        root = xml.element("network")
        xml.child(root, "name", name)
    else:
        flags = virt.libvirt.VIR_NETWORK_XML_INACTIVE if existing.isPersistent() else 0
        root = xml.parse(existing.XMLDesc(flags))
    values = change.args.get("values", {})
    if "forward" in values and existing is not None:
        _leave_mode(root, values["forward"])
    for row in spec.FIELDS:
        if row.option in values:
            row.write(root, values[row.option])
    with virt.saying(f"Cannot define network {name}"):
        connection.networkDefineXML(xml.dump(root))


def _leave_mode(root: xml.Element, forward: str) -> None:
    """Drop what does not go with the new forward mode: only the name is left of a bridge."""
    bridge = xml.first(root, "bridge")
    name = None if bridge is None else bridge.get("name")
    if forward == "bridge":
        for path in ("ip", "domain", "mtu", "mac", "dns", "route", "bridge"):
            xml.drop(root, path)
        if name:
            xml.child(root, "bridge", None, name=name)


def _dhcp(connection: t.Any, name: str, change: Change) -> None:
    """Change the DHCP range of a running network, now and for the next start (virNetworkUpdate)."""
    lib = virt.libvirt
    network = connection.networkLookupByName(name)
    flags = lib.VIR_NETWORK_UPDATE_AFFECT_LIVE | lib.VIR_NETWORK_UPDATE_AFFECT_CONFIG
    ip = spec.ipv4(xml.parse(network.XMLDesc(0)))
    old = [] if ip is None else ip.findall("dhcp/range")
    new = []
    if change.args["values"]["dhcp"] != spec.NONE:
        start, dummy, end = change.args["values"]["dhcp"].partition("-")
        new = [xml.element("range", None, start=start, end=end)]
    with virt.saying(f"Cannot change the DHCP range of network {name}"):
        for command, ranges in (
            (lib.VIR_NETWORK_UPDATE_COMMAND_DELETE, old[:1]),
            (lib.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, new),
        ):
            for leases in ranges:
                network.update(command, lib.VIR_NETWORK_SECTION_IP_DHCP_RANGE, -1, xml.dump(leases), flags)


_STEPS: dict[str, named.Step] = {
    **named.steps("network", lambda connection, name: connection.networkLookupByName(name)),
    "define": _define,
    "dhcp": _dhcp,
}
