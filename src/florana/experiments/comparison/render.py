"""A comparison as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from florana import __version__
from florana.experiments.comparison.table import Overall, Row
from florana.experiments.comparison.value import Comparison
from florana.experiments.statistics import Interval

ABSENT = "–"
FORMAT = 2
"""Number of the layout of comparison.json and runs.jsonl; it grows when a key changes its meaning."""

LEGEND = """\
{score}: of the final global model on text that no client saw, mean ± half a 95 % Student interval over seeds; of
methods that keep a part of the model at home, the mean over the clients' own models.{lower}
− {baseline}: by how much it is better than that of {baseline}: mean of the paired differences by seed, with its
interval; * when the interval does not hold 0.
clients, worst: mean and worst {score} of the clients' own models on their own held-out text, before the
last aggregation; gap: how much better clients are. loss: of the final global model, in nats (of a regression the
mean squared error of its targets).
error: distance to the ideal update, relative to its size, of what was used; in round 1 and in the last.
MB: of the whole run, all clients, 10⁶ bytes. MB to level: up and down until the end of the first round at the
level or above{levels}; mean over the seeds that got there. s: wall seconds of a run, without set-up."""


def to_markdown(comparison: Comparison) -> str:
    """Title, command, the table, what all tasks say together, and what every column means."""
    parts = ["# Comparison", _made_by(comparison), _main_table(comparison)]
    if len(comparison.tasks) > 1:
        parts += ["## All tasks together", _overall_table(comparison)]
    unfinished = [
        f"- {_label(row.task)}, {_label(row.method)}: seed {', '.join(map(str, row.missing_seeds))}"
        for row in comparison.rows
        if row.missing_seeds
    ]
    if unfinished:
        told = "Not finished; their rows are over fewer seeds, and differences over common ones:"
        parts += [told, "\n".join(unfinished)]
    parts.append(_legend(comparison))
    return "\n\n".join(parts) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line per task and method; an interval is three columns, what is absent an empty field."""
    stream = io.StringIO()
    lines = [_flat(row) for row in comparison.rows]
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def to_json(comparison: Comparison) -> str:
    """Everything but the curves; the keys are documented in :mod:`florana.experiments.compare`."""
    content = {
        "command": comparison.command,
        "format": FORMAT,
        "florana": __version__,
        "baseline": comparison.baseline,
        "seeds": comparison.seeds,
        "tasks": [asdict(task) for task in comparison.tasks],
        "methods": [asdict(item) for item in comparison.methods],
        "rows": [asdict(row) for row in comparison.rows],
        "overall": [asdict(line) for line in comparison.overall],
        "failures": [{**asdict(f.key), "message": f.message} for f in comparison.failures],
        "versions": comparison.versions,
        "machine": comparison.machine,
    }
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


