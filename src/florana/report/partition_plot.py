"""Figure of a partition: which labels each client holds, how many examples, and how far from everybody's mix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from florana.report._heat import TALLEST, Heat, draw_grid, draw_scale, name_rows, write_cells
from florana.report._page import Facts, Table
from florana.report._plot import Missing, Plot
from florana.report._style import BLUE, CHARACTER, COLUMN, FULL, GREY, MUTED
from florana.report._text import plain
from florana.tasks.partition import PartitionSummary, summarise, summary_rows

LABELS_WRITTEN: Final = 40
"""Most labels whose names are written below their columns; more are put in order of who holds them."""
SCALES: Final = (0.1, 0.2, 0.5, 1.0)
"""Ends of the colour scale: with many labels no client has a large share of one."""
THIN: Final = 0.06
"""Columns narrower than this, in inches, have no lines between them: those would be all that is seen."""
EVERYBODY: Final = "all"
"""Name of the row of all clients together."""

Counts = NDArray[np.float64]


def partition(
    counts: Sequence[Sequence[int]],
    names: Sequence[str],
    held_out: Sequence[int] | None = None,
) -> Plot | Missing:
    """How each client's training examples spread over the labels, and how many they are.

    Args:
        counts: (U, K) training examples of each label that each client has.
        names: K labels, or values of the column that the data is split by.
        held_out: U numbers of examples that clients keep to test their own models, if known.
    """
    title = "Labels by client"
    if not len(counts) or not names or not any(map(any, counts)):
        return Missing(title, "provenance.json holds no label counts.")
    summary = summarise(counts, names, held_out)
    table = np.array(counts, dtype=np.float64)
    sizes = table.sum(axis=1)
    spread = (
        f"its most frequent label makes up {summary.mean_top_share:.0%} of them on average, and "
        f"{summary.mean_distance:.0%} would have to change for it to have everybody's mix"
    )
    if summary.labels < 2:
        return Plot(
            "labels",
            "Examples by client",
            "Training examples of each client, and in grey those held out to test its own model.",
            f"Bars for {len(table)} clients, of {sizes.min():.0f} to {sizes.max():.0f} training examples.",
            lambda _panels: _draw_alone(summary),
        )
    return Plot(
        "labels",
        title,
        "Colour: share of the client's training examples that has the label; number: how many; empty: none. First row: "
        "all clients together. Bars: training examples, and in grey those held out to test the client's own model. Dots: "
        "the share of its examples that would have to change their label for it to have everybody's mix "
        "(total variation); line: the mean.",
        f"Heat map of {len(table)} clients by {len(names)} labels. A client has between {sizes.min():.0f} and "
        f"{sizes.max():.0f} training examples; {spread}.",
        lambda panels: _draw(table, names, summary, FULL if panels > 1 else COLUMN),
        (2, 1),
    )


def in_numbers(
    counts: Sequence[Sequence[int]],
    names: Sequence[str],
    held_out: Sequence[int] | None = None,
) -> Table | Facts:
    """The same as a table: a row for every client or, of many, quantiles over them.

    Args:
        counts: (U, K) training examples of each label that each client has.
        names: K labels.
        held_out: U numbers of examples that clients keep to test their own models, if known.
    """
    if not len(counts) or not names:
        return Facts([("Examples", "The nodes bring their own data, and nobody counts them.")])
    summary = summarise(counts, names, held_out)
    head, rows = summary_rows(summary)
    caption = (
        f"Quantity skew {summary.imbalance:.1f}: examples of the largest client over the mean."
    )
    if summary.labels > 1:
        caption = (
            f"Label skew {summary.mean_distance:.2f}: mean distance (total variation) between a client's labels and "
            f"everybody's, 0 to 1. {caption}"
        )
    return Table("What every client holds, in numbers", head, rows, folded=True, caption=caption)


def _draw(table: Counts, names: Sequence[str], summary: PartitionSummary, width: float) -> Figure:
    written = [plain(name, 22) for name in names]
    clients, kinds = table.shape
    wide, many = width == FULL, kinds > LABELS_WRITTEN
    around = (0.75 if many else 1.3) if wide else (1.3 if many else 1.85)
    height = min(max(around + 0.19 * (clients + 1), 2.1), TALLEST)
    row, column = (height - around) / (clients + 1), (width - 1.0) * 0.7 / kinds
    if many:
        table = table[:, _by_holder(table)]
    counts = np.vstack([table.sum(axis=0), table])
    shares = np.where(counts > 0, counts / np.maximum(counts.sum(axis=1), 1)[:, None], np.nan)
    top = next(end for end in SCALES if end >= np.nanmax(shares) - 1e-9)
    figure = Figure(figsize=(width, height))
    left, middle, right = figure.subplots(
        1, 3, sharey=True, width_ratios=[5, 1.1, 0.9] if wide else [4, 1.1, 1.1]
    )
    heat = Heat("", shares, [EVERYBODY, *(str(c) for c in range(clients))], written)
    mesh = draw_grid(left, heat, top)
    if column < THIN:
        mesh.set(linewidth=0, edgecolor="none")
    if column >= 0.055 * len(f"{counts.max():.0f}") and row >= 0.14:
        write_cells(left, counts, top, lambda count: f"{count:.0f}", shares)
    name_rows(left, heat.rows, row)
    left.axhline(0.5, color=MUTED, linewidth=0.8)
    left.set_ylabel("client")
    _name_labels(left, written, column, many=many)
    if many and wide:
        left.set_xlabel(f"{kinds} labels, in the order of who holds most")
    _draw_sizes(middle, summary, first=1)
    _draw_distances(right, summary, 4.0 if row >= 0.12 else 2.5)
    for axes in (middle, right):
        _bare(axes)
    draw_scale(figure, mesh, [left, middle, right], "share of examples", beside=wide)
    return figure


def _by_holder(table: Counts) -> NDArray[np.int64]:
    """Labels in the order of the clients that hold most of each; a client's own from many to few."""
    most = table.max(axis=0)
    return np.lexsort((-most, table.argmax(axis=0)))


