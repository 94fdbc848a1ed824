r"""What can be read off low-rank updates without forming one: inner products, angles, spectra.

All of it is exact up to rounding, in float64, and costs what a QR of the stacked factors costs. This module knows
tensors only: no adapters, no clients, no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from florana import lowrank
from florana.lowrank import Product

CANCELLED = 1e-13
"""A squared length below this share of the sum of its parts' is rounding."""

SPACE_TOLERANCE = 1e-10
"""A singular value below this share of the largest adds no direction to a column or row space."""

ROUNDING = 1e-12
"""Shares of energy are compared with this slack, so that rounding does not cost a rank."""


def compressed(products: Sequence[Product]) -> list[Product]:
    r"""The same products in the smallest coordinates that hold all of them.

    .. math:: [B_1, \dots, B_U] = Q_B R_B, \quad [A_1^\top, \dots, A_U^\top] = Q_A R_A, \qquad
              B_u A_u = Q_B \, (R_B)_u (R_A)_u^\top \, Q_A^\top

    Q_B and Q_A have orthonormal columns, so every norm, inner product, angle, singular value and distance between
    sums and mixtures of the B_u A_u is that of the small matrices, of at most Σ r_u rows and columns. They are
    worked out once, and everything afterwards no longer knows d_out and d_in.

    Args:
        products: U products of one shape (d_out, d_in); widths r_u may differ.

    Returns:
        As many products of shape (min(Σ r_u, d_out), min(Σ r_u, d_in)), of the same widths, in float64.

    Example:
        >>> one, other = Product(torch.ones(9, 1), torch.ones(1, 7)), Product(torch.eye(9, 1), torch.ones(1, 7))
        >>> small = compressed([one, other])
        >>> small[0].B.shape, small[0].A.shape, round(lowrank.norm(small[0]) ** 2, 9)
        (torch.Size([2, 1]), torch.Size([1, 2]), 63.0)
    """
    widths = [product.width for product in products]
    R_B = _triangle(torch.cat([product.B.double() for product in products], dim=1))
    R_A = _triangle(torch.cat([product.A.double() for product in products], dim=0).T)
    parts = zip(torch.split(R_B, widths, 1), torch.split(R_A, widths, 1), strict=True)
    return [Product(B, A.T) for B, A in parts]


def _triangle(stack: Tensor) -> Tensor:
    """R of the QR factors of a tall stack; a stack that is not taller than wide stays as it is."""
    rows, columns = stack.shape
    return stack if rows <= columns else torch.linalg.qr(stack, mode="r").R


def inner_products(products: Sequence[Product]) -> Tensor:
    r"""All :math:`\langle B_u A_u, B_v A_v \rangle_F = \mathrm{tr}((B_u^\top B_v)(A_v A_u^\top))`, (U, U).

    One Gram product of each stack, then sums over blocks of their entrywise product.

    Example:
        >>> one, other = Product(torch.ones(3, 1), torch.ones(1, 2)), Product(torch.eye(3, 1), torch.ones(1, 2))
        >>> inner_products([one, other]).tolist()
        [[6.0, 2.0], [2.0, 2.0]]
    """
    B = torch.cat([product.B.double() for product in products], dim=1)
    A = torch.cat([product.A.double() for product in products], dim=0)
    entries = (B.T @ B) * (A @ A.T)
    widths = torch.tensor([product.width for product in products])
    owner = torch.repeat_interleave(torch.arange(len(products)), widths)
    by_row = entries.new_zeros(len(products), entries.shape[1]).index_add_(0, owner, entries)
    inner: Tensor = entries.new_zeros(len(products), len(products)).index_add_(1, owner, by_row)
    return (inner + inner.T) / 2


def cosines(inner: Tensor) -> Tensor:
    """Pairwise cosines (U, U) from inner products; NaN for a vector of length 0, 1 on the diagonal otherwise."""
    norms = inner.diagonal().clamp(min=0).sqrt()
    found = (inner / torch.outer(norms, norms)).clamp(-1.0, 1.0)
    found = torch.where(torch.isfinite(found), found, torch.nan)
    return torch.where(torch.eye(len(norms), dtype=torch.bool) & (norms > 0), 1.0, found)


def cosines_to_others(inner: Tensor, weights: Tensor) -> Tensor:
    r"""Cosine of every client's update with the weighted mean of the others', (U,); NaN where it is not defined.

    .. math:: \cos_u = \frac{\langle X_u, M_u \rangle}{\lVert X_u \rVert \lVert M_u \rVert}, \qquad
              M_u = \sum_{v \ne u} w_v X_v

    Args:
        inner: ⟨X_u, X_v⟩, (U, U).
        weights: w_u, (U,).
    """
    others = weights.repeat(len(weights), 1)
    others.fill_diagonal_(0.0)
    mixed = others @ inner
    squares = (mixed * others).sum(dim=1).clamp(min=0)
    # A mean of others that cancel is rounding, and a direction must not be read off it.
    scale = (others.square() @ inner.diagonal()).clamp(min=0)
    squares = torch.where(squares > CANCELLED * scale, squares, 0.0)
    found = mixed.diagonal() / (squares * inner.diagonal().clamp(min=0)).sqrt()
    return torch.where(torch.isfinite(found), found.clamp(-1.0, 1.0), torch.nan)


