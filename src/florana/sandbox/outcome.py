"""What became of a program, and how much it was allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from florana.sandbox.errors import SandboxError

Status = Literal["passed", "failed", "timeout", "memory", "output", "killed", "error"]

MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program.

    Args:
        status: ``passed``: its tests ran to their end without an exception. ``failed``: an exception, or an end before that of
            the tests. ``timeout``, ``memory``, ``output``: it broke that limit. ``killed``: a signal ended it, such as that of a
            stack that is full. ``error``: the sandbox itself could not do its work; says nothing about the program.
        detail: why, in a few words; parts of it may be the program's own.
        seconds: wall time, without the start of its process.
    """

    status: Status
    detail: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the tests ended well."""
        return self.status == "passed"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the machine a program may use.

    Args:
        cpu_seconds: processor time.
        wall_seconds: time until it is ended whatever it does; more than ``cpu_seconds``, since a busy machine lets
            programs wait.
        memory_bytes: address space of a process.
        file_bytes: of the largest file.
        folder_bytes: of all files together, in memory; only where there are namespaces.
        output_bytes: what it may print; it is counted and thrown away.
        open_files: descriptors.
        tasks: processes and threads together.
        fork: whether it may have child processes at all. The tests of the field need none.

    Raises:
        SandboxError: if a number is not positive.

    Example:
        >>> Limits(cpu_seconds=1).wall_seconds
        15.0
    """

    cpu_seconds: int = 5
    wall_seconds: float = 15.0
    memory_bytes: int = 512 * MEGABYTE
    file_bytes: int = 16 * MEGABYTE
    folder_bytes: int = 64 * MEGABYTE
    output_bytes: int = 1 * MEGABYTE
    open_files: int = 64
    tasks: int = 16
    fork: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "fork" and not (math.isfinite(value) and value > 0):
                raise SandboxError(f"Limits.{field.name} = {value} is not a positive number")
