# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.phyllome.virt.plugins.filter.addresses import addresses


def test_sorted_into_kinds_in_canonical_form():
    given = ["10.0.0.10", "10.0.0.2", "FD00:0:0::1", "fd00::1", "Alpha.Example.", "alpha", "alpha"]
    assert addresses(given) == {
        "ipv4": ["10.0.0.2", "10.0.0.10"],
        "ipv6": ["fd00::1"],
        "names": ["alpha", "alpha.example"],
    }


def test_what_names_nobody_in_particular_is_left_out():
    given = ["", None, "localhost", "localhost.localdomain", "ip6-localhost", "127.0.1.1", "::1", "0.0.0.0", " "]
    assert addresses(given) == {"ipv4": [], "ipv6": [], "names": []}
