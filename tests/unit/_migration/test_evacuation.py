"""Evacuations, on plain data: what must never happen, whatever the fleet looks like; and what is said when it cannot be."""

from __future__ import annotations

import itertools
import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.filter.evacuation import evacuation
from ansible_collections.phyllome.virt.plugins.module_utils._migration.evacuation import OVERHEAD, evacuate, needs, room
from ansible_collections.phyllome.virt.tests.unit._host.hosts import GIB, claim, guest, host

LESS: dict[str, t.Any] = {"cpu": {"vendor": "Intel", "model": "Haswell", "features": ["lm", "vmx"]}}


def work(guests, claims, hosts, found=None, kept=None, **more):
    """Empty alpha, which has these guests; ``hosts`` are the others, ``kept`` is what an earlier run chose."""
    facts = {"alpha": host("alpha", claims=claims), **hosts}
    if kept is not None:
        facts["alpha"]["evacuated"] = {"guests": sorted(kept), "destinations": kept, "by": "evacuate", "before": None}
    everywhere = {"alpha": guests, **{name: [] for name in hosts}, **(found or {})}
    return evacuate("alpha", everywhere, facts, **more)


def where(got):
    return {one["guest"]: name for name, moves in got["moves"].items() for one in moves}


def job(phase, source="alpha", destination="beta"):
    return {"op_id": "x", "phase": phase, "source": source, "destination": destination}


def test_guests_are_spread_over_what_is_free_and_the_biggest_go_first():
    guests = [guest("a", GIB), guest("b", 3 * GIB), guest("c", 2 * GIB)]
    got = work(guests, [claim(name, 4 * GIB) for name in "abc"], {"beta": host("beta"), "gamma": host("gamma")})
    assert got["problems"] == [] and got["guests"] == ["a", "b", "c"]
    assert {name: len(moves) for name, moves in got["moves"].items()} == {"beta": 2, "gamma": 1}
    sizes = {"a": 1, "b": 3, "c": 2}
    order = [sizes[one["guest"]] for one in got["moves"]["beta"]]
    assert order == sorted(order, reverse=True) and got["bytes"] == 6 * GIB
    assert got["moves"]["gamma"][0]["source"] == "alpha"


def test_what_is_free_at_the_moment_does_not_change_who_goes_where():
    guests, claims = [guest(name) for name in "abcd"], [claim(name) for name in "abcd"]
    frees = [(20 * GIB, 21 * GIB), (21 * GIB, 20 * GIB)]
    first, second = (
        where(work(guests, claims, {"beta": host("beta", free=one), "gamma": host("gamma", free=other)}))
        for one, other in frees
    )
    assert first == second and set(first.values()) == {"beta", "gamma"}


def test_an_empty_host_needs_no_other():
    assert work([], [], {}) == {"moves": {}, "guests": [], "bytes": 0, "rechosen": [], "problems": []}


def test_a_guest_goes_only_where_it_can_run():
    hosts = {"beta": host("beta", free=30 * GIB, **LESS), "gamma": host("gamma")}
    assert where(work([guest("a")], [claim("a")], hosts)) == {"a": "gamma"}
    assert where(work([guest("a")], [claim("a", cpu=["lm"])], hosts)) == {"a": "beta"}


def test_what_is_evacuated_or_silent_is_no_destination():
    empty = host("beta")
    empty["evacuated"] = {"guests": [], "by": "evacuate"}
    hosts = {"beta": empty, "gamma": host("gamma"), "delta": None}
    assert where(work([guest("a")], [claim("a")], hosts, found={"delta": None})) == {"a": "gamma"}
    got = work([guest("a")], [claim("a")], {"beta": empty})
    assert "no other host that answers" in got["problems"][0] and got["moves"] == {}


def test_guests_that_are_off_may_stay():
    guests = [guest("a"), guest("b", state="stopped"), guest("c", state="paused")]
    claims = [claim("a"), claim("b", active=False), claim("c")]
    assert work(guests, claims, {"beta": host("beta")}, running_only=True)["guests"] == ["a", "c"]
    assert work(guests, claims, {"beta": host("beta")})["guests"] == ["a", "b", "c"]


def test_a_move_that_was_begun_goes_on_and_others_are_told_to_be_finished():
    begun = guest("a", migration=job("moving"))
    hosts = {"beta": host("beta"), "gamma": host("gamma", free=30 * GIB)}
    got = work([begun], [claim("a")], hosts, found={"beta": [{**begun, "state": "paused"}]})
    assert where(got) == {"a": "beta"}
    # whoever began it may be gone, and the move under way all the same
    assert where(work([begun], [claim("a")], hosts)) == {"a": "beta"}
    # it never left, and cannot go there any more
    silent = work([begun], [claim("a")], {**hosts, "beta": None}, found={"beta": None})
    assert where(silent) == {"a": "gamma"}

    got = work([begun], [claim("a")], {**hosts, "beta": None}, found={"beta": None, "gamma": [begun]})
    assert "beta does not answer" in got["problems"][0]
    back = guest("a", migration=job("moving", "beta", "alpha"))
    got = work([back], [claim("a")], hosts, found={"beta": [back]})
    assert "phyllome.virt.migrate -e guest=a -e to=alpha" in got["problems"][0]
    got = work([guest("a")], [claim("a")], hosts, found={"beta": [guest("a")]})
    assert "no move of ours explains" in got["problems"][0]


