"""The first panel of an inspection's figure: error by rank, and the axis that it shares with the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from florana.folders.inspect_values import Inspection, Loss, Losses
from florana.report._style import BLUE, GREEN, INK, MUTED, PURPLE, VERMILION, Look

SAME: Final = 1e-3
"""Methods whose errors differ by less everywhere are one curve with all their names."""
CROWDED: Final = 0.08
"""Errors of one rank that differ by less are drawn beside each other."""
ASIDE: Final = 1.12
"""By this factor of the rank, which is narrower than the step to the next power of two."""
TOP: Final = 1.06
"""Errors above this, worse than no update at all, are drawn here, with their value in words."""
LOOKS: Final = (
    Look(VERMILION, "o"),
    Look(GREEN, "s", "--", hollow=True),
    Look(PURPLE, "D", "-."),
    Look(BLUE, "v", ":"),
    Look(MUTED, "P", "--"),
)
MARKS: Final = ("s", "D", "v", "P", "X", "<", ">", "h", "p", "*")
COLOURS: Final = (GREEN, PURPLE, BLUE, MUTED, VERMILION)


def draw_errors(axes: Axes, found: Inspection) -> None:
    """The optimum and the methods that choose the rank as curves, the others as points at theirs."""
    losses = found.losses
    axes.set_title("Error by rank of the result")
    chosen = {m.method: m.by_rank for m in losses.methods if m.by_rank}
    axes.plot(
        list(losses.optimum),
        [min(error, TOP) for error in losses.optimum.values()],
        label=", ".join(["optimum", *_equal(chosen, losses.optimum)]),
        **Look(INK, "^").curve(1),
    )
    for (names, errors), look in zip(_curves(chosen, losses.optimum), LOOKS, strict=False):
        axes.plot(
            list(errors),
            [min(e, TOP) for e in errors.values()],
            label=", ".join(names),
            **look.curve(1),
        )
    points = _points(losses)
    for at, ((rank, error), names) in enumerate(points):
        axes.plot(
            [rank * _aside(points, at)],
            [min(error, TOP)],
            linestyle="none",
            marker=MARKS[at % len(MARKS)],
            color=COLOURS[at % len(COLOURS)],
            markersize=5.5,
            label=", ".join(names) + (f" ({error:.3g})" if error > TOP else ""),
            zorder=3,
            clip_on=False,
        )
    rank_axis(
        axes,
        [
            found.recommendation.rank,
            *losses.ranks,
            *(m.own_rank for m in losses.methods if m.own_rank),
        ],
    )
    mark_recommended(axes, found)
    shown = [
        *losses.optimum.values(),
        *(error for errors in chosen.values() for error in errors.values()),
        *(error for (_, error), _ in points),
    ]
    top = max(shown)
    axes.set_ylim(0, min(TOP, 1.08 * top) or 1.0)
    axes.set_ylabel("relative error")
    axes.legend(
        loc="best",
        fontsize=6,
        handlelength=2.2,
        labelspacing=0.3,
        frameon=True,
        framealpha=1,
        edgecolor="none",
    )


def _equal(curves: Mapping[str, Mapping[int, float]], like: Mapping[int, float]) -> list[str]:
    return [n for n, e in curves.items() if all(_same(e[r], like[r]) for r in like)]


def _same(one: float, other: float) -> bool:
    return one == other or abs(one - other) < SAME  # infinities have no difference


def _curves(
    curves: Mapping[str, Mapping[int, float]], optimum: Mapping[int, float]
) -> list[tuple[list[str], Mapping[int, float]]]:
    """Methods that are not the optimum, those that are the same together."""
    left = dict(curves)
    for name in _equal(left, optimum):
        del left[name]
    groups = []
    while left:
        errors = next(iter(left.values()))
        names = _equal(left, errors)
        groups.append((names, errors))
        left = {name: e for name, e in left.items() if name not in names}
    return groups


def _points(losses: Losses) -> list[tuple[tuple[int, float], list[str]]]:
    """(rank, error) of methods with a rank of their own, and the methods that are there, the farthest first."""
    groups: list[tuple[Loss, list[str]]] = []
    for method in losses.methods:
        if method.own is None:
            continue
        for first, names in groups:
            if first.own_rank == method.own_rank and _same(first.own or 0.0, method.own):
                names.append(method.method)
                break
        else:
            groups.append((method, [method.method]))
    points = [((m.own_rank or 1, m.own or 0.0), names) for m, names in groups]
    return sorted(points, key=lambda point: -point[0][1])


def _aside(points: Sequence[tuple[tuple[int, float], list[str]]], at: int) -> float:
    """Factor by which a point steps aside, so that those of one rank and like errors do not cover each other."""
    (rank, error), _ = points[at]
    near = [
        u
        for u, ((r, e), _) in enumerate(points)
        if r == rank and (u == at or abs(e - error) < CROWDED)
    ]
    return float(ASIDE ** (near.index(at) - (len(near) - 1) / 2))


def rank_axis(axes: Axes, ranks: Sequence[int]) -> None:
    """Ranks from 1 to the largest of these, a power of two at each tick."""
    axes.set_xscale("log", base=2)
    shown = [2**k for k in range(max(ranks).bit_length() + 1) if 2**k <= max(ranks)]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.set_xlim(0.9, max(ranks) * 1.12)
    axes.set_xlabel("rank")


def mark_recommended(axes: Axes, found: Inspection, height: float = 1.0) -> None:
    """A line at the recommended rank, named at this share of the panel's height."""
    rank = found.recommendation.rank
    axes.axvline(rank, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        f"rank {rank}",
        (rank, height),
        xycoords=("data", "axes fraction"),
        xytext=(3, -2),
        textcoords="offset points",
        va="top",
        fontsize=6.5,
        color=MUTED,
    )
