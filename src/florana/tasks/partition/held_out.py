"""What a client keeps back to test its own model, and what the server keeps back from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ClientSplit:
    """What one client trains on, and what it keeps to test its own model."""

    train: Indices
    test: Indices


def hold_out(count: int, fraction: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Split 0..count−1 at random into (kept, held out); at least one is held out if any can be."""
    order = rng.permutation(count)
    size = min(max(1, round(count * fraction)), count - 1) if count > 1 else 0
    return np.sort(order[size:]), np.sort(order[:size])


def split_clients(
    parts: Sequence[Indices], fraction: float, rng: np.random.Generator
) -> list[ClientSplit]:
    """Hold out a share of every client's own examples."""
    splits = []
    for part in parts:
        kept, held = hold_out(len(part), fraction, rng)
        splits.append(ClientSplit(part[kept], part[held]))
    return splits
