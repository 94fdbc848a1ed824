"""Results of the one-round evidence, read as cases: one cell after one number of local steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from evidence_operators import CONTROLS, CORE

Row = Mapping[str, Any]

SETTINGS = ("task", "start", "learning_rate", "rank", "seed", "skew", "steps")
LINE = ("average", "line 0.25", "line 0.5", "line 0.75", "exact")
RIVALS = tuple(name for name in CORE if name != "head alone")
"""Operators of every case that could be a default; the head alone is a control."""
BLENDS = {
    "λ = noise, whole update": "step_noise",
    "λ = pairs, whole update": "step_pairs",
    "λ = agreement, whole update": "step_agreement",
    "λ = cosine, whole update": "step_cosine",
    "λ = noise of the rest": "rest_noise",
    "λ = agreement of the rest": "rest_agreement",
}
"""Rules for one λ in all modules -> the measure of drift that it is; read off the line."""


@dataclass(frozen=True, slots=True)
class Case:
    """All operators on one set of clients' updates.

    Args:
        settings: values of :data:`SETTINGS`.
        rows: operator -> its row.
    """

    settings: Mapping[str, Any]
    rows: Mapping[str, Row]

    def accuracy(self, operator: str) -> float:
        """Share of right answers."""
        return float(self.rows[operator]["accuracy"])

    def loss(self, operator: str) -> float:
        """Mean cross-entropy in nats."""
        return float(self.rows[operator]["loss"])

    def gain(self, operator: str) -> float:
        """Accuracy over plain averaging, in points."""
        return 100 * (self.accuracy(operator) - self.accuracy("average"))

    def gain_error(self, operator: str) -> float:
        """Standard error of :meth:`gain` from the examples on which the two differ (McNemar)."""
        row = self.rows[operator]
        wins, losses, n = int(row["wins"]), int(row["losses"]), int(row["examples"])
        return 100 * math.sqrt(wins + losses - (wins - losses) ** 2 / n) / n

    def loss_gain(self, operator: str) -> float:
        """Loss below that of plain averaging, in nats: positive is better."""
        return self.loss("average") - self.loss(operator)

    def best(self) -> str:
        """The rival with the highest accuracy; of several the one with the lowest loss."""
        return max(RIVALS, key=lambda name: (self.accuracy(name), -self.loss(name)))

    def regret(self, operator: str) -> float:
        """Accuracy below the best rival's, in points."""
        return 100 * (self.accuracy(self.best()) - self.accuracy(operator))

    def correlation(self, measure: str) -> float:
        """Spearman's rank correlation of error and ``measure`` along the line from average to exact."""
        errors = [float(self.rows[name]["error"]) for name in LINE]
        return spearman(errors, [float(self.rows[name][measure]) for name in LINE])

    def blended(self, key: str) -> tuple[float, float]:
        """Gain in points and in nats at λ = the measure ``key``, interpolated along the line."""
        place = 4 * min(1.0, max(0.0, self.about(key)))
        left = min(int(place), len(LINE) - 2)
        first, second = LINE[left], LINE[left + 1]
        share = place - left
        return (
            (1 - share) * self.gain(first) + share * self.gain(second),
            (1 - share) * self.loss_gain(first) + share * self.loss_gain(second),
        )

    def about(self, key: str) -> float:
        """A diagnostic of the case, such as ``step_cosine``; the same for all operators."""
        return float(next(row[key] for row in self.rows.values() if key in row))


def cases(
    rows: Sequence[Row], *, bf16: bool = True, operators: Collection[str] = (*CORE, *CONTROLS)
) -> list[Case]:
    """The cases among the rows that have all these operators, in the order in which they were measured."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if row["bf16"] == bf16:
            found.setdefault(tuple(row[key] for key in SETTINGS), {})[row["operator"]] = row
    return [
        Case(dict(zip(SETTINGS, key, strict=True)), of)
        for key, of in found.items()
        if of.keys() >= {*operators}
    ]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where one side is constant.

    Example:
        >>> spearman([1, 2, 3], [30, 20, 10])
        -1.0
    """
    a, b = _ranks(x), _ranks(y)
    dx, dy = [v - mean(a) for v in a], [v - mean(b) for v in b]
    size = math.hypot(*dx) * math.hypot(*dy)
    return sum(p * q for p, q in zip(dx, dy, strict=True)) / size if size else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]
