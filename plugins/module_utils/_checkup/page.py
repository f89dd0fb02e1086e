# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A report as one page of HTML that needs nothing else: no script, no network, no other file. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .fleet import section
from .html import Html, badge, tag

Facts = dict[str, t.Any]

VERDICTS = {
    "free": "free",
    "consent": "needs consent",
    "unknown": "not known to be safe",
    "never": "stays with the host",
}
STATES = {"fine": "fine", "problem": "problem", "warning": "warning", "unreachable": "no answer"}
GROUP_STATES = {
    "ready": "bound to VFIO",
    "bindable": "can be given to a guest",
    "shared": "can be given to a guest as a whole",
    "blocked": "something stands against it",
    "untrusted": "isolation is not proved",
}
_STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1c2128; --dim: #57606a; --line: #d0d7de;
  --good: #116329; --bad: #b3161b; --warn: #7d4e00; --note: #0a58a8; }
@media (prefers-color-scheme: dark) {
  :root { --back: #0f1318; --card: #181e26; --text: #e6edf3; --dim: #9aa5b1; --line: #343d48;
    --good: #56d364; --bad: #ff8a80; --warn: #e3b341; --note: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 0; } h3 { font-size: 1rem; margin: 1rem 0 .5rem; }
p { margin: .25rem 0; } ul { margin: .25rem 0; padding-left: 1.25rem; }
a { color: var(--note); } code { font-size: .9em; }
.dim { color: var(--dim); font-size: .9rem; }
section, nav { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; margin: 1rem 0; }
nav ul { list-style: none; padding: 0; margin: 0; }
.finding { border-left: .3rem solid var(--note); padding: .1rem 0 .1rem .75rem; margin: .75rem 0; }
.finding.problem { border-color: var(--bad); } .finding.warning { border-color: var(--warn); }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .75rem; }
.group { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .75rem; }
.device { border-top: 1px solid var(--line); margin-top: .5rem; padding-top: .5rem; }
.badge { font-weight: 600; white-space: nowrap; }
.fine, .free { color: var(--good); } .badge.problem, .badge.never, .badge.unreachable { color: var(--bad); }
.badge.warning, .badge.consent, .badge.unknown { color: var(--warn); } .badge.note { color: var(--note); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th, td { border-top: 1px solid var(--line); padding: .35rem .6rem .35rem 0; text-align: left; vertical-align: top; }
summary { cursor: pointer; padding: .25rem 0; }
@media print { details > * { display: block; } section { break-inside: avoid; } }
"""


def page(report: Facts) -> str:
    """The page.

    Args:
        report: as judge.report returned it.
    """
    hosts = report["hosts"]
    title = f"Check-up of {len(hosts)} host{'' if len(hosts) == 1 else 's'}"
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = [
        Html('<meta charset="utf-8">\n'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'),
        tag("title", title),
        tag("style", Html(_STYLE)),
    ]
    links = [
        tag("li", tag("a", host["name"], href=f"#host-{number}"), " ", badge(host["state"], STATES[host["state"]]))
        for number, host in enumerate(hosts)
    ]
    if report.get("fleet"):
        links.insert(0, tag("li", tag("a", "The fleet", href="#fleet")))
    body = [
        tag("h1", title),
        tag("p", f"{report['when']}, by phyllome.virt.checkup. Nothing was changed.", class_="dim"),
        tag("nav", tag("ul", *links)) if len(hosts) > 1 else "",
        section(report["fleet"]) if report.get("fleet") else "",
        *(_host(number, host) for number, host in enumerate(hosts)),
    ]
    document = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{document}"


def _host(number: int, host: Facts) -> Html:
    findings = [_finding(one) for one in host["findings"]]
    parts: list[str] = [
        tag("h2", host["name"], " ", badge(host["state"], STATES[host["state"]])),
        _machine(host["machine"]) if host["machine"] else "",
        tag("h3", "What there is to say") if findings else "",
        *findings,
    ]
    if host["groups"]:
        parts += [
            tag("h3", "What can be passed through"),
            tag("div", *(_group(group) for group in host["groups"]), class_="groups"),
        ]
    if host["ungrouped"]:
        devices = [_device(device) for device in host["ungrouped"]]
        parts += [
            tag("h3", "Devices without an IOMMU group"),
            tag("details", tag("summary", f"{len(devices)} devices"), *devices),
        ]
    if host["guests"]:
        names = ", ".join(f"{guest['name']} ({guest['state']})" for guest in host["guests"])
        parts += [tag("h3", "Guests"), tag("p", names)]
    return tag("section", *parts, id=f"host-{number}")


def _machine(machine: Facts) -> Html:
    said = [
        machine["board"],
        machine["firmware"] and f"firmware {machine['firmware']}",
        machine["kernel"] and f"Linux {machine['kernel']}",
        f"IOMMU {machine['iommu']}",
    ]
    return tag("p", " · ".join(part for part in said if part), class_="dim")


def _finding(finding: Facts) -> Html:
    evidence = [tag("li", line) for line in finding["evidence"]]
    return tag(
        "div",
        tag("p", badge(finding["severity"], finding["severity"]), " ", tag("strong", finding["what"])),
        tag("p", finding["remedy"]) if finding["remedy"] else None,
        tag("details", tag("summary", "What was seen", class_="dim"), tag("ul", *evidence)) if evidence else None,
        class_=f"finding {finding['severity']}",
    )


def _group(group: Facts) -> Html:
    return tag(
        "div",
        tag("strong", f"Group {group['id']}"),
        " ",
        tag("span", GROUP_STATES[group["state"]], class_="dim"),
        *(_device(device) for device in group["devices"]),
        class_="group",
    )


def _device(device: Facts) -> Html:
    what = [device["class_name"] or "?", device["driver"] or "no driver"]
    hazards = [tag("li", tag("code", hazard["code"]), _hazard_text(hazard)) for hazard in device["hazards"]]
    against = "against it: " + ", ".join(hazard["code"] for hazard in device["hazards"])
    return tag(
        "div",
        tag("p", tag("code", device["address"]), " ", badge(device["verdict"], VERDICTS[device["verdict"]])),
        tag("p", device["name"]),
        tag("p", ", ".join(what), class_="dim"),
        tag("p", "identity ", tag("code", device["identity"]), class_="dim"),
        tag("details", tag("summary", against, class_="dim"), tag("ul", *hazards)) if hazards else None,
        class_="device",
    )


def _hazard_text(hazard: Facts) -> str:
    text = ": " + "; ".join(hazard["via"])
    if hazard["device"]:
        text += f" (of {hazard['device']}, in the same group)"
    return text + (f" – consent: {hazard['consent']}" if hazard["consent"] else "")
