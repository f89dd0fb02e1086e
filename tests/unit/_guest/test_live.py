# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that are changed while they run, on a libvirt in memory."""

from __future__ import annotations

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import apply, converge, live, read_host

from .fake import GIB, Hypervisor, Killed

ROOT = {"id": "root", "size": "1GiB"}
DATA = {"id": "data", "size": "1GiB"}
SCSI = {"id": "more", "size": "1GiB", "bus": "scsi"}
LAN = {"id": "lan", "network": "default"}
WAN = {"id": "wan", "network": "default"}


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(apply, "_POLL", 0.001)
    return Hypervisor(tmp_path, monkeypatch)


def paths(plan):
    return [(change["path"], change["when"]) for change in plan]


def running(host):
    return {found.get("name").removeprefix("ua-") for found in host.guest().live.findall("devices/*/alias")}


def test_devices_come_while_the_guest_runs_and_at_the_address_that_they_keep(host):
    host.converge(disks=[ROOT], networks=[LAN])
    result = host.converge(disks=[ROOT, DATA, SCSI], networks=[LAN, WAN])
    assert result["changed"] and result["pending"] == []
    assert {when for dummy, when in paths(result["plan"])} == {"live"}
    assert {"data", "more", "wan"} <= running(host)
    web = host.guest()
    for name in ("data", "wan"):
        live_at, then_at = (
            dict(root.find(f"devices/*/alias[@name='ua-{name}']/../address").attrib) for root in (web.live, web.config)
        )
        assert live_at == then_at
    assert web.starts == 1
    again = host.converge(disks=[ROOT, DATA, SCSI], networks=[LAN, WAN])
    assert (again["changed"], again["plan"]) == (False, [])


def test_what_has_no_socket_waits_and_says_why(host):
    host.converge(disks=[ROOT])
    sata = {"id": "old", "size": "1GiB", "bus": "sata"}
    result = host.converge(disks=[ROOT, sata])
    assert {(change["when"], change.get("why")) for change in result["plan"] if change["path"] == "disks.old.bus"} == {
        ("next_boot", "a device of this kind cannot be added to a running guest")
    }
    assert [each["path"] for each in result["pending"]] == ["disks.old"]
    assert host.converge(disks=[ROOT, sata])["changed"] is False


def test_ports_are_counted(host):
    host.converge(disks=[ROOT])
    free = live.slots_free(host.guest().live)
    many = [{"id": f"d{number}", "size": "1GiB"} for number in range(free + 2)]
    result = host.converge(disks=[ROOT, *many[:free]])
    assert result["pending"] == [] and result["guest"]["hotplug_slots_free"] == 0
    result = host.converge(check=True, disks=[ROOT, *many])
    (why,) = {change.get("why") for change in result["plan"] if change["when"] == "next_boot"}
    assert why == "the running guest has no free PCI port left"
    assert [each["path"] for each in result["pending"]] == [f"disks.d{free}", f"disks.d{free + 1}"]


def test_devices_go_when_the_guest_lets_them_go(host):
    host.converge(disks=[ROOT, DATA], networks=[LAN, WAN])
    result = host.converge(disks=[ROOT], networks=[LAN], unmanaged_devices="prune")
    assert paths(result["plan"]) == [("disks.data", "live"), ("networks.wan", "live")]
    assert result["pending"] == [] and not {"data", "wan"} & running(host)
    assert result["guest"]["owner"]["devices"] == ["root", "lan"]
    assert len(host.files) == 2, "the file stays"


def test_what_the_guest_keeps_waits_and_is_asked_for_again(host):
    host.converge(disks=[ROOT, DATA], networks=[LAN, WAN])
    web = host.guest()
    web.obeys = lambda alias: alias == "ua-wan"
    wanted = {"disks": [ROOT], "networks": [LAN], "unmanaged_devices": "prune", "on_unplug_timeout": 1}
    result = host.converge(**wanted)
    assert paths(result["plan"]) == [("disks.data", "next_boot"), ("networks.wan", "live")]
    assert "did not let go of it within" in result["plan"][0]["why"]
    assert result["restart_required"] and [each["path"] for each in result["pending"]] == ["disks.data"]
    assert "waits for a power cycle" in " ".join(result["warnings"])
    again = host.converge(**wanted)
    assert (again["changed"], again["restart_required"]) == (False, True)
    web.obeys = lambda alias: True
    last = host.converge(**wanted)
    assert (last["changed"], last["pending"]) == (True, [])


