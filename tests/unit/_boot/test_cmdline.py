# Copyright: Contributors to the phyllome.virt project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kernel_cmdline on machines that are directories: every loader, the way there and the way back."""

from __future__ import annotations

import contextlib
import pathlib
import re
import shlex
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.phyllome.virt.plugins.module_utils._boot import spec, text
from ansible_collections.phyllome.virt.plugins.module_utils._boot.apply import converge
from ansible_collections.phyllome.virt.plugins.module_utils._boot.world import DROP_IN, RECORD, read_language
from ansible_collections.phyllome.virt.plugins.module_utils._core.errors import PhyllomeError
from ansible_collections.phyllome.virt.plugins.module_utils._core.sysfs import Tree

EFIVARS = "sys/firmware/efi/efivars"
LOADER_INFO = f"{EFIVARS}/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
STUB_INFO = f"{EFIVARS}/StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
SECURE_BOOT = f"{EFIVARS}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
LINE = "root=/dev/vda2 ro intel_iommu=off quiet console=tty0 console=ttyS0 iommu.passthrough=0"
IOMMU = {"args": {"intel_iommu": "on", "iommu": "pt"}, "absent": ["quiet"]}
UNDO = {"state": "original"}


def variable(words: str) -> bytes:
    return b"\6\0\0\0" + words.encode("utf-16-le")


def uki(line: str, version: str = "6.12.1") -> bytes:
    """A PE file with the two sections that are looked at."""
    sections = [(b".cmdline", line.encode() + b"\0"), (b".uname", version.encode())]
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0" + struct.pack("<HH12xHH", 0x8664, 2, 0, 0)
    offset = len(head) + 40 * len(sections)
    table = data = b""
    for name, content in sections:
        table += struct.pack("<8sIIII16x", name, len(content), 0, 512, offset + len(data))
        data += content.ljust(512, b"\0")
    return head + table + data


