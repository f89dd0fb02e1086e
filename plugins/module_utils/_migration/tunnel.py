# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Memory and disks through ssh, for hosts that reach each other at port 22 only.

libvirt migrates to unix sockets (https://libvirt.org/migration.html, "Migration URI"): QEMU at the
destination listens at a path there, and ssh listens at the same path here.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import tempfile
import time
import typing as t
import urllib.parse

from .._core.errors import PhyllomeError

FOLDER = "/var/lib/libvirt/qemu"
"""It is there on both hosts, QEMU may make files in it, and nobody else may look into it."""
_READY = 30.0
_OPTIONS = (
    "BatchMode=yes",  # nobody is there to be asked for a password, or whether a host's key is right
    "ExitOnForwardFailure=yes",
    "StreamLocalBindUnlink=yes",
    "ControlMaster=no",
    "ControlPath=none",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=6",
)


@dataclasses.dataclass(frozen=True)
class Sockets:
    """Paths for one move, the same on both hosts."""

    memory: str
    disks: str


def sockets(op: str) -> Sockets:
    """The paths of a move. Pure; a unix socket's path has at most 107 bytes."""
    start = f"{FOLDER}/phyllome-{op[:13]}"
    return Sockets(f"{start}-memory", f"{start}-disks")


def command(uri: str, paths: Sockets) -> list[str]:
    """The ssh that carries them. Pure.

    It ends when its standard input is closed and what goes through it has ended: so it does not
    outlive the move, and the move outlives us.

    Args:
        uri: the destination's, ``qemu+ssh://…``.
        paths: where both ends listen.
    """
    parts = urllib.parse.urlsplit(uri)
    query = dict(urllib.parse.parse_qsl(parts.query))
    argv = ["ssh", "-T"]
    for option in _OPTIONS:
        argv += ["-o", option]
    for path in (paths.memory, paths.disks):
        argv += ["-L", f"{path}:{path}"]
    if "keyfile" in query:
        argv += ["-i", query["keyfile"]]
    if parts.port:
        argv += ["-p", str(parts.port)]
    if parts.username:
        argv += ["-l", urllib.parse.unquote(parts.username)]
    return [*argv, "--", parts.hostname or "", "cat"]


@contextlib.contextmanager
def through(uri: str, paths: Sockets, owner: int | None) -> t.Iterator[None]:
    """Have both sockets carried to the destination.

    Args:
        uri: the destination's.
        paths: where both ends listen.
        owner: the user that QEMU runs as here, who has to be able to connect; None for root.

    Raises:
        PhyllomeError: ssh does not do it.
    """
    for path in (paths.memory, paths.disks):  # what a killed run has left
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    with tempfile.TemporaryFile() as said:
        try:
            # program.run waits for the end
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                command(uri, paths), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
            )
        except OSError as exc:
            raise _failed(uri, exc.strerror or str(exc)) from exc
        try:
            deadline = time.monotonic() + _READY
            while not all(os.path.exists(path) for path in (paths.memory, paths.disks)):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise _failed(uri, said.read().decode(errors="replace").strip() or "it does not answer")
                time.sleep(0.02)
            if owner is not None:
                for path in (paths.memory, paths.disks):
                    os.chown(path, owner, -1)
            yield
        finally:
            process.terminate()
            process.communicate()
            for path in (paths.memory, paths.disks):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _failed(uri: str, why: str) -> PhyllomeError:
    return PhyllomeError(
        f"ssh to the destination of {uri} cannot carry the guest's data",
        why,
        "As root on this host, ssh there has to work without a question: a key, its host key among the known ones, "
        "and forwarding allowed (AllowStreamLocalForwarding in sshd_config).",
    )
