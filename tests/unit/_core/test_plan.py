# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.plan import Change, Plan

MORE = Change("grow", "disks.root.size", "20GiB", "40GiB")
MADE = Change("create", "disks.data", None, "1GiB", "next_boot", why="it is new", args={"path": "/x"})
GONE = Change("remove", "cdroms.installer", "/x.iso", None)
NEVER = Change("", "firmware.type", "bios", "uefi", "refused", why="its disks would not start")


def test_a_change_as_users_see_it():
    assert MORE.as_dict() == {"path": "disks.root.size", "from": "20GiB", "to": "40GiB", "when": "live"}
    assert MADE.as_dict() == {"path": "disks.data", "from": None, "to": "1GiB", "when": "next_boot", "why": "it is new"}


def test_a_change_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MORE.after = "80GiB"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "changed"), [((), False), ((NEVER,), False), ((MORE,), True), ((MADE,), True), ((NEVER, GONE), True)]
)
def test_whether_anything_changes(changes, changed):
    assert Plan(changes).changed is changed


def test_plans_add_up_in_order():
    plan = Plan((MORE,)) + Plan() + Plan((MADE, GONE))
    assert [*plan] == [MORE, MADE, GONE]
    assert len(plan) == 3
    assert [change["path"] for change in plan.as_list()] == ["disks.root.size", "disks.data", "cdroms.installer"]


def test_the_diff_shows_what_will_be_done_and_nothing_else():
    assert Plan((MORE, MADE, GONE, NEVER)).diff("guest web") == {
        "before_header": "guest web",
        "after_header": "guest web",
        "before": "disks.root.size: 20GiB\ncdroms.installer: /x.iso\n",
        "after": "disks.root.size: 40GiB\ndisks.data: 1GiB\n",
    }


def test_false_and_zero_are_values():
    diff = Plan((Change("set", "autostart", False, True), Change("set", "vsock", 0, 3))).diff("guest web")
    assert (diff["before"], diff["after"]) == ("autostart: False\nvsock: 0\n", "autostart: True\nvsock: 3\n")


def test_nothing_to_do_is_an_empty_diff():
    diff = Plan().diff("guest web")
    assert diff["before"] == diff["after"] == ""
