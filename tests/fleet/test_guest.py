"""A guest, reconciled on real libvirt: changed while it counts, cut off, adopted, removed."""

from __future__ import annotations

import re
import typing as t

from lxml import etree

from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site
from ansible_collections.phyllome.virt.tests.fleet.runner import ROOT
from ansible_collections.phyllome.virt.tests.lab.host import Counter

#: Nobody in these guests would hear the power button.
PLUG = {"timeout": 1, "then": "destroy"}
CORPUS = sorted((ROOT / "tests/unit/_guest/corpus").glob("*.xml"))


#: What libvirt 9.0 with QEMU 7.2 and no KVM does not take in the corpus.
FITTING = {
    r"<domain type='kvm'": "<domain type='qemu'",
    r"pc-(q35|i440fx)-\d+\.\d+": r"pc-\1-7.2",
    r"<cpu mode='host-[^>]*?(/?)>": r"<cpu mode='maximum'\1>",
    r"(?<=</type>)\s*<loader[^>]*/>": "",
    r"<loader [^>]*secure[^>]*>[^<]*</loader>\s*<nvram [^>]*>": "<nvram>",
    r"<watchdog model='itco'[^>]*/>": "",
}


def declared(site: Site, name: str, **more: t.Any) -> dict[str, t.Any]:
    guest = site.guest(name, "", shutdown=PLUG, **more)
    del guest["host"]
    return guest


def converge(site: Site, guest: dict[str, t.Any], *flags: str) -> dict[str, t.Any]:
    result = site.module("phyllome_vm", "alpha", guest, *flags)
    assert not result.get("failed"), result["msg"]
    return result


def waiting(result: dict[str, t.Any]) -> set[str]:
    return {each["path"] for each in result["pending"]}


def test_a_guest_is_changed_while_it_counts(site: Site) -> None:
    first = declared(site, "live")
    before = first | {"memory": "96MiB", "vcpus": {"current": 1, "maximum": 2}, "cdroms": [{"id": "cd", "path": IMAGE}]}
    converge(site, before)
    count = site.counts("alpha", "live")
    root = {**first["disks"][0], "size": "96MiB", "iotune": {"total_iops_sec": 900}}
    more = [
        {"id": name, "size": "16MiB", "bus": bus}
        for name, bus in {"data": "virtio", "more": "scsi", "stick": "usb"}.items()
    ]
    lan = {**first["networks"][0], "link": "down"}
    after = before | {
        "disks": [root, *more],
        "networks": [lan, {"id": "wan", "network": "default"}],
        "metadata": {"title": "Changed while it counts"},
        "vcpus": {"current": 2, "maximum": 2},
        "cdroms": [{"id": "cd", "path": "/srv/other.iso"}],
    }
    site.fleet.host("alpha").run(["cp", IMAGE, "/srv/other.iso"])

    check = converge(site, after, "--check")
    result = converge(site, after)
    assert check["plan"] == result["plan"] and {change["when"] for change in result["plan"]} == {"live"}
    assert waiting(result) == set()
    assert converge(site, after)["changed"] is False
    live = site.virsh("alpha", "dumpxml", "live")
    assert all(f"<alias name='ua-{name}'/>" in live for name in ("data", "more", "stick", "wan"))
    assert "<vcpu placement='static'>2</vcpu>" in live
    assert "<total_iops_sec>900</total_iops_sec>" in live and "<title>Changed while it counts</title>" in live
    assert "<link state='down'/>" in live and "/srv/other.iso" in live
    assert str(96 << 20) in site.virsh("alpha", "domblkinfo", "live", "vda")
    addresses = [
        re.findall(r"<address type='pci'[^>]*>", site.virsh("alpha", "dumpxml", "live", *flag))
        for flag in ([], ["--inactive"])
    ]
    assert addresses[0] == addresses[1], "everything stays where it is at the next start"
    count = site.counts("alpha", "live", count)
    assert count.boots == 1

    # The guest has no system that would let go of a PCI device; SCSI and USB disks go without one.
    less = after | {"disks": [root], "networks": [lan], "unmanaged_devices": "prune", "on_unplug_timeout": 2}
    result = converge(site, less)
    assert {change["path"]: change["when"] for change in result["plan"]} == {
        "disks.data": "next_boot",
        "disks.more": "live",
        "disks.stick": "live",
        "networks.wan": "next_boot",
    }
    assert waiting(result) == {"disks.data", "networks.wan"} and result["restart_required"]
    again = converge(site, less)
    assert (again["changed"], waiting(again)) == (False, {"disks.data", "networks.wan"})
    count = site.counts("alpha", "live", count)
    assert count.boots == 1

    less |= {"cdroms": [{"id": "cd", "path": ""}]}
    result = converge(site, less | {"apply": "restart", "memory": "64MiB"})
    assert waiting(result) == set() and not result["restart_required"]
    count = site.counts("alpha", "live", Counter(2, 0))
    assert count.boots == 2
    assert converge(site, less | {"apply": "restart", "memory": "64MiB"})["changed"] is False
    assert site.counts("alpha", "live", count).boots == 2
    site.remove("live")


