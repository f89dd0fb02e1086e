# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt is asked for."""

from __future__ import annotations

import types
import typing as t

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._migration import apply
from ansible_collections.phyllome.virt.plugins.module_utils._migration.policy import Policy
from ansible_collections.phyllome.virt.plugins.module_utils._migration.progress import Progress
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read import Sight, View
from ansible_collections.phyllome.virt.plugins.module_utils._migration.read_guest import Disk, Guest
from ansible_collections.phyllome.virt.tests.unit._migration.test_plan import ORDER
from ansible_collections.phyllome.virt.tests.unit._migration.world import Lib

VIEW = View(Sight("alpha", "running"), Sight("beta", "absent"), "op", 0, "none", None)
ROOT, DATA = Disk("vda", "/images/a", "raw", 1, 1), Disk("vdb", "/nfs/b", "raw", 1, 1)


@pytest.fixture
def asked(monkeypatch):
    """What a live move asks for: the flags that are set, and the parameters, by the ends of their names."""
    lib = Lib()

    def ask(running=True, shared=(), resume=False, **order):
        seen: dict[str, t.Any] = {}
        job = types.SimpleNamespace(run=lambda timeout, monitor: None, seconds=1.0)
        monkeypatch.setattr(apply.virt, "libvirt", lib)
        monkeypatch.setattr(apply, "unfenced", lambda domain, flat: "<domain/>")
        monkeypatch.setattr(apply, "address", lambda order: "10.0.0.2")
        monkeypatch.setattr(
            apply, "Handover", lambda *dummy: types.SimpleNamespace(end=lambda: seen.update(handover=True))
        )
        monkeypatch.setattr(
            apply, "Job", lambda domain, uri, params, flags: seen.update(params=params, flags=flags) or job
        )
        pair: t.Any = types.SimpleNamespace(order=types.SimpleNamespace(**{**vars(ORDER), **order}))
        guest = Guest("web", "uuid", 1, "kvm", "", "", "", None, disks=(ROOT,)).apart(lambda disk: False)
        made = apply.Mover(pair, Progress())
        made.migrate(VIEW, None, types.SimpleNamespace(disks=guest.disks, shared=shared), running, resume)  # type: ignore[arg-type]
        flags = {
            name
            for name, value in lib._known.items()
            if name.startswith("VIR_MIGRATE_") and "PARAM" not in name and value & seen["flags"]
        }
        params = {name: seen["params"][value] for name, value in lib._known.items() if value in seen["params"]}
        return (
            {name[len("VIR_MIGRATE_") :] for name in flags},
            {name[len("VIR_MIGRATE_PARAM_") :]: value for name, value in params.items()},
            "handover" in seen,
        )

    return ask


def test_a_guest_arrives_paused_and_its_disks_are_copied_over_tls_to_whom_the_certificate_names(asked):
    flags, params, handed_over = asked()
    assert flags == {"LIVE", "PEER2PEER", "PERSIST_DEST", "ABORT_ON_ERROR", "PAUSED", "TLS", "NON_SHARED_DISK"}
    assert params["TLS_DESTINATION"] == "beta" and params["MIGRATE_DISKS"] == ["vda"]
    assert handed_over


def test_several_connections(asked):
    flags, params, dummy = asked(parallel=3)
    assert "PARALLEL" in flags and params["PARALLEL_CONNECTIONS"] == 3


def test_only_post_copy_leaves_the_change_of_hosts_to_libvirt_and_only_for_a_guest_that_runs(asked):
    policy = Policy(on_stall="post_copy")
    flags, params, handed_over = asked(policy=policy, bandwidth_mib=8)
    assert params["BANDWIDTH"] == params["BANDWIDTH_POSTCOPY"] == 8
    assert "POSTCOPY" in flags and "PAUSED" not in flags and not handed_over
    flags, dummy, handed_over = asked(running=False, policy=policy)
    assert "PAUSED" in flags and "POSTCOPY" not in flags and not handed_over


def test_what_was_cut_off_is_resumed_as_what_it_is_whatever_is_asked_for_now(asked):
    flags, params, handed_over = asked(resume=True)
    assert {"POSTCOPY", "POSTCOPY_RESUME", "LIVE", "PEER2PEER", "TLS"} < flags and "PAUSED" not in flags
    assert params["TLS_DESTINATION"] == "beta" and not handed_over


def test_a_disk_that_both_hosts_have_is_not_copied_and_only_then_libvirt_s_own_doubts_are_set_aside(asked):
    flags, params, dummy = asked(shared=(DATA,))
    assert "UNSAFE" in flags and params["MIGRATE_DISKS"] == ["vda"]
