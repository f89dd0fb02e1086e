"""The labs: hosts that are containers with a real init, and machines with hardware of their own.

`Fleet` and `Machine` are the front doors; the command `tests/lab/lab` is the same thing for people.
"""

from __future__ import annotations

from .counter import Counter
from .errors import LabError
from .fleet import Fleet
from .host import Host
from .metal import Machine

__all__ = ["Counter", "Fleet", "Host", "LabError", "Machine"]
