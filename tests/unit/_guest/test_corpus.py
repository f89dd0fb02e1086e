# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that other people and programs made: what is not declared stays, to the letter.

``corpus`` was written for these tests in the manner of what its names say: by hand, by virt-install, by cockpit, by other
managers, and with the features of Phyllome OS's published definitions (``memory`` twice, ``loader secure='no'``,
virtiofs, SPICE with GL, a list of enlightenments).
"""

from __future__ import annotations

import copy
import pathlib

import pytest
from lxml import etree

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import domain
from ansible_collections.phyllome.virt.plugins.module_utils._guest.tables import DISKS

FILES = sorted((pathlib.Path(__file__).parent / "corpus").glob("*.xml"))
LAN = [{"id": "added", "network": "default", "mac": "52:54:00:ff:ff:01"}]


def canonical(root, *without):
    """The element as canonical XML, without our marker and these paths."""
    copied = copy.deepcopy(root)
    for path in (f"metadata/{{{xml.GUEST_NS}}}guest", *without):
        xml.drop(copied, path)
    for found in copied.findall("metadata"):
        if not len(found):
            copied.remove(found)
    return etree.tostring(copied, method="c14n2", strip_text=True).decode()


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def there(request, lab):
    return lab.of(xml.parse(request.param.read_text()))


def decide(lab, there, **options):
    return lab.decide(there, name=there.name, state="present", adopt=True, **options)


def paths(decision):
    return [change.path for change in decision.plan]


def test_the_corpus_is_not_small():
    assert len(FILES) >= 30


def test_taking_a_guest_over_changes_nothing_in_it(lab, there):
    decision = decide(lab, there)
    assert paths(decision) == ["owner"]
    assert canonical(decision.config) == canonical(there.config)


def test_autostart_is_not_in_the_definition(lab, there):
    decision = decide(lab, there, autostart=True)
    assert paths(decision) == ["owner", "autostart"]
    assert canonical(decision.config) == canonical(there.config)


def test_memory_changes_memory(lab, there):
    cells = ("cpu/numa/cell[@id='0']",) if there.config.find("cpu/numa") is not None else ()
    if len(there.config.findall("cpu/numa/cell")) > 1:
        with pytest.raises(PhyllomeError, match="each cell has memory of its own"):
            decide(lab, there, memory="3GiB")
        return
    decision = decide(lab, there, memory="3GiB")
    assert paths(decision) == ["memory", "owner"]
    parts = ("memory", "currentMemory", *cells)
    assert canonical(decision.config, *parts) == canonical(there.config, *parts)
    again = lab.of(decision.config)
    assert paths(lab.decide(again, name=there.name, state="present", memory="3GiB")) == []


def test_a_new_card_adds_a_card(lab, there):
    decision = decide(lab, there, networks=LAN)
    assert {path.rpartition(".")[0] for path in paths(decision)} == {"networks.added", ""}
    added = decision.config.find("devices/interface/alias[@name='ua-added']/..")
    added.getparent().remove(added)
    assert canonical(decision.config) == canonical(there.config)


def test_a_disk_that_is_recognised_gets_an_id(lab, there):
    strangers = [
        found
        for found in DISKS.elements(there.config)
        if found.find("source").get("file") and found.find("alias") is None
    ]
    for found in strangers:
        path = found.find("source").get("file")
        decision = decide(lab, there, disks=[{"id": "mine", "path": path}])
        assert paths(decision) == ["disks.mine.id", "owner"]
        alias = "devices/disk/alias[@name='ua-mine']"
        assert decision.config.find(alias) is not None
        assert canonical(decision.config, alias) == canonical(there.config)


def test_a_protected_word_changes_the_marker_only(lab, there):
    decision = decide(lab, there, protected=True)
    assert canonical(decision.config) == canonical(there.config)
    assert domain.marker(decision.config).protected


def test_without_adopt_it_is_left_alone(lab, there):
    with pytest.raises(PhyllomeError, match="was not made by phyllome.virt"):
        lab.decide(there, name=there.name, state="present", autostart=True)
    assert paths(lab.decide(there, name=there.name, state="present")) == []


def test_what_runs_as_defined_waits_for_nothing(lab, there):
    running = lab.of(there.config, copy.deepcopy(there.config))
    assert paths(lab.decide(running, name=there.name, state="present")) == []
    assert domain.pending(running.live, running.config) == []
    assert domain.report(running, [])["migratable"]["reasons"] is not None


def test_pruning_takes_nothing_of_somebody_else(lab, there):
    decision = decide(lab, there, disks=[], cdroms=[], networks=[], unmanaged_devices="prune")
    assert paths(decision) == ["owner"]
    assert canonical(decision.config) == canonical(there.config)