def test_check_mode_writes_nothing(site: Site) -> None:
    host = site.fleet.host("alpha")
    stored = ["find", "/etc/libvirt", "/var/lib/libvirt", "/srv", "-type", "f"]
    before = sorted(host.run(stored).stdout.split())
    host.run(["touch", "/tmp/before"])
    converge(site, declared(site, "never", cdroms=[{"id": "cd"}]), "--check")
    assert sorted(host.run(stored).stdout.split()) == before
    assert host.run(["find", "/etc/libvirt", "-newer", "/tmp/before", "-type", "f"]).stdout == ""
    assert "never" not in site.guests("alpha")


def test_killed_while_a_disk_is_made_it_is_finished_by_the_next_run(site: Site) -> None:
    host, guest = site.fleet.host("alpha"), declared(site, "killed")
    # The module itself dies: definition written, disk half made, nothing started.
    wrapper = '#!/bin/sh\n[ "$1" = convert ] && kill -9 $PPID\nexec /usr/bin/qemu-img.real "$@"\n'
    host.run(["mv", "/usr/bin/qemu-img", "/usr/bin/qemu-img.real"])
    host.write("/usr/bin/qemu-img", wrapper, 0o755)
    try:
        assert site.module("phyllome_vm", "alpha", guest)["failed"]
    finally:
        host.run(["mv", "/usr/bin/qemu-img.real", "/usr/bin/qemu-img"])
    assert "killed" in site.guests("alpha") and site.running("killed") == []
    result = converge(site, guest)
    assert result["changed"] and result["guest"]["state"] == "running"
    assert converge(site, guest)["changed"] is False
    assert site.counts("alpha", "killed").boots == 1
    site.remove("killed")


def test_an_external_snapshot_stays(site: Site) -> None:
    guest = declared(site, "overlay")
    converge(site, guest)
    site.virsh("alpha", "snapshot-create-as", "overlay", "one", "--disk-only", "--no-metadata")
    disk = site.disk("alpha", "overlay")
    assert disk.endswith(".one")
    base = {**guest["disks"][0], "path": disk.replace(".one", ".qcow2")}
    result = converge(site, guest | {"disks": [base], "metadata": {"title": "On top"}})
    assert [change["path"] for change in result["plan"]] == ["metadata.title"]
    assert site.disk("alpha", "overlay") == disk
    count = site.counts("alpha", "overlay")
    result = converge(site, {"name": "overlay", "state": "absent", "shutdown": PLUG})
    assert result["guest"]["state"] == "absent" and count.boots == 1
    site.fleet.host("alpha").run(["sh", "-c", "rm /var/lib/libvirt/images/overlay-root.*"])


