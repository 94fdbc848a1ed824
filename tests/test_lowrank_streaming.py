"""Sums read in passes against the same computed densely in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florana import lowrank
from florana.lowrank import Product, StreamedSvd, streamed_mean, streamed_svd
from strategies import assert_near, dense, dense_best, few, randn, seeds

SHAPE = (60, 50)

Term = tuple[float, Product]


def client_terms(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> list[Term]:
    """Twenty clients near a start, of ranks 1 to 5."""
    start = randn(generator, 5, SHAPE[1])
    terms = []
    for u in range(20):
        rank = 1 + u % 5
        A = start[:rank] + 0.3 * randn(generator, rank, SHAPE[1])
        B = randn(generator, SHAPE[0], rank)
        terms.append((0.1 + 0.02 * u, Product(B.to(dtype), A.to(dtype))))
    return terms


def with_spectrum(S: Tensor, generator: torch.Generator) -> list[Term]:
    """Terms that add up to a matrix of that spectrum, each a random mixture, so that none shows it alone."""
    U = torch.linalg.qr(randn(generator, SHAPE[0], len(S))).Q
    V = torch.linalg.qr(randn(generator, SHAPE[1], len(S))).Q
    G = torch.linalg.qr(randn(generator, len(S), len(S))).Q
    B, A = (U * S) @ G, G.T @ V.T
    return [(2.0, Product(B[:, k : k + 4] / 2, A[k : k + 4])) for k in range(0, len(S), 4)]


def total(terms: list[Term]) -> Tensor:
    """The sum, densely."""
    return torch.stack([c * dense(p) for c, p in terms]).sum(dim=0)


def value(made: StreamedSvd) -> Tensor:
    """The matrix of the result."""
    return (made.svd.U * made.svd.S) @ made.svd.Vh


def true_error(made: StreamedSvd, T: Tensor) -> float:
    """‖T − X‖ / ‖T‖."""
    return float(torch.linalg.matrix_norm(T - value(made)) / torch.linalg.matrix_norm(T))


def least_error(T: Tensor, rank: int) -> float:
    """The same of the best matrix of that rank."""
    return float(torch.linalg.matrix_norm(T - dense_best(T, rank)) / torch.linalg.matrix_norm(T))


ranks = st.integers(1, 12)


@few
@given(seed=seeds, rank=ranks, power=st.integers(0, 2), block=st.sampled_from([1, 7, 1000]))
def test_result_is_a_projection_of_the_sum(seed: int, rank: int, power: int, block: int) -> None:
    """X = U Uᵀ T: orthonormal vectors, descending values, whatever the size of the blocks."""
    terms = client_terms(torch.Generator().manual_seed(seed))
    T = total(terms)
    made = streamed_svd(lambda: terms, rank, SHAPE, power_iterations=power, block=block, seed=seed)
    U, S, Vh = made.svd
    assert U.shape == (SHAPE[0], rank)
    assert Vh.shape == (rank, SHAPE[1])
    assert_near(U.T @ U, torch.eye(rank))
    assert_near(Vh @ Vh.T, torch.eye(rank))
    assert (S.diff() <= 0).all()
    assert_near(value(made), U @ (U.T @ T))
    assert (made.terms, made.passes) == (20, 2 + 2 * power)


@few
@given(seed=seeds, rank=ranks)
def test_full_width_is_the_best_matrix(seed: int, rank: int) -> None:
    """Where Q spans the whole column space nothing is random: the optimum, and the bounds meet at it."""
    terms = client_terms(torch.Generator().manual_seed(seed))
    T = total(terms)
    made = streamed_svd(lambda: terms, rank, SHAPE, oversampling=50, seed=seed)
    assert_near(value(made), dense_best(T, rank))
    expected = least_error(T, rank)
    for found in (made.error, made.bound, made.least):
        assert found == pytest.approx(expected, abs=1e-9)
    assert made.norm == pytest.approx(float(torch.linalg.matrix_norm(T)), rel=1e-9)


@few
@given(seed=seeds, rank=st.integers(4, 8))
def test_power_iterations_reach_the_optimum(seed: int, rank: int) -> None:
    """Three of them leave nothing to gain from a spectrum that falls by a half every step."""
    generator = torch.Generator().manual_seed(seed)
    terms = with_spectrum(0.5 ** torch.arange(40).double(), generator)
    T = total(terms)
    made = streamed_svd(lambda: terms, rank, SHAPE, power_iterations=3, seed=seed)
    assert true_error(made, T) <= least_error(T, rank) * (1 + 1e-9)


SPECTRA = {
    "falling fast": 0.5 ** torch.arange(40).double(),
    "falling slowly": 1 / (1 + torch.arange(40).double()),
    "flat": torch.ones(40).double(),
    "flat after a step": torch.cat([torch.ones(8), 0.1 * torch.ones(32)]).double(),
    "few": torch.cat([torch.ones(20), torch.zeros(20)]).double(),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_bound_holds_in_99_of_100(spectrum: str) -> None:
    """Of 200 seeds, the true error is above the bound in two at most, and the best one never below ``least``."""
    terms = with_spectrum(SPECTRA[spectrum], torch.Generator().manual_seed(0))
    T = total(terms)
    least = least_error(T, 4)
    made = [streamed_svd(lambda: terms, 4, SHAPE, seed=seed) for seed in range(200)]
    above = [true_error(m, T) > m.bound for m in made]
    below = [least < m.least for m in made]
    assert sum(above) <= 2
    assert sum(below) <= 2


def test_the_bound_is_not_vacuous_and_the_estimate_is_unbiased() -> None:
    """On a flat tail: squared errors are right on average, bounds below twice the error."""
    terms = with_spectrum(SPECTRA["flat after a step"], torch.Generator().manual_seed(1))
    T = total(terms)
    made = [streamed_svd(lambda: terms, 8, SHAPE, seed=seed) for seed in range(200)]
    size = float(torch.linalg.matrix_norm(T))
    ratios = [(m.error * m.norm / (true_error(m, T) * size)) ** 2 for m in made]
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.02)
    assert all(m.bound < 2 * true_error(m, T) for m in made)


def test_the_bound_is_tight_for_its_worst_spectrum() -> None:
    """One direction outside of Q: it fails in about one of 100, which a smaller factor would not keep to."""
    from florana.lowrank._blocks import Read
    from florana.lowrank.streaming import _with_errors

    generator = torch.Generator().manual_seed(0)
    outside = torch.zeros(5, 16, dtype=torch.float64)
    decomposition = lowrank.Svd(torch.eye(5, 1), torch.ones(1), torch.eye(1, 5))
    failed = 0
    for _ in range(2000):
        outside[0] = randn(generator, 16)  # M = e vᵀ, of norm 1
        read = Read(outside, 1, 1, 0.0)
        projection = Product(decomposition.U, decomposition.Vh)
        made = _with_errors(decomposition, projection, torch.ones(1).double(), outside, read, 2)
        assert (made.bound < math.sqrt(0.5)) == (made.rest_bound < 1)
        failed += made.bound < math.sqrt(0.5)
    assert 8 <= failed <= 34


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    """Off by roundings of float32, and the bound knows of them even where the rank suffices."""
    terms = client_terms(torch.Generator().manual_seed(0), dtype)
    T = total(terms)
    for rank in (3, 30):
        made = streamed_svd(lambda: terms, rank, SHAPE, oversampling=50, seed=rank)
        assert true_error(made, T) <= made.bound
        assert made.error == pytest.approx(least_error(T, rank), rel=1e-3, abs=1e-6)
        assert {t.dtype for t in made.svd} == {torch.float64}
    whole = streamed_svd(lambda: terms, 50, SHAPE)
    assert 0 < true_error(whole, T) <= whole.bound < 1e-4


@few
@given(seed=seeds)
def test_the_same_seed_gives_the_same_bits(seed: int) -> None:
    """And another seed other ones; the global generator is neither read nor moved."""
    terms = client_terms(torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    one, same, other = (
        streamed_svd(lambda: terms, 3, SHAPE, seed=s) for s in (seed, seed, ~seed & 7)
    )
    assert all(map(torch.equal, one.svd, same.svd))
    assert (one.error, one.bound) == (same.error, same.bound)
    assert seed == ~seed & 7 or not torch.equal(one.svd.U, other.svd.U)
    assert torch.equal(torch.get_rng_state(), before)


def test_terms_are_read_one_at_a_time_and_left_alone() -> None:
    """No term is held once the next is asked for, and none is written to."""
    import weakref

    alive: list[weakref.ref[Tensor]] = []
    copies = client_terms(torch.Generator().manual_seed(0))

    def fresh() -> Iterator[Term]:
        for c, p in copies:
            assert sum(r() is not None for r in alive) <= 1
            product = Product(p.B.clone(), p.A.clone())
            alive.append(weakref.ref(product.A))
            yield c, product
            assert torch.equal(product.A, p.A)
            assert torch.equal(product.B, p.B)

    streamed_svd(fresh, 3, SHAPE, power_iterations=1)
    streamed_mean(fresh, SHAPE)
    assert len(alive) == 5 * len(copies)


@few
@given(seed=seeds)
def test_mean_is_that_of_each_factor(seed: int) -> None:
    """Σ c B and Σ c A, smaller ranks padded, in float64 whatever came."""
    terms = client_terms(torch.Generator().manual_seed(seed), torch.float32)
    B, A = torch.zeros(SHAPE[0], 5).double(), torch.zeros(5, SHAPE[1]).double()
    for c, p in terms:
        B[:, : p.width] += c * p.B.double()
        A[: p.width] += c * p.A.double()
    made = streamed_mean(lambda: terms, SHAPE)
    assert made.B.dtype == made.A.dtype == torch.float64
    assert_near(made.B, B, 1e-14)
    assert_near(made.A, A, 1e-14)


def test_a_sum_of_zeros_is_met_exactly() -> None:
    """No division by its norm."""
    zero = Product(torch.zeros(SHAPE[0], 2), torch.ones(2, SHAPE[1]))
    made = streamed_svd(lambda: [(1.0, zero)], 3, SHAPE)
    assert not value(made).any()
    assert (made.error, made.bound, made.least, made.norm) == (0, 0, 0, 0)


@settings(max_examples=50, deadline=None)
@given(wrong=st.sampled_from(["rank", "oversampling", "power_iterations", "probes", "block"]))
def test_arguments_out_of_range_are_refused(wrong: str) -> None:
    """With what came and what was expected."""
    terms = client_terms(torch.Generator().manual_seed(0))
    given = {"rank": 3} | {wrong: -1}
    with pytest.raises(ValueError, match="-1"):
        streamed_svd(lambda: terms, shape=SHAPE, **given)  # type: ignore[arg-type]


def test_rank_above_the_matrix_is_refused() -> None:
    """Not cut down."""
    with pytest.raises(ValueError, match=r"from 1 to min.* = 50, got 51"):
        streamed_svd(lambda: [], 51, SHAPE)


def test_no_terms_are_refused() -> None:
    """There is nothing to sum."""
    with pytest.raises(ValueError, match="no terms"):
        streamed_svd(lambda: [], 3, SHAPE)
    with pytest.raises(ValueError, match="no terms"):
        streamed_mean(lambda: [], SHAPE)


def test_another_shape_is_refused() -> None:
    """The message says which term, what came and what was expected."""
    good = Product(torch.ones(SHAPE[0], 2), torch.ones(2, SHAPE[1]))
    bad = Product(torch.ones(SHAPE[1], 2), torch.ones(2, SHAPE[0]))
    for call in (lambda t: streamed_svd(t, 3, SHAPE), lambda t: streamed_mean(t, SHAPE)):
        with pytest.raises(ValueError, match=r"term 1 .*\(50, 2\).*\(2, 60\).*\(60, 50\)"):
            call(lambda: [(1.0, good), (1.0, bad)])


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(number: float) -> None:
    """Found in the first pass, and told among which terms."""
    terms = client_terms(torch.Generator().manual_seed(0))
    terms[7][1].A[0, 3] = number
    with pytest.raises(ValueError, match="terms 6 to 7 holds NaN or infinity"):
        streamed_svd(lambda: terms, 3, SHAPE, block=6)


def test_passes_that_differ_are_refused() -> None:
    """An iterator that is used up gives nothing the second time."""
    terms = iter(client_terms(torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"no terms|same ones every time"):
        streamed_svd(lambda: terms, 3, SHAPE)
    whole = client_terms(torch.Generator().manual_seed(0))
    passes = iter([whole, whole[:-1]])
    with pytest.raises(ValueError, match="20 terms with 60 rows and a later one 19 with 55"):
        streamed_svd(lambda: next(passes), 3, SHAPE)


def test_what_is_beside_the_sketch_is_in_the_range() -> None:
    """A product whose columns are given beside is told apart from T by orthogonal parts: one known, one bounded."""
    terms = client_terms(torch.Generator().manual_seed(0), torch.float64)
    T = total(terms)
    mean = streamed_mean(lambda: terms, SHAPE)
    made = streamed_svd(lambda: terms, 3, SHAPE, oversampling=2, beside=lambda: mean.B)
    inside = lowrank.distance(mean, made.projection)
    gap = float(torch.linalg.matrix_norm(T - mean.B @ mean.A))
    rest = float(torch.linalg.matrix_norm(T - made.projection.B @ made.projection.A))
    assert math.hypot(inside, rest) == pytest.approx(gap, rel=1e-9)
    assert rest <= made.rest_bound
    U, S, Vh = made.svd
    assert float(torch.linalg.matrix_norm(T - (U * S) @ Vh)) <= gap
