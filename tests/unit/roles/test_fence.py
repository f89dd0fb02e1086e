# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt asks before it starts a guest."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import pwd
import subprocess
import sys

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._migration import journal

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "hypervisor"
SCRIPT = ROLE / "files" / "fence.py"
OP = "0f1f6c0b-50a2-5a63-9f6f-8c3ad0f34f40"
UUID = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def fence(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("fence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "etc" / "qemu").mkdir(parents=True)
    monkeypatch.setattr(module, "ETC", str(tmp_path / "etc"))
    monkeypatch.setattr(module, "TPM", str(tmp_path / "swtpm"))
    monkeypatch.setattr(module, "SNAPSHOTS", str(tmp_path / "ours/snapshots"))
    return module


def domain(uuid=UUID, **attributes):
    values = {"op_id": OP, "source": "alpha", "destination": "beta", **attributes}
    shown = " ".join(f"{name}='{value}'" for name, value in values.items())
    mark = f"<m:migration xmlns:m='https://phyllome.org/xmlns/virt/migration/1' {shown}/>" if attributes else ""
    return f"<domain><name>web</name><uuid>{uuid}</uuid><metadata>{mark}</metadata></domain>".encode()


@pytest.mark.parametrize("phase", ["moving", "copying"])
def test_a_fenced_guest_is_refused_and_told_what_to_do(fence, phase):
    said = fence.refusal("web", domain(phase=phase, fenced="yes"))
    assert "from alpha to beta" in said and OP in said
    assert "state: rolled_back" in said


@pytest.mark.parametrize("text", [domain(), domain(phase="moving", fenced="no"), domain(phase="done")])
def test_others_are_started(fence, text):
    assert fence.refusal("web", text) is None


@pytest.mark.parametrize("operation", ["start", "started", "stopped", "release", "migrate", "restore", "reconnect"])
def test_only_a_start_is_judged(operation):
    text = domain(phase="moving", fenced="yes")
    done = subprocess.run([sys.executable, SCRIPT, "web", operation, "begin", "-"], input=text, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_an_older_definition_does_not_help(fence, tmp_path):
    """What virsh restore or virsh create start does not have the mark."""
    (tmp_path / "etc/qemu/web.xml").write_bytes(domain(phase="copying", fenced="yes"))
    assert "alpha" in fence.refusal("web", domain())
    other = domain(uuid="22222222-2222-4222-8222-222222222222")
    assert fence.refusal("web", other) is None


def arriving(files):
    return domain(phase="arriving", files=json.dumps(files).replace("'", "&apos;"))


def test_files_of_a_guest_that_arrives_get_their_names_and_it_is_not_started(fence, tmp_path):
    path, staged = tmp_path / "web.qcow2", tmp_path / f".phy-{OP}-web.qcow2.partial"
    staged.write_text("disk")
    for dummy in range(2):
        assert fence.refusal("web", arriving({str(path): str(staged)})).endswith(f"placed {OP}")
        assert path.read_text() == "disk" and not staged.exists()


def test_files_of_a_guest_that_is_taken_back_get_names_with_the_op_id(fence, tmp_path):
    path = tmp_path / "web.qcow2"
    kept = tmp_path / f"web.qcow2.phyllome-retained-{OP}"
    path.write_text("disk")
    mark = domain(phase="returning", files=json.dumps({str(kept): str(path)}).replace("'", "&apos;"))
    assert "is being taken back" in fence.refusal("web", mark)
    assert kept.read_text() == "disk" and not path.exists()


def test_nothing_is_overwritten(fence, tmp_path):
    path, staged = tmp_path / "web.qcow2", tmp_path / f".phy-{OP}-web.qcow2.partial"
    staged.write_text("disk")
    path.write_text("somebody's")
    with pytest.raises(ValueError, match="there already"):
        fence.refusal("web", arriving({str(path): str(staged)}))
    assert path.read_text() == "somebody's" and staged.exists()


def test_only_what_carries_the_op_id_is_touched(fence, tmp_path):
    (tmp_path / "other.qcow2").write_text("somebody's")
    with pytest.raises(ValueError, match="no file of this move"):
        fence.refusal("web", arriving({str(tmp_path / "a"): str(tmp_path / "other.qcow2")}))
    assert (tmp_path / "other.qcow2").exists()


def test_what_the_guests_last_move_has_retained_here_gets_its_name_again(fence, tmp_path):
    path = tmp_path / "web.qcow2"
    former = journal.op_id(UUID, "alpha", 4)
    for epoch, op in (("4", former), ("5", journal.op_id(UUID, "alpha", 3))):
        kept = tmp_path / f"web.qcow2.phyllome-retained-{op}"
        kept.write_text("another move's")
        files = json.dumps({str(path): str(kept)})
        with pytest.raises(ValueError, match="no file of this move"):
            fence.refusal("web", domain(phase="arriving", epoch=epoch, files=files.replace("'", "&apos;")))
    kept = tmp_path / f"web.qcow2.phyllome-retained-{former}"
    mark = domain(phase="arriving", epoch="5", files=json.dumps({str(path): str(kept)}).replace("'", "&apos;"))
    assert fence.refusal("web", mark).endswith(f"placed {OP}")
    assert path.exists() and not kept.exists()


def test_what_is_not_there_is_said(fence, tmp_path):
    with pytest.raises(ValueError, match="neither"):
        fence.refusal("web", arriving({str(tmp_path / "a"): str(tmp_path / f".phy-{OP}-a.partial")}))


def test_the_state_of_a_tpm_belongs_to_who_runs_it(fence, tmp_path):
    me = pwd.getpwuid(os.getuid())
    (tmp_path / "etc/qemu.conf").write_text(f'swtpm_user = "{me.pw_name}"\n')
    path, staged = tmp_path / "swtpm" / UUID / "tpm2/tpm2-00.permall", tmp_path / f".phy-{OP}-tpm2-00.permall.partial"
    staged.write_text("state")
    assert fence.refusal("web", arriving({str(path): str(staged)}))
    assert path.read_text() == "state"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_uid == me.pw_uid


def test_what_snapshots_keep_is_for_root_and_a_tpm_in_it_for_who_runs_it(fence, tmp_path):
    me = pwd.getpwuid(os.getuid())
    (tmp_path / "etc/qemu.conf").write_text(f'swtpm_user = "{me.pw_name}"\n')
    folder, files = tmp_path / "ours/snapshots" / UUID, {}
    for name in ("one/memory", "tpm/manifest.json", "tpm/tpm/tpm2/state"):
        staged = tmp_path / f".phy-{OP}-{name.replace('/', '-')}.partial"
        staged.write_text(name)
        files[str(folder / name)] = str(staged)
    assert fence.refusal("web", arriving(files))
    assert all(pathlib.Path(path).is_file() for path in files)
    modes = {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_dir()}
    assert modes == {
        "one": 0o700,
        "tpm": 0o700,
        "tpm/tpm": 0o711,
        "tpm/tpm/tpm2": 0o700,
    }  # swtpm goes through the third
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (domain(), 0, ""),
        (domain(phase="moving", fenced="yes"), 1, "is not started here"),
        (b"<domain", 1, "cannot be told"),
        (b"<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><domain><uuid>&e;</uuid></domain>", 0, ""),
    ],
    ids=["free", "fenced", "unreadable", "entities are not resolved"],
)
def test_as_libvirt_runs_it(text, status, said):
    done = subprocess.run(
        [sys.executable, SCRIPT, "web", "prepare", "begin", "-"], input=text, capture_output=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert said in done.stderr.decode() and not done.stdout
