"""The file trees that hosts and machines start from.

`bare` is a minimal install; `ready` is a layer above it with libvirt and QEMU, `metal` one above that
with a kernel and a boot loader. A host writes into a layer of its own, so a base is never changed
after it was built.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import cache, outer, packages
from .errors import LabError, call, describe
from .paths import HERE, cache_dir

#: Units that cannot do their work in a container, or would do work nobody asked for.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "systemd-firstboot.service",
    "systemd-networkd-wait-online.service",
)
#: A small initramfs, made fast: the one disk a machine of the lab boots from needs no more.
INITRAMFS = {
    "etc/initramfs-tools/conf.d/lab": b"MODULES=list\nCOMPRESS=lz4\n",
    "usr/share/initramfs-tools/modules.d/lab": b"virtio_pci\nvirtio_blk\next4\n",
}
#: The lab's hosts are thrown away, so nothing in them has to survive a loss of power.
DPKG = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
)

_INSTALL = """
set -e
tree=$1; archives=$2; options=$3; shift 3
mount -t overlay lab -o "$options" "$tree"
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mount --bind "$archives" "$tree/var/cache/apt/archives"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
chroot "$tree" apt-get -q update
chroot "$tree" apt-get -q install -y --no-install-recommends "$@"
"""


@dataclass(frozen=True)
class Base:
    """A read-only tree: overlay layers, the topmost first."""

    name: str
    layers: tuple[Path, ...]

    def find(self, path: str) -> Path | None:
        """Where `path` (relative) comes from, None if the base has no such file."""
        return next((layer / path for layer in self.layers if os.path.lexists(layer / path)), None)


def archives() -> Path:
    """The kept packages: every .deb a host has downloaded, for the next host to find."""
    path = cache_dir() / "apt" / "archives"
    (path / "partial").mkdir(parents=True, exist_ok=True)
    return path


def share(debs: Iterable[Path], folder: Path) -> None:
    """Make packages appear in `folder` too: by hard link, which takes no time, else by copy."""
    for deb in debs:
        with suppress(FileExistsError):
            try:
                os.link(deb, folder / deb.name)
            except OSError as error:
                if isinstance(error, FileExistsError):
                    raise
                aside = folder / "partial" / f"{deb.name}.{os.getpid()}"
                shutil.copyfile(deb, aside)
                aside.rename(folder / deb.name)


def mount_options(layers: Sequence[Path], upper: Path, work: Path) -> str:
    """Options of an overlay mount. `volatile`: syncs of a lab host need not reach the disk."""
    lower = ":".join(map(str, layers))
    return f"lowerdir={lower},upperdir={upper},workdir={work},volatile"


def write(base: Base | None, tree: Path, path: str, content: bytes, mode: int = 0o644) -> None:
    """Write one file below `tree`; folders that are missing look as they do in `base`."""
    target = tree / path
    for folder in reversed(target.relative_to(tree).parents[:-1]):
        made = tree / folder
        if not made.is_dir():
            made.mkdir()
            model = base.find(str(folder)) if base else None
            made.chmod(model.stat().st_mode & 0o7777 if model else 0o755)
    if target.is_symlink():
        target.unlink()
    target.write_bytes(content)
    target.chmod(mode)


def contained(*argv: str) -> None:
    """Run a builder whose processes and mounts end with this process, whatever ends it."""
    shell = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc")
    done = subprocess.run((*shell, *argv), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise LabError(describe(argv, done.returncode, done.stdout + done.stderr))


def _build_bare(folder: Path) -> None:
    tree = folder / "tree"
    settings = folder / "apt.conf"
    settings.write_text(outer.apt_settings())
    contained(
        "mmdebstrap",
        "--variant=minbase",
        "--skip=cleanup/apt/lists",
        f"--include={','.join(packages.BARE)}",
        f"--aptopt={settings}",
        *(f"--dpkgopt={line}" for line in DPKG),
        outer.release(),
        str(tree),
        *map(str, outer.apt_sources()),
    )
    tree.chmod(0o755)
    for path in (tree / "etc/ssh").glob("ssh_host_*"):
        path.unlink()
    # one copy of where packages come from, and of how to reach it, is written for each host
    for path in [*(tree / "etc/apt/sources.list.d").iterdir(), tree / "etc/apt/apt.conf.d/99mmdebstrap"]:
        path.unlink(missing_ok=True)
    (tree / "etc/machine-id").write_bytes(b"")
    call("systemctl", f"--root={tree}", "--quiet", "mask", *MASKED)
    call("systemctl", f"--root={tree}", "--quiet", "enable", "systemd-networkd.service")


def _build_above(folder: Path, bare: Base, wanted: Iterable[str], files: Mapping[str, bytes]) -> None:
    layer, work, tree = (folder / name for name in ("tree", "work", "mounted"))
    for made in (layer, work, tree):
        made.mkdir(mode=0o755)
    for path, content in (*outer.files(), *files.items()):
        write(bare, layer, path, content)
    options = mount_options(bare.layers, layer, work)
    contained("sh", "-c", _INSTALL, "sh", str(tree), str(archives()), options, *wanted)
    shutil.rmtree(work)
    tree.rmdir()


def _script() -> str:
    """The text a base is built by, this module's and that of the module it copies with."""
    return inspect.getsource(sys.modules[__name__]) + (HERE / "outer.py").read_text()


def bare() -> Base:
    """The minimal install."""
    digest = cache.key(outer.release(), *packages.BARE, _script())
    return Base("bare", (cache.made("bare", digest, _build_bare) / "tree",))


def ready() -> Base:
    """`bare` with libvirt and QEMU installed, not configured."""
    below = bare()
    digest = cache.key(str(below.layers[0].parent.name), *packages.LIBVIRT, _script())
    layer = cache.made("ready", digest, lambda folder: _build_above(folder, below, packages.LIBVIRT, {})) / "tree"
    return Base("ready", (layer, *below.layers))


def metal() -> Base:
    """`ready` with a kernel and a boot loader: what the disk of a machine is made from."""
    below = ready()
    digest = cache.key(str(below.layers[0].parent.name), *packages.METAL, _script())
    layer = cache.made("metal", digest, lambda folder: _build_above(folder, below, packages.METAL, INITRAMFS)) / "tree"
    return Base("metal", (layer, *below.layers))


BASES = {"bare": bare, "ready": ready}
