"""Twenty guests from one: linked, sharing blocks and full, against `virt-clone` in a loop."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.phyllome.virt.tests.fleet.conftest import IMAGE, Site

Say = t.Callable[[str], None]
MANY = 20
DATA_MIB = 48
FOLDER = "/srv/clones"


def test_twenty_clones(bare: Site, say: Say) -> None:
    disk = {"id": "root", "path": f"{FOLDER}/mould-root.qcow2", "source": {"path": IMAGE}}
    template = bare.guest("mould", "alpha", state="stopped", networks=[], disks=[disk])
    alpha = bare.fleet.host("alpha")
    alpha.share(FOLDER, "4G")
    bare.whole([template]).ok()
    alpha.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 90 8M {DATA_MIB}M", f"{FOLDER}/mould-root.qcow2"])
    took: dict[str, float] = {}
    for method in ("linked", "reflink", "full"):
        names = [f"{method}{number}" for number in range(MANY)]
        guests = [
            {"name": name, "state": "stopped", "clone_from": {"guest": "mould", "method": method}} for name in names
        ]
        started = time.monotonic()
        made = bare.module("phyllome_vm", "alpha", {"guests": guests})
        took[method] = time.monotonic() - started
        assert not made.get("failed"), made["msg"]
        started = time.monotonic()
        assert not bare.module("phyllome_vm", "alpha", {"guests": guests})["changed"]
        say(f"{MANY} {method} clones: {took[method]:.1f} s; again, nothing to do: {time.monotonic() - started:.1f} s")
        bare.remove(*names)
    alpha.run(["apt-get", "install", "-qy", "--no-install-recommends", "virtinst"])
    script = f"for n in $(seq {MANY}); do virt-clone -q -o mould -n peer$n --file {FOLDER}/peer$n.qcow2 || exit 1; done"
    started = time.monotonic()
    alpha.run(["sh", "-c", script])
    peer = time.monotonic() - started
    say(f"{MANY} clones by virt-clone in a loop: {peer:.1f} s")
    for method, seconds in took.items():
        say(f"virt-clone takes {peer / seconds:.1f} times as long as phyllome_vm with {method} clones")
    alpha.run(
        ["sh", "-c", f"for n in $(seq {MANY}); do virsh undefine peer$n; rm -f {FOLDER}/peer$n.qcow2; done"],
        check=False,
    )
    alpha.unlimit(FOLDER)
