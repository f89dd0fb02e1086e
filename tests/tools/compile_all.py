#!/usr/bin/env python3
"""Compile every Python file below the named folders in memory, with whatever Python runs this."""

import pathlib
import sys

bad = 0
for folder in sys.argv[1:]:
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        try:
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except SyntaxError as error:
            print(f"{path}:{error.lineno}: not Python {sys.version.split()[0]}: {error.msg}")
            bad += 1
sys.exit(bool(bad))