def to_lines(comparison: Comparison) -> str:
    """runs.jsonl: one line per finished run, with its curves."""
    lines = (finite(run.as_line(comparison.folder)) for run in comparison.runs)
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def finite(value: Any) -> Any:  # noqa: ANN401
    """The value with null for numbers that JSON does not have: those of a run that diverged.

    Example:
        >>> finite({"loss": [1.5, float("nan")]})
        {'loss': [1.5, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _made_by(comparison: Comparison) -> str:
    command = comparison.command or "florana.experiments.compare.compare(...)"
    indented = "\n".join(f"    {line}" for line in command.splitlines())
    return f"Made with florana {__version__} by\n\n{indented}"


def _main_table(comparison: Comparison) -> str:
    header = [
        "task",
        "method",
        "seeds",
        _score_name(comparison),
        f"− {_label(comparison.baseline)}",
        "clients",
        "worst",
    ]
    header += [
        "gap",
        "loss",
        "error, round 1",
        "error, last",
        "MB up",
        "MB down",
        "MB to level",
        "s",
    ]
    metrics = {task.label: task.metric for task in comparison.tasks}
    lines = [_cells(row) for row in comparison.rows]
    if len({metric.label for metric in metrics.values()}) > 1:
        for line, row in zip(lines, comparison.rows, strict=True):
            line[0] = f"{line[0]} ({metrics[row.task].label})"
    return _table(header, lines, text_columns=2)


def _cells(row: Row) -> list[str]:
    done, asked = len(row.seeds), len(row.seeds) + len(row.missing_seeds)
    to_level = _number(row.megabytes_to_reach, ".1f")
    some = 0 < row.reached < done
    return [
        _label(row.task),
        _label(row.method),
        str(done) if done == asked else f"{done} of {asked}",
        _interval(row.score, ".3f"),
        _difference(row.difference),
        _number(row.client_score, ".3f"),
        _number(row.worst_client, ".3f"),
        _number(row.gap, ".3f"),
        _number(row.loss, ".3f"),
        _number(row.error_round_1, ".3f"),
        _number(row.error_last_round, ".3f"),
        _number(row.megabytes_up, ".1f"),
        _number(row.megabytes_down, ".1f"),
        f"{to_level} ({row.reached} of {done})" if some else to_level,
        _number(row.seconds, ".0f"),
    ]


def _overall_table(comparison: Comparison) -> str:
    header = [
        "method",
        f"− {_label(comparison.baseline)}, mean over tasks",
        "tasks",
        "behind",
        "ahead",
    ]
    table = _table(header, [_overall_cells(line) for line in comparison.overall], text_columns=1)
    return (
        f"{table}\n\nbehind, ahead: tasks on which the interval of the paired difference is all below or all "
        "above 0."
    )


def _overall_cells(line: Overall) -> list[str]:
    if not line.tasks:
        return [_label(line.method), *[ABSENT] * 4]
    counts = [str(line.tasks), str(line.behind), str(line.ahead)]
    return [_label(line.method), _number(line.difference, "+.3f"), *counts]


def _legend(comparison: Comparison) -> str:
    known = [
        f"{_label(task.label)} {task.level:.3f}"
        for task in comparison.tasks
        if task.level is not None
    ]
    levels = f" ({', '.join(known)})" if known else ""
    lower = [t.metric.label for t in comparison.tasks if not t.metric.higher_is_better]
    return LEGEND.format(
        baseline=_label(comparison.baseline),
        levels=levels,
        score=_score_name(comparison),
        lower=f" Lower is better: {', '.join(dict.fromkeys(lower))}." if lower else "",
    )


def _score_name(comparison: Comparison) -> str:
    """The metric's name, or ``score`` where tasks have unlike ones, which their rows then name."""
    names = {task.metric.label for task in comparison.tasks}
    return names.pop() if len(names) == 1 else "score"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int) -> str:
    """A Markdown table that is a table in a terminal too; numbers stand to the right."""
    cells = [header, *lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = [
        "-" * width if i < text_columns else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    padded = [
        [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _label(text: str) -> str:
    """A label that Markdown shows as it is, in one line, whatever it holds."""
    return re.sub(r"([\\`|*<\[])", r"\\\1", " ".join(text.split()))


def _difference(interval: Interval | None) -> str:
    sure = interval is not None and (interval.below_zero or interval.above_zero)
    return _interval(interval, "+.3f") + (" *" if sure else "")


def _interval(interval: Interval | None, form: str) -> str:
    if interval is None:
        return ABSENT
    spread = "" if interval.half_width is None else f" ± {interval.half_width:.3f}"
    return f"{interval.mean:{form}}{spread}"


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else f"{value:{form}}"


def _flat(row: Row) -> dict[str, Any]:
    """A row's fields as columns."""
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(row)):
        value = getattr(row, name)
        if name in ("score", "difference"):
            columns[name] = value.mean if value else None
            columns[f"{name}_half_width"] = value.half_width if value else None
            columns[f"{name}_n"] = value.n if value else 0
        else:
            columns[name] = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return columns
