# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices of the host in a guest's plan: identities, readiness, other guests, plug-in rules."""

from __future__ import annotations

import dataclasses

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import (
    apply,
    converge,
    domain,
    passthrough,
    plug,
    spec,
)
from ansible_collections.phyllome.virt.plugins.module_utils._guest.passthrough import Devices, Function, Group, Pci
from ansible_collections.phyllome.virt.plugins.module_utils._guest.plug import Rule
from ansible_collections.phyllome.virt.plugins.module_utils._guest.world import Look
from ansible_collections.phyllome.virt.plugins.module_utils._iommu import facts
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

from .fake import Hypervisor

GPU, AUDIO, NIC, ROOT, BRIDGE = (f"0000:0{number}.0" for number in ("1:00", "2:00", "3:00", "4:00", "5:00"))
KEY = "10de:2204/1043:87d9@2"
DISK = {"id": "root", "size": "1GiB"}
CARD = {"id": "gpu", "pci": GPU}
DONGLE = {"id": "blue", "usb": {"vendor": "0x8087", "product": "0x0a2b"}, "plug": True}
RULE = Rule("blue", "0x8087", "0x0a2b")
STICK = plug.Device("1-2", 1, 5, "0x8087", "0x0a2b", "S1")


def pci(gpu="vfio-pci", audio="vfio-pci", **over):
    """A card and its audio in one group, a free network card, the disk of the host."""
    functions = (
        Function(GPU, KEY, 1, gpu, ("primary_gpu",) if gpu == "nvidia" else ()),
        Function(AUDIO, "a@1", 1, audio),
        Function(NIC, "n@1", 2, "vfio-pci"),
        Function(ROOT, "twin@1", 3, "nvme", ("root_fs",)),
        Function(BRIDGE, "twin@1", 3, None),
    )
    hosted = tuple(one.address for one in functions if one.group == 1 and one.driver not in (None, "vfio-pci"))
    groups = {1: Group((GPU, AUDIO), hosted), 2: Group((NIC,)), 3: Group((ROOT,), (ROOT,))}
    known = {"state": "on", "remedy": None, "functions": {one.address: one for one in functions}, "groups": groups}
    return Pci(**{**known, **over})


def devices(**over):
    return {"passthrough": Devices(**{"pci": pci(), "program": True, **over})}


def said(lab, there=None, world=None, **options):
    with pytest.raises(PhyllomeError) as caught:
        lab.decide(there, world=world or devices(), **options)
    assert caught.value.remedy
    return str(caught.value)


def test_a_card_that_is_bound_is_given_and_libvirt_leaves_its_driver_alone(lab):
    decision = lab.decide(world=devices(), hostdevs=[CARD])
    (found,) = decision.config.findall("devices/hostdev")
    assert found.get("managed") == "no" and domain.device(domain.HOSTDEVS, decision.config, "gpu") is found
    assert lab.seen(lab.decide(lab.after(decision), world=devices(), hostdevs=[CARD])) == []


def test_a_card_is_named_by_its_identity_and_found_again_at_another_address(lab):
    there = lab.after(lab.decide(world=devices(), state="stopped", hostdevs=[{"id": "gpu", "pci": KEY}]))
    assert passthrough.host_device(there.config.find("devices/hostdev")) == f"pci {GPU}"
    moved = pci()
    functions = {**moved.functions, GPU: dataclasses.replace(moved.functions[GPU], key="other@1")}
    functions[NIC] = dataclasses.replace(functions[NIC], key=KEY)
    world = devices(pci=dataclasses.replace(moved, functions=functions))
    decision = lab.decide(there, world=world, state="stopped", hostdevs=[{"id": "gpu", "pci": KEY}])
    assert lab.seen(decision) == [("hostdevs.gpu.pci", GPU, NIC)]


