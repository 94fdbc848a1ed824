"""What methods gain over the baseline, with intervals, and what the aggregation error has to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from florana.experiments.comparison.table import Row
from florana.experiments.statistics import Interval
from florana.report._cast import Cast, cast_of
from florana.report._plot import Missing, Plot
from florana.report._style import (
    BLUE,
    COLUMN,
    FULL,
    INK,
    MUTED,
    PAPER,
    VERMILION,
    legend_above,
)
from florana.report._text import number, plain, points
from florana.report.comparison_plots import PANEL, side_by_side
from florana.report.comparison_records import ComparisonRecord

ROW = 0.17
"""Height of a method's row in a forest plot, in inches."""


def forest(record: ComparisonRecord) -> Plot | Missing:
    """Paired differences to the baseline with their intervals, a panel per task."""
    baseline = plain(record.result.baseline)
    title = f"Difference to {baseline}"
    rows = [r for r in record.result.rows if r.difference is not None]
    if not rows:
        return Missing(title, "There is no second method with a seed that the baseline has too.")
    methods = [m for m in record.order if m != record.result.baseline]
    tasks = len(record.result.tasks)
    return Plot(
        "difference",
        title,
        f"How much better {record.score_name} is than that of {baseline}, paired by seed: mean and 95 % Student interval"
        f"{', in percentage points' if record.points != 1 else ''}. "
        "Triangle: the interval does not hold 0, to the right ahead, to the left behind. A line with an arrow "
        "goes on beyond the panel.",
        f"Forest plot of {len(methods)} methods. {_told(record, rows)}",
        lambda panels: _draw_forest(record, methods, panels),
        (1,) if tasks == 1 else (min(tasks, 4), 1),
    )


def _draw_forest(record: ComparisonRecord, methods: Sequence[str], panels: int) -> Figure:
    names, tasks = cast_of(record).names, record.result.tasks
    lines = -(-len(tasks) // panels)
    height = lines * (ROW * len(methods) + 0.35) + 0.35
    figure = Figure(figsize=(FULL if panels > 1 else COLUMN, height))
    grid = figure.subplots(lines, panels, sharey=True, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        rows = [record.row(task.label, method) for method in methods]
        _draw_intervals(axes, rows, task.metric.points)
        axes.set_title(plain(task.label, 22) if len(tasks) > 1 else "")
        axes.set_yticks(range(len(methods)), [names[m] for m in methods])
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
    figure.supxlabel(_axis(record), fontsize=8, color=INK)
    return figure


def _axis(record: ComparisonRecord) -> str:
    unit = " (percentage points)" if record.points != 1 else ""
    return f"difference in {record.score_name}{unit}"


def _draw_intervals(axes: Axes, rows: Sequence[Row | None], scale: float) -> None:
    found = [r.difference for r in rows if r is not None and r.difference is not None]
    low, high = _limits(found, scale)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(low, high)
    for at, row in enumerate(rows):
        if row is not None and row.difference is not None:
            _draw_interval(axes, at, row.difference, scale, (low, high))


def _limits(found: Sequence[Interval], scale: float) -> tuple[float, float]:
    """An axis that holds 0, every mean, and every interval but those three times wider than usual."""
    widths = [d.half_width for d in found if d.half_width is not None]
    most = 3 * median(widths) if widths else 0.0
    ends = [0.0]
    for interval in found:
        half = min(interval.half_width or 0.0, most)
        ends += [scale * (interval.mean - half), scale * (interval.mean + half)]
    room = 0.06 * (max(ends) - min(ends)) or 1.0
    return min(ends) - room, max(ends) + room


def _draw_interval(
    axes: Axes, at: int, interval: Interval, scale: float, limits: tuple[float, float]
) -> None:
    (low, high), mean, half = limits, scale * interval.mean, scale * (interval.half_width or 0.0)
    sure = interval.above_zero or interval.below_zero
    marker = ">" if interval.above_zero else "<" if interval.below_zero else "o"
    colour = BLUE if interval.above_zero else VERMILION if interval.below_zero else MUTED
    axes.plot(
        [max(mean - half, low), min(mean + half, high)], [at, at], color=colour, linewidth=1.4
    )
    if mean - half < low:
        axes.plot(low, at, "<", color=colour, markersize=3, clip_on=False)
    if mean + half > high:
        axes.plot(high, at, ">", color=colour, markersize=3, clip_on=False)
    face = colour if sure else PAPER
    axes.plot(mean, at, marker, color=colour, markersize=4.5, markerfacecolor=face)


def _told(record: ComparisonRecord, rows: Sequence[Row]) -> str:
    told = []
    for row in rows:
        if row.difference is None:
            continue
        scale = record.metric(row.task).points
        half = row.difference.half_width
        spread = f" plus or minus {scale * half:.1f}" if half is not None else ""
        told.append(
            f"{plain(row.task)}, {plain(row.method)}: {points(row.difference.mean, scale=scale)}{spread}{' points' if scale != 1 else ''}."
        )
    return " ".join(told)


def error(record: ComparisonRecord) -> Plot | Missing:
    """Final score against the relative aggregation error of round 1, a panel per task."""
    title = f"Aggregation error and {record.score_name}"
    rows = [r for r in record.result.rows if r.error_round_1 is not None and r.score is not None]
    if not rows:
        return Missing(title, "No method here defines an aggregation error.")
    cast = cast_of(record)
    more = len(cast.looks) < len(record.order)
    return Plot(
        "error",
        title,
        "Across: relative aggregation error in round 1, where all methods aggregate the updates of one start; up: "
        f"final {record.score_name}; means over seeds."
        + (" A number is the method's in the table." if more else ""),
        f"Scatter of {len(rows)} points. "
        + " ".join(
            f"{plain(r.task)}, {plain(r.method)}: error {number(r.error_round_1)}, {record.score_name} "
            f"{number(r.score.mean if r.score else None)}."
            for r in rows
        ),
        lambda panels: _draw_error(record, rows, cast, panels),
        side_by_side(len(record.result.tasks)),
    )


def _draw_error(record: ComparisonRecord, rows: Sequence[Row], cast: Cast, panels: int) -> Figure:
    tasks = record.result.tasks
    lines = -(-len(tasks) // panels)
    figure = Figure(figsize=(FULL if panels > 1 else COLUMN, PANEL * lines + 0.4))
    grid = figure.subplots(lines, panels, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        for row in (r for r in rows if r.task == task.label):
            _draw_point(axes, row, cast)
        axes.margins(0.1)
        axes.set_title(plain(task.label, 34) if len(tasks) > 1 else "")
        axes.set_xlabel("relative error, round 1")
    for axes in grid[:, 0]:
        axes.set_ylabel(f"final {record.score_name}")
    legend_above(figure, grid.flat, [cast.names[m] for m in cast.looks])
    return figure


def _draw_point(axes: Axes, row: Row, cast: Cast) -> None:
    x, y = row.error_round_1 or 0.0, row.score.mean if row.score else 0.0
    look = cast.looks.get(row.method)
    if look is None:
        axes.plot(x, y, marker="")  # makes room for the number
        axes.text(x, y, str(cast.ranks[row.method]), ha="center", va="center", fontsize=7)
    else:
        curve = {**look.curve(1), "linestyle": ""}
        axes.plot(x, y, label=cast.names[row.method], **curve)
