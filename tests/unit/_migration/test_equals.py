# Copyright (c) Phyllome OS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that are equal to those of another host, on plain data; tests/metal asks two machines."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.names import guest_uuid
from ansible_collections.phyllome.virt.plugins.module_utils._host import equals
from ansible_collections.phyllome.virt.plugins.module_utils._host.compare import fleet
from ansible_collections.phyllome.virt.plugins.module_utils._migration.evacuation import evacuate
from ansible_collections.phyllome.virt.plugins.module_utils._migration.placement import moves, place
from ansible_collections.phyllome.virt.tests.unit._host.hosts import claim, guest, host

GPU, AUDIO, NIC, VF, NVME = (
    "10de:2204/1043:87d9",
    "10de:1aef/1043:87d9",
    "8086:10d3/8086:0",
    "8086:154c/8086:0",
    "144d:a808/144d:a801",
)
HELD: dict = {
    "possible": False,
    "reasons": [{"code": "hostdevs", "what": "it has a device of this host", "fix": "out"}],
}


def iommu(*listed, bound=True):
    """Facts of a host: (address, kind) or (address, kind, group) or (…, physical function), all of it with VFIO."""
    devices: list[dict] = []
    groups: dict[int, dict] = {}
    for address, kind, *more in listed:
        group = more[0] if more else int(address[5:7], 16)
        found = groups.setdefault(group, {"id": group, "endpoints": [], "bind_set": [], "reasons": []})
        found["endpoints"].append(address)
        found["bind_set"] += [] if bound else [address]
        devices.append(
            {
                "address": address,
                "identity": {"key": f"{kind}@{address}"},
                "class": "010802" if kind == NVME else "030000",
                "group": group,
                "driver": "vfio-pci" if bound else "nvidia",
                "sriov": {"physfn": more[1]} if len(more) > 1 else None,
            }
        )
    return {"devices": devices, "groups": [*groups.values()]}


def user(name="games", **devices):
    """A guest with PCI devices by id; its uuid is the one that a guest of that name gets."""
    held = [{"id": key, "device": f"pci {address}", "defined": True} for key, address in devices.items()]
    return guest(name, uuid=guest_uuid(name), hostdevs=held, migratable=HELD)


JOURNAL = {"op_id": "x", "phase": "arriving", "source": "alpha", "destination": "beta"}
CARD = (("0000:01:00.0", GPU), ("0000:01:00.1", AUDIO))
GAMES = user(gpu="0000:01:00.0", audio="0000:01:00.1")


def chosen(there, one=GAMES, here=None, guests=(), **said):
    here = here or iommu(*CARD)
    return equals.choose(one, here, there, equals.free(there, guests), said)


def test_functions_of_a_slot_get_those_of_one_slot():
    there = iommu(("0000:05:00.0", GPU), ("0000:06:00.1", AUDIO), ("0000:41:00.0", GPU), ("0000:41:00.1", AUDIO))
    assert chosen(there) == {"gpu": "0000:41:00.0", "audio": "0000:41:00.1"}
    with pytest.raises(equals.Unequal, match=f"it has no {AUDIO} .audio. with {GPU} .gpu. that is with VFIO and free"):
        chosen(iommu(("0000:05:00.0", GPU), ("0000:06:00.1", AUDIO)))


def test_a_card_of_another_maker_is_no_equal():
    with pytest.raises(equals.Unequal, match="it has no"):
        chosen(iommu(("0000:41:00.0", "10de:2204/1462:3881")), user(gpu="0000:01:00.0"))


def test_two_of_a_kind_are_two():
    two = user(one="0000:02:00.0", two="0000:03:00.0")
    here = iommu(("0000:02:00.0", NIC), ("0000:03:00.0", NIC))
    there = iommu(("0000:07:00.0", NIC), ("0000:08:00.0", NIC))
    assert chosen(there, two, here) == {"one": "0000:07:00.0", "two": "0000:08:00.0"}
    with pytest.raises(equals.Unequal):
        chosen(iommu(("0000:07:00.0", NIC)), two, here)


