# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring an export, or the guest in it, to what is declared: read, plan, do what the plan says, read again.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import json
import os
import pwd
import shutil
import stat
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from .._core.program import run
from .._guest import domain, identity
from . import folder, read, spec
from .folder import Manifest, Piece
from .plan import bring, export

_REMEDY = "Look at the disk space and the message, then run again: what is half made is made anew."


def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The module vm_export.

    Raises:
        PhyllomeError: it cannot be as declared, or did not become so.
    """
    wanted = spec.wanted(params)
    where = identity.places(params["uri"])
    with virt.session(params["uri"]) as connection:
        return (_exported if wanted.state == "exported" else _imported)(connection, wanted, where, check_mode)


def _exported(connection: t.Any, wanted: spec.Wanted, where: t.Any, check: bool) -> dict[str, t.Any]:
    source = read.source(connection, wanted, where)
    todo = export(wanted, source)
    if todo and not check:
        _Export(wanted, source).run(todo)
        after = read.source(connection, wanted, where)
        _stuck(export(wanted, after), todo, f"Export {wanted.path}")
        source = after
    return _result(wanted, todo, source.there, source.guest.name, source.guest.uuid)


def _imported(connection: t.Any, wanted: spec.Wanted, where: t.Any, check: bool) -> dict[str, t.Any]:
    target = read.target(connection, wanted, where)
    todo = bring(wanted, target)
    if todo and not check:
        _import(connection, wanted, target, todo)
        _stuck(bring(wanted, read.target(connection, wanted, where)), todo, f"Guest {target.identity.name}")
    told = _result(wanted, todo, target.manifest, target.identity.name, target.identity.uuid)
    missing = [
        f"Guest {target.identity.name} is connected to network {name}, which this host does not have: it cannot start "
        "before there is one (phyllome_network)."
        for name in target.networks
    ]
    return {**told, "warnings": missing}


def _stuck(left: Plan, todo: Plan, what: str) -> None:
    if left:
        raise PhyllomeError(
            f"{what} is not as declared after the changes",
            f"what is there now still differs: {', '.join(change.path for change in left)}",
            "Was the guest started meanwhile? Otherwise report this.",
            changed=True,
            plan=todo.as_list(),
        )


def _result(wanted: spec.Wanted, todo: Plan, told: Manifest | None, name: str, uuid: str) -> dict[str, t.Any]:
    return {
        "changed": todo.changed,
        "plan": todo.as_list(),
        "diff": todo.diff(f"guest {name}"),
        "guest": {"name": name, "uuid": uuid},
        "path": wanted.path,
        "pieces": [] if told is None else [piece.as_dict() for piece in told.pieces],
    }


class _Export:
    """One export being made, in a folder beside its place, which takes the place when it is complete."""

    def __init__(self, wanted: spec.Wanted, source: read.Source) -> None:
        above, name = os.path.split(wanted.path)
        self._wanted, self._source = wanted, source
        self._partial = f"{above}/.{name}.phyllome-partial"
        self._old = f"{above}/.{name}.phyllome-old"
        self._pieces: list[Piece] = []

    def run(self, todo: Plan) -> None:
        for change in todo:
            with identity.doing(f"Cannot write {self._partial}"):
                getattr(self, f"_{change.action}")(change)

    def _begin(self, change: Change) -> None:
        identity.remove_tree(self._partial)
        os.mkdir(self._partial, 0o700)
        os.mkdir(f"{self._partial}/disks", 0o700)
        identity.write(f"{self._partial}/{folder.DEFINITION}", xml.dump(self._source.config))
        self._note(folder.DEFINITION, "definition")

    def _disk(self, change: Change) -> None:
        part: read.Part = change.args["part"]
        file = f"disks/{part.target}.{part.format}"
        path = f"{self._partial}/{file}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        # A snapshot inside the image does not change while the guest runs, so QEMU's lock need not stand in the way.
        way = ["-U", "-l", f"snapshot.name={self._wanted.snapshot}"] if self._wanted.snapshot else []
        argv = ["qemu-img", "convert", "-q", *way, "-f", part.format, "-O", part.format, part.path, path]
        run(argv, timeout=identity.COPY_TIMEOUT, remedy=_REMEDY)
        self._note(file, "disk", target=part.target, format=part.format, capacity=part.capacity)

    def _nvram(self, change: Change) -> None:
        identity.copy(str(self._source.nvram), f"{self._partial}/{folder.NVRAM}")
        os.chmod(f"{self._partial}/{folder.NVRAM}", 0o600)
        os.chown(f"{self._partial}/{folder.NVRAM}", os.geteuid(), os.getegid())
        self._note(folder.NVRAM, "nvram")

    def _tpm(self, change: Change) -> None:
        tpm = str(self._source.tpm)
        os.mkdir(f"{self._partial}/{folder.TPM}", 0o700)
        for name in identity.files(tpm):
            file = f"{folder.TPM}/{name}"
            os.makedirs(os.path.dirname(f"{self._partial}/{file}"), mode=0o700, exist_ok=True)
            identity.copy(os.path.join(tpm, name), f"{self._partial}/{file}")
            status = os.stat(f"{self._partial}/{file}")
            os.chmod(f"{self._partial}/{file}", 0o600)
            os.chown(f"{self._partial}/{file}", os.geteuid(), os.getegid())
            self._note(
                file,
                "tpm",
                owner=_user(status.st_uid),
                group=_group(status.st_gid),
                mode=stat.S_IMODE(status.st_mode),
            )

    def _note(self, file: str, role: str, **more: t.Any) -> None:
        path = f"{self._partial}/{file}"
        identity.flush(path)
        self._pieces.append(Piece(file, role, identity.digest(path), os.path.getsize(path), **more))

    def _finish(self, change: Change) -> None:
        guest, source = self._source.guest, self._source
        told = Manifest(guest.name, guest.uuid, source.now, source.mark, tuple(self._pieces))
        identity.write(f"{self._partial}/{folder.MANIFEST}", json.dumps(told.as_dict(), indent=1, sort_keys=True))
        identity.remove_tree(self._old)
        if os.path.lexists(self._wanted.path):
            os.rename(self._wanted.path, self._old)
        os.rename(self._partial, self._wanted.path)
        identity.flush_folder(os.path.dirname(self._wanted.path))
        identity.remove_tree(self._old)


def _user(number: int) -> str | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return None


def _group(number: int) -> str | None:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return None


def _import(connection: t.Any, wanted: spec.Wanted, target: read.Target, todo: Plan) -> None:
    """Files first, each complete before it has its name; the definition last, so that no guest has half of them."""
    for change in todo:
        if change.action == "disk":
            identity.copy(f"{wanted.path}/{change.args['file']}", change.args["to"])
        elif change.action == "nvram":
            with identity.doing(f"Cannot make {change.args['to']}"):
                os.makedirs(os.path.dirname(change.args["to"]), mode=0o755, exist_ok=True)
            identity.copy(f"{wanted.path}/{change.args['file']}", change.args["to"])
        elif change.action == "tpm":
            _bring_tpm(wanted.path, target)
        else:
            _define(connection, target)


def _bring_tpm(path: str, target: read.Target) -> None:
    home = str(target.identity.tpm)
    partial = f"{home}.phyllome-partial"
    pieces = target.manifest.of("tpm")
    identity.remove_tree(partial)
    with identity.doing(f"Cannot make {partial}"):
        os.makedirs(os.path.dirname(partial), mode=0o711, exist_ok=True)
        os.mkdir(partial, 0o711)
        for piece in pieces:
            file = f"{partial}/{piece.file.split('/', 1)[1]}"
            owner, group = _ids(piece)
            if not os.path.isdir(os.path.dirname(file)):
                os.makedirs(os.path.dirname(file), mode=0o700)
                os.chown(os.path.dirname(file), owner, group)
            identity.copy(f"{path}/{piece.file}", file)
            os.chmod(file, 0o600 if piece.mode is None else piece.mode & 0o660)
            os.chown(file, owner, group)
        shutil.rmtree(home, ignore_errors=True)
        os.rename(partial, home)


def _ids(piece: Piece) -> tuple[int, int]:
    """Whom a TPM's file belongs to on this host.

    Raises:
        PhyllomeError: the user of the emulated TPM is missing.
    """
    if os.geteuid() != 0:
        return -1, -1  # a session's TPM belongs to the user
    try:
        return (
            pwd.getpwnam(piece.owner).pw_uid if piece.owner else -1,
            grp.getgrnam(piece.group).gr_gid if piece.group else -1,
        )
    except KeyError as exc:
        raise PhyllomeError(
            f"The TPM's state belongs to {piece.owner}:{piece.group}",
            f"this host does not know them ({exc})",
            "Install swtpm; the role phyllome.virt.hypervisor does.",
        ) from exc


def _define(connection: t.Any, target: read.Target) -> None:
    root, what = target.config, target.identity
    ours = domain.marker(root)
    if ours is not None:
        files = {drive.label: drive.path for drive in what.drives}
        volumes = tuple(domain.Volume(label, str(path), True) for label, path in files.items())
        domain.set_marker(root, dataclasses.replace(ours, volumes=volumes))
    xml.drop(root, f"metadata/{{{xml.MIGRATION_NS}}}migration")
    emulator = xml.first(root, "devices/emulator")
    if emulator is not None and not os.path.exists(emulator.text or ""):
        xml.drop(root, "devices/emulator")  # another distribution has it elsewhere, and libvirt knows where
    loader = xml.first(root, "os/loader")
    if loader is not None and xml.ensure(root, "os").get("firmware") and not os.path.exists(loader.text or ""):
        xml.drop(root, "os/loader")
        xml.ensure(root, "os/nvram").attrib.pop("template", None)
    with virt.saying(
        f"Guest {what.name} cannot be defined", "Its files are here; correct what is named and run again."
    ):
        connection.defineXMLFlags(xml.dump(root), virt.libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    for directory in {os.path.dirname(str(drive.path)) for drive in what.drives}:
        with contextlib.suppress(virt.libvirt.libvirtError):
            connection.storagePoolLookupByTargetPath(directory).refresh()
