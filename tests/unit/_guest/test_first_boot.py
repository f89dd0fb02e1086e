# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seeds of cloud-init, installations and waiting, on a libvirt in memory that can be killed anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import types
import typing

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import virt, xml
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._guest import (
    converge,
    install,
    media,
    read_first,
    seed,
    spec,
    storage,
    wait,
)

from . import fake
from .fake import Hypervisor, Killed

ROOT = {"id": "root", "size": "1GiB"}
START = fake.Domain.createWithFlags
UUID = "3fa85f64-5717-4562-b3fc-2c963f66afa6"


class Host(Hypervisor):
    """A host whose guests install a system when their definition is an installer's."""

    def __init__(self, folder, monkeypatch):
        super().__init__(folder, monkeypatch)
        self.written, self.installs, self.fails, self.done = False, True, False, False
        monkeypatch.setattr(media, "program", lambda: ("xorriso",))
        monkeypatch.setattr(media, "create", self._medium)
        monkeypatch.setattr(read_first, "_written", lambda disk, key: self.written)
        monkeypatch.setattr(wait, "cloud_init_done", lambda found: self.done)
        monkeypatch.setattr(wait, "_news", lambda connection, found: contextlib.nullcontext(threading.Event()))
        monkeypatch.setattr(fake.Domain, "state", self._state)
        monkeypatch.setattr(fake.Domain, "createWithFlags", self._start(START))

    def _medium(self, path, medium):
        with self.step("medium.create"):
            pathlib.Path(path).write_text(str(dict(medium.files)))
            self.files[path] = 1

    @staticmethod
    def _state(found):
        return (5, found.reason) if found.live is None else (3, 1) if found.paused else (1, 1)

    def _start(self, original):
        def start(found, flags):
            try:
                original(found, flags)
            finally:  # a guest goes on when the module is killed
                if found.live is not None and found.config.findtext("on_reboot") == "destroy" and self.installs:
                    found.live, found.reason = None, 3 if self.fails else 1
                    self.written = not self.fails

        return start


@pytest.fixture(autouse=True)
def reason(monkeypatch):
    monkeypatch.setattr(fake.Domain, "reason", 0, raising=False)


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def drive(host, name):
    found = host.guest().config.find(f"devices/disk/alias[@name='ua-{name}']/..")
    if found is None:
        return None
    source = found.find("source")
    return "" if source is None else source.get("file")


def paths(result):
    return [(change["path"], change["from"], change["to"]) for change in result["plan"]]


# Seeds

SEED = {"user_data": {"password": "secret"}}


def test_a_new_guest_gets_a_seed_that_says_what_is_in_it(host):
    check = host.converge(disks=[ROOT], cloud_init=SEED, check=True)
    assert host.told == []
    made = host.converge(disks=[ROOT], cloud_init=SEED)
    assert made["plan"] == check["plan"]
    assert "secret" not in json.dumps(made)
    path = drive(host, "cloud-init")
    assert path in host.files
    assert path.startswith(f"{host.folder}/web-cloud-init-")
    disk = host.guest().config.find("devices/disk/alias[@name='ua-cloud-init']/..")
    assert disk.find("target").get("bus") == "scsi", "kernels for clouds have no driver for SATA"
    assert host.guest().config.find("devices/controller[@type='scsi']").get("model") == "virtio-scsi"
    assert disk.find("source").get("startupPolicy") == "optional"
    assert host.converge(disks=[ROOT], cloud_init=SEED)["changed"] is False
    assert host.converge(disks=[ROOT])["changed"] is False, "what is not declared is not managed"
    pruned = host.converge(disks=[ROOT], cdroms=[], unmanaged_devices="prune")
    assert pruned["changed"] is False, "the drive is none of the declared ones"


def test_windows_gets_the_drive_that_it_knows(host):
    host.converge(profile="generic", disks=[ROOT], cloud_init=SEED)
    assert host.guest().config.find("devices/disk[@device='cdrom']/target").get("bus") == "sata"


