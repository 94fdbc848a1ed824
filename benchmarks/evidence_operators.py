r"""What a server may make of one round: operators on ΔW, all from the same clients.

For one module, with start P₀, clients' updates D_u = s B_u A_u − P₀ and weights w_u:

- T = P₀ + D, D = Σ w_u D_u: the exact mean (``exact``);
- M = s B̄ Ā: plain averaging of the factors (``average``);
- R = T − M = Σ w_u R_u, R_u = s (B_u − B̄)(A_u − Ā): what plain averaging misses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from evidence_sums import Sums, sums

from florana import lowrank
from florana.aggregators import build
from florana.aggregators._contract import Module
from florana.aggregators._server import shrunk
from florana.lowrank import Product, weighted_sum


@dataclass(frozen=True, eq=False)
class Round:
    """One module in one round: the clients' pairs, and the product P₀ that all of them started from."""

    module: Module
    start: Product

    @cached_property
    def target(self) -> Product:
        """T."""
        return self.module.target

    @cached_property
    def average(self) -> Product:
        """M."""
        return self.module.average.product

    @cached_property
    def client_steps(self) -> Sequence[Product]:
        """D_u, one per client."""
        return [self.step(pair.product) for pair in self.module.pairs]

    def step(self, made: Product) -> Product:
        """X − P₀."""
        return weighted_sum([made, self.start], [1.0, -1.0])

    @cached_property
    def size(self) -> float:
        """‖T − P₀‖."""
        return lowrank.norm(self.step(self.target))

    @cached_property
    def rest(self) -> Product:
        """R = T − M, what plain averaging misses."""
        return weighted_sum([self.target, self.average], [1.0, -1.0])

    @cached_property
    def client_rests(self) -> Sequence[Product]:
        """R_u = s (B_u − B̄)(A_u − Ā); Σ w_u R_u = R, the clients' covariance of B and A."""
        mean = self.module.average
        return [
            Product(pair.scaling * (pair.B.double() - mean.B), pair.A.double() - mean.A)
            for pair in self.module.pairs
        ]


Operator = Callable[[Round], Product]


def _line(share: float) -> Operator:
    """P_λ = M + λ (T − M)."""
    return lambda r: weighted_sum([r.average, r.target], [1 - share, share])


def _step(eta: float) -> Operator:
    """P₀ + η (T − P₀)."""
    return lambda r: weighted_sum([r.start, r.target], [1 - eta, eta])


def _optimum(r: Round) -> Product:
    """The rank-r pair nearest to T."""
    return lowrank.split(r.module.svd, r.module.rank, "balanced")


def _florana(r: Round) -> Product:
    """FLoRA-NA's p and q."""
    return build("florana", {})(r.module).pair.product


def _mean_a(r: Round) -> Product:
    """The nearest to T with Ā kept, T Ā⁺ Ā: what LoRA-FAIR's correction of B̄ tends to for λ → 0."""
    Q, _ = torch.linalg.qr(r.average.A.T)
    return Product(r.target.B @ (r.target.A @ Q), Q.T)


def _mean_b(r: Round) -> Product:
    """The nearest to T with B̄ kept, B̄ B̄⁺ T."""
    P, _ = torch.linalg.qr(r.average.B)
    return Product(P, (P.T @ r.target.B) @ r.target.A)


def _mean_a_blended(r: Round) -> Product:
    """T Ā⁺ Ā + λ (T − T Ā⁺ Ā), λ by noise."""
    share = sums(r.client_steps, r.module.weights).noise()
    return weighted_sum([_mean_a(r), r.target], [1 - share, share])


def _mean_a_inner(r: Round) -> Product:
    """The same with λ by the noise of the steps' parts in Ā's row space, D_u Ā⁺ Ā."""
    Q, _ = torch.linalg.qr(r.average.A.T)
    inner = [Product(step.B @ (step.A @ Q), Q.T) for step in r.client_steps]
    share = sums(inner, r.module.weights).noise()
    return weighted_sum([_mean_a(r), r.target], [1 - share, share])


def _mean_a_at_exact_norm(r: Round) -> Product:
    """The direction of T Ā⁺ Ā, at the length of T's step."""
    factor = r.size / lowrank.norm(r.step(_mean_a(r)))
    return weighted_sum([r.start, _mean_a(r)], [1 - factor, factor])


def _core(r: Round) -> Product:
    """The nearest to T in plain averaging's own column and row space: B̄ C Ā with the best C."""
    P, _ = torch.linalg.qr(r.average.B)
    Q, _ = torch.linalg.qr(r.average.A.T)
    return Product(P @ (P.T @ r.target.B) @ (r.target.A @ Q), Q.T)


