"""Singular value decomposition of a product from its factors: by QR, or by Gram matrices where they are thin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from florana.lowrank.products import CANCELLATION, GRAM_FROM, Grams, Product, dense, is_thin

NEGLIGIBLE = 1e-14
"""Eigenvalues of a Gram matrix below this share of the largest are rounding: ten to fifty roundings of float64."""


class Svd(NamedTuple):
    """Thin singular value decomposition ``U @ diag(S) @ Vh``: (d_out, k), (k,), (k, d_in).

    Where only the leading j triplets were asked for, U and Vh have j columns and rows, and S still has all k values.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def svd(product: Product, leading: int | None = None, grams: Grams | None = None) -> Svd:
    r"""Thin SVD of a product, from its factors alone.

    Three ways, chosen by the factors' shapes:

    - *QR*: with B = Q_B R_B and Aᵀ = Q_A R_A the SVD of the core R_B R_Aᵀ (k × k) gives that of B A, all of it to
      the last digits. O((d_out + d_in) k²).
    - *Gram*, where ``leading`` is at most half of the width and the factors are thin
      (:func:`~florana.lowrank.products.is_thin`): with A Aᵀ = V Λ Vᵀ and L = V √Λ the eigenvalues of Lᵀ (BᵀB) L are
      the σ², and its eigenvectors W give the leading right singular vectors Wᵀ Λ^{-½} Vᵀ A. Their span Q, made
      orthonormal, is used once more: T Q Qᵀ is the result's value, so that the product is the projection of T to
      float64 precision. The same order of cost, in matrix products that run many times faster than QR.
    - *dense*, where k is min(d_out, d_in) or more: the matrix takes no more numbers than its factors. If ``leading`` is
      at most half of min(d_out, d_in), from the eigenvalues of T Tᵀ or TᵀT, whichever is smaller, in the same way.

    Rank-one terms are scaled first so that their two halves have equal norms, and stacks without full rank (clients
    that share A) are no special case. The Gram way squares the condition: eigenvalues have an error of about 1e-16
    (Σ_k ‖b_k‖ ‖a_k‖)². Where the squared norm of T, or of its tail beyond ``leading``, is not a million times that
    (clients that cancel or are all but equal, tails below about 1e-5), QR is taken after all. So ‖T‖ and the least error
    at rank ``leading`` are right to 1e-6 of themselves; single small values S_k have an error of about 1e-8 S_0.

    Args:
        product: B (d_out, k) and A (k, d_in).
        leading: how many triplets to multiply out, 0 for singular values alone; all of them by default.
        grams: BᵀB and A Aᵀ where they are known already.

    Returns:
        min(k, d_out, d_in) singular values in descending order, and so many vectors or ``leading``. Float64.

    Raises:
        ValueError: if ``leading`` is negative.

    Example:
        >>> T = Product(torch.eye(3)[:, :2], torch.diag(torch.tensor([3.0, 4.0])))
        >>> U, S, Vh = svd(T, leading=1)
        >>> [round(s, 6) for s in S.tolist()], tuple(U.shape), tuple(Vh.shape)
        ([4.0, 3.0], (3, 1), (1, 2))
    """
    if leading is not None and leading < 0:
        raise ValueError(f"leading must be 0 or more, got {leading}")
    width, least = product.width, min(product.shape)
    if leading is not None and takes_grams(product, leading):
        made = _by_gram(product, leading, grams or Grams.of(product))
        if made is not None:
            return made
    count = min(width, least) if leading is None else min(leading, width, least)
    if width >= least:
        T = dense(product)
        found = None if leading is None else _by_dense_gram(T, leading)
        return found or _leading(torch.linalg.svd(T, full_matrices=False), count)
    Q_B, R_B = torch.linalg.qr(product.B.double())
    Q_A, R_A = torch.linalg.qr(product.A.double().T)
    U, S, Vh = _leading(torch.linalg.svd(R_B @ R_A.T, full_matrices=False), count)
    return Svd(Q_B @ U, S, Vh @ Q_A.T)


def takes_grams(product: Product, leading: int) -> bool:
    """Whether :func:`svd` goes through Gram matrices for so many leading triplets."""
    return 2 * leading <= product.width and is_thin(product)


