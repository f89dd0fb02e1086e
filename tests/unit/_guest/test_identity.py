# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest consists of, and copying it."""

from __future__ import annotations

import json
import os

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import identity

PLACES = identity.places("qemu:///system")


def test_a_windows_guest(lab):
    config = lab.xml("windows11")
    found = identity.of(config, None, PLACES)
    assert found.nvram == config.findtext("os/nvram").strip()
    assert found.tpm == f"/var/lib/libvirt/swtpm/{found.uuid}"
    assert [drive.label for drive in found.drives] == ["root"]
    assert found.reasons() == ()


def test_a_bios_guest(lab):
    found = identity.of(lab.xml("hand"), None, PLACES)
    assert (found.nvram, found.tpm) == (None, None)


def test_libvirt_tells_the_store_of_a_running_guest_only(lab):
    config = lab.xml("windows11")
    live = lab.xml("windows11-live")
    xml.drop(config, "os/nvram")
    xml.drop(config, "os/loader")
    assert identity.of(config, None, PLACES).nvram == f"{PLACES.nvram}/{config.findtext('name')}_VARS.fd"
    assert identity.of(config, live, PLACES).nvram == live.findtext("os/nvram").strip()


@pytest.mark.parametrize(
    ("path", "tag", "attributes", "reason"),
    [
        ("devices/disk[@device='disk']", "shareable", {}, "shareable"),
        ("devices/disk[@device='disk']", "transient", {}, "transient"),
        ("devices/tpm/backend", "source", {"path": "/x"}, "a place of its own"),
        ("devices/tpm/backend", "encryption", {"secret": "x"}, "encrypted"),
    ],
)
def test_what_cannot_be_copied_whole(lab, path, tag, attributes, reason):
    config = lab.xml("windows11")
    xml.child(xml.ensure(config, path), tag, None, **attributes)
    assert reason in " ".join(identity.of(config, None, PLACES).reasons())


def test_other_storage_and_firmware_that_cannot_be_copied(lab):
    config = lab.xml("windows11")
    disk = config.find("devices/disk[@device='disk']")
    disk.set("type", "block")
    xml.drop(disk, "source")
    xml.ensure(config, "os/nvram").set("format", "qcow2")
    xml.ensure(config, "devices/tpm/backend").set("type", "passthrough")
    told = " ".join(identity.of(config, None, PLACES).reasons())
    assert "not a file" in told and "in qcow2" in told and "passthrough" in told


def test_copies_are_whole_and_replace_in_one_step(tmp_path):
    source, path = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"\0" * 2**20 + b"x")
    source.chmod(0o640)
    path.write_text("old")
    identity.copy(str(source), str(path))
    assert path.read_bytes() == source.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_blocks * 512 < 2**20
    assert identity.digest(str(path)) == identity.digest(str(source))
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_tpm_is_copied_without_its_lock(tmp_path):
    source = tmp_path / "tpm"
    (source / "tpm2").mkdir(parents=True)
    (source / "tpm2").chmod(0o700)
    for name in (".lock", "tpm2-00.permall"):
        (source / "tpm2" / name).write_text(name)
    target = tmp_path / "copy"
    (target / "old").mkdir(parents=True)
    identity.copy_tree(str(source), str(target))
    assert identity.files(str(target)) == ["tpm2/tpm2-00.permall"]
    assert not (target / "old").exists() and not (target / "tpm2" / ".lock").exists()
    assert (target / "tpm2").stat().st_mode & 0o777 == 0o700
    assert identity.files(str(tmp_path / "none")) == []


def test_memory_is_linked_where_that_is_possible(tmp_path):
    source, path = tmp_path / "a", tmp_path / "b"
    source.write_text("memory")
    path.write_text("left over")
    identity.link_or_copy(str(source), str(path))
    assert path.samefile(source)


def test_small_files_are_private_and_whole(tmp_path):
    path = tmp_path / "manifest.json"
    assert identity.load(str(path)) is None
    identity.write(str(path), json.dumps({"a": 1}))
    assert identity.load(str(path)) == {"a": 1}
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text('{"a":')
    assert identity.load(str(path)) is None


def test_what_the_file_system_refuses_is_said(tmp_path):
    with pytest.raises(PhyllomeError, match="Cannot write"):
        identity.write(str(tmp_path / "none" / "x"), "")
    with pytest.raises(PhyllomeError, match="cannot be read"):
        identity.digest(str(tmp_path / "none"))
    with pytest.raises(PhyllomeError, match="failed with status"):
        identity.copy(str(tmp_path / "none"), str(tmp_path / "x"))
