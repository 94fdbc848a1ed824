"""The tables of a comparison's report."""

from __future__ import annotations

from florana.experiments.comparison.table import Row
from florana.experiments.statistics import Interval
from florana.report._page import Cell, Table
from florana.report._text import NONE, duration, number, points
from florana.report.comparison_records import ComparisonRecord, TaskRecord
from florana.tasks.metrics import Metric


def result(record: ComparisonRecord) -> list[Table]:
    """A row per method: its score on every task, and what it gains over the baseline in all."""
    tasks = [task.label for task in record.result.tasks]
    lines = {line.method: line for line in record.result.overall}
    best = {task: _best(record, task) for task in tasks}
    rows: list[list[str | Cell]] = []
    for rank, method in enumerate(record.order, start=1):
        line = lines.get(method)
        judged = line is not None and line.tasks > 0
        cells: list[str | Cell] = [
            f"{rank}  {method}",
            points(line.difference if line else None, scale=record.points),
            str(line.ahead) if line and judged else NONE,
            str(line.behind) if line and judged else NONE,
        ]
        for task in tasks:
            row = record.row(task, method)
            cells.append(_score(row.score if row else None, best[task]))
        rows.append(cells)
    return [Table("", ["method", "difference", "ahead", "behind", *tasks], rows)]


def _best(record: ComparisonRecord, task: str) -> float | None:
    found = [r.score.mean for r in record.result.rows if r.task == task and r.score]
    metric = record.metric(task)
    return metric.best(found) if found else None


def _score(interval: Interval | None, best: float | None) -> Cell:
    if interval is None:
        return Cell(NONE)
    spread = "" if interval.half_width is None else f" ± {number(interval.half_width)}"
    return Cell(number(interval.mean) + spread, strong=interval.mean == best)


def _difference(interval: Interval | None, scale: float) -> Cell:
    if interval is None:
        return Cell(NONE)
    spread = "" if interval.half_width is None else f" ± {scale * interval.half_width:.1f}"
    return Cell(
        points(interval.mean, scale=scale) + spread,
        strong=interval.above_zero or interval.below_zero,
    )


def numbers(record: ComparisonRecord, task: TaskRecord) -> Table:
    """A row per method: everything that is known of it on one task."""
    level = f"MB to {task.level:.3f}" if task.level is not None else "MB to level"
    head = ["method", task.metric.label, "difference", "mean client", "worst client", "gap", "loss", "error, round 1",
            "error, last round", "MB up", "MB down", level, "wall time"]  # fmt: skip
    best = _best(record, task.label)
    rows = []
    for method in record.order:
        row = record.row(task.label, method)
        if row is not None:
            rows.append(_cells(row, best, len(record.result.seeds), task.metric))
    return Table(task.label, head, rows)


def _cells(row: Row, best: float | None, seeds: int, metric: Metric) -> list[str | Cell]:
    done = len(row.seeds)
    some = 0 < row.reached < done
    return [
        Cell(row.method, note=f"{done} of {seeds} seeds" if done < seeds else ""),
        _score(row.score, best),
        _difference(row.difference, metric.points),
        number(row.client_score),
        number(row.worst_client),
        number(row.gap),
        number(row.loss),
        number(row.error_round_1),
        number(row.error_last_round),
        number(row.megabytes_up, 1),
        number(row.megabytes_down, 1),
        Cell(number(row.megabytes_to_reach, 1), note=f"{row.reached} of {done}" if some else ""),
        NONE if row.seconds is None else duration(row.seconds),
    ]