def test_a_refusal_by_the_guest_is_told_at_once(host):
    host.converge(disks=[ROOT, DATA])
    web = host.guest()

    def refuses(alias):
        for event, heard, answer in host.handles.values():
            if event == 22:
                heard(host, web, alias, answer)
        return False

    web.obeys = refuses
    result = host.converge(disks=[ROOT], unmanaged_devices="prune", on_unplug_timeout=3600)
    assert result["plan"][0]["why"] == "the guest refuses to let go of it"
    assert host.handles == {}


def test_a_device_of_somebody_else_stays(host):
    host.converge(disks=[ROOT], networks=[LAN])
    foreign = xml.parse("<interface type='network'><source network='x'/><alias name='ua-foreign'/></interface>")
    for root in (host.guest().config, host.guest().live):
        root.find("devices").append(xml.parse(xml.dump(foreign)))
    before = host.state()
    assert host.converge(disks=[ROOT], networks=[LAN], unmanaged_devices="prune")["plan"] == []
    assert host.state() == before


def test_next_boot_leaves_the_running_guest_alone(host):
    host.converge(disks=[ROOT], networks=[LAN], cdroms=[{"id": "cd"}])
    running_before = xml.dump(host.guest().live)
    bigger = {"id": "root", "size": "2GiB"}
    wanted = {"disks": [bigger, DATA], "networks": [{"id": "lan", "network": "other"}], "apply": "next_boot"}
    result = host.converge(**wanted)
    assert {when for path, when in paths(result["plan"]) if not path.endswith("data.size")} == {"next_boot"}
    devices = [xml.dump(xml.parse(text).find("devices")) for text in (running_before, xml.dump(host.guest().live))]
    assert devices[0] == devices[1]
    assert {each["path"] for each in result["pending"]} == {"networks.lan.network", "disks.data", "disks.root.size"}
    assert host.converge(**wanted)["changed"] is False
    host.converge(**wanted | {"state": "stopped", "shutdown": {"timeout": 1}})
    result = host.converge(**wanted)
    assert result["pending"] == [] and host.files[f"{host.folder}/web-root.qcow2"] == 2 * GIB


def test_restart_cycles_the_power_only_for_what_waits(host):
    host.converge(memory="1GiB", disks=[ROOT])
    assert host.converge(memory="1GiB", disks=[ROOT, DATA], apply="restart")["pending"] == []
    assert host.guest().starts == 1, "all of it could be done live"
    check = host.converge(check=True, memory="2GiB", apply="restart")
    result = host.converge(memory="2GiB", apply="restart")
    assert check["plan"] == result["plan"]
    assert [(change["path"], change["to"]) for change in result["plan"]] == [
        ("memory", "2GiB"),
        ("state", "stopped"),
        ("state", "running"),
    ]
    assert result["plan"][1]["why"] == "memory would wait otherwise"
    assert (result["restart_required"], host.guest().starts) == (False, 2)
    assert host.converge(memory="2GiB", apply="restart")["changed"] is False
    assert host.guest().starts == 2


def test_restart_cycles_the_power_for_what_the_guest_refused(host):
    host.converge(disks=[ROOT, DATA])
    web = host.guest()
    web.obeys = lambda alias: False
    wanted = {"disks": [ROOT], "unmanaged_devices": "prune", "on_unplug_timeout": 1, "apply": "restart"}
    result = host.converge(**wanted)
    assert [(change["path"], change["to"]) for change in result["plan"]] == [
        ("disks.data", None),
        ("state", "stopped"),
        ("state", "running"),
    ]
    assert (result["pending"], web.starts) == ([], 2)
    assert host.converge(**wanted)["changed"] is False


def test_restart_leaves_a_paused_guest_paused(host):
    host.converge(state="paused", memory="1GiB")
    result = host.converge(state="present", memory="2GiB", apply="restart")
    assert [change["to"] for change in result["plan"]][1:] == ["running", "stopped", "paused"]
    assert host.guest().paused and result["pending"] == []


