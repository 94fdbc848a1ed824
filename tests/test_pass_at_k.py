"""pass@k: against the combinatorial formula in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florana.sandbox import SandboxError, mean_pass_at_k, pass_at_k


@st.composite
def counts(draw: st.DrawFn, most: int) -> tuple[int, int, int]:
    """(samples, correct, k) for which pass@k is defined."""
    samples = draw(st.integers(1, most))
    return samples, draw(st.integers(0, samples)), draw(st.integers(1, samples))


def exact(samples: int, correct: int, k: int) -> Fraction:
    """1 - C(n - c, k) / C(n, k) without rounding."""
    return 1 - Fraction(comb(samples - correct, k), comb(samples, k))


@given(counts(most=2000))
def test_equals_the_formula(numbers: tuple[int, int, int]) -> None:
    """Equal to the formula in fractions, in relative terms, where its binomials overflow a float too."""
    assert pass_at_k(*numbers) == pytest.approx(float(exact(*numbers)), rel=1e-12, abs=0)


@given(counts(most=7))
def test_is_the_mean_over_all_choices(numbers: tuple[int, int, int]) -> None:
    """The share of the ways to take k of n programs that hold one which is right."""
    samples, correct, k = numbers
    ways = [min(way) < correct for way in combinations(range(samples), k)]
    assert pass_at_k(*numbers) == pytest.approx(sum(ways) / len(ways), rel=1e-12)


@given(counts(most=300))
def test_is_a_probability_that_grows(numbers: tuple[int, int, int]) -> None:
    """It is between 0 and 1, 0 only if none is right, and grows with k and with the number of right ones."""
    samples, correct, k = numbers
    value = pass_at_k(samples, correct, k)
    assert 0 <= value <= 1
    assert (value == 0) == (correct == 0)
    if k < samples:
        assert pass_at_k(samples, correct, k + 1) >= value
    if correct < samples:
        assert pass_at_k(samples, correct + 1, k) >= value


@pytest.mark.parametrize("numbers", [(0, 0, 1), (5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6)])
def test_refuses_what_is_not_defined(numbers: tuple[int, int, int]) -> None:
    """More right ones than programs, or k beyond their number, is an error that says so."""
    with pytest.raises(SandboxError, match="is not defined"):
        pass_at_k(*numbers)


def test_mean_over_problems() -> None:
    """The mean over problems, with unlike numbers of programs; without problems it is not defined."""
    results = [[True, False, False], [False] * 4, [True] * 2]
    expected = (exact(3, 1, 2) + exact(4, 0, 2) + exact(2, 2, 2)) / 3
    assert mean_pass_at_k(results, 2) == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(SandboxError, match="at least one problem"):
        mean_pass_at_k([], 1)
    with pytest.raises(SandboxError, match="make more programs, or lower k"):
        mean_pass_at_k([[True], [True, False]], 2)
