"""The fleet lab: hosts that are containers with a real init, on a network of their own.

`Fleet` is the front door; the command `tests/lab/lab` is the same thing for people.
"""

from __future__ import annotations

from .counter import Counter
from .errors import LabError
from .fleet import Fleet
from .host import Host

__all__ = ["Counter", "Fleet", "Host", "LabError"]
