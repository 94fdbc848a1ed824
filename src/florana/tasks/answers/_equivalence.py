"""Math-Verify in a process of its own, so that nothing a model writes can stop or fill this one.

SymPy takes arbitrarily long and large for some texts (``10**10**10``), inside C code where no Python exception
reaches, and Math-Verify's own time-outs are signals, which only a main thread may have: a client of a federation
has none. So comparisons are made by a worker, :mod:`florana.tasks.answers._worker`, which the operating system
ends after so many seconds of processor time, or that much memory, for one comparison. A worker that has ended means
"not equal", and the next comparison starts another one. Processor time, not the clock: a busy machine
changes no score. Only a worker that hangs without working is ended by the clock.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from florana.errors import ConfigError

CPU_SECONDS = 5
"""Processor time of one comparison, parsing included."""
WALL_SECONDS = 300.0
"""When a worker counts as hung."""
START_SECONDS = 300.0
"""Likewise for its start, which imports SymPy."""
MEGABYTES = 2048
"""Address space of a worker."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one comparison may take.

    Args:
        cpu_seconds: processor time.
        wall_seconds: time on the clock, for a worker that waits for something.
        megabytes: address space of the worker.
    """

    cpu_seconds: float = CPU_SECONDS
    wall_seconds: float = WALL_SECONDS
    megabytes: int = MEGABYTES


def equivalent(answer: str, gold: str) -> bool:
    r"""Whether Math-Verify finds two answers in LaTeX equal; False if it fails, or takes too long or too much memory.

    Args:
        answer: what was written; a few thousand characters at the most.
        gold: the reference. The order matters: the reference's form decides what ``x = 5`` means.

    Raises:
        ConfigError: if Math-Verify is not installed.

    Example:
        >>> equivalent(r"\frac{2}{4}", "0.5")
        True
    """
    return _own(os.getpid()).equal(answer, gold)


@cache
def _own(process: int) -> Checker:
    """This process's checker; a fork must not share the pipes of its parent's, nor end it."""
    checker = Checker()

    def close() -> None:
        if os.getpid() == process:
            checker.close()

    atexit.register(close)
    return checker


class Checker:
    """A worker that is started when first needed and after it was ended; safe to use from several threads.

    Args:
        limits: of one comparison.
        command: what starts a worker.

    Example:
        >>> checker = Checker(Limits(cpu_seconds=1))
        >>> checker.equal("10^{10^{10^{10}}}", "1"), checker.equal("1.0", "1")
        (False, True)
        >>> checker.close()
    """

    def __init__(self, limits: Limits | None = None, command: Sequence[str] | None = None) -> None:
        self._limits = limits or Limits()
        self._command = command or _command(self._limits)
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[str] | None = None

    def equal(self, answer: str, gold: str) -> bool:
        """Whether the two are equal.

        Raises:
            ConfigError: if no worker can be started, such as for want of Math-Verify.
        """
        with self._lock:
            worker = self._running()
            said = _ask(worker, json.dumps([answer, gold]), self._limits.wall_seconds)
            if said is None:
                self._end()
            return said == "1"

    def close(self) -> None:
        """End the worker."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self._end()
        self._worker = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            env={**os.environ, "PYTHONHASHSEED": "0"},  # SymPy's order of terms follows hashes
        )
        said = _ask(self._worker, "", START_SECONDS)
        if said != "ready":
            self._end()
            raise ConfigError(
                f"the scorer 'math' needs Math-Verify, whose process did not start ({said or 'no word of why'}); "
                "install it with: pip install 'florana[math]'"
            )
        return self._worker

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with contextlib.suppress(OSError):  # what was not sent to a dead worker
                pipe.close()  # type: ignore[union-attr]


def _ask(worker: subprocess.Popen[str], line: str, seconds: float) -> str | None:
    """Send a line, if there is one, and wait for one; None if the worker ends or does not answer in time."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    clock = threading.Timer(seconds, worker.kill)
    clock.daemon = True
    clock.start()
    try:
        if line:
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
        return worker.stdout.readline().rstrip("\n") or None
    except OSError:
        return None
    finally:
        clock.cancel()


def _command(limits: Limits) -> list[str]:
    """Run the file, not the module, so that it need not load florana; -P: this folder's numbers.py is not Python's."""
    script = Path(__file__).with_name("_worker.py")
    return [sys.executable, "-P", str(script), str(limits.cpu_seconds), str(limits.megabytes)]
