# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plug-in rules: this USB device belongs to that guest, now and at every plug.

The role phyllome.virt.hypervisor installs this very file on hosts, where udev has it run whenever a USB device comes or
goes and whenever a guest starts. So it imports nothing of the collection, and whoever changes it changes both.

A run looks at all guests and all devices and brings the ones to the others. What a run that was cut off left undone, the
next one does; a run with nothing to do does nothing.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import sys
import time
import typing as t

NAMESPACE = "{https://phyllome.org/xmlns/virt/guest/1}"
RULE = "plug"
"""Our element for a rule, in a guest's metadata."""
ALIAS = "ua-"
_NOT_DEVICES = re.compile(r"usb[0-9]+|.*:.*")
_HUB = "09"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which device belongs to the guest; what is None may be anything.

    Attributes:
        id: of the device in the guest.
        vendor, product: as libvirt writes them, ``0x046d``.
        serial: as the device tells it.
        port: where it is plugged in, in the kernel's words: bus, and the way from its root hub, ``1-2.3``.
    """

    id: str
    vendor: str | None = None
    product: str | None = None
    serial: str | None = None
    port: str | None = None

    def takes(self, device: Device) -> bool:
        """Whether that device is one of those that are meant."""
        return all(mine is None or mine == getattr(device, name) for name, mine in self.said().items())

    def said(self) -> dict[str, str | None]:
        """The rule but for the id."""
        return {"vendor": self.vendor, "product": self.product, "serial": self.serial, "port": self.port}

    def __str__(self) -> str:
        return " ".join(f"{name} {value}" for name, value in self.said().items() if value is not None)


@dataclasses.dataclass(frozen=True)
class Device:
    """A USB device of the host, hubs left out."""

    port: str
    bus: int
    number: int
    vendor: str
    product: str
    serial: str | None = None

    def __str__(self) -> str:
        return f"usb {self.vendor}:{self.product} at port {self.port}"


@dataclasses.dataclass(frozen=True)
class Guest:
    """A guest with rules.

    Attributes:
        attached: bus and number of the device that it has, by the rule's id; None when the guest is off.
    """

    name: str
    rules: tuple[Rule, ...]
    attached: t.Mapping[str, tuple[int, int]] | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """Take a guest's device away, where ``device`` is None, or give it one."""

    guest: str
    id: str
    device: Device | None


def overlap(one: Rule, other: Rule, devices: t.Sequence[Device] = ()) -> bool:
    """Whether two rules mean the same device, now or some day.

    Args:
        one, other: the rules.
        devices: those that are plugged in: they tell about rules that name different things.
    """
    mine, theirs = one.said(), other.said()
    both = {name for name in mine if mine[name] is not None and theirs[name] is not None}
    if any(mine[name] != theirs[name] for name in both):
        return False
    if "port" in both or {"vendor", "product"} <= both:
        return True
    return any(one.takes(device) and other.takes(device) for device in devices)


def settle(devices: t.Sequence[Device], guests: t.Sequence[Guest]) -> tuple[list[Step], dict[Device, tuple[str, ...]]]:
    """What has to be done so that every guest that runs has its devices.

    A device that two guests claim is given to neither, and one that is a guest's already stays there.

    Returns:
        The steps, those that take away first, and the names of the guests for devices that several claim.
    """
    claims = {
        device: tuple(guest.name for guest in guests if any(rule.takes(device) for rule in guest.rules))
        for device in devices
    }
    contested = {device: names for device, names in claims.items() if len(names) > 1}
    steps: list[Step] = []
    for guest in guests:
        if guest.attached is None:
            continue
        taken: set[Device] = set()
        for rule in guest.rules:
            fitting = sorted((one for one in devices if rule.takes(one) and one not in taken), key=_place)
            has = guest.attached.get(rule.id)
            kept = next((one for one in fitting if (one.bus, one.number) == has), None)
            if kept is None:
                if has is not None:
                    steps.append(Step(guest.name, rule.id, None))
                kept = next((one for one in fitting if one not in contested), None)
                if kept is not None:
                    steps.append(Step(guest.name, rule.id, kept))
            if kept is not None:
                taken.add(kept)
    return sorted(steps, key=lambda step: step.device is not None), contested


def _place(device: Device) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", device.port))


def devices(folder: str = "/sys/bus/usb/devices") -> tuple[Device, ...]:
    """The USB devices of this host (Linux, Documentation/ABI/stable/sysfs-bus-usb)."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            if not _NOT_DEVICES.fullmatch(name):
                with contextlib.suppress(OSError, ValueError):  # it may be gone by now
                    found.append(_device(os.path.join(folder, name), name))
    return tuple(device for device in found if device is not None)


def _device(folder: str, name: str) -> Device | None:
    def tell(file: str) -> str:
        with open(os.path.join(folder, file), encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()

    if tell("bDeviceClass") == _HUB:
        return None
    serial = None
    with contextlib.suppress(FileNotFoundError):
        serial = tell("serial")
    ids = (f"0x{tell('idVendor')}", f"0x{tell('idProduct')}")
    return Device(name, int(tell("busnum")), int(tell("devnum")), *ids, serial or None)


def rules(root: t.Any) -> tuple[Rule, ...]:
    """The rules in a domain's element."""
    found = root.findall(f"metadata/{NAMESPACE}guest/{NAMESPACE}{RULE}")
    return tuple(Rule(*(one.get(name) for name in ("id", "vendor", "product", "serial", "port"))) for one in found)


