# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Texts that hold kernel arguments, and the same texts with other arguments. Pure.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import json
import struct
import typing as t

from .read import GRUB_LINUX, is_repair, tokens
from .spec import name_of

Values = t.Mapping[str, t.Sequence[str]]
"""Name → tokens; none where it is to be absent."""

_OPEN = "# BEGIN phyllome.virt.kernel_cmdline\n"
_CLOSE = "# END phyllome.virt.kernel_cmdline\n"
_NOTE = "# phyllome: "
_SHELL = """\
# Made by phyllome.virt.kernel_cmdline, which changes it and removes it again. Do not edit it.
{note}
phyllome_without() {{
    printf '%s\\n' "$1" | awk '
        BEGIN {{ split("{names}", list, " "); for (i in list) gone[list[i]] = 1 }}
        {{
            line = ""
            while (match($0, /([^ \\t"]|"[^"]*("|$))+/)) {{
                token = substr($0, RSTART, RLENGTH)
                $0 = substr($0, RSTART + RLENGTH)
                name = token
                sub(/=.*/, "", name)
                gsub(/-/, "_", name)
                if (!(name in gone)) line = line (line == "" ? "" : " ") token
            }}
            print line
        }}'
}}
GRUB_CMDLINE_LINUX="$(phyllome_without "${{GRUB_CMDLINE_LINUX:-}}"){added}"
GRUB_CMDLINE_LINUX_DEFAULT="$(phyllome_without "${{GRUB_CMDLINE_LINUX_DEFAULT:-}}")"
"""


def drop_in(names: Values) -> str | None:
    """A file for ``/etc/default/grub.d``, which grub-mkconfig reads with sh; None when there is nothing to say.

    It takes every token of the names away, whoever else's file says it, and adds what is wanted.
    """
    if not names:
        return None
    note = _NOTE + json.dumps({name: list(names[name]) for name in sorted(names)})
    added = "".join(f" {token}" for values in names.values() for token in values)
    return _SHELL.format(note=note, names=" ".join(sorted(names)), added=added)


def noted(text: str | None) -> dict[str, tuple[str, ...]]:
    """The names that a drop-in or block was made for."""
    for line in (text or "").splitlines():
        if line.startswith(_NOTE):
            try:
                found = json.loads(line[len(_NOTE) :])
                return {name: tuple(values) for name, values in found.items()}
            except (ValueError, TypeError, AttributeError):
                return {}
    return {}


def with_block(text: str, names: Values) -> str:
    """``/etc/default/grub`` with the same as a marked block at its end, where there is no directory for drop-ins.

    Without names it is, byte for byte, what it was before there was a block.
    """
    head, mark, rest = text.partition("\n" + _OPEN)
    if mark:
        text = head + rest.partition(_CLOSE)[2]
    block = drop_in(names)
    return text if block is None else f"{text}\n{_OPEN}{block}{_CLOSE}"


def grub_lines(config: str) -> tuple[tuple[str, ...], ...]:
    """The arguments of each entry that grub-mkconfig made for this system's own kernels, repair left out.

    Entries that people wrote into ``40_custom``, and those of other systems, do not follow ``/etc/default/grub``.
    """
    own = [
        part.partition("### END")[0]
        for part in config.split("### BEGIN ")[1:]
        if part.startswith(("/etc/grub.d/10_linux", "/etc/grub.d/20_linux_xen"))
    ]
    matches = (GRUB_LINUX.match(line) for line in "\n".join(own or [config]).splitlines())
    lines = (match.group(1) for match in matches if match)
    return tuple(tokens(line) for line in lines if not is_repair(line))


def entry_line(entry: str) -> tuple[str, ...]:
    """The arguments in an entry of the Boot Loader Specification: all its ``options`` lines, one after the other."""
    return tuple(token for line in entry.splitlines() if _is_options(line) for token in tokens(line)[1:])


def with_entry(entry: str, names: Values) -> str:
    """An entry with other arguments; every other byte stays."""
    lines = entry.splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if _is_options(line)]
    if not found:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        lines.append("options\n")
        found = [len(lines) - 1]
    for number in found:
        body = lines[number].rstrip("\r\n")
        ending = lines[number][len(body) :]
        key = tokens(body)[0]
        values = names if number == found[-1] else dict.fromkeys(names, ())
        start = body[: body.index(key) + len(key)]
        gap = body[len(start) : len(body) - len(body[len(start) :].lstrip())] or " "
        after = with_line(body[len(start) + len(gap) :], values)
        lines[number] = start + (gap + after if after else "") + ending
    return "".join(lines)


def _is_options(line: str) -> bool:
    return line.split(None, 1)[:1] == ["options"]


def with_line(line: str, names: Values) -> str:
    """A line of arguments with others, token by token: new ones stand where the old ones stood, else at the end."""
    kept = list(tokens(line))
    for name, values in names.items():
        places = [place for place, token in enumerate(kept) if name_of(token) == name]
        if [kept[place] for place in places] != list(values):
            start = places[0] if places else len(kept)
            kept = [*kept[:start], *values, *(token for token in kept[start:] if name_of(token) != name)]
    ending = "\n" if line.endswith("\n") else ""
    return line if tuple(kept) == tokens(line) else " ".join(kept) + ending


def of(name: str, line: t.Iterable[str]) -> tuple[str, ...]:
    """The tokens of a name in a line."""
    return tuple(token for token in line if name_of(token) == name)


def pe_sections(image: bytes, names: t.Container[str]) -> dict[str, str] | None:
    """Texts that systemd-stub keeps in sections of a unified kernel image; None when it is no PE file.

    https://uapi-group.org/specifications/specs/unified_kernel_image/, and Microsoft's "PE Format" for the headers.
    """
    try:
        start = struct.unpack_from("<I", image, 0x3C)[0]
        if image[:2] != b"MZ" or image[start : start + 4] != b"PE\0\0":
            return None
        count = struct.unpack_from("<H", image, start + 6)[0]
        table = start + 24 + struct.unpack_from("<H", image, start + 20)[0]
        found = {}
        for number in range(count):
            raw, size, dummy, length, offset = struct.unpack_from("<8sIIII", image, table + 40 * number)
            name = raw.rstrip(b"\0").decode("ascii", "replace")
            if name in names:
                data = image[offset : offset + min(size, length)]
                found[name] = data.rstrip(b"\0").decode("utf-8", "replace").strip()
        return found
    except struct.error:
        return None
