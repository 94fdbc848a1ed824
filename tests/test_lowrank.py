"""Factored linear algebra against the same computed densely in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from florana import lowrank
from florana.lowrank import ALIGNMENT_FLOOR, GAUGES, Gauge, Product
from strategies import (
    assert_near,
    dense,
    dense_best,
    few,
    pairs_of_products,
    products,
    randn,
    seeds,
)

every_gauge = pytest.mark.parametrize("gauge", GAUGES)
ranks = st.integers(1, 12)


def reference_for(product: Product, rank: int, seed: int = 0) -> Tensor:
    """A random Ā of shape (rank, d_in), far from singular in most cases."""
    return randn(torch.Generator().manual_seed(seed), rank, product.A.shape[1])


@few
@given(both=pairs_of_products(), c=st.floats(-3, 3), d=st.floats(-3, 3))
def test_weighted_sum_is_the_sum_of_matrices(
    both: tuple[Product, Product], c: float, d: float
) -> None:
    """The stack's value is c X + d Y, and its width the sum of the widths."""
    first, second = both
    total = lowrank.weighted_sum(both, [c, d])
    assert_near(dense(total), c * dense(first) + d * dense(second))
    assert total.width == first.width + second.width


@few
@given(product=products())
def test_compact_keeps_the_value_and_bounds_the_width(product: Product) -> None:
    """The same matrix in at most min(d_out, d_in) columns; what is narrow enough stays the very same factors."""
    made = lowrank.compact(product)
    least = min(product.B.shape[0], product.A.shape[1])
    assert_near(dense(made), dense(product))
    assert made.width == min(product.width, least)
    assert made.B.shape[0] == product.B.shape[0]
    assert made.A.shape[1] == product.A.shape[1]
    if product.width <= least:
        assert made.B is product.B
        assert made.A is product.A


@few
@given(product=products())
def test_compact_takes_no_more_numbers_than_before(product: Product) -> None:
    """Whatever is done with it, the result is never the larger one."""
    made = lowrank.compact(product)
    assert made.B.numel() + made.A.numel() <= product.B.numel() + product.A.numel()


@few
@given(both=pairs_of_products())
def test_add_is_the_sum_of_matrices(both: tuple[Product, Product]) -> None:
    """X + Y, no wider than the matrix is, in new tensors; neither summand is written to."""
    before = [Product(p.B.clone(), p.A.clone()) for p in both]
    made = lowrank.add(*both)
    assert_near(dense(made), dense(both[0]) + dense(both[1]))
    assert made.width <= min(made.B.shape[0], made.A.shape[1])
    made.B.zero_()
    made.A.zero_()
    for product, copy in zip(both, before, strict=True):
        assert torch.equal(product.B, copy.B)
        assert torch.equal(product.A, copy.A)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@few
@given(both=pairs_of_products())
def test_add_keeps_the_dtype_of_the_first(
    dtype: torch.dtype, both: tuple[Product, Product]
) -> None:
    """Summed in float64 and cast once: off by the rounding of the factors only."""
    first = Product(both[0].B.to(dtype), both[0].A.to(dtype))
    made = lowrank.add(first, both[1])
    assert made.B.dtype == made.A.dtype == dtype
    expected = dense(first) + dense(both[1])
    size = sum(float(p.B.double().norm() * p.A.double().norm()) for p in (first, both[1]))
    assert float((dense(made) - expected).norm()) <= 3 * torch.finfo(dtype).eps * size


def test_sums_of_many_rounds_neither_grow_nor_drift() -> None:
    """A hundred float32 terms stay within the width of the matrix and a few roundings of their sum."""
    generator = torch.Generator().manual_seed(0)
    terms = [
        Product(randn(generator, 9, 2).float(), randn(generator, 2, 5).float()) for _ in range(100)
    ]
    total, exact = terms[0], dense(terms[0])
    for term in terms[1:]:
        total = lowrank.add(total, term)
        exact = exact + dense(term)
        assert total.width <= 5
    assert float((dense(total) - exact).norm() / exact.norm()) < 1e-5


