# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several guests of one call take together: who does not fit is refused, the others go on, in check mode too."""

from __future__ import annotations

import contextlib

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import converge, media, read_host, spec, storage

from .fake import GIB, Hypervisor

MIB = 1024**2
PAGE = 2 * MIB


@pytest.fixture
def host(tmp_path, monkeypatch):
    host = Hypervisor(tmp_path, monkeypatch)
    monkeypatch.setattr(virt, "session", lambda uri, **more: contextlib.nullcontext(host))
    monkeypatch.setattr(media, "program", lambda: ("xorriso",))
    return host


def together(guests, check, **defaults):
    """Messages of the guests that were refused, by name."""
    given = {**dict.fromkeys(spec.ARGUMENTS), "uri": "qemu:///system", "guests": guests, "defaults": defaults}
    try:
        results = converge.converge(given, check)["results"]
    except PhyllomeError as exc:
        results = exc.facts["results"]
    return {result["name"]: result["msg"] for result in results if result["failed"]}


def both(host, guests, **defaults):
    """The same, of check mode and of the run after it."""
    foreseen = together(guests, True, **defaults)
    assert host.told == []
    assert together(guests, False, **defaults) == foreseen
    return foreseen


def named(*names, **more):
    return [{"name": name, **more} for name in names]


def test_disks_of_several_guests_need_room_together(host, tmp_path, monkeypatch):
    image = tmp_path / "image.qcow2"
    image.touch()
    host.files[str(image)] = GIB
    monkeypatch.setattr(storage, "inspect", lambda path, checksum=None: storage.Image("qcow2", GIB, 300 * MIB))
    monkeypatch.setattr(storage, "free", lambda folder: 701 * MIB - len(host.files))
    disks = [{"id": "root", "source": {"path": str(image)}}]
    linked = {"name": "d", "disks": [{"id": "root", "source": {"path": str(image), "method": "linked"}}]}
    guests = [*named("a", "b", "c", disks=disks), linked]
    refused = both(host, guests)
    assert list(refused) == ["c"], "the linked one is small enough"
    assert f"304MiB are needed in {tmp_path}: 92MiB are free there" in refused["c"]
    assert together(guests, False) == {}, "what the others needed less than was kept for them is there the next time"


def test_a_seed_takes_room_as_well(host, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "free", lambda folder: 13 * MIB)
    seeded = {"disks": [{"id": "root", "size": "1GiB"}], "cloud_init": {"user_data": {"hostname": "x"}}}
    refused = together(named("a", "b", **seeded), True)
    assert list(refused) == ["b"]
    assert f"cloud_init.seed: 4MiB are needed in {tmp_path}: 1MiB are free there" in refused["b"]


def test_directories_of_one_file_system_are_added_up(lab):
    disks = [{"id": "a", "path": "/one/a", "size": "1GiB"}, {"id": "b", "path": "/two/b", "size": "1GiB"}]
    world = {"free": {"/one": 6 * MIB, "/two": 6 * MIB}}
    lab.decide(disks=disks, world={**world, "systems": {"/one": 1, "/two": 2}})
    with pytest.raises(PhyllomeError, match="8MiB are needed in /one and /two: 6MiB are free there"):
        lab.decide(disks=disks, world={**world, "systems": {"/one": 1, "/two": 1}})


def test_guests_that_start_need_memory_together(host):
    host.available = 10 * GIB
    guests = [*named("a", "b", "c", memory="4GiB"), *named("off", memory="40GiB", state="present")]
    guests += [{"name": "thin", "memory": {"size": "4GiB", "current": "1GiB"}}]
    refused = both(host, guests)
    assert list(refused) == ["c"]
    assert "memory: 4GiB are needed: 2048MiB are available on this host" in refused["c"]
    again = together(guests[:2], False)
    assert again == {}, "they run, and nothing of theirs starts"


def test_memory_comes_back_from_a_guest_that_stops(host):
    host.available = 4 * GIB
    assert together(named("a", memory="4GiB"), False) == {}
    host.available = 4096
    assert list(together(named("b", memory="4GiB"), True)) == ["b"]
    told = [{"name": "a", "state": "stopped"}, *named("b", "c", memory="4GiB")]
    assert list(together(told, True)) == ["c"]
    more = {"name": "a", "memory": "4GiB", "vcpus": 2, "apply": "restart"}
    assert together([more], True) == {}, "what it gives back is enough for itself"
    assert list(together([{**more, "memory": "5GiB"}], True)) == ["a"]


def test_huge_pages_are_added_up(host, monkeypatch):
    monkeypatch.setattr(read_host, "hugepages", lambda: {PAGE: 1024})
    host.available = 4096
    huge = {"size": "1GiB", "hugepages": "2MiB"}
    refused = both(host, named("a", "b", "c", memory=huge))
    assert list(refused) == ["c"]
    assert "512 pages of 2MiB are needed: 0 are free" in refused["c"]


def test_who_is_refused_leaves_its_share_to_the_others(host):
    host.available = 6 * GIB
    wrong = {"name": "a", "memory": "4GiB", "networks": [{"id": "lan", "network": "nowhere"}]}
    assert list(both(host, [wrong, *named("b", memory="4GiB")])) == ["a"]
