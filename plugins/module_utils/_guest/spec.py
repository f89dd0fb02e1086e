# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wanted: options in, checked and canonical dataclasses out.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t
import uuid as uuids

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .._core import fields
from .._core.errors import PhyllomeError
from .._core.names import check_name
from .._core.units import format_size
from . import autostart, clone_spec, fleet_cpu, install, seed, values, wait
from .overlay import Overlay, overlays
from .profiles import PROFILES
from .spec_devices import DEVICE_OPTIONS, Device, accept_device, usb_identity
from .tables import DOMAIN, KINDS, DeviceKind


def _device_options(kind: DeviceKind) -> dict[str, t.Any]:
    options = {"id": {"type": "str", "required": True}, **fields.argument_spec(kind.rows)}
    for name, option in DEVICE_OPTIONS.get(kind.option, {}).items():
        fields_too = options.get(name, {}).get("options", {})
        options[name] = {**option, "options": {**fields_too, **option["options"]}} if fields_too else option
    return options


def _group(group: str) -> dict[str, t.Any]:
    """An option that holds a group of rows; those of the top level that have a long form are in it as well."""
    short = {"memory": {"size": {"type": "str"}}, "vcpus": {"current": {"type": "int"}}}.get(group, {})
    rows = fields.argument_spec(DOMAIN[group])
    more = {"firmware": {"nvram": {"type": "str", "choices": ["keep", "reset"]}}}.get(group, {})
    if group == "cpu":
        more = {"mode": {**rows["mode"], "choices": [*rows["mode"]["choices"], "fleet"]}}
    return {"type": "dict", "options": {**short, **rows, **more}}


GUEST_OPTIONS: dict[str, dict[str, t.Any]] = {
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "running", "stopped", "paused", "absent"]},
    "profile": {"type": "str", "choices": list(PROFILES)},
    **fields.argument_spec(DOMAIN[""]),
    **{group: _group(group) for group in DOMAIN if group},
    **{
        kind.option: {
            "type": "list",
            "elements": "dict",
            "options": _device_options(kind),
        }
        for kind in KINDS
    },
    "apply": {"type": "str", "choices": ["live", "next_boot", "restart"]},
    "on_unplug_timeout": {"type": "int"},
    "cloud_init": {"type": "dict", "options": seed.OPTIONS},
    "install": {"type": "dict", "options": install.OPTIONS},
    "clone_from": {"type": "dict", "options": clone_spec.OPTIONS},
    "wait": {"type": "dict", "options": wait.OPTIONS},
    "xml": {"type": "dict", "options": {"guest": {"type": "str"}, "devices": {"type": "dict"}}},
    "autostart": {"type": "raw"},
    "adopt": {"type": "bool"},
    "protected": {"type": "bool"},
    "unmanaged_devices": {"type": "str", "choices": ["keep", "prune"]},
    "delete": {
        "type": "dict",
        "options": {
            "disks": {"type": "str", "choices": ["none", "owned"]},
            "nvram": {"type": "bool"},
            "tpm": {"type": "bool"},
            "snapshots": {"type": "str", "choices": ["metadata", "refuse"]},
        },
    },
    "shutdown": {
        "type": "dict",
        "options": {"timeout": {"type": "int"}, "then": {"type": "str", "choices": ["fail", "destroy"]}},
    },
}
"""Options of one guest. No defaults here: ``defaults`` of the module come before those of this file."""

ARGUMENTS: dict[str, dict[str, t.Any]] = {
    **GUEST_OPTIONS,
    # the short form is no dictionary; accept takes both
    "memory": {"type": "raw"},
    "vcpus": {"type": "raw"},
    "cpu": {"type": "raw"},
    "fleet_cpu": {"type": "dict", "options": fleet_cpu.OPTIONS},
    "uri": {"type": "str", "default": "qemu:///system"},
    "guests": {"type": "list", "elements": "dict"},
    "defaults": {"type": "dict"},
    "assume_bound": {"type": "list", "elements": "str"},
}


