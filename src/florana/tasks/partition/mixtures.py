"""Label skew and quantity skew at once: clients of given sizes, each with a mixture of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from florana.tasks.partition.held_out import Indices
from florana.tasks.partition.sizes import whole_parts


def mixtures(
    members: Sequence[Indices],
    sizes: NDArray[np.int64],
    alpha: float,
    rng: np.random.Generator,
) -> list[Indices]:
    r"""Clients of given sizes draw from the kinds by Dirichlet mixtures of their own.

    Client u draws :math:`q_u \sim \mathrm{Dir}(\alpha K p)` over the K kinds, :math:`p_k` being the frequency of kind
    k, and then takes ``sizes[u]`` examples without replacement, as near to that mixture as whole numbers are; when a
    kind runs out, the mixture is renormalised over those left. Clients take in a random order, since the last one gets
    what is left.

    Source: Hsu et al. (arXiv 1909.06335); their concentration is α p, ours α K p, so that with equally frequent kinds it
    is Dir(α, …, α), as in FedDyn (arXiv 2111.04263), and α means what it means without sizes.

    Args:
        members: K arrays of example indices, one for every kind.
        sizes: U sizes, which sum to the number of examples.
        alpha: α > 0.
        rng: the only source of randomness.

    Returns:
        U arrays of indices, disjoint, that cover everything.
    """
    stock = np.array([len(kind) for kind in members])
    concentration = np.maximum(alpha * len(stock) * stock / stock.sum(), np.finfo(np.float64).tiny)
    mixed = [rng.permutation(kind) for kind in members]
    parts: list[Indices] = [np.array([], dtype=np.int64)] * len(sizes)
    dealt = np.zeros(len(stock), dtype=np.int64)
    for client in rng.permutation(len(sizes)):
        taken = _take(int(sizes[client]), stock - dealt, rng.dirichlet(concentration))
        pieces = [kind[at : at + t] for kind, at, t in zip(mixed, dealt, taken, strict=True)]
        parts[client] = np.concatenate(pieces)
        dealt += taken
    return parts


def _take(size: int, stock: NDArray[np.int64], mixture: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of each kind, ``size`` in all and none above its stock; ends after K + 1 passes at most."""
    taken = np.zeros_like(stock)
    while (short := size - int(taken.sum())) > 0:
        left = stock - taken
        shares = np.where(left > 0, mixture, 0.0)
        if shares.sum() <= 0:  # nothing that the mixture asks for is left
            shares = left.astype(np.float64)
        taken += np.minimum(whole_parts(short, shares), left)
    return taken