def test_what_still_waits_after_a_power_cycle_is_an_error(host):
    host.converge(memory="1GiB")
    web = host.guest()
    start = web.createWithFlags

    def stubborn(flags):
        start(flags)
        web.live.find("memory").text = "4096"

    web.createWithFlags = stubborn
    with pytest.raises(PhyllomeError, match="memory did not stick") as caught:
        host.converge(memory="2GiB", apply="restart")
    assert caught.value.facts["left"][0]["why"] == "it still waits after a power cycle"


def test_a_guest_that_could_not_start_again_is_not_shut_down(host):
    iso = host.folder / "a.iso"
    iso.touch()
    host.files[str(iso)] = 0
    host.converge(memory="1GiB", cdroms=[{"id": "cd", "path": str(iso)}])
    iso.unlink()
    with pytest.raises(PhyllomeError, match="this host has no such file"):
        host.converge(memory="2GiB", apply="restart")
    assert host.guest().starts == 1 and host.guest().live is not None


FIRST = {"disks": [ROOT], "networks": [LAN], "memory": "1GiB"}
THEN = {
    "disks": [{"id": "root", "size": "2GiB"}, DATA, SCSI],
    "networks": [WAN],
    "cdroms": [{"id": "cd"}],
    "memory": "2GiB",
    "autostart": True,
    "unmanaged_devices": "prune",
    "apply": "restart",
    "on_unplug_timeout": 1,
}


@pytest.mark.parametrize("obedient", [True, False])
def test_killed_anywhere_and_run_again_it_is_as_if_it_had_not_been_killed(tmp_path, monkeypatch, obedient):
    def prepared(name):
        folder = tmp_path / name
        folder.mkdir()
        made = Hypervisor(folder, monkeypatch)
        made.converge(**FIRST)
        made.guest().obeys = lambda alias: obedient
        made.places = 0
        return made

    def seen(host):
        text = str(host.state()["guests"]) + str(sorted(host.files.items()))
        return text.replace(str(host.folder), "")

    whole = prepared("whole")
    whole.converge(**THEN)
    places = whole.places
    assert places > 15
    for place in range(1, places + 1):
        host = prepared(str(place))
        host.kill_at = place
        with pytest.raises(Killed):
            host.converge(**THEN)
        host.kill_at = 0
        host.converge(**THEN)
        assert seen(host) == seen(whole), f"killed at {place} of {places}"
        assert host.converge(**THEN)["changed"] is False


def test_a_new_guest_that_was_killed_anywhere_is_finished(tmp_path, monkeypatch):
    wanted = {"disks": [ROOT, SCSI], "networks": [LAN], "autostart": True}
    place, ended = 0, False
    while not ended:
        place += 1
        folder = tmp_path / str(place)
        folder.mkdir()
        host = Hypervisor(folder, monkeypatch)
        host.kill_at = place
        try:
            host.converge(**wanted)
            ended = True
        except Killed:
            host.kill_at = 0
            assert host.converge(**wanted)["guest"]["state"] == "running"
            assert host.converge(**wanted)["changed"] is False
            assert len(host.files) == 2
    assert place > 8


# Fields


def test_a_running_guest_is_told_of_its_fields(host):
    first = {"memory": "2GiB", "vcpus": {"current": 2, "maximum": 4}, "disks": [ROOT], "networks": [LAN]}
    host.converge(**first)
    slow = {**ROOT, "iotune": {"total_iops_sec": 500}}
    then = {
        "memory": {"size": "2GiB", "current": "1GiB"},
        "vcpus": {"current": 4, "maximum": 4},
        "disks": [slow],
        "networks": [{**LAN, "link": "down"}],
        "metadata": {"title": "Told"},
    }
    result = host.converge(**first | then)
    assert {when for dummy, when in paths(result["plan"])} == {"live"}
    live = host.guest().live
    assert (live.findtext("currentMemory"), live.find("vcpu").get("current", "4")) == (str(1024**2), "4")
    assert live.findtext("devices/disk/iotune/total_iops_sec") == "500"
    assert live.find("devices/interface/link").get("state") == "down"
    assert live.findtext("title") == "Told"
    assert (result["pending"], host.guest().starts) == ([], 1)
    assert host.converge(**first | then)["changed"] is False


