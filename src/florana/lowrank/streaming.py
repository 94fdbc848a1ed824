"""Weighted sums of so many products that their stack is too large to keep: read in passes, a block at a time.

Memory is that of a few matrices of shapes (d_out, ℓ), (ℓ, d_in) and one block of terms, however many terms there
are. Nothing of shape (d_out, d_in) is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from florana.lowrank._blocks import Read, Terms, check_shape, projected, times
from florana.lowrank.decomposition import Svd
from florana.lowrank.products import Product, pad

CONFIDENCE = 0.99
"""Probability that the bound of a streamed decomposition holds."""

ROUNDINGS = 8.0
"""Roundings that every rank-one term is allowed in the bound, a few times what matrix products are seen to make."""

__all__ = ["CONFIDENCE", "StreamedSvd", "Terms", "streamed_mean", "streamed_svd"]


@dataclass(frozen=True, slots=True, eq=False)
class StreamedSvd:
    r"""A rank-r approximation X of a sum T that was never held, and what is known of its error.

    Args:
        svd: the r leading singular triplets of X, float64.
        projection: Q Z = Q QᵀT, of which X is the truncation; what T has beside it is orthogonal to it.
        rest: estimate of ‖T − Q QᵀT‖_F.
        rest_bound: the same, from above, as surely as ``bound``.
        spectrum: singular values of QᵀT, ℓ of them, descending: from below, those of T.
        norm: estimate of ‖T‖_F.
        error: estimate of ‖T − X‖_F / ‖T‖_F.
        bound: the same, from above, with probability :data:`CONFIDENCE` or more.
        least: no matrix of rank r has a smaller relative error than this, as far as ``bound`` holds.
        terms: number of terms read.
        passes: how often they were read.
    """

    svd: Svd
    projection: Product
    rest: float
    rest_bound: float
    spectrum: Tensor
    norm: float
    error: float
    bound: float
    least: float
    terms: int
    passes: int

    @property
    def excess(self) -> float:
        """How far the relative error can be above the least possible one, at most: ``bound - least``."""
        return self.bound - self.least


def streamed_svd(
    terms: Terms,
    rank: int,
    shape: tuple[int, int],
    *,
    oversampling: int | None = None,
    power_iterations: int = 0,
    probes: int = 16,
    seed: int = 0,
    block: int = 128,
    beside: Callable[[], Tensor] | None = None,
) -> StreamedSvd:
    r"""Nearly the best rank-r approximation of :math:`T = \sum_u c_u B_u A_u`, in two passes over the terms.

    A randomised range finder whose matrix is known through its factors only:

    1. :math:`Y = T \Omega` and :math:`P = T G`, with Ω (d_in, ℓ) and the probes G (d_in, m) standard normal and
       independent, ℓ = ``rank + oversampling``. Q is an orthonormal basis of Y's columns.
    2. :math:`Z = Q^\top T`; the result is X = Q Z_r, with Z_r the truncated SVD of Z.

    Every power iteration puts two passes between these: Q becomes a basis of T Tᵀ Q, which takes the error of a slowly
    falling spectrum close to the least.

    *Error.* Q Qᵀ is a projection, so with M = (I − Q Qᵀ) T

    .. math:: \lVert T \rVert^2 = \lVert Z \rVert^2 + \lVert M \rVert^2, \qquad
              \lVert T - X \rVert^2 = \lVert M \rVert^2 + \sum_{k > r} \sigma_k(Z)^2 .

    All but ‖M‖² is known. The probes are independent of Q, so :math:`\hat M^2 = \lVert (I - QQ^\top) P \rVert^2 / m` is
    an unbiased estimate of it: :math:`m \hat M^2 = \sum_i \mu_i^2 \chi^2_{m,i}` with independent χ² variables of m degrees
    of freedom and μ the singular values of M.

    *Bound.* For weights λ_i = μ_i² / ‖M‖² that sum to 1, and x ≤ 1, the probability that Σ λ_i χ²_{m,i} / m ≤ x is
    largest when one weight is 1. So :math:`\lVert M \rVert^2 \le m \hat M^2 / q` with probability 1 − δ or more, with q the
    δ-quantile of χ² with m degrees of freedom, whatever the spectrum is. (A weaker bound takes one line: :math:`\mathrm{E}
    e^{-t \sum \lambda_i \chi^2_{m,i} / m} = \prod_i (1 + 2 t \lambda_i / m)^{-m/2} \le (1 + 2 t / m)^{-m/2}`, so Chernoff's bound
    of the single weight, :math:`(x e^{1 - x})^{m/2}`, holds for all.) Rounding of the block products is added to it.

    *Least.* Singular values of T obey :math:`\sum_{k \le r} \sigma_k(T)^2 \le \sum_{k \le r} \sigma_k(Z)^2 + \lVert M \rVert^2`,
    so the best rank-r approximation of T has a squared error of :math:`\sum_{k > r} \sigma_k(Z)^2` or more. A larger
    ``oversampling`` brings ``bound`` and ``least`` together.

    Args:
        terms: called once per pass; gives pairs (c_u, B_u A_u), the same ones in the same order each time. Matrix
            products run in the factors' dtype, in float32 at least; what is small is in float64.
        rank: r.
        shape: (d_out, d_in).
        oversampling: ℓ − r; by default r + 8.
        power_iterations: number of power iterations, each of two more passes.
        probes: m.
        seed: of Ω and G. The same seed and terms give the same result.
        block: most rows of stacked factors held at a time; one term may have more.
        beside: asked after the first pass for columns (d_out, n) that the range shall hold as well, such as a result to
            compare with; they must not depend on the probes.

    Returns:
        The approximation, an estimate of its error and a bound.

    Raises:
        ValueError: if an argument is out of range; if there is no term; if a term has another shape or holds NaN or
            infinity; or if two passes give different terms.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011, algorithms 4.1 and 5.1.
    The bound: Roosta-Khorasani, Székely and Ascher, "Assessing stochastic algorithms for large scale nonlinear least
    squares problems using extremal probabilities of linear combinations of gamma random variables", SIAM/ASA J.
    Uncertainty Quantification 2015; see also Hallman, arXiv 2411.15454. They bound a trace; here it is that of M Mᵀ.

    Example:
        >>> T = Product(torch.eye(9)[:, :4].double(), torch.eye(4, 7).double())
        >>> made = streamed_svd(lambda: [(0.5, T), (0.5, T)], rank=4, shape=(9, 7))
        >>> made.bound < 1e-6, made.terms, made.passes
        (True, 2, 2)
    """
    least = min(shape)
    if not 1 <= rank <= least:
        raise ValueError(f"rank must be from 1 to min(d_out, d_in) = {least}, got {rank}")
    oversampling = rank + 8 if oversampling is None else oversampling
    if oversampling < 0 or power_iterations < 0 or probes < 1 or block < 1:
        raise ValueError(
            "oversampling and power_iterations must be 0 or more, probes and block 1 or more, got "
            f"{oversampling}, {power_iterations}, {probes} and {block}"
        )
    width = min(rank + oversampling, least)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape[1], width + probes, generator=generator, dtype=torch.float64)
    first = times(terms, shape, block, normal)
    Y, probed = first.value[:, :width], first.value[:, width:]
    if beside is not None:
        Y = torch.cat([Y, beside().to(Y)], dim=1)
    Q = torch.linalg.qr(Y).Q
    for _ in range(power_iterations):
        back = _same(first, projected(terms, shape, block, Q))
        again = _same(first, times(terms, shape, block, torch.linalg.qr(back.T).Q))
        Q = torch.linalg.qr(again).Q
    Z = _same(first, projected(terms, shape, block, Q))
    U, S, Vh = torch.linalg.svd(Z, full_matrices=False)
    decomposition = Svd(Q @ U[:, :rank], S[:rank], Vh[:rank])
    outside = probed - Q @ (Q.T @ probed)
    return _with_errors(decomposition, Product(Q, Z), S, outside, first, 2 + 2 * power_iterations)


def _same(first: Read, now: Read) -> Tensor:
    """What a later pass gave, if it read as much as the first."""
    if (first.terms, first.rows) != (now.terms, now.rows):
        raise ValueError(
            f"the first pass gave {first.terms} terms with {first.rows} rows and a later one {now.terms} with "
            f"{now.rows}; terms() must give the same ones every time, so return a new iterator from it"
        )
    return now.value


def _with_errors(
    decomposition: Svd,
    projection: Product,
    spectrum: Tensor,
    outside: Tensor,
    first: Read,
    passes: int,
) -> StreamedSvd:
    """Estimate and bounds, from the singular values of Z and the probes' part outside of Q."""
    from scipy.special import chdtri  # only here: it takes a tenth of a second to import

    probes = outside.shape[1]
    known = float((spectrum**2).sum())
    tail = float((spectrum[len(decomposition.S) :] ** 2).sum())
    estimate = float((outside**2).sum()) / probes
    most = probes * estimate / float(chdtri(probes, CONFIDENCE))
    rounding = _ratio((ROUNDINGS * first.rounding) ** 2, known + estimate)
    return StreamedSvd(
        decomposition,
        projection,
        math.sqrt(estimate),
        math.sqrt(most) + ROUNDINGS * first.rounding,
        spectrum,
        norm=math.sqrt(known + estimate),
        error=_ratio(tail + estimate, known + estimate),
        bound=min(1.0, _ratio(tail + most, known + most) + rounding),
        least=max(0.0, _ratio(tail, known + most) - rounding),
        terms=first.terms,
        passes=passes,
    )