SECRET = ("user_data", "kickstart", "password", "passphrase")
"""Options that are never shown: they are passwords, or tend to have some in them."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One declared guest; None and what is missing in the mappings is not managed.

    Attributes:
        fields: canonical values by group of ``tables.DOMAIN`` and option.
        devices: by list option; a list that is not declared is not there.
        shutdown_timeout, unplug_timeout: seconds.
        apply: ``live``, ``next_boot`` or ``restart``.
        overlays: raw XML that is merged in, by path in messages.
        reset_nvram: whether UEFI variables may be made anew.
    """

    name: str
    uuid: str | None
    state: str
    profile: str | None
    fields: t.Mapping[str, t.Mapping[str, t.Any]]
    devices: t.Mapping[str, tuple[Device, ...]]
    autostart: autostart.Autostart | None
    protected: bool | None
    adopt: bool
    prune: bool
    delete_disks: bool
    delete_nvram: bool
    delete_tpm: bool
    keep_snapshots: bool
    shutdown_timeout: int
    destroy: bool
    apply: str = "live"
    unplug_timeout: float = 20
    cloud_init: seed.Seed | None = None
    install: install.Install | None = None
    clone: clone_spec.Clone | None = None
    wait: wait.Wait | None = None
    overlays: t.Sequence[Overlay] = ()
    reset_nvram: bool = False


