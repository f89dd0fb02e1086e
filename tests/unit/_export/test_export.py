# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports: the folder's manifest, and the plans of both ways."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._export import folder, plan, read, spec
from ansible_collections.phyllome.virt.plugins.module_utils._export.folder import Manifest, Piece
from ansible_collections.phyllome.virt.plugins.module_utils._guest import identity
from ansible_collections.phyllome.virt.plugins.module_utils._guest import read as guests

DOMAINS = pathlib.Path(__file__).parents[1] / "_guest" / "domains"
PLACES = identity.places("qemu:///system")
MIB = 1024**2


def wanted(**options):
    return spec.wanted(
        {
            "name": None,
            "path": "/srv/win",
            "state": "imported",
            "snapshot": None,
            "identity": None,
            "pool": None,
            "uri": "qemu:///system",
            **options,
        }  # fmt: skip
    )


def config():
    return xml.parse((DOMAINS / "windows11.xml").read_text())


def source(state="stopped", managed_save=False, config_=None, **over):
    root = config() if config_ is None else config_
    guest = guests.Guest(
        name=root.findtext("name"),
        uuid=root.findtext("uuid"),
        state=state,
        reason="",
        persistent=True,
        autostart=False,
        config=root,
        live=None,
        blocks={},
        managed_save=managed_save,
        snapshots=0,
        checkpoints=0,
        migrating=over.pop("migrating", False),
    )
    what = identity.of(root, None, PLACES)
    values = {
        "guest": guest,
        "identity": what,
        "config": root,
        "parts": tuple(read.Part(each.target, each.path, each.format, MIB, MIB) for each in what.drives),
        "missing": (),
        "nvram": what.nvram,
        "tpm": what.tpm,
        "snapshot": None,
        "mark": {"definition": "x"},
        "there": None,
        "foreign": False,
        "complete": False,
        "free": 10 * MIB,
        "now": 5.0,
    }
    return read.Source(**{**values, **over})


def manifest(**over):
    root = config()
    pieces = (
        Piece("domain.xml", "definition", "0" * 64, 9),
        *(
            Piece(f"disks/{disk.target}.qcow2", "disk", "1" * 64, MIB, target=disk.target, format="qcow2", capacity=MIB)
            for disk in identity.of(root, None, PLACES).drives
        ),
        Piece("nvram.fd", "nvram", "2" * 64, 5),
        Piece("tpm/tpm2/tpm2-00.permall", "tpm", "3" * 64, 5, owner="tss", group="tss", mode=0o600),
    )
    values = {
        "name": root.findtext("name"),
        "uuid": root.findtext("uuid"),
        "created": 1.0,
        "source": {"definition": "x"},
        "pieces": pieces,
    }
    return Manifest(**{**values, **over})


def target(**over):
    root = config()
    values = {
        "manifest": manifest(),
        "damage": (),
        "config": root,
        "identity": identity.of(root, None, PLACES),
        "namesakes": (),
        "here": None,
        "directory": "/images",
        "clashes": (),
        "done": frozenset(),
        "networks": (),
        "free": 10 * MIB,
    }
    return read.Target(**{**values, **over})


def steps(found):
    return [change.action for change in found]


def test_an_export_has_every_part():
    found = plan.export(wanted(state="exported", name="win"), source())
    assert steps(found) == ["begin", "disk", "nvram", "tpm", "finish"]


def test_an_export_that_is_up_to_date_stays():
    there = manifest()
    ask = wanted(state="exported", name="win")
    assert not plan.export(ask, source(there=there, complete=True))
    assert plan.export(ask, source(there=there, complete=False))
    changed = plan.export(ask, source(there=there, complete=True, mark={"definition": "y"}))
    assert "has changed since" in changed.changes[0].why


def unlike(path, tag):
    root = config()
    xml.child(xml.ensure(root, path), tag)
    return root


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"state": "running"}, "take a snapshot"),
        ({"managed_save": True}, "has a saved state"),
        ({"migrating": True}, "is being moved"),
        ({"missing": ("/x",)}, "no such file"),
        ({"foreign": True}, "is not an export, and nothing is overwritten"),
        ({"free": None}, "the folder above it does not exist"),
        ({"free": 1}, "are free there"),
        ({"config_": unlike("devices/disk[@device='disk']", "shareable")}, "shareable"),
        ({"there": manifest(uuid="other")}, "is an export of guest"),
    ],
)
def test_what_cannot_be_exported(over, message):
    with pytest.raises(PhyllomeError, match=message):
        plan.export(wanted(state="exported", name="win"), source(**over))


def test_a_snapshot_is_exported_while_the_guest_runs():
    ask = wanted(state="exported", name="win", snapshot="one")
    assert plan.export(ask, source(state="running", snapshot=True))
    with pytest.raises(PhyllomeError, match="no whole one of that name"):
        plan.export(ask, source(state="running", snapshot=False))