def test_another_content_is_reported_and_only_on_demand_a_new_instance(host):
    host.converge(disks=[ROOT], cloud_init=SEED)
    first = drive(host, "cloud-init")
    other = {"user_data": "#!/bin/sh\n"}
    told = host.converge(disks=[ROOT], cloud_init=other)
    assert (told["changed"], drive(host, "cloud-init")) == (False, first)
    assert any("on_change: reseed" in text for text in told["warnings"])
    made = host.converge(disks=[ROOT], cloud_init={**other, "on_change": "reseed"})
    second = drive(host, "cloud-init")
    assert ("cloud_init.seed", first, None) in paths(made)
    assert (first in host.files, second in host.files) == (False, True)
    source = host.guest().live.find("devices/disk/alias[@name='ua-cloud-init']/../source")
    assert source.attrib == {"file": second, "startupPolicy": "optional"}, "a guest that runs is moved without it, too"
    assert host.converge(disks=[ROOT], cloud_init={**other, "on_change": "reseed"})["changed"] is False


def test_a_seed_that_has_done_its_work_is_taken_out_for_good(host):
    wanted = {"disks": [ROOT], "cloud_init": {**SEED, "keep_seed": "until_done"}}
    host.converge(**wanted)
    channel = host.guest().live.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
    channel.set("state", "connected")
    assert host.converge(**wanted)["changed"] is False
    host.done = True
    assert host.converge(**wanted)["changed"] is True
    assert drive(host, "cloud-init") == ""
    assert not [path for path in host.files if "cloud-init" in path]
    assert host.converge(**wanted)["changed"] is False


def test_a_seed_that_did_not_come_along_is_made_again(host):
    host.converge(disks=[ROOT], cloud_init=SEED)
    path = drive(host, "cloud-init")
    host._remove(path)
    source = host.guest().live.find("devices/disk/alias[@name='ua-cloud-init']/../source")
    source.getparent().remove(source)
    host.converge(disks=[ROOT], cloud_init=SEED)
    assert path in host.files
    assert host.guest().live.find("devices/disk/alias[@name='ua-cloud-init']/../source").get("file") == path


def test_a_seed_goes_with_its_guest_whatever_becomes_of_the_disks(host):
    host.converge(disks=[ROOT], cloud_init=SEED)
    host.converge(state="absent")
    assert [path.rsplit("/", 1)[1] for path in host.files] == ["web-root.qcow2"]


def test_a_seed_needs_a_program_and_a_place(host, monkeypatch):
    monkeypatch.setattr(media, "program", lambda: None)
    with pytest.raises(PhyllomeError, match="no program that makes CD images.*xorriso"):
        host.converge(disks=[ROOT], cloud_init=SEED)
    monkeypatch.setattr(media, "program", lambda: ("xorriso",))
    with pytest.raises(PhyllomeError, match="no place for its CD image"):
        host.converge(disks=[{**ROOT, "pool": "nowhere"}], cloud_init=SEED)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"user_data": "users: []"}, "does not begin as user data does"),
        ({"user_data": ["users"]}, "neither a text nor a mapping"),
        ({"user_data": "#cloud-config\n\ud800"}, "is no text"),
        ({"network_config": {"ethernets": {}}}, "has no version"),
        ({"meta_data": {"instance-id": 7}}, "instance-id 7 is no name"),
    ],
)
def test_what_cloud_init_would_ignore_is_refused_without_being_shown(given, said):
    with pytest.raises(PhyllomeError, match=said) as caught:
        spec.accept({"name": "web", "cloud_init": given})
    assert "users" not in str(caught.value)


def test_the_instance_is_the_guest_and_the_content():
    def meta(name="web", uuid=UUID, **options):
        made = seed.medium(seed.accept(options), name, uuid)
        assert made.label == "cidata"
        return json.loads(made.files["meta-data"]), made

    first, made = meta(user_data={"a": 1, "b": 2})
    again, twin = meta(user_data={"b": 2, "a": 1})
    assert (first, made.digest, made.file("web")) == (again, twin.digest, twin.file("web"))
    assert made.files["user-data"].startswith(b"#cloud-config\n{")
    assert first["local-hostname"] == "web"
    assert first["instance-id"].startswith(UUID)
    instances = {first["instance-id"]}
    for other in (
        {"user_data": {"a": 2}},
        {"uuid": "2fa85f64-5717-4562-b3fc-2c963f66afa6", "user_data": {"a": 1, "b": 2}},
        {"user_data": {"a": 1, "b": 2}, "network_config": {"version": 2}},
        {"user_data": {"a": 1, "b": 2}, "meta_data": {"instance-id": "mine"}},
    ):
        instances.add(meta(**other)[0]["instance-id"])
    assert len(instances) == 5
    assert "secret" not in repr(seed.accept(SEED)) + repr(meta(**SEED)[1])


