"""A whole comparison as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florana.experiments.comparison.items import MethodItem
from florana.experiments.comparison.progress import RunFailed
from florana.experiments.comparison.results import RunResult
from florana.experiments.comparison.table import Overall, Row
from florana.tasks.metrics import Metric


@dataclass(frozen=True, slots=True)
class Task:
    """What the runs of a task have in common.

    Args:
        label: its name.
        metric: what judges its runs.
        level: score whose cost in bytes is reported; None if no run of the baseline is done.
        config: the configuration, but for seed, output, method and the keys that methods set.
        data: name and numbers of examples, None before a run is done.
        base_model: name and SHA-256, likewise.
    """

    label: str
    metric: Metric
    level: float | None
    config: Mapping[str, Any]
    data: Mapping[str, Any] | None
    base_model: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods on the same tasks with the same seeds.

    Args:
        folder: where everything is.
        command: the command line that made it, None if it was not made by one.
        tasks: what was trained.
        methods: the methods as they were given.
        seeds: of everything random.
        baseline: label of the method that the others are compared with.
        rows: one per task and method.
        overall: one per method.
        runs: the finished runs.
        failures: runs that failed this time; the same call tries them again.
        versions: of the libraries, the same for all runs; None before a run is done.
        machine: likewise.
    """

    folder: Path
    command: str | None
    tasks: tuple[Task, ...]
    methods: tuple[MethodItem, ...]
    seeds: tuple[int, ...]
    baseline: str
    rows: tuple[Row, ...]
    overall: tuple[Overall, ...]
    runs: tuple[RunResult, ...]
    failures: tuple[RunFailed, ...]
    versions: Mapping[str, Any] | None
    machine: Mapping[str, Any] | None

    def row(self, task: str, method: str) -> Row:
        """The row of a task and method, by their labels."""
        return next(row for row in self.rows if (row.task, row.method) == (task, method))

    @property
    def missing(self) -> bool:
        """Whether any run asked for is not done."""
        return any(row.missing_seeds for row in self.rows)
