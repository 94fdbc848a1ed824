"""florana-opt: the best rank-r pair there is, by Eckart-Young, in a chosen gauge."""

from __future__ import annotations

from dataclasses import dataclass

from florana import lowrank
from florana.aggregators._contract import Module, ModuleResult
from florana.aggregators._registry import register
from florana.lowrank import Gauge


@register(
    name="florana-opt",
    title="florana-opt",
    paper="this project; objective of arXiv 2509.26399",
    summary="the rank-r pair nearest to the ideal update (truncated SVD in factored form)",
    mixed_ranks=True,
    chooses_rank=True,
    fits_target=True,
    variants=("lora", "dora", "hira"),
)
@dataclass(frozen=True, slots=True)
class FloranaOpt:
    r"""Minimise FLoRA-NA's objective over all pairs of rank r, not only over mixtures of factors.

    .. math:: \min_{\hat A, \hat B} \lVert T - ŝ \hat B \hat A \rVert_F, \qquad
              T = \sum_u w_u s_u B_u A_u

    By Eckart and Young the minimum is the truncated SVD of T. It is computed from the stacked clients' factors, by QR
    or by Gram matrices (:func:`florana.lowrank.svd`), in O((d_in + d_out) R²) with R = Σ r_u, and T is never formed
    unless R exceeds min(d_out, d_in). It equals (p, q) of FLoRA-NA with an r × r matrix per client in place of each
    scalar.

    For DoRA T is the low-rank part of the mean of the clients' weights, D̄W + T with T = Σ w_u s_u D_u B_u A_u. For
    HiRA the distance is ‖W ⊙ (H − B̂Â)‖_F, H = Σ w_u B_u A_u: a weighted low-rank problem, solved by
    alternating least squares from the truncated SVD of H.

    Args:
        gauge: how the product is split into B̂ and Â, see :func:`florana.lowrank.split`.
    """

    gauge: Gauge = "mean-aligned"

    def __call__(self, module: Module, /) -> ModuleResult:
        """Aggregate one module."""
        best = lowrank.split(module.leading, module.rank, self.gauge, module.average.A)
        return ModuleResult(module.pair(best))