class Host:
    """A directory that is a machine, and the programs that it has."""

    def __init__(self, root: pathlib.Path, files: dict[str, str | bytes]) -> None:
        self.root = root
        self.ran: list[str] = []
        self.kargs = LINE.split()
        self.broken = False
        self.file("proc/cmdline", f"BOOT_IMAGE=/vmlinuz {LINE}\n")
        (root / "sys").mkdir(exist_ok=True)
        for path, content in files.items():
            self.file(path, content)

    def file(self, path: str, content: str | bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content.encode() if isinstance(content, str) else content)

    def snapshot(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def run(self, argv) -> str:
        self.ran.append(" ".join(argv))
        if self.broken:
            raise PhyllomeError(argv[0], "broken", "Repair it.")
        if argv[0] in ("update-grub", "grub2-mkconfig"):
            self._mkconfig()
        elif argv[0] in ("kernel-install", "mkinitcpio"):
            self.file("efi/EFI/Linux/a.efi", uki((self.root / "etc/kernel/cmdline").read_text().strip()))
        elif list(argv) == ["rpm-ostree", "kargs"]:
            return " ".join(self.kargs) + "\n"
        else:
            for word in argv[2:]:
                token = word.partition("=")[2]
                self.kargs = [each for each in self.kargs if each != token]
                self.kargs += [token] if word.startswith("--append=") else []
        return ""

    def _mkconfig(self) -> None:
        """What grub-mkconfig does with its configuration, by a real shell."""
        script = f"""set -e; cd {shlex.quote(str(self.root))}; . etc/default/grub
            for each in etc/default/grub.d/*.cfg; do [ ! -e "$each" ] || . "$each"; done
            echo "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT" """
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        path = next(path for path in ("boot/grub2/grub.cfg", "boot/grub/grub.cfg") if (self.root / path).exists())
        self.file(path, grub_cfg(" ".join(done.stdout.split())))

    def do(self, options: dict, check: bool = False) -> dict:
        wanted = spec.wanted({"args": None, "absent": None, "state": "present", **options})
        return converge(str(self.root), wanted, check, self.run)


def grub_cfg(line: str) -> str:
    return f"""### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian' {{
\tlinux\t/vmlinuz root=/dev/vda2 ro {line}
}}
menuentry 'Debian (recovery mode)' {{
\tlinux\t/vmlinuz root=/dev/vda2 ro single
}}
### END /etc/grub.d/10_linux ###
### BEGIN /etc/grub.d/40_custom ###
menuentry 'mine' {{
\tlinux /other root=/dev/vdb quiet
}}
### END /etc/grub.d/40_custom ###
"""


ENTRY = f"title Debian\nversion 6.12.1\nlinux /vmlinuz\noptions {LINE}\ninitrd /initrd\n"
GRUB_DEFAULT = (
    'GRUB_CMDLINE_LINUX="intel_iommu=off console=tty0 console=ttyS0 iommu.passthrough=0"\n'
    'GRUB_CMDLINE_LINUX_DEFAULT="quiet"'  # no end of line: it comes back without one
)
GRUB_LINE = "intel_iommu=off console=tty0 console=ttyS0 iommu.passthrough=0 quiet"
GRUB: dict[str, str | bytes] = {
    "boot/grub/grub.cfg": grub_cfg(GRUB_LINE),
    "usr/sbin/grub-mkconfig": "for x in ${sysconfdir}/default/grub.d/*.cfg",
    "usr/sbin/update-grub": "",
    "etc/default/grub": GRUB_DEFAULT,
    "etc/default/grub.d/lab.cfg": "GRUB_TIMEOUT=0\n",
}
MACHINES: dict[str, dict[str, str | bytes]] = {
    "grub": GRUB,
    "grub-block": {
        "boot/grub2/grub.cfg": grub_cfg(GRUB_LINE),
        "usr/sbin/grub2-mkconfig": "",
        "etc/default/grub": GRUB_DEFAULT,
    },
    "grub-bls": {
        "boot/grub2/grub.cfg": "blscfg\n",
        "boot/loader/entries/a-6.12.1.conf": ENTRY,
        "boot/loader/entries/a-0-rescue.conf": ENTRY,
        "etc/kernel/cmdline": LINE,
    },
    "systemd-boot": {LOADER_INFO: variable("systemd-boot 257"), "boot/efi/loader/entries/arch.conf": ENTRY},
    "uki": {
        STUB_INFO: variable("systemd-stub 257"),
        "efi/EFI/Linux/a.efi": uki(LINE),
        "etc/kernel/install.conf": "# how\nlayout=uki\n",
        "etc/kernel/cmdline": LINE + "\n",
        "usr/lib/modules/6.12.1/vmlinuz": "",
    },
    "uki-mkinitcpio": {
        STUB_INFO: variable("systemd-stub 257"),
        "efi/EFI/Linux/a.efi": uki(LINE),
        "etc/mkinitcpio.d/linux.preset": '#default_image="x"\ndefault_uki="/efi/EFI/Linux/a.efi"\n',
        "etc/kernel/cmdline": LINE,
    },
    "ostree": {"run/ostree-booted": "", "usr/bin/rpm-ostree": ""},
}


@pytest.fixture(params=MACHINES)
def host(request, tmp_path) -> Host:
    return Host(tmp_path, MACHINES[request.param])


def test_there_and_back(host):
    before = host.snapshot()
    kargs = list(host.kargs)
    foretold = host.do(IOMMU, check=True)
    assert host.snapshot() == before
    assert (foretold["changed"], foretold["reboot_required"]) == (True, True)
    done = host.do(IOMMU)
    assert (done["changed"], done["plan"], done["diff"]) == (True, foretold["plan"], foretold["diff"])
    for line in done["configured"].values():
        assert {"intel_iommu=on", "iommu=pt", "console=tty0", "console=ttyS0", "iommu.passthrough=0"} <= {*line}
        assert not {"quiet", "intel_iommu=off"} & {*line}
    assert done["reboot_required"] is True
    host.ran.clear()
    there = host.snapshot()
    again = host.do(IOMMU)
    assert (again["changed"], again["plan"], again["diff"]) == (False, [], [])
    assert host.snapshot() == there
    assert host.ran in ([], ["rpm-ostree kargs"])
    host.file("proc/cmdline", " ".join(next(iter(again["configured"].values()))))
    assert host.do(IOMMU)["reboot_required"] is False
    host.file("proc/cmdline", before["proc/cmdline"])
    foretold = host.do(UNDO, check=True)
    back = host.do(UNDO)
    assert (back["changed"], back["warnings"], back["reboot_required"]) == (True, [], False)
    assert (back["plan"], back["reboot_required"]) == (foretold["plan"], foretold["reboot_required"])
    assert host.snapshot() == before
    assert sorted(host.kargs) == sorted(kargs)
    assert host.do(UNDO)["changed"] is False


def test_two_who_ask_do_not_disturb_each_other(host):
    host.do(IOMMU)
    second = host.do({"args": {"hugepages": 16, "nosmt": None}})
    for line in second["configured"].values():
        assert {"intel_iommu=on", "iommu=pt", "hugepages=16", "nosmt"} <= {*line}
    first = host.do({**UNDO, "args": {"intel_iommu": "on"}, "absent": ["iommu"]})
    for line in first["configured"].values():
        assert {"intel_iommu=off", "hugepages=16", "nosmt"} <= {*line}
        assert not {"iommu=pt", "quiet"} & {*line}


@pytest.mark.parametrize("cut", range(1, 6))
def test_power_cut_at_every_step(host, monkeypatch, cut):
    """Whatever was done when the power went, running again gets there, and the undo gets back."""
    before = host.snapshot()
    module = "ansible_collections.phyllome.virt.plugins.module_utils._boot.apply._write"
    from ansible_collections.phyllome.virt.plugins.module_utils._boot import apply

    class Cut(BaseException):
        pass

    for options in (IOMMU, UNDO):
        left = cut
        write, run = apply._write, host.run

        def counted(action, *args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                raise Cut
            return action(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, lambda *args, write=write: counted(write, *args))
            patch.setattr(host, "run", lambda argv, run=run: counted(run, argv))
            with contextlib.suppress(Cut):
                host.do(options)
        assert host.do(options)["configured"]
        assert host.do(options)["changed"] is False
    assert host.snapshot() == before
    assert sorted(host.kargs) == sorted(LINE.split())


def test_several_values_in_their_order(host):
    done = host.do({"args": {"console": ["ttyS1", "tty1"]}})
    for line in done["configured"].values():
        assert text.of("console", line) == ("console=ttyS1", "console=tty1")


def test_a_dash_is_an_underscore(host):
    assert host.do({"args": {"intel-iommu": "off"}})["changed"] is True  # as it was asked for, and once only
    assert host.do({"absent": ["intel_iommu"]})["changed"] is True
    for line in host.do({"absent": ["intel-iommu"]})["configured"].values():
        assert not text.of("intel_iommu", line)


def test_a_program_that_fails_leaves_everything_as_it_was(tmp_path):
    for number, name in enumerate(("grub", "grub-block", "uki")):
        host = Host(tmp_path / str(number), MACHINES[name]) if (tmp_path / str(number)).mkdir() is None else None
        assert host is not None
        before = host.snapshot()
        host.broken = True
        with pytest.raises(PhyllomeError, match="broken") as caught:
            host.do(IOMMU)
        assert caught.value.facts["plan"]
        assert host.snapshot() == before


def test_what_somebody_changed_since_is_left_alone(tmp_path):
    host = Host(tmp_path, MACHINES["grub-bls"])
    host.do(IOMMU)
    for path in ("boot/loader/entries/a-6.12.1.conf", "etc/kernel/cmdline"):
        content = (tmp_path / path).read_text()
        host.file(path, content.replace("iommu=pt", "iommu=nopt"))
    back = host.do(UNDO)
    assert len(back["warnings"]) == 1
    assert "iommu=nopt" in back["warnings"][0]
    for line in back["configured"].values():
        assert {"iommu=nopt", "intel_iommu=off", "quiet"} <= {*line}
    assert host.do(UNDO)["changed"] is False
    host.do({"absent": ["iommu"]})
    host.do(UNDO)
    assert not (tmp_path / RECORD).exists()


def test_a_kernel_installed_since_is_undone_too(tmp_path):
    host = Host(tmp_path, MACHINES["grub-bls"])
    host.do(IOMMU)
    host.file("boot/loader/entries/a-6.13.conf", (tmp_path / "boot/loader/entries/a-6.12.1.conf").read_bytes())
    for line in host.do(UNDO)["configured"].values():
        assert sorted(line) == sorted(LINE.split())


def test_the_drop_in_speaks_for_itself_when_the_record_is_lost(tmp_path):
    host = Host(tmp_path, GRUB)
    host.do(IOMMU)
    (tmp_path / RECORD).unlink()
    host.do({"args": {"nosmt": None}})
    line = host.do({"args": {"nosmt": None}})["configured"]["/boot/grub/grub.cfg:1"]
    assert {"intel_iommu=on", "iommu=pt", "nosmt"} <= {*line}
    host.do(UNDO)
    assert not (tmp_path / DROP_IN).exists()
    assert (tmp_path / "boot/grub/grub.cfg").read_text() == grub_cfg(GRUB_LINE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing is asked for"),
        ({"args": {"intel_iommu": True}}, "in quotes, for instance intel_iommu: 'on'"),
        ({"args": {"version": 1.0}}, "is not text"),
        ({"args": {"dyndbg": "file x +p"}}, "boot loaders and their shells"),
        ({"args": {"memmap": "1G$4G"}}, "boot loaders and their shells"),
        ({"args": {"a": "x\n"}}, "boot loaders and their shells"),
        ({"args": {"a=b": None}}, "no name of a kernel argument"),
        ({"args": {"a\n": None}}, "no name of a kernel argument"),
        ({"args": {"console": []}}, "it names no value"),
        ({"args": {"root": "/dev/sda1"}}, "does not start without it"),
        ({"absent": ["ro"]}, "does not start without it"),
        ({"args": {"iommu": "pt"}, "absent": ["iommu"]}, "named twice"),
        ({"args": {"a-b": "1", "a_b": "2"}}, "named twice"),
    ],
)
def test_refused_options(options, said):
    with pytest.raises(PhyllomeError, match=re.escape(said)):
        spec.wanted({"args": None, "absent": None, "state": "present", **options})


@pytest.mark.parametrize(
    ("machine", "changes", "said"),
    [
        ("grub", {"boot/grub/grub.cfg": None}, "cannot be told"),
        ("grub", {"boot/grub2/grub.cfg": ""}, "cannot be told"),
        ("grub", {"usr/sbin/grub-mkconfig": None}, "grub-mkconfig, which makes that file, is not installed"),
        ("grub", {"boot/grub/grub.cfg": "set timeout=0"}, "cannot be read"),
        ("grub", {"usr/sbin/transactional-update": ""}, "transactional"),
        ("grub", {RECORD: "["}, "The record"),
        ("grub-block", {"etc/default/grub": None}, "takes the arguments from it"),
        ("grub-bls", {"boot/loader/entries/b.conf": "options $kernelopts\n"}, "variable of GRUB"),
        ("grub-bls", {"boot/loader/entries/b.conf": "options root=x intel_iommu=strict\n"}, "do not say the same"),
        ("grub-bls", {"boot/loader/entries/b.conf": "x" * (1 << 20) + "x"}, "cannot be read"),
        ("grub-bls", {"boot/loader/entries/a-6.12.1.conf": None}, "cannot be read"),
        ("uki", {"etc/kernel/cmdline": None}, "images are made from it"),
        ("uki", {"etc/kernel/install.conf": "# layout=uki\n"}, "inside of its kernel images"),
        ("uki", {"efi/EFI/Linux/a.efi": b"MZ"}, "no arguments that could be read"),
        ("uki", {"usr/lib/modules/6.12.1/vmlinuz": None}, "the kernel 6.12.1 is not installed"),
        ("uki", {SECURE_BOOT: b"\6\0\0\0\1"}, "no key to sign with"),
        ("ostree", {"usr/bin/rpm-ostree": None}, "its system is an image"),
    ],
)
def test_refused_machines(tmp_path, machine, changes, said):
    files = {path: content for path, content in {**MACHINES[machine], **changes}.items() if content is not None}
    host = Host(tmp_path, files)
    before = host.snapshot()
    with pytest.raises(PhyllomeError, match=re.escape(said)):
        host.do(IOMMU)
    assert host.snapshot() == before


def test_what_does_not_stick_is_an_error(tmp_path):
    host = Host(tmp_path, {**GRUB, "etc/default/grub.d/zzz.cfg": "GRUB_CMDLINE_LINUX=mine\n"})
    with pytest.raises(PhyllomeError, match="intel_iommu is not there, not intel_iommu=on"):
        host.do(IOMMU)


def test_the_language_of_the_menu_stays(tmp_path):
    Host(tmp_path, {"etc/default/locale": '#  File of update-locale\nLANG="de_CH.UTF-8"\nLANGUAGE=de_CH:de\nTZ=x\n'})
    assert read_language(Tree(str(tmp_path), "root")) == {"LANG": "de_CH.UTF-8", "LANGUAGE": "de_CH:de"}


def test_a_key_for_secure_boot_is_enough(tmp_path):
    host = Host(
        tmp_path, {**MACHINES["uki"], SECURE_BOOT: b"\6\0\0\0\1", "etc/kernel/uki.conf": "SecureBootPrivateKey=x"}
    )
    assert host.do(IOMMU)["changed"]
    assert host.ran == ["kernel-install add 6.12.1 /usr/lib/modules/6.12.1/vmlinuz"]


WORDS = st.lists(st.sampled_from(["a", "a=1", "a-b=2", "ab", "b=a", 'q="a=1 b"', "c.a=3", "a.b"]), max_size=6)


@given(
    WORDS, WORDS, st.dictionaries(st.sampled_from(["a", "a_b", "b", "q"]), st.sampled_from([(), ("x",), ("x", "y")]))
)
def test_only_the_named_arguments_change(first, second, named):
    values = {name: tuple(f"{name}={value}" for value in each) for name, each in named.items()}
    others = [token for token in first + second if spec.name_of(token) not in values]
    changed = text.tokens(text.with_line(" ".join(first + second), values))
    assert [token for token in changed if spec.name_of(token) not in values] == others
    entry = f"title x\noptions {' '.join(first)}\n#\noptions\t{' '.join(second)}\r\n"
    line = text.entry_line(text.with_entry(entry, values))
    assert [token for token in line if spec.name_of(token) not in values] == others
    for name, tokens in values.items():
        assert text.of(name, changed) == tokens
        assert text.of(name, line) == tokens
    assert text.with_line(" ".join(changed), values) == " ".join(changed)


@pytest.mark.parametrize("line", ["", "a", 'q="a=1 b"  a-b=1 a_b x', "never=*closed* 'one two'", '"a b"'])
def test_the_shell_of_the_drop_in_sees_the_same_tokens(tmp_path, line):
    values = {"a": ("a=1",), "a_b": ()}
    drop_in = text.drop_in(values)
    assert drop_in is not None
    (tmp_path / "x.cfg").write_text(drop_in)
    script = f'set -eu; GRUB_CMDLINE_LINUX={shlex.quote(line)}; . ./x.cfg; printf %s "$GRUB_CMDLINE_LINUX"'
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    kept = [token for token in text.tokens(line) if spec.name_of(token) not in values]
    assert done.stdout.split() == " ".join([*kept, "a=1"]).split()
