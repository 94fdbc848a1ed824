"""Figures with a point per round: score, loss, traffic, aggregation error, wall time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from florana.report._plot import Missing, Plot, missing
from florana.report._style import (
    BLUE,
    COLUMN,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERMILION,
    Curve,
    Look,
    draw_curves,
    legend_above,
    whole_numbers,
)
from florana.report._text import NONE, axis, capital, duration, number
from florana.report._text import score as score_text
from florana.report.records import ClientRecord, RunRecord
from florana.tasks.metrics import Metric

GLOBAL = Look(BLUE, "s")
CLIENTS = Look(GREEN, "o", hollow=True)
WORST = Look(VERMILION, "v", ":")
TRAINING = Look(PURPLE, "D", "--")

USED = Look(BLUE, "s", hollow=True, size=7.0)
AVERAGE = Look(VERMILION, "o")
OPTIMUM = Look(GREEN, "^", "--")

SIZE = (COLUMN, 2.5)


def score(run: RunRecord) -> Plot:
    """Score of the global model and of the clients' own, by round."""
    curves = [
        Curve("global model", [r.score for r in run.rounds], GLOBAL),
        Curve("mean client", [r.client_score for r in run.rounds], CLIENTS),
        Curve("worst client", [r.worst_client for r in run.rounds], WORST),
    ]
    return Plot(
        "score",
        f"{capital(run.metric.label)} by round",
        "Global model: on text that no client saw. Clients: their own models, before aggregation, on their own "
        "held-out text.",
        f"Line chart of {run.metric.label} by round. {_told(run, curves)}",
        _by_round(run, curves, axis(run.metric), bottom=lowest(curves, run.metric)),
    )


def loss(run: RunRecord) -> Plot:
    """Loss of the global model and of the clients' own, by round."""
    curves = [
        Curve("global model", [r.loss for r in run.rounds], GLOBAL),
        Curve("clients", _client_means(run, lambda c: c.loss), CLIENTS),
        Curve("in training", _client_means(run, lambda c: c.train_loss), TRAINING),
    ]
    return Plot(
        "loss",
        "Loss by round",
        f"{capital(_loss(run))}. Global model: on text that no client saw. Clients: mean of their own models on their own "
        "held-out text; in training: mean over their training steps.",
        f"Line chart of loss by round. {_told(run, curves)}",
        _by_round(run, curves, _loss(run), bottom=0.0),
    )


def lowest(curves: Sequence[Curve], metric: Metric) -> float | None:
    """Where an axis of scores begins: at 0, below a negative score, or, where lower is better, wherever they are."""
    if not metric.higher_is_better:
        return None
    return min((0.0, *(1.1 * v for c in curves for v in c.values if v is not None)))


def _loss(run: RunRecord) -> str:
    """What a loss is, with its unit."""
    kind = run.section("data").get("family")
    return "mean squared error" if kind == "regression" else "cross-entropy (nats)"


def traffic(run: RunRecord) -> Plot | Missing:
    """Score of the global model against the megabytes sent so far."""
    title = f"{capital(run.metric.label)} by traffic"
    sent = [size / 1e6 for size in accumulate(r.bytes_up + r.bytes_down for r in run.rounds)]
    if not sent[-1]:
        return missing(title, "No round has sent anything.", begun=run.begun)
    values = [r.score for r in run.rounds]

    def draw(_panels: int) -> Figure:
        figure = Figure(figsize=SIZE)
        axes = figure.add_subplot()
        draw_curves(axes, sent, [Curve("", values, GLOBAL)])
        axes.set(xlabel="sent so far, up and down, all clients (MB)", ylabel=axis(run.metric))
        bottom = lowest([Curve("", values, GLOBAL)], run.metric)
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
        axes.set_xlim(-0.02 * sent[-1], 1.03 * sent[-1])
        return figure

    return Plot(
        "traffic",
        title,
        "Bytes of all messages between server and clients, both ways, adapters and manifests included; 1 MB is "
        "10⁶ bytes.",
        f"Line chart. The global model reaches {score_text(values[-1], run.metric)} after {sent[-1]:.1f} megabytes.",
        draw,
    )