def test_who_needs_more_of_a_slot_chooses_first():
    both = user(a="0000:00:1f.0", gpu="0000:01:00.0", audio="0000:01:00.1")
    here = iommu(("0000:00:1f.0", GPU), *CARD)
    there = iommu(("0000:05:00.0", GPU), ("0000:05:00.1", AUDIO), ("0000:06:00.0", GPU))
    assert chosen(there, both, here) == {"gpu": "0000:05:00.0", "audio": "0000:05:00.1", "a": "0000:06:00.0"}


def test_virtual_functions_come_one_by_one_and_are_no_cards():
    here = iommu(("0000:5e:10.0", VF, 10, "0000:5e:00.0"), ("0000:5e:10.2", VF, 11, "0000:5e:00.0"))
    there = iommu(("0000:41:00.0", VF, 1), ("0000:41:02.5", VF, 2, "0000:41:00.0"), ("0000:41:03.1", VF, 3, "x"))
    two = user(one="0000:5e:10.0", two="0000:5e:10.2")
    assert chosen(there, two, here) == {"one": "0000:41:02.5", "two": "0000:41:03.1"}


@pytest.mark.parametrize(
    "how", ["with its own driver", "with another guest", "group mate with the host", "mate given", "bridge"]
)
def test_what_is_not_free_is_not_given(how):
    there = iommu(*CARD, bound=how != "with its own driver")
    guests = []
    if how == "with another guest":
        guests = [user("other", gpu="0000:01:00.0")]
    elif how == "group mate with the host":
        there["devices"][1]["driver"] = "snd_hda_intel"
        there["groups"][0]["bind_set"] = ["0000:01:00.1"]
    elif how == "bridge":
        there["groups"][0]["reasons"] = [{"code": "bridge_driver"}]
    elif how == "mate given":
        guests = [user("other", audio="0000:01:00.1")]
    assert equals.free(there, guests) == {}
    there["groups"][0]["reasons"] = [{"code": "no_reset"}]
    assert [*equals.free(iommu(*CARD), [])] == [address for address, dummy in CARD]


def test_what_is_declared_is_taken_as_it_stands():
    there = iommu(("0000:41:00.0", GPU), ("0000:42:00.0", GPU))
    one = user(gpu="0000:01:00.0")
    assert chosen(there, one, gpu="0000:42:00.0") == {"gpu": "0000:42:00.0"}
    assert chosen(there, one, gpu=f"{GPU}@0000:42:00.0", more="0000:41:00.0") == {"gpu": "0000:42:00.0"}
    with pytest.raises(equals.Unequal, match="it has no device 10de:2204/1043:87d9@1, as which hostdevs.gpu.pci"):
        chosen(there, one, gpu=f"{GPU}@1")
    there["devices"][1]["identity"]["key"] = there["devices"][0]["identity"]["key"]
    with pytest.raises(equals.Unequal, match="it has 2 devices 10de:2204/1043:87d9@0000:41:00.0, as which"):
        chosen(there, one, gpu=f"{GPU}@0000:41:00.0")
    with pytest.raises(equals.Unequal, match="what devices it has is not known"):
        equals.choose(one, iommu(*CARD), None, {}, {"gpu": f"{GPU}@1"})


@pytest.mark.parametrize("written", ["41:00.0", "0000:41:00.0", "41:00.0".upper()])
def test_what_is_declared_may_be_written_as_for_phyllome_vm(written):
    two = user(one="0000:01:00.0", two="0000:02:00.0")
    here = iommu(("0000:01:00.0", NIC), ("0000:02:00.0", NIC))
    there = iommu(("0000:41:00.0", NIC), ("0000:4a:00.0", NIC))
    assert chosen(there, two, here, two=written) == {"one": "0000:4a:00.0", "two": "0000:41:00.0"}
    assert equals.place("4A:00.0") == "0000:4a:00.0" and equals.place(f"{NIC}@Slot") == f"{NIC}@Slot"