def attached(live: t.Any, known: t.Iterable[Rule]) -> dict[str, tuple[int, int]]:
    """Bus and number of the devices that a running guest has by its rules; a number that is not told is 0."""
    has = {}
    for rule in known:
        source = live.find(f"devices/hostdev/alias[@name='{ALIAS}{rule.id}']/../source")
        if source is not None:
            address = source.find("address")
            where = {} if address is None else address.attrib
            has[rule.id] = (int(where.get("bus", 0)), int(where.get("device", 0)))
    return has


# What follows is the program on the host.

_LOCK = "/run/phyllome-plug"
_PATIENCE = 120
"""Seconds for a guest that is being started, and for a libvirt that is."""
_TRIES = 5
"""How often anything else is tried: what a device that came and went made fail is right at the next look."""
_STARTING = 68
"""VIR_ERR_OPERATION_TIMEOUT: libvirt is busy with the guest."""


def main(names: list[str]) -> int:
    """Do it for all guests.

    Args:
        names: guests that have to have their devices afterwards; without, whoever ran this does not wait for it.

    Returns:
        The exit status: 1 when something could not be done, which is then said.
    """
    with contextlib.ExitStack() as stack:
        if not _turn(stack, wait=bool(names)):
            return 0  # somebody else waits already, and will look at all that there is
        end, tries = time.monotonic() + _PATIENCE, 0
        while True:
            failed, claimed, patient = _round(names)
            tries += not patient
            if not failed or tries == _TRIES or time.monotonic() > end:
                break
            time.sleep(1)
    for message in (*failed.values(), *claimed):
        sys.stderr.write(f"{message}\n")
    return 1 if failed or claimed else 0


def _turn(stack: contextlib.ExitStack, wait: bool) -> bool:
    """One at a time works; of those that want to, one waits. False for all others."""

    def lock(name: str, block: bool) -> t.Any:
        stream = open(f"{_LOCK}.{name}", "w", encoding="ascii")  # noqa: SIM115
        stack.callback(stream.close)
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        return stream

    try:
        queue = None if wait else lock("next", False)
    except BlockingIOError:
        return False
    lock("lock", True)
    if queue is not None:
        fcntl.flock(queue, fcntl.LOCK_UN)  # what happens from now on is the next one's
    return True


def _round(names: list[str]) -> tuple[dict[str, str], list[str], bool]:
    """Look and do until nothing is left to do, or something failed.

    Returns:
        What failed, by guest and device; what several guests claim; and whether it is worth waiting for long.
    """
    import libvirt

    libvirt.registerErrorHandler(lambda context, error: None, None)
    try:
        connection = libvirt.open("qemu:///system")
    except libvirt.libvirtError as exc:
        return {"": f"libvirt does not answer: {exc}"}, [], True
    failed: dict[str, str] = {}
    claimed: list[str] = []
    patient = False
    try:
        for dummy in range(_TRIES):
            domains = {found.name(): found for found in connection.listAllDomains()}
            steps, contested = settle(devices(), _guests(domains.values()))
            claimed = [
                f"{device} is claimed by guests {', '.join(claim)}: none of them is given it"
                for device, claim in contested.items()
                if not names or set(names) & set(claim)
            ]
            failed, done = {}, False
            for step in steps:
                what = f"Guest {step.guest}, {step.id}"
                try:
                    _do(domains[step.guest], step)
                    sys.stderr.write(f"{what}: {step.device or 'taken back'}\n")
                    done = True  # see whether it stuck
                except libvirt.libvirtError as exc:
                    patient = patient or exc.get_error_code() == _STARTING
                    if not names or step.guest in names:
                        failed[what] = f"{what}: {exc}"
            if not done:
                break
        else:
            failed[""] = "What libvirt was told did not stick"
    except libvirt.libvirtError as exc:
        return {"": f"libvirt went away: {exc}"}, claimed, True
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()
    return failed, claimed, patient


def _guests(domains: t.Iterable[t.Any]) -> list[Guest]:
    import libvirt
    from lxml import etree

    def parse(text: str) -> t.Any:
        return etree.fromstring(text.encode(), etree.XMLParser(resolve_entities=False, no_network=True))

    guests = []
    for found in domains:
        with contextlib.suppress(libvirt.libvirtError):  # removed by now
            known = rules(parse(found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
            has = attached(parse(found.XMLDesc()), known) if known and found.isActive() else None
            if known:
                guests.append(Guest(found.name(), known, has))
    return guests


def _do(domain: t.Any, step: Step) -> None:
    import libvirt
    from lxml import etree

    if step.device is None:
        live = etree.fromstring(domain.XMLDesc().encode())
        for found in live.findall(f"devices/hostdev/alias[@name='{ALIAS}{step.id}']/.."):
            domain.detachDeviceFlags(etree.tostring(found, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        return
    device = step.device
    root = etree.Element("hostdev", mode="subsystem", type="usb", managed="no")
    source = etree.SubElement(root, "source")
    etree.SubElement(source, "vendor", id=device.vendor)
    etree.SubElement(source, "product", id=device.product)
    etree.SubElement(source, "address", bus=str(device.bus), device=str(device.number))
    etree.SubElement(root, "alias", name=ALIAS + step.id)
    domain.attachDeviceFlags(etree.tostring(root, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
