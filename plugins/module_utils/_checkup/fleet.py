# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several hosts at a glance, as a part of the page: who can go where and why not, and how hosts have drifted apart. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .html import Html, badge, join, tag

Facts = t.Mapping[str, t.Any]

_SHOWN = 60
_VERDICTS = {
    "identical": "identical",
    "stack-equal": "same software",
    "migration-compatible": "guests can move",
    "incompatible": "guests cannot move",
}
_ARROWS = {
    "both": "in both directions",
    "forward": "only from the first to the second",
    "backward": "only from the second to the first",
}


def section(fleet: Facts) -> Html:
    """The part of the page."""
    return tag(
        "section",
        tag("h2", "The fleet"),
        tag("h3", "Who can go where"),
        tag("p", "In each of these groups every guest can go to every host: "),
        tag("ul", *(tag("li", ", ".join(group)) for group in fleet["domains"])),
        _guests(fleet["guests"]) if fleet["guests"] else None,
        _pairs(fleet) if fleet["pairs"] else tag("p", "Apart from names and addresses, all hosts are alike."),
        _drift(fleet["drift"]) if fleet["drift"] else None,
        id="fleet",
    )


def _table(heads: t.Sequence[str], rows: t.Iterable[Html]) -> Html:
    head = tag("tr", *(tag("th", text, scope="col") for text in heads))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="wide")


def _guests(guests: t.Sequence[Facts]) -> Html:
    return _table(
        ("Guest", "is on", "can go to", "cannot go to"),
        (
            tag(
                "tr",
                tag("td", guest["name"]),
                tag("td", guest["host"]),
                tag("td", badge("free", ", ".join(guest["can"])) if guest["can"] else "–"),
                tag("td", *(_against(host, whys) for host, whys in guest["cannot"].items())),
            )
            for guest in guests
        ),
    )


def _against(host: str, whys: t.Sequence[str]) -> Html:
    return tag("details", tag("summary", badge("never", host)), tag("ul", *(tag("li", why) for why in whys)))


def _pairs(fleet: Facts) -> Html:
    alike = {group[0]: group for group in fleet["alike"]}
    rows = []
    for pair in fleet["pairs"]:
        kind = "never" if pair["direction"] is None else "free" if pair["direction"] == "both" else "consent"
        whys = [
            f"to {target}: {reason['what']}"
            for target, way in ((pair["hosts"][1], "forward"), (pair["hosts"][0], "backward"))
            for reason in pair[way]
        ]
        said = _VERDICTS[pair["verdict"]]
        if pair["verdict"] == "migration-compatible":
            said += f" {_ARROWS.get(pair['direction'], '')}"
        rows.append(
            tag(
                "tr",
                *(tag("td", ", ".join(alike[host])) for host in pair["hosts"]),
                tag("td", badge(kind, said), tag("ul", *(tag("li", why) for why in whys)) if whys else None),
                tag("td", ", ".join(pair["paths"][:6]) + (", …" if len(pair["paths"]) > 6 else "")),
            )
        )
    return join([tag("h3", "Hosts in pairs"), _table(("", "", "verdict", "what differs first"), rows)])


def _drift(drift: t.Sequence[Facts]) -> Html:
    rows = [
        tag(
            "tr",
            tag("td", tag("code", one["path"])),
            tag("td", _value(one["usual"])),
            tag("td", "; ".join(f"{host}: {_value(value)}" for host, value in one["others"].items())),
        )
        for one in drift[:_SHOWN]
    ]
    more = len(drift) - _SHOWN
    return join(
        [
            tag("h3", "Drift: what is not the same everywhere"),
            tag(
                "details",
                tag("summary", f"{len(drift)} differences"),
                _table(("what", "most hosts", "others"), rows),
                tag("p", f"… and {more} more, see checkup.json", class_="dim") if more > 0 else None,
            ),
        ]
    )


def _value(value: t.Any) -> str:
    text = "nothing" if value is None or value in ([], {}) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
