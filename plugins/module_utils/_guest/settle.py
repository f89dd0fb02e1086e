# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What belongs together among a guest's fields and devices: made to fit, or said why it does not.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import typing as t

from .._core import xml
from .._core.errors import PhyllomeError
from .._core.fields import MEMORY, Field
from . import values
from .table_cpu import VIRTIO_MEM, size_of
from .table_guest import DOMAIN

if t.TYPE_CHECKING:
    from .._core.xml import Element


def settle(
    root: Element, wanted: t.Mapping[str, t.Mapping[str, t.Any]], changed: t.Collection[str]
) -> t.Iterator[PhyllomeError]:
    """Make fit what belongs together, or say why it does not. What is not changed is not judged.

    Args:
        root: the guest's element, with its declared fields and devices written.
        wanted: these fields.
        changed: paths of what was changed, as a plan has them.
    """
    groups = {path.partition(".")[0] for path in changed}
    if "vcpus" in groups:
        yield from _topology(root, wanted.get("vcpus", {}))
    if groups & {"vcpus", "memory"}:
        yield from _cell(root, wanted)
    if "vcpus" in groups or any(path.endswith(".iothread") for path in changed):
        yield from _counted(root)
    if groups & {"graphics", "video", "channels"}:
        yield from _display_parts(root)
    if groups & {"memory", "filesystems"}:
        yield from _shared_memory(root)


def _topology(root: Element, wanted: t.Mapping[str, t.Any]) -> t.Iterator[PhyllomeError]:
    """A topology has to have room for exactly the maximum of vCPUs, or libvirt refuses the guest."""
    topology = xml.first(root, "cpu/topology")
    if topology is None:
        return
    maximum, others = int(root.findtext("vcpu") or 1), 1
    for name in ("sockets", "dies", "clusters", "threads"):
        others *= int(topology.get(name, "1"))
    cores = wanted.get("topology.cores") or maximum // others
    if cores * others != maximum or not cores:
        product = cores * others if "topology.cores" in wanted else others
        yield PhyllomeError(
            f"vcpus: {maximum} does not fit the guest's CPU topology",
            f"its sockets, dies{', cores' if 'topology.cores' in wanted else ''} and threads multiply to {product}",
            f"Choose a multiple of {others}, or declare another vcpus.topology.",
        )
        return
    for name, value in (("sockets", "1"), ("cores", str(cores)), ("threads", "1")):
        if name == "cores" or topology.get(name) is None:
            topology.set(name, value)


def _cell(root: Element, wanted: t.Mapping[str, t.Mapping[str, t.Any]]) -> t.Iterator[PhyllomeError]:
    """Memory devices belong to NUMA cells, so a guest that may have some needs one; and all vCPUs are in the cells."""
    maximum, cells = int(root.findtext("vcpu") or 1), root.findall("cpu/numa/cell")
    if not cells and xml.first(root, "maxMemory") is not None:
        size = DOMAIN[""][0].read(root)
        cells = [
            xml.child(
                xml.ensure(root, "cpu/numa"), "cell", id="0", memory=MEMORY.format(size or 0), unit="KiB", cpus="0"
            )
        ]
    if len(cells) == 1 and "numa" not in wanted.get("vcpus", {}):
        cells[0].set("cpus", values.cpu_list(range(maximum)))
    listed = [number for cell in cells for number in values.cpus(cell.get("cpus", "0"))]
    if cells and sorted(listed) != list(range(maximum)):
        yield PhyllomeError(
            f"vcpus.numa: its cells have {len(listed)} vCPUs ({values.cpu_list(sorted(set(listed)))})",
            f"each of the guest's {maximum} vCPUs belongs to exactly one cell",
            "Correct the cells, or the number of vCPUs.",
        )
    if xml.first(root, VIRTIO_MEM) is not None and xml.first(root, "maxMemory") is None:
        yield PhyllomeError(
            "memory.virtio_mem: the guest has no room for it",
            "memory.maximum is not declared",
            "Declare memory.maximum: at least the guest's memory and memory.virtio_mem.size.",
        )
    room, total = xml.first(root, "maxMemory"), size_of(xml.first(root, "memory"))
    if room is not None and size_of(room) < total:
        yield PhyllomeError(
            f"memory.maximum: {MEMORY.show(size_of(room))} is less than the {MEMORY.show(total)} that the guest has",
            "the guest's memory and its memory devices are part of it",
            "Declare more.",
        )
    size, requested = (size_of(xml.first(root, f"{VIRTIO_MEM}/target/{name}")) for name in ("size", "requested"))
    if requested > size:
        yield PhyllomeError(
            f"memory.virtio_mem.requested: {MEMORY.show(requested)} is more than its size, {MEMORY.show(size)}",
            "the size is its limit",
            "Declare less, or a bigger size.",
        )