def _name_labels(axes: Axes, names: Sequence[str], column: float, *, many: bool) -> None:
    """Names of the labels below their columns, of ``column`` inches: level, slanted or upright, as there is room."""
    if many:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(names)} labels")
        return
    axes.set_xlabel("label")
    if max(map(len, names)) * CHARACTER < column:
        axes.set_xticks(range(len(names)), names)
    elif column > 0.25:
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(names)), names, rotation=90)


def _draw_sizes(axes: Axes, summary: PartitionSummary, *, first: int) -> None:
    """Bars from row ``first`` on."""
    rows = [client.client + first for client in summary.clients]
    train = [client.train for client in summary.clients]
    axes.barh(rows, train, 0.7, color=BLUE)
    axes.barh(rows, [client.held_out or 0 for client in summary.clients], 0.7, train, color=GREY)
    axes.set_xlabel("examples")
    axes.locator_params(axis="x", nbins=2)


def _draw_distances(axes: Axes, summary: PartitionSummary, size: float) -> None:
    rows = [client.client + 1 for client in summary.clients]
    distances = [client.distance for client in summary.clients]
    axes.plot(distances, rows, "o", color=BLUE, markersize=size)
    axes.axvline(summary.mean_distance, color=MUTED, linewidth=0.8)
    axes.set_xlim(-0.06, 1.06)
    axes.set_xticks([0, 1])
    axes.set_xlabel("distance")


def _bare(axes: Axes) -> None:
    """Rows are those of the heat map beside it."""
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _draw_alone(summary: PartitionSummary) -> Figure:
    """The sizes, where there is one label and so nothing to say about labels."""
    clients = len(summary.clients)
    height = min(max(0.6 + 0.19 * clients, 1.5), TALLEST)
    figure = Figure(figsize=(COLUMN, height))
    axes = figure.add_subplot()
    _draw_sizes(axes, summary, first=0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylim(clients - 0.5, -0.5)
    axes.set_ylabel("client")
    name_rows(axes, [str(client) for client in range(clients)], (height - 0.6) / clients)
    _bare(axes)
    return figure
