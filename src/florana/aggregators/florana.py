"""FLoRA-NA: one scalar per client and factor, chosen so that the product comes nearest to the ideal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from florana.aggregators import _weighted
from florana.aggregators._contract import Module, ModuleResult
from florana.aggregators._registry import register
from florana.lowrank import Product


class _Objective(Protocol):
    """f(p, q) / ŝ² and the two least-squares problems it is made of."""

    @property
    def t(self) -> Tensor: ...

    def system_for_q(self, p: Tensor) -> tuple[Tensor, Tensor]: ...

    def system_for_p(self, q: Tensor) -> tuple[Tensor, Tensor]: ...

    def value(self, p: Tensor, q: Tensor) -> Tensor: ...


class _Quadratic(NamedTuple):
    r"""All that the objective needs, in numbers that do not grow with d_in or d_out.

    With C_u = (s_u/ŝ) B_u: ``a[j, :, l, :]`` = A_j A_lᵀ, ``b[i, :, k, :]`` = C_iᵀ C_k, and
    ``h[i, j]`` = ⟨T/ŝ, C_i A_j⟩, ``t`` = ‖T/ŝ‖².
    """

    a: Tensor  # (U, r, U, r)
    b: Tensor  # (U, r, U, r)
    h: Tensor  # (U, U)
    t: Tensor  # ()

    def system_for_q(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Matrix (U, U) and right side (U,) of the least-squares problem in q, for a fixed p."""
        M = torch.einsum("j,l,jxly->xy", p, p, self.a)  # Â Âᵀ
        return torch.einsum("ixky,yx->ik", self.b, M), self.h @ p

    def system_for_p(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The same in p, for a fixed q."""
        N = torch.einsum("i,k,ixky->xy", q, q, self.b)  # B̂ᵀ B̂
        return torch.einsum("xy,lyjx->jl", N, self.a), q @ self.h

    def value(self, p: Tensor, q: Tensor) -> Tensor:
        """The objective f(p, q) / ŝ²."""
        H, g = self.system_for_q(p)
        return self.t - 2 * g @ q + q @ H @ q


def _objective(module: Module) -> _Objective:
    """Gram blocks of the clients' A_u and C_u, and their products with the goal T/ŝ."""
    goal = Product(module.goal.B / module.scaling, module.goal.A)
    if module.metric is not None:
        return _weighted.weighted_quadratic(*module.factors(), goal, module.metric)
    a, b = module.factor_grams()
    # Every client's C_uᵀ B and A A_uᵀ with the goal's B and A: (U, r, R) and (R, U, r).
    if module.aim is None:
        w = torch.tensor(module.weights, dtype=a.dtype, device=a.device)
        left, right = (b * w[:, None]).flatten(2), a.flatten(0, 1)
        t = torch.einsum("ixky,ixky,i,k->", a, b, w, w)
    else:
        A, C = module.factors()
        left = torch.einsum("udr,dm->urm", C, goal.B)
        right = torch.einsum("md,urd->mur", goal.A, A)
        t = ((goal.B.T @ goal.B) * (goal.A @ goal.A.T)).sum()
    return _Quadratic(a, b, torch.einsum("ixm,mjx->ij", left, right), t)


@register(
    name="florana",
    title="FLoRA-NA",
    paper="arXiv 2509.26399",
    summary="Â = Σ p_u A_u, B̂ = Σ q_u B_u with p, q fitted on the server to the ideal update",
    mixed_ranks=True,
    chooses_rank=False,
    fits_target=True,
    variants=("lora", "dora", "hira"),
)
@dataclass(frozen=True, slots=True)
class Florana:
    r"""Estimate Â and B̂ from the clients' own factors.

    .. math:: \hat A = \sum_u p_u A_u, \quad \hat B = \sum_u q_u \frac{s_u}{ŝ} B_u, \quad
              (p, q) = \arg\min f, \quad f(p, q) = \lVert T - ŝ \hat B \hat A \rVert_F^2

    with p, q ∈ R^U. f is quadratic in p for a fixed q and in q for a fixed p. Everything it needs is
    in the r × r blocks A_j A_lᵀ and B_iᵀ B_k: one Gram product over the factors, then only tiny
    matrices, in float64. Both solvers start from plain averaging, p = q = w, and accept no step that
    raises f, so the result is never farther from T than plain averaging is.

    For DoRA B_u stands for D_u B_u; for HiRA distances are those of W ⊙ (·), and the Gram blocks are taken row
    by row under W².

    Args:
        solver: ``"als"`` alternates the two least-squares problems, with a pseudo-inverse where
            clients are linearly dependent; ``"gradient"`` runs Adam on p and q and keeps the best point.
        iterations: most sweeps of ``als``, or steps of ``gradient``.
        tolerance: ``als`` stops when a sweep lowers f by less than this share of ‖T‖².
        learning_rate: Adam's step size for ``gradient``, as a share of the mean weight 1/U.

    Source: "Communication-Efficient and Accurate Approach for Aggregation in Federated Low-Rank
    Adaptation", arXiv 2509.26399. Departures: the paper leaves the solver open, so ``als`` is ours and
    ``gradient`` is our reading of it; clients are weighted by num_examples and scaled by s_u; unlike
    ranks, which the paper does not treat, are padded with zeros.
    """

    solver: Literal["als", "gradient"] = "als"
    iterations: Annotated[int, Ge(1)] = 1000
    tolerance: Annotated[float, Ge(0), Lt(1)] = 1e-12
    learning_rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.03

    def __call__(self, module: Module, /) -> ModuleResult:
        """Aggregate one module."""
        w = torch.tensor(module.weights, dtype=torch.float64, device=module.pairs[0].A.device)
        problem = _objective(module)
        solve = self._alternate if self.solver == "als" else self._descend
        p, q = solve(problem, w)
        return ModuleResult(module.mixture(p, q))

    def _alternate(self, problem: _Objective, w: Tensor) -> tuple[Tensor, Tensor]:
        """Alternating least squares from p = q = w."""
        p, q = w, w
        value = problem.value(p, q)
        for _ in range(self.iterations):
            new_q = _least_squares(*problem.system_for_q(p))
            new_p = _least_squares(*problem.system_for_p(new_q))
            new_value = problem.value(new_p, new_q)
            if not new_value < value:  # at rounding level, or no number at all
                break
            p, q, gain, value = new_p, new_q, value - new_value, new_value
            if gain <= self.tolerance * problem.t:
                break
        return p, q

    def _descend(self, problem: _Objective, w: Tensor) -> tuple[Tensor, Tensor]:
        """Adam on p and q from p = q = w, with a cosine-decayed step; returns the best point seen."""
        p, q = w.clone().requires_grad_(), w.clone().requires_grad_()
        optimizer = torch.optim.Adam([p, q], lr=self.learning_rate / len(w), betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
        best, best_value = (w, w), float(problem.value(w, w))
        for _ in range(self.iterations):
            optimizer.zero_grad()
            (problem.value(p, q) / problem.t.clamp(min=1e-300)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                value = float(problem.value(p, q))
            if value < best_value:
                best, best_value = (p.detach().clone(), q.detach().clone()), value
        return best


def _least_squares(H: Tensor, g: Tensor) -> Tensor:
    """Smallest minimiser of xᵀ H x − 2 gᵀ x for a symmetric, possibly singular H."""
    inverse: Tensor = torch.linalg.pinv(H, hermitian=True, rtol=1e-12)
    return inverse @ g
