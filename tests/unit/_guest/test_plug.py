# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plug-in rules: which device goes to which guest, and the program that sees to it."""

from __future__ import annotations

import ast
import fcntl
import pathlib
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._guest import domain, plug
from ansible_collections.phyllome.virt.plugins.module_utils._guest.plug import Device, Guest, Rule, Step, overlap

MOUSE = Device("1-1", 1, 2, "0x046d", "0xc52b", "M1")
TWIN = Device("1-10.2", 1, 7, "0x046d", "0xc52b", "M2")
STICK = Device("2-3", 2, 4, "0x8087", "0x0a2b")
BY_IDS = Rule("m", "0x046d", "0xc52b")


def settle(devices, *guests):
    steps, contested = plug.settle(devices, guests)
    return [(step.guest, step.id, step.device) for step in steps], contested


def test_a_device_is_attached_kept_and_taken_back():
    there = Guest("a", (BY_IDS,), {})
    assert settle([MOUSE, STICK], there)[0] == [("a", "m", MOUSE)]
    assert settle([MOUSE], Guest("a", (BY_IDS,), {"m": (1, 2)}))[0] == []
    assert settle([STICK], Guest("a", (BY_IDS,), {"m": (1, 2)}))[0] == [("a", "m", None)]


def test_a_device_that_was_plugged_in_again_is_another_one():
    again = Device("1-1", 1, 9, "0x046d", "0xc52b", "M1")
    assert settle([again], Guest("a", (BY_IDS,), {"m": (1, 2)}))[0] == [("a", "m", None), ("a", "m", again)]


def test_a_guest_that_is_off_gets_nothing_and_keeps_its_claim():
    off, on = Guest("a", (BY_IDS,)), Guest("b", (Rule("n", port="1-1"),), {})
    assert settle([MOUSE], off)[0] == []
    steps, contested = settle([MOUSE], off, on)
    assert steps == [] and contested == {MOUSE: ("a", "b")}


def test_what_two_guests_claim_stays_with_the_one_that_has_it():
    a, b = Guest("a", (BY_IDS,), {"m": (1, 2)}), Guest("b", (Rule("n", port="1-1"),), {})
    assert settle([MOUSE], a, b)[0] == []


def test_one_of_two_twins_the_first_port_counts():
    assert settle([TWIN, MOUSE], Guest("a", (BY_IDS,), {}))[0] == [("a", "m", MOUSE)]
    two = (BY_IDS, Rule("second", "0x046d", "0xc52b"))
    assert settle([TWIN, MOUSE], Guest("a", two, {}))[0] == [("a", "m", MOUSE), ("a", "second", TWIN)]


def test_a_serial_number_and_a_port_tell_twins_apart():
    a, b = Guest("a", (Rule("x", "0x046d", "0xc52b", serial="M2"),), {}), Guest("b", (Rule("y", port="1-1"),), {})
    assert settle([TWIN, MOUSE], a, b) == ([("a", "x", TWIN), ("b", "y", MOUSE)], {})


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (BY_IDS, Rule("", "0x046d", "0xc52b"), True),
        (BY_IDS, Rule("", "0x046d", "0xc52b", serial="M2"), True),
        (BY_IDS, Rule("", "0x046d", "0xc52b", port="1-1"), True),
        (BY_IDS, Rule("", "0x046d", "0xffff"), False),
        (Rule("", port="1-1"), Rule("", port="1-1"), True),
        (Rule("", port="1-1"), Rule("", port="1-1", vendor="0x8087", product="0x0a2b"), True),
        (Rule("", "0x046d", "0xc52b", port="1-1"), Rule("", "0x046d", "0xc52b", port="1-2"), False),
        (Rule("", "0x046d", "0xc52b", "M1"), Rule("", "0x046d", "0xc52b", "M2"), False),
        (BY_IDS, Rule("", port="1-1"), True),  # the mouse is there now
        (BY_IDS, Rule("", port="2-3"), False),  # the stick is
        (BY_IDS, Rule("", port="7-7"), False),
    ],
)
def test_whether_two_rules_mean_the_same_device(one, other, expected):
    assert overlap(one, other, [MOUSE, TWIN, STICK]) is overlap(other, one, [MOUSE, TWIN, STICK]) is expected


