"""Thin stacks, where Gram matrices take the place of QR, against the same computed densely in float64.

The stacks are those of real clients: factors near a common start, all but equal, without full rank, cancelling, of
wildly unlike scales. Small products, where QR is always taken, are in test_lowrank.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from florana import aggregate, lowrank
from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.lowrank import GAUGES, Gauge, Grams, Product
from strategies import assert_near, dense, dense_average, dense_best, randn, seeds

SHAPE, CLIENTS, RANK = (300, 280), 12, 10

some = settings(max_examples=8, deadline=None)
"""A dense SVD per example: fewer of them."""


def stack(A: list[Tensor], B: list[Tensor]) -> Product:
    """One product of the clients' factors, each with the same weight."""
    return Product(torch.cat(B, dim=1) / len(B), torch.cat(A, dim=0))


def near(drift: float, generator: torch.Generator) -> Product:
    """Clients whose A lie within ``drift`` of a common start."""
    d_out, d_in = SHAPE
    A = randn(generator, RANK, d_in)
    return stack(
        [A + drift * randn(generator, RANK, d_in) for _ in range(CLIENTS)],
        [randn(generator, d_out, RANK) for _ in range(CLIENTS)],
    )


def alike(drift: float, generator: torch.Generator) -> Product:
    """Clients that agree in A and B, but for ``drift``."""
    d_out, d_in = SHAPE
    A, B = randn(generator, RANK, d_in), randn(generator, d_out, RANK)
    return stack(
        [A + drift * randn(generator, RANK, d_in) for _ in range(CLIENTS)],
        [B + drift * randn(generator, d_out, RANK) for _ in range(CLIENTS)],
    )


def unlike_scales(generator: torch.Generator) -> Product:
    """Terms whose halves are a million times longer or shorter, with products of one size."""
    B, A = near(0.3, generator)
    scale = 10 ** (3 * randn(generator, len(A)))
    return Product(B / scale, A * scale[:, None])


def cancelling(generator: torch.Generator) -> Product:
    """A large part that adds up to nothing, and a millionth of it that stays."""
    B, A = near(1e-6, generator)
    B[:, -RANK:] = -B[:, :-RANK].unflatten(1, (-1, RANK)).sum(dim=1)
    return Product(B, A)


def one_trained(generator: torch.Generator) -> Product:
    """B is zero for all clients but one, as at the start of training."""
    B, A = near(0.1, generator)
    B[:, RANK:] = 0
    return Product(B, A)


def falling(generator: torch.Generator) -> Product:
    """A spectrum over sixteen orders of magnitude."""
    B, A = near(0.3, generator)
    return Product(B * torch.logspace(0, -16, len(A), dtype=torch.float64), A)


STACKS: dict[str, Callable[[torch.Generator], Product]] = {
    "far apart": lambda g: near(3.0, g),
    "near a start": lambda g: near(0.3, g),
    "very near a start": lambda g: near(1e-4, g),
    "one A": lambda g: near(0.0, g),
    "alike": lambda g: alike(1e-3, g),
    "all but equal": lambda g: alike(1e-7, g),
    "equal": lambda g: alike(0.0, g),
    "unlike scales": unlike_scales,
    "cancelling": cancelling,
    "one trained": one_trained,
    "falling": falling,
}

every_stack = pytest.mark.parametrize("kind", STACKS)


def made(kind: str, seed: int) -> Product:
    """A stack that is thin enough for Gram matrices."""
    product = STACKS[kind](torch.Generator().manual_seed(seed))
    assert product.shape == SHAPE
    assert lowrank.takes_grams(product, RANK)
    return product


def relative_gap(X: Tensor, T: Tensor) -> float:
    """‖T − X‖ / ‖T‖, densely."""
    return float(torch.linalg.matrix_norm(T - X) / torch.linalg.matrix_norm(T))