def test_memory_that_the_guest_does_not_give_back_is_told(host):
    host.converge(memory="2GiB")
    host.guest().balloon = False
    wanted = {"memory": {"size": "2GiB", "current": "1GiB"}, "on_unplug_timeout": 1}
    result = host.converge(**wanted)
    assert paths(result["plan"]) == [("memory.current", "next_boot")]
    assert any("memory.current waits for a power cycle" in text for text in result["warnings"])
    assert result["pending"] == [], "a balloon is never at rest"
    assert host.converge(**wanted)["changed"] is False


PLUGGABLE = {"size": "1GiB", "maximum": "4GiB", "virtio_mem": {"size": "1GiB", "requested": "0"}}


def virtio_mem(requested):
    return {"memory": {**PLUGGABLE, "virtio_mem": {"size": "1GiB", "requested": requested}}}


def test_memory_is_plugged_while_the_guest_runs(host):
    host.converge(memory=PLUGGABLE)
    before = host.guest().config.findtext("memory")
    result = host.converge(**virtio_mem("256MiB"))
    assert paths(result["plan"]) == [("memory.virtio_mem.requested", "live")]
    web = host.guest()
    found = [root.find("devices/memory/target") for root in (web.live, web.config)]
    assert [each.findtext("requested") for each in found] == [str(256 * 1024)] * 2
    assert found[0].findtext("current") == str(256 * 1024)
    assert (result["pending"], web.starts, web.config.findtext("memory")) == ([], 1, before)
    assert host.converge(**virtio_mem("256MiB"))["changed"] is False


def test_plugged_memory_does_not_count_for_the_balloon(host):
    host.converge(memory=PLUGGABLE)
    then = {"memory": {**virtio_mem("256MiB")["memory"], "current": "512MiB"}}
    result = host.converge(**then)
    assert set(paths(result["plan"])) == {("memory.virtio_mem.requested", "live"), ("memory.current", "live")}
    assert host.guest().live.findtext("currentMemory") == str(768 * 1024)
    assert host.converge(**then)["changed"] is False


def test_memory_that_the_guest_does_not_plug_is_told(host):
    host.converge(memory=PLUGGABLE)
    host.guest().balloon = False
    result = host.converge(**virtio_mem("256MiB"), on_unplug_timeout=1)
    assert paths(result["plan"]) == [("memory.virtio_mem.requested", "next_boot")]
    assert "the guest did not do it within" in result["plan"][0]["why"]


@pytest.mark.parametrize("first", [{"size": "1GiB", "maximum": "8GiB"}, PLUGGABLE])
def test_memory_beyond_what_the_guest_was_started_with_waits(host, first):
    host.converge(memory={**first, "maximum": "8GiB"})
    then = {"size": "1GiB", "maximum": "8GiB", "virtio_mem": {"size": "2GiB", "requested": "2GiB"}}
    result = host.converge(memory=then)
    assert {when for dummy, when in paths(result["plan"])} == {"next_boot"}
    assert result["restart_required"] and "updateDevice" not in host.told
    assert host.converge(memory=then)["changed"] is False


def test_a_running_guest_is_pinned_elsewhere(host):
    pins = {"current": 2, "iothreads": 1, "pins": {"0": "0", "1": "1"}, "emulator_pins": "0"}
    host.converge(vcpus={**pins, "iothread_pins": {"1": "0"}})
    then = {**pins, "pins": {"1": "2-4,^3"}, "emulator_pins": "0-1", "iothread_pins": {"1": "3"}}
    result = host.converge(vcpus=then)
    assert paths(result["plan"]) == [(f"vcpus.{name}", "live") for name in ("pins", "iothread_pins", "emulator_pins")]
    tuned = host.guest().live.find("cputune")
    assert {(each.tag, each.get("cpuset")) for each in tuned} == {
        ("vcpupin", "0"),
        ("vcpupin", "2,4"),
        ("iothreadpin", "3"),
        ("emulatorpin", "0,1"),
    }
    assert (result["pending"], host.guest().starts) == ([], 1)
    assert host.converge(vcpus=then)["changed"] is False


