# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every blocker, and what a move says that it will do."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._migration import judge, plan
from ansible_collections.phyllome.virt.plugins.module_utils._migration.devices import Device, Offered
from ansible_collections.phyllome.virt.plugins.module_utils._migration.journal import Mark, Record
from ansible_collections.phyllome.virt.plugins.module_utils._migration.policy import Policy
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read import Sight, View
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read_guest import Backing, Disk, Guest
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read_offer import Offer, Pool
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read_way import Way
from ansible_collections.phyllome.virt.plugins.module_utils._migration.spec import Order

UUID = "11111111-1111-4111-8111-111111111111"
OP = "0f1f6c0b-50a2-5a63-9f6f-8c3ad0f34f40"
PATH = "/var/lib/libvirt/images/web.qcow2"
MIB = 1024**2

ORDER = Order(
    name="web",
    uuid=None,
    source="alpha",
    destination="beta",
    destination_uri="qemu+tls://beta/system",
    ssh=False,
    host="beta",
    migrate_address=None,
    mode="auto",
    policy=Policy(),
    bandwidth_mib=0,
    timeout=0,
    purge=False,
    source_is_dead=False,
    uri="qemu:///system",
)
HERE = Sight("alpha", "running", "running", "web", UUID, persistent=True)
VIEW = View(HERE, Sight("beta", "absent"), OP, 0, "none", None)
GUEST = Guest(
    name="web",
    uuid=UUID,
    memory=512 * MIB,
    type="kvm",
    emulator="/usr/bin/qemu-system-x86_64",
    arch="x86_64",
    machine="pc-q35-7.2",
    cpu="<cpu/>",
    disks=(Disk("vda", PATH, "qcow2", 1024 * MIB, 100 * MIB),),
    media=("/isos/a.iso",),
    networks=("default",),
    bridges=("br0",),
    loader="/usr/share/OVMF/OVMF_CODE_4M.fd",
    nvram="/var/lib/libvirt/qemu/nvram/web_VARS.fd",
    tpm=f"/var/lib/libvirt/swtpm/{UUID}/tpm2",
)
HOSTDEV = ("hostdevs", "it has a device of this host", "Take it out of the guest for the move.")
WAY = Way(qemu=(7002000, 7002000), libvirt=(9000000, 9000000), certificates="", ports="")
OFFER = Offer(
    same_host=False,
    memory=1024 * MIB,
    pools={"/var/lib/libvirt/images": Pool("images", 200 * MIB)},
    present=(),
    media={"/isos/a.iso": True},
    networks={"default": True},
    bridges={"br0": True},
    platform="",
    loader=True,
    cpu=True,
    cpus=8,
    pages={},
    way=WAY,
)

NO_CERTIFICATES = dataclasses.replace(WAY, certificates="/etc/pki/qemu has no client-key.pem")


def found(order=None, view=None, guest=None, offer=None, mode="live", ours=()):
    return plan.blockers(
        dataclasses.replace(ORDER, **(order or {})),
        dataclasses.replace(VIEW, source=dataclasses.replace(HERE, **(view or {}))),
        dataclasses.replace(GUEST, **(guest or {})),
        dataclasses.replace(OFFER, **(offer or {})),
        mode,
        ours,
    )


def test_nothing_stands_against_a_move_that_fits():
    assert found() == []


GPU = Device("gpu", "pci", "0000:01:00.0")
NEW = {"gpu": "0000:41:00.0"}


@pytest.mark.parametrize(
    ("words", "device", "hostdevs", "offered"),
    [
        ("Say which one of beta it gets: hostdevs: {gpu: ADDRESS}", GPU, {}, None),
        ("beta has no device 0000:41:00.0 for gpu", GPU, NEW, None),
        ("not bound to VFIO (no driver)", GPU, NEW, Offered("")),
        ("not bound to VFIO (nouveau)", GPU, NEW, Offered("nouveau")),
        ("belongs to guest db, web", GPU, NEW, Offered("vfio-pci", guests=("db", "web"))),
        ("beta itself uses others of the IOMMU group of 0000:41:00.0: 0000:41:00.1", GPU, NEW,
         Offered("vfio-pci", hosted=("0000:41:00.1",))),
        (None, GPU, NEW, Offered("vfio-pci")),
        (None, GPU, NEW, Offered("xe-vfio-pci")),
        ("others have no equal of", Device("scsi", "other", "scsi"), {}, None),
        ("beta has no device 8087:0a2b for bt", Device("bt", "usb", "8087:0a2b"), {}, None),
        (None, Device("bt", "usb", "8087:0a2b"), {}, Offered("usb")),
    ],
)  # fmt: skip
def test_devices_of_the_host_have_to_be_at_the_destination_and_free(words, device, hostdevs, offered):
    blockers = found(
        {"hostdevs": hostdevs}, {"state": "off"}, {"devices": (device,)}, {"devices": {device.id: offered}}, mode="cold"
    )
    said = [f"{blocker.what} {blocker.fix}" for blocker in blockers]
    assert (len(said) == 1 and words in said[0]) if words else not said, said


