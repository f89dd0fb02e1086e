"""One bridge per fleet, translated addresses towards the registries, and broken wires on demand."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from .errors import LabError, call

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def bridge(number: int) -> str:
    """The bridge of fleet `number`."""
    return f"phl{number}"


def machine(number: int, index: int) -> str:
    """The container name of host `index` (from 1): short, since interface names are made of it."""
    return f"phl{number}h{index}"


def port(number: int, index: int) -> str:
    """The bridge's end of the cable to a host (systemd-nspawn makes the name)."""
    return f"vb-{machine(number, index)}"


def table(number: int) -> str:
    """The nftables table of fleet `number`, in the families ip and bridge."""
    return f"phyllome_lab_{number}"


def network(number: int) -> ipaddress.IPv4Network:
    """The addresses of fleet `number`."""
    return ipaddress.IPv4Network(f"10.78.{number}.0/24")


def address(number: int, index: int) -> str:
    """The address of host `index`, counted from 1."""
    if not 1 <= index <= 253:
        raise LabError(f"a fleet has room for 253 hosts, not for number {index}")
    return str(network(number)[index])


def gateway(number: int) -> str:
    """The bridge's own address."""
    return str(network(number)[254])


def rules(number: int) -> str:
    """What nftables is told when a fleet comes up."""
    name, net = table(number), network(number)
    return f"""
table ip {name} {{
    chain nat {{
        type nat hook postrouting priority srcnat
        ip saddr {net} ip daddr != {net} masquerade
    }}
}}
table bridge {name} {{
    chain faults {{
        type filter hook forward priority 0
    }}
}}
"""


def drop_rule(source: str, target: str, number: int, protocol: str = "tcp", side: str = "dport") -> str:
    """Lose frames that come in on bridge port `source`, leave by `target` and name a TCP/UDP port.

    `side` says whose port `number` is: `dport` loses requests to it, `sport` loses its replies.
    """
    if side not in ("dport", "sport") or protocol not in ("tcp", "udp"):
        raise LabError(f"cannot drop by {protocol} {side}")
    return f'iifname "{source}" oifname "{target}" {protocol} {side} {number} counter drop'


def handle(printed: str) -> int:
    """The number of the rule that `nft --echo --handle` says it has added."""
    found = re.search(r"# handle (\d+)$", printed, re.M)
    if not found:
        raise LabError(f"nft did not say which rule it added: {printed!r}")
    return int(found.group(1))


def up(number: int) -> None:
    """Make the bridge and its rules, and let the machine forward."""
    name = bridge(number)
    call("ip", "link", "add", name, "type", "bridge")
    call("ip", "address", "add", f"{gateway(number)}/24", "dev", name)
    call("ip", "link", "set", name, "up")
    call("nft", "-f", "-", input=rules(number).encode())
    FORWARD.write_text("1")


def down(number: int) -> None:
    """Remove what `up` made, or what there is of it."""
    for family in ("ip", "bridge"):
        call("nft", "delete", "table", family, table(number), check=False)
    call("ip", "link", "delete", bridge(number), check=False)


def leftovers() -> set[int]:
    """Numbers of fleets that have a bridge or a table, whether or not anything else is known of them."""
    names = [line.split()[1].rstrip(":").split("@")[0] for line in call("ip", "-o", "link").splitlines()]
    found = [name.removeprefix("phl") for name in names if name.startswith("phl")]
    tables = [line.split()[-1] for line in call("nft", "list", "tables").splitlines() if line.strip()]
    found += [name.removeprefix("phyllome_lab_") for name in tables if name.startswith("phyllome_lab_")]
    return {int(text) for text in found if text.isdigit()}
