"""A guest for bare machines that is given devices and uses them: the machine's own kernel and a busybox.

`guest/devices.sh` says what it does with an NVMe drive and a network card.
"""

from __future__ import annotations

import gzip
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import base, cache, image, linux
from .errors import LabError, call
from .paths import HERE

SOURCE = HERE / "guest" / "devices.sh"
DRIVERS = ("nvme", "e1000e")


def _modules(tree: Path) -> Iterator[Path]:
    """The drivers with what they need, in the order in which they are loaded."""
    index = next(tree.glob("usr/lib/modules/*/modules.dep"))
    needs = dict(re.findall(r"(?m)^(\S+): ?(.*)$", index.read_text()))
    loaded: list[str] = []
    for driver in DRIVERS:
        path = next((path for path in needs if path.endswith(f"/{driver}.ko")), None)
        if path is None:
            raise LabError(f"the kernel has no module {driver}")
        # modules.dep has what is needed most deeply last
        loaded += [name for name in (*reversed(needs[path].split()), path) if name not in loaded]
    return (index.parent / name for name in loaded)


def _build(folder: Path) -> None:
    modules = list(_modules(base.metal().layers[0]))
    with tempfile.TemporaryDirectory() as scratch:
        call("sh", "-c", 'cd "$0" && apt-get -q download busybox-static', scratch)
        call("dpkg-deb", "-x", str(next(Path(scratch).glob("*.deb"))), scratch)
        files = {
            "init": SOURCE.read_bytes(),
            "bin/busybox": (Path(scratch) / "bin/busybox").read_bytes(),
            "modules/order": "".join(f"{path.stem}\n" for path in modules).encode(),
            **{f"modules/{path.name}": path.read_bytes() for path in modules},
        }
    folders = [(name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "modules", "proc", "sys", "dev")]
    entries = [*folders, *((name, stat.S_IFREG | 0o755, content) for name, content in files.items())]
    (folder / "initrd").write_bytes(gzip.compress(linux.archive(iter(entries)), 6, mtime=0))


def initrd() -> Path:
    """The guest's initramfs; its kernel is the machine's."""
    below = str(image.image().folder.name)
    digest = cache.key(below, SOURCE.read_text(), Path(__file__).read_text(), Path(linux.__file__).read_text())
    return cache.made("nested", digest, _build) / "initrd"
