"""Products with a sum of many terms, a block of stacked factors at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from florana.lowrank.products import Product

Terms = Callable[[], Iterable[tuple[float, Product]]]
"""Called once per pass: pairs (c_u, B_u A_u), the same ones in the same order each time."""


class Block(NamedTuple):
    """Stacked factors of some terms: A (k, d_in), B (d_out, k), coefficients (k,); overwritten by the next block."""

    A: Tensor
    B: Tensor
    coefficients: Tensor
    terms: range

    @property
    def size(self) -> float:
        """At least √Σ (c_k ‖b_k‖ ‖a_k‖)² over the rank-one terms: ‖B‖_F max_k c_k ‖a_k‖, one pass over the block."""
        a = torch.linalg.vector_norm(self.A, dim=1)
        return float(torch.linalg.vector_norm(self.B) * (self.coefficients * a).abs().amax())


class Read(NamedTuple):
    """What one pass gave.

    ``value`` is the product, float64; ``terms`` and ``rows`` count what was read; ``rounding`` is what one rounding
    of every rank-one term comes to in ‖T‖_F, where it was asked for.
    """

    value: Tensor
    terms: int
    rows: int
    rounding: float


def check_shape(product: Product, shape: tuple[int, int], number: int) -> None:
    """Refuse a term of another shape."""
    if product.shape != shape or product.B.shape[1] != product.A.shape[0]:
        raise ValueError(
            f"term {number} has factors B {tuple(product.B.shape)} and A {tuple(product.A.shape)}; "
            f"expected a product of shape {shape}"
        )


def times(terms: Terms, shape: tuple[int, int], rows: int, right: Tensor) -> Read:
    """T X for X (d_in, n), with the size of rounding."""

    def part(block: Block, X: Tensor) -> Tensor:
        return block.B @ (block.coefficients[:, None].to(X) * (block.A @ X))

    return _one_pass(terms, shape, rows, right, part, True)


def projected(terms: Terms, shape: tuple[int, int], rows: int, left: Tensor) -> Read:
    """Xᵀ T for X (d_out, n)."""

    def part(block: Block, X: Tensor) -> Tensor:
        return (X @ block.B * block.coefficients.to(X)) @ block.A

    return _one_pass(terms, shape, rows, left.T, part, False)


def _one_pass(
    terms: Terms,
    shape: tuple[int, int],
    rows: int,
    factor: Tensor,
    part: Callable[[Block, Tensor], Tensor],
    with_rounding: bool,
) -> Read:
    """Sum of ``part(block, factor)`` over the blocks: products in the blocks' dtype, their sum in float64."""
    total = cast = None
    seen = width = 0
    square = eps = 0.0
    for block in _stacked(terms, shape, rows):
        if cast is None:
            cast, eps = factor.to(block.A), torch.finfo(block.A.dtype).eps
        found = part(block, cast)
        if not math.isfinite(float(found.sum())):
            raise ValueError(
                f"the sum of terms {block.terms.start} to {block.terms.stop - 1} holds NaN or infinity"
            )
        total = found.double() if total is None else total.add_(found)
        square += block.size**2 if with_rounding else 0.0
        seen, width = block.terms.stop, width + block.coefficients.numel()
    if total is None:
        raise ValueError("there are no terms to sum")
    return Read(total, seen, width, eps * math.sqrt(square))


@dataclass(slots=True)
class _Buffer:
    """Room for one block, in the dtype of the products; filled by copying, so that no term is kept."""

    A: Tensor
    B: Tensor
    coefficients: Tensor
    first: int
    used: int = 0

    @classmethod
    def like(cls, product: Product, rows: int, first: int) -> _Buffer:
        dtype = torch.promote_types(product.A.dtype, torch.float32)
        (d_out, d_in), device = product.shape, product.A.device
        return cls(
            torch.empty(rows, d_in, dtype=dtype, device=device),
            torch.empty(d_out, rows, dtype=dtype, device=device),
            torch.empty(rows, dtype=torch.float64, device=device),
            first,
        )

    def has_room(self, width: int) -> bool:
        return self.used + width <= len(self.coefficients)

    def take(self, coefficient: float, product: Product) -> None:
        place = slice(self.used, self.used + product.width)
        self.A[place] = product.A
        self.B[:, place] = product.B
        self.coefficients[place] = coefficient
        self.used = place.stop

    def block(self, end: int) -> Block:
        used = slice(self.used)
        return Block(self.A[used], self.B[:, used], self.coefficients[used], range(self.first, end))


def _stacked(terms: Terms, shape: tuple[int, int], rows: int) -> Iterator[Block]:
    """The terms in blocks of at most ``rows`` rows, or of one term that has more."""
    buffer: _Buffer | None = None
    number = -1
    for number, (coefficient, product) in enumerate(terms()):
        check_shape(product, shape, number)
        if buffer is None:
            buffer = _Buffer.like(product, max(rows, product.width), number)
        elif not buffer.has_room(product.width):
            yield buffer.block(number)
            if product.width > len(buffer.coefficients):
                buffer = _Buffer.like(product, product.width, number)
            buffer.first, buffer.used = number, 0
        buffer.take(coefficient, product)
    if buffer is not None:
        yield buffer.block(number + 1)
