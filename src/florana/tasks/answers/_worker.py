"""The process that compares answers: a line with a JSON pair in, a line with 1 or 0 out.

``python -P _worker.py CPU_SECONDS MEGABYTES``. Knows nothing of florana. It says ``ready`` first, or why it is not.
SIGPROF, sent when the processor time of one comparison is used up, ends it even inside C code.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

try:
    import resource
    import signal
except ImportError:  # Windows has no resource; there the parent's clock alone bounds a comparison
    resource = None  # type: ignore[assignment]


def main(cpu_seconds: float, megabytes: int) -> None:
    """Answer until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        _say(answers, f"ImportError: {error}".replace("\n", " "))
        return
    if resource is not None:
        size = megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _say(answers, "ready")
    for line in sys.stdin:
        _bound(cpu_seconds)
        equal = _equal(*json.loads(line))
        _bound(0)
        _say(answers, "1" if equal else "0")


def _equal(answer: str, gold: str) -> bool:
    from math_verify import parse, verify

    try:
        sides = [parse(f"${side}$", parsing_timeout=None) for side in (gold, answer)]
        return bool(verify(*sides, timeout_seconds=None))
    except Exception:  # of SymPy on arbitrary text: any
        return False


def _bound(seconds: float) -> None:
    if resource is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _say(answers: TextIO, line: str) -> None:
    answers.write(line + "\n")
    answers.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
