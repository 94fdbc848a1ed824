"""Figures about the clients: how they do by round, local against global."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from florana.report._heat import Heat, draw_heats
from florana.report._plot import Missing, Plot, missing
from florana.report._style import BLUE, COLUMN, VERMILION
from florana.report._text import capital, number
from florana.report.records import ClientRecord, RunRecord
from florana.tasks.metrics import Metric

CLIENTS_NAMED: Final = 40
"""Most clients that have their number beside their circle."""


def by_round(run: RunRecord) -> Plot | Missing:
    """Score of each client's own model by round, and with it who took part."""
    title = "Clients by round"
    lines = [c for c in run.clients if c.score is not None]
    if not lines:
        return missing(title, "metrics.jsonl holds no client's score.", begun=run.begun)
    clients = sorted({c.client for c in lines})
    rounds = sorted({c.server_round for c in lines})
    grid = np.full((len(clients), len(rounds)), np.nan)
    row, column = {c: k for k, c in enumerate(clients)}, {r: k for k, r in enumerate(rounds)}
    for line in lines:
        grid[row[line.client], column[line.server_round]] = line.score
    heat = Heat("", grid, [str(c) for c in clients], [str(r) for r in rounds])
    scale, top = run.metric.label, max(1.0, float(np.nanmax(grid)))
    return Plot(
        "clients",
        title,
        f"{capital(run.metric.label)} of each client's own model, before aggregation, on its own held-out text. An empty cell: the "
        "client was not drawn in this round, or left out.",
        f"Heat map of {len(clients)} clients by {len(rounds)} rounds. In round {rounds[-1]} between "
        f"{number(float(np.nanmin(grid[:, -1])))} and {number(float(np.nanmax(grid[:, -1])))}.",
        lambda panels: draw_heats([heat], panels, top=top, x="round", y="client", scale=scale),
    )


def local_against_global(run: RunRecord) -> Plot | Missing:
    """After the last round: each client's own model on its own data and on everybody's."""
    title = "Local against global"
    last = [c for c in run.clients if c.global_score is not None and c.score is not None]
    if not last:
        return Missing(
            title,
            "The clients' own models are tested on the global test set after the last round, "
            "which this run has not finished.",
        )
    final = run.rounds[-1].score
    best = max(last, key=lambda c: run.metric.lead(c.global_score or 0.0, 0.0))
    return Plot(
        "local-global",
        title,
        "A circle is a client's own model after its last training, before aggregation; area: its examples. Across: "
        "on its own held-out text; up: on the global test set. Line: the final global model.",
        f"Scatter of {len(last)} clients. On the global test set their own models reach up to "
        f"{number(best.global_score)} (client {best.client}), the global model {number(final)}.",
        lambda _panels: _draw_scatter(last, final, run.metric),
    )


def _draw_scatter(lines: Sequence[ClientRecord], final: float, metric: Metric) -> Figure:
    figure = Figure(figsize=(COLUMN, 2.9))
    axes = figure.add_subplot()
    sizes = np.array([c.num_examples or 1 for c in lines], dtype=np.float64)
    x, y = [c.score or 0.0 for c in lines], [c.global_score or 0.0 for c in lines]
    axes.scatter(x, y, s=30 + 220 * sizes / sizes.max(), color=BLUE, alpha=0.25, linewidths=0)
    axes.scatter(x, y, s=6, color=BLUE, linewidths=0)
    for line, a, b in zip(lines, x, y, strict=True) if len(lines) <= CLIENTS_NAMED else ():
        axes.annotate(str(line.client), (a, b), (3, 3), textcoords="offset points", fontsize=7)
    axes.axhline(final, color=VERMILION, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"global model {number(final)}",
        (0.0, final),
        (2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=7,
    )
    axes.set_xlabel(f"{metric.label} on its own held-out text")
    axes.set_ylabel(f"{metric.label} on the global test set")
    axes.set_ylim(min([0.0, final, *y]) * 1.15, max([final, *y, 0.01]) * 1.15)
    axes.margins(x=0.12)
    return figure