def test_an_import_brings_every_part_and_the_definition_last():
    found = plan.bring(wanted(), target())
    assert steps(found) == ["disk", "nvram", "tpm", "define"]


def test_an_import_goes_on_where_it_was_cut_off():
    what = target().identity
    done = frozenset({what.drives[0].path, what.nvram})
    assert steps(plan.bring(wanted(), target(done=done))) == ["tpm", "define"]


def test_what_is_here_stays():
    here = frozenset(drive.path for drive in target().identity.drives)
    assert not plan.bring(wanted(), target(here=here, namesakes=(("u", "win"),)))
    with pytest.raises(PhyllomeError, match="exists"):
        plan.bring(wanted(), target(here=frozenset({"/elsewhere"}), namesakes=(("u", "win"),)))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"damage": ("nvram.fd has another content",)}, "the export is damaged"),
        ({"namesakes": (("u", "win"),)}, "identity: new"),
        ({"directory": None}, "no such active pool"),
        ({"clashes": ("/images/x exists and has another content",)}, "nothing is overwritten"),
        ({"free": 1}, "are free in"),
        ({"manifest": manifest(pieces=manifest().pieces[:1])}, "no such disk"),
    ],
)
def test_what_cannot_be_imported(over, message):
    with pytest.raises(PhyllomeError, match=message):
        plan.bring(wanted(), target(**over))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "exported"}, "without name"),
        ({"state": "exported", "name": "x", "pool": "p"}, "belongs to state: imported"),
        ({"state": "exported", "name": "x", "identity": "new"}, "belongs to state: imported"),
        ({"snapshot": "x"}, "belongs to state: exported"),
        ({"path": "relative"}, "not a valid path"),
        ({"path": "/srv/../etc"}, "not a valid path"),
        ({"path": "/"}, "a folder of its own"),
        ({"name": "../x"}, "not a valid name"),
        ({"pool": "<x>"}, "not a valid name"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(PhyllomeError, match=message):
        wanted(**options)


@pytest.fixture
def export(tmp_path):
    """A folder with one piece of each kind."""
    pieces = []
    for piece in manifest().pieces:
        file = tmp_path / piece.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(piece.file)
        digest = hashlib.sha256(piece.file.encode()).hexdigest()
        pieces.append(dataclasses.replace(piece, sha256=digest, size=len(piece.file)))
    told = manifest(pieces=tuple(pieces))
    (tmp_path / "manifest.json").write_text(json.dumps(told.as_dict()))
    return tmp_path


def test_a_manifest_says_what_was_written(export):
    told = folder.manifest(str(export))
    assert told is not None and folder.complete(str(export), told) and folder.damage(str(export), told) == ()
    assert folder.manifest(str(export / "none")) is None


def test_damage_is_named(export):
    told = folder.manifest(str(export))
    (export / "nvram.fd").write_text("NVRAM.FD")
    (export / "tpm/tpm2/tpm2-00.permall").write_text("")
    (export / "domain.xml").unlink()
    (export / "domain.xml").symlink_to("/etc/passwd")
    assert folder.damage(str(export), told) == (
        "domain.xml is missing or not a file",
        "nvram.fd has another content",
        "tpm/tpm2/tpm2-00.permall has 0 bytes instead of 24",
    )
    assert not folder.complete(str(export), told)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../../etc/shadow"},
        {"file": "/etc/shadow"},
        {"role": "program"},
        {"sha256": "x"},
        {"size": "5"},
        {"surprise": 1},
    ],
)
def test_a_manifest_that_is_none(export, change):
    told = json.loads((export / "manifest.json").read_text())
    told["pieces"][0].update(change)
    (export / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(PhyllomeError, match="is not a manifest"):
        folder.manifest(str(export))


def test_a_manifest_of_another_release(export):
    told = json.loads((export / "manifest.json").read_text())
    (export / "manifest.json").write_text(json.dumps({**told, "schema_version": 2}))
    with pytest.raises(PhyllomeError, match="schema version 2"):
        folder.manifest(str(export))


def test_what_an_import_meets(export, tmp_path):
    told = folder.manifest(str(export))
    what = target().identity
    drives = tuple(dataclasses.replace(drive, path=str(tmp_path / "disk.qcow2")) for drive in what.drives)
    here = dataclasses.replace(what, drives=drives, nvram=str(tmp_path / "vars.fd"), tpm=str(tmp_path / "swtpm"))
    (tmp_path / "disk.qcow2").write_text(told.of("disk")[0].file)  # an import that was cut off
    (tmp_path / "vars.fd").write_text("somebody else's")
    clashes, done = read._met(told, here, {})
    assert done == {str(tmp_path / "disk.qcow2")} and "vars.fd exists" in clashes[0]
    clashes, done = read._met(told, here, {str(tmp_path / "disk.qcow2"): "other"})
    assert "is used by guest other" in clashes[0]
