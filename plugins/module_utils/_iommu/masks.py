# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands in a capture for serial numbers, MAC addresses and the name of the host. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

from .archive import Capture

Facts = dict[str, t.Any]

HANDLE = re.compile(r"proc/\d+/fd/\d+\Z")
_MAC = re.compile(r"(?<![0-9A-Fa-f:.])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:.])")
_MAC_NAME = re.compile(r"\b(en|wl)x([0-9a-f]{12})\b")
_EUI = re.compile(r"\b([0-9a-f]{16})([0-9a-f]{6})fffe([0-9a-f]{6})\b")  # as ipv6_route has addresses
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:.])")
_SERIAL = re.compile(r"/serial(?:_number)?\Z")
# What people name: the host's name is looked for here, and not in what the kernel names.
_NAMED_BY_PEOPLE = re.compile(r"/mountinfo\Z|^proc/swaps\Z|/dm/name\Z|/backing_file\Z")
_SPOKEN = ("via", "detail")  # keys of facts that hold such text


class Masks:
    """What stands for serial numbers, MAC addresses and the host's name: the same for the same, everywhere."""

    def __init__(self, taken: Capture, host: str) -> None:
        self.serials: dict[str, str] = {}
        macs: set[str] = set()
        for path in taken.paths():
            content = taken.files.get(path, b"").decode("utf-8", "replace")
            if _SERIAL.search(path) and content.strip():
                self.serials.setdefault(content.strip(), f"SERIAL-{len(self.serials) + 1}")
            macs.update(found.lower().replace(":", "") for found in _MAC.findall(content))
            macs.update(name for dummy, name in _MAC_NAME.findall(f"{path} {taken.links.get(path, '')}"))
            macs.update(self._mac_in(found.group()) for found in _EUI.finditer(content))
            macs.update(self._mac_of(found.group()) or "" for found in _IPV6.finditer(content))
        own = sorted(mac for mac in macs if mac and not mac.startswith("02000000") and mac.strip("0f"))
        self.macs = {mac: f"02000000{number:04x}" for number, mac in enumerate(own, 1)}
        short = host.partition(".")[0]
        hosts = [re.escape(name) for name in dict.fromkeys((host, short)) if name and name != "localhost"]
        self.host = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(hosts)})(?![A-Za-z0-9])") if hosts else None

    @staticmethod
    def _mac_in(packed: str) -> str:
        """The MAC address in the 32 digits of an address of IPv6 (RFC 4291, appendix A)."""
        return f"{int(packed[16:18], 16) ^ 2:02x}{packed[18:22]}{packed[26:32]}"

    def _mac_of(self, address: str) -> str | None:
        try:
            packed = ipaddress.IPv6Address(address).packed.hex()
        except ValueError:
            return None
        return self._mac_in(packed) if packed[22:26] == "fffe" else None

    def _with_mac(self, packed: str) -> str:
        mac = self.macs.get(self._mac_in(packed))
        return packed if mac is None else f"{packed[:16]}{int(mac[:2], 16) ^ 2:02x}{mac[2:6]}fffe{mac[6:]}"

    def text(self, text: str, people: bool = False) -> str:
        """A text with everything replaced.

        Args:
            text: a path, the target of a link, or the content of a file.
            people: whether it has names that people gave, among which the host's may be.
        """
        text = _MAC_NAME.sub(lambda found: f"{found[1]}x{self.macs.get(found[2], found[2])}", text)
        text = _MAC.sub(self._mac, text)
        text = _EUI.sub(lambda found: self._with_mac(found.group()), text)
        text = _IPV6.sub(self._address, text)
        for serial in sorted(self.serials, key=len, reverse=True):
            if len(serial) >= 6 and re.search("[A-Za-z]", serial) and re.search("[0-9]", serial):
                text = text.replace(serial, self.serials[serial])
        return self.host.sub("host", text) if people and self.host else text

    def _mac(self, found: re.Match[str]) -> str:
        plain = found.group().lower().replace(":", "")
        return ":".join(re.findall("..", self.macs.get(plain, plain)))

    def _address(self, found: re.Match[str]) -> str:
        if self._mac_of(found.group()) is None:
            return found.group()
        packed = self._with_mac(ipaddress.IPv6Address(found.group()).packed.hex())
        return str(ipaddress.IPv6Address(bytes.fromhex(packed)))

    def of_capture(self, taken: Capture) -> Capture:
        """The same capture with everything replaced."""
        return Capture(
            files={self.text(path): self._content(path, content) for path, content in taken.files.items()},
            links={self.text(path): self._target(path, target) for path, target in taken.links.items()},
            directories={self.text(path) for path in taken.directories},
            unread={self.text(path): why for path, why in taken.unread.items()},
        )

    def _target(self, path: str, target: str) -> str:
        return self.text(target, people=bool(HANDLE.match(path)))

    def _content(self, path: str, content: bytes) -> bytes:
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return content
        if _SERIAL.search(path):
            return (self.serials.get(text.strip(), "") + "\n").encode()
        return self.text(text, people=bool(_NAMED_BY_PEOPLE.search(path))).encode()

    def of_facts(self, facts: Facts) -> Facts:
        """Facts of the machine, as the capture gives them."""
        return t.cast("Facts", self._of(facts, None))

    def _of(self, value: t.Any, key: str | None) -> t.Any:
        if isinstance(value, dict):
            return {name: self._of(below, name) for name, below in value.items()}
        if isinstance(value, list):
            return [self._of(below, key) for below in value]
        if not isinstance(value, str):
            return value
        if key == "serial":
            return self.serials.get(value, value)
        if key == "key":
            head, at, place = value.partition("@")
            serial = next((one for one in self.serials if place in (one, f"{one}.{place[-1:]}")), None)
            return value if serial is None else head + at + self.serials[serial] + place[len(serial) :]
        return self.text(value, people=key in _SPOKEN)
