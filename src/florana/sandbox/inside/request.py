"""What the sandbox's server is asked, and what it answers: lengths and JSON on two pipes."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One program to run; the fields of ``florana.sandbox.Limits`` besides."""

    program: str
    tests: str
    cpu_seconds: int
    wall_seconds: float
    memory_bytes: int
    file_bytes: int
    folder_bytes: int
    output_bytes: int
    open_files: int
    tasks: int
    fork: bool


def send(descriptor: int, value: dict[str, Any]) -> None:
    """Write one message.

    Raises:
        BrokenPipeError: if nobody reads.
    """
    body = json.dumps(value).encode()
    message = memoryview(struct.pack("!I", len(body)) + body)
    while message:
        message = message[os.write(descriptor, message) :]


def receive(descriptor: int) -> dict[str, Any] | None:
    """Read one message; None where the other side has closed."""
    head = _exactly(descriptor, 4)
    body = None if head is None else _exactly(descriptor, struct.unpack("!I", head)[0])
    return None if body is None else dict(json.loads(body))


def _exactly(descriptor: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(descriptor, min(count, 1 << 16))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
