"""Workers that stand in for real ones in test_compare.py. As a script: a comparison with a busy worker."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from florana.experiments.comparison import worker
from florana.tasks.metrics import METRICS


def killed_at_seed_1(connection: Connection, log: Path, threads: int) -> None:
    """Finishes every run, but dies of SIGKILL in those with seed 1, as when memory runs out."""
    from florana.experiments.comparison.progress import RunFinished

    while True:
        connection.send(worker.READY)
        cell = connection.recv()
        if cell.key.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        connection.send(RunFinished(cell.key, 0.5, METRICS["accuracy"], float(os.getpid())))


def raises_at_seed_1(connection: Connection, log: Path, threads: int) -> None:
    """The real worker, whose runs with seed 1 raise what nobody foresaw."""
    from florana.experiments.comparison.progress import RunFinished

    def finish(cell: Any, tell: Any) -> RunFinished:
        if cell.key.seed == 1:
            raise ZeroDivisionError("a bug")
        return RunFinished(cell.key, 0.5, METRICS["accuracy"], float(os.getpid()))

    worker._finish = finish  # type: ignore[assignment]
    worker.work(connection, log, threads)


def never_ready(connection: Connection, log: Path, threads: int) -> None:
    """Ends with an error before it asks for a run."""
    raise SystemExit(3)


def busy(connection: Connection, log: Path, threads: int) -> None:
    """The real worker in a run that tells nothing for ten minutes; ``log`` holds its process's number."""

    def do(cell: Any, tell: Any) -> bool:
        log.with_name("busy").write_text(str(os.getpid()))
        time.sleep(600)
        return True

    worker._do = do
    worker.work(connection, log, threads)


if __name__ == "__main__":
    from florana.experiments.comparison import pool

    pool.work = busy
    pool.do_runs([None], 1, 1, Path(sys.argv[1]), print)  # type: ignore[list-item]
