"""What an inspection found, as frozen values that turn into JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass

from florana.config import Variant


@dataclass(frozen=True, slots=True)
class Loss:
    """What one method would lose: relative errors ‖T − X‖_F / ‖T‖_F, before rounding to a file's dtype.

    Args:
        method: its name.
        by_rank: rank of the result -> error; empty where the method does not choose the rank.
        own: error at the rank that the method arrives at by itself; None where it chooses.
        own_rank: that rank, the largest of all modules.
    """

    method: str
    by_rank: Mapping[int, float]
    own: float | None = None
    own_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """What is lost at each rank.

    Args:
        ranks: the ranks that were asked for, ascending.
        optimum: rank -> the least error of any pair of that rank (Eckart-Young; for HiRA a local optimum).
        average: error of plain averaging of the factors, at the clients' largest rank.
        methods: what each method loses.
    """

    ranks: tuple[int, ...]
    optimum: Mapping[int, float]
    average: float
    methods: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """How the energy ‖T‖_F² is spread over ranks.

    Args:
        energy: cumulative share held by the best 1, 2, … components (of each module, where they are many).
        effective_rank: Roy and Vetterli's, of many modules the mean weighted by their energy.
        rank_90: smallest rank that holds 90 % of the energy, likewise the next two; 0 where T = 0.
        rank_95: of 95 %.
        rank_99: of 99 %.
    """

    energy: tuple[float, ...]
    effective_rank: float
    rank_90: int
    rank_95: int
    rank_99: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Principal angles between the spaces of two clients' updates, or the mean over pairs of clients.

    Args:
        mean_cosine: mean cosine of the angles; over many modules the mean; None where an update is zero.
        largest: the largest angle in degrees, of all modules.
        chance: what the cosines' root mean square would be for spaces drawn at random.
    """

    mean_cosine: float | None
    largest: float | None
    chance: float | None


@dataclass(frozen=True, slots=True)
class Couple:
    """Two clients: their names, the cosines of their updates and of their A as stored, and how their spaces lie."""

    first: str
    second: str
    cosine: float | None
    factor_cosine: float | None
    columns: Overlap
    rows: Overlap


@dataclass(frozen=True, slots=True)
class Client:
    """One client.

    Args:
        name: what of its path tells it from the others.
        weight: w_u.
        ranks: the ranks that its modules have.
        norm: ‖ΔW_u‖_F over all modules.
        relative_norm: that over the median of all clients; None where the median is 0.
        cosine_to_others: cosine with the weighted mean of the others; None for one client or a zero update.
        missing: modules that it lacks.
        unlike: whether it is unlike the others, by the rule of :func:`florana.folders.inspect_advice.notes`.
        note: why, in one sentence, or "".
    """

    name: str
    weight: float
    ranks: tuple[int, ...]
    norm: float
    relative_norm: float | None
    cosine_to_others: float | None
    missing: tuple[str, ...]
    unlike: bool
    note: str


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One module. ``norms``, ``cosines`` and ``ranks`` are in the order of the clients.

    Args:
        name: its name.
        shape: (d_out, d_in).
        ranks: the clients' ranks; None for one that lacks the module.
        norm: ‖T‖_F.
        norms: ‖ΔW_u‖_F.
        cosines: pairwise, None for a zero update.
        agreement: λ, see :func:`florana.folders.inspect_measures.agreement`.
        spectrum: of T.
        losses: of T.
        columns: pairs of clients, the mean of them.
        rows: likewise.
    """

    name: str
    shape: tuple[int, int]
    ranks: tuple[int | None, ...]
    norm: float
    norms: tuple[float, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    agreement: float
    spectrum: Spectrum
    losses: Losses
    columns: Overlap
    rows: Overlap


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A rank and a method, each with its reason in one or two sentences."""

    rank: int
    rank_reason: str
    method: str
    method_reason: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What N adapters have in common, and what it costs to make one of them.

    Args:
        clients: in the order given.
        couples: every two of them.
        cosines: pairwise cosines of the whole updates, all modules as one vector.
        agreement: λ over all modules.
        factor_cosine: mean cosine of the clients' A as stored (of their B where that is larger), entry by entry: 1
            where they share a start and hardly moved, near 0 where each has another; None for one client.
        norm: ‖T‖_F over all modules.
        survives: ‖T‖_F over the weighted mean of the clients' norms: how much of them averaging keeps.
        spectrum: over all modules, each truncated at the same rank.
        losses: over all modules, joined by Frobenius norms.
        left_out: method -> why it has no row.
        columns: principal angles of the column spaces, mean over pairs of clients.
        rows: of the row spaces.
        recommendation: rank and method.
        modules: each module.
        variant: LoRA variant of the adapters.
        compared: what cosines, norms of clients and angles are of.
        base_model: what all adapters are for.
    """

    clients: tuple[Client, ...]
    couples: tuple[Couple, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    agreement: float
    factor_cosine: float | None
    norm: float
    survives: float | None
    spectrum: Spectrum
    losses: Losses
    left_out: Mapping[str, str]
    columns: Overlap
    rows: Overlap
    recommendation: Recommendation
    modules: tuple[ModuleReport, ...]
    variant: Variant
    compared: str
    base_model: str

    def as_dict(self) -> dict[str, object]:
        """Everything as what ``json.dumps`` takes; an error that is infinite (T = 0, result not) becomes None."""
        made = _plain(self)
        assert isinstance(made, dict)
        return made


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