def test_a_device_that_the_guest_has_not_is_no_device_to_exchange():
    (blocker,) = found({"hostdevs": NEW}, {"state": "off"}, mode="cold")
    assert "it has no device gpu" in blocker.what


def test_a_guest_that_stays_off_needs_no_memory_and_no_certificates_for_it():
    lacking = {"memory": 0, "way": dataclasses.replace(WAY, certificates="there are none")}
    assert found(view={"state": "off"}, offer=lacking, mode="cold") == []
    codes = [one.code for one in found({"power_after": "running"}, {"state": "off"}, offer=lacking, mode="cold")]
    assert codes == ["memory"]


def test_files_below_a_disk_need_space_as_well_and_are_copied_first():
    below = (
        Backing("/var/lib/libvirt/images/one", 60 * MIB, False),
        Backing("/var/lib/libvirt/images/two", 70 * MIB, True),
    )
    disk = dataclasses.replace(GUEST.disks[0], backing=below)
    (blocker,) = found(view={"state": "off"}, guest={"disks": (disk,)}, mode="cold")
    assert blocker.code == "space"
    guest = dataclasses.replace(GUEST, disks=(disk,), nvram=None, tpm=None)
    row = judge.classify("off", "absent", "none", "none", False)
    assert row is not None
    todo = plan.plan(ORDER, VIEW, row, guest)
    copies = [(change.path, change.why) for change in todo if change.action == "copy"]
    assert [path for path, dummy in copies] == ["disks.vda.2", "disks.vda.1", "disks.vda"]
    assert copies[0][1].endswith("and stays here")
    put_away = [change.path for change in todo if change.action == "put_away"]
    assert put_away == ["alpha.disks.vda", "alpha.disks.vda.1"]


def test_a_hook_that_could_not_be_looked_for_is_told_and_blocks_nothing():
    (said,) = plan.unknown(GUEST, dataclasses.replace(OFFER, fence_there=None), "beta")
    assert "Whether beta has the hook phyllome-fence" in said
    assert found(offer={"fence_there": None}, mode="cold") == []


def test_a_source_that_starts_its_guests_without_asking_is_named():
    assert plan.unknown(GUEST, OFFER, "beta") == []
    (said,) = plan.unknown(GUEST, dataclasses.replace(OFFER, fence=False), "beta")
    assert "phyllome-fence" in said


@pytest.mark.parametrize(
    ("order", "state", "begun", "ways"),
    [
        ({}, "running", None, ["live"]),
        ({}, "off", None, ["cold"]),
        ({"mode": "cold"}, "running", None, ["cold"]),
        ({"mode": "warm"}, "running", None, ["warm"]),
        ({"mode": "warm"}, "off", None, ["cold"]),
        ({"power_after": "off"}, "running", None, ["cold"]),
        ({"hostdevs": NEW}, "running", None, ["cold"]),
        ({}, "running", "cold", ["cold"]),
        ({}, "running", "warm", ["warm"]),
        ({}, "off", "warm", ["warm"]),
        ({}, "off", "cold", ["cold"]),
        ({"allow": ("cold", "live", "warm")}, "running", None, ["live", "warm", "cold"]),
        ({"allow": ("cold", "warm")}, "running", None, ["warm", "cold"]),
        ({"allow": ("live", "warm"), "hostdevs": NEW}, "running", None, ["warm"]),
        ({"allow": ("live",), "hostdevs": NEW}, "running", None, ["cold"]),
    ],
)
def test_the_modes_that_fit(order, state, begun, ways):
    found_ways = plan.modes(dataclasses.replace(ORDER, **order), state, begun)
    assert [mode for mode, dummy in found_ways] == ways
    assert all(why for dummy, why in found_ways)


