"""What all aggregation methods share: the view of one module, and what a method may say.

A method is a frozen dataclass whose fields are its options and whose call turns one
:class:`Module` into one :class:`ModuleResult`. It may also say what clients train and send
(:class:`Plans`) and where they start (:class:`Starts`). It sees neither the model, nor files, nor the
network; the loop over modules, the checks and the error report are written once, in
:mod:`florana.aggregators._aggregate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from florana import lowrank
from florana.adapter import LoraPair, Plan
from florana.aggregators import _weighted
from florana.lowrank import Grams, Product


@dataclass(frozen=True, eq=False)
class Module:
    r"""One adapted module as the server sees it in one round.

    Args:
        name: the module's name.
        pairs: the clients' pairs (A_u, B_u, s_u); ranks and scalings may differ.
        weights: w_u ≥ 0, in the order of ``pairs``, summing to 1.
        rank: rank r* asked of the result.
        alpha: alpha of the result; its scaling ŝ follows from it, from ``rank`` and ``rslora``.
        rslora: whether the result uses rank-stabilised scaling.
        residual: F, what earlier rounds added to the frozen base, or None.
        start: the pair that the clients began this round with, or None where that is not known.
        initial: the pair that the first round began with, or None where that is not known.
        aim: what the server aims at in place of the clients' mean; None for the mean itself.
        metric: W (d_out, d_in) where the distance of two products is ‖W ⊙ (X − Y)‖_F, as for HiRA; None for
            the plain one.
    """

    name: str
    pairs: Sequence[LoraPair]
    weights: Sequence[float]
    rank: int
    alpha: float
    rslora: bool
    residual: Product | None = None
    start: LoraPair | None = None
    initial: LoraPair | None = None
    aim: Product | None = None
    metric: Tensor | None = None

    @cached_property
    def mean(self) -> Product:
        r"""The mean of the clients' updates in factored form, :math:`C = \sum_u w_u s_u B_u A_u`.

        Its factors are the stack of all clients', or :func:`~florana.lowrank.compact` where that takes fewer numbers:
        then the clients are added up one after the other, and memory does not grow with their number.
        """
        if sum(pair.rank for pair in self.pairs) > min(self.pairs[0].shape):
            return _summed(self.pairs, self.weights)
        return self.stack

    @cached_property
    def stack(self) -> Product:
        """The same, with the factors of all clients next to each other."""
        return _stacked(self.pairs, self.weights)

    @cached_property
    def grams(self) -> Grams:
        """Inner products of all rows of the stack's A, and of all columns of its B: two (R, R) matrices."""
        return Grams.of(self.stack)

    @property
    def goal(self) -> Product:
        """G, what the result's pair and increment shall add up to: the mean C, or ``aim``."""
        return self.mean if self.aim is None else self.aim

    @cached_property
    def target(self) -> Product:
        """T = F + G, the whole global update that is aimed at. F is absent for most methods."""
        return self._beside_residual(self.goal)

    @cached_property
    def ideal(self) -> Product:
        """F + C, the mean of the clients' models: what every error is measured against."""
        return self.target if self.aim is None else self._beside_residual(self.mean)

    def _beside_residual(self, product: Product) -> Product:
        if self.residual is None:
            return product
        return lowrank.weighted_sum([self.residual, product], [1.0, 1.0])

    @cached_property
    def svd(self) -> lowrank.Svd:
        """All singular values of the target, and its first ``rank`` singular vectors."""
        return self._svd(self.target)

    def _svd(self, product: Product) -> lowrank.Svd:
        """Decomposition of the target or the ideal; where that is the mean its Gram matrices are kept for others."""
        known = product is self.mean and lowrank.takes_grams(product, self.rank)
        return lowrank.svd(product, self.rank, self.grams if known else None)

    @cached_property
    def best(self) -> Product:
        """The product of width ``rank`` nearest to the target that is known, in the module's distance."""
        if self.metric is not None:
            return _weighted.nearest(self.target, self.metric, self.rank)
        return lowrank.split(self.svd, self.rank, "balanced")

    @property
    def solved(self) -> dict[str, lowrank.Svd | Product]:
        """What was found so far that holds of the same module without ``aim`` too.

        It is small, and copied: the stacks of all clients' factors that it was made of can go.
        """
        names = ("svd", "best") if self.aim is None else ("ideal_svd",)
        found = {name: self.__dict__[name] for name in names if name in self.__dict__}
        return {name: made._make(t.clone() for t in made) for name, made in found.items()}

    def recall(self, solved: Mapping[str, lowrank.Svd | Product]) -> None:
        """Take what an equal module has :attr:`solved`, so that it is not done twice."""
        self.__dict__.update(solved)

    @property
    def leading(self) -> lowrank.Svd:
        """Singular triplets of which the first ``rank`` are :attr:`best`."""
        return self.svd if self.metric is None else lowrank.svd(self.best)

    @cached_property
    def ideal_svd(self) -> lowrank.Svd:
        """All singular values of the ideal, and its first ``rank`` singular vectors."""
        return self.svd if self.aim is None else self._svd(self.ideal)

    @cached_property
    def restart(self) -> LoraPair:
        """The pair for methods that begin anew each round: the initial one, or mean(A) with B = 0."""
        if self.initial is not None:
            same = self.initial.alpha == self.alpha  # then to the bit
            return self.initial if same else self.pair(self.initial.product)
        average = self.average
        return LoraPair(average.A, torch.zeros_like(average.B), average.alpha, average.rslora)

    @cached_property
    def average(self) -> LoraPair:
        r"""Plain averaging of the factors: :math:`\bar A = \sum w_u A_u, \bar B = \sum w_u (s_u/ŝ) B_u`.

        The ratio s_u/ŝ is 1 when all clients share one scaling. Smaller ranks are padded with zeros
        up to the largest. Float64.
        """
        w = self._vector(self.weights)
        return self.mixture(w, w)

    def mixture(self, p: Tensor, q: Tensor) -> LoraPair:
        r"""One number per client and factor: :math:`\hat A = \sum p_u A_u, \hat B = \sum q_u (s_u/ŝ) B_u`.

        Args:
            p: (U,), float64.
            q: (U,), float64.
        """
        width, (d_out, d_in) = self.width, self.pairs[0].shape
        A = torch.zeros(width, d_in, dtype=torch.float64, device=p.device)
        B = torch.zeros(d_out, width, dtype=torch.float64, device=p.device)
        for pair, p_u, q_u in zip(self.pairs, p.tolist(), q.tolist(), strict=True):
            A[: pair.rank].add_(pair.A, alpha=p_u)
            B[:, : pair.rank].add_(pair.folded().B, alpha=q_u * (pair.scaling / self.scaling))
        alpha = self.alpha
        if width != self.rank:
            alpha = _alpha_for(self.scaling, width, self.rslora)
        return LoraPair(A, B, alpha, self.rslora)

    @property
    def width(self) -> int:
        """Rank that smaller ones are padded to: the largest of the clients, and in a federation of the result."""
        own = 0 if self.start is None else self.rank
        return max(own, *(pair.rank for pair in self.pairs))

    def factors(self) -> tuple[Tensor, Tensor]:
        """The clients' A (U, r, d_in) and (s_u/ŝ) B (U, d_out, r), padded to one rank, in float64."""
        padded = [lowrank.pad(pair.product, self.width) for pair in self.pairs]
        return torch.stack([p.A for p in padded]), torch.stack([p.B / self.scaling for p in padded])

    def factor_grams(self) -> tuple[Tensor, Tensor]:
        """Inner products of all rows of :meth:`factors`, A_j A_lᵀ and C_iᵀ C_k with C_u = (s_u/ŝ) B_u: (U, r, U, r)."""
        B = _stacked(self.pairs, [1 / self.scaling] * len(self.pairs)).B
        ranks, device = [pair.rank for pair in self.pairs], B.device
        # Row k of client u stands at u r + k after padding.
        rows = [u * self.width + torch.arange(r, device=device) for u, r in enumerate(ranks)]
        return self._padded(self.grams.A, torch.cat(rows)), self._padded(B.T @ B, torch.cat(rows))

    def _padded(self, gram: Tensor, places: Tensor) -> Tensor:
        """(R, R) -> (U, r, U, r), zero where a client has fewer rows."""
        U, width = len(self.pairs), self.width
        wide = gram.new_zeros(U * width, U * width)
        wide[places[:, None], places] = gram
        return wide.reshape(U, width, U, width)

    def _vector(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.pairs[0].A.device)

    @property
    def scaling(self) -> float:
        """Scaling ŝ of the result."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def pair(self, product: Product) -> LoraPair:
        """The result's pair for a product of width ``rank``: ŝ is divided out of B."""
        return LoraPair(product.A, product.B / self.scaling, self.alpha, self.rslora)


