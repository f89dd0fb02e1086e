# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of snapshots: which steps, in which order, and every refusal."""

from __future__ import annotations

import copy
import pathlib

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import identity, read
from ansible_collections.phyllome.virt.plugins.module_utils._snapshot import spec
from ansible_collections.phyllome.virt.plugins.module_utils._snapshot.plan import plan, shown
from ansible_collections.phyllome.virt.plugins.module_utils._snapshot.read import Kept, World

DOMAINS = pathlib.Path(__file__).parents[1] / "_guest" / "domains"
PLACES = identity.places("qemu:///system")
DAY = 86400.0


def load(name):
    return xml.parse((DOMAINS / f"{name}.xml").read_text())


def world(name="windows11", live=None, state=None, config=None, managed_save=False, **over):
    config = load(name) if config is None else config
    running = load(live) if live else None
    guest = read.Guest(
        name=config.findtext("name"),
        uuid=config.findtext("uuid"),
        state=state or ("running" if live else "stopped"),
        reason="booted",
        persistent=over.pop("persistent", True),
        autostart=False,
        config=config,
        live=running,
        blocks={},
        managed_save=managed_save,
        snapshots=0,
        checkpoints=0,
        migrating=over.pop("migrating", False),
    )
    what = identity.of(config, running, PLACES)
    tags: dict = {drive.path: {} for drive in what.drives if drive.path}
    return World(**{"guest": guest, "identity": what, "tags": tags, "now": 100 * DAY, **over})


def kept(name="one", there=None, days=0.0, **over):
    there = world() if there is None else there
    values = {
        "name": name,
        "description": "",
        "created": (100 - days) * DAY,
        "state": "running",
        "memory": 5,
        "disks": tuple((drive.target, drive.path) for drive in there.identity.drives),
        "nvram": True,
        "tpm": True,
        "config": copy.deepcopy(there.guest.config),
    }
    return Kept(**{**values, **over})


def wanted(**options):
    return spec.wanted(
        {
            "name": "win",
            "snapshot": "one",
            "state": "present",
            "description": None,
            "retention": None,
            "uri": "qemu:///system",
            **options,
        }  # fmt: skip
    )


def retention(keep=None, max_age_days=None, match="*"):
    return {"keep": keep, "max_age_days": max_age_days, "match": match}


def steps(found):
    return [(change.action, change.path) for change in found]


def test_a_running_guest_rests_while_it_is_taken():
    found = plan(wanted(), world(live="windows11-live"))
    assert steps(found) == [
        ("save", "state"),
        ("take", "snapshots.one"),
        ("resume", "state"),
        ("register", "snapshots.one.libvirt"),
    ]
    assert found.changes[1].after == "disks root, memory, UEFI variables, TPM"
    assert (found.changes[2].before, found.changes[2].after) == ("saved", "running")


def test_a_guest_that_is_off_has_no_memory():
    found = plan(wanted(), world())
    assert steps(found) == [("take", "snapshots.one"), ("register", "snapshots.one.libvirt")]
    assert found.changes[0].after == "disks root, UEFI variables, TPM"
    assert found.changes[0].args["state"] == "stopped"


def test_what_is_there_stays():
    assert not plan(wanted(), world(kept=(kept(),)))
    assert not plan(wanted(), world(live="windows11-live", kept=(kept(),)))


def test_libvirt_is_told_again_and_descriptions_change():
    assert steps(plan(wanted(), world(kept=(kept(registered=False),)))) == [("register", "snapshots.one.libvirt")]
    found = plan(wanted(description="new"), world(live="windows11-live", kept=(kept(description="old"),)))
    assert steps(found) == [("describe", "snapshots.one.description"), ("register", "snapshots.one.libvirt")]


def test_a_run_that_was_cut_off_while_the_guest_rested():
    there = world(resume=True, managed_save=True, begun=("one",))
    found = plan(wanted(), there)
    assert steps(found)[:2] == [("take", "snapshots.one"), ("resume", "state")]
    assert found.changes[0].args["state"] == "running"
    finished = world(resume=True, managed_save=True, kept=(kept(),))
    assert steps(plan(wanted(), finished)) == [("resume", "state")]
    started = world(live="windows11-live", resume=True, kept=(kept(),))
    assert steps(plan(wanted(), started)) == [("settle", "state.resume")]


def test_unfinished_ones_of_other_names_are_removed():
    found = plan(wanted(), world(begun=("older",), kept=(kept(),)))
    assert steps(found) == [("remove", "snapshots.older")]
    assert "cut off" in found.changes[0].why


def test_retention_counts_the_new_one_and_spares_it():
    old = tuple(kept(f"n{days}", days=days) for days in (5.0, 3.0, 1.0))
    found = plan(wanted(snapshot="n0", retention=retention(keep=2)), world(kept=old))
    assert steps(found) == [
        ("take", "snapshots.n0"),
        ("remove", "snapshots.n5.0"),
        ("remove", "snapshots.n3.0"),
        ("register", "snapshots.n0.libvirt"),
    ]
    assert not plan(wanted(snapshot="n1.0", retention=retention(keep=3)), world(kept=old))
    found = plan(wanted(snapshot="n5.0", retention=retention(keep=1)), world(kept=old))
    assert steps(found) == [("remove", "snapshots.n3.0")]


def test_retention_by_age_and_by_name():
    old = tuple(kept(name, days=days) for name, days in (("by-hand", 50.0), ("nightly-1", 40.0), ("nightly-2", 2.0)))
    found = plan(wanted(snapshot=None, retention=retention(max_age_days=30, match="nightly-*")), world(kept=old))
    assert steps(found) == [("remove", "snapshots.nightly-1")]


