"""Twenty guests from one: linked, sharing blocks and full, against `virt-clone` in a loop."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site

Say = t.Callable[[str], None]
MANY = 20
DATA_MIB = 48
FOLDER = "/srv/clones"
METHODS = ("linked", "reflink", "full")


def test_twenty_clones(bare: Site, say: Say) -> None:
    disk = {"id": "root", "path": f"{FOLDER}/mould-root.qcow2", "source": {"path": IMAGE}}
    template = bare.guest("mould", "alpha", state="stopped", networks=[], disks=[disk])
    alpha = bare.fleet.host("alpha")
    alpha.share(FOLDER, "4G")
    bare.whole([template]).ok()
    alpha.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 90 8M {DATA_MIB}M", f"{FOLDER}/mould-root.qcow2"])
    took: dict[str, float] = {}
    # Each kind twice, forwards and backwards: what else the machine does would otherwise be taken for one of them.
    for method in (*METHODS, *reversed(METHODS)):
        names = [f"{method}{number}" for number in range(MANY)]
        guests = [
            {"name": name, "state": "stopped", "clone_from": {"guest": "mould", "method": method}} for name in names
        ]
        alpha.run(["sync"])  # what hosts were made of is not written while their clones are
        started = time.monotonic()
        made = bare.ansible("phyllome_vm", "alpha", {"guests": guests})
        seconds = time.monotonic() - started
        took[method] = min(seconds, took.get(method, seconds))
        assert not made.get("failed"), made["msg"]
        started = time.monotonic()
        assert not bare.ansible("phyllome_vm", "alpha", {"guests": guests})["changed"]
        say(f"{MANY} {method} clones: {seconds:.1f} s; again, nothing to do: {time.monotonic() - started:.1f} s")
        bare.remove(*names)
    alpha.run(["apt-get", "install", "-qy", "--no-install-recommends", "virtinst"])
    script = f"for n in $(seq {MANY}); do virt-clone -q -o mould -n peer$n --file {FOLDER}/peer$n.qcow2 || exit 1; done"
    away = f"for n in $(seq {MANY}); do virsh undefine peer$n; rm -f {FOLDER}/peer$n.qcow2; done"
    peers = []
    for dummy in range(2):
        alpha.run(["sync"])
        started = time.monotonic()
        alpha.run(["sh", "-c", script])
        peers.append(time.monotonic() - started)
        alpha.run(["sh", "-c", away], check=False)
    say(f"{MANY} clones by virt-clone in a loop: {', '.join(f'{peer:.1f}' for peer in peers)} s")
    for method, seconds in took.items():
        say(f"virt-clone takes {min(peers) / seconds:.1f} times as long as phyllome_vm with {method} clones")
    alpha.unlimit(FOLDER)