def test_the_drives_of_ours_are_taken():
    for name in media.RESERVED:
        with pytest.raises(PhyllomeError, match="is taken"):
            spec.accept({"name": "web", "cdroms": [{"id": name}]})


# CD images


def test_an_image_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    path = str(tmp_path / "a.iso")
    made = media.Medium("cloud-init", "cidata", {"user-data": b"secret"})
    seen = []

    def program(argv, **more):
        folder = pathlib.Path(argv[-1])
        seen.append((folder.stat().st_mode & 0o777, (folder / "user-data").read_bytes()))
        if len(seen) == 1:
            raise PhyllomeError("a", "b", "c")
        pathlib.Path(argv[argv.index("-o") + 1]).write_bytes(b"iso")

    monkeypatch.setattr(media, "run", program)
    monkeypatch.setattr(media, "program", lambda: ("xorriso",))
    with pytest.raises(PhyllomeError):
        media.create(path, made)
    assert list(tmp_path.iterdir()) == []
    media.create(path, made)
    assert seen == [(0o700, b"secret")] * 2
    assert [(found.name, found.stat().st_mode & 0o777) for found in tmp_path.iterdir()] == [("a.iso", 0o600)]
    with pytest.raises(PhyllomeError, match="Cannot make"):
        media.create(path, made)


def test_only_files_of_this_guest_and_medium_are_stale(tmp_path):
    ours = media.Medium("cloud-init", "cidata", {"user-data": b"a"}).file("web")
    for name in (ours, "web-cloud-init-0123456789ab.iso", "web2-cloud-init-0123456789ab.iso", "web-root.qcow2"):
        (tmp_path / name).touch()
    found = media.stale(str(tmp_path), "web", "cloud-init", (str(tmp_path / ours),))
    assert found == (str(tmp_path / "web-cloud-init-0123456789ab.iso"),)
    assert media.stale("/nowhere", "web", "cloud-init", ()) == ()


