# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the kernel's arguments of the next boot are kept on this machine, and what they are.

PRIVATE to the collection: no promise of stability for users outside of it.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from .._core.errors import PhyllomeError
from .._core.sysfs import Tree
from . import text
from .read import ENTRIES, GRUB_DIRECTORIES, is_repair, read_boot, read_running, tokens

RECORD = "var/lib/phyllome/boot/cmdline.json"
DROP_IN = "etc/default/grub.d/zz-phyllome.cfg"
"""The last of its directory: others, such as 50-cloudimg-settings.cfg, set the variables anew."""
LINE = "etc/kernel/cmdline"
"""Where kernel-install takes the arguments of the next kernel from (kernel-install(8))."""
_GRUB = "etc/default/grub"
_MKCONFIG = ("usr/sbin/grub-mkconfig", "usr/sbin/grub2-mkconfig", "usr/bin/grub-mkconfig")
_UKI = ("boot/efi/EFI/Linux", "efi/EFI/Linux", "boot/EFI/Linux")
_STUB = "sys/firmware/efi/efivars/StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_LOCALE = ("etc/default/locale", "etc/locale.conf")
_LANGUAGE = ("LANG", "LANGUAGE", "LC_MESSAGES")
_MIB = 1 << 20
_WHERE = "Set the arguments where this machine's boot loader is configured."

Kind = t.Literal["drop_in", "block", "entry", "line", "kargs"]


