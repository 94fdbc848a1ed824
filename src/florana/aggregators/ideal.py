"""ideal: the exact mean of the clients' updates, the oracle that every other method is held against."""

from __future__ import annotations

from dataclasses import dataclass

from florana import lowrank
from florana.aggregators._contract import Module, ModuleResult, register
from florana.lowrank import Gauge, Product

NUMERICALLY_ZERO = 1e-12
"""Singular values below this times the largest are rounding, in float64, and are not kept."""


@register(
    name="ideal",
    title="exact mean",
    paper="the target T of arXiv 2509.26399",
    summary="the exact mean of the products: best rank-r pair trained on, the rest kept as residual",
    downlink="R(d_in + d_out), growing by the round up to rank min(d_in, d_out)",
    mixed_ranks=True,
    chooses_rank=True,
    keeps_residual=True,
)
@dataclass(frozen=True, slots=True)
class Ideal:
    r"""Keep T itself, in factored form: nothing is lost, and the downlink pays for it.

    .. math:: T = \underbrace{U_r S_r V_r^\top}_{\text{pair that clients go on training}} +
              \underbrace{U_{>r} S_{>r} V_{>r}^\top}_{\text{residual, frozen in the base}}

    The next round's target holds the residual again, T = F + Σ w_u s_u B_u A_u, so that the global
    model stays the exact mean of the clients' models in every round.

    Args:
        gauge: how the trained part is split into B̂ and Â, see :func:`florana.lowrank.split`.
    """

    gauge: Gauge = "mean-aligned"

    def __call__(self, module: Module, /) -> ModuleResult:
        """Aggregate one module."""
        U, S, Vh = module.svd
        trained = lowrank.split(module.svd, module.rank, self.gauge, module.average.A)
        kept = int((NUMERICALLY_ZERO * S[0] < S).sum())
        rest = slice(module.rank, kept)
        residual = Product(U[:, rest] * S[rest], Vh[rest]) if kept > module.rank else None
        return ModuleResult(module.pair(trained), residual)
