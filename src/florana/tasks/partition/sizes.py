"""Quantity skew: how many examples each client gets, whatever they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from florana.errors import DataError

Quantity = Literal["dirichlet", "lognormal"]
"""Laws of the clients' sizes."""


@dataclass(frozen=True, slots=True)
class SizeLaw:
    r"""The law that the clients' sizes are drawn from.

    With U clients, n examples and a least size m, client u gets :math:`m + (n - U m)\, s_u` examples, rounded by
    largest remainders so that they sum to n. The shares s, which sum to 1, are

    - ``dirichlet``: drawn from Dir(β, …, β), after Li et al. (NIID-Bench, arXiv 2102.02079); a small β makes few clients
      large. Their code draws again until nobody is below ten; here the least size is dealt first, so no draw is
      thrown away and any β works.
    - ``lognormal``: :math:`\exp(\sigma z_u)` with standard normal :math:`z_u`, divided by their sum, after Acar et al.
      (FedDyn, arXiv 2111.04263); σ near 0 makes all alike.

    Args:
        name: one of the two above.
        spread: β of ``dirichlet`` or σ of ``lognormal``; positive.

    Raises:
        DataError: if ``spread`` is not a positive number.
    """

    name: Quantity
    spread: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.spread) and self.spread > 0):
            raise DataError(
                f"sizes of clients: the spread of {self.name} is {self.spread!r}, expected a positive number"
            )

    def draw(
        self, count: int, clients: int, least: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Sizes of all clients, which sum to ``count``.

        Args:
            count: number n of examples; at least ``clients * least``.
            clients: number U of clients.
            least: fewest examples m of a client.
            rng: the only source of randomness.

        Example:
            >>> sizes = SizeLaw("lognormal", 1.0).draw(1000, 4, 10, np.random.default_rng(0))
            >>> sizes.tolist(), int(sizes.sum())
            ([227, 178, 373, 222], 1000)
        """
        if self.name == "dirichlet":
            shares = rng.dirichlet(np.full(clients, self.spread))
        else:
            z = self.spread * rng.standard_normal(clients)
            shares = np.exp(z - z.max())  # the largest is 1: no overflow, whatever σ
        sizes: NDArray[np.int64] = least + whole_parts(count - clients * least, shares)
        return sizes


def whole_parts(total: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Integers near ``total * shares / sum(shares)`` that sum to ``total``, by largest remainders.

    Shares that are all zero, as a Dirichlet law of tiny β may give by underflow, count as equal.

    Example:
        >>> whole_parts(10, np.array([1.0, 1.0, 2.0])).tolist()
        [3, 2, 5]
    """
    mass = shares.sum()
    exact = total * (shares / mass if mass > 0 else np.full(len(shares), 1 / len(shares)))
    parts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    short = total - int(parts.sum())
    parts[np.argsort(parts - exact, kind="stable")[:short]] += 1
    return parts
