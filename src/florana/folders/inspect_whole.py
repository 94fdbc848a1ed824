"""The whole of an inspection from its modules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from florana.config import Variant
from florana.folders import inspect_measures as measures
from florana.folders.inspect_advice import notes, recommend
from florana.folders.inspect_losses import join
from florana.folders.inspect_module import Measured, couples_of, spectrum, summed, table
from florana.folders.inspect_values import Client, Couple, Inspection


def assemble(
    names: Sequence[str],
    measured: Sequence[Measured],
    weights: Sequence[float],
    variant: Variant,
    base_model: str,
    left_out: Mapping[str, str],
) -> Inspection:
    """Everything about the adapters together.

    Args:
        names: of the clients.
        measured: the modules, one or more.
        weights: w_u, summing to 1.
        variant: of the adapters.
        base_model: what they are for.
        left_out: method -> why it has no row.
    """
    w = torch.tensor(weights, dtype=torch.float64)
    inner = torch.stack([m.inner for m in measured]).sum(dim=0)
    cosines = table(measures.cosines(inner))
    squares = torch.nn.utils.rnn.pad_sequence([m.squares for m in measured]).sum(dim=1)
    energy = measures.energy_by_rank(squares.sqrt())
    losses = join([m.joined for m in measured])
    own = max(rank for m in measured for rank in m.report.ranks if rank is not None)
    common = measures.agreement(inner, w)
    factors = torch.stack([m.factors for m in measured]).nanmean(dim=0)
    first, second = torch.triu_indices(len(names), len(names), 1)
    shared = float(factors[first, second].nanmean())
    factor_cosine = shared if math.isfinite(shared) else None
    whole = spectrum(energy, _effective_rank(measured))
    lengths = inner.diagonal().clamp(min=0).sqrt()
    kept, of = float((w @ inner @ w).clamp(min=0).sqrt()), float(w @ lengths)
    return Inspection(
        clients=_clients(names, measured, inner, factors, w),
        couples=_couples(names, measured, cosines, table(factors)),
        cosines=cosines,
        agreement=common,
        factor_cosine=factor_cosine,
        norm=math.hypot(*(m.joined.norm for m in measured)),
        survives=kept / of if of > 0 else None,
        spectrum=whole,
        losses=losses,
        left_out=left_out,
        columns=summed([couples_of(m.columns) for m in measured]),
        rows=summed([couples_of(m.rows) for m in measured]),
        recommendation=recommend(whole, losses, len(names), own, common, factor_cosine),
        modules=tuple(m.report for m in measured),
        variant=variant,
        compared="ΔW" if variant == "lora" else "the pairs' products B A, not ΔW",
        base_model=base_model,
    )


def _clients(
    names: Sequence[str], measured: Sequence[Measured], inner: Tensor, factors: Tensor, w: Tensor
) -> tuple[Client, ...]:
    norms: list[float] = inner.diagonal().clamp(min=0).sqrt().tolist()
    others = table(measures.cosines_to_others(inner, w)[None])[0]
    middle = float(torch.tensor(norms, dtype=torch.float64).quantile(0.5))
    apart = factors.masked_fill(torch.eye(len(names), dtype=torch.bool), torch.nan)
    starts = table(apart.nanmedian(dim=1).values[None])[0]
    found = []
    for u, note in enumerate(notes(others, norms, starts)):
        ranks = {m.report.ranks[u] for m in measured}
        found.append(
            Client(
                names[u],
                float(w[u]),
                tuple(sorted(rank for rank in ranks if rank is not None)),
                norms[u],
                norms[u] / middle if middle > 0 else None,
                others[u],
                tuple(m.report.name for m in measured if m.report.ranks[u] is None),
                note.unlike,
                note.text,
            )
        )
    return tuple(found)


def _couples(
    names: Sequence[str],
    measured: Sequence[Measured],
    cosines: Sequence[Sequence[float | None]],
    factors: Sequence[Sequence[float | None]],
) -> tuple[Couple, ...]:
    def of(side: str, u: int, v: int) -> measures.Angles:
        return measures.Angles(
            *(
                torch.stack([found[u, v] for found in tables])
                for tables in zip(*(getattr(m, side) for m in measured), strict=True)
            )
        )

    return tuple(
        Couple(
            names[u],
            names[v],
            cosines[u][v],
            factors[u][v],
            summed([of("columns", u, v)]),
            summed([of("rows", u, v)]),
        )
        for u, v in combinations(range(len(names)), 2)
    )


def _effective_rank(measured: Sequence[Measured]) -> float:
    """The mean over modules, weighted by their energy; 0 where there is none."""
    weights = [float(m.squares.sum()) for m in measured]
    ranks = [m.report.spectrum.effective_rank for m in measured]
    total = sum(weights)
    return sum(w * r for w, r in zip(weights, ranks, strict=True)) / total if total > 0 else 0.0
