# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted disks, on a libvirt in memory; what QEMU's tools are told; and disks on NVMe."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import (
    apply,
    identity,
    luks,
    read_first,
    spec,
    storage,
)

from . import test_clone
from .fake import GIB, Hypervisor, Killed

KEY = "correct horse"
LOCK = {"encryption": {"passphrase": KEY}}
ROOT = {"id": "root", "size": "1GiB", **LOCK}


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(apply, "_POLL", 0.001)
    return Hypervisor(tmp_path, monkeypatch)


def said(host, **options):
    with pytest.raises(PhyllomeError) as error:
        host.converge(**options)
    return str(error.value)


def test_a_disk_has_a_secret_of_its_own_and_nobody_sees_it(host):
    check = host.converge(disks=[ROOT], check=True)
    assert host.secrets == {} and host.files == {}
    result = host.converge(disks=[ROOT])
    assert check["plan"] == result["plan"] and KEY not in str(result)
    assert {"disks.root.encryption": "luks", "disks.root.encryption.passphrase": "(not shown)"}.items() <= {
        change["path"]: change["to"] for change in result["plan"]
    }.items()
    ((uuid, secret),) = host.secrets.items()
    path = f"{host.folder}/web-root.qcow2"
    root = xml.parse(secret.text)
    assert (root.get("private"), root.get("ephemeral"), root.findtext("usage/volume")) == ("yes", "no", path)
    assert secret.key == KEY.encode() and host.passphrases == {path: KEY}
    assert luks.secret_of(host.guest().config.find("devices/disk")) == uuid
    assert host.told.index("setSecret") < host.told.index("volume.create") < host.told.index("create")
    assert result["guest"]["disks"][0]["encrypted"] is True
    again = host.converge(disks=[ROOT])
    assert (again["changed"], again["plan"]) == (False, [])


def test_killed_anywhere_the_next_run_finishes(tmp_path, monkeypatch):
    wanted = None
    for place in range(1, 100):
        folder = tmp_path / str(place)
        folder.mkdir()
        host = Hypervisor(folder, monkeypatch)
        host.kill_at = place
        try:
            host.converge(disks=[ROOT])
            break
        except Killed:
            host.kill_at = 0
        host.converge(disks=[ROOT])
        (secret,) = host.secrets.values()
        assert (secret.key, luks.state(secret.text)) == (KEY.encode(), luks.SET)
        assert host.converge(disks=[ROOT])["changed"] is False
        wanted = host
    assert wanted is not None and place > 10


def test_it_comes_and_grows_while_the_guest_runs_and_when_it_is_off(host):
    host.converge(disks=[{"id": "sys", "size": "1GiB"}])
    assert {change["when"] for change in host.converge(disks=[ROOT])["plan"]} == {"live"}
    assert host.converge(disks=[{**ROOT, "size": "2GiB"}])["changed"]
    host.converge(state="stopped")
    assert "Declare encryption.passphrase" in said(host, state="stopped", disks=[{"id": "root", "size": "3GiB"}])
    host.converge(state="stopped", disks=[{**ROOT, "size": "3GiB"}])
    assert host.files[f"{host.folder}/web-root.qcow2"] == 3 * GIB


def test_what_is_wrong_with_a_passphrase_is_said(host):
    host.converge(disks=[ROOT])
    wrong = {"id": "root", "encryption": {"passphrase": "other"}}
    text = said(host, disks=[wrong])
    assert "it does not open" in text and "qemu-img amend" in text and "other" not in text.replace("another", "")
    host.converge(state="stopped")
    host.secrets.clear()
    assert "libvirt does not know its passphrase" in said(host, disks=[{"id": "root"}])
    host.converge(state="stopped", disks=[{"id": "root"}])
    result = host.converge(disks=[ROOT])
    assert {change["path"] for change in result["plan"]} == {"disks.root.encryption.passphrase", "state"}
    ours = next(iter(host.secrets.values()))
    host.secrets.clear()
    host.secrets["theirs"] = type(ours)(host, "theirs")
    host.secrets["theirs"].text = ours.text
    assert "has a secret for" in said(host, disks=[ROOT])


def test_a_disk_is_not_encrypted_by_declaring_it(host):
    host.converge(disks=[{"id": "root", "size": "1GiB"}])
    text = said(host, disks=[ROOT])
    assert "luks is declared, the guest has none" in text and "Leave it out" in text
    path = str(host.folder / "kept.qcow2")
    (host.folder / "kept.qcow2").touch()
    host.files[path] = GIB
    assert "is not encrypted" in said(host, disks=[{"id": "more", "path": path, **LOCK}])
    host.passphrases[path] = KEY
    assert "Declare encryption.passphrase" in said(host, disks=[{"id": "more", "path": path}])
    assert host.converge(disks=[{"id": "more", "path": path, **LOCK}])["changed"]
    assert "is encrypted" in said(host, disks=[{"id": "third", "source": {"path": path}}])


