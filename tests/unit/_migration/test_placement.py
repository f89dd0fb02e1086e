"""Placement of guests, on plain data."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core.names import guest_uuid
from ansible_collections.phyllome.virt.plugins.module_utils._migration.placement import moves, place


def there(name="web", *, uuid=None, owned=True, migration=None):
    return {"name": name, "uuid": uuid or guest_uuid(name), "owned": owned, "migration": migration}


def job(phase, source="alpha", destination="beta"):
    return {"op_id": "x", "phase": phase, "source": source, "destination": destination}


def work(guest, **found):
    declared = guest if isinstance(guest, list) else [guest]
    return place(declared, {"alpha": [], "beta": [], **found})


def test_a_new_guest_is_made_where_it_belongs():
    got = work({"name": "web", "host": "beta", "memory": "1GiB"})
    assert got["beta"]["guests"] == [{"name": "web", "memory": "1GiB"}]
    assert got["alpha"] == {"moves": [], "guests": [], "problems": []}


def test_a_guest_that_is_elsewhere_moves_and_is_handled_where_it_is():
    got = work({"name": "web", "host": "beta"}, alpha=[there()])
    assert got["alpha"]["moves"] == [{"guest": "web", "destination": "beta"}]
    assert got["alpha"]["guests"] == [{"name": "web"}]
    assert got["beta"]["guests"] == []


def test_a_guest_that_is_in_place_stays():
    got = work({"name": "web", "host": "beta"}, beta=[there()])
    assert not got["alpha"]["moves"] and not got["beta"]["moves"]
    assert got["beta"]["guests"] == [{"name": "web"}]


def test_an_absent_guest_is_removed_where_it_is_and_never_moved():
    got = work({"name": "web", "host": "beta", "state": "absent"}, alpha=[there()])
    assert got["alpha"]["guests"] and not got["alpha"]["moves"]
    assert work({"name": "web", "host": "beta", "state": "absent"})["beta"]["guests"] == []


def test_a_move_that_was_interrupted_is_finished_from_its_source():
    both = {"alpha": [there(migration=job("copying"))], "beta": [there(migration=job("copying"))]}
    assert work({"name": "web", "host": "beta"}, **both)["alpha"]["moves"] == [{"guest": "web", "destination": "beta"}]
    # declared back at its source in the meantime: what is on two hosts is first made one
    assert work({"name": "web", "host": "alpha"}, **both)["alpha"]["moves"] == [{"guest": "web", "destination": "beta"}]


def test_an_old_journal_of_a_guest_that_never_left_does_not_move_it():
    got = work({"name": "web", "host": "alpha"}, alpha=[there(migration=job("copying"))])
    assert got["alpha"]["moves"] == [] and got["alpha"]["guests"] == [{"name": "web"}]


@pytest.mark.parametrize(
    ("guest", "found", "teller", "words"),
    [
        ({"name": "web", "host": "gamma"}, {}, "alpha", "not a host of the group"),
        ({"name": "web"}, {}, "alpha", "not a host of the group"),
        ({"name": "web", "host": "beta"}, {"beta": None}, "alpha", "did not answer"),
        ({"name": "web", "host": "beta"}, {"alpha": None}, "beta", "may be on alpha"),
        ({"name": "web", "host": "beta"}, {"alpha": [there()], "beta": [there()]}, "beta", "on alpha and beta"),
        ({"name": "web", "host": "beta"}, {"alpha": [there(owned=False)]}, "beta", "did not make"),
        ({"name": "web", "host": "beta"}, {"beta": [there(uuid="1-2")]}, "beta", "another guest of that name"),
        (
            {"name": "web", "host": "beta"},
            {"beta": [there("db", uuid=guest_uuid("web"))]},
            "beta",
            "belongs to the guest db",
        ),
        ([{"name": "web", "host": "beta"}, {"name": "web", "host": "alpha"}], {}, "beta", "more than once"),
        (
            {"name": "web", "host": "beta"},
            {"alpha": [there(migration=job("done"))], "beta": [there()]},
            "beta",
            "no move of ours explains",
        ),
    ],
)
def test_refusals_leave_only_that_guest_alone(guest, found, teller, words):
    others = [{"name": "other", "host": "beta"}]
    got = work((guest if isinstance(guest, list) else [guest]) + others, **found)
    assert words in " ".join(got[teller]["problems"])
    touched = [entry for host in got.values() for entry in host["guests"] + host["moves"] if "web" in entry.values()]
    assert touched == []
    if found.get("beta", []) is not None and found.get("alpha", []) is not None:
        assert {"name": "other"} in got["beta"]["guests"]


def test_adoption_happens_only_where_the_guest_is():
    adopted = {"name": "web", "host": "beta", "adopt": True}
    assert work(adopted, beta=[there(owned=False, uuid="1-2")])["beta"]["guests"] == [{"name": "web", "adopt": True}]
    assert work(adopted, alpha=[there(owned=False, uuid="1-2")])["beta"]["problems"]


def test_nothing_goes_to_a_host_that_is_to_stay_empty():
    declared = [
        {"name": "web", "host": "alpha"},
        {"name": "new", "host": "alpha"},
        {"name": "old", "host": "alpha", "state": "absent"},
    ]
    got = place(declared, {"alpha": [], "beta": [there()]}, ["alpha"])
    assert got["beta"] == {"moves": [], "guests": [{"name": "web"}], "problems": []}
    assert "its host alpha is evacuated" in got["alpha"]["problems"][0] and len(got["alpha"]["problems"]) == 1
    # what is there still stays there, and what belongs elsewhere goes
    assert place(declared[:1], {"alpha": [there()], "beta": []}, ["alpha"])["alpha"]["guests"] == [{"name": "web"}]
    got = place([{"name": "web", "host": "beta"}], {"alpha": [there()], "beta": []}, ["alpha"])
    assert got["alpha"]["moves"] == [{"guest": "web", "destination": "beta"}]


def test_named_guests_move_whoever_made_them():
    found = {"alpha": [there(owned=False, uuid="1-2"), there("db")], "beta": [there("in")], "gamma": None}
    got = moves(["web", "in", "web"], "beta", found)
    assert got["moves"] == {"alpha": [{"guest": "web", "destination": "beta"}], "beta": [], "gamma": []}
    assert got["problems"] == []


@pytest.mark.parametrize(
    ("names", "to", "found", "words"),
    [
        (["no"], "beta", {"alpha": [], "beta": []}, "Guest no is on none of alpha, beta"),
        (["no"], "beta", {"alpha": None, "beta": []}, "it may be on alpha, which did not answer"),
        (["web"], "beta", {"alpha": [there()], "beta": None}, "its host beta did not answer"),
        (["web"], "delta", {"alpha": [there()], "beta": []}, "not a host of the group"),
        (["web"], "beta", {"alpha": [there()], "beta": [there(uuid="1-2")]}, "there are 2 guests of that name"),
    ],
)
def test_named_guests_that_cannot_move(names, to, found, words):
    got = moves(names, to, found)
    assert words in " ".join(got["problems"]) and not any(got["moves"].values())


def test_guests_that_come_back_go_where_the_inventory_says_and_who_is_gone_is_gone():
    found = {"alpha": [], "beta": [there("a"), there("b"), there("c")], "gamma": []}
    declared = [{"name": "b", "host": "gamma"}, {"name": "c", "host": "beta"}]
    got = moves(["a", "b", "c", "gone"], "alpha", found, declared)
    assert got["problems"] == []
    assert got["moves"]["beta"] == [{"guest": "a", "destination": "alpha"}, {"guest": "b", "destination": "gamma"}]
    assert got["at"]["b"] == "gamma"
    silent = moves(["gone"], "alpha", {**found, "gamma": None}, declared)
    assert "may be on gamma" in silent["problems"][0]