def error(run: RunRecord) -> Plot | Missing:
    """Relative aggregation error by round: used, plain averaging, optimum."""
    title = "Aggregation error by round"
    curves = [
        Curve("averaging", [r.error_average for r in run.rounds], AVERAGE),
        Curve("optimum", [r.error_optimum for r in run.rounds], OPTIMUM),
        Curve("used", [r.error_used for r in run.rounds], USED),
    ]
    if all(v is None for c in curves for v in c.values):
        return missing(
            title, f"The method {run.method} defines no aggregation error.", begun=run.begun
        )
    return Plot(
        "error",
        title,
        "Distance to the ideal update T = Σ w s B A, over all modules, relative to its size ‖T‖: used, by "
        f"{run.method}; averaging, what plain averaging of the factors makes of the same updates; optimum, the best "
        "pair of this rank.",
        f"Line chart of the relative aggregation error. {_told(run, curves)}",
        _by_round(run, curves, "error, relative to ‖T‖", bottom=0.0, skip_start=True),
    )


def wall_time(run: RunRecord) -> Plot | Missing:
    """Wall time by part, over all rounds."""
    title = "Wall time by part"
    seconds = time_by_part(run.timings)
    total = sum(seconds.values())
    if not total:
        return Missing(title, "The run folder has no timings.")
    parts = sorted(seconds, key=lambda part: seconds[part])

    def draw(_panels: int) -> Figure:
        figure = Figure(figsize=(COLUMN, 0.6 + 0.24 * len(parts)))
        axes = figure.add_subplot()
        axes.barh(
            [p.replace("_", " ") for p in parts], [seconds[p] for p in parts], 0.62, color=BLUE
        )
        for row, part in enumerate(parts):
            share = f"{duration(seconds[part])}, {seconds[part] / total:.1%}"
            axes.annotate(
                share, (seconds[part], row), (4, 0), textcoords="offset points",
                va="center", fontsize=7, color=INK,
            )  # fmt: skip
        axes.set_xlim(0, max(seconds.values()) * 1.5)
        axes.set_xlabel("wall time (s)")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_color(MUTED)
        return figure

    told = ", ".join(f"{p.replace('_', ' ')} {duration(seconds[p])}" for p in reversed(parts))
    return Plot(
        "time",
        title,
        "Over all finished rounds. Error report: computing the three errors, which a run without a report would not "
        "need. Last clients: the clients' own models on the global test set.",
        f"Bar chart. {told}.",
        draw,
    )


def time_by_part(timings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of each part over all rounds.

    Example:
        >>> time_by_part([{"round": 0, "evaluation": 1.0}, {"round": 1, "evaluation": 2.0}])
        {'evaluation': 3.0}
    """
    parts = dict.fromkeys(part for line in timings for part in line if part != "round")
    return {part: sum(line.get(part, 0.0) for line in timings) for part in parts}


def _by_round(
    run: RunRecord,
    curves: Sequence[Curve],
    label: str,
    *,
    bottom: float | None,
    skip_start: bool = False,
) -> Callable[[int], Figure]:
    """A drawing of curves by round; ``skip_start`` leaves out round 0, where none has a value."""
    first = 1 if skip_start and run.rounds[0].server_round == 0 else 0
    rounds = [r.server_round for r in run.rounds][first:]

    def draw(_panels: int) -> Figure:
        figure = Figure(figsize=SIZE)
        axes = figure.add_subplot()
        kept = [Curve(c.label, c.values[first:], c.look) for c in curves]
        draw_curves(axes, rounds, kept)
        legend_above(figure, [axes])
        _finish(axes, label, bottom)
        return figure

    return draw


def _finish(axes: Axes, label: str, bottom: float | None) -> None:
    axes.set(xlabel="round", ylabel=label)
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    whole_numbers(axes)


def _client_means(
    run: RunRecord, value: Callable[[ClientRecord], float | None]
) -> list[float | None]:
    """Per round, the mean over its clients of a value, None where no client has one."""
    means: list[float | None] = []
    for record in run.rounds:
        lines = [c for c in run.clients if c.server_round == record.server_round]
        found = [v for v in map(value, lines) if v is not None]
        means.append(fmean(found) if found else None)
    return means


def _told(run: RunRecord, curves: Sequence[Curve]) -> str:
    """Where each curve begins and ends, in words."""
    sentences = []
    for curve in curves:
        points = [
            (r.server_round, v)
            for r, v in zip(run.rounds, curve.values, strict=True)
            if v is not None
        ]
        if points:
            (first, start), (last, end) = points[0], points[-1]
            sentences.append(
                f"{curve.label}: {number(start)} in round {first}, {number(end)} in round {last}."
            )
    return " ".join(sentences) or NONE
