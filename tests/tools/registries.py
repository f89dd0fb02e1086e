#!/usr/bin/env python3
"""No file may name a package registry, index or proxy: which one is used is the machine's affair.

The names to look for are those this machine is configured with (pip, apt, environment), and PyPI's.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import tree

#: Spelled so that this file does not match itself.
ALWAYS = (r"pypi\.(?:org|python)", r"pythonhosted\.org", r"registry\.npmjs")
#: Hosts that may be configured and may be named all the same: this machine, and where projects live.
HARMLESS = re.compile(r"localhost|127\.|\[?::1|(?:.*\.)?github\.com$|$")


def configured() -> set[str]:
    """Host names in this machine's package configuration."""
    texts = [
        value for name, value in os.environ.items() if re.search(r"proxy$|^PIP_|^UV_|index_url", name, re.IGNORECASE)
    ]
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True)
    texts.append(pip.stdout)
    apt = pathlib.Path("/etc/apt")
    for pattern in ("sources.list", "sources.list.d/*", "apt.conf", "apt.conf.d/*"):
        texts += [path.read_text(errors="replace") for path in apt.glob(pattern) if path.is_file()]
    urls = re.findall(r"https?://[^\s'\";,\]]+", "\n".join(texts))
    hosts = {urllib.parse.urlsplit(url).hostname or "" for url in urls}
    return {host for host in hosts if not HARMLESS.match(host)}


def main() -> int:
    patterns = [*ALWAYS, *(re.escape(host) for host in sorted(configured()))]
    search = re.compile("|".join(patterns), re.IGNORECASE)
    bad = 0
    for name in tree.files():
        path = tree.ROOT / name
        if not path.is_file() or path.stat().st_size > 4 << 20:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if search.search(line):
                print(f"{name}:{number}: names a package registry or proxy")
                bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
