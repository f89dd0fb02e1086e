# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host and guests to plan for, without libvirt. ``domains`` holds what libvirt 9.0.0 with QEMU 7.2 said."""

from __future__ import annotations

import copy
import pathlib
import typing

import pytest

from ansible_collections.phyllome.virt.plugins.module_utils._core import xml
from ansible_collections.phyllome.virt.plugins.module_utils._guest import (
    domain,
    plan,
    read,
    read_host,
    spec,
    tables,
    world,
)
from ansible_collections.phyllome.virt.plugins.module_utils._guest.storage import Image

DOMAINS = pathlib.Path(__file__).parent / "domains"
GIB = 1024**3
IMAGES = "/var/lib/libvirt/images"


class Lab:
    """What a test says: ``lab.decide(lab.guest("linux"), name="web", ...)``."""

    host = read_host.Host(
        type="qemu",
        arch="x86_64",
        hyperv=frozenset({"spinlocks"}),
        video=frozenset({"vga", "virtio"}),
        graphics=frozenset({"vnc", "spice"}),
        tpm=frozenset({"tpm-crb", "tpm-tis"}),
        uefi=True,
        secure_boot=True,
        store="/var/lib/libvirt/qemu/nvram",
    )

    @staticmethod
    def xml(name):
        return xml.parse((DOMAINS / f"{name}.xml").read_text())

    @staticmethod
    def device(option, root, name):
        kind = next(kind for kind in tables.KINDS if kind.option == option)
        return domain.device(kind, root, name)

    @staticmethod
    def marker(root):
        return domain.marker(root)

    def guest(self, name, live=None, **over):
        """A guest from captured XML; ``live`` names the running one's."""
        return self.of(self.xml(name), self.xml(live) if live else None, **over)

    @staticmethod
    def of(config, live=None, **over):
        values = {
            "name": config.findtext("name"),
            "uuid": config.findtext("uuid"),
            "state": "stopped" if live is None else "running",
            "reason": "unknown" if live is None else "booted",
            "persistent": True,
            "autostart": False,
            "config": config,
            "live": live,
            "blocks": {
                disk.find("target").get("dev"): (GIB, 200000) for disk in config.findall("devices/disk[@device='disk']")
            },
            "managed_save": False,
            "snapshots": 0,
            "checkpoints": 0,
            "migrating": False,
        }
        return read.Guest(**{**values, **over})

    def world(self, wanted, there=None, **over):
        """All is well: pool images, network default, images exist, files of the guest exist, nothing else does."""
        pools = {"images": read_host.Pool("dir", IMAGES, True)}
        paths = dict(world._paths(wanted, there, {**pools, **over.get("pools", {})}))
        used = set(world._of_guest(there))
        cdroms = {device.values.get("path") for device in wanted.devices.get("cdroms", ())} - {None, ""}
        sources = {disk.source.path for disk in wanted.devices.get("disks", ()) if disk.source}
        exists = {
            **dict.fromkeys(paths.values(), False),
            **dict.fromkeys(used | cdroms | sources, True),
            **over.pop("exists", {}),
        }
        values: dict[str, typing.Any] = {
            "host": self.host,
            "memory": 16 * GIB,
            "pools": pools,
            "networks": {"default": True},
            "bridges": {"br0": True},
            "paths": paths,
            "exists": exists,
            "images": dict.fromkeys(sources, Image("qcow2", GIB, 300 * 1024**2)),
            "free": {IMAGES: 100 * GIB},
            "libvirt": 9000000,
        }
        for name, value in over.items():
            values[name] = {**values[name], **value} if isinstance(values.get(name), dict) else value
        return world.World(**values)

    def decide(self, there=None, world=None, **options):
        wanted = spec.accept({"name": "web", **options})
        return plan.decide(wanted, there, self.world(wanted, there, **(world or {})))

    def after(self, decision, there=None, **options):
        """The guest once libvirt has taken the definition, as far as that can be known without libvirt."""
        config = copy.deepcopy(decision.config)
        marker = decision.marker.made({volume.id for volume in decision.marker.volumes})
        domain.set_marker(config, marker)
        sizes = {change.args["file"]: change.args["size"] for change in decision.plan if "size" in change.args}
        before = {} if there is None else dict(there.blocks)
        blocks = {}
        for disk in config.findall("devices/disk[@device='disk']"):
            target, file = disk.find("target").get("dev"), disk.find("source").get("file")
            blocks[target] = (sizes.get(file) or before.get(target, (GIB,))[0], 0)
        states = [change.after for change in decision.plan if change.path == "state"]
        state = states[-1] if states else ("stopped" if there is None else there.state)
        live = copy.deepcopy(config) if state in ("running", "paused") else None
        flags = [change.args["flag"] for change in decision.plan if change.path == "autostart"]
        autostart = [flag for flag in flags if flag is not None]
        return self.of(
            config,
            live,
            state=state,
            blocks=blocks,
            autostart=autostart[-1] if autostart else (there.autostart if there else False),
        )

    @staticmethod
    def seen(decision):
        """The plan as path, from, to."""
        return [(change.path, change.before, change.after) for change in decision.plan]


@pytest.fixture(scope="session")
def lab():
    return Lab()
