"""What a score is called, which way is better, how it is shown, and how the classical ones are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Metric:
    """A score by name.

    Args:
        name: as in configurations and in ``metrics.jsonl``.
        higher_is_better: False for perplexity and errors.
        percent: shown times 100; False: shown as it is.

    Example:
        >>> METRICS["accuracy"].text(0.6524), METRICS["matthews"].text(0.41234)
        ('65.2 %', '0.412')
        >>> METRICS["perplexity"].lead(14.2, 15.0)
        0.8000000000000007
    """

    name: str
    higher_is_better: bool = True
    percent: bool = True

    @property
    def label(self) -> str:
        """The name for people, such as ``Matthews`` or ``exact match``."""
        return LABELS.get(self.name, self.name.replace("_", " "))

    def lead(self, score: float, other: float) -> float:
        """By how much ``score`` is better than ``other``; below zero where it is worse."""
        return score - other if self.higher_is_better else other - score

    def better(self, score: float, other: float) -> bool:
        """Whether ``score`` is better than ``other``."""
        return self.lead(score, other) > 0

    def best(self, scores: NDArray[np.float64] | list[float]) -> float:
        """The best of some scores."""
        return float(np.max(scores) if self.higher_is_better else np.min(scores))

    def worst(self, scores: NDArray[np.float64] | list[float]) -> float:
        """The worst of some scores."""
        return float(np.min(scores) if self.higher_is_better else np.max(scores))

    def text(self, score: float) -> str:
        """A score for people: ``65.2 %``, ``0.412`` or ``14.2``."""
        if self.percent:
            return f"{100 * score:.1f} %"
        return f"{score:.3f}" if abs(score) < 10 else f"{score:.1f}"

    @property
    def points(self) -> float:
        """What differences are multiplied by in tables and figures.

        100 for scores of at most 1, whose differences are told in points; 1 for the others.
        """
        return 100.0 if self.higher_is_better else 1.0

    def lead_text(self, lead: float) -> str:
        """The size of a difference for people: ``20.2 points``, or the number itself."""
        return f"{abs(100 * lead):.1f} points" if self.percent else f"{abs(lead):.3f}"


LABELS: Mapping[str, str] = MappingProxyType(
    {
        "f1": "F1",
        "matthews": "Matthews",
        "pearson": "Pearson",
        "spearman": "Spearman",
        "mse": "mean squared error",
    }
)
"""Names for people, where they are not the name itself without underscores."""

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("accuracy"),
            Metric("f1"),
            Metric("matthews", percent=False),
            Metric("pearson", percent=False),
            Metric("spearman", percent=False),
            Metric("mse", higher_is_better=False, percent=False),
            Metric("perplexity", higher_is_better=False, percent=False),
            Metric("token_accuracy"),
            Metric("exact_match"),
            Metric("pass@1"),
        )
    }
)
"""Every metric that a run can have, by name."""

CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman", "mse")


def of_classes(name: str, truth: NDArray[np.int64], said: NDArray[np.int64], classes: int) -> float:
    r"""A metric of :data:`CLASSIFICATION`, by scikit-learn.

    - ``accuracy``: share of right answers.
    - ``f1``: :math:`2 P R / (P + R)` of the second class with two classes, as GLUE has it; the mean over all classes that
      occur, in truth or in answers, with more. 0 where it is 0 / 0.
    - ``matthews``: correlation of truth and answer (Gorodkin's for more than two classes); 0 where either is constant.

    Args:
        name: which one.
        truth: n right classes.
        said: n answered ones.
        classes: how many there are.

    Example:
        >>> of_classes("f1", np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), 2)
        0.8
    """
    if name == "accuracy":
        return int((truth == said).sum()) / len(truth)
    from sklearn.metrics import f1_score, matthews_corrcoef

    if name == "f1":
        average = "binary" if classes == 2 else "macro"
        return float(f1_score(truth, said, average=average, zero_division=0.0))
    assert name == "matthews"
    # scikit-learn warns where both are one single class
    constant = len(np.unique(truth)) < 2 or len(np.unique(said)) < 2
    return 0.0 if constant else float(matthews_corrcoef(truth, said))


def of_values(name: str, truth: NDArray[np.float64], said: NDArray[np.float64]) -> float:
    """A metric of :data:`REGRESSION`, by scipy: Pearson's or Spearman's correlation, or mean squared error.

    Args:
        name: which one.
        truth: n right values.
        said: n answered ones.

    Returns:
        The metric; a correlation is 0 where either side is constant, which nothing correlates with.

    Example:
        >>> round(of_values("spearman", np.array([0.0, 1.0, 5.0]), np.array([1.0, 2.0, 2.5])), 6)
        1.0
    """
    if name == "mse":
        return float(np.mean((truth - said) ** 2))
    from scipy.stats import pearsonr, spearmanr

    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(said) == 0:
        return 0.0
    found = pearsonr(truth, said) if name == "pearson" else spearmanr(truth, said)
    return float(found.statistic)
