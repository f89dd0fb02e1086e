# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import os
import pathlib
import stat
import types
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.apart import Apart, Job, Silent, claim
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.sysfs import PAGE, PCI_ADDRESS, Tree, pci_functions


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "outside").write_text("secret")
    root = tmp_path / "root"
    (root / "sys" / "deep").mkdir(parents=True)
    (root / "sys" / "value").write_text(" 42\n")
    return root


def tree(root: pathlib.Path) -> Tree:
    return Tree(str(root), "sysfs_root")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "it does not exist"),
        (lambda path: path.write_text("x"), "it is not a directory"),
        (lambda path: path.mkdir(), "it has no directory sys"),
    ],
)
def test_what_is_no_tree_is_refused_in_one_sentence(tmp_path, make, why):
    path = tmp_path / "tree"
    make(path)
    with pytest.raises(PhyllomeError) as refusal:
        tree(path)
    assert str(refusal.value).startswith(f"sysfs_root: {str(path)!r} is not the root of a machine: {why}")


def test_a_relative_root_is_refused():
    with pytest.raises(PhyllomeError, match="a path is absolute"):
        Tree("captures/desktop", "sysfs_root")


def test_texts_and_numbers(root):
    (root / "sys" / "hex").write_text("0x1F\n")
    (root / "sys" / "minus").write_text("-1\n")
    (root / "sys" / "zero").write_text("007\n")
    one = tree(root)
    assert one.text("sys/value") == "42"
    assert [one.number(f"sys/{name}") for name in ("value", "hex", "minus", "zero")] == [42, 31, -1, 7]
    assert one.unread == {}


@pytest.mark.parametrize("text", ["", "4 2", "0x", "1e3", "١", "9" * 30, "--1"])
def test_garbage_is_no_number(root, text):
    (root / "sys" / "value").write_text(text)
    one = tree(root)
    assert one.number("sys/value") is None
    assert one.unread == {"sys/value": "not a number"}


def test_what_is_missing_is_none_and_says_so(root):
    one = tree(root)
    assert (one.text("sys/nothing"), one.names("sys/nothing"), one.link("sys/nothing")) == (None, None, None)
    assert one.follow("sys/value/below") is None
    assert not one.exists("sys/nothing")
    assert one.unread == {"sys/nothing": "missing", "sys/value/below": "missing"}


def test_what_may_not_be_read_is_none_and_says_why(root):
    one = tree(root)
    assert one.text("sys/deep") is None
    assert one.unread == {"sys/deep": "Is a directory"}


def test_what_is_too_long_is_not_read_in_part(root):
    (root / "sys" / "value").write_bytes(b"x" * PAGE)
    (root / "sys" / "longer").write_bytes(b"x" * (PAGE + 1))
    one = tree(root)
    assert one.data("sys/value") == b"x" * PAGE
    assert one.data("sys/longer") is None
    assert one.unread == {"sys/longer": f"longer than {PAGE} bytes"}
    assert one.data("sys/longer", PAGE + 1) == b"x" * (PAGE + 1)


def test_a_pipe_does_not_hang(root):
    os.mkfifo(root / "sys" / "pipe")
    assert tree(root).text("sys/pipe") == ""


def test_what_is_not_utf_8_is_marked(root):
    (root / "sys" / "value").write_bytes(b"caf\xe9\n")
    assert tree(root).text("sys/value") == "caf�"


def test_a_name_that_is_not_text_makes_a_directory_unread(root):
    (root / "sys" / "deep" / "good").touch()
    os.close(os.open(os.fsencode(root / "sys" / "deep") + b"/bad\xff", os.O_CREAT))
    one = tree(root)
    assert one.names("sys/deep") == ("good",)
    assert one.unread == {"sys/deep": "a name in it is not text"}


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        ("/sys/value", "sys/value"),
        ("../value", "sys/value"),
        ("../../../../../../sys/value", "sys/value"),
        ("/outside", "outside"),
        ("../../../outside", "outside"),
        ("gone/below", "sys/deep/gone/below"),
        ("hop/../value", "sys/value"),
    ],
)
def test_links_stay_in_the_tree(root, target, leads):
    (root / "sys" / "deep" / "link").symlink_to(target)
    (root / "sys" / "deep" / "hop").symlink_to("/sys/deep")
    one = tree(root)
    assert one.follow("sys/deep/link") == leads
    assert one.text("sys/deep/link") == ("42" if leads == "sys/value" else None)
    assert one.link("sys/deep/link") == target


def test_a_directory_link_out_of_the_tree_is_not_entered(root):
    (root / "sys" / "door").symlink_to(root.parent)
    one = tree(root)
    assert one.text("sys/door/outside") is None
    assert one.names("sys/door") is None


