# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sorts what names a host into addresses and names."""

from __future__ import annotations

import ipaddress
import typing as t

DOCUMENTATION = r"""
name: addresses
short_description: Sort what names a host into addresses and names
version_added: 0.1.0
description:
  - An inventory names a host by an IP address or by a name. Certificates and firewalls want to know which it is.
author:
  - The Phyllome OS community (@phyllome)
options:
  _input:
    description: Addresses and names in any order; what is empty, and what means the host itself everywhere, is left out.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the addresses of the fleet
  ansible.builtin.debug:
    msg: "{{ (['10.0.0.1', 'FD00:0::1', 'alpha.example'] | phyllome.virt.addresses).ipv6 }}"
"""

RETURN = r"""
_value:
  description: C(ipv4), C(ipv6) and C(names), each sorted and without repetitions, addresses in their shortest form.
  type: dict
"""


def addresses(values: t.Iterable[t.Any]) -> dict[str, list[str]]:
    """Sort what names a host into ``ipv4``, ``ipv6`` and ``names``.

    Args:
        values: addresses and names; ``localhost`` and loopback addresses are left out.
    """
    found: dict[int, set[ipaddress.IPv4Address | ipaddress.IPv6Address]] = {4: set(), 6: set()}
    names = set()
    for value in values:
        text = str(value or "").strip().lower().rstrip(".")
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            if text and text.partition(".")[0] not in ("localhost", "ip6-localhost"):
                names.add(text)
            continue
        if not address.is_loopback and not address.is_unspecified:
            found[address.version].add(address)
    return {
        "ipv4": [str(address) for address in sorted(found[4], key=int)],
        "ipv6": [str(address) for address in sorted(found[6], key=int)],
        "names": sorted(names),
    }


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters by name."""
        return {"addresses": addresses}