def test_an_empty_disk_is_told_from_a_written_one(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    assert read_first._written(str(disk), None) is False
    assert read_first._written(None, None) is None
    disk.touch()
    told = [{"data": False, "zero": True}, {"data": True, "zero": False}]
    monkeypatch.setattr(read_first, "run", lambda argv, stdin="": json.dumps(told))
    assert read_first._written(str(disk), None) is True
    del told[1]
    assert read_first._written(str(disk), None) is False


# Installations

KERNEL = {"kernel": "/k", "initrd": "/i", "cmdline": "quiet", "kickstart": "rootpw secret"}


@pytest.fixture
def tree(monkeypatch):
    real = os.path.isfile
    monkeypatch.setattr(
        read_first.os.path, "isfile", lambda path: path in ("/k", "/i", "/iso") or "pxeboot" in path or real(path)
    )
    monkeypatch.setattr(media, "size", lambda tree: 1024)


def test_a_system_is_installed_and_the_guest_then_has_nothing_of_it(host, tree):
    wanted = {"disks": [ROOT], "install": KERNEL}
    check = host.converge(**wanted, check=True)
    made = host.converge(**wanted)
    assert check["plan"] == made["plan"]
    assert ("install", "begun", "done") in paths(made)
    assert "secret" not in json.dumps(made)
    assert made["guest"]["state"] == "running"
    config = host.guest().config
    assert [config.find(path) for path in ("os/kernel", "os/cmdline", "on_reboot")] == [None] * 3
    assert config.findall("devices/disk[@device='cdrom']") == []
    assert list(host.files) == [f"{host.folder}/web-root.qcow2"]
    assert host.guest().starts == 2
    assert host.converge(**wanted)["changed"] is False
    host.guest().live = None
    assert paths(host.converge(**wanted)) == [("state", "stopped", "running")]
    assert host.guest().starts == 3, "an installed guest only starts"


@pytest.mark.parametrize(("memory", "told"), [("768MiB", True), ("1GiB", False)])
def test_an_installer_with_little_memory_is_warned_of(host, tree, memory, told):
    made = host.converge(disks=[ROOT], install=KERNEL, memory=memory, check=True)
    assert any(f"has {memory} of memory for its installer" in text for text in made["warnings"]) is told


def test_an_installer_from_an_iso_image_comes_after_the_disks(host, tree):
    host.installs = False
    host.files["/iso"] = 512
    host.converge(disks=[ROOT], install={"iso": "/iso", "kickstart": "x", "timeout": 0})
    orders = {
        found.get("device"): found.find("boot").get("order")
        for found in host.guest().config.findall("devices/disk")
        if found.find("boot") is not None
    }
    assert orders == {"disk": "1", "cdrom": "2"}
    assert host.guest().config.find("os/kernel") is None
    assert host.guest().config.findtext("on_reboot") == "destroy"


def test_a_tree_is_put_on_a_cd_and_its_kernel_told_where(host, tree):
    host.installs = False
    host.converge(disks=[ROOT], install={"location": "/srv/fedora", "kickstart": "x", "cmdline": "a", "timeout": 0})
    system = host.guest().config.find("os")
    assert system.findtext("kernel") == "/srv/fedora/images/pxeboot/vmlinuz"
    assert system.findtext("cmdline") == "inst.stage2=hd:LABEL=OEMDRV a"
    made = install.medium(install.accept({"location": "/srv/fedora", "kickstart": "x"}))
    assert (made.label, made.files, made.tree) == ("OEMDRV", {"ks.cfg": b"x"}, "/srv/fedora")


def test_without_waiting_a_later_run_finds_it_installed(host, tree):
    wanted = {"disks": [ROOT], "install": {**KERNEL, "timeout": 0}}
    host.installs = False
    made = host.converge(**wanted)
    assert ("install", None, "begun") in paths(made)
    assert host.guest().starts == 1
    host.guest().live, host.guest().reason, host.written = None, 1, True
    made = host.converge(**wanted)
    assert paths(made)[0] == ("install", "begun", "done")
    assert (host.guest().starts, made["guest"]["state"]) == (2, "running")
    assert host.converge(**wanted)["changed"] is False


def test_an_installer_that_has_ended_at_once_is_not_left_for_later(host, tree):
    made = host.converge(disks=[ROOT], install={**KERNEL, "timeout": 0})
    assert [change for change in paths(made) if change[0] == "install"] == [
        ("install", None, "begun"),
        ("install", "begun", "done"),
    ]
    assert made["guest"]["state"] == "running"


def test_while_it_installs_a_run_that_does_not_wait_changes_nothing(host, tree):
    host.installs = False
    wanted = {"disks": [ROOT], "install": {**KERNEL, "timeout": 0}}
    host.converge(**wanted)
    assert host.converge(**wanted)["changed"] is False


def test_an_installer_that_was_cut_off_starts_again(host, tree):
    host.installs = False
    wanted = {"disks": [ROOT], "install": {**KERNEL, "timeout": 0}}
    host.converge(**wanted)
    host.guest().live, host.guest().reason, host.written = None, 2, True
    host.installs = True
    made = host.converge(disks=[ROOT], install=KERNEL)
    assert any("starts its installer again" in text for text in made["warnings"])
    assert made["guest"]["state"] == "running"
    assert host.guest().starts == 3


def test_an_installer_that_leaves_nothing_is_an_error_and_starts_again(host, tree):
    host.fails = True
    with pytest.raises(PhyllomeError, match="did not install.*crashed"):
        host.converge(disks=[ROOT], install=KERNEL)
    host.fails = False
    assert host.converge(disks=[ROOT], install=KERNEL)["guest"]["state"] == "running"


def test_what_has_something_on_its_disk_is_not_installed(host, tree):
    host.written = True
    host.converge(disks=[ROOT])
    assert host.converge(disks=[ROOT], install=KERNEL)["changed"] is False
    host.guest().live = None
    host.converge(disks=[ROOT], install=KERNEL)
    assert host.guest().config.find("os/kernel") is None


def test_a_disk_that_cannot_be_looked_into_is_not_installed_again(host, tree):
    host.installs = False
    host.converge(disks=[ROOT], install={**KERNEL, "timeout": 0})
    host.guest().live, host.written = None, None
    with pytest.raises(PhyllomeError, match="whether its disk is empty is not known"):
        host.converge(disks=[ROOT], install=KERNEL)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"install": {"kickstart": "x"}}, "nothing to start"),
        ({"install": {"location": "/a", "kernel": "/k"}}, "location and kernel are both given"),
        ({"install": {"location": "/a", "iso": "/b"}}, "location and iso are both given"),
        ({"install": {"iso": "/iso", "cmdline": "quiet"}}, "cmdline is given without kernel"),
        ({"install": {"iso": "/iso", "initrd": "/i"}}, "initrd is given without kernel"),
        ({"install": {"iso": "/iso", "timeout": -1}}, "-1 is too small"),
        ({"install": {"iso": "/iso", "kickstart": " "}}, "kickstart is empty"),
        ({"install": {"iso": "iso"}}, "not a valid path"),
        ({"install": {"iso": "/other"}, "disks": [ROOT]}, "install.iso: /other: this host has no such file"),
        ({"install": {"location": "/other"}, "disks": [ROOT]}, "beside its initrd"),
        ({"install": KERNEL, "disks": [ROOT], "firmware": {"secure_boot": True}}, "firmware with Secure Boot"),
        ({"install": {"iso": "/iso"}}, "no disk to install on"),
        ({"install": {"iso": "/iso"}, "disks": [{"id": "root", "source": {"path": "/iso"}}]}, "has a source"),
    ],
)
def test_what_cannot_install_is_refused(host, tree, monkeypatch, options, said):
    if "/other" in str(options):
        monkeypatch.setattr(read_first.os.path, "isfile", lambda path: False)
    if "disks" not in options:
        monkeypatch.setattr(read_first, "_written", lambda disk, key: None)
    host.files["/iso"] = 512
    with pytest.raises(PhyllomeError, match=said):
        host.converge(**options)
    assert host.told == []


