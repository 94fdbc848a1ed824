"""Which client is unlike the others, and which rank and method to take: stated rules, with their reasons in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from florana.folders.inspect_losses import NEAREST
from florana.folders.inspect_values import Losses, Recommendation, Spectrum

ENERGY = 0.95
"""Share of the mean update's energy that the recommended rank holds."""

ROBUST = 3.5 * 1.4826
"""Median absolute deviations away from the median that are unusual (Iglewicz and Hoaglin, 1993)."""

LEAST_COSINE = 0.1
"""A cosine less far below the median than this is never unusual, however alike the others are."""

LEAST_RATIO = 2.0
"""A norm within this ratio of the median is never unusual."""

FAR_RATIO = 10.0
"""A norm this many times another is always told."""

AGREE = 0.5
"""From this share in common on, clients agree."""

COMMON_START = 0.1
"""From this mean cosine of the clients' A on, they began from one A. Of random ones it is about 1 / √(r d_in)."""

CAUTIOUS = "florana-blend"
"""The method that stays with plain averaging where clients do not agree."""


class Note(NamedTuple):
    """Whether a client is unlike the others, and a sentence on it, or ""."""

    unlike: bool
    text: str


def notes(
    cosines: Sequence[float | None],
    norms: Sequence[float],
    starts: Sequence[float | None] = (),
) -> list[Note]:
    r"""What is unusual about each client.

    With three clients or more, client u is unlike the others where its cosine c_u to the mean of the others, or the
    logarithm of its norm, is far from the median by a rule that the odd one cannot bend,

    .. math:: c_u < \mathrm{med}(c) - \max(0.1,\ 3.5 \cdot 1.4826 \cdot \mathrm{MAD}(c)), \qquad
              |\ln n_u - \mathrm{med}(\ln n)| > \max(\ln 2,\ 3.5 \cdot 1.4826 \cdot \mathrm{MAD}(\ln n)),

    or where its update is zero, or where its A has a cosine below 0.1 to half of the others' A or more while most
    clients' have not: it began elsewhere, and plain averaging cannot follow. 1.4826 makes the median absolute deviation the standard deviation of a normal
    sample. The least deviations are there because with few clients the MAD can be as small as chance has it. A norm
    ten times the others' median, or a tenth of it, is told of two clients too, where nobody can say which is odd.

    Args:
        cosines: c_u; None where it is not defined.
        norms: n_u.
        starts: the median cosine of each client's A with the others'; empty where it is not known.

    Source: Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993.

    Example:
        >>> [note.unlike for note in notes([0.8, 0.78, 0.79, 0.1], [1.0, 1.1, 0.9, 1.0])]
        [False, False, False, True]
    """
    known = [c for c in cosines if c is not None]
    logs = [math.log(n) for n in norms if n > 0]
    floor = _usual(known, LEAST_COSINE) if len(known) > 2 else (-math.inf, math.inf)
    around = _usual(logs, math.log(LEAST_RATIO)) if len(logs) > 2 else (-math.inf, math.inf)
    alone = _began_elsewhere(starts) if len(norms) > 2 else frozenset()
    found = []
    for u, (cosine, norm) in enumerate(zip(cosines, norms, strict=True)):
        said = []
        if norm == 0 and any(norms):
            said.append("its update is zero, so it only shortens the mean")
        odd = bool(said) and len(norms) > 2
        if cosine is not None and cosine < floor[0]:
            odd = True
            usual = median(known)
            said.append(
                f"it points elsewhere: cosine {cosine:.2f} to the mean of the others, where {usual:.2f} is usual"
            )
        ratio = _ratio(norms, u)
        unusual = norm > 0 and not around[0] <= math.log(norm) <= around[1]
        if ratio is not None and (unusual or not 1 / FAR_RATIO < ratio < FAR_RATIO):
            odd = odd or unusual
            said.append(f"its update is {ratio:.2g} times as long as the others'")
        if u in alone:
            odd = True
            said.append(
                "its A began elsewhere than the others', so averaging factors does not fit it"
            )
        found.append(Note(odd, "; ".join(said)))
    return found


