# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest as a copy of another one."""

from __future__ import annotations

import dataclasses

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import clone, domain, identity, plan, spec
from ansible_collections.phyllome.virt.plugins.module_utils._guest.domain import Marker, Origin

PLACES = identity.places("qemu:///system")
GIB = 1024**3


def wanted(**options):
    return spec.accept({"name": "copy", "clone_from": {"guest": "win", "method": "full"}, **options})


def world(lab, name="windows11", there=None, **over):
    source = lab.guest(name)
    what = identity.of(source.config, None, PLACES)
    parts = tuple(
        clone.Part(
            label=drive.label,
            target=drive.target,
            source=str(drive.path),
            path=f"/images/copy-{drive.label}.qcow2",
            format=drive.format,
            capacity=GIB,
            takes=2**20,
            exists=False,
        )
        for drive in what.drives
    )
    values = {
        "there": there,
        "source": source,
        "identity": what,
        "parts": parts,
        "free": {"/images": GIB},
        "nvram": True,
        "tpm": True,
    }
    return clone.World(**{**values, **over})


def decide(lab, options=None, **over):
    return clone.plan(wanted(**(options or {})), world(lab, **over), PLACES)


def actions(decision):
    return [(change.action, change.path) for change in decision.plan]


def test_everything_is_copied_and_nothing_of_the_identity(lab):
    decision = decide(lab)
    assert actions(decision) == [
        ("define", "clone_from"),
        ("disk", "disks.root"),
        ("nvram", "firmware.nvram"),
        ("tpm", "tpm.state"),
        ("finish", "clone_from.complete"),
    ]
    source, root = lab.xml("windows11"), decision.config
    uuid = root.findtext("uuid")
    assert root.findtext("name") == "copy" and uuid != source.findtext("uuid")
    assert root.findtext("os/nvram") == f"{PLACES.nvram}/{uuid}_VARS.fd"
    macs = [{card.find("mac").get("address") for card in each.findall("devices/interface")} for each in (source, root)]
    assert macs[1] and not macs[0] & macs[1]
    assert root.find("devices/disk[@device='disk']/source").get("file") == "/images/copy-root.qcow2"
    marker = domain.marker(root)
    assert marker.origin == Origin("win", source.findtext("uuid"), "full", False)
    assert [(volume.path, volume.made) for volume in marker.volumes] == [("/images/copy-root.qcow2", False)]
    assert marker.devices == domain.marker(source).devices


def test_serials_generation_id_vsock_and_system_uuid(lab):
    there = world(lab)
    root = there.source.config
    xml.child(root, "genid", "2e955278-5522-4ce6-b99f-943ca9d92b38")
    xml.child(xml.ensure(root, "devices/disk[@device='disk']"), "serial", "ABC")
    xml.child(xml.child(xml.ensure(root, "devices"), "vsock"), "cid", None, auto="no", address="5")
    xml.child(xml.ensure(root, "sysinfo/system"), "entry", root.findtext("uuid"), name="uuid")
    xml.child(xml.ensure(root, "devices"), "hostdev", None, type_="pci")
    decision = clone.plan(wanted(), there, PLACES)
    made = decision.config
    assert made.findtext("genid") is None or not made.findtext("genid")
    assert len(made.findtext("devices/disk/serial")) == 20
    assert made.find("devices/vsock/cid").get("address") is None
    assert made.findtext("sysinfo/system/entry") == made.findtext("uuid")
    assert made.find("devices/hostdev") is None and "hostdevs" in decision.warnings[0]


def test_fresh_variables_and_tpm_by_choice(lab):
    fresh = {"clone_from": {"guest": "win", "nvram": "fresh", "tpm": "fresh"}}
    assert [action for action, dummy in actions(decide(lab, fresh))] == ["define", "disk", "finish"]
    # libvirt makes what the source does not have yet
    assert [action for action, dummy in actions(decide(lab, nvram=False, tpm=False))] == ["define", "disk", "finish"]


