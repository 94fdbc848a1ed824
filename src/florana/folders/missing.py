"""What stands in for a module that a client has not adapted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from florana.adapter import LoraPair

Missing = Literal["refuse", "zero", "mean"]
"""A module that some clients lack: an error; no change there, ΔW = 0; or the mean over those that have it."""

CHOICES: tuple[Missing, ...] = get_args(Missing)


def unchanged(
    others: Sequence[LoraPair], weights: Sequence[float], weight: Tensor | None
) -> LoraPair:
    r"""A pair that changes nothing, ΔW = 0, and disturbs the others' mean no more than that.

    .. math:: A = \sum_u w_u A_u \big/ \sum_u w_u, \qquad B = 0

    over the clients u that have the module, smaller ranks padded with zeros. So plain averaging's Ā is theirs, and B̄
    alone shrinks. Rank, alpha and kind of scaling are those of the client with the largest rank. For DoRA the
    magnitudes are the lengths of the rows of W.

    Args:
        others: (A_u, B_u) of the clients that have the module; at least one.
        weights: w_u of those; all 0 counts as all equal.
        weight: W (d_out, d_in), for DoRA.

    Example:
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> unchanged([pair], [0.5], None).delta_w().any().item()
        False
    """
    widest = max(others, key=lambda pair: (pair.rank, pair.scaling))
    total = sum(weights)
    shares = [w / total for w in weights] if total > 0 else [1 / len(others)] * len(others)
    A = torch.zeros(widest.A.shape, dtype=torch.float64, device=widest.A.device)
    for pair, share in zip(others, shares, strict=True):
        A[: pair.rank] += share * pair.A.double()
    magnitude = widest.magnitude
    if magnitude is not None and weight is not None:
        lengths: Tensor = torch.linalg.vector_norm(weight.double(), dim=1)
        magnitude = lengths.to(magnitude)
    return replace(widest, A=A.to(widest.A), B=torch.zeros_like(widest.B), magnitude=magnitude)