def test_pins_that_the_running_guest_lacks_are_made_up_for(host):
    host.converge(vcpus={"current": 2, "pins": {"0": "0", "1": "1"}})
    host.guest().live.find("cputune/vcpupin[@vcpu='1']").set("cpuset", "3")
    result = host.converge(vcpus={"pins": {"1": "1"}})
    assert paths(result["plan"]) == [("vcpus.pins", "live")]
    assert host.guest().live.find("cputune/vcpupin[@vcpu='1']").get("cpuset") == "1"


def test_more_vcpus_than_the_maximum_wait(host):
    host.converge(vcpus={"current": 2, "maximum": 4})
    result = host.converge(vcpus={"current": 8, "maximum": 8})
    assert {when for dummy, when in paths(result["plan"])} == {"next_boot"}
    assert host.converge(vcpus={"current": 8, "maximum": 8})["changed"] is False


# Sockets


def test_virtiofs_waits_where_libvirt_has_no_control_groups(host, monkeypatch):
    monkeypatch.setattr(read_host, "cgroups", lambda: False)
    (host.folder / "share").mkdir()
    wanted = {"memory": {"size": "1GiB", "shared": True}}
    host.converge(**wanted)
    more = {**wanted, "filesystems": [{"id": "share", "source": str(host.folder / "share")}]}
    result = host.converge(**more)
    assert {change["why"] for change in result["plan"]} == {
        "libvirt has no control groups on this host, and its daemon would die of it (seen with 9.0)"
    }
    assert [each["path"] for each in result["pending"]] == ["filesystems.share"] and "attachDevice" not in host.told
    monkeypatch.setattr(read_host, "cgroups", lambda: True)
    assert host.converge(**more)["pending"] == []
    assert "attachDevice" in host.told


def machine(*devices):
    return xml.parse(f"<domain><devices>{''.join(devices)}</devices></domain>")


PORT = "<controller type='pci' index='{}' model='pcie-root-port'>{}</controller>"


def test_ports_that_take_nothing_do_not_count():
    ports = [PORT.format(1, ""), PORT.format(2, "<target hotplug='off'/>"), PORT.format(3, "")]
    card = "<interface><address type='pci' bus='0x03' slot='0x00'/></interface>"
    assert live.slots_free(machine("<controller type='pci' index='0' model='pcie-root'/>", *ports, card)) == 1


def test_an_old_machine_has_slots_on_its_one_bus():
    functions = [
        f"<controller><address type='pci' bus='0x00' slot='0x01' function='0x{n}'/></controller>" for n in (1, 2)
    ]
    root = "<controller type='pci' index='0' model='pci-root'/>"
    assert live.slots_free(machine(root, *functions)) == 30


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("<disk><target bus='usb'/></disk>", "the running guest has no usb controller"),
        ("<disk><target bus='virtio'/></disk>", "the running guest has no free PCI port left"),
        ("<disk><target bus='scsi'/></disk>", "the running guest has no free PCI port left"),
        ("<interface><model type='rtl8139'/></interface>", "cannot be added to a running guest"),
        ("<sound model='ich9'/>", "cannot be added to a running guest"),
        ("<filesystem><driver type='virtiofs'/></filesystem>", "memory is not shared, which virtiofs needs"),
        ("<channel><target type='virtio'/></channel>", "no virtio-serial controller"),
    ],
)
def test_what_does_not_fit_says_why(device, why):
    assert why in live.Room(machine()).take(xml.parse(device))


def test_a_scsi_controller_takes_a_port_once():
    room = live.Room(machine(PORT.format(1, "")))
    disk = xml.parse("<disk><target bus='scsi'/></disk>")
    assert [room.take(disk), room.take(disk), room.slots] == ["", "", 0]


def test_check_mode_judges_raw_xml_by_libvirts_schema(host, monkeypatch):
    raw = {"devices": {"root": '<disk><driver eror_policy="stop"/></disk>'}}
    monkeypatch.setattr(converge.xml, "violation", lambda root, schema: "Invalid attribute eror_policy")
    with pytest.raises(PhyllomeError, match="cannot be defined: xml: Invalid attribute"):
        host.converge(disks=[ROOT], xml=raw, check=True)
    assert host.domains == []
    assert host.converge(disks=[ROOT], check=True)["changed"], "without raw XML nothing is asked"
