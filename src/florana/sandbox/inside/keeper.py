"""Watches one program from its start to the end of the last process that came of it."""

# Paths go to system calls as they are.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Any

from .request import Request

REPORT_BYTES = 4096
GRACE = 5.0
"""Seconds until children that were killed must be gone."""


@dataclass(frozen=True, slots=True)
class Pipes:
    """Where the keeper reads: the program's output, and what its harness reports."""

    output: int
    report: int


@dataclass(frozen=True, slots=True)
class _End:
    """How the program's first process ended; ``broke`` is the limit that the keeper ended it for."""

    exit_code: int
    cpu_seconds: float
    seconds: float
    report: bytes
    broke: str | None


def watch(process: int, pipes: Pipes, request: Request, word: bytes) -> dict[str, Any]:
    """Wait for a program's first process, or end it at a limit.

    Args:
        process: its id.
        pipes: to read from.
        request: with the limits.
        word: what it reports when the tests have ended.

    Returns:
        ``status``, ``detail`` and ``seconds`` of ``florana.sandbox.Outcome``.
    """
    started = time.monotonic()
    readers = {pipes.output: bytearray(), pipes.report: bytearray()}
    broke = _read_until_end(process, pipes, readers, request, started + request.wall_seconds)
    os.kill(process, signal.SIGKILL)  # it is at least a zombie: nobody else has waited for it
    _, status, used = os.wait4(process, 0)
    seconds = time.monotonic() - started
    _drain(pipes.report, readers[pipes.report])
    end = _End(
        os.waitstatus_to_exitcode(status),
        used.ru_utime + used.ru_stime,
        seconds,
        bytes(readers[pipes.report]),
        broke,
    )
    outcome, detail = _judge(end, request, word)
    return {"status": outcome, "detail": detail, "seconds": seconds}


def end_all_children() -> None:
    """Kill every descendant of this process, and wait until there is none.

    Whatever it did to get away (sessions, double forks), a process whose parent ends becomes a child of the nearest
    subreaper, which this process is.

    Raises:
        TimeoutError: if some do not end.
    """
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:  # there is none left
            return
        for child in _descendants():
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.001)
    raise TimeoutError(f"processes that were killed have not ended within {GRACE:g} s")


def _descendants() -> set[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
    found, last = set[int](), {os.getpid()}
    while last:
        last = {child for child, parent in parents.items() if parent in last} - found
        found |= last
    return found


def _read_until_end(
    process: int,
    pipes: Pipes,
    readers: dict[int, bytearray],
    request: Request,
    deadline: float,
) -> str | None:
    """Read until the process ends; the limit that it broke, if any. What is read beyond a few bytes is thrown away."""
    handle = os.pidfd_open(process)
    poll = select.poll()
    for descriptor in (handle, *readers):
        os.set_blocking(descriptor, False)
        poll.register(descriptor, select.POLLIN)
    written = 0
    while (left := deadline - time.monotonic()) > 0:
        ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
        for descriptor in ready - {handle}:
            part = os.read(descriptor, 1 << 16)
            if not part:
                poll.unregister(descriptor)
            elif descriptor == pipes.output:
                written += len(part)
            elif len(readers[descriptor]) < REPORT_BYTES:
                readers[descriptor] += part
            if written > request.output_bytes:
                return "output"
        if handle in ready:
            return None
    return "timeout"


def _drain(descriptor: int, into: bytearray) -> None:
    try:
        into += os.read(descriptor, REPORT_BYTES)
    except BlockingIOError:  # open in another process, and empty
        return


def _judge(end: _End, request: Request, word: bytes) -> tuple[str, str]:
    if end.broke == "output":
        return "output", f"wrote more than {request.output_bytes} bytes"
    if end.broke == "timeout":
        return "timeout", f"not done after {request.wall_seconds:g} s"
    if end.report == word and end.exit_code == 0:
        return "passed", ""
    busy = end.cpu_seconds >= 0.5 * request.cpu_seconds  # the kernel counts it in another way
    if -end.exit_code == signal.SIGXCPU or (-end.exit_code == signal.SIGKILL and busy):
        return "timeout", f"used its {request.cpu_seconds} s of processor time"
    if end.exit_code < 0:
        return "killed", f"ended by signal {signal.Signals(-end.exit_code).name}"
    if end.report == b"memory":
        return "memory", f"needed more than {request.memory_bytes} bytes"
    if end.report.startswith(b"failed"):
        text = end.report.removeprefix(b"failed").decode("utf-8", "replace")
        return "failed", "".join(c if c.isprintable() else "\ufffd" for c in text)
    return "failed", f"ended with exit status {end.exit_code} before its tests did"
