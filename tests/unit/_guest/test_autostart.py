# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that start with their host: what is declared, and the program that starts those with an order at boot."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import pathlib
import sys
import types

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import autostart, domain, world
from ansible_collections.phyllome.virt.plugins.module_utils._guest.domain import Order

from .fake import Hypervisor, LibvirtError

STARTER = pathlib.Path(__file__).parents[3] / "roles/hypervisor/files/autostart.py"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (True, autostart.Autostart(True)),
        ("no", autostart.Autostart(False)),
        ({"order": 2}, autostart.Autostart(False, Order(2, 0))),
        ({"order": "1", "delay": 10}, autostart.Autostart(False, Order(1, 10))),
    ],
)
def test_short_and_long_form(given, wanted):
    assert autostart.accept(given) == wanted


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("sometimes", "'sometimes' is neither true nor false"),
        ([], "neither true nor false"),
        ({"delay": 3}, "missing required arguments: order"),
        ({"order": 1, "dealy": 3}, "dealy"),
        ({"order": -1}, "autostart.order: -1: it goes from 0 to 9999"),
        ({"order": 1, "delay": 4000}, "autostart.delay: 4000: it goes from 0 to 3600"),
    ],
)
def test_what_is_neither(given, text):
    with pytest.raises(PhyllomeError, match=text):
        autostart.accept(given)


def test_an_order_is_in_our_marker_and_libvirts_flag_is_off(tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(world.os.path, "lexists", lambda path: path in there)
    host = Hypervisor(tmp_path, monkeypatch)
    host.converge(autostart=True)
    with pytest.raises(PhyllomeError, match="no phyllome-autostart.service.*hypervisor installs it"):
        host.converge(autostart={"order": 3})
    there.append(autostart.STARTER)
    for state in ("running", "stopped"):
        check = host.converge(state=state, autostart={"order": 3, "delay": 5}, check=True)
        result = host.converge(state=state, autostart={"order": 3, "delay": 5})
        assert check["plan"] == result["plan"]
        order = {"order": 3, "delay": 5}
        assert {"path": "autostart", "from": True, "to": order, "when": "live"} in result["plan"]
        assert host.guest().auto is False and domain.marker(host.guest().config).order == Order(3, 5)
        assert (result["guest"]["autostart"], result["guest"]["autostart_order"]) == (True, order)
        assert host.converge(state=state, autostart=order)["changed"] is False
        assert host.converge(state=state)["changed"] is False, "what is not declared stays"
        assert host.converge(state=state, autostart={"order": 4})["changed"]
        host.converge(state=state, autostart=True)
        assert host.guest().auto is True and domain.marker(host.guest().config).order is None
    host.converge(state="stopped", autostart={"order": 1})
    result = host.converge(state="stopped", autostart=False)
    assert (result["guest"]["autostart"], result["guest"]["autostart_order"], host.guest().auto) == (False, None, False)


# At boot


class Guest:
    def __init__(self, name, order=None, delay="0", active=False, phase=None, done=None, fails=False, gone=None):
        self._name, self.active, self.fails, self.gone = name, active, fails, gone
        root = xml.parse(f"<domain><name>{name}</name></domain>")
        if order is not None:
            marker = domain.Marker(None, order=Order(int(order), int(delay)))
            if done is not None:
                marker = domain.Marker(None, order=marker.order, origin=domain.Origin("a", "b", "full", done))
            domain.set_marker(root, marker)
        if phase:
            mark = f'<m:migration xmlns:m="{xml.MIGRATION_NS}" phase="{phase}"/>'
            xml.ensure(root, "metadata").append(xml.parse(mark))
        self.text = xml.dump(root)

    def name(self):
        return self._name

    def XMLDesc(self, flags):
        if self.gone == "early":
            raise LibvirtError("Domain not found")
        return self.text

    def isActive(self):
        if self.gone:
            raise LibvirtError("Domain not found")
        return self.active

    def create(self):
        if self.fails:
            raise LibvirtError("no such disk")
        told.append(self._name)


told: list[object] = []


def started(monkeypatch, *guests):
    library = types.SimpleNamespace(
        libvirtError=LibvirtError,
        VIR_CONNECT_LIST_DOMAINS_PERSISTENT=2,
        VIR_DOMAIN_XML_INACTIVE=2,
        registerErrorHandler=lambda *args: None,
        open=lambda uri: types.SimpleNamespace(listAllDomains=lambda flags: list(guests)),
    )
    monkeypatch.setitem(sys.modules, "libvirt", library)
    loader = importlib.machinery.SourceFileLoader("phyllome_autostart", str(STARTER))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("phyllome_autostart", loader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    told.clear()
    monkeypatch.setattr(module.time, "sleep", lambda seconds: told.extend([seconds] * bool(seconds)))
    return module.main(), list(told)


def test_they_start_in_their_order_with_pauses(monkeypatch):
    guests = [
        Guest("late", 10),
        Guest("b", 1, "3"),
        Guest("a", 1, "7"),
        Guest("never"),
        Guest("on", 2, "9", active=True),
    ]
    assert started(monkeypatch, *guests) == (0, ["a", "b", 7, "late"])


def test_what_must_not_start_does_not_and_the_others_do(monkeypatch, capsys):
    guests = [
        Guest("moving", 1, phase="moving"),
        Guest("moved", 2, phase="done"),
        Guest("half", 3, done=False),
        Guest("whole", 4, done=True),
        Guest("broken", 5, "60", fails=True),
        Guest("removed", 5, gone="early"),
        Guest("left", 5, "60", gone="late"),
        Guest("last", 6),
    ]
    assert started(monkeypatch, *guests) == (1, ["moved", "whole", "last"])
    assert started(monkeypatch, *guests[:4])[0] == 0, "that others have to finish something is no failure"
    said = capsys.readouterr().err
    assert "guest moving (order 1) is not started: it is on its way" in said
    assert "guest half (order 3) is not started: it is a clone" in said and "no such disk" in said
    assert "guest removed cannot be looked at: Domain not found" in said
    assert "guest left (order 5) is not started: Domain not found" in said
