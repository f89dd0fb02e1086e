# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole way from a host to ``ansible_facts.phyllome_host``, and from several hosts' CPUs to the one they share.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import os
import typing as t

from .._core import virt, xml
from .._core.errors import PhyllomeError
from .._core.sysfs import Tree
from .diagnose import virtualization
from .hypervisor import ON, Hypervisor, baseline, read_hypervisor
from .manifest import capacity, digests, manifest, reboot
from .read import read_identity
from .stack import read_kvm, read_stack

SCHEMA_VERSION = 1
PARTS = ("identity", "virtualization", "manifest", "cpu", "capacity", "reboot", "evacuated")


def tell(params: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """What ``host_facts`` does.

    Args:
        params: its options.
        check: makes no difference.

    Raises:
        PhyllomeError: a CPU that all the given ones can be was asked for, and there is none.
    """
    del check
    result: dict[str, t.Any] = {"changed": False}
    if params["gather"]:
        result["ansible_facts"] = {"phyllome_host": gather(Tree("/", "gather"), params["uri"], params["gather"])}
    if params["cpus"]:
        result["fleet_cpu"] = fleet_cpu(params["uri"], params["cpus"])
    return result


def gather(tree: Tree, uri: str, parts: t.Collection[str]) -> dict[str, t.Any]:
    """Read a host and judge it."""
    wanted = PARTS if "all" in parts else tuple(part for part in PARTS if part in parts)
    identity = read_identity(tree)
    kvm = read_kvm(tree, identity.kernel)
    stack = read_stack(tree)
    ask = {"identity", "virtualization", "manifest", "cpu", "capacity"} & {*wanted}
    hypervisor = read_hypervisor(uri) if ask else Hypervisor()
    whole = manifest(identity, kvm, stack, hypervisor)
    found: dict[str, t.Any] = {
        "identity": {"hostname": hypervisor.hostname, "host_uuid": hypervisor.uuid, "libvirt_error": hypervisor.error},
        "virtualization": virtualization(identity, kvm, None if hypervisor.error else hypervisor.types),
        "manifest": {"manifest": whole, "digests": digests(whole)},
        "cpu": {"cpu": hypervisor.cpu},
        "capacity": {"capacity": capacity(stack, hypervisor, os.cpu_count())},
        "reboot": {"reboot": reboot(identity, stack)},
        "evacuated": {"evacuated": stack.evacuated},
    }
    facts: dict[str, t.Any] = {"schema_version": SCHEMA_VERSION}
    for part in wanted:
        facts.update({part: found[part]} if part in ("identity", "virtualization") else found[part])
    return facts


def fleet_cpu(uri: str, cpus: t.Sequence[str]) -> dict[str, t.Any]:
    """The CPU that every one of the given ones can be, as ``cpu`` of a guest with mode custom.

    Each feature of the model is spelt out, since versions of libvirt and QEMU do not always mean the same by a model.

    Raises:
        PhyllomeError: there is none, or one of the texts is no CPU.
    """
    for text in cpus:
        root = xml.parse(text)
        if root.tag != "cpu" or root.findtext("model") is None:
            raise PhyllomeError(
                f"cpus: {text[:60]!r} is no CPU",
                "it has no element cpu with a model",
                "Give phyllome_host.cpu of each host, as this module returns it.",
            )
    with virt.session(uri) as connection:
        root = xml.parse(connection.getCapabilities())
        arch = root.findtext("host/cpu/arch") or connection.getInfo()[0]
        kvm = root.find(f"guest/arch[@name='{arch}']/domain[@type='kvm']") is not None
        vendors = sorted({xml.parse(text).findtext("vendor") or "?" for text in cpus})
        with virt.saying(
            f"The {len(cpus)} CPUs have no common one",
            f"Their vendors: {', '.join(vendors)}. Guests with cpu: fleet need hosts of one vendor; put the others into "
            "an inventory of their own.",
        ):
            shared = baseline(connection, arch, "kvm" if kvm else "qemu", sorted(set(cpus)), True)
    return {
        "model": shared.findtext("model"),
        "features": {
            str(one.get("name")): "require" if one.get("policy", "require") in ON else "disable"
            for one in sorted(shared.findall("feature"), key=lambda one: str(one.get("name")))
        },
    }
