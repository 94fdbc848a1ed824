r"""One module of many adapters, read in passes: memory does not grow with their number.

The weighted sum :math:`T = \sum_u c_u s_u B_u A_u` is known to :func:`florana.lowrank.streamed_svd` through its factors
alone. The mean of the factors is taken along on the first pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from florana import lowrank
from florana.adapter import LoraPair
from florana.aggregators import Method
from florana.aggregators.fedit import FedIT
from florana.aggregators.florana_opt import FloranaOpt
from florana.config import ServerConfig
from florana.errors import AggregationError
from florana.folders.result import Estimate
from florana.lowrank import Product, StreamedSvd
from florana.seeding import torch_seed

OVERSAMPLING = 32
"""Sketched directions beside the rank, at least; twice the rank where that is more.

Two passes with p of them leave an expected squared error of 1 + r / (p − 1) times the least (Halko, Martinsson and Tropp
2011, theorem 10.5), a factor of 1.26 at rank 8. Clients that disagree have a flat tail, where few would do worse
than plain averaging.
"""


FEW, MANY = 256, 1024
"""Ranks that together are at most FEW are held at once however small the module, and never more than MANY by default.

Held at once errors are exact, at a cost that grows with the third power of the ranks' sum.
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a module before its values are read.

    Args:
        name: the pair's name.
        shape: (d_out, d_in).
        rank: rank of the result.
        alpha: alpha of the result.
        rslora: whether the result uses rank-stabilised scaling.
        dtype: dtype of the result.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    alpha: float
    rslora: bool
    dtype: torch.dtype

    @property
    def scaling(self) -> float:
        """Scaling ŝ of the result."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def pair(self, B: Tensor, A: Tensor) -> LoraPair:
        """The result's pair of the product ŝ B A.

        Raises:
            AggregationError: if it does not fit into the dtype.
        """
        made = LoraPair(A.to(self.dtype), B.to(self.dtype), self.alpha, self.rslora)
        if not (torch.isfinite(made.A).all() and torch.isfinite(made.B).all()):
            raise AggregationError(
                f"module {self.name}: the result does not fit into {self.dtype} at alpha {self.alpha:g}; ask for a "
                "larger alpha, or for float32"
            )
        return made


Source = Callable[[], Iterator[tuple[float, LoraPair]]]
"""Called once per pass: coefficient c_u and pair of every adapter that has the module, in the same order each time."""


@dataclass(slots=True)
class _Means:
    """Ā = Σ c_u A_u / Σ c_u and B̄ = Σ c_u (s_u/ŝ) B_u, taken along on the first pass; smaller ranks padded with zeros."""

    source: Source
    scaling: float
    A: Tensor | None = None
    B: Tensor | None = None
    total: float = 0.0
    _done: bool = field(default=False, repr=False)

    def terms(self) -> Iterator[tuple[float, Product]]:
        """The terms of T."""
        first, self._done = not self._done, True
        for coefficient, pair in self.source():
            if first:
                self._add(coefficient, pair)
            yield coefficient * pair.scaling, Product(pair.B, pair.A)

    def _add(self, coefficient: float, pair: LoraPair) -> None:
        A, B = (torch.zeros(0, pair.A.shape[1]), torch.zeros(pair.B.shape[0], 0))
        A, B = (old if old is not None else new.double() for old, new in ((self.A, A), (self.B, B)))
        more = max(0, pair.rank - A.shape[0])
        self.A = torch.nn.functional.pad(A, (0, 0, 0, more))
        self.B = torch.nn.functional.pad(B, (0, more))
        self.A[: pair.rank].add_(pair.A, alpha=coefficient)
        self.B[:, : pair.rank].add_(pair.B, alpha=coefficient * pair.scaling / self.scaling)
        self.total += coefficient

    @property
    def average(self) -> Product:
        """B̄ and Ā."""
        assert self.A is not None
        assert self.B is not None
        return Product(self.B, self.A / self.total if self.total > 0 else self.A)


def can_stream(method: Method, server: ServerConfig) -> bool:
    """Whether a method's result follows from T's leading singular triplets and the mean factors."""
    return isinstance(method, FloranaOpt | FedIT) and not server.changes_target


def stream(method: Method, module: Shape, source: Source) -> tuple[LoraPair, Estimate]:
    """The method's pair for one module, and how far from T it is as far as that can be told.

    Both read the adapters twice; for FedIT the second time, and the sketch, tell how far it is from T.

    Args:
        method: one that :func:`can_stream`.
        module: what the result shall be.
        source: the adapters' pairs.

    Raises:
        AggregationError: if the terms cannot be used, or the result does not fit into its dtype.
    """
    means = _Means(source, module.scaling)
    try:
        # With B̄ in the range the result is never farther from T than plain averaging.
        found = _svd(means.terms, module, lambda: means.average.B)
        if isinstance(method, FloranaOpt):
            best = lowrank.split(found.svd, module.rank, method.gauge, means.average.A)
            pair = module.pair(best.B / module.scaling, best.A)
            return pair, _of_optimum(found, pair)
        pair = module.pair(*means.average)
        return pair, _of_average(
            found, Product(module.scaling * means.average.B, means.average.A), pair
        )
    except ValueError as error:
        raise AggregationError(f"module {module.name}: {error}") from error


def _svd(
    terms: lowrank.Terms,
    module: Shape,
    beside: Callable[[], Tensor],
) -> StreamedSvd:
    """With probes of its own for every module, so that errors in different modules are independent."""
    r, least = module.rank, min(module.shape)
    seed = torch_seed(0, f"sketch of {module.name}")
    oversampling = min(max(OVERSAMPLING, 2 * r), least - r)
    return lowrank.streamed_svd(
        terms, r, module.shape, oversampling=oversampling, seed=seed, beside=beside
    )


def _of_optimum(found: StreamedSvd, pair: LoraPair) -> Estimate:
    """Errors of the truncated SVD, with what rounding to the pair's dtype adds."""
    U, S, Vh = found.svd
    rounding = lowrank.distance(pair.product, Product(U * S, Vh))
    floor, gap = _norm(found.spectrum), _at_most(found) + rounding
    used = math.hypot(found.error * found.norm, rounding)
    return Estimate(
        _ratio(used, found.norm), _ratio(gap, floor), found.least, found.norm, gap, floor
    )


