# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of disks, with a qemu-img that only writes what it was asked for."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import storage


@pytest.fixture
def img(monkeypatch):
    """Calls of qemu-img; ``img.info`` is what it tells."""

    class Img:
        info = {"format": "qcow2", "virtual-size": 1024}
        calls = []
        broken = False
        stdin = ""

    def run(argv, timeout=60, remedy="", stdin=""):
        Img.stdin = stdin
        Img.calls.append(argv)
        if Img.broken:
            raise PhyllomeError("qemu-img failed", "no space", remedy)
        if argv[1] == "info":
            told = [Img.info] if "--backing-chain" not in argv else [Img.info, {"filename": "/base"}]
            return json.dumps(told if "--backing-chain" in argv else told[0])
        if argv[1] == "measure":
            return json.dumps({"required": 4096})
        if argv[1] in ("create", "convert"):
            target = argv[-2] if argv[1] == "create" else argv[-1]
            with open(target, "r+b") as stream:
                stream.write(b"complete")
        return ""

    Img.calls = []
    monkeypatch.setattr(storage, "run", run)
    return Img


def test_where_files_can_share_blocks(monkeypatch, tmp_path):
    told = tmp_path / "mountinfo"
    told.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:40 /a /pool rw shared:1 - btrfs /dev/sdb rw\n"
        "3 1 0:40 /b /with\\040space rw shared:2 - btrfs /dev/sdb rw\n"
        "4 2 8:3 / /pool/xfs rw - xfs /dev/sdc rw\n"
        "5 1 8:3 / /poolside rw - xfs /dev/sdc rw\n"
    )
    monkeypatch.setattr(storage, "_MOUNTS", str(told))
    assert storage.shares("/pool/a.qcow2", "/pool")
    assert storage.shares("/pool/a.qcow2", "/with space/b")
    assert storage.shares("/pool/xfs/a", "/poolside")
    assert not storage.shares("/pool/a.qcow2", "/pool/xfs")
    assert not storage.shares("/pool/a.qcow2", "/home")
    assert not storage.shares("/home/a", "/home")
    told.write_text("")
    assert not storage.shares("/pool/a", "/pool")


def test_a_disk_appears_complete_and_private(img, tmp_path):
    path = tmp_path / "web-root.qcow2"
    storage.create(str(path), "qcow2", 2048, None)
    assert path.read_bytes() == b"complete"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["web-root.qcow2"]
    assert img.calls[0][:5] == ["qemu-img", "create", "-q", "-f", "qcow2"]


def test_a_copy_is_grown_before_it_gets_its_name(img, tmp_path):
    storage.create(str(tmp_path / "d"), "qcow2", 2048, "/img")
    assert [call[1] for call in img.calls] == ["convert", "info", "resize"]
    assert img.calls[2][-1] == "2048"
    img.calls.clear()
    storage.create(str(tmp_path / "e"), "qcow2", 1024, "/img")
    assert [call[1] for call in img.calls] == ["convert", "info"]


def test_what_a_run_left_that_was_cut_off_is_thrown_away(img, tmp_path):
    partial = tmp_path / ".d.phyllome-partial"
    partial.write_bytes(b"half of something much longer")
    left = partial.open("rb")
    storage.create(str(tmp_path / "d"), "raw", 512, None)
    assert (tmp_path / "d").read_bytes() == b"complete"
    assert left.read() == b"half of something much longer", "whoever still writes there does not reach the new file"
    assert os.listdir(tmp_path) == ["d"]


def test_an_empty_leftover_is_used(img, tmp_path):
    (tmp_path / ".d.phyllome-partial").touch()
    storage.create(str(tmp_path / "d"), "raw", 512, None)
    assert os.listdir(tmp_path) == ["d"]


def test_two_runs_do_not_make_the_same_disk(img, tmp_path):
    with open(tmp_path / ".d.phyllome-partial", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PhyllomeError, match="another run makes this disk"):
            storage.create(str(tmp_path / "d"), "raw", 512, None)
    assert not (tmp_path / "d").exists()


def test_a_file_that_appeared_meanwhile_is_not_overwritten(img, tmp_path):
    (tmp_path / "d").write_bytes(b"precious")
    with pytest.raises(PhyllomeError, match="File exists"):
        storage.create(str(tmp_path / "d"), "raw", 512, None)
    assert (tmp_path / "d").read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["d"]


def test_a_link_in_place_of_the_file_is_not_followed(img, tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / ".d.phyllome-partial").symlink_to(tmp_path / "victim")
    with pytest.raises(PhyllomeError, match="symbolic link"):
        storage.create(str(tmp_path / "d"), "raw", 512, None)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_failed_copy_leaves_nothing(img, tmp_path):
    img.broken = True
    with pytest.raises(PhyllomeError, match="no space"):
        storage.create(str(tmp_path / "d"), "raw", 512, "/img")
    assert os.listdir(tmp_path) == []


def test_removal_takes_the_unfinished_file_along_and_may_be_repeated(tmp_path):
    (tmp_path / "d").touch()
    (tmp_path / ".d.phyllome-partial").touch()
    storage.remove(str(tmp_path / "d"))
    storage.remove(str(tmp_path / "d"))
    assert os.listdir(tmp_path) == []
    (tmp_path / "directory").mkdir()
    with pytest.raises(PhyllomeError, match="Cannot delete"):
        storage.remove(str(tmp_path / "directory"))