def _stacked(pairs: Sequence[LoraPair], weights: Sequence[float]) -> Product:
    """Σ w_u s_u B_u A_u as one product, each number copied once: for thin stacks time goes into fresh memory."""
    (d_out, d_in), width = pairs[0].shape, sum(pair.rank for pair in pairs)
    B = torch.empty(d_out, width, dtype=torch.float64, device=pairs[0].B.device)
    A = torch.empty(width, d_in, dtype=torch.float64, device=pairs[0].A.device)
    scales, end = [], 0
    for pair, w in zip(pairs, weights, strict=True):
        place, end = slice(end, end + pair.rank), end + pair.rank
        B[:, place], A[place] = pair.folded().B, pair.A
        scales += [w * pair.scaling] * pair.rank
    return Product(B.mul_(torch.tensor(scales, dtype=B.dtype, device=B.device)), A)


def _summed(pairs: Sequence[LoraPair], weights: Sequence[float]) -> Product:
    """Σ w_u s_u B_u A_u as :func:`lowrank.compact` has it, from blocks of no more rows than that."""
    (d_out, d_in), least = pairs[0].shape, min(pairs[0].shape)
    total = torch.zeros(d_out, d_in, dtype=torch.float64, device=pairs[0].B.device)
    begin = 0
    while begin < len(pairs):
        end, rows = begin + 1, pairs[begin].rank
        while end < len(pairs) and rows + pairs[end].rank <= least:
            rows, end = rows + pairs[end].rank, end + 1
        block = _stacked(pairs[begin:end], weights[begin:end])
        total.addmm_(block.B, block.A)
        begin = end
    identity = torch.eye(least, dtype=total.dtype, device=total.device)
    return Product(total, identity) if d_in <= d_out else Product(identity, total)


