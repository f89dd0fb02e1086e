"""Guests with nothing to do: all at once and one by one, against others; and the plan alone for a big one."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time
import typing as t
import zipfile

import yaml

from ansible_collections.phyllome.virt.plugins.module_utils._guest import plan, spec
from ansible_collections.phyllome.virt.tests.fleet import runner
from ansible_collections.phyllome.virt.tests.fleet.conftest import Site
from ansible_collections.phyllome.virt.tests.unit._guest.conftest import Lab

Say = t.Callable[[str], None]

GUESTS = 50
ANSIBLE = "ansible==11.13.0"
DUMP = """
import libvirt, sys
connection = libvirt.open("qemu:///system")
print(sum(len(connection.lookupByName(name).XMLDesc(2)) for name in sys.argv[1:]))
"""


def peer(cache: pathlib.Path) -> pathlib.Path:
    """A folder with community.libvirt, out of the package that has all collections."""
    folder = cache / "peers"
    if not (folder / "ansible_collections/community/libvirt/MANIFEST.json").exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), ANSIBLE]
        subprocess.run(command, check=True, capture_output=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            for name in archive.namelist():
                if name.startswith("ansible_collections/community/libvirt/"):
                    archive.extract(name, folder)
    return folder


def fastest(times: int, run: t.Callable[[], t.Any]) -> float:
    seconds = []
    for dummy in range(times):
        started = time.monotonic()
        run()
        seconds.append(time.monotonic() - started)
    return min(seconds)


def play(site: Site, folder: pathlib.Path, name: str, task: dict[str, t.Any], collections: str) -> None:
    """One task on alpha, with these collections."""
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump([{"hosts": "alpha", "gather_facts": False, "tasks": [task]}]))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(site.inventory([])), str(path)],
        env={**runner.environment(), "ANSIBLE_COLLECTIONS_PATH": collections},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_fifty_guests_with_nothing_to_do(bare: Site, tmp_path: pathlib.Path, say: Say) -> None:
    bare.whole([]).ok()
    host = bare.fleet.host("alpha")
    names = [f"idle{number}" for number in range(GUESTS)]
    guests = [bare.guest(name, "alpha", state="stopped", disks=[{"id": "root", "size": "1MiB"}]) for name in names]
    for guest in guests:
        del guest["host"]
    ours = str(runner.INSTALLED)
    bulk: dict[str, t.Any] = {"phyllome.virt.phyllome_vm": {"guests": guests}}
    loop = {"phyllome.virt.phyllome_vm": "{{ item }}", "loop": guests}
    play(bare, tmp_path, "make", bulk, ours)
    dumps = host.run(["sh", "-c", f"for x in {' '.join(names)}; do virsh dumpxml --inactive $x; done"]).stdout
    texts = [f"{text}</domain>" for text in dumps.split("</domain>")[:GUESTS]]
    define = {"community.libvirt.virt": {"command": "define", "xml": "{{ item }}"}, "loop": texts}
    others = f"{peer(runner.CACHE)}"
    host.write("/tmp/dump.py", DUMP)
    figures = {
        "bulk": fastest(3, lambda: play(bare, tmp_path, "bulk", bulk, ours)),
        "loop": fastest(1, lambda: play(bare, tmp_path, "loop", loop, ours)),
        "peer": fastest(1, lambda: play(bare, tmp_path, "peer", define, others)),
        "start": fastest(3, lambda: play(bare, tmp_path, "ping", {"ansible.builtin.ping": {}}, ours)),
        "dump": fastest(3, lambda: host.run(["python3", "/tmp/dump.py", *names])),
    }
    told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures.items())
    say(
        f"{GUESTS} guests with nothing to do: {told} (start: Ansible's ping; dump: one process that reads {GUESTS} XMLs)"
    )
    say(f"loop of community.libvirt.virt against ours in bulk: {figures['peer'] / figures['bulk']:.1f} times as long")
    say(f"loop of community.libvirt.virt against our loop: {figures['peer'] / figures['loop']:.2f} times as long")
    say(
        f"ours in bulk against dump and start: {figures['bulk'] / (figures['dump'] + figures['start']):.2f} times as long"
    )
    bare.remove(*names)


def test_the_plan_of_a_big_guest(say: Say) -> None:
    lab = Lab()
    big: dict[str, t.Any] = {
        "disks": [{"id": f"d{number}", "size": "1GiB"} for number in range(64)],
        "networks": [{"id": f"n{number}", "network": "default"} for number in range(32)],
        "state": "running",
    }
    there = lab.after(lab.decide(**big))
    wanted = spec.accept({"name": "web", **big})
    world = lab.world(wanted, there)
    seconds = fastest(5, lambda: plan.decide(wanted, there, world))
    say(f"plan of a running guest with 64 disks and 32 cards, nothing to do: {1000 * seconds:.1f} ms")
    more = spec.accept(
        {"name": "web", **big, "memory": "4GiB", "disks": [{**disk, "size": "2GiB"} for disk in big["disks"]]}
    )
    world = lab.world(more, there)
    seconds = fastest(5, lambda: plan.decide(more, there, world))
    say(f"plan of the same, all disks to grow: {1000 * seconds:.1f} ms")