def test_weighted_sum_wants_one_coefficient_per_product() -> None:
    """A missing coefficient is an error, not a dropped term."""
    product = Product(torch.ones(3, 1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="shorter"):
        lowrank.weighted_sum([product, product], [1.0])


@few
@given(both=pairs_of_products())
def test_norm_and_distance_are_the_dense_ones(both: tuple[Product, Product]) -> None:
    """Frobenius norms agree with those of the formed matrices."""
    X, Y = map(dense, both)
    assert lowrank.norm(both[0]) == pytest.approx(float(torch.linalg.matrix_norm(X)), abs=1e-12)
    expected = float(torch.linalg.matrix_norm(X - Y))
    assert lowrank.distance(*both) == pytest.approx(expected, abs=1e-12)


@few
@given(product=products(), seed=seeds)
def test_distance_is_zero_between_two_factorisations(product: Product, seed: int) -> None:
    """(B G)(G⁻¹ A) is at distance 0 from B A, up to rounding in float64 and not in its root."""
    noise = randn(torch.Generator().manual_seed(seed), product.width, product.width)
    G = torch.eye(product.width).double() + 0.2 * noise / torch.linalg.matrix_norm(noise)
    other = Product(product.B @ G, torch.linalg.solve(G, product.A))
    scale = float(torch.linalg.vector_norm(product.B) * torch.linalg.vector_norm(product.A))
    assert lowrank.distance(product, other) <= 1e-13 * max(1.0, scale)


@few
@given(both=pairs_of_products())
def test_relative_error_is_the_dense_one(both: tuple[Product, Product]) -> None:
    """‖T − X‖ / ‖T‖ agrees with the formed matrices wherever T is not zero."""
    X, T = map(dense, both)
    assume(torch.linalg.matrix_norm(T) > 0)
    expected = float(torch.linalg.matrix_norm(T - X) / torch.linalg.matrix_norm(T))
    assert lowrank.relative_error(*both) == pytest.approx(expected, abs=1e-12)


def test_relative_error_of_a_zero_target() -> None:
    """A zero target is met exactly by zero, and infinitely missed by anything else."""
    zero, one = (
        Product(torch.zeros(3, 1), torch.ones(1, 2)),
        Product(torch.ones(3, 1), torch.ones(1, 2)),
    )
    assert lowrank.relative_error(zero, zero) == 0
    assert lowrank.relative_error(one, zero) == math.inf


@few
@given(product=products())
def test_svd_is_the_dense_one(product: Product) -> None:
    """U and V have orthonormal columns, S descends and is the dense spectrum, U S Vᵀ is the product."""
    U, S, Vh = lowrank.svd(product)
    k = min(product.width, product.B.shape[0], product.A.shape[1])
    assert U.shape[1] == S.numel() == Vh.shape[0] == k
    assert_near(U.T @ U, torch.eye(k))
    assert_near(Vh @ Vh.T, torch.eye(k))
    assert (S.diff() <= 0).all()
    assert_near(S, torch.linalg.svdvals(dense(product))[:k])
    assert_near((U * S) @ Vh, dense(product))


@few
@given(product=products(), leading=st.integers(0, 12))
def test_leading_triplets_are_the_first_of_all(product: Product, leading: int) -> None:
    """``leading`` cuts the vectors and not the singular values."""
    U, S, Vh = lowrank.svd(product)
    cut = lowrank.svd(product, leading)
    assert torch.equal(cut.S, S)
    assert torch.equal(cut.Vh, Vh[:leading])
    assert torch.equal(cut.U, U[:, :leading])


def test_less_than_no_triplets_are_refused() -> None:
    """A negative number of triplets is an error, not a count from the end."""
    with pytest.raises(ValueError, match="0 or more, got -1"):
        lowrank.svd(Product(torch.ones(3, 1), torch.ones(1, 2)), -1)


@every_gauge
def test_split_refuses_what_was_not_multiplied_out(gauge: Gauge) -> None:
    """A rank beyond the triplets at hand is an error, not a smaller rank."""
    decomposition = lowrank.svd(Product(torch.eye(4), torch.eye(4)), leading=2)
    with pytest.raises(ValueError, match="leading=3 or more"):
        lowrank.split(decomposition, 3, gauge, torch.ones(3, 4))
    assert lowrank.split(decomposition, 2, gauge, torch.ones(3, 4)).width == 2


@few
@given(both=pairs_of_products())
def test_inner_is_the_dense_one(both: tuple[Product, Product]) -> None:
    """⟨X, Y⟩ = Σ X_ij Y_ij."""
    expected = float((dense(both[0]) * dense(both[1])).sum())
    assert lowrank.inner(*both) == pytest.approx(expected, abs=1e-11)


@few
@given(product=products(), rank=st.integers(0, 12))
def test_truncation_error_is_that_of_the_best_matrix(product: Product, rank: int) -> None:
    """Eckart-Young, at every rank from 0 to beyond the width; 0 for a zero product."""
    T = dense(product)
    size = float(torch.linalg.matrix_norm(T))
    gap = float(torch.linalg.matrix_norm(T - dense_best(T, rank)))
    error = lowrank.truncation_error(lowrank.svd(product), rank)
    assert error == pytest.approx(gap / size if size else 0.0, abs=1e-12)


@few
@given(product=products(), width=ranks)
def test_pad_widens_and_keeps_the_value(product: Product, width: int) -> None:
    """Padding never narrows, and the product stays what it was, bit for bit."""
    padded = lowrank.pad(product, width)
    assert padded.width == padded.B.shape[1] == max(width, product.width)
    assert torch.equal(padded.B[:, : product.width], product.B)
    assert torch.equal(padded.A[: product.width], product.A)
    assert not padded.B[:, product.width :].any()
    assert not padded.A[product.width :].any()


@every_gauge
@few
@given(product=products(), rank=ranks)
def test_split_is_the_truncated_svd_in_every_gauge(
    gauge: Gauge, product: Product, rank: int
) -> None:
    """Whatever the gauge, the product is the best of that rank and the width is the one asked for."""
    made = lowrank.split(lowrank.svd(product), rank, gauge, reference_for(product, rank))
    assert made.B.shape == (product.B.shape[0], rank)
    assert made.A.shape == (rank, product.A.shape[1])
    assert_near(dense(made), dense_best(dense(product), rank))


@few
@given(product=products(), rank=ranks)
def test_balanced_factors_have_one_gram(product: Product, rank: int) -> None:
    """BᵀB = AAᵀ = diag(S): equal norms, components ordered."""
    decomposition = lowrank.svd(product)
    B, A = lowrank.split(decomposition, rank, "balanced")
    S = torch.nn.functional.pad(decomposition.S, (0, rank))[:rank]
    assert_near(B.T @ B, torch.diag(S))
    assert_near(A @ A.T, torch.diag(S))


@few
@given(product=products(), rank=ranks)
def test_orthonormal_gauge_has_orthonormal_rows(product: Product, rank: int) -> None:
    """AAᵀ = I for as many rows as there are singular values, and 0 beyond."""
    decomposition = lowrank.svd(product)
    A = lowrank.split(decomposition, rank, "orthonormal").A
    rows = min(rank, decomposition.S.numel())
    assert_near(A @ A.T, torch.diag((torch.arange(rank) < rows).double()))


@few
@given(product=products(), rank=ranks, seed=seeds)
def test_mean_aligned_a_is_the_reference_projected(product: Product, rank: int, seed: int) -> None:
    """A = Ā V Vᵀ: the part of the reference in the row space of the product, its scale included."""
    decomposition = lowrank.svd(product)
    rank = min(rank, decomposition.S.numel())
    reference = reference_for(product, rank, seed)
    Vh = decomposition.Vh[:rank]
    assume(torch.linalg.svdvals(reference @ Vh.T).min() > 1.01 * floor_for(reference))
    A = lowrank.split(decomposition, rank, "mean-aligned", reference).A
    assert_near(A, reference @ Vh.T @ Vh)


def floor_for(reference: Tensor) -> float:
    """The least singular value that A may have: a share of the reference's root mean square one."""
    return ALIGNMENT_FLOOR * float(reference.norm()) / math.sqrt(max(1, len(reference)))


FLAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "ill-conditioned": lambda Z: Z * 10.0 ** (-4 * torch.arange(len(Z)))[:, None],
    "rank-deficient": lambda Z: Z[:1].expand(len(Z), -1),
    "zero": torch.zeros_like,
    "fewer rows": lambda Z: Z[: len(Z) // 2],
    "more rows": lambda Z: torch.cat([Z, Z]),
}


@pytest.mark.parametrize("flaw", FLAWS)
@few
@given(product=products(), rank=ranks)
def test_mean_aligned_survives_any_reference(flaw: str, product: Product, rank: int) -> None:
    """A reference that cannot be inverted costs neither the exact product nor a bounded inverse."""
    decomposition = lowrank.svd(product)
    reference = FLAWS[flaw](reference_for(product, rank))
    made = lowrank.split(decomposition, rank, "mean-aligned", reference)
    assert_near(dense(made), dense_best(dense(product), rank))
    rows = min(rank, decomposition.S.numel())
    assert torch.linalg.svdvals(made.A[:rows]).min() >= 0.999 * floor_for(reference)


def test_mean_aligned_wants_a_reference() -> None:
    """Without a reference there is nothing to align to, and no other gauge is taken instead."""
    decomposition = lowrank.svd(Product(torch.ones(3, 1), torch.ones(1, 2)))
    with pytest.raises(ValueError, match="reference"):
        lowrank.split(decomposition, 1, "mean-aligned")


@few
@given(product=products())
def test_results_are_float64_and_inputs_untouched(product: Product) -> None:
    """Half-precision factors are computed on in float64, and never written to."""
    half = Product(product.B.half(), product.A.half())
    before = Product(half.B.clone(), half.A.clone())
    decomposition = lowrank.svd(half)
    split = lowrank.split(decomposition, 2, "mean-aligned", half.A)
    outputs = [*decomposition, *split, *lowrank.weighted_sum([half], [0.5])]
    assert {tensor.dtype for tensor in outputs} == {torch.float64}
    assert lowrank.norm(half) == pytest.approx(float(dense(before).norm()), abs=1e-12)
    assert all(map(torch.equal, half, before))
