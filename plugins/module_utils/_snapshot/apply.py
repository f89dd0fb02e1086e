# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bring a guest's snapshots to what is declared: read, plan, do what the plan says, read again.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import typing as t
import uuid as uuids

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.plan import Change, Plan
from .._core.program import run
from .._guest import identity
from . import spec
from .plan import plan, shown
from .read import DEFINITION, MANIFEST, MEMORY, NVRAM, RESUME, REVERTED, TPM, VERSION, World, read_world, stamp

_RESCUE = "The guest goes on where it was when it is started: its memory is saved (virsh managedsave)."


def body(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The module vm_snapshot.

    Raises:
        PhyllomeError: it cannot be as declared, or did not become so.
    """
    wanted = spec.wanted(params)
    where = identity.places(params["uri"])
    with virt.session(params["uri"]) as connection:
        found, world = read_world(connection, wanted.guest, where)
        todo = plan(wanted, world)
        if check_mode or not todo:
            return _result(wanted, todo, world)
        step = _Apply(connection, found, world, identity.snapshot_folder(where, world.guest.uuid), where.save)
        try:
            step.run(todo)
        except PhyllomeError as exc:
            facts = {**exc.facts, "changed": True, "plan": todo.as_list()}
            raise PhyllomeError(exc.what, exc.why, exc.remedy, **facts) from exc
        dummy, world = read_world(connection, wanted.guest, where)
        left = _left(wanted, todo, world)
        if left:
            raise PhyllomeError(
                f"Snapshots of guest {wanted.guest} are not as declared after the changes",
                f"what is there now still differs: {', '.join(left)}",
                "Report this with the output of 'virsh snapshot-list' and 'qemu-img info'.",
                changed=True,
                plan=todo.as_list(),
            )
        return _result(wanted, todo, world)


def _left(wanted: spec.Wanted, todo: Plan, world: World) -> list[str]:
    restored = [change.after for change in todo if change.action == "restore"]
    if restored:  # the guest goes on from there: that it runs is all that can be seen
        return [] if world.guest.state == restored[0] else [f"state is {world.guest.state}"]
    return [change.path for change in plan(wanted, world)]


def _result(wanted: spec.Wanted, todo: Plan, world: World) -> dict[str, t.Any]:
    return {
        "changed": todo.changed,
        "plan": todo.as_list(),
        "diff": todo.diff(f"snapshots of guest {wanted.guest}"),
        "guest": {"name": world.guest.name, "uuid": world.guest.uuid, "state": world.guest.state},
        "snapshots": shown(world),
    }


class _Apply:
    """One plan being carried out.

    Args:
        connection: a ``libvirt.virConnect``.
        found: the guest's domain.
        world: what was there.
        base: folder of the guest's snapshots.
        saves: where libvirt keeps saved memory.
    """

    def __init__(self, connection: t.Any, found: t.Any, world: World, base: str, saves: str) -> None:
        self._connection, self._found, self._world, self._base = connection, found, world, base
        self._save = f"{saves}/{world.guest.name}.save"

    def run(self, todo: Plan) -> None:
        """Do all of it, in order; whatever happens, a guest that was put to rest goes on."""
        resting = self._world.at_rest
        identity.private_folder(os.path.dirname(os.path.dirname(self._base)))
        identity.private_folder(os.path.dirname(self._base))
        identity.private_folder(self._base)
        try:
            for change in todo:
                if change.action == "save":
                    resting = True
                with virt.saying(f"Guest {self._world.guest.name}: {change.path} failed"):
                    _STEPS[change.action](self, change)
                if change.action == "resume":
                    resting = False
        except BaseException as exc:
            if resting:
                try:
                    self._resume(None)
                except PhyllomeError as worse:
                    raise PhyllomeError(worse.what, f"{worse.why}; before that: {exc}", worse.remedy) from exc
            raise

    # A guest that rests

    def _put_to_rest(self, change: Change) -> None:
        identity.write(f"{self._base}/{RESUME}", "")
        self._found.managedSave()
        if not os.path.exists(self._save):
            raise PhyllomeError(
                f"The saved memory of guest {self._world.guest.name} is not at {self._save}",
                "libvirt keeps it elsewhere on this host",
                "Shut the guest down first; then the snapshot is one of its disks.",
            )

    def _resume(self, change: Change | None) -> None:
        if not self._found.isActive() and self._found.hasManagedSaveImage():
            with virt.saying(f"Guest {self._world.guest.name} cannot be started again", _RESCUE):
                self._found.create()
        self._settle(change)

    def _settle(self, change: Change | None) -> None:
        with identity.doing(f"Cannot remove {self._base}/{RESUME}"), contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._base}/{RESUME}")

    # Taking and removing

    def _take(self, change: Change) -> None:
        name, what = change.args["name"], self._world.identity
        path = f"{self._base}/{name}"
        identity.remove_tree(path)
        identity.private_folder(path)  # from here on the name in the images is ours
        memory = None
        if self._found.hasManagedSaveImage():
            identity.link_or_copy(self._save, f"{path}/{MEMORY}")
            memory = os.path.getsize(f"{path}/{MEMORY}")
        for drive in what.drives:
            self._untag(name, str(drive.path))
            run(["qemu-img", "snapshot", "-q", "-c", name, str(drive.path)], timeout=600)
        nvram = tpm = None
        if what.nvram is not None:
            nvram = os.path.exists(what.nvram)
            if nvram:
                identity.copy(what.nvram, f"{path}/{NVRAM}")
        if what.tpm is not None:
            tpm = bool(identity.files(what.tpm))
            if tpm:
                identity.copy_tree(what.tpm, f"{path}/{TPM}")
        identity.write(f"{path}/{DEFINITION}", xml.dump(self._world.guest.config))
        self._manifest(
            name,
            {
                "schema_version": VERSION,
                "name": name,
                "description": change.args["description"],
                "created": self._world.now,
                "guest": {"name": self._world.guest.name, "uuid": self._world.guest.uuid},
                "state": change.args["state"],
                "memory": memory,
                "disks": [{"target": drive.target, "path": drive.path} for drive in what.drives],
                "nvram": nvram,
                "tpm": tpm,
            },
        )

    def _manifest(self, name: str, told: dict[str, t.Any]) -> None:
        identity.write(f"{self._base}/{name}/{MANIFEST}", json.dumps(told, indent=1, sort_keys=True))

    def _describe(self, change: Change) -> None:
        name = change.args["name"]
        told = identity.load(f"{self._base}/{name}/{MANIFEST}") or {}
        self._manifest(name, {**told, "description": change.args["description"]})

    def _register(self, change: Change) -> None:
        """Tell libvirt, which has nothing to do: the snapshot is there."""
        name = change.args["name"]
        told = identity.load(f"{self._base}/{name}/{MANIFEST}") or {}
        with open(f"{self._base}/{name}/{DEFINITION}", encoding="utf-8") as stream:
            config = xml.parse(stream.read())
        root = xml.element("domainsnapshot")
        xml.child(root, "name", name)
        if told["description"]:
            xml.child(root, "description", told["description"])
        xml.child(root, "creationTime", str(int(told["created"])))
        if told["memory"] is None:
            xml.child(root, "state", "shutoff")
            xml.child(root, "memory", None, snapshot="no")
        else:
            xml.child(root, "state", told["state"])
            xml.child(root, "memory", None, snapshot="external", file=f"{self._base}/{name}/{MEMORY}")
        disks = xml.child(root, "disks")
        for disk in told["disks"]:
            xml.child(disks, "disk", None, name=disk["target"], snapshot="internal")
        root.append(config)
        self._found.snapshotCreateXML(xml.dump(root), virt.libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)

    def _remove(self, change: Change) -> None:
        name = change.args["name"]
        path = f"{self._base}/{name}"
        with identity.doing(f"Cannot remove {path}"), contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}/{MANIFEST}")  # from here on it is unfinished, and the next run goes on removing it
        kept = self._world.find(name)
        paths = {drive.path for drive in self._world.identity.drives if drive.format == "qcow2" and drive.path}
        paths.update(file for dummy, file in (kept.disks if kept else ()) if os.path.exists(file))
        for file in sorted(paths):
            self._untag(name, file)
        entry = virt.found(lambda: self._found.snapshotLookupByName(name), virt.libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT)
        if entry is not None:
            entry.delete(virt.libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
        identity.remove_tree(path)

    def _untag(self, name: str, file: str) -> None:
        for dummy in range(identity.snapshots(file).get(name, 0)):
            run(["qemu-img", "snapshot", "-q", "-d", name, file], timeout=600)

    # Going back

    def _destroy(self, change: Change) -> None:
        libvirt = virt.libvirt
        try:
            self._found.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
        except libvirt.libvirtError:
            if self._found.isActive():
                self._found.destroy()

    def _discard(self, change: Change) -> None:
        self._found.managedSaveRemove()

    def _revert(self, change: Change) -> None:
        with identity.doing(f"Cannot remove {self._base}/{REVERTED}"), contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._base}/{REVERTED}")

    def _disk(self, change: Change) -> None:
        run(["qemu-img", "snapshot", "-q", "-a", change.args["name"], change.args["file"]], timeout=600)

    def _nvram(self, change: Change) -> None:
        path = str(self._world.identity.nvram)
        if change.after is not None:
            identity.copy(f"{self._base}/{change.args['name']}/{NVRAM}", path)
            return
        with identity.doing(f"Cannot remove {path}"), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def _tpm(self, change: Change) -> None:
        path = str(self._world.identity.tpm)
        if change.after is None:
            identity.remove_tree(path)
        else:
            identity.copy_tree(f"{self._base}/{change.args['name']}/{TPM}", path)

    def _define(self, change: Change) -> None:
        kept = self._world.find(change.args["name"])
        if kept is None:
            return
        root = copy.deepcopy(kept.config)
        xml.drop(root, "metadata")
        today = xml.first(self._world.guest.config, "metadata")
        if today is not None:
            root.append(copy.deepcopy(today))
        if xml.first(root, "genid") is not None:
            xml.ensure(root, "genid").text = str(uuids.uuid4())
        self._found = self._connection.defineXMLFlags(xml.dump(root), 0)

    def _restore(self, change: Change) -> None:
        self._connection.restoreFlags(f"{self._base}/{change.args['name']}/{MEMORY}", None, 0)

    def _stamp(self, change: Change) -> None:
        kept = self._world.find(change.args["name"])
        told = {
            "snapshot": change.args["name"],
            "created": None if kept is None else kept.created,
            "stamp": stamp(self._world.identity),
        }
        identity.write(f"{self._base}/{REVERTED}", json.dumps(told, indent=1))


_STEPS: dict[str, t.Callable[[_Apply, Change], None]] = {
    "save": _Apply._put_to_rest,
    "resume": _Apply._resume,
    "settle": _Apply._settle,
    "take": _Apply._take,
    "register": _Apply._register,
    "describe": _Apply._describe,
    "remove": _Apply._remove,
    "destroy": _Apply._destroy,
    "discard": _Apply._discard,
    "revert": _Apply._revert,
    "disk": _Apply._disk,
    "nvram": _Apply._nvram,
    "tpm": _Apply._tpm,
    "define": _Apply._define,
    "restore": _Apply._restore,
    "stamp": _Apply._stamp,
}
