# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keep a guest that is being moved from being started here, by whatever way.

libvirt runs this before it starts a guest, with the guest's XML on standard input, and starts none for which it
fails (https://libvirt.org/hooks.html). What it goes by is the mark that vm_migrate leaves in the guest's metadata:

- ``fenced="yes"``: the guest is leaving this host.
- ``phase="arriving"``: the guest has come by a cold move and is not handed over yet. Its files lie beside their
  places, under names that carry the move's op_id; libvirt cannot rename a volume, so they get their names here.
  vm_migrate asks for a start for that, and is refused like everybody else.
- ``phase="returning"``: a move is taken back, and the files get names that carry the op_id.
"""

from __future__ import annotations

import sys

# libvirt asks at every turn of a guest's life and waits for each answer, also in the middle of a live move.
if __name__ == "__main__" and sys.argv[2:3] != ["prepare"]:
    sys.exit()

import contextlib
import json
import os
import pwd
import re
import uuid as uuids

from lxml import etree

NAMESPACE = "https://phyllome.org/xmlns/virt/migration/1"
ETC = "/etc/libvirt"
TPM = "/var/lib/libvirt/swtpm"
SNAPSHOTS = "/var/lib/libvirt/phyllome/snapshots"


def marked(text: bytes) -> tuple[str | None, dict[str, str]]:
    """The guest's uuid, and the attributes of its mark, none without one."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    root = etree.fromstring(text, parser)
    mark = root.find(f"metadata/{{{NAMESPACE}}}migration")
    values = {} if mark is None else {str(key): str(value) for key, value in mark.attrib.items()}
    return root.findtext("uuid"), values


def defined(name: str) -> tuple[str | None, dict[str, str]]:
    """The same of the definition on disk: what is started may be older (virsh restore, virsh create)."""
    try:
        with open(os.path.join(ETC, "qemu", f"{name}.xml"), "rb") as stream:
            return marked(stream.read())
    except FileNotFoundError:
        return None, {}


def former(uuid: str | None, said: dict[str, str]) -> str:
    """The move that has brought the guest from here, if this one brings it back; vm_migrate names moves like that."""
    moves = uuids.uuid5(uuids.NAMESPACE_URL, NAMESPACE)
    return str(uuids.uuid5(moves, f"{uuid}/{said['source']}/{int(said.get('epoch', 0)) - 1}"))


def place(files: dict[str, str], op_id: str, former_id: str) -> None:
    """Give files that have arrived their names.

    Args:
        files: the name that each gets, and the one it has; one of them carries one of the op_ids.
        op_id: of the move.
        former_id: of the one before: what that has retained here was brought up to date.
    """
    suffixes = (f".phyllome-retained-{op_id}", f".phyllome-retained-{former_id}")
    for path, staged in sorted(files.items()):
        names = os.path.basename(path), os.path.basename(staged)
        if not any(name.startswith(f".phy-{op_id}-") or name.endswith(suffixes) for name in names):
            raise ValueError(f"{staged} is no file of this move")
        if not os.path.lexists(staged):
            if not os.path.lexists(path):
                raise ValueError(f"neither {staged} nor {path} is there")
            continue
        if os.path.lexists(path):
            raise ValueError(f"{path} is there already")
        kept = re.match(f"({re.escape(SNAPSHOTS)}/[^/]+/[^/]+)/(tpm/)?", path)
        if kept:
            private(kept[1])
        if path.startswith(f"{TPM}/") or (kept and kept[2]):
            own(staged, path)
        os.rename(staged, path)


def private(folder: str) -> None:
    """Make a folder that only root may look into, and those above it that are missing."""
    if not os.path.isdir(folder):
        private(os.path.dirname(folder))
        os.mkdir(folder, 0o700)


def own(staged: str, path: str) -> None:
    """Make the folders of a TPM's state, and give them and the state to who runs it."""
    settings: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError), open(os.path.join(ETC, "qemu.conf"), encoding="utf-8") as stream:
        settings = dict(re.findall(r'^\s*(\w+)\s*=\s*"([^"]*)"', stream.read(), re.MULTILINE))
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    names = [settings.get("swtpm_user", ""), "swtpm", "tss", "root"]
    user = next(users[name] for name in names if name in users)
    folder = os.path.dirname(path)
    os.makedirs(os.path.dirname(folder), mode=0o711, exist_ok=True)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for each, mode in ((folder, 0o700), (staged, 0o600)):
        os.chown(each, user.pw_uid, user.pw_gid)
        os.chmod(each, mode)


def refusal(name: str, text: bytes) -> str | None:
    """Why the guest is not started; None when nothing stands against it."""
    uuid, said = marked(text)
    if said.get("phase") in ("arriving", "returning"):
        place(json.loads(said.get("files", "{}")), said["op_id"], former(uuid, said))
        arrives = said["phase"] == "arriving"
        what = f"has arrived from {said['source']} and is not handed over yet" if arrives else "is being taken back"
        return f"The guest {name} {what}; run that again to finish it. placed {said['op_id']}"
    for one in (said, *(mark for its, mark in [defined(name)] if its == uuid)):
        if one.get("fenced") == "yes":
            return (
                f"The guest {name} is not started here, it is being moved from {one['source']} to "
                f"{one['destination']} (op_id {one['op_id']}). Run that move again to finish it, "
                "or phyllome.virt.vm_migrate with state: rolled_back to take it back."
            )
    return None


def main() -> None:
    """As libvirt calls it: guest, operation, sub-operation, extra argument."""
    name = sys.argv[1]
    try:
        why = refusal(name, sys.stdin.buffer.read())
    except (OSError, ValueError, KeyError, etree.XMLSyntaxError) as exc:
        why = f"The guest {name} is not started: whether it is being moved cannot be told: {exc}"
    if why:
        sys.stderr.write(f"{why}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
