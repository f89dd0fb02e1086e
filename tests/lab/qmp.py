"""Talking to a running QEMU by its control socket (QMP)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from .errors import LabError


class Qmp:
    """One connection. QEMU takes one at a time, so it is kept open no longer than it is used."""

    def __init__(self, path: Path, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(timeout)
            try:
                self._socket.connect(str(path))
                break
            except OSError as error:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise LabError(f"QEMU does not answer on {path}: {error}") from error
                time.sleep(0.05)
        self._lines = self._socket.makefile("rb")
        self._next()  # the greeting
        self.execute("qmp_capabilities")

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise LabError("QEMU has closed its control socket")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, arguments: Mapping[str, object] = MappingProxyType({})) -> Any:
        """Run one command and return its result."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": dict(arguments)}).encode() + b"\n")
        while True:
            message = self._next()
            if "error" in message:
                raise LabError(f"QEMU refused {command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()