def _leading(full: tuple[Tensor, Tensor, Tensor], count: int) -> Svd:
    U, S, Vh = full
    return Svd(U[:, :count], S, Vh[:count])


def _by_gram(product: Product, leading: int, grams: Grams) -> Svd | None:
    """None where rounding would show."""
    S, mixing = _small_problem(grams, leading)
    terms = (grams.B.diagonal() * grams.A.diagonal()).sqrt().sum()  # Σ_k ‖b_k‖ ‖a_k‖
    if float((S[leading:] ** 2).sum()) <= CANCELLATION * torch.finfo(S.dtype).eps * float(terms**2):
        return None
    B, A = product.B.double(), product.A.double()
    if leading == 0:
        return Svd(B[:, :0], S, A[:0])
    Q = torch.linalg.qr((mixing.T @ A).T).Q  # (d_in, leading)
    Q_P, R_P = torch.linalg.qr(B @ (A @ Q))
    U, s, Vh = torch.linalg.svd(R_P)
    return Svd(Q_P @ U, torch.cat([s, S[leading:].clamp(max=float(s[-1]))]), Vh @ Q.T)


def _by_dense_gram(T: Tensor, leading: int) -> Svd | None:
    """The same of a matrix; None where it is small or rounding would show."""
    if T.shape[0] < T.shape[1]:
        found = _by_dense_gram(T.T, leading)
        return None if found is None else Svd(found.Vh.T, found.S, found.U.T)
    if 2 * leading > T.shape[1] or T.numel() < GRAM_FROM:
        return None
    squares, V = torch.linalg.eigh(T.T @ T)
    squares, V = squares.flip(0).clamp(min=0), V.flip(1)[:, :leading]
    tail = float(squares[leading:].sum())
    if tail <= CANCELLATION * torch.finfo(T.dtype).eps * float(squares.sum()):
        return None
    S = squares.sqrt()
    if leading == 0:
        return Svd(T[:, :0], S, T[:0])
    Q_P, R_P = torch.linalg.qr(T @ V)
    U, s, Vh = torch.linalg.svd(R_P)
    return Svd(Q_P @ U, torch.cat([s, S[leading:].clamp(max=float(s[-1]))]), Vh @ V.T)


def _small_problem(grams: Grams, leading: int) -> tuple[Tensor, Tensor]:
    """All k singular values, and the (k, leading) mixtures of A's rows that span the leading right vectors."""
    scale, inverse = _evened(grams)
    eigenvalues, V = torch.linalg.eigh(scale[:, None] * grams.A * scale)
    kept = eigenvalues > NEGLIGIBLE * eigenvalues.clamp(min=0).amax()
    V, root = V[:, kept], eigenvalues[kept].sqrt()
    L = V * root
    squares, W = torch.linalg.eigh(L.T @ (inverse[:, None] * grams.B * inverse) @ L)
    found = root.numel()
    S = squares.flip(0).clamp(min=0).sqrt()
    mixing = scale[:, None] * ((V / root) @ W.flip(1)[:, :leading])
    # Rows of A that are linearly dependent: the missing singular values are 0.
    S = torch.nn.functional.pad(S, (0, len(scale) - found))
    return S, torch.nn.functional.pad(mixing, (0, max(0, leading - found)))


def _evened(grams: Grams) -> tuple[Tensor, Tensor]:
    """Factors c and 1/c for which c_k a_k and b_k / c_k have equal norms; both 0 where a term vanishes."""
    ratio = grams.B.diagonal() / grams.A.diagonal()
    there = torch.isfinite(ratio) & (ratio > 0)
    scale = torch.where(there, ratio, 0.0) ** 0.25
    return scale, torch.where(there, 1 / scale, 0.0)


def truncation_error(decomposition: Svd, rank: int) -> float:
    """Relative error of the best rank-``rank`` approximation (Eckart-Young): √Σ_{k>rank} σ_k² / √Σ σ_k²."""
    total = float(torch.linalg.vector_norm(decomposition.S))
    tail = float(torch.linalg.vector_norm(decomposition.S[rank:]))
    return tail / total if total > 0 else 0.0