PLACES = ["1-1", "1-2", "2-1"]
RULES = st.builds(
    Rule,
    st.sampled_from("xyz"),
    st.none() | st.just("0x0001"),
    st.none() | st.just("0x0002"),
    st.none() | st.sampled_from(["A", "B"]),
    st.none() | st.sampled_from(PLACES),
)


@given(
    st.lists(
        st.builds(Device, st.sampled_from(PLACES), st.just(1), st.integers(1, 9), st.just("0x0001"), st.just("0x0002")),
        unique_by=(lambda device: device.port, lambda device: device.number),
    ),
    st.lists(
        st.builds(
            Guest,
            st.sampled_from("abc"),
            st.lists(RULES, max_size=3, unique_by=lambda rule: rule.id).map(tuple),
            st.none() | st.dictionaries(st.sampled_from("xyz"), st.tuples(st.just(1), st.integers(1, 9))),
        ),
        max_size=3,
        unique_by=lambda guest: guest.name,
    ),
)
def test_what_was_done_needs_nothing_more_and_no_device_goes_to_two(devices, guests):
    known = {guest.name: {rule.id for rule in guest.rules} for guest in guests}
    guests = [
        guest
        if guest.attached is None
        else Guest(guest.name, guest.rules, {k: v for k, v in guest.attached.items() if k in known[guest.name]})
        for guest in guests
    ]
    steps, contested = plug.settle(devices, guests)
    after = {guest.name: None if guest.attached is None else dict(guest.attached) for guest in guests}
    for step in steps:
        has = after[step.guest]
        assert has is not None, "a guest that is off is left alone"
        if step.device is None:
            del has[step.id]
        else:
            assert step.id not in has and step.device not in contested
            has[step.id] = (step.device.bus, step.device.number)
    given_to = [step.device for step in steps if step.device is not None]
    assert len(given_to) == len(set(given_to))
    again, dummy = plug.settle(devices, [Guest(one.name, one.rules, after[one.name]) for one in guests])
    assert again == []


def test_the_rules_of_a_guest_stand_in_its_metadata():
    rules = (Rule("m", "0x046d", "0xc52b", 'a "serial" <1>', "1-2.3"), Rule("n", port="1-1"))
    root = xml.parse("<domain><metadata/><devices/></domain>")
    domain.set_marker(root, domain.Marker("linux", plugs=rules))
    assert plug.rules(root) == domain.marker(root).plugs == rules
    assert f"{{{xml.GUEST_NS}}}" == plug.NAMESPACE


def test_what_a_running_guest_has_is_told_by_alias_and_address():
    live = xml.parse(
        "<domain><devices><hostdev type='usb'><source><vendor id='0x046d'/><product id='0xc52b'/>"
        "<address bus='1' device='2'/></source><alias name='ua-m'/></hostdev>"
        "<hostdev type='usb'><source><vendor id='0x1'/><product id='0x2'/></source><alias name='ua-n'/></hostdev>"
        "</devices></domain>"
    )
    assert plug.attached(live, (BY_IDS, Rule("n"), Rule("o"))) == {"m": (1, 2), "n": (0, 0)}


def write(folder, name, **files):
    (folder / name).mkdir(parents=True)
    for file, text in files.items():
        (folder / name / file).write_text(f"{text}\n")


def test_devices_are_read_as_the_kernel_shows_them(tmp_path):
    ids = {"idVendor": "046d", "idProduct": "c52b", "busnum": "1", "devnum": "2"}
    write(tmp_path, "1-1", bDeviceClass="00", serial="M1", **ids)
    write(tmp_path, "1-1:1.0", bInterfaceClass="03")
    write(tmp_path, "usb1", bDeviceClass="09", **ids)
    write(tmp_path, "1-2", bDeviceClass="09", **ids)  # a hub
    write(tmp_path, "1-3", bDeviceClass="00")  # going away
    assert plug.devices(str(tmp_path)) == (MOUSE,)
    assert plug.devices(str(tmp_path / "none")) == ()


# The program


class LibvirtError(Exception):
    def __init__(self, text, code=55):
        super().__init__(text)
        self.code = code

    def get_error_code(self):
        return self.code


