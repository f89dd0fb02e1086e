# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying plans out, and the doors, on a libvirt that notes what it was told."""

from __future__ import annotations

import contextlib
import types
import typing

import pytest
import yaml

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt, xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.plan import Change, Plan
from ansible_collections.phyllome.virt.plugins.module_utils._guest import (
    apply,
    converge,
    draft,
    plan_power,
    read_host,
    spec,
    tables,
)
from ansible_collections.phyllome.virt.plugins.module_utils._guest.admission import Promised
from ansible_collections.phyllome.virt.plugins.modules import phyllome_vm


class LibvirtError(Exception):
    def get_error_message(self):
        return str(self)

    def get_error_code(self):
        return 55


class Libvirt(types.SimpleNamespace):
    libvirtError = LibvirtError

    def __getattr__(self, name):
        return name.removeprefix("VIR_DOMAIN_").lower() if name.startswith("VIR_DOMAIN") else 0


class Domain:
    """A guest that stops after so many looks at it."""

    def __init__(self, looks=0, fails=(), state=1, agent=False):
        self.told, self.looks, self.fails, self.code, self.agent = [], looks, fails, state, agent

    def __getattr__(self, name):
        def call(*args):
            self.told.append((name, *args))
            if name in self.fails:
                raise LibvirtError(f"{name} failed")

        return call

    def isActive(self):
        self.looks -= 1
        return self.looks >= 0

    def state(self):
        return self.code, 0

    def XMLDesc(self, *flags):
        state = "connected" if self.agent else "disconnected"
        target = f"<target name='org.qemu.guest_agent.0' state='{state}'/>"
        return f"<domain><devices><channel>{target}</channel></devices></domain>"


class Connection:
    def __init__(self, domain):
        self.domain, self.told = domain, []

    def defineXMLFlags(self, text, flags):
        self.told.append(flags)
        return self.domain

    def storagePoolLookupByTargetPath(self, path):
        raise LibvirtError("no pool")


@pytest.fixture(autouse=True)
def libvirt(monkeypatch):
    monkeypatch.setattr(virt, "libvirt", Libvirt())
    monkeypatch.setattr(apply, "_POLL", 0)


def wanted(**options):
    return spec.accept({"name": "web", **options})


def run(domain, *changes, options=None, **decision):
    step = apply.Apply(Connection(domain), domain, wanted(**(options or {})))
    step.run(draft.Decision(Plan(changes), **decision))
    return step


def step(action, path="state", **args):
    return Change(action, path, None, "x", args=args)


def test_the_definition_is_written_once_and_validated():
    domain = Domain()
    connection = Connection(domain)
    applying = apply.Apply(connection, None, wanted())
    applying.run(draft.Decision(Plan((step("config"), step("config"), step("start"))), config=xml.element("domain")))
    assert connection.told == ["define_validate"]
    assert domain.told == [("createWithFlags", 0)]
    assert applying.begun


@pytest.mark.parametrize(
    ("action", "call"),
    [
        ("start", ("createWithFlags", 0)),
        ("start_paused", ("createWithFlags", "start_paused")),
        ("resume", ("resume",)),
        ("suspend", ("suspend",)),
        ("wakeup", ("pMWakeup",)),
        ("destroy", ("destroyFlags", "destroy_graceful")),
    ],
)
def test_power_steps(action, call):
    domain = Domain()
    run(domain, step(action))
    assert domain.told == [call]


def test_a_step_that_somebody_else_has_finished_is_done():
    run(Domain(fails=("createWithFlags",), state=1), step("start"))
    with pytest.raises(PhyllomeError, match="state cannot be changed: createWithFlags failed"):
        run(Domain(fails=("createWithFlags",), state=5), step("start"))


def test_a_guest_is_asked_by_its_agent_then_by_its_button():
    domain = Domain(looks=3, agent=True)
    run(domain, step("shutdown"))
    assert domain.told == [("shutdownFlags", "shutdown_guest_agent")]
    domain = Domain(looks=10**9, agent=True, fails=("shutdownFlags",))
    with pytest.raises(PhyllomeError, match="did not shut down within 1 s"):
        run(domain, step("shutdown"), options={"shutdown": {"timeout": 1}})
    assert [call[1] for call in domain.told] == ["shutdown_guest_agent", *["shutdown_acpi_power_btn"] * 2]


@pytest.mark.parametrize(("fails", "last"), [((), "destroyFlags"), (("destroyFlags",), "destroy")])
def test_the_plug_is_pulled_only_when_that_was_said(fails, last):
    domain = Domain(looks=10**9, fails=fails)
    run(domain, step("shutdown"), options={"shutdown": {"timeout": 1, "then": "destroy"}})
    assert domain.told[-1][0] == last


