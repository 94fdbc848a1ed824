"""Gauges: the ways to split one product into two factors."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from florana.lowrank.decomposition import Svd
from florana.lowrank.products import Product, pad

Gauge = Literal["balanced", "mean-aligned", "orthonormal"]
"""How a product is split into two factors; see :func:`split`."""

GAUGES: tuple[Gauge, ...] = get_args(Gauge)

ALIGNMENT_FLOOR = 0.5
"""Least singular value of A in the mean-aligned gauge, as a share of the reference's mean one."""


def split(decomposition: Svd, rank: int, gauge: Gauge, reference: Tensor | None = None) -> Product:
    r"""Split the leading ``rank`` singular triplets U S Vᵀ into two factors of width ``rank``.

    Every invertible r × r matrix G gives the same product, (B G)(G⁻¹ A), but another start for the
    next round of training: Adam's step sizes, weight decay, and the gradient of B, which is
    proportional to A, all see the factors. The choice of G is called the gauge:

    - ``"balanced"``: B = U √S, A = √S Vᵀ. Both factors have equal norms.
    - ``"orthonormal"``: B = U S, A = Vᵀ. A has orthonormal rows.
    - ``"mean-aligned"``: A = G Vᵀ, B = U S G⁻¹ with G = Ā V. A is the part of the clients' mean
      factor Ā that lies in the row space of the product, so what the clients' A had learnt, its
      scale included, survives. Where the product has directions that Ā lacks, G is nearly singular and
      B would explode; singular values of G below half of Ā's root mean square one are raised to that.
      The product stays exact.

    Args:
        decomposition: singular triplets in descending order.
        rank: width r of the result. Components past those that exist are zero columns of B.
        gauge: one of the three above.
        reference: Ā, (r̄, d_in), needed by ``"mean-aligned"`` only.

    Returns:
        Product of width ``rank`` whose components are ordered by singular value in the balanced and
        orthonormal gauges.

    Raises:
        ValueError: if the mean-aligned gauge has no reference, or the decomposition has fewer triplets multiplied
            out than are needed.
    """
    k = min(rank, decomposition.S.numel())
    if decomposition.U.shape[1] < k:
        raise ValueError(
            f"rank {rank} needs {k} singular triplets, and {decomposition.U.shape[1]} are multiplied out; "
            f"decompose with leading={k} or more"
        )
    U, S, Vh = decomposition.U[:, :k], decomposition.S[:k], decomposition.Vh[:k]
    if gauge == "balanced":
        root = S.sqrt()
        return pad(Product(U * root, root[:, None] * Vh), rank)
    if gauge == "orthonormal":
        return pad(Product(U * S, Vh), rank)
    if reference is None:
        raise ValueError("the mean-aligned gauge needs a reference factor")
    reference = reference.double()
    size = float(torch.linalg.matrix_norm(reference)) / max(1, reference.shape[0]) ** 0.5
    G, G_inverse = _bounded_inverse(_square(reference @ Vh.T, k), ALIGNMENT_FLOOR * size)
    return pad(Product((U * S) @ G_inverse, G @ Vh), rank)


def _square(matrix: Tensor, size: int) -> Tensor:
    """First ``size`` rows of a (rows, size) matrix, with zero rows below where it has fewer."""
    return torch.nn.functional.pad(matrix[:size], (0, 0, 0, max(0, size - matrix.shape[0])))


def _bounded_inverse(matrix: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """A square matrix with its singular values raised to ``floor``, and its inverse."""
    P, S, Qh = torch.linalg.svd(matrix)
    S = S.clamp(min=floor) if floor > 0 else torch.ones_like(S)
    return (P * S) @ Qh, (Qh.T / S) @ P.T
