"""A figure from its drawing to its files and its place in a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from florana.report._files import write
from florana.report._style import SETTINGS
from florana.report._svg import inline

PIXELS_PER_INCH = 220
"""Resolution of the PNG files and of the raster parts of SVG files."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure that is still to be drawn.

    Args:
        name: stem of its files and prefix of its ids: lower-case letters, digits and hyphens.
        title: what it shows, in a few words.
        caption: how to read it.
        alt: what is to be seen in it, in words and numbers, for those who do not see it.
        draw: makes the figure, with so many panels side by side.
        panels: panels side by side on a full page and, if the figure has another shape for a narrow one,
            such as a phone or a paper's column, there.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[int], Figure]
    panels: tuple[int] | tuple[int, int] = (1,)


@dataclass(frozen=True, slots=True)
class Missing:
    """In place of a figure: why there is none."""

    title: str
    reason: str


def missing(title: str, reason: str, *, begun: bool) -> Missing:
    """Why there is no figure: for ``reason``, or because no client has trained yet."""
    return Missing(title, reason if begun else "No round with clients is finished yet.")


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of a saved figure.

    Args:
        svg: an element for the page.
        stem: path of its files without their ending, from the page's folder.
    """

    svg: str
    stem: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure that has been saved: for a full page, and for a narrow one if it has another shape there."""

    plot: Plot
    wide: Shape
    narrow: Shape | None


def save(plot: Plot, folder: Path) -> Shown:
    """Draw ``plot`` and write it as PNG and SVG into ``folder/figures``.

    Raises:
        RunError: if it cannot be written.
    """
    first, *rest = plot.panels
    wide = _save(plot, plot.name, first, folder)
    return Shown(plot, wide, _save(plot, f"{plot.name}-column", rest[0], folder) if rest else None)


def _save(plot: Plot, name: str, panels: int, folder: Path) -> Shape:
    png, svg = BytesIO(), BytesIO()
    with mpl.rc_context({**SETTINGS, "savefig.dpi": PIXELS_PER_INCH}):
        figure = plot.draw(panels)
        _settle(figure)
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", metadata={"Software": None})
    stem = f"figures/{name}"
    write(folder / f"{stem}.png", png.getvalue())
    write(folder / f"{stem}.svg", svg.getvalue())
    return Shape(inline(svg.getvalue().decode(), name, plot.alt), stem)


def _settle(figure: Figure) -> None:
    """Lay a figure out once, to about a thousandth of a pixel.

    The solver of matplotlib's constrained layout goes through its variables in the order of their addresses, so
    that the last bits of what it finds differ from one drawing to the next; rounded, the files have the same bytes.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(edge, 6) for edge in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))
