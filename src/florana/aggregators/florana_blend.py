"""florana-blend: plain averaging, moved towards the exact mean as far as the clients agree."""

from __future__ import annotations

from dataclasses import dataclass

from florana import lowrank
from florana.aggregators._contract import Module, ModuleResult
from florana.aggregators._registry import register
from florana.lowrank import Gauge, Product

ROUNDING = 1e-12
"""A goal no farther from plain averaging's product than this is plain averaging's."""


@register(
    name="florana-blend",
    title="florana-blend",
    paper="this project; docs/evidence.md",
    summary="plain averaging, moved towards the exact mean as far as the clients agree",
    mixed_ranks=True,
    chooses_rank=True,
    fits_target=True,
    variants=("lora", "dora", "hira"),
)
@dataclass(frozen=True, slots=True)
class FloranaBlend:
    r"""Let the clients' own agreement decide how much of the exact mean to take.

    With M = ŝ B̄Ā plain averaging's product, T = Σ w_u s_u B_u A_u the exact mean, P the product that the round
    started from, and the clients' steps D_u = s_u B_u A_u − P with mean D = Σ w_u D_u:

    .. math:: \hat B \hat A \approx M + \lambda\,(T - M), \qquad
              \lambda = \frac{\sum_{u \ne v} w_u w_v \langle D_u, D_v \rangle}
                             {(1 - \sum_u w_u^2)\, \lVert D \rVert_F^2} \quad \text{within } [0, 1]

    and the result is the nearest pair of rank r. T − M is the covariance, between clients, of their changes to B
    and to A: signal where clients pull the same way, drift where each pulls its own. λ is the part of ‖D‖² that
    steps of different clients have in common, an unbiased estimate of the squared length of a common step over that of
    D. It is 1 when all clients agree, and 0, which is plain averaging to the bit, when their steps are orthogonal. No
    option, no data on the server, and never farther from T than plain averaging.

    Args:
        gauge: how the product is split into B̂ and Â, see :func:`florana.lowrank.split`.

    Source: this project. What it is held against, and where it gains and does not, is in docs/evidence.md.
    """

    gauge: Gauge = "mean-aligned"

    def wanted(self, module: Module) -> Product:
        """M + λ (T − M), before the server's add-ons."""
        share = agreement(module)
        return lowrank.weighted_sum([module.average.product, module.mean], [1 - share, share])

    def __call__(self, module: Module, /) -> ModuleResult:
        """Aggregate one module."""
        average = module.average
        same = average.rank == module.rank
        if same and lowrank.relative_error(average.product, module.goal) < ROUNDING:
            return ModuleResult(average)
        best = lowrank.split(module.leading, module.rank, self.gauge, average.A)
        return ModuleResult(module.pair(best))


def agreement(module: Module) -> float:
    """λ of :class:`FloranaBlend`: 0 for one client alone, or where nothing moved."""
    origin = None if module.start is None else module.start.product
    whole, others = _square(module.mean, origin), 1 - sum(w * w for w in module.weights)
    if whole <= 0 or others <= 0:
        return 0.0
    own = sum(
        w * w * _square(pair.product, origin)
        for w, pair in zip(module.weights, module.pairs, strict=True)
    )
    return min(1.0, max(0.0, (whole - own) / (others * whole)))


def _square(product: Product, origin: Product | None) -> float:
    """‖X − P‖_F², with P = 0 where there is no origin."""
    return (lowrank.norm(product) if origin is None else lowrank.distance(product, origin)) ** 2
