"""An inspection as one figure of four panels that a paper can print."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from florana.folders.inspect_plot_errors import draw_errors, mark_recommended, rank_axis
from florana.folders.inspect_values import Inspection
from florana.report._files import write
from florana.report._plot import PIXELS_PER_INCH
from florana.report._style import (
    BLUE,
    FULL,
    GREY,
    INK,
    MUTED,
    ON_DARK,
    ON_LIGHT,
    PAPER,
    SETTINGS,
    VERMILION,
    contrast,
    luminance,
)
from florana.report._text import plain

HEIGHT: Final = 6.0
"""Height of the figure, in inches."""
SIGNED: Final = LinearSegmentedColormap.from_list(
    "florana-signed", ["#8a3d00", "#d55e00", "#f4c9a4", "#fafafa", "#a9d0e8", "#0072b2", "#00456e"]
).with_extremes(bad=GREY)
"""Vermilion below 0, blue above: apart for the colour-blind, and grey for what has no value."""
MOST_NAMES: Final = 14
"""Modules and clients that are named; more are numbered."""

MOST_ERROR: Final = 2.0
"""A module's error above this is drawn here: its mean update is next to nothing beside what is averaged."""


def save_plot(found: Inspection, path: Path) -> None:
    """Draw the figure into a .png or .svg file.

    Raises:
        RunError: if it cannot be written.
    """
    ending = path.suffix.lower().removeprefix(".")
    metadata: dict[str, None] = (
        {"Date": None, "Creator": None} if ending == "svg" else {"Software": None}
    )
    content = BytesIO()
    with mpl.rc_context({**SETTINGS, "savefig.dpi": PIXELS_PER_INCH}):
        draw(found).savefig(content, format=ending, metadata=metadata)
    write(path, content.getvalue())


def draw(found: Inspection) -> Figure:
    """Error by rank, energy by rank, cosines between clients, and error by module."""
    figure = Figure(figsize=(FULL, HEIGHT))
    panels = figure.subplots(2, 2, width_ratios=(1, 1), height_ratios=(1.15, 1))
    draw_errors(panels[0][0], found)
    _energy(panels[0][1], found)
    _cosines(figure, panels[1][0], found)
    _modules(panels[1][1], found)
    for axes, letter in zip(panels.flat, "abcd", strict=True):
        axes.set_title(f"{letter}  {axes.get_title(loc='left')}")
    return figure


def _energy(axes: Axes, found: Inspection) -> None:
    axes.set_title("Energy of the mean update by rank")
    spectra = [m.spectrum.energy for m in found.modules if m.spectrum.energy]
    if spectra:
        width = max(map(len, spectra))
        table = np.array([[*s, *[1.0] * (width - len(s))] for s in spectra])
        ranks = np.arange(1, width + 1)
        low, middle, high = np.quantile(table, (0.1, 0.5, 0.9), axis=0)
        if len(spectra) > 1:
            axes.fill_between(
                ranks, low, high, color=BLUE, alpha=0.18, linewidth=0, label="80 % of modules"
            )
            axes.plot(ranks, middle, color=BLUE, linestyle="--", label="median module")
        whole = found.spectrum.energy
        axes.plot(ranks[: len(whole)], whole, color=INK, label="all modules")
        rank_axis(axes, [width])
        mark_recommended(axes, found, height=0.45)
        axes.text(0.95, 0.955, "95 %", fontsize=6.5, color=MUTED, va="bottom")
        axes.legend(loc="lower right", fontsize=6.5, frameon=True, framealpha=1, edgecolor="none")
    axes.axhline(0.95, color=MUTED, linewidth=0.6, linestyle=":", zorder=1)
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("cumulative share of energy")


def _cosines(figure: Figure, axes: Axes, found: Inspection) -> None:
    axes.set_title("Cosine between clients' updates")
    values = np.array(
        [[np.nan if c is None else c for c in row] for row in found.cosines], dtype=np.float64
    )
    apart = values[~np.eye(len(values), dtype=bool)]
    known = apart[np.isfinite(apart)]
    top = max(0.1, float(np.abs(known).max())) if known.size else 1.0
    np.fill_diagonal(values, np.nan)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=SIGNED.with_extremes(bad=(1, 1, 1, 0)),
        vmin=-top,
        vmax=top,
        edgecolors=PAPER if len(values) <= 40 else "none",
        linewidth=0.8 if len(values) <= 40 else 0,
        rasterized=len(values) > 40,
    )
    if len(values) <= 10:
        for row, column in np.argwhere(np.isfinite(values)):
            said = f"{values[row, column]:.2f}".replace("-", "−")
            shade = luminance(to_hex(SIGNED(0.5 + values[row, column] / top / 2)))
            ink = max(ON_LIGHT, ON_DARK, key=lambda c: contrast(luminance(c), shade))
            axes.text(
                column + 0.5, row + 0.5, said, ha="center", va="center", fontsize=6, color=ink
            )
    names = [plain(client.name, 14) for client in found.clients]
    shown = range(len(names)) if len(names) <= MOST_NAMES else range(0, len(names), 5)
    turned = max(map(len, names)) > 4
    axes.set_xticks(
        [u + 0.5 for u in shown],
        [names[u] for u in shown],
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    axes.set_yticks([u + 0.5 for u in shown], [names[u] for u in shown])
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, aspect=18, pad=0.03)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    bar.ax.tick_params(length=2)
    bar.outline.set_visible(False)


def _modules(axes: Axes, found: Inspection) -> None:
    modules, own = found.modules, _own_rank(found)
    axes.set_title(f"Error by module, rank {own}")
    at = np.arange(len(modules))
    average = [min(m.losses.average, MOST_ERROR) for m in modules]
    optimum = [m.losses.optimum[own] for m in modules]
    few = len(modules) <= MOST_NAMES
    axes.vlines(at, optimum, average, color=GREY, linewidth=1.2 if few else 0.6, zorder=1)
    size = 4.5 if len(modules) <= 40 else 2.5
    marks: dict[str, Any] = {"linestyle": "none", "markersize": size, "zorder": 2}
    axes.plot(at, average, marker="o", color=VERMILION, label="plain averaging", **marks)
    axes.plot(at, optimum, marker="^", color=INK, label="optimum", **marks)
    if few:
        axes.set_xticks(
            at, _short([m.name for m in modules]), rotation=40, ha="right", rotation_mode="anchor"
        )
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("module, in the order of the layers")
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, max(0.05, *average, *optimum) * 1.25)
    axes.set_ylabel("relative error")
    axes.legend(loc="upper right", ncols=2, fontsize=6.5)


def _own_rank(found: Inspection) -> int:
    """Of the ranks told, the one at or next above the clients' largest."""
    largest = max(rank for client in found.clients for rank in client.ranks)
    return next((rank for rank in found.losses.ranks if rank >= largest), found.losses.ranks[-1])


def _short(names: Sequence[str]) -> list[str]:
    """Names without the parts that all of them share, and of what is left the number and the last part.

    Example:
        >>> _short(["m.layer.0.attn.q", "m.layer.0.attn.v", "m.layer.1.attn.q"])
        ['0 q', '0 v', '1 q']
    """
    parts = [name.split(".") for name in names]
    shared = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    return [
        plain(" ".join(part for part in own if part not in shared) or own[-1], 16) for own in parts
    ]
