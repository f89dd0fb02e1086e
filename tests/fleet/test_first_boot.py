"""A guest's first boot: installed by a kernel of its own, seeded for cloud-init, waited for; and guests of a user."""

from __future__ import annotations

import json
import pathlib
import time
import typing as t

import pytest

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import Site
from ansible_collections.phyllome.virt.tests.lab import linux
from ansible_collections.phyllome.virt.tests.lab.host import Host

SHARE = {"id": "share", "source": "/srv/share"}
PASSWORD = "hunter2-is-not-shown"
WORDS = "console=ttyS0 quiet"
TREE = "/srv/tree"
BOOT = f"{TREE}/images/pxeboot"


@pytest.fixture(scope="module")
def alpha(site: Site) -> t.Iterator[Host]:
    """A host with a kernel and an initrd, and with the tree of a distribution that is made of them."""
    host = site.fleet.host("alpha")
    for name in ("vmlinuz", "initrd"):
        host.put(linux.images() / name, f"/srv/{name}")
    host.run(["sh", "-ec", f"mkdir -p {BOOT}; cp /srv/vmlinuz {BOOT}; cp /srv/initrd {BOOT}/initrd.img"])
    yield host
    site.remove("installed", "seeded")


def ran(site: Site, arguments: dict[str, t.Any], *flags: str, ansible: bool = False) -> dict[str, t.Any]:
    result = (site.ansible if ansible else site.module)("phyllome_vm", "alpha", arguments, *flags)
    assert not result.get("failed"), result["msg"]
    assert PASSWORD not in json.dumps(result)
    return result


def small(name: str, **more: t.Any) -> dict[str, t.Any]:
    return {
        "name": name,
        "profile": "legacy",
        "memory": "128MiB",
        "vcpus": 1,
        "disks": [{"id": "root", "size": "64MiB"}],
        "graphics": {"type": "none"},
        **more,
    }


