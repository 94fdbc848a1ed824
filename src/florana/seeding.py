"""Randomness that is a function of where it is used: (seed, purpose, round, client).

Nothing in florana draws from a global generator, so a resumed run, or one on another engine, sees
the same partitions, the same sampled clients and the same batches.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *path: int) -> np.random.Generator:
    """A generator for one purpose at one place of a run.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as ``"batches"``; purposes are independent streams.
        path: the place: round, client, ...

    Example:
        >>> int(generator(0, "batches", 3, 1).integers(1000)) == int(generator(0, "batches", 3, 1).integers(1000))
        True
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *path])


def torch_seed(seed: int, purpose: str, *path: int) -> int:
    """The same for what only takes a seed, such as ``torch.manual_seed`` before dropout."""
    return int(generator(seed, purpose, *path).integers(2**63 - 1))