def test_many_are_begun_before_one_of_them_is_waited_for(host, tree, monkeypatch):
    waited = []
    monkeypatch.setattr(wait, "until_off", lambda connection, found, timeout: waited.append((found.name(), *host.told)))
    monkeypatch.setattr(virt, "session", lambda uri, **more: contextlib.nullcontext(host))
    monkeypatch.setattr(
        read_first,
        "_written",
        lambda disk, key: any(found.reason == 1 for found in host.domains if f"/{found.name()}-" in disk),
    )
    names = ["a", "b"]
    given = {
        **dict.fromkeys(spec.ARGUMENTS),
        "uri": "qemu:///system",
        "guests": [{"name": name, "disks": [ROOT], "install": KERNEL} for name in names],
    }
    host.installs = True
    result = converge.converge(given, False)
    assert [each["guest"]["state"] for each in result["results"]] == ["running"] * 2
    assert [name for name, *dummy in waited] == names
    assert waited[0].count("create") == 2, "both run before the first is waited for"


def test_killed_anywhere_it_is_installed_and_seeded_the_next_time(tmp_path, monkeypatch, tree):
    wanted = {"disks": [ROOT], "install": KERNEL, "cloud_init": SEED}
    place, ended = 0, False
    while not ended:
        place += 1
        folder = tmp_path / str(place)
        folder.mkdir()
        host = Host(folder, monkeypatch)
        host.kill_at = place
        try:
            host.converge(**wanted)
            ended = True
        except Killed:
            host.kill_at = 0
            assert host.converge(**wanted)["guest"]["state"] == "running", place
        assert host.converge(**wanted)["changed"] is False, place
        assert sorted(path.rsplit("/", 1)[1][:15] for path in host.files) == ["web-cloud-init-", "web-root.qcow2"]
        marker = xml.dump(host.guest().config)
        assert ('install="done"' in marker, marker.count('made="yes"')) == (True, 2)
    assert place > 15


# Waiting


class Ready:
    """A guest that comes up one rung at every look."""

    def __init__(self, agent=1, address=2, alive=99):
        self.looks, self.agent, self.addr, self.alive = 0, agent, address, alive

    def name(self):
        return "web"

    def state(self):
        self.looks += 1
        return (1 if self.looks < self.alive else 5, 0)

    def XMLDesc(self, flags=0):
        state = "connected" if self.looks > self.agent else "disconnected"
        target = f"<target name='org.qemu.guest_agent.0' state='{state}'/>" if self.agent >= 0 else ""
        return f"<domain><devices><channel>{target}</channel></devices></domain>"

    def interfaceAddresses(self, source):
        return {"eth0": {"addrs": [{"addr": "127.0.0.1"}, {"addr": "192.0.2.7"}]}} if self.looks > self.addr else None


