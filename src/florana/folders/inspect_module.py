"""One module of an inspection: everything that its clients' pairs tell, and nothing kept of the pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from florana import lowrank
from florana.adapter import LoraPair
from florana.aggregators import Card
from florana.errors import AggregationError
from florana.folders import inspect_measures as measures
from florana.folders._text import plain
from florana.folders.inspect_losses import Joined, module_losses
from florana.folders.inspect_values import ModuleReport, Overlap, Spectrum
from florana.folders.missing import Missing, unchanged
from florana.lowrank import Product


@dataclass(frozen=True, slots=True)
class View:
    """One module as it comes from the folders.

    Args:
        name: the module.
        pairs: the clients' pairs in their order; None for a client that lacks the module.
        weight: the frozen weight W (d_out, d_in), for DoRA and HiRA.
    """

    name: str
    pairs: tuple[LoraPair | None, ...]
    weight: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of every module.

    Args:
        weights: w_u, summing to 1.
        ranks: ranks of the result.
        methods: whom to ask.
        missing: what stands in for a module that a client lacks.
    """

    weights: tuple[float, ...]
    ranks: tuple[int, ...]
    methods: tuple[Card, ...]
    missing: Missing


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What a module adds to the whole: numbers that can be summed, and its own report.

    Args:
        report: the module by itself.
        joined: its losses, with ‖T‖_F.
        inner: ⟨ΔW_u, ΔW_v⟩, (U, U).
        squares: the squared singular values of T.
        columns: principal angles of the column spaces.
        rows: of the row spaces.
        factors: cosines between the clients' A, or their B where those are larger, (U, U).
    """

    report: ModuleReport
    joined: Joined
    inner: Tensor
    squares: Tensor
    columns: measures.Angles
    rows: measures.Angles
    factors: Tensor


def measure(view: View, task: Task) -> Measured:
    """Everything about one module.

    Raises:
        AggregationError: if its pairs do not fit together, or the clients that have it have no weight.
    """
    shape = next(pair.shape for pair in view.pairs if pair is not None)
    count, here = len(view.pairs), [u for u, pair in enumerate(view.pairs) if pair is not None]
    pairs = [pair for pair in view.pairs if pair is not None]
    small = measures.compressed([pair.product for pair in pairs])
    joined, S = _losses(view, task, pairs, small)
    inner = torch.zeros(count, count, dtype=torch.float64)
    inner[torch.tensor(here)[:, None], torch.tensor(here)] = measures.inner_products(small)
    sides = zip(*(measures.spaces(product) for product in small), strict=True)
    columns, rows = (
        measures.Angles(
            *(_spread(a, here, count) for a in measures.principal_angles(side, dimension))
        )
        for side, dimension in zip(sides, shape, strict=True)
    )
    report = ModuleReport(
        view.name,
        shape,
        tuple(None if pair is None else pair.rank for pair in view.pairs),
        joined.norm,
        tuple(inner.diagonal().clamp(min=0).sqrt().tolist()),
        table(measures.cosines(inner)),
        measures.agreement(inner, torch.tensor(task.weights, dtype=torch.float64)),
        spectrum(measures.energy_by_rank(S), measures.effective_rank(S)),
        joined.losses,
        summed([couples_of(columns)]),
        summed([couples_of(rows)]),
    )
    factors = _spread(_factor_cosines(small), here, count)
    return Measured(report, joined, inner, S.double().square(), columns, rows, factors)


def _losses(
    view: View, task: Task, pairs: Sequence[LoraPair], small: Sequence[Product]
) -> tuple[Joined, Tensor]:
    weights = [w for w, pair in zip(task.weights, view.pairs, strict=True) if pair is not None]
    if not sum(weights) > 0 and task.missing == "mean":
        raise AggregationError(
            f"module {plain(view.name)}: the adapters that have it have weight 0; give one of them a weight, or count "
            "the module as no change with --missing zero"
        )
    if view.weight is None:  # LoRA: in coordinates that hold all of it
        asked = [
            replace(pair, A=p.A, B=p.B / pair.scaling, basis=None)
            for pair, p in zip(pairs, small, strict=True)
        ]
    else:
        asked = [replace(pair, A=pair.A.double(), B=pair.B.double()) for pair in pairs]
    if len(pairs) < len(view.pairs) and task.missing == "zero":
        empty = unchanged(asked, weights, view.weight)
        kept = iter(asked)
        asked = [empty if pair is None else next(kept) for pair in view.pairs]
        weights = list(task.weights)
    joined, result = module_losses(view.name, asked, weights, task.ranks, task.methods, view.weight)
    return joined, torch.tensor(result.spectra[view.name], dtype=torch.float64)


def _spread(found: Tensor, here: Sequence[int], count: int) -> Tensor:
    """What is known between those who have the module, as a table of all clients; NaN for the others."""
    index = torch.tensor(here)
    whole = torch.full((count, count), torch.nan, dtype=torch.float64)
    whole[index[:, None], index] = found.double()
    return whole


def _factor_cosines(products: Sequence[Product]) -> Tensor:
    """Cosines between the clients' A, entry by entry, (U, U); between their B where those are larger, as of embeddings.

    Of unlike ranks the leading components are compared, which is what padding with zeros aligns.
    """
    width = max(product.width for product in products)
    padded = [lowrank.pad(product, width) for product in products]
    sides = (torch.stack([getattr(product, side).flatten() for product in padded]) for side in "AB")
    found = [measures.cosines(stack @ stack.T) for stack in sides]
    return max(found, key=lambda table: float(table.nan_to_num().sum()))


def couples_of(angles: measures.Angles) -> measures.Angles:
    """The angles of every two clients, each couple once."""
    first, second = torch.triu_indices(len(angles.largest), len(angles.largest), 1)
    return measures.Angles(*(found[first, second] for found in angles))


def summed(angles: Sequence[measures.Angles]) -> Overlap:
    """The mean over everything that has a value, and the largest angle; None where nothing has."""
    mean, largest, chance = (
        torch.cat([getattr(a, name).flatten() for a in angles]) for name in measures.Angles._fields
    )
    if not torch.isfinite(mean).any():
        return Overlap(None, None, None)
    return Overlap(
        float(mean.nanmean()),
        float(largest[torch.isfinite(largest)].max()),
        float(chance.nanmean()),
    )


def spectrum(energy: Sequence[float], effective_rank: float) -> Spectrum:
    """A spectrum from cumulative shares of energy."""
    wanted = (measures.rank_for(energy, share) for share in (0.90, 0.95, 0.99))
    return Spectrum(tuple(energy), effective_rank, *wanted)


def table(values: Tensor) -> tuple[tuple[float | None, ...], ...]:
    """A matrix with None for NaN."""
    rows: list[list[float]] = values.tolist()
    return tuple(tuple(None if math.isnan(v) else v for v in row) for row in rows)