def test_what_a_run_that_was_cut_off_chose_stays_chosen():
    hosts = {"beta": host("beta"), "gamma": host("gamma", free=30 * GIB)}
    guests, claims = [guest(name) for name in "abc"], [claim(name) for name in "abc"]
    other = where(work(guests, claims, hosts))
    kept = {name: {"beta": "gamma", "gamma": "beta"}[one] for name, one in other.items()}
    got = work(guests, claims, hosts, kept=kept)
    assert where(got) == kept != other and got["rechosen"] == []
    # its workers go on meanwhile: some have gone, and one was at home when one host was looked at and away at the next
    got = work(guests[1:], claims[1:], hosts, found={kept["b"]: [guests[1]]}, kept=kept)
    assert where(got) == {name: kept[name] for name in "bc"} and got["problems"] == []
    # or when its guests were looked at, and away when it was asked what they claim
    got = work(guests, claims[1:], hosts, kept=kept)
    assert where(got) == kept and got["problems"] == []


@pytest.mark.parametrize(
    ("beta", "words"),
    [
        ({"beta": host("beta", **LESS)}, "its CPU lacks avx2"),
        ({"beta": host("beta", free=GIB)}, "it has 1.0 GiB of memory, 4.1 GiB are needed"),
        ({"beta": None}, "that does not answer"),
        ({"beta": {**host("beta"), "evacuated": {"guests": [], "by": "evacuate"}}}, "that is to stay empty itself"),
        ({}, "that is not in the group phyllome_hosts any more"),
    ],
)
def test_why_a_choice_does_not_hold_any_more(beta, words):
    found = {"beta": None} if beta.get("beta", {}) is None else None
    got = work([guest("a")], [claim("a", 4 * GIB)], {**beta, "gamma": host("gamma")}, found=found, kept={"a": "beta"})
    assert where(got) == {"a": "gamma"} and got["rechosen"] == [f"a goes to gamma now and not to beta: {words}."]


def test_choices_change_when_others_need_the_room():
    hosts = {"beta": host("beta", free=5 * GIB), "gamma": host("gamma", free=9 * GIB, **LESS)}
    guests, claims = [guest("a"), guest("b")], [claim("a", 4 * GIB, cpu=["avx2"]), claim("b", 4 * GIB, cpu=["lm"])]
    got = work(guests, claims, hosts, kept={"b": "beta"})
    assert where(got) == {"a": "beta", "b": "gamma"}
    assert got["rechosen"] == ["b goes to gamma now and not to beta: with it not all of the others would have a place."]


def test_who_belongs_together_goes_together_and_to_who_is_there_already():
    hosts = {"beta": host("beta", free=5 * GIB), "gamma": host("gamma", free=9 * GIB)}
    guests, claims = [guest("a"), guest("b")], [claim("a", 4 * GIB), claim("b", 4 * GIB)]
    assert set(where(work(guests, claims, hosts, together=[["a", "b"]])).values()) == {"gamma"}
    got = work(guests, claims, hosts, found={"beta": [guest("c")]}, together=[["a", "c"]])
    assert where(got) == {"a": "beta", "b": "gamma"}
    got = work(guests, claims, hosts, found={"beta": [guest("c")]}, together=[["a", "b"], ["b", "c"]])
    assert "it has" in got["problems"][0] and "belongs together" in got["problems"][0]


def test_who_is_to_be_apart_stays_apart():
    hosts = {"beta": host("beta"), "gamma": host("gamma", free=30 * GIB)}
    guests, claims = [guest("a"), guest("b")], [claim("a"), claim("b")]
    assert len(set(where(work(guests, claims, hosts, apart=[["a", "b"]])).values())) == 2
    got = work(guests, claims, hosts, found={"gamma": [guest("c")]}, apart=[["a", "c"]])
    assert where(got)["a"] == "beta"
    got = work(guests, claims, {"beta": host("beta")}, apart=[["a", "b"]])
    assert "no place was found for all of them at once" in got["problems"][0]
    got = work(guests, claims, hosts, apart=[["a", "b"]], together=[["a", "b"]])
    assert "a and b are to be apart and together" in got["problems"][0]


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ({"beta": host("beta", **LESS)}, "Guest a has nowhere to go. beta: its CPU lacks avx2."),
        ({"beta": host("beta", free=GIB)}, "beta: it has 1.0 GiB of memory, 4.1 GiB are needed"),
        ({"beta": host("beta", space=GIB)}, "of space of file system 1, 1.1 GiB are needed"),
    ],
)
def test_why_there_is_no_place(hosts, words):
    got = work([guest("a")], [claim("a", 4 * GIB)], hosts)
    assert words in got["problems"][0] and got["moves"] == {} and got["guests"] == []


