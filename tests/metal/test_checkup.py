"""A capture of a live machine, and the check-up of it: as data, and as a page in a browser."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import typing as t

import pytest
import yaml

from ansible_collections.phyllome.virt.plugins.module_utils._checkup.judge import report
from ansible_collections.phyllome.virt.plugins.module_utils._iommu.facts import gather
from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.browser import CONTRAST, Browser
from ansible_collections.phyllome.virt.tests.metal.conftest import Bare

SCREENSHOTS = runner.CACHE / "results" / "screenshots"


@dataclasses.dataclass(frozen=True)
class Checked:
    """What one run of the playbook wrote."""

    run: runner.Run
    page: pathlib.Path
    report: dict[str, t.Any]


@pytest.fixture(scope="module")
def checked(intel: Bare, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """The saved machine, and one that does not answer."""
    folder = tmp_path_factory.mktemp("checkup")
    intel.machine.keep_compiled()
    inventory = yaml.safe_load(intel.inventory.read_text())
    inventory["phyllome_hosts"]["hosts"]["gone"] = {"ansible_host": "127.0.0.1", "ansible_ssh_args": "-o Port=9"}
    (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
    run = runner.playbook("phyllome.virt.checkup", folder / "inventory.yml", "-e", f"checkup_dir={folder}/out")
    report = folder / "out" / "checkup.json"
    return Checked(run, folder / "out" / "checkup.html", json.loads(report.read_text()) if report.exists() else {})


def test_the_checkup_changes_nothing_and_survives_a_host_that_does_not_answer(intel: Bare, checked: Checked) -> None:
    name = intel.machine.record.name
    counters = checked.run.stats[name]
    assert (counters["changed"], counters["failures"], counters["unreachable"]) == (0, 0, 0), checked.run.messages()
    assert checked.run.stats["localhost"]["failures"] == 0, checked.run.messages()
    states = {host["name"]: host["state"] for host in checked.report["hosts"]}
    assert states == {name: "fine", "gone": "unreachable"}


def test_the_report_has_the_groups_of_the_machine(intel: Bare, checked: Checked) -> None:
    host = next(host for host in checked.report["hosts"] if host["groups"])
    found = {device["address"]: device["verdict"] for group in host["groups"] for device in group["devices"]}
    names = {device["qdev_id"]: found.get(device["address"]) for device in intel.machine.devices()}
    expected = {"nic": "free", "usb": "free", "ssd": "free", "root-disk": "never", "gpu": "consent", "port-1": None}
    assert {name: names[name] for name in expected} == expected
    assert "shared_group" in [finding["code"] for finding in host["findings"]]  # the two cards behind a bridge


def test_the_page_in_a_browser(checked: Checked) -> None:
    with Browser.open() as browser:
        for width in (360, 1280):
            for dark in (False, True):
                browser.look(checked.page, width, dark=dark)
                browser.screenshot(SCREENSHOTS / f"checkup-{width}-{'dark' if dark else 'light'}.png")
                assert browser.requested(checked.page) == [checked.page.resolve().as_uri()]
                assert browser.complaints() == []
                assert browser.ask("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways
                assert browser.ask(CONTRAST) >= 4.5
                back = browser.ask("getComputedStyle(document.body).backgroundColor")
                assert (int(back.split("(")[1].split(",")[0]) < 80) == dark
        host = next(host for host in checked.report["hosts"] if host["groups"])
        assert browser.ask("document.querySelectorAll('.group').length") == len(host["groups"])
        assert "Check-up of 2 hosts" in browser.ask("document.body.innerText")


def test_a_captured_machine_has_the_facts_of_the_live_one(
    intel: Bare, checked: Checked, tmp_path: pathlib.Path
) -> None:
    name = intel.machine.record.name
    run = runner.playbook("phyllome.virt.capture", intel.inventory, "-e", f"capture_dir={tmp_path}").ok()
    done = next(result for dummy, task, result in run.results() if task == "Capture")
    assert done["replays"] is True
    (tmp_path / "tree").mkdir()
    subprocess.run(["tar", "xzf", tmp_path / f"{name}.tar.gz", "-C", tmp_path / "tree"], check=True)
    looked = {"ansible_facts": {"phyllome_iommu": gather(str(tmp_path / "tree"))}}
    again = report([name], [looked], [{}], "")["hosts"][0]
    live = next(host for host in checked.report["hosts"] if host["name"] == name)
    # what an archive does not hold: libvirt, packages
    told = [one for one in live["findings"] if one["code"] not in ("no_virtualisation", "reboot_required")]
    assert again["machine"] == live["machine"] and again["findings"] == told
    verdicts = [
        [(one["address"], one["verdict"]) for group in host["groups"] for one in group["devices"]]
        for host in (again, live)
    ]
    assert verdicts[0] == verdicts[1]