def test_what_an_identity_does_not_tell_is_said(lab):
    text = said(lab, hostdevs=[{"id": "gpu", "pci": "1111:2222/-@9"}])
    assert "hostdevs.gpu.pci: 1111:2222/-@9: this host has no such device" in text
    functions = {**pci().functions, NIC: dataclasses.replace(pci().functions[NIC], key=KEY)}
    twins = devices(pci=pci(functions=functions))
    assert f"{GPU}, {NIC} all have this identity" in said(lab, world=twins, hostdevs=[{"id": "gpu", "pci": KEY}])
    both = [CARD, {"id": "again", "pci": KEY}]
    assert f"hostdevs.again: pci {GPU}: it is hostdevs.gpu as well" in said(lab, hostdevs=both)


@pytest.mark.parametrize(
    ("known", "card", "text"),
    [
        (pci(gpu="nvidia"), CARD, f"hostdevs.gpu: pci {GPU}: driver nvidia has it, not VFIO. Bind it first"),
        (pci(gpu=None), CARD, "no driver has it, not VFIO"),
        (pci(audio="snd_hda_intel"), CARD, f"the host uses others of its IOMMU group 1: {AUDIO} (snd_hda_intel). All go"),
        (pci(state="off", remedy="Add intel_iommu=on.", groups={}), CARD, "the IOMMU is off, and nothing would keep"),
        (pci(state="off", remedy="Add intel_iommu=on.", groups={}), CARD, "Add intel_iommu=on."),
        (pci(groups={}), CARD, "it has no IOMMU group"),
        (pci(), {"id": "gpu", "pci": BRIDGE}, "it is a part of the machine itself"),
        (pci(gpu="nvidia"), {**CARD, "managed": True}, "with managed: true: libvirt would take it from the host without ask"),
        (pci(gpu="nvidia"), {**CARD, "managed": True}, "the hazards primary_gpu"),
        (pci(gpu="i915", audio="snd_hda_intel"), {**CARD, "managed": True}, f"{AUDIO} (snd_hda_intel)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("state", ["running", "present"])
def test_a_device_that_is_not_ready_is_refused(lab, known, card, text, state):
    assert text in said(lab, world=devices(pci=known), state=state, hostdevs=[card])


def test_what_will_be_bound_by_then_is_ready(lab):
    busy = pci(gpu="nvidia", audio="snd_hda_intel")
    assert lab.decide(world=devices(pci=busy, foreseen={KEY, AUDIO}), hostdevs=[CARD]).plan.changed
    text = said(lab, world=devices(pci=busy, foreseen={GPU}), hostdevs=[CARD])
    assert f"the host uses others of its IOMMU group 1: {AUDIO}" in text and "not VFIO" not in text
    off = pci(state="off", groups={})
    assert lab.decide(world=devices(pci=off, foreseen={GPU}), hostdevs=[CARD]).plan.changed


def test_libvirt_may_take_what_nothing_stands_against(lab):
    world = devices(pci=pci(gpu="i915"))
    decision = lab.decide(world=world, hostdevs=[{**CARD, "managed": True}])
    assert decision.config.find("devices/hostdev").get("managed") == "yes"


def test_a_member_without_a_driver_does_not_stand_in_the_way(lab):
    assert lab.decide(world=devices(pci=pci(audio=None)), hostdevs=[CARD]).plan.changed


def test_a_group_has_one_guest(lab):
    world = devices(owners={f"pci {AUDIO}": ("win", "mac")})
    assert f"{AUDIO} of its IOMMU group 1 belongs to guest win, mac" in said(lab, world=world, hostdevs=[CARD])


def test_all_reasons_at_once(lab):
    known = pci(gpu="nvidia", audio="snd_hda_intel")
    world = devices(pci=known, owners={f"pci {GPU}": ("win",)}, claims=(("mac", RULE),))
    text = said(lab, world=world, hostdevs=[CARD, {"id": "x", "pci": "9999:1111/-@1"}, DONGLE])
    assert "there are 5 reasons" in text


def test_what_the_running_guest_has_need_not_be_got_ready(lab):
    there = lab.after(lab.decide(world=devices(), hostdevs=[CARD]))
    world = devices(pci=pci(audio="snd_hda_intel"))
    assert lab.seen(lab.decide(there, world=world, hostdevs=[CARD])) == []
    off = lab.after(lab.decide(world=devices(), state="stopped", hostdevs=[CARD]))
    assert lab.seen(lab.decide(off, world=world, state="stopped", hostdevs=[CARD])) == []
    assert "the host uses others of its IOMMU group" in said(lab, off, world=world, hostdevs=[CARD])


def test_what_iommu_facts_tells_is_read(tmp_path, monkeypatch):
    root = machines.desktop().write(tmp_path / "m")
    gather = facts.gather
    monkeypatch.setattr(facts, "gather", lambda dummy, parts: gather(root, parts))
    known = passthrough.read_pci()
    assert known.state == "on"
    card = known.functions["0000:0b:00.0"]
    assert known.at(card.key) == ["0000:0b:00.0"]
    group = known.groups[card.group]
    assert "0000:0b:00.1" in group.endpoints and set(group.hosted) <= set(group.endpoints)
    assert any(function.hazards for function in known.functions.values())


# Options


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ({"pci": "10de:2204@"}, "is not the identity of a PCI device"),
        ({"usb": {"serial": "x"}}, "vendor and product together"),
        ({"usb": {}}, "hostdevs.g.usb: {}: it says no device"),
        ({"usb": {"port": "usb1"}}, "hostdevs.g.usb.port: 'usb1' is not a USB port"),
        ({"usb": {"port": "1-2.3\n"}}, "is not a USB port"),
        ({"pci": GPU, "plug": True}, "hostdevs.g.plug: given without usb"),
        ({"usb": {"port": "1-2"}, "plug": False}, "plug: false with usb.port: libvirt knows neither"),
        ({"usb": {"vendor": "0x8087", "product": "0x0a2b", "serial": "a"}, "plug": False}, "plug: false with usb.serial"),
        ({**DONGLE, "startup_policy": "optional"}, "startup_policy: given for a device that comes and goes"),
        ({"usb": {"port": "1-2"}, "boot": 1}, "boot: given for a device that comes and goes"),
    ],
)  # fmt: skip
def test_options_that_contradict_are_refused(device, text):
    with pytest.raises(PhyllomeError) as caught:
        spec.accept({"name": "web", "hostdevs": [{**device, "id": "g"}]})
    assert text in str(caught.value)


def test_the_same_device_twice_is_refused():
    usb = {"vendor": "0x8087", "product": "0x0a2b"}
    for one, other in (
        ({"usb": usb}, {"usb": usb, "plug": True}),
        ({"usb": {"port": "1-1"}}, {"usb": {"port": "1-1"}}),
    ):
        with pytest.raises(PhyllomeError) as caught:
            spec.accept({"name": "web", "hostdevs": [{"id": "a", **one}, {"id": "b", **other}]})
        assert "is used twice" in str(caught.value)


# Plug-in rules


def test_a_rule_stands_in_the_metadata_and_the_device_not_in_the_definition(lab):
    decision = lab.decide(world=devices(), state="stopped", hostdevs=[DONGLE])
    assert decision.config.find("devices/hostdev") is None
    assert lab.marker(decision.config).plugs == (RULE,)
    assert ("hostdevs.blue.plug", None, "vendor 0x8087 product 0x0a2b") in lab.seen(decision)
    assert lab.seen(lab.decide(lab.after(decision), world=devices(), state="stopped", hostdevs=[DONGLE])) == []


def test_a_serial_number_or_a_port_makes_a_rule(lab):
    listed = [
        {"id": "a", "usb": {"vendor": "0x8087", "product": "0x0a2b", "serial": "S1"}},
        {"id": "b", "usb": {"port": "1-2.3"}},
    ]
    plugs = lab.marker(lab.decide(world=devices(), hostdevs=listed).config).plugs
    assert plugs == (Rule("a", "0x8087", "0x0a2b", "S1"), Rule("b", port="1-2.3"))


def test_a_rule_changes_and_goes(lab):
    there = lab.after(lab.decide(world=devices(), state="stopped", hostdevs=[DONGLE]))
    other = {"id": "blue", "usb": {"port": "1-2"}}
    changed = lab.decide(there, world=devices(), state="stopped", hostdevs=[other])
    assert lab.seen(changed) == [("hostdevs.blue.plug", "vendor 0x8087 product 0x0a2b", "port 1-2")]
    kept = lab.decide(there, world=devices(), state="stopped", hostdevs=[])
    assert lab.seen(kept) == [], "what is no longer declared stays"
    pruned = lab.decide(there, world=devices(), state="stopped", hostdevs=[], unmanaged_devices="prune")
    assert lab.seen(pruned) == [("hostdevs.blue.plug", "vendor 0x8087 product 0x0a2b", None)]
    assert lab.marker(pruned.config).plugs == ()


def test_a_device_becomes_a_rule_and_a_rule_a_device(lab):
    plain = {name: value for name, value in DONGLE.items() if name != "plug"}
    there = lab.after(lab.decide(world=devices(), state="stopped", hostdevs=[plain]))
    ruled = lab.decide(there, world=devices(), state="stopped", hostdevs=[DONGLE])
    assert ruled.config.find("devices/hostdev") is None and lab.marker(ruled.config).plugs == (RULE,)
    back = lab.decide(lab.after(ruled), world=devices(), state="stopped", hostdevs=[plain])
    assert back.config.find("devices/hostdev") is not None and lab.marker(back.config).plugs == ()


@pytest.mark.parametrize(
    ("over", "device", "text"),
    [
        ({"claims": (("mac", RULE),)}, DONGLE, "usb vendor 0x8087 product 0x0a2b: the device belongs to guest mac"),
        ({"claims": (("mac", Rule("p", port="1-2")),), "usb": (STICK,)}, DONGLE, "the device belongs to guest mac (port 1-2)"),
        ({"claims": (("mac", RULE),)}, {"id": "u", "usb": DONGLE["usb"]}, "the device belongs to guest mac"),
        ({"program": False}, DONGLE, "hostdevs.blue.plug: true: nothing on this host plugs devices in. Run the role"),
        ({"session": True}, DONGLE, "the host gives devices to guests of qemu:///system only"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused(lab, over, device, text):
    assert text in said(lab, world=devices(**over), hostdevs=[device])


def test_two_rules_of_one_guest_that_mean_one_device_now(lab):
    both = [DONGLE, {"id": "port", "usb": {"port": "1-2"}}]
    assert "hostdevs.blue is the same device" in said(lab, world=devices(usb=(STICK,)), hostdevs=both)
    assert lab.decide(world=devices(), hostdevs=both).plan.changed


def test_an_id_is_not_taken_twice(lab):
    there = lab.after(lab.decide(world=devices(), state="stopped", networks=[{"id": "blue", "network": "default"}]))
    assert "hostdevs.blue: the id is taken" in said(lab, there, state="stopped", hostdevs=[DONGLE])


def test_what_will_be_plugged_in_is_foretold(lab):
    world = devices(usb=(STICK,))
    shown = ("hostdevs.blue", None, "usb 0x8087:0x0a2b at port 1-2")
    assert shown in lab.seen(lab.decide(world=world, hostdevs=[DONGLE]))
    assert shown not in lab.seen(lab.decide(world=world, state="stopped", hostdevs=[DONGLE]))
    there = lab.after(lab.decide(world=devices(), hostdevs=[DONGLE]))
    assert lab.seen(lab.decide(there, world=world, hostdevs=[DONGLE])) == [shown]
    assert lab.seen(lab.decide(there, world=world, hostdevs=[DONGLE], apply="next_boot")) == []


# On a libvirt in memory


class Plugged(Hypervisor):
    """A host with USB devices."""

    usb: tuple[plug.Device, ...] = ()


@pytest.fixture
def host(tmp_path, monkeypatch):
    """With the program played by what it does in the end."""
    there = Plugged(tmp_path, monkeypatch)
    monkeypatch.setattr(passthrough.plug, "devices", lambda: there.usb)
    monkeypatch.setattr(passthrough, "PROGRAM", "/")

    def run(argv, **dummy):
        there.told.append("program")
        guest = there.guest(argv[-1])
        rules = plug.rules(guest.config)
        known = plug.Guest(argv[-1], rules, plug.attached(guest.live, rules))
        for step in plug.settle(there.usb, [known])[0]:
            if step.device is None:
                found = guest._find(f"ua-{step.id}")
                found.getparent().remove(found)
                continue
            text = (
                f"<hostdev mode='subsystem' type='usb'><source><vendor id='{step.device.vendor}'/>"
                f"<product id='{step.device.product}'/><address bus='1' device='{step.device.number}'/></source>"
                f"<alias name='ua-{step.id}'/></hostdev>"
            )
            guest.live.find("devices").append(xml.parse(text))

    monkeypatch.setattr(apply, "run", run)
    return there


def test_a_device_comes_with_the_start_and_goes_with_its_plug(host):
    host.usb = (STICK,)
    result = host.converge(disks=[DISK], hostdevs=[DONGLE])
    assert result["changed"] and host.told.count("program") == 1
    assert result["guest"]["plugs"] == [
        {"id": "blue", "vendor": "0x8087", "product": "0x0a2b", "serial": None, "port": None, "attached": True}
    ]
    assert result["pending"] == [] and not result["restart_required"]
    assert host.converge(disks=[DISK], hostdevs=[DONGLE])["changed"] is False
    host.usb = ()
    result = host.converge(disks=[DISK], hostdevs=[DONGLE])
    assert [(each["path"], each["to"]) for each in result["plan"]] == [("hostdevs.blue", None)]
    assert result["guest"]["hostdevs"] == []


def test_a_pruned_rule_takes_its_device_back(host):
    host.usb = (STICK,)
    host.converge(disks=[DISK], hostdevs=[DONGLE])
    result = host.converge(disks=[DISK], hostdevs=[], unmanaged_devices="prune")
    assert result["guest"]["hostdevs"] == [] and result["guest"]["plugs"] == []
    assert host.converge(disks=[DISK], hostdevs=[], unmanaged_devices="prune")["changed"] is False


def test_a_rule_that_becomes_a_device_keeps_what_is_attached(host):
    host.usb = (STICK,)
    host.converge(disks=[DISK], hostdevs=[DONGLE])
    plain = {"id": "blue", "usb": DONGLE["usb"]}
    result = host.converge(disks=[DISK], hostdevs=[plain])
    assert result["changed"] and result["pending"] == []
    assert "attachDevice" not in host.told
    assert host.converge(disks=[DISK], hostdevs=[plain])["changed"] is False


def test_another_guest_that_is_there_already_keeps_what_it_claims(host):
    host.converge(name="mac", disks=[DISK], hostdevs=[DONGLE])
    with pytest.raises(PhyllomeError) as caught:
        host.converge(disks=[DISK], hostdevs=[{"id": "mine", "usb": DONGLE["usb"], "plug": True}], check=True)
    assert "belongs to guest mac (vendor 0x8087 product 0x0a2b)" in str(caught.value)


def test_two_guests_of_one_run_that_claim_one_device_are_both_refused_and_in_check_mode_too(host):
    declared = [
        {"name": "one", "disks": [DISK], "hostdevs": [DONGLE]},
        {"name": "two", "disks": [DISK], "hostdevs": [{"id": "x", "usb": DONGLE["usb"]}]},
    ]
    look = Look(host, "qemu:///system")
    look.declared = tuple(converge._with_host_devices(declared))
    for guest, other in (("one", "two"), ("two", "one")):
        wanted = next(each for each in look.declared if each.name == guest)
        with pytest.raises(PhyllomeError) as caught:
            converge._one(look, wanted, True)
        assert f"belongs to guest {other}" in str(caught.value)
    gone = [{**declared[0], "state": "absent"}, declared[1]]
    assert [each.name for each in converge._with_host_devices(gone)] == ["two"]