@every_stack
@some
@given(seed=seeds, leading=st.integers(1, CLIENTS * RANK // 2))
def test_the_leading_triplets_are_the_best_product(kind: str, seed: int, leading: int) -> None:
    """No rank-k matrix is nearer by more than 1e-9 of its distance, or 1e-13 of ‖T‖; vectors are orthonormal."""
    product = made(kind, seed)
    T = dense(product)
    U, S, Vh = lowrank.svd(product, leading)
    least = relative_gap(dense_best(T, leading), T)
    assert relative_gap((U * S[:leading]) @ Vh, T) <= least * (1 + 1e-9) + 1e-13
    assert U.shape[1] == Vh.shape[0] == leading
    assert_near(U.T @ U, torch.eye(leading), 1e-12)
    assert_near(Vh @ Vh.T, torch.eye(leading), 1e-12)


@every_stack
@some
@given(seed=seeds)
def test_singular_values_are_the_dense_ones(kind: str, seed: int) -> None:
    """All of them, descending: within 3e-8 of the largest, the leading ones and the norm to 1e-9 of themselves."""
    product = made(kind, seed)
    S = lowrank.svd(product, RANK).S
    expected = torch.linalg.svdvals(dense(product))[: product.width]
    assert S.shape == expected.shape
    assert (S.diff() <= 0).all()
    assert float((S - expected).abs().max() / expected[0]) < 3e-8
    assert float((S - expected)[:RANK].abs().max() / expected[0]) < 1e-9
    assert float(S.norm()) == pytest.approx(float(expected.norm()), rel=1e-6)


@every_stack
@some
@given(seed=seeds)
def test_the_least_error_is_right_to_a_millionth(kind: str, seed: int) -> None:
    """The truncation error, however small: of stacks whose tail Gram matrices cannot see, too."""
    product = made(kind, seed)
    T = dense(product)
    expected = relative_gap(dense_best(T, RANK), T)
    found = lowrank.truncation_error(lowrank.svd(product, RANK), RANK)
    # Sums of terms that cancel have lost digits in any way of computing them, the dense one included.
    tolerance = 1e-9 if kind == "cancelling" else 1e-13
    assert found == pytest.approx(expected, rel=1e-6, abs=tolerance)


@every_stack
@pytest.mark.parametrize("gauge", GAUGES)
def test_every_gauge_gives_the_best_product(gauge: Gauge, kind: str) -> None:
    """Split into factors of any gauge, the product is within 1e-9 of the best error there is."""
    product = made(kind, 0)
    T = dense(product)
    reference = product.A[:RANK]
    factors = lowrank.split(lowrank.svd(product, RANK), RANK, gauge, reference)
    assert factors.A.shape == (RANK, SHAPE[1])
    least = relative_gap(dense_best(T, RANK), T)
    assert relative_gap(dense(factors), T) <= least * (1 + 1e-9) + 1e-12


@some
@given(seed=seeds)
def test_known_gram_matrices_change_nothing(seed: int) -> None:
    """To the bit: they are the same numbers."""
    product = made("near a start", seed)
    for known, anew in zip(
        lowrank.svd(product, RANK, Grams.of(product)), lowrank.svd(product, RANK), strict=True
    ):
        assert torch.equal(known, anew)


@every_stack
@some
@given(seed=seeds)
def test_norm_is_the_dense_one(kind: str, seed: int) -> None:
    """To 1e-6 of itself, even where the terms cancel to a millionth."""
    product = made(kind, seed)
    expected = float(torch.linalg.matrix_norm(dense(product)))
    assert lowrank.norm(product) == pytest.approx(expected, rel=1e-6)


@every_stack
@some
@given(seed=seeds, gap=st.floats(-14, 1))
def test_relative_error_is_the_dense_one_at_every_size(kind: str, seed: int, gap: float) -> None:
    """From ten times T down to 1e-14 of it, with ‖T‖ given or not: right to 1e-6 of itself, or to rounding."""
    product = made(kind, seed)
    T, generator = dense(product), torch.Generator().manual_seed(seed)
    best = lowrank.split(lowrank.svd(product, RANK), RANK, "balanced")
    noise = Product(randn(generator, SHAPE[0], RANK), randn(generator, RANK, SHAPE[1]))
    share = 10**gap * lowrank.norm(product) / lowrank.norm(noise)
    candidate = lowrank.weighted_sum([best, noise], [1.0, share])
    expected = relative_gap(dense(candidate), T)
    rounding = 1e-8 if kind == "cancelling" else 1e-14
    size = float(torch.linalg.matrix_norm(T))
    for found in (
        lowrank.relative_error(candidate, product),
        lowrank.relative_error(candidate, product, size),
    ):
        assert found == pytest.approx(expected, rel=1e-6, abs=rounding)


def test_relative_error_of_thin_zeros() -> None:
    """As with small products: zero meets zero exactly, and anything else misses it infinitely."""
    zero = Product(torch.zeros(SHAPE[0], 120), torch.zeros(120, SHAPE[1]))
    one = Product(torch.ones(SHAPE[0], 1), torch.ones(1, SHAPE[1]))
    assert lowrank.relative_error(zero, zero) == 0
    assert lowrank.relative_error(one, zero) == math.inf
    assert not lowrank.svd(zero, RANK).S.any()


@some
@given(seed=seeds)
def test_inner_is_the_dense_one(seed: int) -> None:
    """⟨X, Y⟩ = Σ X_ij Y_ij, for products of unlike widths."""
    generator = torch.Generator().manual_seed(seed)
    X, Y = near(0.3, generator), Product(randn(generator, 300, 2), randn(generator, 2, 280))
    expected = float((dense(X) * dense(Y)).sum())
    size = lowrank.norm(X) * lowrank.norm(Y)
    assert lowrank.inner(X, Y) == pytest.approx(expected, abs=1e-12 * size)


def clients(seed: int, dtype: torch.dtype) -> list[ClientUpdate]:
    """Clients near a start, of unlike ranks, alphas and sizes, with one module that is thin."""
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = SHAPE
    start = randn(generator, RANK, d_in)
    updates = []
    for u in range(CLIENTS + 3):
        rank = RANK - u % 3
        A = start[:rank] + 0.3 * randn(generator, rank, d_in)
        pair = LoraPair(A.to(dtype), randn(generator, d_out, rank).to(dtype), alpha=4 + u)
        updates.append(ClientUpdate(f"client-{u}", 10 * u, Adapter({"layer": pair})))
    return updates


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["florana-opt", "florana", "florana-blend"])
def test_errors_of_thin_modules_are_the_dense_ones(method: str, dtype: torch.dtype) -> None:
    """What is reported is what a dense computation finds of the very factors that were made."""
    updates = clients(0, dtype)
    result = aggregate(updates, method=method)
    total = sum(u.num_examples for u in updates)
    T = sum(u.num_examples / total * u.adapter.pairs["layer"].delta_w() for u in updates)
    assert isinstance(T, Tensor)
    errors = result.errors["layer"]
    made = result.adapter.pairs["layer"]
    assert errors.used == pytest.approx(relative_gap(made.delta_w(), T), rel=1e-8)
    assert errors.optimum == pytest.approx(relative_gap(dense_best(T, RANK), T), rel=1e-8)
    assert errors.average == pytest.approx(
        relative_gap(dense_average(updates, "layer"), T), rel=1e-8
    )
    assert errors.target_norm == pytest.approx(float(torch.linalg.matrix_norm(T)), rel=1e-9)
    assert errors.optimum <= errors.used * (1 + 1e-9) <= errors.average * (1 + 2e-9)


def test_florana_opt_is_within_a_hundred_thousandth_of_the_optimum() -> None:
    """The target of the project, in float32 and in the default gauge: 1e-5 relative of the true least error."""
    updates = clients(1, torch.float32)
    errors = aggregate(updates, method="florana-opt").errors["layer"]
    assert errors.used <= errors.optimum * (1 + 1e-5)