def _of_average(found: StreamedSvd, average: Product, pair: LoraPair) -> Estimate:
    r"""Errors of plain averaging X, from T's sketch alone.

    The range Q holds X's columns, so T − X is the sum of two orthogonal parts: Q QᵀT − X, which is known, and T − Q QᵀT.
    """
    inside = lowrank.distance(average, found.projection)
    rounding = lowrank.distance(pair.product, average)
    used = math.hypot(inside, found.rest, rounding)
    gap, floor = math.hypot(inside, found.rest_bound) + rounding, _norm(found.spectrum)
    return Estimate(
        _ratio(used, found.norm), _ratio(gap, floor), found.least, found.norm, gap, floor
    )


def _at_most(found: StreamedSvd) -> float:
    r"""What ‖T − X‖_F does not exceed, as surely as ``bound``.

    From :math:`b^2 = (t + m) / (k + m)`, with k and t the sums of all σ(Z)² and of those beyond the rank, and m the bound
    of what Z lacks: :math:`1 - b^2 = \lVert X \rVert^2 / (k + m)`.
    """
    captured = _norm(found.svd.S)
    rest = 1 - found.bound**2
    if captured == 0 or rest <= 0:
        return 0.0 if found.norm == 0 else math.inf
    return found.bound * captured / math.sqrt(rest)


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values))


def _ratio(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else math.inf


def shares(weights: Sequence[float], present: Sequence[bool], renormalise: bool) -> list[float]:
    """c_u of the adapters that have a module: their shares of all weights, or of the present ones'.

    Raises:
        AggregationError: if the present ones have weight 0.

    Example:
        >>> shares([1, 1, 2], [True, True, False], renormalise=False)
        [0.25, 0.25]
    """
    held = [w for w, there in zip(weights, present, strict=True) if there]
    total = sum(held) if renormalise else sum(weights)
    if total == 0:
        raise AggregationError("the adapters that have it have weight 0; give them more")
    return [w / total for w in held]
