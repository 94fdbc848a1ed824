"""Which methods of a comparison stand out in its figures, how they look, and what they are called there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from florana.report._style import BLUE, GREEN, INK, PURPLE, VERMILION, Look
from florana.report._text import plain
from florana.report.comparison_records import ComparisonRecord

BASELINE: Final = Look(INK, "o", "--", hollow=True)
LOOKS: Final = (Look(BLUE, "s"), Look(VERMILION, "D"), Look(GREEN, "^"), Look(PURPLE, "v"))
"""Of the methods that stand out, the best first."""
LONGEST: Final = 26
"""Longest name of a method in a figure, in characters."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays which part.

    Args:
        looks: of the methods that stand out, the baseline first, then the others from the best on.
        names: every method's name in figures, no two alike.
        ranks: every method's place in the order of mean scores, from 1.
        back_to_front: every method, those that stand out last, so that they are drawn on top.
        told: who stands out, in a sentence, empty if all do.
    """

    looks: Mapping[str, Look]
    names: Mapping[str, str]
    ranks: Mapping[str, int]
    back_to_front: tuple[str, ...]
    told: str


def cast_of(record: ComparisonRecord) -> Cast:
    """The baseline and the four methods of the best mean score stand out, the others are grey."""
    baseline, order = record.result.baseline, record.order
    best = [label for label in order if label != baseline][: len(LOOKS)]
    looks = {baseline: BASELINE, **dict(zip(best, LOOKS, strict=False))}
    others = [label for label in order if label not in looks]
    told = (
        f"In colour: {plain(baseline)}, the baseline, and the {len(best)} methods of the best mean "
        f"{record.score_name} over the tasks; grey: the {len(others)} others."
    )
    return Cast(
        looks,
        figure_names(order),
        {label: rank for rank, label in enumerate(order, start=1)},
        (*others, *reversed(looks)),
        told if others else "",
    )


def figure_names(labels: Iterable[str]) -> dict[str, str]:
    """Labels cut to what a figure has room for; where two would be alike, with their number in front.

    Example:
        >>> list(figure_names(["fedit", "florana-opt:gauge=balanced:server.step_size=0.5"]).values())
        ['fedit', 'florana-opt:gauge=balance…']
    """
    names: dict[str, str] = {}
    for count, label in enumerate(labels, start=1):
        name = plain(label, LONGEST)
        taken = name in names.values()
        names[label] = plain(f"{count}: {label}", LONGEST) if taken else name
    return names
