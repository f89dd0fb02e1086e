"""The rules of vfio_bind in an initramfs that the real dracut makes, and the image before it back; no machine is needed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

from ansible_collections.phyllome.virt.tests.lab import base
from ansible_collections.phyllome.virt.tests.lab.paths import STATE

#: A tree that nobody else sees: Debian with its kernel, and dracut instead of what makes its initramfs.
_MOUNT = """
set -e
mkdir -p "$1/upper" "$1/work" "$1/tree"
mount -t overlay lab -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work,volatile" "$1/tree"
mount -t proc proc "$1/tree/proc"
mount --rbind /dev "$1/tree/dev"
mount --bind "$3" "$1/tree/var/cache/apt/archives"
chroot "$1/tree" apt-get -q update
DEBIAN_FRONTEND=noninteractive chroot "$1/tree" apt-get -q install -y --no-install-recommends dracut-core
exec "$4" "$5" "$1/tree"
"""


def inside(root: str) -> dict[str, t.Any]:
    """Bind and give back, as far as the initramfs has to do with it. Runs where the tree is mounted."""
    from ansible_collections.phyllome.virt.plugins.module_utils._core.files import write
    from ansible_collections.phyllome.virt.plugins.module_utils._vfio.images import Images
    from ansible_collections.phyllome.virt.plugins.module_utils._vfio.kernel import Kernel
    from ansible_collections.phyllome.virt.plugins.module_utils._vfio.ledger import Before, Entry, Ledger
    from ansible_collections.phyllome.virt.plugins.module_utils._vfio.persistence import files
    from ansible_collections.phyllome.virt.plugins.module_utils._vfio.read import World

    class Chroot(Kernel):
        """The kernel of the outer machine; programs are the tree's."""

        def __init__(self) -> None:
            self.root = root

        def run(self, argv: t.Sequence[str]) -> str:
            return super().run(["chroot", root, *argv])

    kernel = Chroot()
    (version,) = os.listdir(f"{root}/usr/lib/modules")
    path = f"boot/initrd.img-{version}"
    before = b"the image before"
    pathlib.Path(root, path).write_bytes(before)
    pathlib.Path(root, "etc/dracut.conf.d/uncompressed.conf").write_text('compress="cat"\n')
    entry = Entry("8086:10d3@2", "8086:10d3", None, "vfio-pci", True, None, Before("e1000e", "e1000e", None, None))
    bound = Ledger({"0000:01:00.0": entry})
    found: dict[str, t.Any] = {}
    saved: list[Ledger] = []

    def bring(ledger: Ledger, was: Ledger) -> Ledger:
        for name, content in files(ledger, "dracut").items():
            write(root, name, content.text, content.mode)
        world = World({}, {}, {}, {}, {}, was, {}, "dracut", "", frozenset())
        return Images(kernel, world, False, saved.append).bring(was, ledger)

    after = bring(bound, Ledger())
    found["listed"] = kernel.run(["lsinitrd", f"/{path}"])
    found["rules"] = kernel.run(["lsinitrd", "-f", "etc/udev/rules.d/59-phyllome-vfio.rules", f"/{path}"])
    found["images"] = sorted(after.images)
    bring(Ledger(), after)
    found["same"] = pathlib.Path(root, path).read_bytes() == before
    found["left"] = [name for name in files(bound, "dracut") if pathlib.Path(root, name).exists()]
    return found


def test_the_rules_are_in_the_image_and_gone_with_the_undo(tmp_path: pathlib.Path) -> None:
    layers = base.metal().layers
    folder = STATE / f"dracut-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        argv = ["sh", "-c", _MOUNT, "sh", str(folder), ":".join(map(str, layers)), str(base.archives())]
        done = subprocess.run(
            ["unshare", "--mount", *argv, sys.executable, __file__], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert "59-phyllome-vfio.rules" in found["listed"] and "vfio-pci.ko" in found["listed"]
    assert 'KERNEL=="0000:01:00.0"' in found["rules"]
    assert len(found["images"]) == 1
    assert found["same"] and found["left"] == []


if __name__ == "__main__":
    print(json.dumps(inside(sys.argv[1])))
