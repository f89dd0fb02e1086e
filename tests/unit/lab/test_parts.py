"""The small parts: cache keys, processes by identity, layers, cgroups, apt settings."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from ansible_collections.phyllome.virt.tests.lab import base, cache, cgroup, cli, outer, packages, paths
from ansible_collections.phyllome.virt.tests.lab.errors import LabError
from ansible_collections.phyllome.virt.tests.lab.process import Process, start_time


def test_a_key_depends_on_where_one_part_ends() -> None:
    assert cache.key("ab", "c") != cache.key("a", "bc") != cache.key("abc")
    assert cache.key("ab", "c") == cache.key("ab", "c")


def test_what_was_not_finished_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHYLLOME_CACHE", str(tmp_path))
    calls = []

    def build(folder: Path) -> None:
        calls.append(sorted(path.name for path in folder.iterdir()))
        (folder / "half").write_text("")
        if len(calls) == 1:
            raise LabError("no space")

    with pytest.raises(LabError, match="no space"):
        cache.made("thing", "1", build)
    made = cache.made("thing", "1", build)
    assert cache.made("thing", "1", build) == made
    assert made.name == "thing-1"
    assert calls == [[], []]


def test_a_signal_reaches_only_the_very_process() -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = Process(child.pid, start_time(child.pid) or 0)
    sent = []
    try:
        sent.append(Process(child.pid, process.started + 1).send(signal.SIGKILL))
        alive = child.poll() is None
        sent.append(process.send(signal.SIGKILL))
    finally:
        child.kill()
        child.wait()
    sent.append(process.send(signal.SIGKILL))
    assert sent == [False, True, False]
    assert alive
    assert not process.alive


def test_this_process_is_alive() -> None:
    assert Process.current() == Process(os.getpid(), start_time(os.getpid()) or 0)
    assert Process.current().alive


def test_the_topmost_layer_wins(tmp_path: Path) -> None:
    top, bottom = tmp_path / "top", tmp_path / "bottom"
    for layer, names in ((top, ["both"]), (bottom, ["both", "below"])):
        layer.mkdir()
        for name in names:
            (layer / name).write_text("")
    model = base.Base("ready", (top, bottom))
    assert model.find("both") == top / "both"
    assert model.find("below") == bottom / "below"
    assert model.find("nowhere") is None
    assert base.mount_options(model.layers, Path("/u"), Path("/w")).startswith(f"lowerdir={top}:{bottom},upperdir=/u,")


def test_a_new_folder_looks_as_in_the_base(tmp_path: Path) -> None:
    below, upper = tmp_path / "below", tmp_path / "upper"
    (below / "root").mkdir(parents=True)
    (below / "root").chmod(0o700)
    upper.mkdir()
    base.write(base.Base("bare", (below,)), upper, "root/.ssh/authorized_keys", b"key")
    assert (upper / "root/.ssh/authorized_keys").read_bytes() == b"key"
    assert (upper / "root").stat().st_mode & 0o7777 == 0o700
    assert (upper / "root/.ssh").stat().st_mode & 0o7777 == 0o755


def test_a_host_that_is_ready_has_all_that_the_role_installs() -> None:
    role = yaml.safe_load((paths.CHECKOUT / "roles/hypervisor/vars/main.yml").read_text())
    wanted = role["__hypervisor_distributions"]["Debian12"]["packages"].values()
    assert {package for piece in wanted for package in piece} <= {*packages.BARE, *packages.LIBVIRT}


def test_packages_are_shared_once(tmp_path: Path) -> None:
    deb = tmp_path / "a_1_all.deb"
    deb.write_text("package")
    folder = tmp_path / "archives"
    folder.mkdir()
    base.share([deb], folder)
    base.share([deb], folder)
    assert [path.name for path in folder.iterdir()] == [deb.name]


@pytest.mark.parametrize(
    ("mounts", "point"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "/sys/fs/cgroup"),
        (
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            "/sys/fs/cgroup/unified",
        ),
    ],
)
def test_cgroup_v2_is_found(mounts: str, point: str) -> None:
    assert cgroup.root(mounts) == Path(point)


def test_no_cgroup_v2_says_what_to_do() -> None:
    with pytest.raises(LabError, match="mount -t cgroup2"):
        cgroup.root("proc /proc proc rw 0 0\n")


def test_only_settings_about_fetching_that_were_set_are_copied() -> None:
    defaults = 'APT "";\nAcquire::AllowWeakRepositories "0";\n'
    dump = (
        defaults
        + 'Acquire::http::Proxy "http://proxy.invalid:1";\nAcquire::Languages:: "none";\nDPkg::Options:: "x";\n'
    )
    assert outer.acquire_settings(dump, defaults) == [
        'Acquire::http::Proxy "http://proxy.invalid:1";',
        'Acquire::Languages:: "none";',
    ]


def test_options_after_the_host_belong_to_its_command() -> None:
    options = cli.parser().parse_args(["exec", "--fleet", "f", "alpha", "--", "ls", "--fleet", "x"])
    assert (options.fleet, options.host) == ("f", "alpha")
    assert options.command[-3:] == ["ls", "--fleet", "x"]


def test_faults_are_commands_too() -> None:
    options = cli.parser().parse_args(["fault", "drop", "beta", "alpha", "16514", "--replies"])
    assert (options.source, options.target, options.port, options.replies) == ("beta", "alpha", 16514, True)
