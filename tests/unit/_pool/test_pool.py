# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._pool import apply, read, spec
from ansible_collections.phyllome.virt.plugins.module_utils._pool.plan import plan

PATH = "/var/lib/libvirt/images"
# `virsh pool-dumpxml images` on Debian 12.
IMAGES = """<pool type='dir'>
  <name>images</name>
  <uuid>0d21ed6c-5b7e-4d3a-9c2e-1a4b3f6f0d11</uuid>
  <capacity unit='bytes'>0</capacity>
  <allocation unit='bytes'>0</allocation>
  <available unit='bytes'>0</available>
  <source>
  </source>
  <target>
    <path>/var/lib/libvirt/images</path>
  </target>
</pool>"""


def params(**options):
    return {
        "name": "images", "state": "active", "autostart": None, "path": None,
        "mode": None, "owner": None, "group": None, "uri": "qemu:///system", **options,
    }  # fmt: skip


def found(kind="dir", active=True, persistent=True, autostart=True, path=PATH, volumes=0):
    return read.Found("u", kind, active, persistent, autostart, path, volumes if active else None)


def changes(there=None, others=None, directory=None, **options):
    world = read.World(there, others or {}, directory)
    return [
        (change.action, change.path, change.before, change.after)
        for change in plan(spec.wanted(params(**options)), world)
    ]


def test_path_is_read_and_written_in_place():
    root = xml.parse(IMAGES)
    assert spec.PATH.read(root) == PATH
    spec.PATH.write(root, "/srv")
    assert (spec.PATH.read(root), root.findtext("uuid")) == ("/srv", "0d21ed6c-5b7e-4d3a-9c2e-1a4b3f6f0d11")


def test_new_pool():
    assert changes(path=PATH, autostart=True) == [
        ("define", "pool", None, "images"),
        ("", "path", None, PATH),
        ("start", "active", False, True),
        ("autostart", "autostart", False, True),
    ]


def test_as_declared_needs_nothing():
    assert changes(found(), path=PATH + "/", autostart=True) == []
    assert changes(found(active=False), state="inactive") == []
    assert changes(found(active=False), state="present") == []
    assert changes(None, state="absent") == []


def test_power():
    assert changes(found(active=False)) == [("start", "active", False, True)]
    assert changes(found(), state="inactive") == [("stop", "active", True, False)]
    assert changes(found(), state="absent") == [("stop", "active", True, False), ("undefine", "pool", "images", None)]
    assert changes(found(active=False), state="absent") == [("undefine", "pool", "images", None)]
    assert changes(found(), autostart=False) == [("autostart", "autostart", True, False)]


def test_an_empty_pool_goes_to_another_path():
    move = [("define", "path", PATH, "/srv")]
    stop, start = ("stop", "active", True, False), ("start", "active", False, True)
    assert changes(found(), path="/srv") == [stop, *move, start]
    assert changes(found(), path="/srv", state="present") == [stop, *move, start]
    assert changes(found(), path="/srv", state="inactive") == [stop, *move]
    assert changes(found(active=False), path="/srv", state="inactive") == move


def test_a_transient_pool_is_made_persistent():
    assert changes(found(persistent=False, autostart=False)) == [
        ("define", "persistent", False, True),
    ]


def test_directory():
    there = {"mode": "0711", "owner": "root", "group": "root"}
    assert changes(found(), directory=there, mode="711", owner="root") == []
    assert changes(found(), directory=there, mode="0750", group="kvm") == [
        ("directory", "directory.mode", "0711", "0750"),
        ("directory", "directory.group", "root", "kvm"),
    ]
    assert changes(path=PATH, mode="0750")[0] == ("directory", "directory.mode", None, "0750")


def test_directory_is_made_and_changed(tmp_path):
    path = str(tmp_path / "a" / "b")
    todo = plan(spec.wanted(params(path=path, mode="0750")), read.World(found(path=path), {}, read.directory(path)))
    for change in todo:
        apply._directory(None, "images", change)
    assert os.stat(path).st_mode & 0o7777 == 0o750
    assert (read.directory(path) or {})["mode"] == "0750"


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "b")
    todo = plan(spec.wanted(params(path=path, mode="0750")), read.World(found(path=path), {}, None))
    with pytest.raises(PhyllomeError, match="Cannot prepare the directory"):
        apply._directory(None, "images", next(iter(todo)))


@pytest.mark.parametrize(
    ("there", "others", "options", "words"),
    [
        (None, {}, {}, "has no path"),
        (None, {}, {"path": "images"}, "path: 'images'"),
        (None, {}, {"name": "a/b", "path": PATH}, "name: 'a/b'"),
        (None, {}, {"mode": "rwx"}, "mode: 'rwx'"),
        (None, {PATH: "default"}, {"path": PATH}, f"path: {PATH} of pool images belongs to pool default"),
        (found(kind="logical"), {}, {}, "is of type 'logical'"),
        (found(volumes=3), {}, {"path": "/srv"}, "holds 3 volumes"),
    ],
)
def test_refusals(there, others, options, words):
    with pytest.raises(PhyllomeError) as caught:
        changes(there, others, **options)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_directory_of_another_host_is_refused():
    with pytest.raises(PhyllomeError, match="mode: not possible with the uri"):
        apply.body(params(path=PATH, mode="0711", uri="qemu+tls://beta/system"), True)
