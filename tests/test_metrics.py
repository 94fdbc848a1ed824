"""Metrics: against their definitions in float64, at their edges, and what "better" means for each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from florana.tasks.metrics import METRICS, Metric, of_classes, of_values

ANSWERS = st.integers(2, 4).flatmap(
    lambda c: st.tuples(
        st.just(c),
        st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=40),
    )
)
VALUES = st.lists(
    st.tuples(*[st.integers(-20, 20).map(lambda v: v / 4)] * 2), min_size=2, max_size=40
)


def sides(pairs: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is right, and what was said."""
    table = np.array(pairs, dtype=np.int64)
    return table[:, 0], table[:, 1]


def f1(truth: NDArray[np.int64], said: NDArray[np.int64], label: int) -> float:
    """2 TP / (2 TP + FP + FN), 0 for 0 / 0."""
    hits = int(((truth == label) & (said == label)).sum())
    misses = int(((truth == label) ^ (said == label)).sum())
    return 2 * hits / (2 * hits + misses) if hits else 0.0


@given(ANSWERS)
def test_classes_are_scored_by_their_definitions(
    drawn: tuple[int, list[tuple[int, int]]],
) -> None:
    """Accuracy, F1 (of the second of two classes, else the mean) and Matthews from the table of counts."""
    classes, pairs = drawn
    truth, said = sides(pairs)
    assert of_classes("accuracy", truth, said, classes) == float(np.mean(truth == said))
    labels = [1] if classes == 2 else sorted({*truth.tolist(), *said.tolist()})
    expected = float(np.mean([f1(truth, said, label) for label in labels]))
    assert of_classes("f1", truth, said, classes) == pytest.approx(expected)
    # Gorodkin's R_K is the correlation of the two sides as indicator vectors
    one, two = (
        np.eye(classes)[side] - np.eye(classes)[side].mean(axis=0) for side in (truth, said)
    )
    spread = math.sqrt((one**2).sum() * (two**2).sum())
    matthews = (one * two).sum() / spread if spread > 1e-12 else 0.0
    assert of_classes("matthews", truth, said, classes) == pytest.approx(matthews, abs=1e-9)


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean rank of each value among all."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    found: NDArray[np.float64] = below + (equal - 1) / 2
    return found


@given(VALUES)
def test_values_are_scored_by_their_definitions(pairs: list[tuple[float, float]]) -> None:
    """Pearson of the values, Spearman as Pearson of the ranks, mean squared error; 0 where a side is constant."""
    truth, said = np.array(pairs).T
    assert of_values("mse", truth, said) == pytest.approx(((truth - said) ** 2).mean())
    for name, (one, two) in {
        "pearson": (truth, said),
        "spearman": (ranks(truth), ranks(said)),
    }.items():
        constant = np.ptp(truth) == 0 or np.ptp(said) == 0
        expected = 0.0 if constant else np.corrcoef(one, two)[0, 1]
        assert of_values(name, truth, said) == pytest.approx(expected, abs=1e-9)


@given(st.sampled_from(list(METRICS.values())), st.lists(st.floats(0, 1), min_size=1))
def test_better_is_up_or_down(metric: Metric, scores: list[float]) -> None:
    """The best of some scores leads all, the worst leads none, and a lead turned round changes its sign."""
    best, worst = metric.best(scores), metric.worst(scores)
    assert all(metric.lead(best, score) >= 0 >= metric.lead(worst, score) for score in scores)
    assert metric.lead(best, worst) == -metric.lead(worst, best)
    assert metric.better(best, worst) == (best != worst)
    assert (best == max(scores)) if metric.higher_is_better else (best == min(scores))


@pytest.mark.parametrize(
    ("name", "score", "text"),
    [
        ("accuracy", 0.6524, "65.2 %"),
        ("f1", 1.0, "100.0 %"),
        ("matthews", -0.0401, "-0.040"),
        ("perplexity", 14.234, "14.2"),
        ("perplexity", 3.14159, "3.142"),
        ("pass@1", 0.0, "0.0 %"),
    ],
)
def test_a_score_is_shown_in_its_unit(name: str, score: float, text: str) -> None:
    """Shares in percent, correlations and perplexities as they are."""
    assert METRICS[name].text(score) == text
