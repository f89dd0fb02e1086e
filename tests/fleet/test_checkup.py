"""The check-up of two hosts and of one that is not there."""

from __future__ import annotations

import json

import yaml

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import Site


def test_the_checkup_changes_nothing_and_writes_data_and_a_page(bare: Site) -> None:
    inventory = yaml.safe_load(bare.inventory([]).read_text())
    inventory["phyllome_hosts"]["hosts"]["gone"] = {"ansible_host": "127.0.0.1", "ansible_ssh_args": "-o Port=9"}
    path = bare.folder / "checkup.yml"
    path.write_text(yaml.safe_dump(inventory))
    folder = bare.folder / "checkup"
    run = runner.playbook("phyllome.virt.checkup", path, "-e", f"checkup_dir={folder}")
    for host in ("alpha", "beta"):
        counters = run.stats[host]
        assert (counters["changed"], counters["failures"], counters["unreachable"]) == (0, 0, 0), run.messages()
    report = json.loads((folder / "checkup.json").read_text())
    found = {host["name"]: [finding["code"] for finding in host["findings"]] for host in report["hosts"]}
    assert found["gone"] == ["no_answer"]
    assert "container" in found["alpha"] and "container" in found["beta"]  # as the fleet's hosts are
    assert report["fleet"]["domains"] == [["alpha"], ["beta"]]  # bare hosts have no libvirt yet
    page = (folder / "checkup.html").read_text()
    assert all(f"<h2>{name} " in page for name in found)