def test_a_mode_that_auto_was_not_allowed_is_not_taken():
    order = dataclasses.replace(ORDER, allow=("live",))
    assert [one.code for one in plan.blockers(order, VIEW, GUEST, OFFER, "live", ())] == []
    (said,) = plan.blockers(order, VIEW, GUEST, OFFER, "cold", ())
    assert (said.code, said.fix) == ("mode", "Add cold to allow.")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("same_host", {"offer": {"same_host": True}}),
        ("not_running", {"order": {"mode": "live"}, "mode": "cold"}),
        ("paused", {"view": {"state": "paused", "detail": "paused (user)"}, "mode": "cold"}),
        ("stuck", {"view": {"state": "stuck", "detail": "paused (I/O error)"}}),
        ("transient", {"view": {"persistent": False}}),
        ("job_active", {"view": {"job": "other"}}),
        ("job_active", {"guest": {"block_jobs": ("vda",)}}),
        ("managed_save", {"guest": {"managed_save": True}}),
        ("hostdevs", {"guest": {"obstacles": (HOSTDEV,)}}),
        ("disk_exists", {"offer": {"present": (PATH,)}}),
        ("disk_exists", {"offer": {"present": (GUEST.nvram,)}}),
        ("no_fence", {"offer": {"fence_there": False}, "mode": "cold"}),
        ("pool_missing", {"offer": {"pools": {"/var/lib/libvirt/images": None}}}),
        ("space", {"offer": {"pools": {"/var/lib/libvirt/images": Pool("images", 110 * MIB)}}}),
        ("medium_missing", {"offer": {"media": {"/isos/a.iso": False}}}),
        ("network_missing", {"offer": {"networks": {"default": None}}}),
        ("network_missing", {"offer": {"networks": {"default": False}}}),
        ("bridge_missing", {"offer": {"bridges": {"br0": False}}}),
        ("memory", {"offer": {"memory": 256 * MIB}}),
        ("platform", {"offer": {"platform": "unsupported machine type"}}),
        ("firmware", {"offer": {"loader": False}}),
        ("cpu", {"offer": {"cpu": False}}),
        ("post_copy", {"offer": {"faults": False}}),
        ("pinning", {"guest": {"last_cpu": 8}}),
        ("huge_pages", {"offer": {"pages": {2048: 255}}}),
        ("qemu_older", {"offer": {"way": dataclasses.replace(WAY, qemu=(8000000, 7002019))}}),
        ("certificates", {"offer": {"way": NO_CERTIFICATES}}),
        ("ports", {"offer": {"way": dataclasses.replace(WAY, ports="port 49152 of beta does not answer")}}),
    ],
)
def test_each_blocker_is_found_alone_and_says_what_to_do(code, arguments):
    (blocker,) = found(**arguments)
    assert blocker.code == code
    assert blocker.what
    assert blocker.fix.endswith(".")


def test_all_blockers_at_once():
    codes = [
        one.code
        for one in found(
            guest={"obstacles": (("snapshots", "it has 2 snapshots", "Delete them."), HOSTDEV)},
            offer={"networks": {"default": None}, "way": NO_CERTIFICATES, "present": (PATH,)},
        )
    ]
    assert codes == ["snapshots", "hostdevs", "disk_exists", "network_missing", "certificates"]


def test_what_just_fits_is_no_blocker():
    newer = dataclasses.replace(WAY, qemu=(7002000, 8000000))
    assert found(guest={"last_cpu": 7}, offer={"pages": {2048: 256}, "way": newer}) == []


def test_a_guest_without_memory_on_its_way_may_go_to_an_older_qemu():
    older = dataclasses.replace(WAY, qemu=(8000000, 7002019))
    assert found(view={"state": "off"}, offer={"way": older}, mode="cold") == []
    (blocker,) = found(offer={"way": older})
    assert "beta has QEMU 7.2.19, alpha has 8.0.0" in blocker.what


def test_a_file_that_this_move_has_left_is_no_blocker():
    assert found(offer={"present": (PATH,)}, ours=(PATH,)) == []
    assert found(offer={"present": (f"{GUEST.tpm}/tpm2-00.permall",)}, ours=(f"/var/lib/libvirt/swtpm/{UUID}",)) == []
    assert found(offer={"fence_there": False}, ours=(PATH,), mode="cold") == []


def test_what_is_unknown_is_no_blocker_but_is_said():
    way = Way(qemu=(7002000, 7002000), libvirt=(10001000, 9000000), certificates=None, ports="")
    offer: dict[str, t.Any] = {"media": {"/isos/a.iso": None}, "bridges": {"br0": None}, "cpu": None, "memory": None}
    offer.update(way=way, faults=None)
    assert found(offer=offer) == []
    said = plan.unknown(GUEST, dataclasses.replace(OFFER, **offer), "beta")
    assert len(said) == 6
    assert any("beta has libvirt 9.0.0, which is older than 10.1.0 here" in one for one in said)
    assert plan.unknown(GUEST, OFFER, "beta") == []


