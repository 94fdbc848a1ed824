r"""Dropout whose masks are a function of where a number stands, not of what is computed beside it.

A number at channel c of token p of a row is dropped by a hash of (the row's key, the place in the model, p, c). The key comes
from a generator of (seed, round, client). A row therefore has the same mask whether it is trained with the rows of one
client or of many, in whatever order and however far the batch is padded; torch's own masks depend on all three. It also
takes a third of the time: a hash of 32 bits decides about two numbers, and all are made at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from florana.training.together.shared import Pass

LEVELS = 2**16
"""A number is dropped with a probability that is a multiple of 1 / LEVELS: the nearest to p."""

GOLDEN, FIRST, SECOND = -1640531535, -2048144789, -1028477387
"""Odd constants of murmur3's finaliser and Knuth's, as int32."""


def mix(x: Tensor) -> Tensor:
    """Scramble int32 numbers in place, so that near ones have unlike results (after murmur3's finaliser)."""
    x ^= (x >> 16) & 0xFFFF
    x *= FIRST
    x ^= (x >> 13) & 0x7FFFF
    x *= SECOND
    return x


def keep(keys: Tensor, site: int, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
    r"""A mask of 0 and 1/q, q the probability to be kept.

    Args:
        keys: (n,) int32, one per row.
        site: which place in the model this is.
        shape: (n, ..., d) of what is masked; an index along any axis but the first is the number's own place.
        p: probability to be dropped.
        dtype: of the mask.

    Returns:
        A mask of that shape. It does not depend on the other rows, nor on how long the axes are.
    """
    place = keys + _wrapped(site * GOLDEN)
    for length in shape[1:-1]:
        place = mix(place[..., None] + _steps(length, keys.device))
    half = (shape[-1] + 1) // 2
    bits = mix(place[..., None] * 31 + _steps(half, keys.device))
    levels = bits.view(torch.int16)[..., : shape[-1]]
    dropped = min(LEVELS - 1, round(p * LEVELS))
    return (levels >= dropped - LEVELS // 2).to(dtype).mul_(LEVELS / (LEVELS - dropped))


def _wrapped(number: int) -> int:
    """The int32 with the same lowest bits."""
    return (number + 2**31) % 2**32 - 2**31


def _steps(length: int, device: torch.device) -> Tensor:
    return torch.arange(1, length + 1, dtype=torch.int32, device=device) * GOLDEN


class KeyedDropout(nn.Module):
    """Stands in the place of ``nn.Dropout`` in training.

    Args:
        p: probability to be dropped.
        site: which place in the model this is.
        shared: has the keys of the rows.
    """

    def __init__(self, p: float, site: int, shared: Pass) -> None:
        super().__init__()
        self.p, self._site, self._shared = p, site, shared

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers and scale up the others."""
        if self.p == 0 or not self.training:
            return x
        keys = self._shared.keys_for(x, self._site)
        return x * keep(keys, self._site, x.shape, self.p, x.dtype)
