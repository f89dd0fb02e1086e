"""What binding takes: of ours alone, and on a bare machine against driverctl."""

from __future__ import annotations

import pathlib
import subprocess
import time
import typing as t

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.lab.metal import Machine
from ansible_collections.phyllome.virt.tests.unit._vfio.sim import Sim, capture

Say = t.Callable[[str], None]
DEVICES = ("nic", "vnic", "usb", "far-1", "far-2", "old-1", "old-2", "ssd")


def timed(function: t.Callable[[], dict[str, t.Any]]) -> tuple[float, dict[str, t.Any]]:
    """Seconds, and what it returned."""
    started = time.perf_counter()
    found = function()
    return time.perf_counter() - started, found


def test_our_own_work_where_nothing_is_to_do(tmp_path: pathlib.Path, say: Say) -> None:
    """The machine of the metal lab, captured, on this processor; without Ansible and what it takes to start Python."""
    played = Sim(tmp_path / "root", capture("emulated-q35"))
    devices = ["0000:01:00.0", "0000:09:00.0", "0000:0a:00.0", "0000:06:01.0", "0000:06:02.0"]
    played.do(devices=devices)
    runs = [timed(lambda: played.do(devices=devices)) for dummy in range(3)]
    assert not any(said["changed"] for dummy, said in runs)
    say(f"own work of a call that finds nothing to do: {min(each for each, dummy in runs) * 1000:.0f} ms")


def test_eight_devices_against_driverctl(installed: None, tmp_path: pathlib.Path, say: Say) -> None:
    """Both through Ansible. driverctl knows nothing of groups and looks at nothing that the host uses.

    Both persist; the initramfs, in which driverctl has nothing, is left out.
    """
    with Machine.up() as machine:
        inventory = machine.inventory(tmp_path / "machine.yml")
        places = {each["qdev_id"]: each["address"] for each in machine.devices()}
        addresses = [places[name] for name in DEVICES]
        subprocess.run(["apt-get", "-q", "download", "driverctl"], cwd=tmp_path, check=True, capture_output=True)
        machine.put(next(tmp_path.glob("driverctl*.deb")), "/srv/driverctl.deb")
        machine.run(["dpkg", "-i", "/srv/driverctl.deb"])

        def ours(**more: t.Any) -> dict[str, t.Any]:
            options = {"initramfs": "later", **more}
            said = runner.module("phyllome.virt.vfio_bind", machine.record.name, inventory, options, timeout=1800)
            assert not said.get("failed"), said["msg"]
            return said

        def theirs(command: str) -> dict[str, t.Any]:
            script = {"cmd": f"set -e; for one in {' '.join(addresses)}; do {command}; done"}
            said = runner.module("ansible.builtin.shell", machine.record.name, inventory, script, timeout=1800)
            assert not said.get("failed"), said["msg"]
            return said

        theirs("true")
        bound, said = timed(lambda: ours(devices=addresses, runtime="force"))
        assert [each["result"] for each in said["devices"]] == ["bound"] * len(DEVICES), said
        again, said = timed(lambda: ours(devices=addresses, runtime="force"))
        assert not said["changed"], said
        ours(state="original")
        other, dummy = timed(lambda: theirs("driverctl set-override $one vfio-pci"))
        other_again, dummy = timed(lambda: theirs("driverctl set-override $one vfio-pci"))
        say(f"8 devices, emulated machine: {bound:.1f} s, driverctl {other:.1f} s: {other / bound:.2f} times as fast")
        say(f"nothing to do: {again:.1f} s, driverctl {other_again:.1f} s: {other_again / again:.2f} times as fast")
