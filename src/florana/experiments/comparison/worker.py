"""A process that does one run of a comparison after another, and dies with the process that started it.

Nothing heavy is imported before the environment is set, and then only once for all runs of the worker.
"""

from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from florana.experiments.comparison.items import Cell
    from florana.experiments.comparison.progress import RunEvent

READY = "ready"
"""What a worker sends when it wants a run."""

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_PATIENCE = 20.0  # seconds: the workers of a comparison that was just killed need a moment to go
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some network file systems
_ABORTED = 1


def work(connection: Connection, log: Path, threads: int) -> None:
    """Do the runs that come over ``connection``, until the process is killed.

    It ends by itself only after an error that nobody foresaw, which may have left anything behind.

    Args:
        connection: brings a :class:`Cell` for every :data:`READY`; takes the runs' events.
        log: gets all that libraries print.
        threads: of BLAS libraries beside torch, which has its own number from the run's configuration.
    """
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _print_into(log)
    os.environ.update(_ENVIRONMENT)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))
    logging.captureWarnings(True)
    from florana.experiments import runner  # noqa: F401  the imports are paid here, once

    trusted = True
    while trusted:
        connection.send(READY)
        trusted = _do(connection.recv(), connection.send)
        gc.collect()


def _do(cell: Cell, tell: Callable[[RunEvent], None]) -> bool:
    """One run, from where it is to its end; False if it failed in a way that nobody foresaw."""
    from florana.errors import FloranaError
    from florana.experiments.comparison.progress import RunFailed

    try:
        with _alone_in(cell.folder):
            tell(_finish(cell, tell))
    except FloranaError as error:
        tell(RunFailed(cell.key, str(error)))
    except Exception as error:
        traceback.print_exc()
        tell(RunFailed(cell.key, f"{type(error).__name__}: {error}; workers.log has the traceback"))
        return False
    return True


def _finish(cell: Cell, tell: Callable[[RunEvent], None]) -> RunEvent:
    """Start a new run, or go on with an interrupted one."""
    from florana.experiments import runner
    from florana.experiments.comparison.progress import RoundDone, RunFinished, RunStarted
    from florana.experiments.events import Event, Prepared, RoundRow
    from florana.tasks.judging import judge_of

    rounds, done, began = cell.config.federation.rounds, 0, time.perf_counter()

    def watch(event: Event) -> None:
        nonlocal done
        if isinstance(event, Prepared):
            done = event.rounds_done
            tell(RunStarted(cell.key, rounds, done))
        elif isinstance(event, RoundRow) and event.server_round > done:  # not those told again
            tell(RoundDone(cell.key, event.server_round, rounds, event.score))

    if (cell.folder / "provenance.json").exists():
        summary = runner.resume(cell.folder, watch)
    else:
        summary = runner.start(cell.config, watch)
    return RunFinished(cell.key, summary.score, judge_of(cell.config), time.perf_counter() - began)


def _die_with_parent() -> None:
    """Wait for the parent's end, however it ends, and end at once: every write of a run survives that."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(_ABORTED)


def _print_into(log: Path) -> None:
    """Both output streams go to the end of ``log``, also those of native code."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(stream, standard)
    os.close(stream)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lock a run's folder against another comparison that is at work in it.

    The lock is on a file beside the folder, since the run itself holds the folder
    (:meth:`florana.experiments.run_folder.RunFolder.held`). The lock goes with the process, however it ends. Windows, and file systems that know no locks, have none.

    Raises:
        RunError: if another process is at work in the folder, or it cannot be made.
    """
    from florana.errors import RunError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror or error}") from error
    if sys.platform == "win32":
        yield
        return
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + _PATIENCE
        while not _locked(lock):
            if time.monotonic() > until:
                raise RunError(
                    f"{folder}: another florana compare is at work in it; wait for its end"
                )
            time.sleep(0.1)
        yield
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    """Whether the folder is ours now, or cannot be locked here at all."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True