def test_a_linked_disk_names_its_image_and_the_format_of_that(img, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"QFI\xfb" + bytes(508))
    storage.create(str(tmp_path / "d"), "qcow2", 2048, str(image), "linked")
    assert img.calls[-1][4:9] == ["qcow2", "-b", str(image), "-F", "qcow2"]
    assert img.calls[-1][-1] == "2048"


def test_blocks_are_shared_or_it_is_said(img, tmp_path):
    storage.create(str(tmp_path / "d"), "qcow2", 2048, "/img", "reflink")
    assert [call[0:2] for call in img.calls][0] == ["cp", "--reflink=always"]
    assert img.calls[-1][1:2] == ["resize"]
    img.broken = True
    with pytest.raises(PhyllomeError) as caught:
        storage.create(str(tmp_path / "e"), "qcow2", 2048, "/img", "reflink")
    assert "method: full" in caught.value.remedy
    assert os.listdir(tmp_path) == ["d"]


def test_variables_are_set_aside_and_may_be_gone_already(tmp_path):
    store = tmp_path / "a_VARS.fd"
    store.write_bytes(b"keys")
    storage.set_aside(str(store))
    storage.set_aside(str(store))
    assert (tmp_path / "a_VARS.fd.before-reset").read_bytes() == b"keys"
    (tmp_path / "x").mkdir()
    (tmp_path / "x.before-reset").write_bytes(b"")
    with pytest.raises(PhyllomeError, match="aside"):
        storage.set_aside(str(tmp_path / "x"))


def test_a_disk_never_shrinks(img):
    with pytest.raises(PhyllomeError, match="would shrink to 512B"):
        storage.grow("/d", "qcow2", 512)
    storage.grow("/d", "qcow2", 2048)
    assert img.calls[-1] == ["qemu-img", "resize", "-q", "-f", "qcow2", "/d", "2048"]


def test_an_image_is_what_qemu_img_says(img, tmp_path):
    image = tmp_path / "a.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(508))
    checksum = f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}"
    assert storage.inspect(str(image), checksum) == storage.Image("qcow2", 1024, 4096)
    img.info = {**img.info, "backing-filename": "/base"}
    assert storage.inspect(str(image)).refers == "/base"
    img.info = {"format": "qcow2", "virtual-size": 1, "format-specific": {"data": {"data-file": "/outside"}}}
    assert storage.inspect(str(image)).refers == "/outside"


def test_another_checksum_is_told(img, tmp_path):
    image = tmp_path / "a.qcow2"
    image.write_bytes(bytes(512))
    with pytest.raises(PhyllomeError, match="another checksum than declared: declared sha256:00, found sha256:076a27"):
        storage.inspect(str(image), "sha256:00")
    assert img.calls == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>404</html>", "a web page"),
        (b"\xfd7zXZ\x00" + bytes(506), "an xz archive"),
        (b"\x1f\x8b" + bytes(510), "a gzip archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(508), "a zstd archive"),
        (b"BZh" + bytes(509), "a bzip2 archive"),
        (b"PK\x03\x04" + bytes(508), "a zip archive"),
        (b"hello", "sectors of 512 bytes"),
        (b"", "sectors of 512 bytes"),
    ],
)
def test_what_is_no_image_is_told(img, tmp_path, content, said):
    file = tmp_path / "a"
    file.write_bytes(content)
    img.info = {"format": "raw", "virtual-size": len(content)}
    with pytest.raises(PhyllomeError, match=said):
        storage.inspect(str(file))


def test_a_raw_image_is_an_image(img, tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes(1024))
    img.info = {"format": "raw", "virtual-size": 1024}
    assert storage.inspect(str(file)).format == "raw"


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(PhyllomeError, match="cannot be read"):
        storage.inspect(str(tmp_path / "none"))
    with pytest.raises(PhyllomeError, match="is not a file"):
        storage.inspect("/dev/null")


def test_a_chain_is_told_from_the_overlay_down(img):
    assert storage.chain("/overlay", "qcow2") == ("/base",)
    assert storage.chain("/overlay", "raw") == storage.chain("/overlay", None) == ()  # whatever its guest wrote there
    img.broken = True
    assert storage.chain("/overlay", "qcow2") == ()


def test_a_copy_needs_what_its_source_has(img):
    assert storage.needed(1, None) < storage.needed(1, storage.Image("qcow2", 1, 10**9))


@pytest.mark.parametrize(
    ("head", "overlay"),
    [
        (b"QFI\xfb\x00\x00\x00\x03" + b"\x00" * 8, False),
        (b"QFI\xfb\x00\x00\x00\x03" + b"\x00" * 6 + b"\x02\x10", True),
        (b"\xff" * 16, False),
        (b"", False),
    ],
)
def test_an_overlay_is_known_by_its_header(tmp_path, head, overlay):
    file = tmp_path / "disk"
    file.write_bytes(head)
    assert storage.based(str(file)) is overlay
    assert storage.based(str(tmp_path / "none")) is False