@dataclasses.dataclass(frozen=True)
class Ours:
    """One argument that we changed.

    Attributes:
        after: its tokens as we made them.
        before: its tokens before we first touched it.
    """

    after: tuple[str, ...]
    before: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """What we did on this machine, for the undo.

    Attributes:
        names: by name, as the kernel compares it.
        files: path → its text before we first touched it, and each that it may have since, as we left it or were about
            to.
    """

    names: t.Mapping[str, Ours] = dataclasses.field(default_factory=dict)
    files: t.Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)

    def dump(self) -> str:
        """As it is kept."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


@dataclasses.dataclass(frozen=True)
class Source:
    """A place that holds arguments and that we write.

    Attributes:
        kind: how its text is made.
        content: its text; None where there is none.
    """

    kind: Kind
    content: str | None


@dataclasses.dataclass(frozen=True)
class World:
    """What there is.

    Attributes:
        loader: ``grub``, ``grub-bls``, ``systemd-boot``, ``uki`` or ``ostree``.
        lines: what may boot next → its arguments; at least one.
        running: arguments of the running kernel.
        record: what we did earlier.
        sources: path → place to write.
        commands: what to run once the places are written.
    """

    loader: str
    lines: t.Mapping[str, tuple[str, ...]]
    running: tuple[str, ...] | None
    record: Record
    sources: t.Mapping[str, Source]
    commands: tuple[tuple[str, ...], ...] = ()


Runner = t.Callable[[t.Sequence[str]], str]
"""Runs a program and returns what it printed."""


def read(tree: Tree, runner: Runner) -> World:
    """Find what starts this machine, by what did start it, and read what it will start next.

    Raises:
        PhyllomeError: that cannot be told, or this loader's arguments cannot be set.
    """
    boot = read_boot(tree)
    loader: str | None
    if boot.host_kind == "transactional":
        raise PhyllomeError(
            "The kernel's arguments of this machine cannot be set",
            "it is a transactional system, whose files change in a new snapshot only",
            "Use transactional-update.",
        )
    if boot.host_kind == "ostree":
        loader = "ostree"
    elif _efi_text(tree, _STUB).startswith("systemd-stub"):
        loader = "uki"
    else:
        loader = boot.loader
    if loader is None:
        raise PhyllomeError(
            "What starts this machine cannot be told",
            "the loader left no note in the firmware's variables, and there is not exactly one grub.cfg in /boot",
            _WHERE,
        )
    lines, sources, commands = _ostree(tree, runner) if loader == "ostree" else _READERS[loader](tree)
    if not lines:
        raise PhyllomeError(
            "What this machine boots next cannot be read",
            f"its boot loader is {loader}, and there is no entry of it that could be read",
            "Run this as root, and check that the partition with the boot loader's files is mounted.",
        )
    return World(loader, lines, read_running(tree), _record(tree, sources), sources, commands)


def read_language(tree: Tree) -> dict[str, str]:
    """The language of the machine's users: grub-mkconfig writes GRUB's menu in that of its environment."""
    pairs = (line.split("=", 1) for path in _LOCALE for line in _plain(_text(tree, path)).splitlines() if "=" in line)
    return {name.strip(): value.strip().strip("\"'") for name, value in pairs if name.strip() in _LANGUAGE}


Found = tuple[dict[str, tuple[str, ...]], dict[str, Source], tuple[tuple[str, ...], ...]]


def _grub(tree: Tree) -> Found:
    directory = next(path for path in GRUB_DIRECTORIES if tree.exists(f"{path}/grub.cfg"))
    config = f"{directory}/grub.cfg"
    lines = {
        f"/{config}:{number}": line for number, line in enumerate(text.grub_lines(tree.text(config, _MIB) or ""), 1)
    }
    makers = [path for path in _MKCONFIG if tree.exists(path)]
    if not makers:
        raise PhyllomeError(
            "The kernel's arguments of this machine cannot be set",
            f"GRUB starts it from /{config}, and grub-mkconfig, which makes that file, is not installed",
            _WHERE,
        )
    # Only Debian's grub-mkconfig reads a directory of drop-ins.
    reads = "default/grub.d" in (tree.text(makers[0], _MIB) or "")
    path, kind = (DROP_IN, "drop_in") if reads else (_GRUB, "block")
    found = _text(tree, path)
    if kind == "block" and found is None:
        raise PhyllomeError(f"/{_GRUB} cannot be read", "grub-mkconfig takes the arguments from it", _WHERE)
    if tree.exists("usr/sbin/update-grub"):
        command: tuple[str, ...] = ("update-grub",)
    else:
        command = (makers[0].rpartition("/")[2], "-o", f"/{config}")
    return lines, {path: Source(t.cast("Kind", kind), found)}, (command,)


def _entries(tree: Tree) -> Found:
    """Entries are written as they are: grubby takes ``iommu=`` for a part of ``intel_iommu=`` and changes both."""
    lines: dict[str, tuple[str, ...]] = {}
    sources = {}
    for directory in ENTRIES:
        for name in (tree.names(directory) or ()) if tree.exists(directory) else ():
            path = f"{directory}/{name}"
            if not name.endswith(".conf") or "rescue" in name:
                continue
            entry = _text(tree, path)
            if entry is None:
                raise PhyllomeError(f"/{path} cannot be read", tree.unread.get(path, "missing"), "Run this as root.")
            line = text.entry_line(entry)
            if "$kernelopts" in line:
                raise PhyllomeError(
                    f"/{path} has its arguments in a variable of GRUB",
                    "$kernelopts is kept in grubenv, as Enterprise Linux 8 did",
                    "Use grub2-editenv, or let grub2-switch-to-blscfg write the entries anew.",
                )
            if not is_repair(" ".join(line)):
                lines[f"/{path}"] = line
                sources[path] = Source("entry", entry)
    return _with_line_file(tree, lines, sources)


def _with_line_file(tree: Tree, lines: dict[str, tuple[str, ...]], sources: dict[str, Source]) -> Found:
    """The file of the next kernel belongs to what boots next, where there is one."""
    content = _text(tree, LINE)
    if content is not None and lines:
        lines[f"/{LINE}"] = tokens(content)
        sources[LINE] = Source("line", content)
    return lines, sources, ()


def _uki(tree: Tree) -> Found:
    lines: dict[str, tuple[str, ...]] = {}
    versions: dict[str, str | None] = {}
    for directory in _UKI:
        for name in (tree.names(directory) or ()) if tree.exists(directory) else ():
            path = f"{directory}/{name}"
            if not name.endswith(".efi"):
                continue
            found = text.pe_sections(tree.data(path, 512 * _MIB) or b"", (".cmdline", ".uname"))
            if found is None or ".cmdline" not in found:
                raise PhyllomeError(
                    f"/{path} has no arguments that could be read",
                    "it is no unified kernel image, or holds none",
                    _WHERE,
                )
            lines[f"/{path}"] = tokens(found[".cmdline"])
            versions[path] = found.get(".uname")
    if _efi_flag(tree, _SECURE_BOOT) and "SecureBootPrivateKey" not in (_text(tree, "etc/kernel/uki.conf") or ""):
        raise PhyllomeError(
            "The kernel's arguments of this machine cannot be set",
            "they are inside of signed images, Secure Boot is on, and /etc/kernel/uki.conf names no key to sign with",
            "Name SecureBootPrivateKey and SecureBootCertificate there; ukify(1) describes both.",
        )
    presets = [name for name in tree.names("etc/mkinitcpio.d") or () if name.endswith(".preset")]
    if any("_uki=" in _plain(_text(tree, f"etc/mkinitcpio.d/{name}")) for name in presets):
        commands: tuple[tuple[str, ...], ...] = (("mkinitcpio", "-P"),)
    elif not lines or "layout=uki" in _plain(_text(tree, "etc/kernel/install.conf")).replace('"', ""):
        commands = tuple(_add_kernel(tree, path, version) for path, version in versions.items())
    else:
        raise PhyllomeError(
            "The kernel's arguments of this machine cannot be set",
            "they are inside of its kernel images, and neither kernel-install (layout=uki in /etc/kernel/install.conf) "
            "nor mkinitcpio makes these",
            "Make the images with the arguments, or let kernel-install make them.",
        )
    lines, sources, dummy = _with_line_file(tree, lines, {})
    if lines and not sources:
        raise PhyllomeError(
            f"/{LINE} is not there", "images are made from it", f"Write the arguments of this machine into /{LINE}."
        )
    return lines, sources, commands


def _add_kernel(tree: Tree, path: str, version: str | None) -> tuple[str, ...]:
    images = [f"usr/lib/modules/{version}/vmlinuz", f"lib/modules/{version}/vmlinuz", f"boot/vmlinuz-{version}"]
    found = [image for image in images if version and tree.exists(image)]
    if version is None or not found:
        raise PhyllomeError(
            f"/{path} cannot be made anew",
            f"the kernel {version} is not installed" if version else "it does not say which kernel is in it",
            "Remove the image if nothing needs it.",
        )
    return ("kernel-install", "add", version, f"/{found[0]}")


def _ostree(tree: Tree, runner: Runner) -> Found:
    if not tree.exists("usr/bin/rpm-ostree"):
        raise PhyllomeError(
            "The kernel's arguments of this machine cannot be set",
            "its system is an image, and it has no rpm-ostree to add arguments to it",
            "Put a file into /usr/lib/bootc/kargs.d of the image.",
        )
    # Entries are written at shutdown only, so the program is asked.
    name = "rpm-ostree kargs"
    return {name: tokens(runner(name.split()))}, {name: Source("kargs", None)}, ()


_READERS: dict[str, t.Callable[[Tree], Found]] = {
    "grub": _grub,
    "grub-bls": _entries,
    "systemd-boot": _entries,
    "uki": _uki,
}


def _record(tree: Tree, sources: t.Mapping[str, Source]) -> Record:
    names: dict[str, Ours] = {}
    files: dict[str, tuple[str | None, ...]] = {}
    for source in sources.values():
        if source.kind in ("drop_in", "block"):  # says itself what it was made for, should the record be lost
            names = {name: Ours(after, ()) for name, after in text.noted(source.content).items()}
    if tree.exists(RECORD):
        try:
            kept = json.loads((tree.data(RECORD, _MIB) or b"").decode())
            for name, each in kept["names"].items():
                names[name] = Ours(tuple(each["after"]), tuple(each["before"]))
            files = {path: tuple(each) for path, each in kept["files"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise PhyllomeError(
                f"The record /{RECORD} cannot be read",
                tree.unread.get(RECORD, str(exc)),
                "Repair it, or remove it: what it says of earlier runs can then no longer be undone.",
            ) from exc
    return Record(names, files)


def _text(tree: Tree, path: str) -> str | None:
    data = tree.data(path, _MIB) if tree.exists(path) else None
    return None if data is None else data.decode("utf-8", "surrogateescape")


def _plain(content: str | None) -> str:
    """A configuration without its comments."""
    return "\n".join(line for line in (content or "").splitlines() if not line.lstrip().startswith("#"))


def _efi_text(tree: Tree, path: str) -> str:
    # Four bytes of attributes, then text.
    return ((tree.data(path) or b"") if tree.exists(path) else b"")[4:].decode("utf-16-le", "replace")


def _efi_flag(tree: Tree, path: str) -> bool:
    return ((tree.data(path) or b"") if tree.exists(path) else b"")[4:5] == b"\1"