def test_what_holds_data_has_no_equal_and_goes_only_where_one_is_declared():
    one, here, there = user(ssd="0000:02:00.0"), iommu(("0000:02:00.0", NVME)), iommu(("0000:42:00.0", NVME))
    with pytest.raises(
        equals.Unequal, match="ssd .0000:02:00.0. is a drive or has drives, and what is on them would stay"
    ):
        chosen(there, one, here)
    assert chosen(there, one, here, ssd="0000:42:00.0") == {"ssd": "0000:42:00.0"}
    got = emptied([one], {"alpha": here, "beta": there}, beta=host("beta"))
    assert "what is on them would stay behind" in got["problems"][0] and got["moves"] == {}


def test_what_nobody_knows_the_kind_of_has_no_equal():
    with pytest.raises(equals.Unequal, match="its host has no 0000:09:00.0 at the moment .gpu., so nobody knows"):
        chosen(iommu(*CARD), user(gpu="0000:09:00.0"))
    with pytest.raises(equals.Unequal, match="what devices its host has is not known"):
        equals.kinds(equals.of(GAMES), None)


def test_only_pci_devices_can_be_exchanged():
    assert equals.exchangeable(GAMES) and not equals.exchangeable(guest("web"))
    usb = {"id": "stick", "device": "usb 46f4:0001", "defined": True}
    assert not equals.exchangeable({**GAMES, "hostdevs": [*GAMES["hostdevs"], usb]})
    assert equals.exchangeable({**GAMES, "hostdevs": [*GAMES["hostdevs"], {**usb, "defined": False}]})
    odd = [{"id": None, "device": "pci 0000:02:10.0"}, {"id": "x", "device": None}]
    assert equals.of(guest("odd", hostdevs=[{**one, "defined": True} for one in odd])) == {
        "0000:02:10.0": "0000:02:10.0"
    }


def test_what_is_only_plugged_in_does_not_go_and_is_nobody_elses():
    plugged = user("other", gpu="0000:01:00.0")
    plugged["hostdevs"][0]["defined"] = False
    assert equals.of(plugged) == {} and equals.free(iommu(*CARD), [plugged]) == {}


FLEET = {"alpha": iommu(*CARD), "beta": iommu(("0000:41:00.0", GPU), ("0000:41:00.1", AUDIO)), "gamma": iommu()}


def test_site_gives_what_is_declared_and_says_what_is_missing():
    declared = {"name": "games", "host": "beta", "hostdevs": [{"id": "gpu", "pci": f"{GPU}@0000:41:00.0"}]}
    found = {"alpha": [GAMES], "beta": [], "gamma": []}
    got = place([declared], found, devices=FLEET)
    assert got["alpha"]["moves"] == [
        {"guest": "games", "destination": "beta", "hostdevs": {"gpu": "0000:41:00.0", "audio": "0000:41:00.1"}}
    ]
    # what it is declared to have is there where it belongs, not where it still is
    assert got["alpha"]["guests"] == [{"name": "games"}]
    assert place([declared], {**found, "alpha": [], "beta": [GAMES]})["beta"]["guests"] == [
        {"name": "games", "hostdevs": declared["hostdevs"]}
    ]
    got = place([{**declared, "host": "gamma"}], found, devices=FLEET)
    assert (
        "it has no device 10de:2204/1043:87d9@0000:41:00.0" in got["gamma"]["problems"][0] and not got["alpha"]["moves"]
    )
    got = place([{"name": "games", "host": "gamma"}], found, devices={**FLEET, "gamma": None})
    assert (
        "gamma cannot give it equal ones: what devices it has is not known. List them in phyllome_passthrough"
        in got["gamma"]["problems"][0]
    )
    assert place([declared], found)["alpha"]["moves"] == [{"guest": "games", "destination": "beta"}]