def guests(params: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """The guests' options as given, ``defaults`` filled in.

    Raises:
        PhyllomeError: not exactly one of ``name`` and ``guests``, or a guest's option beside ``guests``.
    """
    beside = sorted(name for name in GUEST_OPTIONS if params.get(name) is not None)
    if params.get("guests") is None:
        if params.get("name") is None or params.get("defaults") is not None:
            raise PhyllomeError(
                "There is no guest to work on" if params.get("name") is None else "defaults is given without guests",
                "either name or guests is needed, and defaults belongs to guests",
                "Give name for one guest, guests for many.",
            )
        return [{name: params[name] for name in beside}]
    if beside:
        raise PhyllomeError(
            f"{', '.join(beside)}: given beside guests",
            "with guests, every guest brings its own options",
            "Put what all guests share into defaults.",
        )
    defaults = {name: value for name, value in (params.get("defaults") or {}).items() if value is not None}
    declared = [
        {**defaults, **{name: value for name, value in guest.items() if value is not None}}
        for guest in params["guests"]
    ]
    names = [guest.get("name") for guest in declared]
    for name in names:
        if names.count(name) > 1:
            raise PhyllomeError(
                f"guests: {name!r} is listed {names.count(name)} times",
                "a guest has one entry",
                "Remove the others." if name else "Give each entry its name.",
            )
    return declared


def accept(given: t.Mapping[str, t.Any], everywhere: t.Mapping[str, t.Any] | None = None) -> Wanted:
    """Check one guest's options and make them canonical.

    Args:
        given: the options.
        everywhere: what ``cpu: fleet`` stands for, ``model`` and ``features``.

    Raises:
        PhyllomeError: the first rule that is broken, with option, value and remedy.
    """
    checked = ArgumentSpecValidator(GUEST_OPTIONS).validate(_long(_set(given)))
    if checked.error_messages:
        raise PhyllomeError(
            f"Guest {given.get('name')!r}: options are not valid",
            "; ".join(checked.error_messages),
            "See ansible-doc phyllome.virt.phyllome_vm.",
        )
    options = checked.validated_parameters
    if options.get("name") is None:
        raise PhyllomeError("A guest has no name", "name is required", "Give it one.")
    firmware = options.get("firmware") or {}
    _check_firmware(firmware)
    shared = (options.get("cpu") or {}).get("mode") == "fleet"
    if shared:
        options["cpu"] = fleet_cpu.accept(options["cpu"], everywhere)
    declared = {
        group: fields.accept(rows, _given(options, group), group and f"{group}.") for group, rows in DOMAIN.items()
    }
    if shared:
        declared["cpu"]["features"] = values.Whole(declared["cpu"]["features"])
    _check_groups(declared)
    devices = {
        kind.option: tuple(accept_device(kind, _set(entry)) for entry in options[kind.option])
        for kind in KINDS
        if options.get(kind.option) is not None
    }
    _check_unique(devices)
    _check_shared(declared, devices)
    delete, shutdown = options.get("delete") or {}, options.get("shutdown") or {}
    owned = delete.get("disks") == "owned"
    return Wanted(
        name=check_name(options["name"], "name"),
        uuid=_uuid(options.get("uuid")),
        state=options.get("state") or "running",
        profile=options.get("profile"),
        fields=declared,
        devices=devices,
        autostart=None if options.get("autostart") is None else autostart.accept(options["autostart"]),
        protected=options.get("protected"),
        adopt=bool(options.get("adopt")),
        prune=options.get("unmanaged_devices") == "prune",
        delete_disks=owned,
        delete_nvram=_or(delete.get("nvram"), owned),
        delete_tpm=_or(delete.get("tpm"), owned),
        keep_snapshots=delete.get("snapshots") == "refuse",
        shutdown_timeout=_seconds(shutdown.get("timeout"), "shutdown.timeout", 120),
        destroy=shutdown.get("then") == "destroy",
        apply=options.get("apply") or "live",
        unplug_timeout=_seconds(options.get("on_unplug_timeout"), "on_unplug_timeout", 20),
        cloud_init=None if options.get("cloud_init") is None else seed.accept(options["cloud_init"]),
        install=None if options.get("install") is None else install.accept(options["install"]),
        clone=None if options.get("clone_from") is None else clone_spec.accept(options["clone_from"]),
        wait=None if options.get("wait") is None else wait.accept(options["wait"]),
        overlays=overlays(options.get("xml") or {}),
        reset_nvram=firmware.get("nvram") == "reset",
    )


def passphrase(wanted: Wanted, disk: str) -> str | None:
    """The declared passphrase of a disk."""
    return next((each.passphrase for each in wanted.devices.get("disks", ()) if each.id == disk), None)


def mac_address(uuid: str, device: str) -> str:
    """The MAC address of a new network card: QEMU's prefix and a hash of guest and id."""
    digest = hashlib.sha256(f"{uuid}/{device}".encode()).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"


def disk_serial(uuid: str, disk: str) -> str:
    """A serial number for a disk, as long as NVMe allows: a hash of guest and disk."""
    return hashlib.sha256(f"{uuid}/{disk}".encode()).hexdigest()[:20]


def _long(given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Short forms as long ones: ``memory: 2GiB`` is ``memory: {size: 2GiB}``."""
    short = {"memory": "size", "vcpus": "current", "cpu": "mode"}
    return {
        name: value if name not in short or isinstance(value, t.Mapping) else {short[name]: value}
        for name, value in given.items()
    }


def _given(options: t.Mapping[str, t.Any], group: str) -> dict[str, t.Any]:
    if group:
        return options.get(group) or {}
    long = {"memory": (options.get("memory") or {}).get("size"), "vcpus": (options.get("vcpus") or {}).get("current")}
    return {**options, **long}


def _set(value: t.Any) -> t.Any:
    """The same without what is None, which means that it is not managed, at any depth."""
    if isinstance(value, t.Mapping):
        return {name: _set(each) for name, each in value.items() if each is not None}
    return [_set(each) for each in value] if isinstance(value, list) else value


def _or(value: t.Any, default: t.Any) -> t.Any:
    return default if value is None else value


def _seconds(value: int | None, option: str, default: int) -> int:
    if value is not None and value < 1:
        raise PhyllomeError(f"{option}: {value} is too small", "it counts seconds", "Write 1 or more.")
    return default if value is None else value


def _uuid(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return str(uuids.UUID(value))
    except ValueError as exc:
        raise PhyllomeError(
            f"uuid: {value!r} is not a UUID",
            str(exc),
            "Leave it out to get one from the name, or write 8-4-4-4-12 hexadecimal digits.",
        ) from exc


def _check_firmware(firmware: t.Mapping[str, t.Any]) -> None:
    for option in ("secure_boot", "enrolled_keys"):
        if firmware.get("type") == "bios" and firmware.get(option):
            raise PhyllomeError(
                f"firmware.{option}: true with firmware.type: bios",
                "only UEFI has Secure Boot and its keys",
                f"Say firmware.type: uefi, or leave {option} out.",
            )
    if firmware.get("secure_boot") is False and firmware.get("enrolled_keys"):
        raise PhyllomeError(
            "firmware.enrolled_keys: true with firmware.secure_boot: false",
            "the keys are those of Secure Boot",
            "Say firmware.secure_boot: true, or leave enrolled_keys out.",
        )


def _check_groups(declared: dict[str, dict[str, t.Any]]) -> None:
    """What belongs together among the fields of the guest itself."""
    cpu, vcpus, top = declared["cpu"], declared["vcpus"], declared[""]
    if ("model" in cpu) != (cpu.get("mode") == "custom"):
        raise PhyllomeError(
            f"cpu.model: {cpu.get('model')} with cpu.mode: {cpu.get('mode')}",
            "a model is named for mode custom, and only for it",
            "Declare both cpu.mode: custom and cpu.model, or another mode alone.",
        )
    if "migratable" in cpu and cpu.get("mode") not in ("host-passthrough", "maximum"):
        raise PhyllomeError(
            f"cpu.migratable: {cpu['migratable']} with cpu.mode: {cpu.get('mode')}",
            "only host-passthrough and maximum can be more than what migrates",
            "Declare cpu.mode: host-passthrough, or leave migratable out.",
        )
    if "numa" in vcpus:
        total = sum(size for dummy, size in vcpus["numa"])
        if not vcpus["numa"] or top.setdefault("memory", total) != total:
            raise PhyllomeError(
                f"vcpus.numa: its {len(vcpus['numa'])} cells have {format_size(total) if total else 'no memory'}",
                "the guest's memory is that of its cells",
                "Correct the cells, or leave memory.size out.",
            )
    if "maximum" in vcpus and top.get("vcpus", 1) > vcpus["maximum"]:
        raise PhyllomeError(
            f"vcpus.current: {top['vcpus']} is more than vcpus.maximum: {vcpus['maximum']}",
            "the maximum is what the guest can have",
            "Raise the maximum, or lower current.",
        )
    memory = declared["memory"]
    if "current" in memory and "memory" in top and memory["current"] > top["memory"]:
        raise PhyllomeError(
            f"memory.current: {format_size(memory['current'])} is more than memory.size",
            "the balloon takes memory away and gives it back",
            "Declare at most memory.size.",
        )
    for group in ("graphics", "rng", "watchdog"):
        kind = {"graphics": "type", "rng": "backend", "watchdog": "model"}[group]
        others = sorted(set(declared[group]) - {kind})
        if declared[group].get(kind) == "none" and (
            others and others != ["gl"] or declared[group].get("gl", "none") != "none"
        ):
            raise PhyllomeError(
                f"{group}.{others[0]}: given beside {group}.{kind}: none",
                "there is nothing that it belongs to",
                "Leave it out.",
            )


def _check_shared(declared: dict[str, dict[str, t.Any]], devices: t.Mapping[str, tuple[Device, ...]]) -> None:
    """virtiofs reads the guest's memory from another process. (virt-manager issue 127: users do not know.)"""
    for device in devices.get("filesystems", ()):
        virtiofs = device.values.get("driver", "virtiofs") == "virtiofs"
        if virtiofs and not declared["memory"].setdefault("shared", True):
            raise PhyllomeError(
                f"memory.shared: false with {device.path} (virtiofs)",
                "virtiofs reads and writes the guest's memory from a process of its own",
                "Leave memory.shared out, or say driver: 9p.",
            )


def _check_unique(devices: t.Mapping[str, tuple[Device, ...]]) -> None:
    for what, key in (
        ("id", lambda device: device.id),
        ("boot", lambda device: device.values.get("boot")),
        ("mac", lambda device: device.values.get("mac")),
        ("path", lambda device: device.values.get("path") or None),
        ("block", lambda device: device.values.get("block")),
        ("tag", lambda device: device.values.get("tag")),
        ("pci", lambda device: device.values.get("pci")),
        ("mdev", lambda device: device.values.get("mdev")),
        ("usb", usb_identity),
        ("acpi_index", lambda device: device.values.get("acpi_index")),
    ):
        seen: dict[t.Any, Device] = {}
        for device in (device for listed in devices.values() for device in listed):
            value = key(device)
            if value is not None and value in seen and not (what == "path" and device.kind.option == "cdroms"):
                raise PhyllomeError(
                    f"{device.kind.option}: {what} {value!r} is used twice (also in {seen[value].kind.option})",
                    f"each device of a guest has its own {what}, whatever its kind",
                    "Choose another.",
                )
            seen.setdefault(value, device)