def test_what_a_running_guest_refuses_waits():
    domain = Domain(fails=("updateDeviceFlags",))
    change = Change("live", "cdroms.cd.path", "", "/x", args={"device": xml.element("disk")})
    assert run(domain, change).refused == {"cdroms.cd.path": "updateDeviceFlags failed"}
    assert domain.told[0][2] == "affect_live"


def test_a_disk_that_is_complete_is_noted(monkeypatch, lab):
    made = []
    monkeypatch.setattr(apply.storage, "create", lambda *args: made.append(args))
    decision = lab.decide(state="present", disks=[{"id": "root", "size": "1GiB"}])
    domain = Domain()
    applying = apply.Apply(Connection(domain), None, wanted())
    applying.run(decision)
    assert made == [("/var/lib/libvirt/images/web-root.qcow2", "qcow2", 1024**3, None, "full", None)]
    ((name, dummy, text, prefix, uri, scope),) = domain.told
    assert (name, prefix, uri, scope) == ("setMetadata", "phyllome", xml.GUEST_NS, "affect_config")
    assert 'made="yes"' in text and "xmlns" not in text


def test_disks_grow_where_they_are_used(monkeypatch):
    grown = []
    monkeypatch.setattr(apply.storage, "grow", lambda *args: grown.append(args))
    domain = Domain()
    run(domain, step("volume.grow", file="/d", form="raw", size=512, target=None, id="root"))
    assert grown == [("/d", "raw", 512, None)]
    run(domain, step("volume.grow", file="/d", form="raw", size=512, target="vda"))
    assert domain.told == [("blockResize", "vda", 512, "block_resize_bytes")]


def test_the_rest(monkeypatch):
    removed: list[str] = []
    monkeypatch.setattr(apply.storage, "remove", removed.append)
    domain = Domain()
    run(
        domain,
        Change("autostart", "autostart", False, True, args={"flag": True}),
        step("volume.remove", file="/d"),
        step("undefine", flags=7),
    )
    assert domain.told == [("setAutostart", 1), ("undefineFlags", 7)]
    assert removed == ["/d"]


def test_variables_that_were_set_aside_go_with_the_guest(tmp_path):
    (tmp_path / "a_VARS.fd.before-reset").touch()
    run(Domain(), step("store.remove", "firmware.nvram", file=str(tmp_path / "a_VARS.fd")))
    assert list(tmp_path.iterdir()) == []
    run(Domain(), step("store.remove", "firmware.nvram", file="libvirt's own"))


def test_every_action_of_a_plan_is_known():
    known = {*apply._STEPS, *apply.LIVE, "config", "refused", "part", "install.end"}
    assert set(draft.ORDER) <= known
    assert set(plan_power.POWER_RESULT) <= set(apply._STEPS)


# The doors


@pytest.fixture
def session(monkeypatch):
    @contextlib.contextmanager
    def opened(uri, read_only=False, keep_alive=False):
        yield types.SimpleNamespace(
            getLibVersion=lambda: 9000000, getInfo=lambda: ["x86_64", 1024, 2], getMemoryStats=lambda cell: {}
        )

    monkeypatch.setattr(virt, "session", opened)


def params(**over):
    return {**dict.fromkeys(spec.ARGUMENTS), "uri": "qemu:///system", **over}


def test_one_bad_guest_does_not_keep_the_others(monkeypatch, session):
    class Run:
        def __init__(self, look, guest, check):
            self.name = guest.name

        def begin(self):
            if self.name == "bad":
                raise PhyllomeError("Guest bad", "broken", "Mend it.", plan=[])

        def end(self):
            return {"changed": True, "plan": [], "diff": {"after": self.name}, "warnings": [f"{self.name} is slow"]}

    monkeypatch.setattr(converge, "_Run", Run)
    with pytest.raises(PhyllomeError) as caught:
        converge.converge(
            params(guests=[{"name": "a"}, {"name": "bad"}, {"name": "x", "memroy": 1}, {"name": "b"}]), False
        )
    facts = caught.value.facts
    assert "2 of 4 guests failed (bad, x): Guest bad: broken. Mend it. Guest 'x': options" in str(caught.value)
    assert [(result["name"], result["failed"], result["changed"]) for result in facts["results"]] == [
        ("a", False, True),
        ("bad", True, False),
        ("x", True, False),
        ("b", False, True),
    ]
    assert facts["changed"] is True
    assert facts["warnings"] == ["a is slow", "b is slow"]
    assert facts["diff"] == [{"after": "a"}, {"after": "b"}]
    told = converge.converge(params(guests=[{"name": "a"}], defaults={"memory": "1GiB"}), True)
    assert (told["changed"], len(told["results"])) == (True, 1)


