"""The figure of a partition: what it draws is what the clients hold."""

from __future__ import annotations

from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from florana.report import partition_plot
from florana.report._plot import Missing, Plot
from florana.report._style import SETTINGS

FEW = np.array([[30, 10, 0], [0, 5, 15]])
"""Two clients, three labels; everybody's mix is (30, 15, 15) / 60."""


def many() -> NDArray[np.int64]:
    """Ten clients, 77 labels."""
    return np.random.default_rng(0).integers(0, 20, (10, 77))


def draw(counts: NDArray[np.int64], panels: int = 2, held_out: list[int] | None = None) -> Figure:
    """The figure, laid out."""
    names = [f"label {k}" for k in range(counts.shape[1])]
    plot = partition_plot.partition(counts.tolist(), names, held_out)
    assert isinstance(plot, Plot)
    with mpl.rc_context(SETTINGS):
        figure = plot.draw(panels)
        figure.savefig(BytesIO(), format="png")
    return figure


def shares(figure: Figure) -> NDArray[np.float64]:
    """The colours of the grid, before they are colours; NaN where a cell is empty."""
    (mesh,) = [c for c in figure.axes[0].collections if isinstance(c, QuadMesh)]
    values: NDArray[np.float64] = np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan)
    return values


def bars(axes: Axes) -> list[tuple[float, float]]:
    """Where each bar begins and how long it is."""
    rectangles = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(bar.get_x(), bar.get_width()) for bar in rectangles]


def test_cells_are_shares_of_the_client_and_empty_where_there_is_none() -> None:
    """The first row is everybody; a row sums to 1; a label that a client lacks has no colour."""
    expected = [[0.5, 0.25, 0.25], [0.75, 0.25, np.nan], [np.nan, 0.25, 0.75]]
    np.testing.assert_allclose(shares(draw(FEW)), expected)


def test_bars_are_training_and_held_out_examples_and_dots_the_distance() -> None:
    """Each bar is as long as its client's number; held-out examples follow the training examples."""
    figure = draw(FEW, held_out=[4, 2])
    assert bars(figure.axes[1]) == [(0, 40), (0, 20), (40, 4), (20, 2)]
    dots = figure.axes[2].lines[0].get_xdata()
    np.testing.assert_allclose(np.asarray(dots, dtype=float), [0.25, 0.5])


@pytest.mark.parametrize("panels", [1, 2])
def test_many_labels_are_told_apart(panels: int) -> None:
    """77 labels: each is a column, those of one holder side by side, on a scale that ends near the largest share."""
    counts = many()
    figure = draw(counts, panels)
    found = shares(figure)
    held = np.rint(np.nan_to_num(found[1:]) * counts.sum(axis=1)[:, None])
    holders = held.argmax(axis=0)
    assert found.shape == (11, 77)
    assert (np.diff(holders) >= 0).all()
    (mesh,) = [c for c in figure.axes[0].collections if isinstance(c, QuadMesh)]
    assert mesh.get_clim() == (0, 0.1)


@pytest.mark.parametrize("counts", [FEW, many(), np.full((40, 10), 3)])
@pytest.mark.parametrize("panels", [1, 2])
def test_no_text_lies_on_another(counts: NDArray[np.int64], panels: int) -> None:
    """Names of axes and ticks stay apart, on a page and in a column."""
    figure = draw(counts, panels)
    boxes = [
        text.get_window_extent()
        for axes in figure.axes[:3]
        for text in (axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels())
        if text.get_text() and text.get_visible()
    ]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[at + 1 :])


def test_one_label_has_sizes_alone() -> None:
    """Texts without labels: bars of examples, and nothing about labels."""
    plot = partition_plot.partition([[5], [9]], ["text"], [1, 2])
    assert isinstance(plot, Plot)
    assert plot.title == "Examples by client"
    (axes,) = draw(np.array([[5], [9]]), held_out=[1, 2]).axes
    assert [width for _, width in bars(axes)] == [5, 9, 1, 2]


@pytest.mark.parametrize("counts", [[], [[0, 0]]])
def test_no_counts_say_so(counts: list[list[int]]) -> None:
    """Nodes that bring their own data are not counted: a reason in place of the figure."""
    found = partition_plot.partition(counts, ["a", "b"])
    assert isinstance(found, Missing)
    assert "no label counts" in found.reason
