"""How the outer machine reaches its package registries, for hosts to do it the same way."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import call

PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_STUB_RESOLVER = Path("/run/systemd/resolve/resolv.conf")


def release() -> str:
    """The code name of the outer machine's Debian; hosts are of the same release."""
    found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    return found.group(1) if found else "bookworm"


def apt_sources() -> list[Path]:
    """The files that say where packages come from."""
    files = [Path("/etc/apt/sources.list")]
    files += sorted(p for p in Path("/etc/apt/sources.list.d").glob("*") if p.suffix in (".list", ".sources"))
    return [file for file in files if file.exists()]


def acquire_settings(dump: str, defaults: str) -> list[str]:
    """The lines about fetching in which `apt-config dump` differs from apt's own defaults."""
    known = set(defaults.splitlines())
    return [line for line in dump.splitlines() if line.startswith("Acquire::") and line not in known]


def apt_settings() -> str:
    """An apt.conf with the outer machine's proxies, certificates and other ways of fetching."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as nothing:
        nothing.write('Dir::Etc::parts "/dev/null"; Dir::Etc::main "/dev/null";')
        nothing.flush()
        defaults = call("env", f"APT_CONFIG={nothing.name}", "apt-config", "dump")
    lines = acquire_settings(call("apt-config", "dump"), defaults)
    for scheme in ("http", "https"):
        proxy = os.environ.get(f"{scheme}_proxy")
        if proxy:
            lines.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    return "".join(f"{line}\n" for line in lines)


def environment() -> str:
    """Lines for /etc/environment: the proxies, if there are any."""
    return "".join(f"{name}={os.environ[name]}\n" for name in PROXIES if os.environ.get(name))


def resolver() -> str:
    """A resolv.conf that also works from another network namespace."""
    own = Path("/etc/resolv.conf").read_text()
    stub = re.search(r"^nameserver\s+127\.", own, re.M)
    return _STUB_RESOLVER.read_text() if stub and _STUB_RESOLVER.exists() else own


def files() -> Iterator[tuple[str, bytes]]:
    """Path in a host and content of everything a host needs to fetch packages."""
    yield "etc/apt/apt.conf.d/90lab", apt_settings().encode()
    yield "etc/apt/sources.list", b""
    copies = apt_sources()
    for folder, pattern in (
        ("/etc/apt/trusted.gpg.d", "*"),
        ("/etc/apt/keyrings", "*"),
        ("/etc/apt/auth.conf.d", "*"),
        ("/usr/local/share/ca-certificates", "**/*.crt"),
        ("/etc/ssl/certs", "ca-certificates.crt"),
    ):
        copies += sorted(path for path in Path(folder).glob(pattern) if path.is_file())
    for path in copies:
        yield str(path.relative_to("/")), path.read_bytes()
    if environment():
        yield "etc/environment", environment().encode()
    yield "etc/resolv.conf", resolver().encode()
    yield "etc/hosts", Path("/etc/hosts").read_bytes()
