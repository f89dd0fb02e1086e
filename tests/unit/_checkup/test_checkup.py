# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the check-up says of machines, and that its page is sound HTML which says the same."""

from __future__ import annotations

import html.parser
import json
import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.filter.checkup_page import FilterModule as PageFilter
from ansible_collections.phyllome.virt.plugins.filter.checkup_report import FilterModule as ReportFilter
from ansible_collections.phyllome.virt.plugins.module_utils._checkup.judge import SEVERITIES
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather
from ansible_collections.phyllome.virt.tests.unit._host.hosts import claim, guest
from ansible_collections.phyllome.virt.tests.unit._host.hosts import host as one_host
from ansible_collections.phyllome.virt.tests.unit._iommu import machines

Facts = dict[str, t.Any]
checkup_report = ReportFilter().filters()["checkup_report"]
checkup_page = PageFilter().filters()["checkup_page"]
VOID = ("meta",)
EVIL = "</style><script>alert(1)</script>\"'&amp;\N{SNOWMAN}<img src=x onerror=alert(1)>"


class Page(html.parser.HTMLParser):
    """Tags, attributes and text; complains about tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> t.Callable[[str], Facts]:
    known: dict[str, Facts] = {}

    def of(name: str) -> Facts:
        if name not in known:
            known[name] = gather(machines.CAPTURES[name]().write(tmp_path_factory.mktemp(name) / "m"))
        return json.loads(json.dumps(known[name]))  # a copy, to be spoilt

    return of


def looked(facts: Facts) -> Facts:
    return {"changed": False, "ansible_facts": {"phyllome_iommu": facts}}


def one(facts: Facts, guests: list[Facts] | None = None) -> Facts:
    result = {} if guests is None else {"guests": guests}
    return checkup_report(["alpha"], [looked(facts)], [result], "now")["hosts"][0]


def codes(host: Facts) -> list[str]:
    return [finding["code"] for finding in host["findings"]]


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        ("acs-override", "warning", ["acs_override"]),
        ("amd-desktop-two-gpus", "fine", []),
        ("arm-server-smmu", "fine", []),
        ("disabled-on-cmdline", "problem", ["iommu_off"]),
        ("intel-laptop-vmd", "fine", ["shared_group"]),
        ("kernel-without-driver", "problem", ["iommu_off"]),
        ("nic-and-hba-in-one-group", "fine", ["shared_group"]),
        ("no-firmware-table", "problem", ["no_virtualisation", "iommu_off"]),
        ("nvme-multipath-root", "fine", []),
        ("server-bond-lvm", "fine", ["shared_group"]),
        ("sriov-in-use", "fine", ["shared_group", "bound_until_reboot"]),
        ("usb-boot", "fine", []),
        ("vm-without-iommu", "problem", ["iommu_off"]),
    ],
)
def test_what_is_wrong(facts, name, state, expected):
    host = one(facts(name))
    wrong = [code for code in codes(host) if code != "no_interrupt_remapping"]
    assert (host["state"], wrong) == (state, expected)
    for finding in host["findings"]:
        assert finding["severity"] in SEVERITIES
        assert finding["what"] and finding["evidence"] and finding["remedy"]


def test_every_capture_is_looked_at():
    marks = next(mark for mark in test_what_is_wrong.pytestmark if mark.name == "parametrize")
    assert [row[0] for row in marks.args[1]] == sorted(machines.CAPTURES)


def test_all_causes_and_all_remedies_are_said(facts):
    finding = one(facts("vm-without-iommu"))["findings"][0]
    assert finding["evidence"][0].startswith("guest_without_viommu, kernel_without_driver: this is a virtual machine")
    assert "give it an emulated IOMMU" in finding["remedy"] and "Boot a kernel" in finding["remedy"]


@pytest.mark.parametrize(
    ("where", "value", "code"),
    [
        ("host.vtx", False, "no_virtualisation"),
        ("host.container", True, "container"),
        ("iommu.state", "unknown", "iommu_off"),
        ("iommu.interrupt_remapping", "disabled", "no_interrupt_remapping"),
        ("iommu.cmdline.reboot_pending", True, "reboot_pending"),
        ("iommu.unsafe.acs_override", "pcie_acs_override=downstream", "acs_override"),
        ("iommu.unsafe.unsafe_interrupts", True, "unsafe_interrupts"),
        ("iommu.unsafe.noiommu", True, "noiommu"),
        ("vfio.modules.vfio_pci", "missing", "no_vfio"),
        ("vfio.modules.vfio_iommu_type1", "missing", "no_vfio"),
        ("unread", [{"path": "/proc/1/fd", "why": "Permission denied"}], "unread"),
    ],
)
def test_each_finding(facts, where, value, code):
    found = facts("intel-laptop-vmd")
    found["iommu"]["interrupt_remapping"] = "enabled"
    assert code not in codes(one(found))
    *path, last = where.split(".")
    below = found
    for key in path:
        below = below[key]
    below[last] = value
    assert code in codes(one(found))


def test_memory_that_the_firmware_keeps(facts):
    found = facts("server-bond-lvm")
    group = next(group for group in found["groups"] if group["id"] == 60)
    group["reasons"].append({"code": "rmrr", "device": None, "detail": "the firmware keeps 0xf0000-0xfffff mapped"})
    assert "rmrr" in codes(one(found))


def test_what_is_bound_and_what_the_next_boot_binds(facts):
    found = facts("intel-laptop-vmd")
    rule = {"address": "0000:01:00.0", "driver": "vfio-pci", "source": "phyllome", "file": "/etc/udev/rules.d/x.rules"}
    found["bindings"] = {"live": [{"address": "0000:02:00.0", "driver": "vfio-pci"}], "persistent": [rule]}
    told = {finding["code"]: finding for finding in one(found)["findings"]}
    assert told["not_bound"]["evidence"] == ["0000:01:00.0: /etc/udev/rules.d/x.rules"]
    assert told["bound_until_reboot"]["evidence"] == ["0000:02:00.0: vfio-pci"]
    found["bindings"]["live"] = [{"address": "0000:01:00.0", "driver": "vfio-pci"}]
    assert not {"not_bound", "bound_until_reboot"} & set(codes(one(found)))
    found["bindings"] = {"live": [], "persistent": [{**rule, "address": None}]}  # whose devices cannot be told
    assert not {"not_bound", "bound_until_reboot"} & set(codes(one(found)))
    found["bindings"]["persistent"] = None
    assert not {"not_bound", "bound_until_reboot"} & set(codes(one(found)))


def test_iommufd_takes_the_place_of_the_old_container(facts):
    found = facts("intel-laptop-vmd")
    found["vfio"]["modules"]["vfio_iommu_type1"] = "missing"
    found["iommu"]["kernel_config"]["IOMMUFD"] = "m"
    assert "no_vfio" not in codes(one(found))


def test_guests(facts):
    guests: list[Facts] = [
        {"name": "calm", "state": "running", "pending": [], "migration": {"phase": "done"}, "migratable": {"possible": True, "reasons": []}},
        {"name": "busy", "state": "paused", "pending": [{"path": "memory", "from": 1, "to": 2}], "migration": {"phase": "copy"},
         "migratable": {"possible": False, "reasons": [{"code": "snapshots", "what": "it has snapshots", "fix": "Delete them."}]}},
        {"name": "bare", "state": "stopped"},
    ]  # fmt: skip
    host = one(facts("amd-desktop-two-gpus"), guests)
    assert codes(host) == ["unfinished_move", "pending", "cannot_move"]
    assert all("busy" in finding["what"] for finding in host["findings"])
    assert host["state"] == "warning"
    assert [guest["name"] for guest in host["guests"]] == ["calm", "busy", "bare"]


@pytest.mark.parametrize("result", [{"unreachable": True, "msg": "no route"}, {"failed": True, "msg": "no route"}])
def test_a_host_that_does_not_answer(result):
    host = checkup_report(["alpha"], [result], [{}], "now")["hosts"][0]
    assert (host["state"], codes(host), host["findings"][0]["evidence"]) == ("unreachable", ["no_answer"], ["no route"])


def test_what_can_be_passed_through(facts):
    host = one(facts("amd-desktop-two-gpus"))
    verdicts = {device["address"]: device["verdict"] for group in host["groups"] for device in group["devices"]}
    assert verdicts["0000:0b:00.0"] == "free"
    assert verdicts["0000:02:00.0"] == "consent"
    assert verdicts["0000:01:00.0"] == "never"
    assert host["ungrouped"] == []
    card = next(one for group in host["groups"] for one in group["devices"] if one["address"] == "0000:0b:00.0")
    assert card["identity"] == next(
        one["identity"]["key"] for one in facts("amd-desktop-two-gpus")["devices"] if one["address"] == "0000:0b:00.0"
    )
    off = one(facts("disabled-on-cmdline"))
    assert {device["verdict"] for device in off["ungrouped"]} == {"never", "unknown"}


def test_hosts_are_sorted_and_all_there(facts):
    results = [looked(facts("usb-boot")), {}]
    report = checkup_report(["zeta", "alpha"], results, [{}, {}], "2026-11-22 10:00")
    assert [(host["name"], host["state"]) for host in report["hosts"]] == [("alpha", "unreachable"), ("zeta", "fine")]
    assert json.loads(json.dumps(report)) == report


def test_lists_that_do_not_fit():
    with pytest.raises(
        AnsibleFilterError, match="For 2 hosts there are 1 results of iommu_facts, 0 of .* and 2 of host_facts"
    ):
        checkup_report(["alpha", "beta"], [{}], [], "now")


def test_the_page_says_what_the_report_says(facts):
    names = sorted(machines.CAPTURES)
    report = checkup_report(names, [looked(facts(name)) for name in names], [{}] * len(names), "2026-11-22 10:00")
    page = Page(checkup_page(report))
    assert "Check-up of 13 hosts" in page.text and "2026-11-22 10:00" in page.text
    for host in report["hosts"]:
        for finding in host["findings"]:
            for said in (finding["what"], *finding["evidence"], finding["remedy"]):
                assert " ".join(said.split()) in page.text
        for group in host["groups"]:
            assert f"Group {group['id']}" in page.text
            assert all(device["address"] in page.text for device in group["devices"])
            assert all(device["identity"] in page.text for device in group["devices"])
    targets = {attributes["id"] for dummy, attributes in page.tags if "id" in attributes}
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {f"#{target}" for target in targets} and len(links) == 13


def test_the_page_needs_nothing_else(facts):
    text = checkup_page(checkup_report(["alpha"], [looked(facts("usb-boot"))], [{}], "now"))
    page = Page(text)
    assert not {tag for tag, dummy in page.tags} & {"script", "link", "img", "iframe", "object", "base", "form", "svg"}
    assert not [
        key for dummy, attributes in page.tags for key in attributes if key in ("src", "style") or key[:2] == "on"
    ]
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    assert (
        "meta",
        {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"},
    ) in page.tags
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert "prefers-color-scheme: dark" in text


def spoil(value: t.Any, text: str) -> t.Any:
    """Every text of a report replaced, but for those that are one of a few words."""
    if isinstance(value, dict):
        return {
            key: below if key in ("state", "severity", "verdict") else spoil(below, text)
            for key, below in value.items()
        }
    if isinstance(value, list):
        return [spoil(below, text) for below in value]
    return text if isinstance(value, str) else value


def test_what_machines_and_people_call_things_is_text(facts):
    report = checkup_report(
        ["alpha"], [looked(facts("sriov-in-use"))], [{"guests": [{"name": "g", "state": "running"}]}], "now"
    )
    sound, evil = Page(checkup_page(report)), Page(checkup_page(spoil(report, EVIL)))
    assert [tag for tag, dummy in evil.tags] == [tag for tag, dummy in sound.tags]
    assert EVIL in evil.text


def known(facts: Facts) -> Facts:
    """A result of host_facts."""
    return {"ansible_facts": {"phyllome_host": facts}}


@pytest.fixture
def fleet(facts) -> Facts:
    """The report of three hosts that host_facts knows, and of one that it does not."""
    less = {"vendor": "Intel", "model": "Haswell", "features": ["lm", "vmx"]}
    hosts = [
        known(one_host("alpha", claims=[claim("web")])),
        known(one_host("beta")),
        known(one_host("gamma", cpu=less)),
        {},
    ]
    guests = [{"guests": [guest("web")]}, {}, {}, {}]
    names = ["alpha", "beta", "gamma", "gone"]
    made: Facts = checkup_report(names, [looked(facts("usb-boot"))] * 3 + [{}], guests, "now", hosts)
    return made


def test_who_can_go_where_and_why_not_is_data_and_on_the_page(fleet):
    assert fleet["fleet"]["domains"] == [["alpha", "beta"], ["gamma"]]
    assert fleet["fleet"]["guests"][0]["cannot"] == {"gamma": ["its CPU lacks avx2"]}
    page = Page(checkup_page(fleet))
    for said in (
        "Who can go where",
        "alpha, beta",
        "its CPU lacks avx2",
        "only from the second to the first",
        "cpu.features[avx2]",
    ):
        assert said in page.text
    assert ("a", {"href": "#fleet"}) in page.tags and json.loads(json.dumps(fleet)) == fleet
    evil = Page(checkup_page(spoil(fleet, EVIL)))
    assert {tag for tag, dummy in evil.tags} == {tag for tag, dummy in page.tags} and EVIL in evil.text


def test_hosts_that_are_alike_say_so_and_one_host_is_no_fleet(facts):
    both = checkup_report(
        ["a", "b"], [looked(facts("usb-boot"))] * 2, [{}, {}], "now", [known(one_host("a")), known(one_host("b"))]
    )
    assert "all hosts are alike" in Page(checkup_page(both)).text
    alone = checkup_report(["a"], [looked(facts("usb-boot"))], [{}], "now", [known(one_host("a"))])
    assert alone["fleet"] is None and "Who can go where" not in checkup_page(alone)


def test_what_host_facts_says_of_a_host_becomes_a_finding(facts):
    ill = one_host("a")
    ill["virtualization"] = {"state": "off", "evidence": ["kvm: disabled by bios"], "remedy": "Switch it on."}
    ill["reboot"] = {"required": True, "why": ["/run/reboot-required is there"]}
    ill["evacuated"] = {"guests": ["web"], "by": "evacuate", "before": None}
    found = checkup_report(["a"], [looked(facts("usb-boot"))], [{}], "now", [known(ill)])["hosts"][0]
    said = {one["code"]: one for one in found["findings"]}
    assert said["no_virtualisation"]["evidence"] == ["kvm: disabled by bios"]
    assert said["no_virtualisation"]["severity"] == "problem" and found["state"] == "problem"
    assert said["reboot_required"]["severity"] == "warning" and said["evacuated"]["evidence"] == ["web went away"]


@pytest.mark.parametrize(
    ("listed", "host", "expected"),
    [
        ({}, {}, []),
        ({"skipped": True}, {"skipped": True}, []),
        ({"failed": False, "msg": "no socket"}, {}, [("guests_unknown", ["no socket"])]),
        ({"guests": []}, {"failed": False, "msg": "not read"}, [("host_unknown", ["not read"])]),
        ({"unreachable": True, "msg": "gone"}, {"unreachable": True, "msg": "gone"},
         [("guests_unknown", ["gone"]), ("host_unknown", ["gone"])]),
    ],
)  # fmt: skip
def test_what_could_not_be_asked_is_a_finding(facts, listed, host, expected):
    found = checkup_report(["a"], [looked(facts("usb-boot"))], [listed], "now", [host])["hosts"][0]
    assert [(one["code"], one["evidence"]) for one in found["findings"]] == expected
    assert found["state"] == ("warning" if expected else "fine")
    assert all(one["remedy"] for one in found["findings"])


def test_a_host_whose_libvirt_does_not_answer_is_not_fine(facts):
    ill = one_host("a")
    ill["identity"]["libvirt_error"] = "Cannot connect to libvirt: no socket"
    failed = {"failed": False, "msg": "Cannot connect to libvirt: no socket"}
    found = checkup_report(["a"], [looked(facts("usb-boot"))], [failed], "now", [known(ill)])["hosts"][0]
    assert found["state"] == "problem"
    assert [(one["code"], one["evidence"]) for one in found["findings"]] == [  # and the guests are not a second finding
        ("no_libvirt", ["Cannot connect to libvirt: no socket"])
    ]
    assert "phyllome.virt.site" in found["findings"][0]["remedy"]


@given(text=st.text(max_size=40))
def test_no_text_becomes_a_tag(text):
    host = checkup_report([text], [{"msg": text}], [{}], text)
    page = Page(checkup_page(host).replace("\r", "").replace("\0", ""))
    assert [tag for tag, dummy in page.tags] == [
        "html", "head", "meta", "meta", "meta", "title", "style", "body", "main", "h1", "p", "section", "h2", "span", "h3",
        "div", "p", "span", "strong", "p", "details", "summary", "ul", "li",
    ]  # fmt: skip
