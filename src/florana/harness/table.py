"""The harness's scores as lines of a table, base beside adapted: for the terminal and for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from florana.harness.scores import Score

BASE = "base"
HEADER = ("task", "metric", "shots", "n", "adapter", "base", "adapted", "difference")
"""What :meth:`Line.cells` has; n is the number of examples."""


@dataclass(frozen=True, slots=True)
class Line:
    """A measure of one adapter, and of the base where that was measured too.

    Args:
        adapted: the adapter's score; None where only the base was measured.
        base: the base model's.
    """

    adapted: Score | None
    base: Score | None

    @property
    def difference(self) -> float | None:
        """Adapted minus base."""
        if self.adapted is None or self.base is None:
            return None
        return self.adapted.value - self.base.value

    @property
    def better(self) -> bool | None:
        """Whether the adapter is better; None where it is not known, or no different."""
        said, difference = self.adapted, self.difference
        if said is None or not difference or said.higher_is_better is None:
            return None
        return (difference > 0) == said.higher_is_better

    def cells(self) -> tuple[str, ...]:
        """Text below :data:`HEADER`."""
        score = self.adapted or self.base
        assert score is not None
        name = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        examples = "–" if score.examples is None else str(score.examples)
        return (
            score.task,
            f"{name}, chat" if score.chat else name,
            "–" if score.shots is None else str(score.shots),
            examples if score.limit is None else f"first {examples}",
            "–" if self.adapted is None else self.adapted.model,
            _value(self.base),
            _value(self.adapted),
            "–" if self.difference is None else f"{self.difference:+.3f}",
        )


def lines(scores: Iterable[Score], *, parts: bool = False) -> list[Line]:
    """A line for each measure and adapter, in the order of their measurement.

    Args:
        scores: of one run or adapter folder.
        parts: also those of tasks that are parts of a group, such as MMLU's 57.

    Example:
        >>> told = [Score("base", "t", "acc", "none", 0.25), Score("final", "t", "acc", "none", 0.5)]
        >>> [line.cells()[4:] for line in lines(told)]
        [('final', '0.250', '0.500', '+0.250')]
    """
    shown = [score for score in scores if parts or score.group is None]
    measures = dict.fromkeys(score.measure for score in shown)
    return [line for measure in measures for line in _of_measure(measure, shown)]


def _of_measure(measure: tuple[object, ...], scores: Sequence[Score]) -> list[Line]:
    same = [score for score in scores if score.measure == measure]
    base = next((score for score in same if score.model == BASE), None)
    adapted = [Line(score, base) for score in same if score.model != BASE]
    return adapted or [Line(None, base)]


def _value(score: Score | None) -> str:
    if score is None:
        return "–"
    return f"{score.value:.3f}" + ("" if score.stderr is None else f" ± {score.stderr:.3f}")