def test_linked_disks_are_qcow2(lab):
    there = world(lab)
    xml.ensure(there.source.config, "devices/disk[@device='disk']/driver").set("type", "raw")
    raw = tuple(dataclasses.replace(part, format="raw") for part in there.parts)
    decision = clone.plan(
        wanted(clone_from={"guest": "win", "method": "linked"}), dataclasses.replace(there, parts=raw), PLACES
    )
    assert decision.config.find("devices/disk[@device='disk']/driver").get("type") == "qcow2"
    assert decision.plan.changes[1].after == "qcow2, 1GiB, linked"


def begun(lab, done=False, **origin):
    config = decide(lab).config
    marker = domain.marker(config)
    kept = dataclasses.replace(marker.origin, done=done, **origin)
    domain.set_marker(config, dataclasses.replace(marker, origin=kept))
    return lab.of(config)


def test_what_was_cut_off_is_finished(lab):
    there = begun(lab)
    parts = tuple(dataclasses.replace(part, exists=True) for part in world(lab).parts)
    uuid = there.config.findtext("uuid")
    taken = (f"{PLACES.nvram}/{uuid}_VARS.fd",)
    decision = decide(lab, there=there, parts=parts, taken=taken)
    assert actions(decision) == [("", "clone_from"), ("tpm", "tpm.state"), ("finish", "clone_from.complete")]


def test_a_complete_clone_is_left_alone(lab):
    assert not decide(lab, there=begun(lab, done=True)).plan
    assert not decide(lab, there=lab.guest("linux")).plan  # of another making
    assert not clone.plan(spec.accept({"name": "copy"}), world(lab), PLACES).plan


def test_the_marker_survives_and_is_completed(lab):
    marker = domain.marker(begun(lab).config)
    whole = clone.complete(marker)
    assert whole.origin.done and all(volume.made for volume in whole.volumes)
    assert clone.complete(Marker(profile=None)).origin is None


def test_check_mode_plans_the_rest_for_the_clone_that_will_be(lab):
    there = world(lab)
    decision = clone.plan(wanted(), there, PLACES)
    guest = clone.foreseen(decision, there)
    asked = wanted(state="running", memory="8GiB")
    seen = clone.as_made(lab.world(asked, guest, exists={"/images/copy-root.qcow2": False}), guest)
    rest = plan.decide(asked, guest, seen)
    assert "memory" in [change.path for change in rest.plan] and rest.plan.changes[-1].path == "state"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"source": None, "identity": None}, "no such guest"),
        ({"missing": ("/x",)}, "no such file"),
        ({"pools": {"fast": None}}, "no such active pool"),
        ({"free": {}}, "is not a directory"),
        (
            {"free": {"/images": 5 * 2**20 - 1}},
            "disks: 6MiB are needed in /images: 4MiB are free there.* method: linked",
        ),
    ],
)
def test_refusals(lab, over, message):
    with pytest.raises(PhyllomeError, match=message):
        decide(lab, **over)


def test_what_is_taken_of_the_disk_is_counted_for_every_method(lab):
    there = world(lab)
    assert [change.args["needs"] for change in decide(lab).plan if change.action == "disk"] == [2**20] * len(
        there.parts
    )
    asked = wanted(clone_from={"guest": "win", "method": "linked"})
    with pytest.raises(PhyllomeError, match="choose another pool.") as error:
        clone.plan(asked, dataclasses.replace(there, free={"/images": 0}), PLACES)
    assert "say method" not in str(error.value)


DRIVE = identity.Drive("vda", "root", "/a/root.qcow2", "qcow2")
FLAT = {"actual-size": 900}


