"""How far a result is from the ideal, in numbers that mean the same for every variant of LoRA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from florana import lowrank
from florana.adapter import LoraPair
from florana.aggregators import _weighted
from florana.aggregators._contract import Module


class Errors(NamedTuple):
    """How far an aggregate is from the ideal update T, relative to ‖T‖_F.

    ``used`` is what the method made, ``average`` what plain averaging of the factors would have
    made, ``optimum`` the least that any pair of the result's rank can reach. ``target_norm`` is ‖T‖_F.

    For DoRA and HiRA all four are of the change of the whole weight, ‖X̄ − X‖_F / ‖X̄ − W‖_F with X̄ the mean of
    the clients' weights and X the global one. Then ``average`` averages A, B and the magnitudes, and
    ``optimum`` is, for DoRA, the least with the rows' scales D at their mean; for HiRA what alternating
    least squares finds from the truncated SVD, a local optimum.
    """

    used: float
    average: float
    optimum: float
    target_norm: float


def of_lora(module: Module, made: LoraPair, rank: int) -> Errors:
    """Errors of a plain pair, ``made``, the residual included; ``rank`` is that of the trained part."""
    spectrum = module.ideal_svd
    size = float(torch.linalg.vector_norm(spectrum.S))
    average = module.average.product
    if module.residual is not None:
        average = lowrank.weighted_sum([module.residual, average], [1.0, 1.0])
    return Errors(
        used=lowrank.relative_error(made.product, module.ideal, size),
        average=lowrank.relative_error(average, module.ideal, size),
        optimum=lowrank.truncation_error(spectrum, rank),
        target_norm=size,
    )


def of_hira(module: Module, made: LoraPair, rank: int) -> Errors:
    """The same of a HiRA pair: every difference H counts as W ⊙ H."""
    W, ideal = module.metric, module.ideal
    assert W is not None
    average = module.average.product
    if module.residual is not None:
        average = lowrank.weighted_sum([module.residual, average], [1.0, 1.0])
    best = (
        _weighted.nearest(ideal, W, rank)
        if module.aim is not None or rank != module.rank
        else module.best
    )
    return Errors(
        used=_weighted.relative_error(made.product, ideal, W),
        average=_weighted.relative_error(average, ideal, W),
        optimum=_weighted.relative_error(best, ideal, W),
        target_norm=_weighted.norm(ideal, W),
    )


def together(errors: Iterable[Errors]) -> Errors:
    """The errors of all modules at once: √Σ‖T − X‖² / √Σ‖T‖²."""
    listed = list(errors)
    if not listed:  # heads alone
        return Errors(0.0, 0.0, 0.0, 0.0)
    rows = torch.tensor(listed, dtype=torch.float64)
    norms = rows[:, 3]
    total = torch.linalg.vector_norm(norms)
    if total == 0:
        used, average, optimum = rows[:, :3].amax(dim=0).tolist()
        return Errors(used, average, optimum, 0.0)
    absolute = torch.where(norms[:, None] > 0, rows[:, :3] * norms[:, None], 0.0)
    used, average, optimum = (torch.linalg.vector_norm(absolute, dim=0) / total).tolist()
    return Errors(used, average, optimum, float(total))