def test_the_secret_goes_with_the_file(host):
    host.converge(disks=[ROOT])
    host.converge(state="absent")
    assert len(host.secrets) == 1, "the disk is still there, and so is what opens it"
    with_disks = {"delete": {"disks": "owned"}}
    host.files.clear()
    (host.folder / "web-root.qcow2").unlink()
    host.converge(disks=[ROOT], state="stopped")
    gone = host.converge(state="absent", **with_disks)
    assert ("disks.root.encryption.passphrase", None) in [(change["path"], change["to"]) for change in gone["plan"]]
    assert host.secrets == {} and host.files == {}


@pytest.mark.parametrize(
    ("disk", "text"),
    [
        ({"block": "/dev/vg/web", **LOCK}, "disks.root.encryption: given beside block"),
        ({"source": {"path": "/i.qcow2", "method": "reflink"}, **LOCK}, "blocks that are shared with a plain image"),
        ({"size": "1GiB", "encryption": {"passphrase": ""}}, "it is not a password"),
        ({"size": "1GiB", "encryption": {}}, "passphrase"),
        ({"size": "1GiB", "bus": "nvme", "serial": "S" * 21}, "serial numbers of up to 20"),
        ({"size": "1GiB", "bus": "nvme", "queues": 2}, "only virtio disks have it"),
    ],
)
def test_bad_options(disk, text):
    with pytest.raises(PhyllomeError, match=text):
        spec.accept({"name": "web", "disks": [{"id": "root", **disk}]})


def test_a_passphrase_is_in_no_representation():
    wanted = spec.accept({"name": "web", "disks": [ROOT]})
    assert spec.passphrase(wanted, "root") == KEY and KEY not in repr(wanted)


# What QEMU's tools are told


@pytest.fixture
def calls(monkeypatch):
    made = []
    info = {"format": "luks", "virtual-size": 1024}

    def run(argv, timeout=60, remedy="", stdin=""):
        made.append((argv, stdin))
        return json.dumps(info) if argv[1] == "info" else ""

    for module in (storage, luks):
        monkeypatch.setattr(module, "run", run)
    return made


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_passphrases_are_never_arguments(calls, form, tmp_path):
    path = str(tmp_path / "a,b")
    storage.create(path, form, 2048, None, passphrase=KEY)
    storage.create(f"{path}2", form, 2048, "/img", passphrase=KEY)
    storage.grow(path, form, 4096, KEY)
    assert luks.opens(path, form, KEY)
    locked = [(argv, stdin) for argv, stdin in calls if argv[1] != "info"]
    assert [argv[1] for argv, dummy in locked] == ["create", "convert", "resize", "resize", "map"]
    assert {stdin for dummy, stdin in locked} == {KEY} and KEY not in str([argv for argv, dummy in calls])
    assert all("secret,id=phyllome,file=/dev/stdin" in argv for argv, dummy in locked)
    kind = "luks" if form == "raw" else "qcow2"
    assert all(argv[argv.index("-f") + 1] == kind for argv, dummy in calls if argv[1] == "info")
    assert f"driver={kind}," in locked[-1][0][-1] and "a,,b" in locked[-1][0][-1]


def test_only_a_wrong_passphrase_does_not_open(monkeypatch):
    def run(argv, timeout, stdin):
        raise PhyllomeError("qemu-img failed", why, "")

    monkeypatch.setattr(luks, "run", run)
    why = "Invalid password, cannot unlock any keyslot"
    assert luks.opens("/d", "raw", KEY) is False
    why = "No such file or directory"
    with pytest.raises(PhyllomeError):
        luks.opens("/d", "raw", KEY)


@pytest.mark.parametrize(
    ("info", "form", "encrypted"),
    [
        ({"format": "luks", "virtual-size": 1024}, "raw", True),
        ({"format": "qcow2", "virtual-size": 1024, "encrypted": True}, "qcow2", True),
        ({"format": "qcow2", "virtual-size": 1024}, "qcow2", False),
    ],
)
def test_images_say_whether_they_are_encrypted(monkeypatch, tmp_path, info, form, encrypted):
    (tmp_path / "i").write_bytes(b"x" * 512)
    monkeypatch.setattr(storage, "run", lambda argv, **more: json.dumps({**info, "required": 7}))
    image = storage.inspect(str(tmp_path / "i"))
    assert (image.format, image.encrypted, image.needs) == (form, encrypted, 1024 if encrypted else 7)
    assert storage.needed(GIB, image, whole=True) > GIB


# Copies


def locked(lab, **over):
    source = lab.guest("windows11")
    for disk in source.config.findall("devices/disk[@device='disk']"):
        made = xml.child(disk.find("source"), "encryption", None, format="luks")
        xml.child(made, "secret", None, type_="passphrase", uuid=luks.secret_uuid(source.uuid, "root"))
    what = identity.of(source.config, None, test_clone.PLACES)
    world = test_clone.world(lab, source=source, identity=what)
    parts = tuple(dataclasses.replace(part, encrypted=True, **{"opens": True, **over}) for part in world.parts)
    return what, dataclasses.replace(world, parts=parts)