@pytest.mark.parametrize("uri", ["qemu+ssh://host/system", "qemu://host/system", "qemu+tls:///system"])
def test_guests_are_made_where_the_module_runs(session, uri):
    with pytest.raises(PhyllomeError, match="is on another host"):
        converge.converge(params(name="web", uri=uri), False)


class World:
    """What ``_decide`` sees, one plan after the other."""

    def __init__(self, monkeypatch, lab, *plans):
        self.decisions = [(Domain(), None, draft.Decision(Plan(tuple(changes)))) for changes in plans]
        self.seen = 0
        monkeypatch.setattr(converge, "_decide", self.decide)

    def decide(self, look, guest, refused=()):
        self.seen += 1
        return self.decisions[self.seen - 1]


AUTOSTART = Change("autostart", "autostart", False, True, args={"flag": True})
LOOK: typing.Any = types.SimpleNamespace(
    connection=None, fleeting=False, forget_images=lambda: None, promised=Promised()
)


def test_what_was_done_is_looked_at_again(monkeypatch, lab):
    seen = World(monkeypatch, lab, [AUTOSTART], [])
    result = converge._one(LOOK, wanted(), False)
    assert (result["changed"], seen.seen) == (True, 2)
    assert result["diff"]["after"] == "autostart: True\n"
    assert result["guest"]["state"] == "absent"


def test_what_did_not_stick_is_an_error(monkeypatch, lab):
    World(monkeypatch, lab, [AUTOSTART], [AUTOSTART])
    with pytest.raises(PhyllomeError, match="autostart did not stick") as caught:
        converge._one(LOOK, wanted(), False)
    assert caught.value.facts["changed"] is True


def test_check_mode_does_nothing(monkeypatch, lab):
    seen = World(monkeypatch, lab, [AUTOSTART])
    assert converge._one(LOOK, wanted(), True)["changed"] is True
    assert seen.decisions[0][0].told == []


def test_a_step_that_fails_says_whether_anything_was_done(monkeypatch, lab):
    World(monkeypatch, lab, [step("start")])

    def fails(self, change):
        raise PhyllomeError("a", "b", "c")

    monkeypatch.setitem(apply._STEPS, "start", fails)
    with pytest.raises(PhyllomeError) as caught:
        converge._one(LOOK, wanted(), False)
    assert caught.value.facts["changed"] is False


def test_capabilities_are_read_as_libvirt_writes_them(lab):
    text = xml.dump(lab.xml("capabilities-qemu"))

    def capabilities(emulator, arch, machine, kind):
        if kind == "kvm":
            raise LibvirtError("the accel 'kvm' is not supported")
        return text

    host = read_host.host(
        types.SimpleNamespace(getInfo=lambda: ["x86_64"], getDomainCapabilities=capabilities), "/store"
    )
    assert (host.type, host.uefi, host.secure_boot, host.tpm) == ("qemu", True, True, frozenset({"tpm-tis", "tpm-crb"}))
    assert {"vnc", "spice"} <= host.graphics
    assert {"virtio", "vga"} <= host.video

    def none(*args):
        raise LibvirtError("unknown architecture")

    with pytest.raises(PhyllomeError, match="cannot run guests of machine type q35"):
        read_host.host(types.SimpleNamespace(getInfo=lambda: ["riscv64"], getDomainCapabilities=none), "/store")


# Documentation


def documented(options):
    return {
        name: {
            key: documented(option["suboptions"]) if key == "suboptions" else option[key]
            for key in ("type", "elements", "choices", "required", "default", "suboptions")
            if key in option
        }
        for name, option in options.items()
    }


def declared(options):
    return {
        name: {
            "suboptions" if key == "options" else key: declared(value) if key == "options" else value
            for key, value in option.items()
            if key != "no_log"
        }
        for name, option in options.items()
    }


def test_the_documentation_has_the_options_that_there_are():
    assert documented(yaml.safe_load(phyllome_vm.DOCUMENTATION)["options"]) == declared(spec.ARGUMENTS)


def test_every_row_has_a_place_in_the_options():
    for kind in tables.KINDS:
        assert {row.option.partition(".")[0] for row in kind.rows} <= set(spec.GUEST_OPTIONS[kind.option]["options"])
