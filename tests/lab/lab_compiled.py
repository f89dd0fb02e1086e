"""Lies in the hosts of both labs: what Python has compiled of an archive is kept for the next time.

Ansible sends a module as an archive of sources, each of which Python compiles at every run: a third of what a module costs
its host, and much where every instruction is emulated. lab.pth has Python import this, so it imports nothing itself.
"""

from __future__ import annotations

import _imp
import marshal
import os
import zipimport

FOLDER = "/var/cache/lab-python"
_compile = zipimport._compile_source  # type: ignore[attr-defined]


def compiled(path, source):
    """The code of a source. Whoever may not write there compiles it again."""
    kept = f"{FOLDER}/{_imp.source_hash(0, source).hex()}"
    try:
        with open(kept, "rb") as file:
            return marshal.loads(file.read())
    except (OSError, EOFError, ValueError, TypeError):
        code = _compile(path, source)
    try:
        aside = f"{kept}.{os.getpid()}"
        with open(aside, "wb") as file:
            file.write(marshal.dumps(code))
        os.rename(aside, kept)
    except OSError:
        pass
    return code


zipimport._compile_source = compiled  # type: ignore[attr-defined]
