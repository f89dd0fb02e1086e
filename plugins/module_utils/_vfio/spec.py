# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wanted of devices: the options of vfio_bind.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._core.errors import PhyllomeError
from .._core.names import check_path
from .._core.sysfs import PCI_ADDRESS, is_vfio

State = t.Literal["bound", "unbound", "original"]

LOST: dict[str, str] = {  # word of consent → what it gives up
    "mounted_storage": "file systems, swap or volumes on it are torn away from whoever uses them, and what is not written is lost",
    "has_data": "the guest can read and overwrite what is on it",
    "mgmt_nic": "this host is no longer reached over it",
    "nic_used": "whatever talks over it is cut off",
    "primary_gpu": "the screen of this host goes dark, so that it is only reached over the network",
    "usb_boot": "what the boot loader is read from is gone from the host",
    "collateral": "what was made of it, virtual functions and the like, is gone with it",
    "acs_override": "groups prove nothing: devices of different groups may reach each other past the IOMMU, and a guest that "
    "has one of them may reach the memory of the host and of other guests through that",
    "unsafe_interrupts": "a guest can send interrupts of its choice to the host, and so crash it or take it over",
    "risky_unbind": "who has it open loses it, or the driver waits for them and hangs",
    "no_reset": "it keeps the state, and perhaps the data, of one user for the next",
}
CONSENT = tuple(LOST)
_OF_A_GUEST = ("other_guest", "opened")
ARGUMENTS: dict[str, t.Any] = {
    "devices": {"type": "list", "elements": "str"},
    "select": {"type": "str"},
    "expect_count": {"type": "int"},
    "functions": {
        "type": "list",
        "elements": "dict",
        "options": {"device": {"type": "str", "required": True}, "count": {"type": "int", "default": 1}},
    },
    "state": {"type": "str", "choices": ["bound", "unbound", "original"], "default": "bound"},
    "driver": {"type": "str", "default": "auto"},
    "group_policy": {
        "type": "str",
        "choices": ["refuse_partial", "companions", "whole_group"],
        "default": "refuse_partial",
    },
    "persist": {"type": "bool", "default": True},
    "runtime": {"type": "str", "choices": ["auto", "never", "force"], "default": "auto"},
    "consent": {"type": "list", "elements": "str", "choices": list(CONSENT), "default": []},
    "protect": {"type": "list", "elements": "str", "default": []},
    "timeout": {"type": "int", "default": 30},
    "initramfs": {"type": "str", "choices": ["now", "later", "only"], "default": "now"},
    "sysfs_root": {"type": "path", "default": "/"},
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The options, checked.

    Attributes:
        devices: addresses or identity keys.
        functions: (address or key of a physical function, count of its virtual functions).
        driver: None for the one that knows most of a device.
        initramfs: ``later`` leaves it to another run, ``only`` does what was left.
    """

    devices: tuple[str, ...]
    select: str | None
    expect_count: int | None
    functions: tuple[tuple[str, int], ...]
    state: State
    driver: str | None
    group_policy: str
    persist: bool
    runtime: str
    consent: frozenset[str]
    protect: tuple[str, ...]
    timeout: int
    initramfs: str
    root: str


def wanted(params: t.Mapping[str, t.Any], check_mode: bool) -> Wanted:
    """Check options.

    Raises:
        PhyllomeError: they contradict each other or ask for what cannot be.
    """
    root = check_path(params["sysfs_root"], "sysfs_root")
    if root != "/" and not check_mode:
        raise PhyllomeError(
            f"sysfs_root: {root} is not this machine",
            "nothing can be bound in files that were captured",
            "Use check mode to see what would be done there, or leave the option out.",
        )
    state, named = params["state"], [name for name in ("devices", "select") if params[name]]
    functions = tuple((each["device"], each["count"]) for each in params["functions"] or ())
    if len(named) == 2:
        raise PhyllomeError(
            "devices and select: both given", "each of them says all that is meant", "Leave one of them out."
        )
    if params["initramfs"] == "only" and (named or functions or state != "bound"):
        raise PhyllomeError(
            "initramfs: only, and devices as well",
            "nothing but the initramfs is made then",
            "Leave everything else out, or say initramfs: now.",
        )
    if not named and not functions and state != "original" and params["initramfs"] != "only":
        raise PhyllomeError(
            "devices, select and functions: all empty",
            "nothing is asked for",
            "Name devices, or say state: original to take back what was done.",
        )
    if params["expect_count"] is not None and not params["select"]:
        raise PhyllomeError("expect_count: given without select", "there is nothing to count", "Leave it out.")
    if functions and state == "unbound":
        raise PhyllomeError(
            "functions: given with state: unbound",
            "virtual functions are made for guests",
            "Say state: bound, or state: original to remove them again.",
        )
    for device, count in functions:
        if count < 1 and state == "bound":
            raise PhyllomeError(
                f"functions: {count} of {device}", "a count is 1 or more", "Say state: original to remove them again."
            )
    if params["timeout"] < 1:
        raise PhyllomeError(f"timeout: {params['timeout']}", "a driver needs a second or more", "Correct it.")
    driver = None if params["driver"] == "auto" else str(params["driver"])
    if driver is not None and ("vfio" not in driver or not driver.replace("-", "").replace("_", "").isalnum()):
        raise PhyllomeError(
            f"driver: {driver!r} gives nothing to guests",
            "it is not a driver of VFIO",
            "Use auto, vfio-pci or a variant of it such as mlx5_vfio_pci.",
        )
    return Wanted(
        devices=tuple(dict.fromkeys(params["devices"] or ())),
        select=params["select"] or None,
        expect_count=params["expect_count"],
        functions=functions,
        state=state,
        driver="vfio-pci" if driver == "vfio_pci" else driver,
        group_policy=params["group_policy"],
        persist=params["persist"],
        runtime=params["runtime"],
        consent=frozenset(params["consent"]),
        protect=tuple(params["protect"]),
        timeout=params["timeout"],
        initramfs=params["initramfs"],
        root=root,
    )


def find(device: str, facts: t.Mapping[str, t.Any]) -> str:
    """The address of a device that is named by its address or by its identity.

    Raises:
        PhyllomeError: there is no such device, or there are several.
    """
    address = device.lower()
    if PCI_ADDRESS.match(address):
        found = [one["address"] for one in facts["devices"] if one["address"] == address]
    else:
        found = [one["address"] for one in facts["devices"] if one["identity"]["key"] == device]
    if len(found) == 1:
        return str(found[0])
    raise PhyllomeError(
        f"devices: {device!r} is not on this host" if not found else f"devices: {device!r} is more than one device",
        "no PCI device has this address or identity" if not found else f"{', '.join(found)} have this identity",
        "See ansible_facts.phyllome_iommu.devices[].address and .identity.key of iommu_facts.",
    )


def select(expression: str, facts: t.Mapping[str, t.Any], expected: int | None) -> tuple[str, ...]:
    """The addresses that a JMESPath over the devices yields: the same before and after a guest was given what they name.

    Raises:
        PhyllomeError: the library is not there, the expression is none, or it does not yield what is expected.
    """
    try:
        import jmespath
        from jmespath.exceptions import JMESPathError
    except ImportError as exc:
        raise PhyllomeError(
            "select: cannot be evaluated on this host",
            "the Python library jmespath is not there",
            "Install it (python3-jmespath on Debian, Fedora and EL, python-jmespath on Arch), or name devices.",
        ) from exc
    try:
        found = jmespath.search(expression, [_as_before(one) for one in facts["devices"]])
    except JMESPathError as exc:
        raise PhyllomeError(
            f"select: {expression!r} is no JMESPath", " ".join(str(exc).split()), "See https://jmespath.org/."
        ) from exc
    known = {one["address"] for one in facts["devices"]}
    if not isinstance(found, list) or not all(isinstance(one, str) and one in known for one in found):
        raise PhyllomeError(
            f"select: {expression!r} yields no addresses",
            f"it yields {str(found)[:200]}",
            "End it with .address, for instance [?class_name=='nvme' && !hazards].address.",
        )
    unique = tuple(dict.fromkeys(found))
    if len(unique) != expected if expected is not None else not unique:
        raise PhyllomeError(
            f"select: {expression!r} yields {len(unique)} devices{': ' if unique else ''}{', '.join(unique)}",
            f"expect_count says {expected}" if expected is not None else "nothing would be bound",
            "Correct the expression or expect_count; devices of a host change when cards are added or removed.",
        )
    return unique


def _as_before(device: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any]:
    """A device as it is while no guest uses it: that one does is what it was bound for."""
    if not is_vfio(device["driver"]):
        return device
    return {**device, "hazards": [one for one in device["hazards"] if one["code"] not in _OF_A_GUEST]}
