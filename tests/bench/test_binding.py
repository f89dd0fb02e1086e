"""What vfio_bind itself takes to find out that nothing has to change."""

from __future__ import annotations

import pathlib
import time
import typing as t

from ansible_collections.phyllome.virt.tests.unit._vfio.sim import Sim, capture

Say = t.Callable[[str], None]


def test_our_own_work_where_nothing_is_to_do(tmp_path: pathlib.Path, say: Say) -> None:
    """The machine of the metal lab, captured, on this processor; without Ansible and what it takes to start Python."""
    played = Sim(tmp_path / "root", capture("emulated-q35"))
    devices = ["0000:01:00.0", "0000:09:00.0", "0000:0a:00.0", "0000:06:01.0", "0000:06:02.0"]
    played.do(devices=devices)
    seconds = []
    for dummy in range(3):
        started = time.perf_counter()
        assert not played.do(devices=devices)["changed"]
        seconds.append(time.perf_counter() - started)
    say(f"own work of a call that finds nothing to do: {min(seconds) * 1000:.0f} ms")