@pytest.mark.parametrize(
    ("method", "told", "drive", "one", "takes"),
    [
        ("linked", FLAT, {}, True, 4 * 2**20),
        ("reflink", FLAT, {}, True, 0),
        ("full", FLAT, {}, True, 700),
        ("auto", FLAT, {}, True, 0),
        ("auto", FLAT, {}, False, 900),
        ("auto", {**FLAT, "snapshots": [{}]}, {}, True, 700),
        ("auto", {**FLAT, "backing-filename": "/b"}, {}, True, 700),
        ("full", FLAT, {"encrypted": True}, True, 900),
        ("auto", FLAT, {"encrypted": True}, True, 0),
        ("auto", FLAT, {"encrypted": True}, False, 900),
    ],
)
def test_what_a_copy_takes(monkeypatch, method, told, drive, one, takes):
    monkeypatch.setattr(clone, "run", lambda argv: '{"required": 700}')
    monkeypatch.setattr(clone.storage, "shares", lambda source, directory: one)
    assert clone._takes(method, dataclasses.replace(DRIVE, **drive), told, "/images/copy-root.qcow2") == takes


def test_refusals_that_are_the_sources(lab):
    source = world(lab).source
    with pytest.raises(PhyllomeError, match="is running"):
        decide(lab, source=dataclasses.replace(source, state="running"))
    with pytest.raises(PhyllomeError, match="saved, not off"):
        decide(lab, source=dataclasses.replace(source, managed_save=True))
    with pytest.raises(PhyllomeError, match="not complete"):
        decide(lab, source=begun(lab))
    with pytest.raises(PhyllomeError, match="the guest itself"):
        clone.plan(spec.accept({"name": "win", "clone_from": {"guest": "win"}}), world(lab), PLACES)
    shared = world(lab)
    xml.child(xml.ensure(shared.source.config, "devices/disk[@device='disk']"), "shareable")
    what = identity.of(shared.source.config, None, PLACES)
    with pytest.raises(PhyllomeError, match="shareable"):
        decide(lab, identity=what)


def test_nothing_is_overwritten(lab):
    parts = tuple(dataclasses.replace(part, exists=True) for part in world(lab).parts)
    with pytest.raises(PhyllomeError, match="exists already"):
        decide(lab, parts=parts)
    with pytest.raises(PhyllomeError, match="an earlier guest with this uuid"):
        decide(lab, taken=(f"{PLACES.swtpm}/x",))
    assert decide(lab, {"clone_from": {"guest": "win", "tpm": "fresh"}}, taken=(f"{PLACES.swtpm}/x",)).plan


def test_another_source_than_the_one_it_was_made_from(lab):
    with pytest.raises(PhyllomeError, match="was made from other"):
        decide(lab, there=begun(lab, done=True, guest="other"))


def test_a_half_made_clone_is_not_reconciled(lab):
    there = begun(lab)
    asked = spec.accept({"name": "copy", "state": "present"})
    with pytest.raises(PhyllomeError, match="is a clone of win that is not complete"):
        plan.decide(asked, there, lab.world(asked, there))


def test_the_base_of_linked_clones_is_not_started(lab):
    there = lab.guest("linux")
    asked = spec.accept({"name": there.name, "state": "running"})
    with pytest.raises(PhyllomeError, match="base of linked clones"):
        plan.decide(asked, there, lab.world(asked, there, clones=("one", "two")))


def test_bad_input():
    with pytest.raises(PhyllomeError, match="not a valid name"):
        wanted(clone_from={"guest": "../x"})
    with pytest.raises(PhyllomeError, match="value of method"):
        wanted(clone_from={"guest": "x", "method": "magic"})
    with pytest.raises(PhyllomeError, match="guest"):
        wanted(clone_from={"method": "full"})


def test_the_memory_of_snapshots_goes_with_the_disks(lab):
    there = lab.guest("linux")
    asked = spec.accept({"name": there.name, "state": "absent", "delete": {"disks": "owned"}})
    users = {volume.path: () for volume in domain.marker(there.config).volumes}
    found = plan.decide(asked, there, lab.world(asked, there, snapshots="/x", users=users))
    assert "snapshots" in [change.path for change in found.plan]
