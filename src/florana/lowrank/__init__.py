"""Linear algebra on products that stay in factored form.

A matrix of shape (d_out, d_in) is kept as ``Product(B, A)`` with B of shape (d_out, k) and A of
shape (k, d_in); its value is ``B @ A``. Nothing here forms it, unless it takes no more numbers than its
factors do. Everything that decides a reported error is computed in float64, since the factors are thin.

- :mod:`~florana.lowrank.products`: sums, norms and distances.
- :mod:`~florana.lowrank.decomposition`: the singular value decomposition, by QR or by Gram matrices.
- :mod:`~florana.lowrank.gauges`: one product split into two factors.
- :mod:`~florana.lowrank.streaming`: sums of so many products that their stack is too large to keep.

This package knows tensors only: no adapters, no clients, no files.
"""

from __future__ import annotations

from florana.lowrank.decomposition import Svd, svd, takes_grams, truncation_error
from florana.lowrank.gauges import ALIGNMENT_FLOOR, GAUGES, Gauge, split
from florana.lowrank.products import (
    Grams,
    Product,
    add,
    compact,
    distance,
    inner,
    norm,
    pad,
    relative_error,
    weighted_sum,
)
from florana.lowrank.streaming import StreamedSvd, Terms, streamed_mean, streamed_svd

__all__ = [
    "ALIGNMENT_FLOOR",
    "GAUGES",
    "Gauge",
    "Grams",
    "Product",
    "StreamedSvd",
    "Svd",
    "Terms",
    "add",
    "compact",
    "distance",
    "inner",
    "norm",
    "pad",
    "relative_error",
    "split",
    "streamed_mean",
    "streamed_svd",
    "svd",
    "takes_grams",
    "truncation_error",
    "weighted_sum",
]
