"""What hosts are made of, as real libvirt tells of it."""

from __future__ import annotations

from ansible_collections.phyllome.virt.tests.fleet.conftest import Site


def test_hosts_that_were_made_alike_have_equal_digests_each_time(site: Site) -> None:
    looked = [
        site.module("host_facts", host, {})["ansible_facts"]["phyllome_host"] for host in ("alpha", "alpha", "beta")
    ]
    assert looked[0]["digests"] == looked[1]["digests"] == looked[2]["digests"]
    assert looked[0]["identity"]["host_uuid"] != looked[2]["identity"]["host_uuid"]
    assert looked[0]["virtualization"]["state"] == "off"  # the lab has no KVM, and that is found out
    whole = looked[0]["manifest"]
    assert whole["type"] == "qemu" and whole["cpu"]["features"] and whole["pools"]["images"]["path"]
    assert None not in (whole["machines"], whole["firmware"], whole["packages"], whole["authority"])

    shared = site.module("host_facts", "beta", {"gather": [], "cpus": [looked[0]["cpu"], looked[2]["cpu"]]})
    assert "ansible_facts" not in shared
    on = {name for name, policy in shared["fleet_cpu"]["features"].items() if policy == "require"}
    assert on == set(whole["cpu"]["features"])


def test_an_ordinary_user_gets_less_and_no_error(site: Site) -> None:
    site.fleet.host("alpha").run(["useradd", "--create-home", "watcher"])
    become = ("--become", "--become-method", "ansible.builtin.su", "--become-user", "watcher")
    whole = site.ansible("host_facts", "alpha", {}, *become)["ansible_facts"]["phyllome_host"]
    assert whole["manifest"]["packages"] and whole["manifest"]["cpu"]["features"] is None
    assert whole["capacity"]["memory"]["free"] > 0
