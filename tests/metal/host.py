"""A bare machine whose devices are taken from it and given back: what tests ask and tell it."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import subprocess
import time
import typing as t

from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.metal.conftest import Bare

#: Everything that a boot depends on, with owners, modes and contents; times left out.
_FILES = """
find /etc /boot /usr/local /var/lib/phyllome \\( -name phyllome -o -path '/etc/libvirt/*' \\) -prune -o -printf '%M %U:%G %p %l\\n' \\
    2> /dev/null | sort
find /etc /boot /usr/local /var/lib/phyllome -type f -not -path '/etc/libvirt/*' -print0 2> /dev/null | sort -z | xargs -0r sha256sum
"""
_DRIVERS = """
for one in /sys/bus/pci/devices/*; do
    driver=$(readlink "$one/driver" || echo -)
    read -r override < "$one/driver_override"
    echo "${one##*/} ${driver##*/} $override"
done
"""


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine, its devices by their names in the lab, and the modules on it."""

    bare: Bare

    @functools.cached_property
    def places(self) -> dict[str, str]:
        """Addresses of the devices. They stay the same over a boot."""
        return {each["qdev_id"]: each["address"] for each in self.bare.machine.devices() if each["qdev_id"]}

    def called(self, address: str) -> str:
        """The name of a device; a virtual function has none but its address."""
        return next((name for name, place in self.places.items() if place == address), address)

    def at(self, *names: str) -> list[str]:
        """Addresses of devices."""
        return [self.places[name] for name in names]

    def sh(self, script: str, *words: str) -> str:
        """What a script prints in the machine."""
        return self.bare.machine.run(["sh", "-ec", script, "sh", *words], timeout=1800).stdout

    def module(self, name: str, arguments: dict[str, t.Any], *flags: str) -> dict[str, t.Any]:
        """The result of one module of ours."""
        return runner.direct(self.bare.machine, name, arguments, *flags, timeout=1800)

    def bind(self, **options: t.Any) -> dict[str, t.Any]:
        """The result of vfio_bind."""
        return self.module("vfio_bind", options)

    def results(self, said: dict[str, t.Any]) -> dict[str, str]:
        """What became of each device."""
        assert "devices" in said, said.get("msg", said)
        return {self.called(each["address"]): each["result"] for each in said["devices"]}

    def refused(self, said: dict[str, t.Any]) -> dict[str, dict[str, dict[str, t.Any]]]:
        """What stands against devices: device → hazard → refusal, its evidence as one text."""
        assert said.get("failed") and said.get("refused"), said.get("msg", said)
        found: dict[str, dict[str, dict[str, t.Any]]] = {}
        for each in said["refused"]:
            refusal = {**each, "evidence": "; ".join(each["evidence"])}
            found.setdefault(self.called(each["address"]), {})[each["hazard"]] = refusal
        return found

    def drivers(self) -> dict[str, tuple[str, str]]:
        """Driver and driver_override of every PCI function."""
        lines = map(str.split, self.sh(_DRIVERS).splitlines())
        return {self.called(place): (driver, override) for place, driver, override in lines}

    def files(self) -> str:
        """Every file that matters, as a text that changes with it."""
        return self.sh(_FILES)

    def boot(self) -> None:
        """Switch the power on. The machine answers on another port then."""
        self.bare.machine.boot()
        self.bare.machine.inventory(self.bare.inventory)

    def cut_during(self, moment: str, *words: str, **options: t.Any) -> None:
        """Cut the power while vfio_bind works, at the moment at which a script in the machine succeeds; and switch it on again.

        The module stands still from then on, however long the outer machine takes.
        """
        machine = self.bare.machine
        argv = ["ansible", "-i", str(self.bare.inventory), machine.record.name, "-m", "phyllome.virt.vfio_bind"]
        argv += ["-a", json.dumps(options)]
        run = subprocess.Popen(
            argv, env=runner.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        # of the processes that were found, one may have ended by itself
        script = f"until {moment}; do sleep 0.02; done; until kill -STOP $(pidof python3); do sleep 0.02; done"
        watch = subprocess.Popen([*machine.ssh(), shlex.join(["sh", "-c", script, "sh", *words])])
        try:
            while watch.poll() is None and run.poll() is None:
                time.sleep(0.1)
            assert run.poll() is None, run.communicate()[0]
            assert watch.returncode == 0
        finally:
            watch.kill()
            watch.wait()
            machine.poweroff()
            run.kill()
            run.wait()
        self.boot()
