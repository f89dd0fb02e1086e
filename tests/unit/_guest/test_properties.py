# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is declared of whatever is there: done is done, what is not declared stays, check mode writes nothing."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import typing as t

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import apply, spec
from ansible_collections.phyllome.virt.plugins.module_utils._guest.tables import DOMAIN, KINDS

from .fake import Hypervisor

SIZES = st.sampled_from(["1GiB", "2GiB", "1536MiB"])
FOREIGN = "<interface type='network'><mac address='52:54:00:aa:aa:aa'/><source network='theirs'/><alias name='ua-theirs'/></interface>"
DISK = st.fixed_dictionaries({"size": SIZES}, optional={"bus": st.sampled_from(["virtio", "scsi", "sata", "usb"])})
CDROM = st.fixed_dictionaries({}, optional={"bus": st.sampled_from(["sata", "usb"]), "path": st.just("")})
CARD = st.fixed_dictionaries(
    {"network": st.sampled_from(["default", "other"])}, optional={"model": st.sampled_from(["virtio", "e1000e"])}
)


def listed(kind: t.Any, ids: str) -> t.Any:
    """A list of devices, each with an id of its own."""
    return st.dictionaries(st.sampled_from(ids), kind, max_size=3).map(
        lambda devices: [{"id": name, **values} for name, values in devices.items()]
    )


WHOLE = st.fixed_dictionaries(
    {"disks": listed(DISK, "abc")},
    optional={
        "profile": st.sampled_from(["linux", "windows11", "generic", "legacy"]),
        "memory": SIZES,
        "vcpus": st.sampled_from([1, 2, 4, 8]),
        "cdroms": listed(CDROM, "de"),
        "networks": listed(CARD, "fgh"),
        "graphics": st.fixed_dictionaries({"type": st.sampled_from(["vnc", "spice", "none"])}),
        "tpm": st.fixed_dictionaries({"model": st.sampled_from(["tpm-crb", "none"])}),
        "autostart": st.booleans(),
        "state": st.sampled_from(["present", "running", "stopped", "paused"]),
    },
)
MORE = st.fixed_dictionaries(
    {},
    optional={
        "unmanaged_devices": st.sampled_from(["keep", "prune"]),
        "apply": st.sampled_from(["live", "next_boot", "restart"]),
        "protected": st.booleans(),
    },
)


@contextlib.contextmanager
def libvirt() -> t.Iterator[Hypervisor]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(apply, "_POLL", 0.001)
        yield Hypervisor(pathlib.Path(folder), monkeypatch)


def fields(config: t.Any) -> dict[str, t.Any]:
    """Every field that a guest has, by its path."""
    there = {
        f"{group}.{row.option}" if group else row.option: row.read(config)
        for group, rows in DOMAIN.items()
        for row in rows
    }
    for kind in KINDS:
        for found in kind.elements(config):
            for row in kind.rows:
                there[f"{kind.option}.{kind.label(found)}.{row.option}"] = row.read(found)
    return there


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(first=WHOLE, then=WHOLE, more=MORE, obeys=st.booleans())
def test_any_guest_to_any_other(first, then, more, obeys):
    then = {option: value for option, value in then.items() if option != "profile"}
    with libvirt() as host:
        try:
            host.converge(**first)
        except PhyllomeError:
            assert host.domains == [], "refused before anything was done"
            return
        assert host.converge(**first)["changed"] is False
        web = host.guest()
        for root in (web.config, web.live):
            if root is not None:
                root.find("devices").append(xml.parse(FOREIGN))
        web.obeys = lambda alias: obeys
        wanted = {**then, **more, "on_unplug_timeout": 1}
        before, had = host.state(), fields(web.config)
        try:
            check = host.converge(check=True, **wanted)
        except PhyllomeError:
            assert host.state() == before, "check mode writes nothing"
            with pytest.raises(PhyllomeError):
                host.converge(**wanted)
            assert host.state() == before, "what is refused is refused as a whole"
            return
        assert host.state() == before, "check mode writes nothing"
        result = host.converge(**wanted)
        assert obeys is False or check["plan"] == result["plan"], "check mode says what will be done"
        assert "autostart" in then or web.auto == bool(first.get("autostart"))
        changed = {change["path"] for change in [*check["plan"], *result["plan"]]}
        has = fields(web.config)
        for path in {*had, *has}:
            if had.get(path) != has.get(path):
                assert told(path, changed), f"{path} was changed and not told"
                assert declared(path, wanted), f"{path} was changed and not declared"
        assert web.config.find("devices/interface/alias[@name='ua-theirs']/..") is not None
        again = host.converge(**wanted)
        assert again["changed"] is False
        assert obeys is False or again["plan"] == []
        if more.get("apply") == "restart":
            assert again["pending"] == [] or web.live is None


PARTS = {"graphics": ("graphics", "video", "channels"), "memory": ("memory",), "vcpus": ("vcpus",)}
"""What an option of the guest itself brings with it: a display needs a card."""


def told(path: str, changed: t.Container[str]) -> bool:
    """Whether the plan has this, as itself or as a part of something that comes, goes or becomes another kind."""
    group, dummy, rest = path.partition(".")
    device = f"{group}.{rest.partition('.')[0]}"
    wholes = {path, device, f"{device}.bus", f"{device}.mac", group, f"{group}.type", f"{group}.model"}
    wholes |= {"graphics.type"} if group in PARTS["graphics"] else set()
    return any(whole in changed for whole in wholes)


def declared(path: str, wanted: t.Mapping[str, t.Any]) -> bool:
    """Whether somebody asked for a change of this."""
    whole = spec.accept({"name": "web", **wanted})
    option, dummy, rest = path.partition(".")
    if option in whole.devices:
        return rest.partition(".")[0] in {each.id for each in whole.devices[option]} or whole.prune
    return any(option in PARTS.get(given, (given,)) for given in wanted)
