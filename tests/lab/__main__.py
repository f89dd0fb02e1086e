"""`python3 -m lab`, the entry of the `lab` command."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))
