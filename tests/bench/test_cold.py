"""1 GiB of data in a disk of 10 GiB, moved while its guest is off, against what people use for that."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.phyllome.virt.tests.fleet.conftest import Site

Say = t.Callable[[str], None]
PORT = 49200  # of those that the firewall leaves open for moves


def test_a_cold_move_against_other_ways_to_copy(bare: Site, say: Say) -> None:
    guest = bare.guest("heavy", "alpha", state="stopped", networks=[])
    guest["disks"] = [{"id": "root", "size": "10GiB"}]
    bare.whole([guest]).ok()
    alpha, beta = bare.fleet.host("alpha"), bare.fleet.host("beta")
    disk = bare.disk("alpha", "heavy")
    alpha.run(["dd", "if=/dev/urandom", "of=/srv/random", "bs=1M", "count=1024"])
    for start in range(8):  # in pieces, all over the disk
        alpha.run(["qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", "count=128", f"skip={start * 128}",
                   "if=/srv/random", "of=/srv/piece"])  # fmt: skip
        alpha.run(["qemu-io", "-f", "qcow2", "-c", f"write -s /srv/piece {start * 1280}M 128M", disk], timeout=600)
    alpha.run(["rm", "/srv/random", "/srv/piece"])
    alpha.run(["apt-get", "-q", "install", "-y", "--no-install-recommends", "rsync"])
    beta.run(["apt-get", "-q", "install", "-y", "--no-install-recommends", "rsync"])
    alpha.put(bare.fleet.key, "/srv/key")
    alpha.run(["chmod", "600", "/srv/key"])
    size = alpha.run(["stat", "-c", "%s", disk]).stdout.strip()
    uri = f"qemu+tls://{beta.address}/system"

    def timed(call: t.Callable[[], object]) -> float:
        alpha.run(["sh", "-c", f"cat {disk} > /dev/null"], timeout=600)
        started = time.monotonic()
        call()
        return time.monotonic() - started

    def convert() -> None:
        beta.run(["qemu-img", "create", "-q", "-f", "qcow2", "/srv/copy", "10G"])
        beta.run(["qemu-nbd", "--fork", "-f", "qcow2", "-p", str(PORT), "-e", "16", "/srv/copy"])
        alpha.run(["qemu-img", "convert", "-n", "-W", "-m", "16", "--target-is-zero", "-f", "qcow2", "-O", "raw", disk,
                   f"nbd://{beta.address}:{PORT}"], timeout=900)  # fmt: skip

    def rsync() -> None:
        ssh = "ssh -i /srv/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        alpha.run(["rsync", "-S", "-e", ssh, disk, f"root@{beta.address}:/srv/copy"], timeout=900)

    def upload() -> None:
        beta.run(["virsh", "vol-create-as", "images", "copy", size, "--format", "raw", "--allocation", "0"])
        alpha.run(["virsh", "-c", uri, "vol-upload", "--pool", "images", "copy", disk], timeout=900)

    figures = {}
    for name, call in (("qemu-img convert to NBD", convert), ("rsync -S", rsync), ("virsh vol-upload", upload)):
        figures[name] = timed(call)
        beta.run(["sh", "-c", "pkill -x qemu-nbd; rm -f /srv/copy; virsh vol-delete copy images"], check=False)
    alpha.run(["rm", "/srv/key"])
    before = int(alpha.run(["stat", "-c", "%b", disk]).stdout) * 512
    moved: dict[str, t.Any] = {}
    parameters = {"name": "heavy", "source": "alpha", "destination": "beta", "destination_uri": uri}
    whole = timed(lambda: moved.update(bare.module("vm_migrate", "alpha", parameters)))
    assert moved["mode_used"] == "cold" and moved["classification"] == 2, moved
    ours = moved["stats"]["total_s"]
    best = min(figures, key=lambda name: figures[name])
    shown = ", ".join(f"{name} {took:.1f} s" for name, took in figures.items())
    sent = sum(one["bytes_sent"] for one in moved["disks"])
    after = sum(one["allocated_after"] for one in moved["disks"])
    say(
        f"1 GiB in 10 GiB, cold, with digests: {ours:.1f} s ({whole:.1f} s with Ansible), copying "
        f"{moved['stats']['migrate_ms'] / 1000:.1f} s; {shown}"
    )
    say(
        f"to the fastest of them ({best}): {ours / figures[best]:.2f}; bytes sent to bytes allocated "
        f"{sent / before:.3f}; allocated after to before {after / before:.3f}"
    )
    bare.remove("heavy")