def _ratio(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else 0.0


def streamed_mean(terms: Terms, shape: tuple[int, int]) -> Product:
    r"""Plain averaging of the factors in one pass: :math:`(\sum_u c_u B_u, \; \sum_u c_u A_u)`.

    Smaller ranks are padded with zeros up to the largest. What is wrong with it: docs/method.md.

    Args:
        terms: gives pairs (c_u, B_u A_u), scalings folded into B_u.
        shape: (d_out, d_in).

    Returns:
        A product of the largest width that came, in float64.

    Raises:
        ValueError: if there is no term, or one has another shape.

    Example:
        >>> one, two = (Product(torch.ones(2, r), torch.ones(r, 3)) for r in (1, 2))
        >>> streamed_mean(lambda: [(0.25, one), (0.75, two)], (2, 3)).A.tolist()
        [[1.0, 1.0, 1.0], [0.75, 0.75, 0.75]]
    """
    mean: Product | None = None
    for number, (coefficient, product) in enumerate(terms()):
        check_shape(product, shape, number)
        if mean is None:
            mean = Product(_zeros(product.B), _zeros(product.A))
        mean = pad(mean, product.width)
        mean.B[:, : product.width].add_(product.B, alpha=coefficient)
        mean.A[: product.width].add_(product.A, alpha=coefficient)
    if mean is None:
        raise ValueError("there are no terms to average")
    return mean


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.float64, device=like.device)
