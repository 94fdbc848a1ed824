"""How a module's pairs enter the LoRA methods and come out again: LoRA as it is, DoRA and HiRA by composition.

A method sees plain pairs only. What it cannot know of a variant is on either side of it: a
:class:`Form` turns the clients' pairs into plain ones, and the method's result back into the variant's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from florana import lowrank
from florana.adapter import LoraPair
from florana.aggregators import _dora, _errors
from florana.aggregators._contract import Module, ModuleResult
from florana.aggregators._errors import Errors
from florana.lowrank import Product


class Form(Protocol):
    """One module in LoRA's form, and the way back."""

    @property
    def pairs(self) -> Sequence[LoraPair]:
        """The clients' pairs as the method sees them."""
        ...

    @property
    def start(self) -> LoraPair | None:
        """The pair that the round began with, likewise."""
        ...

    @property
    def residual(self) -> Product | None:
        """F, likewise."""
        ...

    @property
    def metric(self) -> Tensor | None:
        """W where distances are those of W ⊙ (·), else None."""
        ...

    def finish(self, result: ModuleResult) -> ModuleResult:
        """The method's result in the variant's own form."""
        ...

    def errors(self, module: Module, made: LoraPair, rank: int) -> Errors:
        """Errors of ``made``, the variant's pair with the residual appended."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LoraForm:
    """Plain LoRA: nothing to do."""

    pairs: Sequence[LoraPair]
    start: LoraPair | None
    residual: Product | None
    metric: Tensor | None = None

    def finish(self, result: ModuleResult) -> ModuleResult:
        """The result as it is."""
        return result

    def errors(self, module: Module, made: LoraPair, rank: int) -> Errors:
        """Errors in the plain distance."""
        return _errors.of_lora(module, made, rank)


@dataclass(frozen=True, slots=True, eq=False)
class HiraForm:
    r"""HiRA: the mean of W ⊙ (B_u A_u) is W ⊙ Σ w_u B_u A_u, a mean of products in the distance of W.

    F is in the same place as the products: the frozen weight becomes W ⊙ (1 + F).
    """

    pairs: Sequence[LoraPair]
    start: LoraPair | None
    residual: Product | None
    metric: Tensor | None

    def finish(self, result: ModuleResult) -> ModuleResult:
        """The pair marked as HiRA's."""
        return result._replace(pair=replace(result.pair, hadamard=True))

    def errors(self, module: Module, made: LoraPair, rank: int) -> Errors:
        """Errors in the distance of W."""
        return _errors.of_hira(module, made, rank)


@dataclass(frozen=True, slots=True, eq=False)
class DoraForm:
    """DoRA: plain pairs (D_u B_u, A_u) for methods that fit to a target, (B_u, A_u) and mean(m) for the others.

    Args:
        pairs: what the method sees.
        start: likewise.
        residual: likewise.
        weight: W.
        base_residual: F, as it stands in the frozen base.
        ideal: the mean of the clients' weights.
        plain: mean(A), mean(B) and mean(m), the published practice.
        scales: D̄, which the result has, or None where it takes mean(m) instead.
        size: Σ w_u |D_u|, by which D̄ is judged.
    """

    pairs: Sequence[LoraPair]
    start: LoraPair | None
    residual: Product | None
    weight: Tensor
    base_residual: Product | None
    ideal: _dora.Scaled
    plain: LoraPair
    scales: Tensor | None
    size: Tensor

    @property
    def metric(self) -> None:
        """The plain distance."""
        return

    def finish(self, result: ModuleResult) -> ModuleResult:
        """Take D̄ out of pair and increment again, and give the magnitudes that put it back."""
        if self.scales is None:
            return result._replace(pair=replace(result.pair, magnitude=self.plain.magnitude))
        used = _dora.away_from_zero(self.scales, self.size)
        pair = replace(result.pair, B=result.pair.B / used[:, None])
        increment = (
            None if result.increment is None else _dora.scale_rows(1 / used, result.increment)
        )
        terms = [t for t in (pair.product, self.base_residual, increment) if t is not None]
        added = lowrank.weighted_sum(terms, [1.0] * len(terms))
        m = _dora.magnitude(self.weight, self.base_residual, added, self.scales, used)
        return ModuleResult(replace(pair, magnitude=m), increment)

    def errors(self, module: Module, made: LoraPair, rank: int) -> Errors:
        """Errors of the whole weight: ‖X̄ − X‖_F / ‖X̄ − W‖_F, X̄ the mean of the clients' weights."""
        del module
        W, ideal = self.weight, self.ideal
        size = _dora.norm(ideal._replace(d=ideal.d - 1), W)

        def relative(gap: float) -> float:
            return gap / size if size > 0 else (0.0 if gap == 0 else float("inf"))

        def error(pair: LoraPair, residual: Product | None) -> float:
            return relative(_dora.norm(_dora.minus(_dora.whole(pair, W, residual), ideal), W))

        tail = torch.linalg.vector_norm(lowrank.svd(ideal.product, leading=rank).S[rank:])
        return Errors(
            used=error(made, None),
            average=error(self.plain, self.base_residual),
            optimum=relative(float(tail)),
            target_norm=size,
        )


def hira_form(
    pairs: Sequence[LoraPair], start: LoraPair | None, residual: Product | None, weight: Tensor
) -> HiraForm:
    """HiRA's pairs as plain ones; their scaling is 1."""
    plain = [replace(pair, hadamard=False) for pair in pairs]
    begun = None if start is None else replace(start, hadamard=False)
    return HiraForm(plain, begun, residual, weight)


def dora_form(
    pairs: Sequence[LoraPair],
    weights: Sequence[float],
    start: LoraPair | None,
    residual: Product | None,
    weight: Tensor,
    plain: LoraPair,
    step_size: float | None,
) -> DoraForm:
    r"""DoRA's pairs as plain ones.

    Args:
        pairs: the clients' pairs.
        weights: w_u.
        start: the pair that the round began with.
        residual: F.
        weight: W.
        plain: mean(A) and mean(B) of the clients' pairs.
        step_size: η of the server's step, on the whole weight: D̄ becomes (1 − η) D_0 + η D̄. None for methods that
            average factors, and magnitudes with them.

    Raises:
        AggregationError: if a row of a weight is zero.
    """
    magnitudes = torch.stack([p.magnitude.double() for p in pairs if p.magnitude is not None])
    w = torch.tensor(weights, dtype=torch.float64, device=magnitudes.device)
    plain = replace(plain, magnitude=w @ magnitudes)
    wholes = [_dora.whole(pair, weight, residual) for pair in pairs]
    ideal, size = _dora.mean(wholes, weights), w @ torch.stack([x.d.abs() for x in wholes])
    if step_size is None:
        bare = [replace(pair, magnitude=None) for pair in pairs]
        begun = None if start is None else replace(start, magnitude=None)
        return DoraForm(bare, begun, residual, weight, residual, ideal, plain, None, size)
    first = torch.ones_like(size) if start is None else _dora.whole(start, weight, residual).d
    scales = torch.lerp(first, ideal.d, step_size)
    return DoraForm(
        [_dora.as_lora(pair, x.d) for pair, x in zip(pairs, wholes, strict=True)],
        None if start is None else _dora.as_lora(start, first),
        None if residual is None else _dora.scale_rows(scales, residual),
        weight,
        residual,
        ideal,
        plain,
        scales,
        size,
    )