def test_an_evacuated_guest_keeps_what_it_got_and_gets_back_what_is_declared():
    declared = {"name": "games", "host": "alpha", "hostdevs": [{"id": "gpu", "pci": "0000:02:00.0"}]}
    away = user(gpu="0000:41:00.0")
    found = {"alpha": [], "beta": [away]}
    assert place([declared], found, ["alpha"])["beta"]["guests"] == [{"name": "games"}]
    devices = {"alpha": iommu(("0000:01:00.0", GPU), ("0000:02:00.0", GPU)), "beta": FLEET["beta"]}
    got = moves(["games"], "alpha", found, [declared], devices=devices)
    assert got["moves"]["beta"][0]["hostdevs"] == {"gpu": "0000:02:00.0"}
    got = moves(["games"], "alpha", found, devices=devices)
    assert got["moves"]["beta"][0]["hostdevs"] == {"gpu": "0000:01:00.0"}


def test_no_device_is_given_twice_and_a_begun_move_keeps_its_own():
    old, new = user("old", gpu="0000:01:00.0"), user("new", gpu="0000:01:00.1")
    here = iommu(("0000:01:00.0", GPU), ("0000:01:00.1", GPU))
    there = iommu(("0000:41:00.0", GPU), ("0000:42:00.0", GPU))
    got = moves(["old", "new"], "beta", {"alpha": [old, new], "beta": []}, devices={"alpha": here, "beta": there})
    gets = {one["guest"]: one["hostdevs"]["gpu"] for one in got["moves"]["alpha"]}
    assert gets == {"old": "0000:41:00.0", "new": "0000:42:00.0"}
    begun = {**user("old", gpu="0000:42:00.0"), "migration": JOURNAL}
    found = {"alpha": [{**old, "migration": JOURNAL}], "beta": [begun]}
    got = moves(["old"], "beta", found, devices={"alpha": here, "beta": there})
    assert got["moves"]["alpha"][0]["hostdevs"] == {"gpu": "0000:42:00.0"}


def emptied(guests, devices=FLEET, **hosts):
    facts = {"alpha": host("alpha", claims=[{**claim(one["name"]), "uuid": one["uuid"]} for one in guests]), **hosts}
    return evacuate("alpha", {"alpha": guests, **{name: [] for name in hosts}}, facts, devices=devices)


def test_an_evacuated_guest_goes_where_its_devices_have_equals():
    got = emptied([GAMES], beta=host("beta"), gamma=host("gamma", free=30 << 30))
    assert got["moves"] == {
        "beta": [
            {
                "guest": "games",
                "source": "alpha",
                "destination": "beta",
                "hostdevs": {"audio": "0000:41:00.1", "gpu": "0000:41:00.0"},
            }
        ]
    }


def test_devices_are_never_promised_twice():
    other = user("other", gpu="0000:01:00.0")
    got = emptied([GAMES, other], beta=host("beta"), gamma=host("gamma"))
    assert "no place was found for all of them at once" in got["problems"][0] and got["moves"] == {}
    # of each kind there are enough, but not at one place
    apart = iommu(("0000:41:00.0", GPU), ("0000:42:00.1", AUDIO))
    got = emptied([GAMES], {**FLEET, "beta": apart}, beta=host("beta"))
    assert f"beta: it has no {AUDIO} (audio) with {GPU} (gpu) that is" in got["problems"][0] and got["moves"] == {}
    got = emptied([GAMES], {**FLEET, "beta": apart, "gamma": FLEET["beta"]}, beta=host("beta"), gamma=host("gamma"))
    assert [*got["moves"]] == ["gamma"]
    # for each of two there is one, but not for both
    one = iommu(("0000:41:00.0", GPU), ("0000:41:00.1", AUDIO), ("0000:42:00.0", GPU), ("0000:43:00.1", AUDIO))
    got = emptied([GAMES, {**GAMES, "name": "more", "uuid": "uuid-more"}], {**FLEET, "beta": one}, beta=host("beta"))
    assert "would go to beta, which cannot give it equal devices: it has no" in got["problems"][0]
    assert got["moves"] == {}


