"""Running programs that are not trusted, several at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from florana.sandbox.errors import SandboxError
from florana.sandbox.outcome import Limits, Outcome
from florana.sandbox.protection import Protection
from florana.sandbox.server import Server, check_system

ATTEMPTS = 2
"""An outcome ``error`` is the sandbox's own fault, and tried again once."""


def protection(without: Collection[str] = ()) -> Protection:
    """What holds programs back on this system. It runs no program.

    Args:
        without: mechanisms to leave out, for tests of the others.

    Raises:
        SandboxError: if this is not Linux.
    """
    with Server(without) as server:
        return server.protection


def run_program(
    program: str,
    tests: str = "",
    *,
    allow: bool = False,
    limits: Limits | None = None,
    accept_weaker: bool = False,
    without: Collection[str] = (),
) -> Outcome:
    """Run one program and its tests; see :func:`run_programs`."""
    pairs = [(program, tests)]
    (outcome,) = run_programs(
        pairs, allow=allow, limits=limits, jobs=1, accept_weaker=accept_weaker, without=without
    )
    return outcome


def run_programs(
    pairs: Sequence[tuple[str, str]],
    *,
    allow: bool = False,
    limits: Limits | None = None,
    jobs: int | None = None,
    accept_weaker: bool = False,
    without: Collection[str] = (),
) -> list[Outcome]:
    """Run programs with their tests, each in a process of its own that can reach nothing.

    A program is Python source. It is run as ``__main__`` with the standard library only, in an empty folder, then its tests in the
    same names; it has passed if they end without an exception. docs/sandbox.md says what holds it back, and what does not.

    Args:
        pairs: (program, tests).
        allow: must be True: these programs were written by a model, and this runs them.
        limits: of each program; by default :class:`Limits`.
        jobs: programs at once; by default one for each processor that this process may use.
        accept_weaker: run even where network, files or left-over processes cannot be kept safe.
        without: mechanisms to leave out, for tests of the others.

    Returns:
        One outcome for each pair, in their order.

    Raises:
        SandboxError: without ``allow``; on a system that is not Linux or offers too little; if the sandbox itself fails.
    """
    if allow is not True:
        raise SandboxError(
            f"this would run {len(pairs)} program(s) that a model wrote, on this machine, each in its own process without "
            "network and with limits. If that is meant, set evaluation.allow_code = true (in Python: allow=True)"
        )
    if jobs is not None and jobs < 1:
        raise SandboxError(f"jobs = {jobs}: at least one program must run at a time")
    check_system()
    if not pairs:
        return []
    at_once = min(jobs or len(os.sched_getaffinity(0)), len(pairs))
    work = _Work(pairs, limits or Limits(), accept_weaker, without)
    with ThreadPoolExecutor(at_once, "florana-sandbox") as pool:
        workers = [pool.submit(work.go_on) for _ in range(at_once)]
        try:
            for worker in workers:
                worker.result()
        finally:
            work.stop()
    return [work.outcomes[i] for i in range(len(pairs))]


class _Work:
    """Programs that several threads take in turn."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        limits: Limits,
        accept_weaker: bool,
        without: Collection[str],
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._pairs, self._limits = pairs, limits
        self._accept_weaker, self._without = accept_weaker, without
        self._left: Iterator[int] = iter(range(len(pairs)))
        self._lock = threading.Lock()

    def go_on(self) -> None:
        """Run programs on one server until none is left."""
        with Server(self._without) as server:
            if not self._accept_weaker:
                server.protection.check()
            while (index := self._next()) is not None:
                try:
                    self.outcomes[index] = self._run(server, index)
                except BaseException:
                    self.stop()  # the others need not go on
                    raise

    def stop(self) -> None:
        """Let no thread take another program."""
        with self._lock:
            self._left = iter(())

    def _next(self) -> int | None:
        with self._lock:
            return next(self._left, None)

    def _run(self, server: Server, index: int) -> Outcome:
        for _ in range(ATTEMPTS):
            outcome = server.run(*self._pairs[index], self._limits)
            if outcome.status != "error":
                return outcome
        raise SandboxError(f"program {index}: the sandbox failed: {outcome.detail}")