def _exact_at_average_norm(r: Round) -> Product:
    """T's direction, at the length of the average's step."""
    return _step(lowrank.norm(r.step(r.average)) / r.size)(r)


def _average_at_exact_norm(r: Round) -> Product:
    """The average's direction, at the length of T's step."""
    factor = r.size / lowrank.norm(r.step(r.average))
    return weighted_sum([r.start, r.average], [1 - factor, factor])


def _weighted(size: Callable[[Product], float]) -> Operator:
    """Plain averaging with weights in proportion to a function of a client's s B_u A_u, not to its examples."""

    def operator(r: Round) -> Product:
        sizes = [size(pair.product) for pair in r.module.pairs]
        share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
        return r.module.mixture(share, share).product

    return operator


def _shrink(r: Round) -> Product:
    """P₀ + a(D): the step damped direction by direction, by the noise between clients."""
    step = shrunk(r.step(r.target), r.client_steps, r.module.weights, "noise")
    return weighted_sum([r.start, step], [1.0, 1.0])


def _damp(rule: Literal["agreement", "noise"]) -> Operator:
    """M + a(R): what plain averaging misses, damped direction by direction."""
    return lambda r: weighted_sum(
        [r.average, shrunk(r.rest, r.client_rests, r.module.weights, rule)], [1.0, 1.0]
    )


def _blend(share: Callable[[Sums], float]) -> Operator:
    """M + λ R with one λ for the module, from the clients' steps D_u."""
    return lambda r: _line(share(sums(r.client_steps, r.module.weights)))(r)


def _truncated(operator: Operator) -> Operator:
    """The rank-r pair nearest to what ``operator`` makes."""
    return lambda r: lowrank.split(lowrank.svd(operator(r)), r.module.rank, "balanced")


OPERATORS: Mapping[str, Operator] = {
    "average": _line(0.0),
    "line 0.25": _line(0.25),
    "line 0.5": _line(0.5),
    "line 0.75": _line(0.75),
    "exact": _line(1.0),
    "optimum": _optimum,
    "line 0.5, truncated": _truncated(_line(0.5)),
    "florana": _florana,
    "best B for mean A": _mean_a,
    "best B for mean A, blended by noise": _mean_a_blended,
    "best B for mean A, blended by noise, truncated": _truncated(_mean_a_blended),
    "best B for mean A, blended by inner noise, truncated": _truncated(_mean_a_inner),
    "best B for mean A at exact's norm": _mean_a_at_exact_norm,
    "best A for mean B": _mean_b,
    "best core": _core,
    "exact at average's norm": _exact_at_average_norm,
    "average at exact's norm": _average_at_exact_norm,
    "shrink by noise": _shrink,
    "damp by agreement": _damp("agreement"),
    "damp by agreement, truncated": _truncated(_damp("agreement")),
    "damp by noise": _damp("noise"),
    "damp by noise, truncated": _truncated(_damp("noise")),
    "blend by agreement": _blend(Sums.agreement),
    "blend by agreement, truncated": _truncated(_blend(Sums.agreement)),
    "blend by noise": _blend(Sums.noise),
    "blend by noise, truncated": _truncated(_blend(Sums.noise)),
    "blend by pairs": _blend(Sums.pairs),
    "blend by pairs, truncated": _truncated(_blend(Sums.pairs)),
    "average, equal weights": _weighted(lambda _: 1.0),
    "average, weights by norm": _weighted(lowrank.norm),
    "step 0.5": _step(0.5),
    "head alone": lambda r: r.start,
}
"""Name -> operator; all with the mean of the clients' heads, weighted by examples."""

CORE: tuple[str, ...] = (
    *("average", "line 0.25", "line 0.5", "line 0.75", "exact", "optimum", "florana"),
    *("best B for mean A", "best A for mean B", "best B for mean A, blended by noise, truncated"),
    *("blend by noise, truncated", "blend by pairs, truncated", "shrink by noise", "step 0.5"),
    *("exact at average's norm", "average at exact's norm"),
    *("average, equal weights", "average, weights by norm", "head alone"),
)
"""Operators that every case has; the others are compared in the first cases only."""

CONTROLS: Mapping[str, Operator] = {
    "average, start's head": _line(0.0),
    "exact, start's head": _line(1.0),
    "start": lambda r: r.start,
}
"""Controls that keep the start's head."""
