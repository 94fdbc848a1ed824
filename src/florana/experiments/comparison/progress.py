"""What a comparison tells whoever watches it, and what a worker tells the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from florana.experiments.comparison.items import RunKey
from florana.tasks.metrics import Metric


@dataclass(frozen=True, slots=True)
class Planned:
    """Everything is checked; the runs that are not finished begin now.

    Args:
        total: number of runs.
        finished: of them, done earlier.
        interrupted: of them, to be resumed.
        rounds: rounds of all runs together that are not known to be done.
        jobs: how many run at a time.
        threads: of each.
    """

    total: int
    finished: int
    interrupted: int
    rounds: int
    jobs: int
    threads: int


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Data and model of a run are ready; ``rounds_done`` of its ``rounds`` were done earlier."""

    key: RunKey
    rounds: int
    rounds_done: int


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A run finished a round."""

    key: RunKey
    server_round: int
    rounds: int
    score: float | None


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run ended.

    Args:
        key: which one.
        score: of its final global model.
        metric: what the score is.
        seconds: wall time in this command, set-up included.
    """

    key: RunKey
    score: float | None
    metric: Metric
    seconds: float


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A run did not end; the others go on."""

    key: RunKey
    message: str


ComparisonEvent = Planned | RunStarted | RoundDone | RunFinished | RunFailed
RunEvent = RunStarted | RoundDone | RunFinished | RunFailed
Watch = Callable[[ComparisonEvent], None]