def test_a_begun_move_has_its_devices_before_all_others():
    here = iommu(*((f"0000:01:00.{number}", GPU) for number in range(3)))
    begun = {**user("old", gpu="0000:01:00.0"), "migration": {**JOURNAL, "phase": "copying"}}
    goers = [user("new", gpu="0000:01:00.1"), user("newer", gpu="0000:01:00.2"), begun]
    devices = {
        "alpha": here,
        "beta": iommu(("0000:41:00.0", GPU), ("0000:42:00.0", GPU)),
        "gamma": iommu(("0000:41:00.0", GPU)),
    }
    gamma = host("gamma")
    gamma["capacity"]["memory"]["claimed"] += 8 << 30  # whoever can goes to beta
    got = emptied(goers, devices, beta=host("beta"), gamma=gamma)
    gets = {name: [(one["guest"], one["hostdevs"]["gpu"]) for one in todo] for name, todo in got["moves"].items()}
    assert gets == {"beta": [("old", "0000:41:00.0"), ("new", "0000:42:00.0")], "gamma": [("newer", "0000:41:00.0")]}


def test_a_begun_move_keeps_what_it_has_though_its_devices_have_no_ids():
    def without(address):
        held = [{"id": None, "device": f"pci {address}", "defined": True}]
        return guest("old", hostdevs=held, migration=JOURNAL)

    found = {"alpha": [without("0000:01:00.0")], "beta": [without("0000:41:00.0")]}
    devices = {"alpha": iommu(("0000:01:00.0", GPU)), "beta": iommu(("0000:41:00.0", GPU))}
    got = moves(["old"], "beta", found, devices=devices)
    assert got["moves"]["alpha"][0]["hostdevs"] == {"0000:01:00.0": "0000:41:00.0"}


def test_a_begun_move_that_finds_no_equals_any_more_is_left_to_vm_migrate():
    """It is off and fenced: vm_migrate ends it or takes it back."""
    begun = {**GAMES, "migration": {**JOURNAL, "phase": "copying"}}
    devices = {**FLEET, "beta": iommu()}
    got = moves(["games"], "beta", {"alpha": [begun], "beta": []}, devices=devices)
    assert got["moves"]["alpha"] == [{"guest": "games", "destination": "beta"}] and got["problems"] == []
    got = emptied([begun], devices, beta=host("beta"))
    assert got["moves"]["beta"] == [{"guest": "games", "source": "alpha", "destination": "beta"}]
    # it had left between the looks at its host, as the record of the run that was cut off tells
    own = host("alpha", claims=[])
    own["evacuated"] = {"guests": ["games"], "destinations": {"games": "beta"}, "by": "evacuate", "before": None}
    got = evacuate("alpha", {"alpha": [GAMES], "beta": []}, {"alpha": own, "beta": host("beta")}, devices=devices)
    assert got["moves"]["beta"] == [{"guest": "games", "source": "alpha", "destination": "beta"}]
    back = {**GAMES, "migration": {**JOURNAL, "phase": "done"}}
    assert moves(["games"], "beta", {"alpha": [back], "beta": []}, devices=devices)["problems"]