def test_a_copy_names_a_secret_of_its_own(lab):
    what, world = locked(lab)
    decision = test_clone.clone.plan(test_clone.wanted(), world, test_clone.PLACES)
    root = decision.config
    assert luks.secret_of(root.find("devices/disk[@device='disk']")) == luks.secret_uuid(root.findtext("uuid"), "root")
    assert what.reasons() == ("disk root is encrypted",) and what.reasons(encrypted=True) == ()


@pytest.mark.parametrize(
    ("method", "over", "text"),
    [
        ("linked", {}, "what a linked clone writes would not be"),
        ("full", {"opens": None}, "the passphrase of the copy is not declared"),
        ("full", {"opens": False}, "it does not open"),
        ("auto", {"layered": True}, "has a backing file or snapshots"),
    ],
)
def test_copies_that_cannot_be(lab, method, over, text):
    world = locked(lab, **over)[1]
    with pytest.raises(PhyllomeError, match=text):
        test_clone.clone.plan(
            test_clone.wanted(clone_from={"guest": "win", "method": method}), world, test_clone.PLACES
        )


# NVMe


def test_nvme_where_the_host_can(lab):
    host = dataclasses.replace(lab.host, offers={"disk.bus": frozenset({"virtio", "nvme"})})
    disks = [{"id": "root", "size": "1GiB", "bus": "nvme"}, {"id": "data", "size": "1GiB", "bus": "nvme"}]
    decision = lab.decide(disks=disks, world={"host": host, "libvirt": 11005000})
    root, data = decision.config.findall("devices/disk")
    assert [disk.find("target").get("dev") for disk in (root, data)] == ["nvme0n1", "nvme1n1"]
    serials = {disk.findtext("serial") for disk in (root, data)}
    assert len(serials) == 2 and all(len(serial) == 20 for serial in serials)
    there = lab.after(decision)
    assert not lab.decide(there, disks=disks, world={"host": host}).plan.changed
    assert any("cannot be added to a running" in change.why for change in lab.decide(
        there, disks=[*disks, {"id": "more", "size": "1GiB", "bus": "nvme"}], world={"host": host}
    ).plan)  # fmt: skip


def test_a_disk_that_gets_on_nvme_gets_a_serial_number(lab):
    host = dataclasses.replace(lab.host, offers={"disk.bus": frozenset({"virtio", "nvme"})})
    there = lab.after(lab.decide(state="stopped", disks=[{"id": "root", "size": "1GiB"}]))
    decision = lab.decide(there, state="stopped", disks=[{"id": "root", "bus": "nvme"}], world={"host": host})
    assert {change.path for change in decision.plan} == {"disks.root.bus", "disks.root.serial"}
    disk = decision.config.find("devices/disk")
    assert disk.find("address") is None and disk.find("target").get("dev") == "nvme0n1"


@pytest.mark.parametrize("offers", [{}, {"disk.bus": frozenset({"virtio", "sata"})}])
def test_nvme_where_the_host_cannot(lab, offers):
    host = dataclasses.replace(lab.host, offers=offers)
    disks = [{"id": "root", "size": "1GiB", "bus": "nvme"}]
    with pytest.raises(PhyllomeError, match=r"from 11\.5 on.*libvirt 9\.0.*Choose virtio"):
        lab.decide(disks=disks, world={"host": host})


# A system is installed on an encrypted disk only while nobody has written to it


def test_whether_somebody_wrote_to_an_encrypted_disk(monkeypatch, tmp_path):
    path = tmp_path / "d"
    payload = 1 << 20

    def run(argv, stdin=""):
        if argv[1] == "info":
            return json.dumps(info)
        if "--image-opts" not in argv:
            raise PhyllomeError("qemu-img failed", "encrypt.key-secret is required", "")
        assert stdin == KEY
        return json.dumps([{"data": True, "zero": False}])

    monkeypatch.setattr(read_first, "run", run)
    with path.open("wb") as stream:
        stream.write(b"header")
        stream.truncate(2 * payload)
    info = {"format": "luks", "virtual-size": payload}
    assert read_first._written(str(path), KEY) is False
    with path.open("r+b") as stream:
        stream.seek(payload)
        stream.write(b"x")
    assert read_first._written(str(path), None) is True
    info = {"format": "qcow2", "virtual-size": payload, "encrypted": True}
    assert read_first._written(str(path), KEY) is True
    assert read_first._written(str(path), None) is None, "not known without the passphrase"
    info = {"format": "luks", "virtual-size": payload}
    path.unlink()
    assert read_first._written(str(path), KEY) is False and read_first._written(None, KEY) is None