def test_absent_whatever_it_has(site: Site) -> None:
    """NVRAM and TPM, a snapshot, a saved state, running: gone, with its files, and gone the second time."""
    names = {"store": "paused", "snap": "stopped", "saved": "running", "runs": "running"}
    guests = [declared(site, name, state=state, networks=[]) for name, state in names.items()]
    guests[0] |= {"profile": "linux", "tpm": {"model": "tpm-crb"}, "memory": "128MiB"}
    converge(site, {"guests": guests})
    site.virsh("alpha", "snapshot-create-as", "snap", "one")
    site.virsh("alpha", "managedsave", "saved")
    host = site.fleet.host("alpha")
    uuid = site.virsh("alpha", "domuuid", "store").strip()
    left = ["sh", "-c", f"find /var/lib/libvirt | grep -E '{uuid}|/({'|'.join(names)})[-.]' || true"]
    assert len(host.run(left).stdout.split()) >= len(names) + 2
    gone = {
        "guests": [{"name": name} for name in names],
        "defaults": {"state": "absent", "delete": {"disks": "owned"}, "shutdown": PLUG},
    }
    assert converge(site, gone)["changed"] is True
    assert site.guests("alpha") & set(names) == set()
    assert [path for path in host.run(left).stdout.split() if not path.endswith(".log")] == []
    assert converge(site, gone)["changed"] is False


def parts(text: str) -> list[str]:
    """A definition in pieces, without our marker, in an order of its own: libvirt moves controllers that it has made
    itself whenever it is given back what it said."""
    root = etree.fromstring(text, etree.XMLParser(remove_blank_text=True))
    for found in root.findall("metadata/{https://phyllome.org/xmlns/virt/guest/1}guest"):
        found.getparent().remove(found)
    pieces = [piece for piece in root if piece.tag != "devices" and (piece.tag != "metadata" or len(piece))]
    return sorted(etree.tostring(piece, method="c14n").decode() for piece in [*pieces, *root.find("devices")])


def test_what_others_made_keeps_all_that_is_not_declared(site: Site) -> None:
    """The corpus, as far as this libvirt and a host without KVM take it."""
    host = site.fleet.host("alpha")
    host.run(["mkdir", "-p", "/tmp/corpus"])
    for path in CORPUS:
        text = path.read_text()
        for old, new in FITTING.items():
            text = re.sub(old, new, text)
        host.write(f"/tmp/corpus/{path.name}", text)
    script = "cd /tmp/corpus && for x in *.xml; do virsh -q define $x >/dev/null 2>&1 && echo ${x%.xml}; done; true"
    names = host.run(["sh", "-c", script]).stdout.split()
    assert len(names) >= 25, names

    def all_of_them() -> dict[str, list[str]]:
        told = host.run(
            ["sh", "-c", f"for x in {' '.join(names)}; do virsh dumpxml --inactive --security-info $x; done"]
        )
        texts = told.stdout.split("</domain>\n")
        return {name: parts(f"{text}</domain>") for name, text in zip(names, texts, strict=False)}

    try:
        before = all_of_them()
        adopted: dict[str, t.Any] = {
            "guests": [{"name": name} for name in names],
            "defaults": {"state": "present", "adopt": True, "autostart": False},
        }
        assert converge(site, adopted)["changed"] is True
        after = all_of_them()
        assert after == before
        adopted["defaults"] |= {"networks": [{"id": "added", "network": "default"}]}
        results = site.module("phyllome_vm", "alpha", adopted)["results"]
        adopted["guests"] = [{"name": result["name"]} for result in results if not result["failed"]]
        now = all_of_them()
        for result in results:
            name = str(result["name"])
            lost, won = set(before[name]) - set(now[name]), set(now[name]) - set(before[name])
            assert lost == set(), f"{name} lost something"
            if result["failed"]:
                assert won == set() and "which of the guest's networks is meant" in result["msg"]
            else:
                assert all("ua-added" in part or part.startswith("<controller") for part in won), name
        assert converge(site, adopted)["changed"] is False
    finally:
        host.run(["sh", "-c", f"for x in {' '.join(names)}; do virsh undefine --nvram $x; done; rm -r /tmp/corpus"])
