"""What every method would lose, by asking every method: no second implementation of any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from florana.adapter import EVERYTHING, Adapter, ClientUpdate, LoraPair
from florana.aggregators import Aggregate, Card, Errors, aggregate, card, cards, plan_of
from florana.aggregators._contract import Starts
from florana.aggregators._errors import together
from florana.config import Variant
from florana.errors import ConfigError
from florana.folders.inspect_values import Loss, Losses

NEAREST = "florana-opt"
"""The method that makes the optimum, for every variant."""


class Means(NamedTuple):
    """The methods to ask, and those that are left out: name -> why."""

    cards: tuple[Card, ...]
    left_out: Mapping[str, str]


class Joined(NamedTuple):
    """Errors of one module, and the norm of its target ‖T‖_F, by which modules are joined."""

    losses: Losses
    norm: float


def chooses(method: Card) -> bool:
    """Whether the method makes a result of any rank asked, with nothing beside it."""
    return method.chooses_rank and not method.keeps_residual


def offline(method: Card) -> str:
    """Why the method makes no sense on finished adapters, or "" where it does.

    A method that trains less than everything, keeps parts at home, pools the data or begins from a pair of its own
    has its say while clients train, and adapters in folders were trained without it.
    """
    made = method.build()
    plans = [plan_of(made, server_round) for server_round in (1, 2)]
    if isinstance(made, Starts):
        return "clients must begin from a pair of its own"
    if any(plan.pooled for plan in plans):
        return "it needs the clients' data"
    if any(plan.home for plan in plans):
        return "clients keep a part at home, so there is no one result"
    if any(plan.train != EVERYTHING for plan in plans):
        return "clients must train by its plan"
    return ""


def chosen(asked: Sequence[str] | None, variant: Variant, mixed_ranks: bool) -> Means:
    """The methods to ask.

    Args:
        asked: names; None for all that can.
        variant: of the adapters.
        mixed_ranks: whether clients have unlike ranks in some module.

    Raises:
        ConfigError: if a name is not known, or a method that was asked for cannot do it; all at once.
    """
    reasons = {name: _reason(method, variant, mixed_ranks) for name, method in cards().items()}
    if asked is None:
        able = tuple(method for name, method in cards().items() if not reasons[name])
        return Means(able, {name: reason for name, reason in reasons.items() if reason})
    wanted = [card(name) for name in dict.fromkeys(asked)]
    refused = [f"{m.name}: {reasons[m.name]}" for m in wanted if reasons[m.name]]
    if refused:
        can = ", ".join(name for name, reason in reasons.items() if not reason)
        raise ConfigError(
            f"methods that cannot merge these adapters: {'; '.join(refused)}; methods that can: {can}"
        )
    return Means(tuple(wanted), {})


def _reason(method: Card, variant: Variant, mixed_ranks: bool) -> str:
    if reason := offline(method):
        return reason
    if variant not in method.variants:
        return f"it has no rule for {variant}"
    if mixed_ranks and not method.mixed_ranks:
        return "it needs one rank for all clients"
    return ""


def module_losses(
    name: str,
    pairs: Sequence[LoraPair],
    weights: Sequence[float],
    ranks: Sequence[int],
    methods: Sequence[Card],
    weight: Tensor | None = None,
) -> tuple[Joined, Aggregate]:
    r"""What each method loses of one module's mean update, relative to ‖T‖_F.

    The pairs may be those of :func:`florana.folders.inspect_measures.compressed`: a method mixes, stacks or
    decomposes factors, and an orthonormal frame around them comes out of it as it went in.

    Args:
        name: the module.
        pairs: the clients' pairs.
        weights: w_u, in their order.
        ranks: ranks of the result; above min(d_out, d_in) nothing is lost that is not lost there.
        methods: whom to ask, see :func:`chosen`.
        weight: the frozen weight W (d_out, d_in), for DoRA and HiRA.

    Returns:
        The losses, and an aggregate of the module that knows T's spectrum.
    """
    updates = [
        ClientUpdate(f"client {u}", w, Adapter({name: pair}))
        for u, (pair, w) in enumerate(zip(pairs, weights, strict=True))
    ]
    base = None if weight is None else {name: weight}
    full = min(pairs[0].shape)

    def made(method: str, rank: int | None = None) -> Aggregate:
        return aggregate(updates, method, rank=rank, base_weights=base)

    own = made(NEAREST)  # plain averaging, the optimum and the spectrum come with any result
    at = {rank: made(NEAREST, min(rank, full)).errors[name] for rank in ranks}
    results: list[Loss] = []
    for method in methods:
        if chooses(method):
            errors = _by_rank(made, method.name, name, ranks, full, at)
            results.append(Loss(method.name, errors))
        else:
            result = made(method.name)
            rank = result.adapter.pairs[name].rank
            results.append(Loss(method.name, {}, result.errors[name].used, rank))
    losses = Losses(
        tuple(ranks),
        {rank: found.optimum for rank, found in at.items()},
        own.errors[name].average,
        tuple(results),
    )
    return Joined(losses, own.errors[name].target_norm), own


def _by_rank(
    made: Callable[[str, int | None], Aggregate],
    method: str,
    module: str,
    ranks: Sequence[int],
    full: int,
    known: Mapping[int, Errors],
) -> dict[int, float]:
    if method == NEAREST:
        return {rank: known[rank].used for rank in ranks}
    return {rank: made(method, min(rank, full)).errors[module].used for rank in ranks}


def join(modules: Sequence[Joined]) -> Losses:
    """Losses of all modules at once: √Σ‖T − X‖² / √Σ‖T‖², every module at the same rank."""
    first = modules[0].losses
    norms = [module.norm for module in modules]

    def over(read: Callable[[Losses], float]) -> float:
        errors = [read(module.losses) for module in modules]
        return together(Errors(e, e, e, n) for e, n in zip(errors, norms, strict=True)).used

    def of(index: int) -> Loss:
        like = [module.losses.methods[index] for module in modules]
        by_rank = {
            rank: over(lambda losses, rank=rank: losses.methods[index].by_rank[rank])  # type: ignore[misc]
            for rank in like[0].by_rank
        }
        if like[0].own is None:
            return Loss(like[0].method, by_rank)
        own = over(lambda losses: losses.methods[index].own or 0.0)
        return Loss(like[0].method, by_rank, own, max(loss.own_rank or 0 for loss in like))

    return Losses(
        first.ranks,
        {rank: over(lambda losses, rank=rank: losses.optimum[rank]) for rank in first.ranks},  # type: ignore[misc]
        over(lambda losses: losses.average),
        tuple(of(index) for index in range(len(first.methods))),
    )