def _row(group: str, option: str) -> Field:
    return {row.option: row for row in DOMAIN[group]}[option]


def _counted(root: Element) -> t.Iterator[PhyllomeError]:
    threads = int(root.findtext("iothreads") or 0)
    for found in root.findall("devices/disk/driver"):
        if int(found.get("iothread", "0")) > threads:
            yield PhyllomeError(
                f"disks: iothread {found.get('iothread')} is used",
                f"the guest has {threads} I/O threads",
                "Declare vcpus.iothreads.",
            )
    for option, maximum in (("pins", int(root.findtext("vcpu") or 1)), ("iothread_pins", threads + 1)):
        beyond = [key for key in _row("vcpus", option).read(root) if int(key) >= maximum]
        if beyond:
            yield PhyllomeError(
                f"vcpus.{option}: there is no {beyond[0]}", f"the last one is {maximum - 1}", "Correct the numbers."
            )


def _display_parts(root: Element) -> t.Iterator[PhyllomeError]:
    read = {f"{group}.{row.option}": row.read(root) for group in ("graphics", "video") for row in DOMAIN[group]}
    if read["video.accel3d"] and read["graphics.gl"] == "none":
        yield PhyllomeError(
            "video.accel3d: true", "nobody draws for it: graphics.gl is none", "Declare graphics.gl: headless."
        )
    if read["video.accel3d"] and read["video.model"] != "virtio":
        yield PhyllomeError(
            f"video.accel3d: true with video.model: {read['video.model']}",
            "of these cards only virtio draws in 3D",
            "Declare video.model: virtio.",
        )
    if read["graphics.gl"] == "local" and (read["graphics.type"], read["graphics.listen"]) != ("spice", "none"):
        yield PhyllomeError(
            "graphics.gl: local",
            "QEMU hands pictures over to a SPICE viewer on this host only, and not by an address",
            "Declare graphics.type: spice and graphics.listen: none, or graphics.gl: headless.",
        )
    if read["graphics.gl"] == "headless" and read["graphics.type"] == "none":
        yield PhyllomeError("graphics.gl: headless", "the guest has no display", "Declare graphics.type.")
    if len(read["graphics.password"] or "") > 8 and read["graphics.type"] == "vnc":
        yield PhyllomeError(
            "graphics.password: it is too long", "VNC has passwords of up to 8 characters", "Shorten it, or use spice."
        )
    if xml.first(root, "devices/channel[@type='spicevmc']") is not None and read["graphics.type"] != "spice":
        yield PhyllomeError(
            f"channels: spice with graphics.type: {read['graphics.type']}",
            "the channel is a part of SPICE",
            "Take spice out of channels, or declare graphics.type: spice.",
        )


def _shared_memory(root: Element) -> t.Iterator[PhyllomeError]:
    if _row("memory", "shared").read(root) or root.findall("cpu/numa/cell[@memAccess='shared']"):
        return
    if xml.first(root, "devices/filesystem/driver[@type='virtiofs']") is not None:
        yield PhyllomeError(
            "memory.shared: false",
            "the guest has a virtiofs file system, which needs shared memory",
            "Declare memory.shared: true, or take the file system away.",
        )