class Running:
    """A guest of a libvirt in memory; it fails as often as it is told to."""

    def __init__(self, name, rules, active=True, fails=()):
        root = xml.parse(f"<domain><name>{name}</name><metadata/><devices/></domain>")
        domain.set_marker(root, domain.Marker("linux", plugs=rules))
        self.root, self.active, self.fails, self.told = root, active, list(fails), []

    def name(self):
        return self.root.findtext("name")

    def isActive(self):
        return self.active

    def XMLDesc(self, flags=0):
        return xml.dump(self.root)

    def attachDeviceFlags(self, text, flags):
        if self.fails:
            raise LibvirtError("no", self.fails.pop())
        self.told.append("attach")
        self.root.find("devices").append(xml.parse(text))

    def detachDeviceFlags(self, text, flags):
        self.told.append("detach")
        alias = xml.parse(text).find("alias").get("name")
        found = self.root.find(f"devices/hostdev/alias[@name='{alias}']/..")
        found.getparent().remove(found)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Guests, devices, and how often libvirt does not answer."""
    there = types.SimpleNamespace(guests=[], devices=(MOUSE,), down=0, slept=0)

    def connect(uri):
        if there.down:
            there.down -= 1
            raise LibvirtError("down", 38)
        return types.SimpleNamespace(listAllDomains=lambda: list(there.guests), close=lambda: None)

    def sleep(seconds):
        there.slept += 1

    library = types.SimpleNamespace(
        libvirtError=LibvirtError,
        open=connect,
        registerErrorHandler=lambda *dummy: None,
        VIR_DOMAIN_XML_INACTIVE=2,
        VIR_DOMAIN_AFFECT_LIVE=1,
    )
    monkeypatch.setitem(sys.modules, "libvirt", library)
    monkeypatch.setattr(plug, "devices", lambda: there.devices)
    monkeypatch.setattr(plug, "_LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(plug.time, "sleep", sleep)
    return there


def test_the_program_attaches_takes_back_and_rests(host, capsys):
    guest = Running("a", (BY_IDS,))
    host.guests = [guest, Running("off", (Rule("s", port="9-9"),), active=False), Running("none", ())]
    assert plug.main([]) == 0 and guest.told == ["attach"]
    address = guest.root.find("devices/hostdev/source/address")
    assert dict(address.attrib) == {"bus": "1", "device": "2"}
    assert plug.main([]) == 0 and guest.told == ["attach"]
    host.devices = ()
    assert plug.main(["a"]) == 0 and guest.told == ["attach", "detach"]
    assert capsys.readouterr().err.splitlines() == [
        "Guest a, m: usb 0x046d:0xc52b at port 1-1",
        "Guest a, m: taken back",
    ]
    assert host.slept == 0


def test_the_program_waits_for_a_guest_that_starts_and_a_libvirt_that_restarts(host):
    guest = Running("a", (BY_IDS,), fails=[68] * 20)
    host.guests, host.down = [guest], 20
    assert plug.main([]) == 0
    assert guest.told == ["attach"] and host.slept == 40


def test_the_program_gives_up_and_says_why(host, capsys):
    host.guests = [Running("a", (BY_IDS,), fails=[1] * 99)]
    assert plug.main(["a"]) == 1
    assert "Guest a, m: no" in capsys.readouterr().err and host.slept < 10
    assert plug.main(["other"]) == 0, "what other guests have is none of its business"


def test_the_program_says_what_is_claimed_twice_and_touches_nothing(host, capsys):
    host.guests = [Running("a", (BY_IDS,)), Running("b", (Rule("n", port="1-1"),), active=False)]
    assert plug.main([]) == 1
    assert "at port 1-1 is claimed by guests a, b: none of them is given it" in capsys.readouterr().err
    assert host.guests[0].told == [] and host.slept == 0


def test_of_many_events_one_run_waits_and_the_others_leave_it_the_work(host, tmp_path):
    guest = Running("a", (BY_IDS,))
    host.guests = [guest]
    with open(tmp_path / "lock.next", "w") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        assert plug.main([]) == 0 and guest.told == []
        assert plug.main(["a"]) == 0 and guest.told == ["attach"], "one that wants an answer stays"


def test_the_program_is_the_file_itself_and_needs_nothing_of_the_collection():
    tree = ast.parse(pathlib.Path(plug.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {(node.level, node.module) for node in imports} == {(0, "__future__"), (0, "lxml")}
    done = subprocess.run([sys.executable, "-I", "-c", f"compile(open({plug.__file__!r}).read(), 'x', 'exec')"])
    assert done.returncode == 0
    assert Step("a", "m", None).device is None