def _alpha_for(scaling: float, rank: int, rslora: bool) -> float:
    """The alpha that gives ``scaling`` at ``rank``."""
    return scaling * (rank**0.5 if rslora else rank)


class ModuleResult(NamedTuple):
    """What a method makes of one module.

    ``pair`` is what clients go on training; ``increment``, if any, is added to the frozen base.
    """

    pair: LoraPair
    increment: Product | None = None


class Method(Protocol):
    """An aggregation method with its options set: one module in, one result out."""

    def __call__(self, module: Module, /) -> ModuleResult:
        """Aggregate the clients' pairs of one module."""
        ...


@runtime_checkable
class Plans(Protocol):
    """A method that has a say in what clients train and send."""

    def plan(self, server_round: int) -> Plan:
        """What clients do in this round, from 1."""
        ...


@runtime_checkable
class Starts(Protocol):
    """A method with a first pair of its own, made from the frozen weight."""

    def start(self, pair: LoraPair, weight: Tensor) -> ModuleResult:
        """The first pair, and what is added to the frozen base so that the model stays what it was.

        Args:
            pair: LoRA's own random start, of the rank, alpha and dtype that are asked for.
            weight: W, (d_out, d_in).
        """
        ...


@runtime_checkable
class Wants(Protocol):
    """A method that aims at something else than the clients' mean, before the server's add-ons."""

    def wanted(self, module: Module) -> Product:
        """What takes the place of C = Σ w_u s_u B_u A_u as :attr:`Module.goal`."""
        ...


def plan_of(method: Method, server_round: int) -> Plan:
    """The method's plan for a round; a method that has none trains and sends everything."""
    return method.plan(server_round) if isinstance(method, Plans) else Plan()


def nearest_pair(pair: LoraPair, rank: int) -> LoraPair:
    """The nearest pair of a smaller rank and the same scaling: the truncated SVD, balanced.

    Where B = 0, at the start, every pair is as near, and the first rows of A are as random as the rest.
    """
    if not pair.B.any():
        return leading_pair(pair, rank)
    best = lowrank.split(lowrank.svd(pair.product), rank, "balanced")
    B = best.B / pair.scaling
    alpha = _alpha_for(pair.scaling, rank, pair.rslora)
    return replace(pair, A=best.A.to(pair.A), B=B.to(pair.B), alpha=alpha, basis=None)


def leading_pair(pair: LoraPair, rank: int) -> LoraPair:
    """The first ``rank`` components of a pair, at the same scaling."""
    alpha = _alpha_for(pair.scaling, rank, pair.rslora)
    return replace(pair, A=pair.A[:rank], B=pair.B[:, :rank], alpha=alpha)