def test_removing_from_a_running_guest_lets_it_rest():
    found = plan(wanted(state="absent"), world(live="windows11-live", kept=(kept(),)))
    assert steps(found) == [("save", "state"), ("remove", "snapshots.one"), ("resume", "state")]
    assert not plan(wanted(state="absent"), world())


def test_going_back_puts_everything_back():
    there = world(live="windows11-live", kept=(kept(),))
    found = plan(wanted(state="reverted"), there)
    assert [action for action, dummy in steps(found)] == [
        "destroy", "revert", "disk", "nvram", "tpm", "restore", "stamp",
    ]  # fmt: skip


def test_going_back_gives_a_new_generation_id():
    there = world()
    xml.child(there.guest.config, "genid", "2e955278-5522-4ce6-b99f-943ca9d92b38")
    found = plan(wanted(state="reverted"), world(config=there.guest.config, kept=(kept(there=there, memory=None),)))
    assert "define" in [action for action, dummy in steps(found)]


def test_a_saved_state_is_given_up():
    found = plan(wanted(state="reverted"), world(managed_save=True, kept=(kept(memory=None, state="stopped"),)))
    assert steps(found)[0] == ("discard", "state.saved")


def test_what_was_not_touched_since_is_not_reverted_again():
    stamp = {"/var/lib/libvirt/images/x": [1, 2]}
    one = kept(memory=None, state="stopped")
    mark = {"snapshot": "one", "created": one.created, "stamp": stamp}
    assert not plan(wanted(state="reverted"), world(kept=(one,), stamp=stamp, reverted=mark))
    written = world(kept=(one,), stamp={"/var/lib/libvirt/images/x": [9, 2]}, reverted=mark)
    assert plan(wanted(state="reverted"), written)


@pytest.mark.parametrize(
    ("options", "there", "message"),
    [
        ({}, lambda: world(migrating=True), "is being moved to another host"),
        ({}, lambda: world(persistent=False), "is transient"),
        ({}, lambda: world(managed_save=True), "has a saved state"),
        ({}, lambda: world(state="stopping"), "is stopping"),
        ({}, lambda: world(foreign=("one",)), "was not made by phyllome.virt"),
        ({}, lambda: world(kept=(kept(missing=("/x/memory",)),)), "is damaged"),
        ({"state": "absent"}, lambda: world(foreign=("one",)), "virsh snapshot-delete"),
        ({"state": "reverted"}, lambda: world(kept=(kept("two"),)), "there is two"),
        ({"state": "reverted"}, lambda: world(foreign=("one",)), "was not made by"),
        ({"state": "reverted"}, lambda: world(kept=(kept(disks=(("vda", "/old.qcow2"),)),)), "has other disks"),
        ({"state": "reverted"}, lambda: world(kept=(kept(missing=("/x",)),)), "is damaged"),
        ({}, lambda: world(live="windows11-live", memory=2**30, free=2**20), "1024MiB"),
    ],
)
def test_refusals(options, there, message):
    with pytest.raises(PhyllomeError, match=message):
        plan(wanted(**options), there())


def edited(path, tag, **attributes):
    config = load("windows11")
    xml.child(xml.ensure(config, path), tag, None, **attributes)
    return config


def test_disks_that_cannot_hold_a_snapshot():
    raw = load("windows11")
    xml.ensure(raw, "devices/disk[@device='disk']/driver").set("type", "raw")
    with pytest.raises(PhyllomeError, match="is raw: only qcow2"):
        plan(wanted(), world(config=raw))
    with pytest.raises(PhyllomeError, match="shareable"):
        plan(wanted(), world(config=edited("devices/disk[@device='disk']", "shareable")))
    with pytest.raises(PhyllomeError, match="no such file"):
        plan(wanted(), world(tags={}))
    tags = {drive.path: {"one": 1} for drive in world().identity.drives}
    with pytest.raises(PhyllomeError, match="qemu-img snapshot -d one"):
        plan(wanted(), world(tags=tags))
    none = load("windows11")
    xml.drop(none, "devices/disk[@device='disk']")
    with pytest.raises(PhyllomeError, match="has no disk"):
        plan(wanted(), world(config=none))


def test_a_running_guest_with_a_passed_through_device():
    there = world(live="windows11-live")
    xml.child(xml.ensure(there.guest.live, "devices"), "hostdev")
    with pytest.raises(PhyllomeError, match="passed-through"):
        plan(wanted(), there)
    with pytest.raises(PhyllomeError, match="passed-through"):
        plan(wanted(state="absent"), World(**{**there.__dict__, "kept": (kept(),)}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot": None}, "without snapshot"),
        ({"snapshot": None, "state": "absent", "retention": retention(keep=1)}, "without snapshot"),
        ({"state": "absent", "retention": retention(keep=1)}, "belongs to state: present"),
        ({"state": "absent", "description": "x"}, "nothing|no snapshot to describe"),
        ({"retention": retention()}, "neither keep nor max_age_days"),
        ({"retention": retention(keep=0)}, "too small"),
        ({"retention": retention(max_age_days=0)}, "too small"),
        ({"snapshot": "../x"}, "not a valid name"),
        ({"name": "<x/>"}, "not a valid name"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(PhyllomeError, match=message):
        wanted(**options)


def test_what_is_shown():
    told = shown(world(kept=(kept(missing=("/x",)),), foreign=("other",)))
    assert [(each["name"], each["owned"], each["whole"]) for each in told] == [
        ("one", True, False),
        ("other", False, None),
    ]


def test_another_host_is_refused():
    with pytest.raises(PhyllomeError, match="is on another host"):
        identity.places("qemu+ssh://beta/system")
    assert identity.places("qemu:///session").ours.endswith("/libvirt/phyllome")