def test_what_another_guest_is_declared_with_is_given_to_nobody_else():
    there = iommu(("0000:41:00.0", GPU), ("0000:42:00.0", GPU), ("0000:43:00.0", GPU))
    devices = {"alpha": iommu(("0000:01:00.0", GPU)), "beta": there}
    one = user("one", gpu="0000:01:00.0")
    found = {"alpha": [one], "beta": []}
    declared: list[dict] = [
        {"name": "one", "host": "beta"},
        {"name": "new", "host": "beta", "hostdevs": [{"id": "gpu", "pci": "41:00.0"}]},
        {"name": "more", "host": "beta", "hostdevs": [{"id": "gpu", "pci": f"{GPU}@0000:42:00.0"}]},
        {"name": "gone", "host": "beta", "state": "absent", "hostdevs": [{"id": "gpu", "pci": "0000:43:00.0"}]},
    ]
    got = place(declared, found, devices=devices)
    assert got["alpha"]["moves"][0]["hostdevs"] == {"gpu": "0000:43:00.0"}
    got = moves(["one"], "beta", found, devices=devices, inventory=declared)
    assert got["moves"]["alpha"][0]["hostdevs"] == {"gpu": "0000:43:00.0"}
    facts = {"alpha": host("alpha", claims=[{**claim("one"), "uuid": one["uuid"]}]), "beta": host("beta")}
    got = evacuate("alpha", found, facts, devices=devices, inventory=declared)
    assert got["moves"]["beta"][0]["hostdevs"] == {"gpu": "0000:43:00.0"}


def test_a_guest_that_is_moved_by_name_gets_what_it_is_declared_with_there():
    there = iommu(("0000:41:00.0", GPU), ("0000:42:00.0", GPU))
    devices = {"alpha": iommu(("0000:01:00.0", GPU)), "beta": there}
    found = {"alpha": [user("one", gpu="0000:01:00.0")], "beta": []}
    for declared, gets in (("beta", "0000:42:00.0"), ("alpha", "0000:41:00.0")):
        known = [{"name": "one", "host": declared, "hostdevs": [{"id": "gpu", "pci": "0000:42:00.0"}]}]
        got = moves(["one"], "beta", found, devices=devices, inventory=known)
        assert got["moves"]["alpha"][0]["hostdevs"] == {"gpu": gets}


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ({**FLEET, "beta": iommu()}, f"beta: it has no {AUDIO} (audio) with {GPU} (gpu) that is with VFIO and free"),
        ({**FLEET, "alpha": None}, "what devices its host has is not known"),
        (None, "what devices its host has is not known"),
    ],
)
def test_why_a_guest_with_devices_has_nowhere_to_go(devices, words):
    got = emptied([GAMES], devices, beta=host("beta"))
    assert words in got["problems"][0] and got["moves"] == {}


def test_other_devices_of_the_host_still_stand_against_it():
    usb = {**GAMES, "hostdevs": [{"id": "stick", "device": "usb 46f4:0001", "defined": True}]}
    assert "it has a device of this host" in emptied([usb], beta=host("beta"))["problems"][0]


def test_what_has_no_equal_stands_against_a_guest_beside_what_has_one():
    """A card of the kind vDPA, which is no PCI device of the guest's."""
    reasons = [*HELD["reasons"], {"code": "vdpa", "what": "a network card is a vDPA device of this host", "fix": "out"}]
    both = {**GAMES, "migratable": {"possible": False, "reasons": reasons}}
    assert "beta: a network card is a vDPA device of this host." in emptied([both], beta=host("beta"))["problems"][0]


def test_the_checkup_tells_where_its_devices_have_equals():
    hosts = {
        "alpha": host("alpha", claims=[{**claim("games"), "uuid": GAMES["uuid"]}]),
        "beta": host("beta"),
        "gamma": host("gamma"),
    }
    (told,) = fleet(hosts, {"alpha": [GAMES]}, FLEET)["guests"]
    assert told["can"] == ["beta"]
    assert told["cannot"] == {"gamma": [f"it has no {AUDIO} (audio) with {GPU} (gpu) that is with VFIO and free"]}
    (told,) = fleet(hosts, {"alpha": [GAMES]})["guests"]
    assert told["can"] == [] and "what devices" in told["cannot"]["beta"][0]


def test_what_did_not_tell_is_nothing():
    assert equals.told(None) is None
    assert equals.told({"alpha": {}, "beta": FLEET["beta"], "gamma": "?"}) == {
        "alpha": None,
        "beta": FLEET["beta"],
        "gamma": None,
    }
