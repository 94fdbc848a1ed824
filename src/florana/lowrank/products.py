"""Products of two thin factors: sums, inner products, norms and distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GRAM_FROM = 2**16
"""Factors with fewer numbers than this go through QR, whatever their shape: the last digits cost nothing there."""

CANCELLATION = 1e6
"""A squared norm from Gram matrices must be so many roundings above zero, or QR takes its place.

Its relative error is then 1e-6 at most, that of the norm half of it; what is seen is a hundredth of that.
"""


class Product(NamedTuple):
    """The matrix ``B @ A``, never formed: B is (d_out, k), A is (k, d_in)."""

    B: Tensor
    A: Tensor

    @property
    def width(self) -> int:
        """Number k of rank-one terms held, an upper bound on the rank."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_out, d_in) of the matrix."""
        return self.B.shape[0], self.A.shape[1]


class Grams(NamedTuple):
    """All inner products of a product's factors, in float64: ``B`` is BᵀB and ``A`` is A Aᵀ, both (k, k)."""

    B: Tensor
    A: Tensor

    @classmethod
    def of(cls, product: Product) -> Grams:
        """Two matrix products, O((d_out + d_in) k²)."""
        B, A = product.B.double(), product.A.double()
        return cls(B.T @ B, A @ A.T)


def is_thin(product: Product) -> bool:
    """Whether Gram matrices of the factors are small against the factors, and the factors worth the care.

    Gram matrices square the condition: what is below 1e-8 of the largest is lost. They are many times faster than QR
    where k is at most half of min(d_out, d_in) and the factors have :data:`GRAM_FROM` numbers or more.
    """
    d_out, d_in = product.shape
    return 2 * product.width <= min(d_out, d_in) and (d_out + d_in) * product.width >= GRAM_FROM


def weighted_sum(products: Sequence[Product], coefficients: Sequence[float]) -> Product:
    r"""Stack products so that their weighted sum is one product.

    .. math:: \sum_u c_u B_u A_u = [c_1 B_1, \dots, c_U B_U] \; [A_1; \dots; A_U]

    Args:
        products: the U terms, all of one shape (d_out, d_in); widths k_u may differ.
        coefficients: c_u, one per term.

    Returns:
        A product of width Σ k_u, in float64.

    Example:
        >>> one = Product(torch.ones(3, 1), torch.ones(1, 2))
        >>> both = weighted_sum([one, one], [0.25, 0.5])
        >>> (both.B @ both.A)[0].tolist()
        [0.75, 0.75]
    """
    B = torch.cat([c * p.B.double() for p, c in zip(products, coefficients, strict=True)], dim=1)
    A = torch.cat([p.A.double() for p in products], dim=0)
    return Product(B, A)


def add(first: Product, second: Product) -> Product:
    """The sum of two products, ``B₁A₁ + B₂A₂``, made :func:`compact`, in the dtype of ``first``."""
    summed = compact(weighted_sum([first, second], [1.0, 1.0]))
    return Product(summed.B.to(first.B), summed.A.to(first.A))


def compact(product: Product) -> Product:
    """The same product, no wider than min(d_out, d_in).

    Sums that go on round after round would grow without end. Above that width a product is kept as
    one dense matrix times the identity, which takes no more numbers than factors of that width.

    Example:
        >>> wide = Product(torch.ones(2, 4), torch.ones(4, 3))
        >>> compact(wide).width
        2
    """
    d_out, d_in = product.shape
    if product.width <= min(d_out, d_in):
        return product
    dense = product.B @ product.A
    identity = torch.eye(min(d_out, d_in), dtype=dense.dtype, device=dense.device)
    return Product(dense, identity) if d_in <= d_out else Product(identity, dense)


def dense(product: Product) -> Tensor:
    """B A as a matrix (d_out, d_in), in float64; nothing is multiplied where :func:`compact` left an identity."""
    B, A = product.B.double(), product.A.double()
    if _is_identity(A):
        return B
    return A if _is_identity(B) else B @ A


def _is_identity(matrix: Tensor) -> bool:
    rows, columns = matrix.shape
    if rows != columns or not bool((matrix.diagonal() == 1).all()):
        return False
    return int(matrix.count_nonzero()) == rows


