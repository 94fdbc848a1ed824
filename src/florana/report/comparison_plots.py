"""Curves of a comparison: score by round and by traffic, a panel per task or per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from florana.report._cast import Cast, cast_of
from florana.report._plot import Missing, Plot
from florana.report._style import (
    BLUE,
    COLUMN,
    FULL,
    GREY,
    INK,
    Look,
    legend_above,
    log_axis,
    whole_numbers,
)
from florana.report._text import axis, capital, number, plain, points
from florana.report.comparison_records import ComparisonRecord, RunLine
from florana.tasks.metrics import Metric

OTHERS: Final = "other methods"
"""Name of the grey curves in a legend."""
PANEL: Final = 1.75
"""Height of a task's panel, in inches."""
SMALL: Final = 0.95
"""Height of a method's panel, in inches."""

Track = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x of a method's points, and its score by seed and point."""


def side_by_side(tasks: int) -> tuple[int] | tuple[int, int]:
    """Panels side by side for so many tasks: on a full page, and in a column if that is another shape."""
    if tasks == 1:
        return (1,)
    return (3 if tasks in (3, 5, 6) or tasks > 8 else 2, 1)


def score(record: ComparisonRecord) -> Plot:
    """Score of the global model by round: a panel per task."""
    cast = cast_of(record)
    return Plot(
        "score",
        f"{capital(record.score_name)} by round",
        "Of the global model, on text that no client saw: mean over seeds, band from the lowest to the highest "
        f"seed. Without the first third of the rounds, so that the others can be told apart. {cast.told}",
        f"Line charts of {record.score_name} by round, one per task. {_told(record)}",
        lambda panels: _by_task(record, cast, panels, _by_round, "round"),
        side_by_side(len(record.result.tasks)),
    )


def traffic(record: ComparisonRecord) -> Plot | Missing:
    """Score against the megabytes sent so far, a panel per task."""
    title = f"{capital(record.score_name)} by traffic"
    sent = {r.method: 0 for r in record.runs}
    for run in record.runs:
        sent[run.method] += sum(run.curves.bytes_up) + sum(run.curves.bytes_down)
    if not any(sent.values()):
        return Missing(title, "No run has sent anything.")
    cast = cast_of(record)
    silent = [plain(method) for method in record.order if sent.get(method) == 0]
    return Plot(
        "traffic",
        title,
        "Bytes of all messages so far, both ways, all clients, on a logarithmic axis; a curve begins where round 1 "
        "ends."
        + (f" Not drawn, since nothing is sent: {', '.join(silent)}." if silent else "")
        + f" {cast.told}",
        f"Line charts of {record.score_name} by megabytes sent, one per task. {_told(record)}",
        lambda panels: _by_task(record, cast, panels, _by_megabytes, "sent so far (MB)"),
        side_by_side(len(record.result.tasks)),
    )


def gains(record: ComparisonRecord, task: str) -> Plot | Missing:
    """Small multiples: on one task, what each method gains over the baseline by round, the others behind it."""
    cast, baseline = cast_of(record), record.result.baseline
    title, at = (
        f"Difference by round, {plain(task)}",
        [t.label for t in record.result.tasks].index(task),
    )
    metric = record.metric(task)
    found = {
        method: _difference(record.of(task, method), record.of(task, baseline), metric)
        for method in record.order
        if method != baseline
    }
    tracks = {method: track for method, track in found.items() if track is not None}
    if not tracks:
        return Missing(title, f"No method has a finished seed that {plain(baseline)} has too.")
    return Plot(
        f"gains-{at + 1}",
        title,
        f"How much better {metric.label} is than that of {plain(baseline)} in the same round, paired by seed, in "
        f"{'percentage points' if metric.points != 1 else 'its own unit'}: mean, band "
        "from the lowest to the highest seed, and the mean after the last round as a number; grey: the other "
        f"methods. Ordered by mean {record.score_name} over all tasks.",
        f"{len(tracks)} small line charts, one per method. After the last round: "
        + ", ".join(f"{plain(m)} {_final(t, metric)}" for m, t in tracks.items())
        + (" points." if metric.points != 1 else "."),
        lambda panels: _draw_gains(tracks, cast, panels, metric),
        (5, 2),
    )