def test_no_room_for_all_at_once_is_told_with_figures():
    got = work(
        [guest("a"), guest("b")], [claim("a", 4 * GIB), claim("b", 4 * GIB)], {"beta": host("beta", free=6 * GIB)}
    )
    assert "they need 8.1 GiB of memory, free are beta 6.0 GiB" in got["problems"][0]


def test_a_host_of_which_nothing_is_known_is_left_alone():
    assert "did not answer" in evacuate("alpha", {"alpha": None}, {})["problems"][0]
    got = evacuate("alpha", {"alpha": [guest("a")], "beta": []}, {"alpha": None, "beta": host("beta")})
    assert "What alpha is could not be found out" in got["problems"][0]


def test_huge_pages_and_pools_of_one_file_system_are_counted_once():
    target = host("beta")
    target["capacity"]["hugepages"] = [{"size": 2048, "free": 600}]
    target["capacity"]["pools"].append({"name": "more", "path": "/srv", "available": 50 * GIB, "filesystem": "1"})
    assert room(target) == {"memory": 16 * GIB, "pages of 2048 KiB": 600, "space of file system 1": 50 * GIB}
    want = needs(guest("a"), claim("a", hugepage=2048), target)
    assert want["pages of 2048 KiB"] == 512 and want["memory"] == OVERHEAD
    off = needs(guest("a"), claim("a", active=False), target)
    assert list(off) == ["space of file system 1"]


def test_groups_that_are_no_groups():
    for wrong in (["web", "db"], "web", [[1]]):
        with pytest.raises(AnsibleFilterError, match="phyllome_apart is a list of groups"):
            evacuation("alpha", {"alpha": []}, {}, apart=wrong)
    assert evacuation("alpha", {"alpha": []}, {"alpha": None}) == {
        "moves": {},
        "guests": [],
        "bytes": 0,
        "rechosen": [],
        "problems": [],
    }


NAMES = [f"g{number}" for number in range(7)]
GROUPS = st.lists(st.lists(st.sampled_from(NAMES), min_size=2, max_size=3, unique=True), max_size=2)
SIZES = st.integers(1, 8).map(lambda size: size * GIB)


@st.composite
def fleets(draw):
    """Guests on alpha, and others: on beta, gamma and delta, which have room or not, and can run everything or not."""
    placed = {name: draw(st.sampled_from(["alpha"] * 4 + ["beta", "gamma"])) for name in NAMES}
    sizes = {name: draw(SIZES) for name in NAMES}
    found = {
        where: [guest(name, draw(SIZES)) for name in NAMES if placed[name] == where]
        for where in ("alpha", "beta", "gamma", "delta")
    }
    hosts = {"alpha": host("alpha", claims=[claim(name, sizes[name]) for name in NAMES if placed[name] == "alpha"])}
    for where in ("beta", "gamma", "delta"):
        hosts[where] = host(
            where,
            free=draw(st.integers(0, 20)) * GIB,
            space=draw(st.integers(1, 40)) * GIB,
            claims=[claim(name, sizes[name]) for name in NAMES if placed[name] == where],
            **(LESS if draw(st.booleans()) else {}),
        )
    return found, hosts, draw(GROUPS), draw(GROUPS)


def allowed(final, found, hosts, together, apart):
    """Whether a placement of alpha's guests breaks no rule; written down again, not the planner's own words."""
    here = {one["name"]: one for one in found["alpha"]}
    claims = {one["name"]: one for one in hosts["alpha"]["capacity"]["guests"]}
    for target in ("beta", "gamma", "delta"):
        coming = [name for name in here if final[name] == target]
        capacity = hosts[target]["capacity"]
        if sum(claims[name]["memory"] + OVERHEAD for name in coming) > capacity["memory"]["free"] and coming:
            return False
        space = sum(here[name]["disks"][0]["allocation"] * 105 // 100 + (16 << 20) for name in coming)
        if space > capacity["pools"][0]["available"]:
            return False
        if coming and "avx2" not in hosts[target]["manifest"]["cpu"]["features"]:
            return False
    movers = set(here)
    for group in apart:
        for one, other in itertools.combinations(group, 2):
            if final[one] == final[other] and {one, other} & movers:
                return False
    return not any(movers & {*group} and len({final[name] for name in group}) > 1 for group in together)


@settings(max_examples=150, deadline=None)
@given(fleets())
def test_no_rule_is_ever_broken_and_a_place_is_found_whenever_there_is_one(fleet):
    found, hosts, together, apart = fleet
    got = evacuate("alpha", found, hosts, together, apart)
    fixed = {one["name"]: where for where, guests in found.items() for one in guests if where != "alpha"}
    names = [one["name"] for one in found["alpha"]]
    if got["problems"]:
        assert got["moves"] == {} and got["guests"] == []
        for targets in itertools.product(("beta", "gamma", "delta"), repeat=len(names)):
            assert not allowed({**fixed, **dict(zip(names, targets, strict=True))}, found, hosts, together, apart)
    else:
        final = {**fixed, **where(got)}
        assert sorted(where(got)) == sorted(names) == got["guests"]
        assert allowed(final, found, hosts, together, apart)
    assert evacuate("alpha", found, hosts, together, apart) == got