def pad(product: Product, width: int) -> Product:
    """Append zero columns to B and zero rows to A up to ``width``; the value does not change."""
    missing = width - product.width
    if missing <= 0:
        return product
    B = torch.nn.functional.pad(product.B, (0, missing))
    A = torch.nn.functional.pad(product.A, (0, 0, 0, missing))
    return Product(B, A)


def inner(first: Product, second: Product) -> float:
    """Frobenius inner product ``⟨B₁A₁, B₂A₂⟩``, the sum over all entries of (B₁ᵀB₂) ⊙ (A₁A₂ᵀ).

    Example:
        >>> inner(Product(torch.eye(2), torch.eye(2)), Product(torch.ones(2, 1), torch.ones(1, 2)))
        2.0
    """
    left = first.B.double().T @ second.B.double()
    right = first.A.double() @ second.A.double().T
    return float((left * right).sum())


def norm(product: Product) -> float:
    """Frobenius norm ``‖B A‖_F``.

    From Gram matrices where :func:`is_thin` says so and the terms do not cancel; from the matrix itself where that
    takes no more numbers than the factors; else from the triangular factors of B and Aᵀ.
    """
    if product.width >= min(product.shape):
        return float(torch.linalg.matrix_norm(dense(product)))
    if is_thin(product):
        square = inner(product, product)
        if square > CANCELLATION * rounding(product):
            return float(square**0.5)
    R_B = torch.linalg.qr(product.B.double(), mode="r").R
    R_A = torch.linalg.qr(product.A.double().T, mode="r").R
    return float(torch.linalg.matrix_norm(R_B @ R_A.T))


def distance(first: Product, second: Product) -> float:
    """Frobenius norm of the difference of two products, ``‖B₁A₁ − B₂A₂‖_F``."""
    if first.width + second.width >= min(first.shape):
        return float(torch.linalg.matrix_norm(dense(first) - dense(second)))
    return norm(weighted_sum([first, second], [1.0, -1.0]))


def relative_error(candidate: Product, target: Product, target_norm: float | None = None) -> float:
    r"""``‖target − candidate‖_F / ‖target‖_F``; 0 when both vanish, infinity when only target does.

    For thin factors :math:`\lVert T - X \rVert^2 = \lVert T \rVert^2 - 2 \langle T, X \rangle + \lVert X \rVert^2`, which
    costs O((d_out + d_in) k k_X) once ‖T‖ is known. Where these cancel to less than about 1e-5 of the terms' norms, and for
    small factors, it is the QR of the difference.

    Args:
        candidate: X.
        target: T.
        target_norm: ‖T‖_F where it is known already; it is worked out otherwise.

    Example:
        >>> target = Product(torch.eye(2), torch.diag(torch.tensor([3.0, 4.0])))
        >>> largest = Product(torch.eye(2)[:, 1:], 4 * torch.eye(2)[1:])
        >>> round(relative_error(largest, target), 3)
        0.6
    """
    size = norm(target) if target_norm is None else target_norm
    gap = _cheap_distance(candidate, target, size)
    if gap is None:
        gap = distance(candidate, target)
    if size > 0:
        return gap / size
    return 0.0 if gap == 0 else float("inf")


def _cheap_distance(candidate: Product, target: Product, size: float) -> float | None:
    """‖T − X‖ from three inner products, or None where that would lose too many digits."""
    if not (is_thin(target) and 2 * candidate.width <= min(candidate.shape)):
        return None
    square = size**2 - 2 * inner(target, candidate) + inner(candidate, candidate)
    enough = square > CANCELLATION * rounding(target, candidate)
    return float(square**0.5) if enough else None


def rounding(*products: Product) -> float:
    """One rounding of the squared norm of their sum from Gram matrices: eps (Σ_k ‖b_k‖ ‖a_k‖)², over all terms k."""
    sizes = sum(
        float(
            torch.linalg.vector_norm(p.B.double(), dim=0)
            @ torch.linalg.vector_norm(p.A.double(), dim=1)
        )
        for p in products
    )
    return torch.finfo(torch.float64).eps * sizes**2
