"""The smallest Linux worth starting: a kernel of Debian with a busybox and a guest agent, in a few MiB.

`guest/init.sh` says what it does. With `install` on its command line it is an installer, which writes the guest that
counts onto the first disk and turns the machine off; without, a system that has read its cloud-init seed.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import cache, counter
from .errors import LabError, call
from .paths import HERE

SOURCE = HERE / "guest" / "init.sh"
PACKAGES = ("busybox-static", "qemu-guest-agent")
#: In the order in which they are loaded.
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net"),
    *("scsi_common", "scsi_mod", "cdrom", "sr_mod", "virtio_scsi", "isofs"),
    *("libata", "libahci", "ahci"),
    *("fuse", "virtiofs", "virtio_balloon", "virtio_mem"),
)
_UDHCPC = b'#!/bin/sh\ncase "$1" in bound | renew) ip addr replace "$ip/${mask:-24}" dev "$interface" ;; esac\n'


def archive(entries: Iterator[tuple[str, int, bytes]]) -> bytes:
    """An archive that the kernel unpacks (the format "newc" of cpio(5))."""
    out = bytearray()

    def add(name: str, mode: int, content: bytes) -> None:
        numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out.extend(b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0")
        out.extend(b"\0" * (-len(out) % 4) + content)
        out.extend(b"\0" * (-len(out) % 4))

    for name, mode, content in entries:
        add(name, mode, content)
    add("TRAILER!!!", 0, b"")
    return bytes(out)


def _libraries(program: Path) -> list[Path]:
    """What a program needs, as the outer machine has it."""
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", call("ldd", str(program)))]


def _entries(tree: Path) -> Iterator[tuple[str, int, bytes]]:
    agent, busybox = tree / "usr/sbin/qemu-ga", tree / "bin/busybox"
    found = {path.stem: path for path in (tree / "lib/modules").rglob("*.ko")}
    missing = [name for name in MODULES if name not in found]
    if missing:
        raise LabError(f"the kernel has no module {', '.join(missing)}")
    files = {
        "init": SOURCE.read_bytes(),
        "bin/busybox": busybox.read_bytes(),
        "bin/qemu-ga": agent.read_bytes(),
        "udhcpc.sh": _UDHCPC,
        "system.gz": gzip.compress((counter.images() / "counter.raw").read_bytes(), mtime=0),
        "modules/order": "".join(f"{name}\n" for name in MODULES).encode(),
        **{f"modules/{name}.ko": found[name].read_bytes() for name in MODULES},
        **{str(path).lstrip("/"): path.read_bytes() for path in _libraries(agent)},
    }
    folders = {str(parent) for name in files for parent in Path(name).parents} | {"proc", "sys", "dev", "run", "tmp"}
    for folder in sorted(folders - {"."}):
        yield folder, stat.S_IFDIR | 0o755, b""
    for name, content in files.items():
        yield name, stat.S_IFREG | 0o755, content


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        os.chmod(tree, 0o755)
        # One for clouds has no driver for SATA, where an installer's CD is.
        depends = call("apt-cache", "depends", "linux-image-amd64")
        kernel = re.search(r"Depends: (linux-image-\S+)", depends)
        if not kernel:
            raise LabError("linux-image-amd64 depends on no kernel")
        call("sh", "-c", 'cd "$0" && apt-get -q download "$@"', scratch, kernel.group(1), *PACKAGES)
        for package in tree.glob("*.deb"):
            call("dpkg-deb", "-x", str(package), str(tree))
        (folder / "vmlinuz").write_bytes(next((tree / "boot").glob("vmlinuz-*")).read_bytes())
        (folder / "initrd").write_bytes(gzip.compress(archive(_entries(tree)), 6, mtime=0))


def images() -> Path:
    """A folder with `vmlinuz` and `initrd`."""
    digest = cache.key(SOURCE.read_text(), Path(__file__).read_text(), counter.source("counter").read_text())
    return cache.made("linux", digest, _build)