def test_links_in_a_circle_end(root):
    (root / "sys" / "a").symlink_to("b")
    (root / "sys" / "b").symlink_to("a")
    one = tree(root)
    assert (one.text("sys/a"), one.names("sys/a"), one.follow("sys/a"), one.link("sys/a/x")) == (None,) * 4
    assert set(one.unread.values()) == {"too many links"}
    assert not one.exists("sys/a/x")


def test_names_that_cannot_be_are_missing_things(root):
    one = tree(root)
    assert (one.text("sys/a\0b"), one.names("sys/a\0b"), one.link("sys/a\0b")) == (None, None, None)
    assert one.text("sys/" + "x" * 5000) is None


@pytest.mark.parametrize("address", ["0000:00:1f.7", "10000:e1:00.0", "00000000:ff:1f.0"])
def test_pci_addresses(address):
    assert PCI_ADDRESS.match(address)


@pytest.mark.parametrize(
    "address",
    ["00:1f.7", "0000:00:20.0", "0000:00:1f.8", "000:00:00.0", "0000:00:1F.7", "0000:00:1f.7x", "0000:00:1f.7\n"],
)
def test_no_pci_addresses(address):
    assert not PCI_ADDRESS.match(address)


def test_all_functions_on_a_path():
    path = "sys/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme0/nvme0n1"
    assert pci_functions(path) == ("0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0")


@pytest.mark.parametrize(
    ("error", "claimed"),
    [
        (None, False),
        (errno.EBUSY, True),
        (errno.ENOMEDIUM, False),
        (errno.ENXIO, False),
        (errno.EACCES, None),
        (errno.EIO, None),
        (Silent(), None),
    ],
)
def test_whether_a_disk_of_this_machine_is_claimed(monkeypatch, error, claimed):
    asked: list[Job] = []

    def ask(job):
        asked.append(job)
        if error:
            raise error if isinstance(error, OSError) else OSError(error, os.strerror(error))

    tree = Tree("/", "sysfs_root")
    monkeypatch.setattr(tree._apart, "ask", ask)  # opening may take for ever
    monkeypatch.setattr(os, "lstat", lambda path: types.SimpleNamespace(st_mode=stat.S_IFBLK))
    monkeypatch.setattr(os, "readlink", lambda path: (_ for _ in ()).throw(OSError(errno.EINVAL, "no link")))
    assert tree.claimed("dev/sdz") is claimed
    assert asked == [Job("/dev/sdz", "/dev/sdz", None)]
    assert (claimed is None) == ("dev/sdz" in tree.unread)


def test_a_claim_reads_and_writes_nothing(monkeypatch):
    asked: list[t.Any] = []

    def open_it(*arguments):
        asked.append(arguments)
        return 99

    monkeypatch.setattr(os, "open", open_it)
    monkeypatch.setattr(os, "close", lambda handle: asked.append(handle))
    claim("/dev/sdz")
    [(path, flags), handle] = asked
    assert (path, handle) == ("/dev/sdz", 99)
    assert flags & os.O_EXCL and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)


def test_whether_a_disk_of_a_captured_machine_was_claimed(root, monkeypatch):
    tree = Tree(str(root), "sysfs_root")
    for content, claimed in (("claimed\n", True), ("free\n", False), ("", None), ("yes\n", None)):
        (root / "sys" / "disk").write_text(content)
        assert tree.claimed("sys/disk") is claimed
    assert tree.claimed("sys/nothing") is None
    monkeypatch.setattr(os, "lstat", lambda path: types.SimpleNamespace(st_mode=stat.S_IFBLK))
    assert tree.claimed("sys/disk") is None  # a device in a captured tree is never opened
    assert tree.unread["sys/disk"] == "a device where there should be a file"


def test_only_a_kernel_is_not_waited_for(root, monkeypatch):
    """Files of a captured tree are read as they are; those of a mounted /sys, here or below another root, by a process of their own."""
    (root / "sys" / "devices" / "x").mkdir(parents=True)
    (root / "sys" / "devices" / "x" / "uevent").write_text("A=1\n")
    asked: list[Job] = []

    def ask(dummy, job):
        asked.append(job)
        return b"B=2\n"

    monkeypatch.setattr(Apart, "ask", ask)
    assert Tree(str(root), "sysfs_root").text("sys/devices/x/uevent") == "A=1"
    assert asked == []
    assert Tree(str(root), "sysfs_root", 1).text("sys/devices/x/uevent") == "B=2"
    look = os.stat
    monkeypatch.setattr(
        os,
        "stat",
        lambda path, **more: types.SimpleNamespace(st_dev=99) if path == f"{root}/sys" else look(path, **more),
    )
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    assert Tree(str(root), "sysfs_root").text("sys/devices/x/uevent") == "B=2"
    assert [job.path for job in asked] == [f"{root}/sys/devices/x/uevent"] * 2
