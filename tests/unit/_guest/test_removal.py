# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that go, and the files that must not go with them, on a libvirt in memory."""

from __future__ import annotations

import types

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError

from .fake import Domain, Hypervisor, Killed

GUEST = {"disks": [{"id": "root", "size": "1GiB"}, {"id": "data", "size": "1GiB"}]}
GONE = {"state": "absent", "delete": {"disks": "owned"}}


@pytest.fixture
def host(tmp_path, monkeypatch):
    made = Hypervisor(tmp_path, monkeypatch)
    made.converge(**GUEST)
    return made


def other(host, source, backing=""):
    """A guest that has the file too."""
    disk = f"<disk type='file' device='disk'>{source}<target dev='vda'/></disk>"
    text = f"<domain><name>other</name><uuid>x</uuid><memory>1</memory><devices>{disk}</devices></domain>"
    found = Domain(host, xml.parse(text))
    host.domains.append(found)
    return found


def test_a_guest_goes_with_its_disks_and_once(host):
    result = host.converge(**GONE)
    assert (host.domains, host.files, host.state()["disk"]) == ([], {}, [])
    assert result["changed"] and result["guest"]["state"] == "absent"
    assert host.converge(**GONE)["changed"] is False


def test_its_disks_stay_where_nothing_else_was_said(host):
    host.converge(state="absent")
    assert (host.domains, len(host.files)) == ([], 2)


@pytest.mark.parametrize(
    "source",
    [
        "<source file='{folder}/web-root.qcow2'/>",
        "<source file='{folder}/./web-root.qcow2'/>",
        "<source pool='images' volume='web-root.qcow2'/>",
    ],
)
def test_a_file_that_another_guest_names_in_any_way_stays(host, source):
    other(host, source.format(folder=host.folder))
    before = host.state()
    with pytest.raises(PhyllomeError, match="web-root.qcow2 is used by other"):
        host.converge(**GONE)
    assert host.state() == before


def test_a_file_that_a_snapshot_of_another_guest_needs_stays(host):
    text = f"<domainsnapshot><domain><x><source file='{host.folder}/web-data.qcow2'/></x></domain></domainsnapshot>"
    other(host, "").snapshots = [types.SimpleNamespace(getXMLDesc=lambda flags=0: text)]
    with pytest.raises(PhyllomeError, match="disks.data: .*web-data.qcow2 is used by other"):
        host.converge(**GONE)


def test_a_file_below_the_overlay_of_another_guest_stays(host, monkeypatch):
    from ansible_collections.phyllome.virt.plugins.module_utils._guest import storage

    monkeypatch.setattr(storage, "chain", lambda *dummy: (f"{host.folder}/web-root.qcow2",))
    other(host, "<source file='/elsewhere/overlay.qcow2'/>")
    with pytest.raises(PhyllomeError, match="disks.root: .*web-root.qcow2 is used by other"):
        host.converge(**GONE)


def test_disks_and_media_that_are_not_ours_stay(host):
    iso, mine = host.folder / "a.iso", host.folder / "mine.qcow2"
    for path in (iso, mine):
        path.touch()
        host.files[str(path)] = 1024**3
    host.converge(
        **GUEST | {"disks": [*GUEST["disks"], {"id": "mine", "path": str(mine)}]},
        cdroms=[{"id": "cd", "path": str(iso)}],
    )
    host.converge(**GONE)
    assert sorted(host.files) == [str(iso), str(mine)]


def test_an_overlay_that_is_left_is_told(host):
    source = host.guest().config.find("devices/disk/source")
    source.set("file", f"{host.folder}/web-root.snapshot1")
    host.guest().live = None
    result = host.converge(**GONE)
    assert any("web-root.snapshot1 stays, an overlay of" in text for text in result["warnings"])


def test_snapshots_can_stand_against_removal(host):
    host.guest().snapshots = [types.SimpleNamespace(getXMLDesc=lambda flags=0: "<domainsnapshot/>")]
    with pytest.raises(PhyllomeError, match=r"delete.snapshots: refuse: the guest has snapshots"):
        host.converge(state="absent", delete={"snapshots": "refuse"})
    host.converge(state="absent")
    assert host.domains == []


def test_killed_anywhere_it_is_gone_the_next_time(tmp_path, monkeypatch):
    place, ended = 0, False
    while not ended:
        place += 1
        folder = tmp_path / str(place)
        folder.mkdir()
        host = Hypervisor(folder, monkeypatch)
        host.converge(**GUEST)
        host.places, host.kill_at = 0, place
        try:
            host.converge(**GONE)
            ended = True
        except Killed:
            host.kill_at = 0
            host.converge(**GONE)
        assert (host.domains, host.files, host.state()["disk"]) == ([], {}, [])
    assert place > 6