def agreement(inner: Tensor, weights: Tensor) -> float:
    r"""λ, how much of the mean update the clients have in common, within [0, 1].

    .. math:: \lambda = \frac{\sum_{u \ne v} w_u w_v \langle X_u, X_v \rangle}
                             {(1 - \sum_u w_u^2)\, \lVert \sum_u w_u X_u \rVert^2}

    florana-blend's rule (:class:`florana.aggregators.florana_blend.FloranaBlend`) over all that is passed in at
    once: 1 when all clients agree, 0 when their updates are orthogonal, oppose each other or are none.
    """
    whole = float(weights @ inner @ weights)
    own, others = float(weights.square() @ inner.diagonal()), 1 - float(weights.square().sum())
    if whole <= 0 or others <= 0:
        return 0.0
    return min(1.0, max(0.0, (whole - own) / (others * whole)))


class Angles(NamedTuple):
    """Principal angles between the spaces of every two clients; NaN where one of the two has no direction.

    ``mean_cosine`` (U, U) is the mean of the cosines of the min(k_u, k_v) angles, ``largest`` (U, U) the largest
    angle in degrees, ``chance`` (U, U) the root mean square of the cosines between spaces drawn at random.
    """

    mean_cosine: Tensor
    largest: Tensor
    chance: Tensor


def principal_angles(bases: Sequence[Tensor], dimension: int) -> Angles:
    r"""Principal angles between spaces, from the singular values of :math:`Q_u^\top Q_v` (Björck and Golub, 1973).

    Two spaces of k and l dimensions drawn at random from d have :math:`E \lVert Q_u^\top Q_v \rVert_F^2 = k l / d`,
    so the min(k, l) cosines have a root mean square of √(max(k, l) / d): what ``chance`` says.

    Args:
        bases: Q_u (n, k_u) with orthonormal columns, as :func:`spaces` makes them; k_u may be 0.
        dimension: d, of the space that they lie in; n is less where they have been :func:`compressed`.

    Example:
        >>> found = principal_angles([torch.eye(4)[:, :2], torch.eye(4)[:, 1:3]], dimension=4)
        >>> round(float(found.mean_cosine[0, 1]), 3), round(float(found.largest[0, 1]), 1)
        (0.5, 90.0)
    """
    sizes = torch.tensor([basis.shape[1] for basis in bases])
    width, count = int(sizes.max()), len(bases)
    if width == 0:
        nothing = torch.full((count, count), torch.nan, dtype=torch.float64)
        return Angles(nothing, nothing, nothing)
    padded = torch.stack(
        [torch.nn.functional.pad(b.double(), (0, width - b.shape[1])) for b in bases]
    )
    cross = torch.einsum("unx,vny->uvxy", padded, padded)
    found = torch.linalg.svdvals(cross).clamp(max=1.0)  # descending, zeros of the padding last
    shared = torch.minimum(sizes[:, None], sizes[None, :])
    known = shared > 0
    least = found.gather(2, (shared - 1).clamp(min=0)[:, :, None]).squeeze(2)
    return Angles(
        torch.where(known, found.sum(dim=2) / shared, torch.nan),
        torch.where(known, torch.rad2deg(torch.arccos(least)), torch.nan),
        torch.where(
            known, (torch.maximum(sizes[:, None], sizes[None, :]) / dimension).sqrt(), torch.nan
        ),
    )


def spaces(product: Product) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the column and the row space of B A: (d_out, k) and (d_in, k), k its rank.

    Of the product and not of its factors: B has r columns even where only some of them are used, and directions
    that no row of A reaches are none of ΔW's.
    """
    U, S, Vh = lowrank.svd(product)
    k = int((SPACE_TOLERANCE * S[0] < S).sum()) if S.numel() else 0
    return U[:, :k], Vh[:k].T


def energy_by_rank(S: Tensor) -> list[float]:
    """Share of Σ σ² in the first 1, 2, … singular values; empty where there is no energy.

    Example:
        >>> [round(share, 2) for share in energy_by_rank(torch.tensor([2.0, 1.0]))]
        [0.8, 1.0]
    """
    squares = S.double().square()
    total = squares.sum()
    return (squares.cumsum(0) / total).clamp(max=1.0).tolist() if total > 0 else []


def effective_rank(S: Tensor) -> float:
    r"""The exponential of the entropy of the singular values as shares, :math:`e^{-\sum_i p_i \ln p_i},\ p_i = \sigma_i / \sum_j \sigma_j`.

    k for k equal singular values, 0 where all are 0. Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.

    Example:
        >>> round(effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])), 6)
        3.0
    """
    total = float(S.double().sum())
    if not total > 0:
        return 0.0
    shares = S.double() / total
    return math.exp(float(torch.special.entr(shares).sum()))


def rank_for(energy: Sequence[float], share: float) -> int:
    """Smallest rank that holds ``share`` of the energy, from its cumulative shares; 0 where there is no energy.

    Example:
        >>> rank_for([0.8, 0.96, 1.0], 0.95), rank_for([], 0.95)
        (2, 0)
    """
    return next((k for k, held in enumerate(energy, 1) if held >= share - ROUNDING), len(energy))