@pytest.fixture
def watched(monkeypatch):
    clock = [0.0]
    library = types.SimpleNamespace(
        libvirtError=fake.LibvirtError,
        VIR_DOMAIN_RUNNING=1,
        VIR_DOMAIN_BLOCKED=2,
        VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE=0,
        VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT=1,
        VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP=2,
    )
    event = types.SimpleNamespace(wait=lambda left: clock.__setitem__(0, clock[0] + left), clear=lambda: None)
    monkeypatch.setattr(virt, "libvirt", library)
    monkeypatch.setattr(wait, "_news", lambda connection, found: contextlib.nullcontext(event))
    monkeypatch.setattr(wait.time, "monotonic", lambda: clock[0])
    return clock


def climb(found, *rungs, **more):
    return wait.until_ready(None, found, wait.accept({"for": list(rungs), **more}))


def test_rungs_are_climbed_in_order_with_what_they_stand_on(watched, monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append(address)
        if len(asked) == 1:
            raise ConnectionRefusedError(111, "Connection refused")
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(wait, "cloud_init_done", lambda found: True)
    ready = climb(Ready(), "port", "cloud_init", port=80)
    assert list(ready) == ["agent", "address", "cloud_init", "port"]
    assert asked == [("192.0.2.7", 80)] * 2


@pytest.mark.parametrize(
    ("found", "rung", "said"),
    [
        (Ready(agent=1, address=999), "address", "not ready after 60 s: neither its agent.*next was address"),
        (Ready(agent=999), "agent", "its agent is not connected.*qemu-guest-agent"),
        (Ready(agent=-1), "agent", "cannot have an agent"),
        (Ready(address=999, alive=3), "address", "stopped running while it was waited for"),
    ],
)
def test_who_is_not_ready_says_how_far_it_came(watched, found, rung, said):
    with pytest.raises(PhyllomeError, match=said) as caught:
        climb(found, "agent", rung, timeout=60)
    if "reached" in caught.value.facts:
        assert caught.value.facts["reached"][0] == "running"


def test_cloud_init_is_asked_for_its_result(monkeypatch):
    answers: list[typing.Any] = []

    def agent(found, command, **arguments):
        if command != "guest-file-open":
            return {}
        if isinstance(answers[0], Exception):
            raise answers[0]
        return 7

    monkeypatch.setattr(virt, "libvirt", types.SimpleNamespace(libvirtError=fake.LibvirtError))
    monkeypatch.setattr(virt, "agent", agent)
    monkeypatch.setattr(virt, "agent_read", lambda found, handle: answers[0])

    def asked(answer):
        answers[:] = [answer]
        return wait.cloud_init_done(Ready())

    assert asked('{"v1": {"datasource": "DataSourceNoCloud", "errors": []}}') is True
    assert asked('{"v1": {"data') is False
    assert asked(fake.LibvirtError("failed to open file: No such file or directory")) is False
    with pytest.raises(PhyllomeError, match="done, with 1 errors: boom"):
        asked('{"v1": {"errors": ["boom"]}}')
    with pytest.raises(PhyllomeError, match="may not read files"):
        asked(fake.LibvirtError("Command guest-file-open has been disabled"))
    with pytest.raises(fake.LibvirtError):
        asked(fake.LibvirtError("Guest agent is not responding"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"for": []}, "wait.for is empty"),
        ({"for": ["agent"], "timeout": 0}, "0 is too small"),
        ({"for": ["port"], "port": 70000}, "70000 is no TCP port"),
        ({"for": ["agent"], "port": 22}, "has no port"),
        ({"for": ["ready"]}, "options are not valid"),
        ({"timeout": 5}, "options are not valid"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(given, said):
    with pytest.raises(PhyllomeError, match=said):
        spec.accept({"name": "web", "wait": given})


def test_who_still_runs_is_not_installed(watched):
    found = types.SimpleNamespace(name=lambda: "web", isActive=lambda: True)
    with pytest.raises(PhyllomeError, match="not installed after 60 s.*Run again to wait on"):
        wait.until_off(None, found, 60)


def test_free_space_is_known_before_a_folder_is_made(tmp_path, monkeypatch):
    asked = []
    real = os.statvfs

    def statvfs(path):
        asked.append(path)
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert storage.free(str(tmp_path / "a" / "b")) > 0
    assert asked == [str(tmp_path)]
