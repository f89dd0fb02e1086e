# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import uuid

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.names import (
    check_id,
    check_name,
    check_path,
    guest_uuid,
)


@pytest.mark.parametrize("name", ["web", "win11", "a", "_x", "9lives", "a.b+c-d_e", "x" * 64])
def test_names(name):
    assert check_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    ["", "-web", ".web", "+x", "a b", "a/b", "..", "wéb", "web\n", "web\0", "x" * 65, "a;b", "$(x)", "<a>", "a'b", "١"],
)
def test_names_that_are_refused(name):
    with pytest.raises(PhyllomeError) as refusal:
        check_name(name, "clone_from.guest")
    message = str(refusal.value)
    assert message.startswith("clone_from.guest: ") and "is not a valid name: names have 1 to 64" in message
    assert len(message) < 400


@pytest.mark.parametrize("value", ["root", "0", "a_b-c", "x" * 32])
def test_ids(value):
    assert check_id(value, "disks.id") == value


@pytest.mark.parametrize("value", ["", "-a", "a.b", "a b", "x" * 33, "root\n", "ä"])
def test_ids_that_are_refused(value):
    with pytest.raises(PhyllomeError, match=r"^disks.id: .* is not a valid id: an id has 1 to 32"):
        check_id(value, "disks.id")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/", "/"),
        ("/srv/images", "/srv/images"),
        ("/srv//images/./x/", "/srv/images/x"),
        ("//srv/images", "/srv/images"),
        ("/srv/..images/my disk ä.qcow2", "/srv/..images/my disk ä.qcow2"),
    ],
)
def test_paths(given, path):
    assert check_path(given, "path") == path


@pytest.mark.parametrize(
    "path", ["", "srv", "~/x", "./x", "/srv/../etc", "/..", "/a\nb", "/a\0b", "/a\x7f", "/a\udc80", "/" + "x" * 4096]
)
def test_paths_that_are_refused(path):
    with pytest.raises(PhyllomeError, match=r"^disks.path: .* is not a valid path: a path is absolute"):
        check_path(path, "disks.path")


def test_the_uuid_of_a_guest_is_the_same_everywhere():
    assert guest_uuid("web") == "71413ad7-e2ab-5ee6-85d6-988789681e72"
    assert uuid.UUID(guest_uuid("web")).version == 5
    assert guest_uuid("web") != guest_uuid("Web")