def _by_task(
    record: ComparisonRecord,
    cast: Cast,
    panels: int,
    track: Callable[[Sequence[RunLine]], Track],
    x: str,
) -> Figure:
    tasks = record.result.tasks
    rows = -(-len(tasks) // panels)
    figure = Figure(figsize=(FULL if panels > 1 else COLUMN, PANEL * rows + 0.4))
    grid = figure.subplots(rows, panels, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        for method in cast.back_to_front:
            runs = record.of(task.label, method)
            if runs:
                _draw(axes, track(runs), cast.looks.get(method), cast.names[method])
        axes.set_title(plain(task.label, 34) if len(tasks) > 1 else "")
        axes.set_xlabel(x)
        if track is _by_megabytes:
            log_axis(axes, "x")
        else:
            whole_numbers(axes)
            _leave_out_start(
                axes,
                [track(record.of(task.label, m)) for m in record.order if record.of(task.label, m)],
            )
    for axes in grid[:, 0]:
        axes.set_ylabel(_axis(record))
    legend_above(figure, grid.flat, [*(cast.names[m] for m in cast.looks), OTHERS])
    return figure


def _leave_out_start(axes: Axes, tracks: Sequence[Track]) -> None:
    """Begin both axes after a third of the rounds, where methods begin to part."""
    if not tracks:  # no run of this task has finished
        return
    first = len(tracks[0][0]) // 3
    values = np.concatenate([seeds[:, first:].mean(axis=0) for _, seeds in tracks])
    values = values[np.isfinite(values)]
    if len(values) and values.max() > values.min():
        room = 0.06 * (values.max() - values.min())
        axes.set_xlim(left=tracks[0][0][first] - 0.35)
        axes.set_ylim(
            values.min() - room, max(float(seeds[:, -1].max()) for _, seeds in tracks) + room
        )


def _draw_gains(tracks: Mapping[str, Track], cast: Cast, panels: int, metric: Metric) -> Figure:
    width, panels = (FULL if panels > 2 else COLUMN), min(panels, len(tracks))
    rows = -(-len(tracks) // panels)
    figure = Figure(figsize=(width, SMALL * rows + 0.4))
    grid = figure.subplots(rows, panels, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(tracks) :]:
        axes.set_visible(False)
    for at, (axes, method) in enumerate(zip(grid.flat, tracks, strict=False)):
        _draw_behind(axes, [track for other, track in tracks.items() if other != method])
        axes.axhline(0, color=INK, linewidth=0.8)
        _draw(axes, tracks[method], Look(BLUE, ""), "")
        axes.set_title(
            plain(cast.names[method], int((width / panels - 0.12) / 0.069)), fontsize=7, pad=2
        )
        final = _final(tracks[method], metric)
        axes.text(0.97, 0.05, final, transform=axes.transAxes, ha="right", fontsize=7, color=INK)
        axes.tick_params(labelbottom=at + panels >= len(tracks))
    whole_numbers(grid[0][0])
    figure.supxlabel("round", fontsize=8, color=INK)
    figure.supylabel(
        "difference (points)" if metric.points != 1 else "difference", fontsize=8, color=INK
    )
    return figure


def _final(track: Track, metric: Metric) -> str:
    """The mean difference after the last round."""
    digits = 1 if metric.points != 1 else 3
    return points(float(track[1][:, -1].mean()), digits, scale=1)


def _draw(axes: Axes, track: Track, look: Look | None, name: str) -> None:
    """Draw the mean over seeds with its range; a method without a look in grey and without a range."""
    x, seeds = track
    mean = seeds.mean(axis=0)
    if look is None:
        axes.plot(x, mean, color=GREY, linewidth=0.8, zorder=1.5, label=OTHERS)
        return
    low, high = seeds.min(axis=0), seeds.max(axis=0)
    axes.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0)
    axes.plot(x, mean, label=name, **look.curve(len(x)))


def _draw_behind(axes: Axes, tracks: Sequence[Track]) -> None:
    """The means of many tracks as one grey path with gaps."""
    gap = np.array([np.nan])
    if tracks:
        x = np.concatenate([part for x, _ in tracks for part in (x, gap)])
        y = np.concatenate([part for _, seeds in tracks for part in (seeds.mean(axis=0), gap)])
        axes.plot(x, y, color=GREY, linewidth=0.6, zorder=1.5)


def _by_round(runs: Sequence[RunLine]) -> Track:
    return np.array(runs[0].curves.round, dtype=np.float64), _scores(runs)


def _by_megabytes(runs: Sequence[RunLine]) -> Track:
    """Megabytes are the mean over seeds; what comes before anything is sent has no place on a log axis."""
    both = [
        list(accumulate(u + d for u, d in zip(r.curves.bytes_up, r.curves.bytes_down, strict=True)))
        for r in runs
    ]
    sent = np.array(both, dtype=np.float64).mean(axis=0) / 1e6
    return sent[sent > 0], _scores(runs)[:, sent > 0]


def _difference(
    runs: Sequence[RunLine], baseline: Sequence[RunLine], metric: Metric
) -> Track | None:
    """Points better than the baseline by round, for the seeds that both have."""
    other = {run.seed: run for run in baseline}
    common = [run for run in runs if run.seed in other]
    if not common:
        return None
    x, own = _by_round(common)
    sign = 1.0 if metric.higher_is_better else -1.0
    return x, sign * metric.points * (own - _scores([other[run.seed] for run in common]))


def _scores(runs: Sequence[RunLine]) -> NDArray[np.float64]:
    return np.array([r.curves.score for r in runs], dtype=np.float64)


def _axis(record: ComparisonRecord) -> str:
    """What the axis of scores is called."""
    metrics = {task.metric for task in record.result.tasks}
    return axis(metrics.pop()) if len(metrics) == 1 else "score"


def _told(record: ComparisonRecord) -> str:
    """The best method of each task, in words."""
    told = []
    for task in record.result.tasks:
        rows = [r for r in record.result.rows if r.task == task.label and r.score is not None]
        if rows:
            lead = task.metric.lead
            best = max(rows, key=lambda row: lead(row.score.mean, 0.0) if row.score else 0.0)
            mean = number(best.score.mean if best.score else None)
            told.append(f"{plain(task.label)}: best for {plain(best.method)}, {mean}.")
    return " ".join(told)
