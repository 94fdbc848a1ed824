"""A comparison, read back for its report; the layout is told in :mod:`florana.experiments.compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from florana.errors import RunError
from florana.experiments.comparison.items import MethodItem
from florana.experiments.comparison.render import FORMAT
from florana.experiments.comparison.results import Curves
from florana.experiments.comparison.table import Overall, Row
from florana.report.records import checked, read_json, read_lines
from florana.tasks.metrics import Metric


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """What all runs of a task share; ``level`` is the score whose cost in megabytes is told."""

    label: str
    metric: Metric
    config: Mapping[str, Any]
    level: float | None = None
    data: Mapping[str, Any] | None = None
    base_model: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A run that failed, and why."""

    task: str
    method: str
    seed: int
    message: str


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """``comparison.json``."""

    format: int
    baseline: str
    seeds: tuple[int, ...]
    tasks: tuple[TaskRecord, ...]
    methods: tuple[MethodItem, ...]
    rows: tuple[Row, ...]
    overall: tuple[Overall, ...]
    command: str | None = None
    failures: tuple[FailureRecord, ...] = ()
    versions: Mapping[str, str] | None = None
    machine: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RunLine:
    """A finished run with its curves: a line of ``runs.jsonl``."""

    task: str
    method: str
    seed: int
    curves: Curves
    seconds: float


@dataclass(frozen=True, slots=True)
class ComparisonRecord:
    """Everything that a report says about a comparison.

    Args:
        name: of the folder.
        result: what ``comparison.json`` holds.
        runs: the finished runs.
        order: labels of the methods, from the best mean score over the tasks to the worst (mean place, where tasks
            are judged by scores without a common unit); those that
            are not done on every task come last, as they were given.
    """

    name: str
    result: ResultRecord
    runs: tuple[RunLine, ...]
    order: tuple[str, ...] = field(default=())

    @property
    def score_name(self) -> str:
        """What judges the runs; ``score`` where tasks have unlike metrics."""
        names = {task.metric.label for task in self.result.tasks}
        return names.pop() if len(names) == 1 else "score"

    @property
    def points(self) -> float:
        """What differences are multiplied by where all tasks have one unit; 1 where they have not."""
        found = {task.metric.points for task in self.result.tasks}
        return found.pop() if len(found) == 1 else 1.0

    def metric(self, task: str) -> Metric:
        """What judges the runs of a task."""
        return next(t.metric for t in self.result.tasks if t.label == task)

    def row(self, task: str, method: str) -> Row | None:
        """The row of a task and method, if there is one."""
        return next((r for r in self.result.rows if (r.task, r.method) == (task, method)), None)

    def of(self, task: str, method: str) -> tuple[RunLine, ...]:
        """The finished runs of a method on a task."""
        return tuple(r for r in self.runs if (r.task, r.method) == (task, method))


def read_comparison(folder: Path) -> ComparisonRecord:
    """Read what ``florana compare`` has written.

    Raises:
        RunError: if there is no comparison in it, no finished run, or a file that cannot be read; says which.
    """
    path, lines = folder / "comparison.json", folder / "runs.jsonl"
    if not path.is_file():
        raise RunError(
            f"{folder} holds no comparison (there is no comparison.json in it); make one with: florana compare"
        )
    value = read_json(path)
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise RunError(
            f"{path} has layout {found!r}, this florana reads {FORMAT}; give the command of the comparison again"
        )
    result = checked(ResultRecord, value, path)
    runs = tuple(checked(RunLine, line, lines, number) for number, line in read_lines(lines))
    if not runs:
        raise RunError(f"{lines} has no finished run to report on; let the comparison go on")
    return ComparisonRecord(folder.resolve().name, result, runs, _order(result))


def _order(result: ResultRecord) -> tuple[str, ...]:
    """Labels from the best method to the worst."""
    leads: dict[str, list[float]] = {item.label: [] for item in result.methods}
    for task in result.tasks:
        found = {r.method: r.score.mean for r in result.rows if r.task == task.label and r.score}
        for label, score in found.items():
            leads[label].append(task.metric.lead(score, 0.0))
    done = {label: of for label, of in leads.items() if len(of) == len(result.tasks)}
    if len({task.metric.points for task in result.tasks}) > 1:
        done = _places(done)
    order = sorted(done, key=lambda label: -fmean(done[label]))
    return (*order, *(m.label for m in result.methods if m.label not in done))


def _places(leads: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Each method's place on each task instead of its lead, the best the largest."""
    tasks = zip(*leads.values(), strict=True)
    places = [[float(sorted(task).index(lead)) for lead in task] for task in tasks]
    return dict(zip(leads, map(list, zip(*places, strict=True)), strict=True))