def _began_elsewhere(starts: Sequence[float | None]) -> frozenset[int]:
    """Clients whose A have no start in common with the others, where most have."""
    known = [start for start in starts if start is not None]
    if not known or median(known) < COMMON_START:
        return frozenset()
    return frozenset(
        u for u, start in enumerate(starts) if start is not None and start < COMMON_START
    )


def _usual(values: Sequence[float], least: float) -> tuple[float, float]:
    """The interval around the median that is usual."""
    middle = median(values)
    spread = max(least, ROBUST * median(abs(v - middle) for v in values))
    return middle - spread, middle + spread


def _ratio(norms: Sequence[float], u: int) -> float | None:
    """Norm of client u over the median of the others'; None where one of the two is 0."""
    others = [n for v, n in enumerate(norms) if v != u]
    usual = median(others) if others else 0.0
    return norms[u] / usual if usual > 0 and norms[u] > 0 else None


def recommend(
    spectrum: Spectrum,
    losses: Losses,
    clients: int,
    rank: int,
    agreement: float,
    factor_cosine: float | None,
) -> Recommendation:
    """A rank and a method.

    **Rank**: the smallest that holds 95 % of the energy ‖T‖_F² of the mean update over all modules, each truncated at
    it. What is cut off is orthogonal to what is kept, so the merged update points within arccos √0.95 = 12.9° of the
    mean and is 2.5 % shorter, whatever the spectrum looks like; its error is at most √0.05 = 0.22. No elbow is
    looked for: spectra of merged adapters fall without one. Of the ranks asked for nothing is assumed; every
    rank is looked at.

    **Method**: ``florana-opt``, the nearest pair, where the clients agree (λ of 0.5 or more) or where their A
    have no common start (mean cosine below 0.1), since plain averaging, and what is built on it, mixes unrelated
    directions then. Where
    they share a start and do not agree, ``florana-blend``: one round of such clients is what docs/evidence.md measures,
    and there nearer was not always better. Distances cannot tell which of the two is more accurate; held-out text can.

    Args:
        spectrum: over all modules.
        losses: over all modules.
        clients: how many.
        rank: the clients' largest rank.
        agreement: λ over all modules.
        factor_cosine: mean cosine of the clients' A.
    """
    if not spectrum.energy:
        return Recommendation(
            rank,
            "The mean update is zero, so no rank loses anything.",
            NEAREST,
            "The mean update is zero, so no method loses anything.",
        )
    chosen = spectrum.rank_95
    held = spectrum.energy[min(rank, len(spectrum.energy)) - 1]
    reason = "the smallest that holds 95 % of the mean update's energy (error 0.22 at most)"
    reason += f"; the clients' rank {rank} holds {100 * held:.0f} %." if rank != chosen else "."
    method, why = _method(clients, agreement, factor_cosine, losses.average)
    return Recommendation(chosen, reason, method, why)


def _method(
    clients: int, agreement: float, factor_cosine: float | None, average: float
) -> tuple[str, str]:
    if clients == 1:
        return NEAREST, "there is one adapter, and this cuts it to a rank with the least loss."
    if agreement >= AGREE:
        return (
            NEAREST,
            f"the clients agree ({agreement:.2f} of the mean update is common to them), and this is the nearest to it.",
        )
    if factor_cosine is None or factor_cosine < COMMON_START:
        cosine = "unknown" if factor_cosine is None else f"{factor_cosine:.2f}"
        return (
            NEAREST,
            f"the clients' A have no common start (mean cosine {cosine}), so averaging factors mixes unrelated "
            f"directions (error {average:.2f}); this does not depend on the factors.",
        )
    return (
        CAUTIOUS,
        f"the clients share a start but agree little ({agreement:.2f} of the mean update is common to them): what plain "
        "averaging misses may be their drift, and nearer was not always more accurate (docs/evidence.md). "
        f"{NEAREST} is the nearest; try both on held-out text.",
    )