def until(what: str, true: t.Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def files(host: Host, guest: str) -> set[str]:
    return {name for name in host.run(["ls", "/var/lib/libvirt/images"]).stdout.split() if name.startswith(guest)}


def test_a_system_is_installed_once_whatever_is_cut_off(site: Site, alpha: Host) -> None:
    install = {"location": TREE, "cmdline": f"{WORDS} install reboot", "kickstart": f"rootpw {PASSWORD}"}
    later = small("installed", install={**install, "timeout": 0})
    check = ran(site, later, "--check")
    begun = ran(site, later, ansible=True)  # which shows and logs no password
    assert check["plan"] == begun["plan"]
    (medium,) = (name for name in files(alpha, "installed") if name.endswith(".iso"))
    path = f"/var/lib/libvirt/images/{medium}"
    assert alpha.run(["blkid", "-o", "value", "-s", "LABEL", path]).stdout.strip() == "OEMDRV"
    assert alpha.run(["grep", "-c", PASSWORD, path]).stdout.strip() == "1"

    alpha.run(["virsh", "destroy", "installed"])
    wanted = small("installed", install=install)
    done = ran(site, wanted)
    assert {"path": "install", "from": "begun", "to": "done", "when": "live"} in done["plan"]
    assert done["guest"]["state"] == "running"
    assert files(alpha, "installed") == {"installed-root.qcow2"}
    definition = site.virsh("alpha", "dumpxml", "--inactive", "installed")
    assert not [word for word in ("vmlinuz", "cdrom", "<on_reboot>destroy") if word in definition]
    until("what was installed counts", lambda: counts(site))
    # The installer has written down what it was told, and what is on the CD.
    # (qemu-img counts blocks from the start, those that it skips as well.)
    disk = site.disk("alpha", "installed")
    read = f"qemu-img dd -U -f qcow2 -O raw bs=4k skip=4096 count=4097 if={disk} of=/tmp/told"
    told = alpha.run(["sh", "-ec", f"{read}; tr -d '\\0' < /tmp/told"]).stdout
    assert told.startswith(f"inst.stage2=hd:LABEL=OEMDRV {WORDS} install reboot")
    assert f"rootpw {PASSWORD}" in told
    assert "./images/pxeboot/vmlinuz" in told
    assert ran(site, wanted)["changed"] is False
    assert "hunter2" not in alpha.run(["journalctl", "--no-pager"]).stdout


def counts(site: Site) -> bool:
    try:
        return site.counted("alpha", "installed").count > 0
    except Exception:
        return False


def test_a_guest_is_seeded_and_waited_for(site: Site, alpha: Host) -> None:
    seed = {"user_data": {"password": PASSWORD, "users": [{"name": "root"}]}, "keep_seed": "until_done"}
    guest = small(
        "seeded",
        profile="linux",
        memory={"size": "192MiB", "maximum": "1GiB", "shared": True, "virtio_mem": {"size": "128MiB"}},
        firmware={"type": "bios"},
        networks=[{"id": "lan", "network": "default"}],
        filesystems=[SHARE],
    )
    alpha.run(["mkdir", "-p", SHARE["source"]])
    ran(site, {**guest, "state": "present", "cloud_init": seed})
    # No image of a cloud is small enough to be emulated: this guest starts a kernel of the host.
    definition = site.virsh("alpha", "dumpxml", "--inactive", "seeded")
    boot = f"<kernel>/srv/vmlinuz</kernel><initrd>/srv/initrd</initrd><cmdline>{WORDS}</cmdline></os>"
    alpha.write("/tmp/seeded.xml", definition.replace("</os>", boot))
    alpha.run(["virsh", "define", "/tmp/seeded.xml"])

    for dummy in range(2):
        assert ran(site, {**guest, "state": "present", "cloud_init": seed})["changed"] is False
    wait = {"for": ["agent", "cloud_init", "port"], "timeout": 120}
    ready = ran(site, {**guest, "cloud_init": seed, "wait": wait})
    assert set(ready["ready"]) == {"agent", "address", "cloud_init", "port"}
    assert ready["guest"]["addresses"][0].startswith("192.168.122.")
    assert files(alpha, "seeded") == {"seeded-root.qcow2"}
    assert ran(site, {**guest, "cloud_init": seed, "wait": wait})["changed"] is False

    other = {**seed, "user_data": "#!/bin/sh\n"}
    told = ran(site, {**guest, "cloud_init": other})
    assert told["changed"] is False
    assert "reseed" in " ".join(told["warnings"])
    again = {**guest, "cloud_init": {**other, "on_change": "reseed", "keep_seed": "always"}}
    assert ran(site, again)["changed"]
    assert len(files(alpha, "seeded")) == 2
    assert "seeded-cloud-init" in site.virsh("alpha", "domblklist", "seeded")
    a_linux_guest_takes_and_gives_devices(site, alpha, again)
    a_seeded_guest_moves(site, {**again, "filesystems": []})
    site.remove("seeded")
    assert not files(site.fleet.host("beta"), "seeded")
    assert files(alpha, "seeded") == {"seeded-data.qcow2"}
    alpha.run(["rm", "/var/lib/libvirt/images/seeded-data.qcow2"])


def a_linux_guest_takes_and_gives_devices(site: Site, alpha: Host, guest: dict[str, t.Any]) -> None:
    """PCI devices: the guest sees what comes, and its kernel lets go of what goes."""
    until("the guest writes into the directory", lambda: alpha.run(["ls", "/srv/share"]).stdout.split() == ["seen"])
    another = {**guest, "filesystems": [SHARE, {"id": "another", "source": "/srv"}]}
    waits = ran(site, another, "--check")
    assert {(change["when"], change["why"][:34]) for change in waits["plan"]} == {
        ("next_boot", "libvirt has no control groups on t")
    }
    memory = {**guest["memory"], "current": "176MiB", "virtio_mem": {"size": "128MiB", "requested": "64MiB"}}
    more = {
        **guest,
        "memory": memory,
        "vcpus": {"current": 1, "pins": {"0": "1"}, "emulator_pins": "1"},
        "disks": [*guest["disks"], {"id": "data", "size": "16MiB"}],
        "networks": [*guest["networks"], {"id": "wan", "network": "default"}],
    }
    came = ran(site, more)
    assert {change["when"] for change in came["plan"]} == {"live"} and not came["pending"]
    assert ran(site, more)["changed"] is False
    live = site.virsh("alpha", "dumpxml", "seeded")
    assert "<current unit='KiB'>65536</current>" in live, "the guest has plugged the memory"
    assert "<currentMemory unit='KiB'>245760</currentMemory>" in live, "the guest has given memory back"
    (process,) = alpha.processes("qemu.*guest=seeded")
    assert "Cpus_allowed_list:\t1\n" in pathlib.Path(f"/proc/{process}/status").read_text()
    went = ran(site, {**guest, "filesystems": [], "unmanaged_devices": "prune", "on_unplug_timeout": 60})
    paths = {change["path"]: change["when"] for change in went["plan"]}
    assert paths == {"disks.data": "live", "networks.wan": "live", "filesystems.share": "live"}
    assert not went["pending"] and not went["restart_required"]
    live = site.virsh("alpha", "dumpxml", "seeded")
    assert not [name for name in ("data", "wan", "share") if f"ua-{name}" in live]


def a_seeded_guest_moves(site: Site, guest: dict[str, t.Any]) -> None:
    """The seed is a file of its host: the guest moves without, and gets it again where it is declared."""
    beta = site.fleet.host("beta")
    for name in ("vmlinuz", "initrd"):
        beta.put(linux.images() / name, f"/srv/{name}")
    move = {"name": "seeded", "destination": "beta", "destination_uri": f"qemu+tls://{beta.address}/system"}
    (seed,) = (name for name in files(site.fleet.host("alpha"), "seeded-cloud-init"))
    moved = site.module("vm_migrate", "alpha", move)
    assert not moved.get("failed"), moved["msg"]
    assert moved["mode_used"] == "live"
    assert [word for word in moved["warnings"] if "seeded-data.qcow2 stays where it is" in word]
    assert any(seed in kept for kept in moved["leftovers"])
    assert site.running("seeded") == ["beta"]
    told = site.module("phyllome_vm", "beta", guest)
    assert not told.get("failed"), told["msg"]
    assert told["changed"] and told["guest"]["state"] == "running"
    assert "seeded-cloud-init" in site.virsh("beta", "domblklist", "seeded")
    assert site.module("phyllome_vm", "beta", guest)["changed"] is False
    assert site.module("vm_migrate", "alpha", {**move, "state": "cleaned"})["changed"]


USER_PLAY = """
- hosts: alpha
  gather_facts: false
  roles:
    - role: phyllome.virt.guests
      guests_uri: qemu:///session
      guests_wanted: "{{ wanted }}"
"""


def test_an_ordinary_user_has_guests_without_root(site: Site, alpha: Host) -> None:
    make = "id tester || { useradd -m tester && loginctl enable-linger tester; }; mkdir -p ~tester/.ssh"
    trust = "cp /root/.ssh/authorized_keys ~tester/.ssh/ && chown -R tester: ~tester/.ssh"
    alpha.run(["sh", "-c", f"{make} && {trust}"])
    folder = "/home/tester/.local/share/libvirt/images"
    guest = {
        **site.guest("mine", "alpha"),
        "networks": [{"id": "lan", "user": True}],
        "cloud_init": {"user_data": {"password": PASSWORD}},
        "shutdown": {"timeout": 1, "then": "destroy"},
    }
    del guest["host"]
    play = site.folder / "user.yml"
    play.write_text(USER_PLAY)
    login = ("-e", "ansible_user=tester", "-e", "ansible_become=false")

    def run(**more: t.Any) -> runner.Run:
        wanted = json.dumps({"wanted": [{**guest, **more}]})
        return runner.playbook(play, site.inventory([]), *login, "-e", wanted).ok()

    assert run().changed == {"alpha": 1}
    assert run().changed == {"alpha": 0}
    as_user = [
        "runuser",
        "-u",
        "tester",
        "--",
        "env",
        "XDG_RUNTIME_DIR=/run/user/1000",
        "virsh",
        "-c",
        "qemu:///session",
    ]
    assert alpha.run([*as_user, "list", "--name"]).stdout.split() == ["mine"]
    assert "mine" not in site.guests("alpha")
    made = alpha.run(["ls", folder]).stdout.split()
    assert [name[:15] for name in made] == ["mine-cloud-init", "mine-root.qcow2"]
    until("it counts", lambda: alpha.counter(f"{folder}/mine-root.qcow2").count > 0)
    run(state="absent", delete={"disks": "owned"})
    assert alpha.run(["ls", folder]).stdout == ""