def row(*state):
    found_row = judge.classify(*state)
    assert found_row is not None
    return found_row


def shown(a_plan):
    return [(change.path, change.before, change.after) for change in a_plan]


def test_plan_of_a_move():
    view = dataclasses.replace(VIEW, source=dataclasses.replace(HERE, autostart=True))
    made = plan.plan(ORDER, view, row("running", "absent", "none", "none", False), GUEST)
    kept = f".phyllome-retained-{OP}"
    assert shown(made) == [
        ("host", "alpha", "beta"),
        ("disks.vda", f"alpha:{PATH}", f"beta:{PATH}"),
        ("nvram", f"alpha:{GUEST.nvram}", f"beta:{GUEST.nvram}"),
        ("tpm", f"alpha:/var/lib/libvirt/swtpm/{UUID}", f"beta:/var/lib/libvirt/swtpm/{UUID}"),
        ("beta.autostart", False, True),
        ("alpha.disks.vda", PATH, PATH + kept),
        ("alpha.nvram", GUEST.nvram, GUEST.nvram + kept),
        ("alpha.tpm", f"/var/lib/libvirt/swtpm/{UUID}", f"/var/lib/libvirt/swtpm/{UUID}{kept}"),
        ("alpha.definition", "web", None),
    ]
    assert made.changed


def test_a_purge_shows_that_files_go():
    order = dataclasses.replace(ORDER, purge=True)
    made = plan.plan(order, VIEW, row("running", "absent", "none", "none", False), GUEST)
    assert ("alpha.disks.vda", PATH, None) in shown(made)


def test_nothing_to_do():
    made = plan.plan(ORDER, VIEW, row("absent", "running", "none", "none", False), GUEST)
    assert not made.changed
    assert made.as_list() == []


def test_finishing_copies_nothing_and_follows_the_record():
    record = Record(OP, UUID, "web", "alpha", "beta", "committed", pieces={"disks.vda": "/old/web.qcow2"})
    there = Sight("beta", "paused", "paused (user)", "web", UUID, persistent=True)
    view = View(dataclasses.replace(HERE, state="migrated"), there, OP, 0, "moving", record)
    made = plan.plan(ORDER, view, row("migrated", "paused", "none", "moving", True), GUEST)
    assert shown(made) == [
        ("host", "alpha", "beta"),
        ("alpha.disks.vda", "/old/web.qcow2", f"/old/web.qcow2.phyllome-retained-{OP}"),
        ("alpha.definition", "web", None),
    ]


def test_discarding_is_said_first_and_with_the_reason():
    there = Sight("beta", "paused", "paused (user)", "web", UUID, persistent=True)
    view = View(HERE, there, OP, 0, "moving", None)
    made = plan.plan(ORDER, view, row("running", "paused", "none", "moving", False), GUEST)
    first = made.changes[0]
    assert (first.path, first.before, first.after) == ("beta.guest", "paused (user)", None)
    assert "never left the source" in first.why


def test_the_most_a_sparse_copy_may_take():
    assert plan.grown(0) == 16 * MIB
    assert plan.grown(1000 * MIB) == 1066 * MIB


def test_a_mark_is_no_part_of_the_plan():
    mark = Mark(OP, "alpha", "beta", 0, "moving", "running", False)
    view = dataclasses.replace(VIEW, source=dataclasses.replace(HERE, mark=mark), mark="moving")
    before = plan.plan(ORDER, VIEW, row("running", "absent", "none", "none", False), GUEST)
    again = plan.plan(ORDER, view, row("running", "absent", "none", "moving", False), GUEST)
    assert shown(before) == shown(again)


def test_a_guest_that_was_shut_down_for_its_move_still_needs_memory():
    less = {"memory": 100 * MIB}
    mark = Mark(OP, "alpha", "beta", 0, "copying", "running", False, fenced=True)
    (blocker,) = found(view={"state": "off", "mark": mark}, offer=less, mode="cold")
    assert blocker.code == "memory"
    replaced = dataclasses.replace
    for other in (replaced(mark, op_id="another"), replaced(mark, phase="done"), replaced(mark, power="off")):
        assert found(view={"state": "off", "mark": other}, offer=less, mode="cold") == []
    assert found({"power_after": "off"}, {"state": "off", "mark": mark}, offer=less, mode="cold") == []
