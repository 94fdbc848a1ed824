"""The one loop over modules: checks, weights, the method, and the error report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from florana import lowrank
from florana.adapter import EVERYTHING, ClientUpdate, LoraPair, Plan
from florana.aggregators._check_state import check_state
from florana.aggregators._checks import (
    check_base_weights,
    check_ranks,
    check_server,
    check_start,
    check_updates,
)
from florana.aggregators._contract import Method, Module, ModuleResult, Wants, plan_of
from florana.aggregators._errors import Errors as Errors
from florana.aggregators._registry import able, build, card
from florana.aggregators._result import Aggregate, View
from florana.aggregators._server import Memory, aim
from florana.aggregators._state import GlobalState, add_increment, in_dtype_of
from florana.aggregators._variants import Form, LoraForm, dora_form, hira_form
from florana.config import ServerConfig
from florana.errors import AggregationError
from florana.lowrank import Product


def aggregate(
    updates: Sequence[ClientUpdate],
    method: str = "florana-opt",
    rank: int | None = None,
    alpha: float | None = None,
    state: GlobalState | None = None,
    server: ServerConfig | None = None,
    base_weights: Mapping[str, Tensor] | None = None,
    **options: object,
) -> Aggregate:
    r"""Turn the clients' adapters into one.

    The ideal is the weighted mean of the clients' updates, for every adapted module

    .. math:: T = \sum_u w_u s_u B_u A_u, \qquad w_u = n_u / \sum_v n_v

    with n_u = ``num_examples``. Each method says how near to T it comes, and at what cost. Whatever is
    not a LoRA pair (heads, biases) is averaged with the same w_u, without s_u. No matrix of shape
    (d_out, d_in) is formed, except for HiRA.

    For DoRA and HiRA the ideal is the mean of the clients' whole weights, and follows from the frozen weight W:
    :math:`\bar D W + \sum_u w_u s_u D_u B_u A_u` with :math:`\bar D = \sum_u w_u D_u`, and
    :math:`W + W \odot \sum_u w_u B_u A_u`. DoRA's magnitudes come out so that the rows' scales are D̄ again.

    Args:
        updates: the clients' updates; their order does not matter beyond rounding.
        method: a name from ``florana methods``.
        rank: rank of the result; by default that of ``state``, or else the largest rank of the
            clients, module by module.
        alpha: alpha of the result; by default that of ``state``, or else that of the client with the
            largest rank, and among those the largest scaling.
        state: what the server knows from the rounds before; without it this is a round of its own.
            ``state.after(result)`` is the state for the next round.
        server: add-ons to the target, such as a step size; none by default.
        base_weights: module -> frozen weight W (d_out, d_in), without anything added to it; needed for DoRA and
            HiRA only.
        options: the method's own options, such as ``gauge=`` or ``solver=``.

    Returns:
        An :class:`Aggregate` with ``.adapter`` and ``.errors``.

    Raises:
        ConfigError: if the method or an option is not known, or the method cannot aggregate this variant.
        AggregationError: if the updates do not fit together, hold NaN or infinity, or the method
            cannot do what is asked; the message names client and module.

    Example:
        >>> import torch, florana
        >>> def client(name, seed):
        ...     g = torch.Generator().manual_seed(seed)
        ...     pair = florana.LoraPair(torch.randn(2, 6, generator=g), torch.randn(5, 2, generator=g), alpha=4)
        ...     return florana.ClientUpdate(name, 100, florana.Adapter({"layer": pair}))
        >>> result = florana.aggregate([client("a", 0), client("b", 1)], method="florana-opt")
        >>> e = result.errors["layer"]
        >>> abs(e.used - e.optimum) < 1e-6 < e.average
        True
    """
    made, server = build(method, options), server or ServerConfig()
    check_updates(updates)
    check_ranks(updates, method, rank)
    variant = updates[0].adapter.variant
    check_server(server, method, variant)
    check_base_weights(updates[0].adapter, base_weights)
    if alpha is not None and variant == "hira":
        raise AggregationError(f"HiRA has no alpha, got alpha = {alpha:g}; leave it out")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise AggregationError(f"alpha must be a positive finite number, got {alpha}")
    plan = plan_of(made, state.server_round + 1 if state else 1)
    start = state.adapter if state else updates[0].adapter
    if state is not None:
        check_state(state, updates, method, plan, alpha)
    if plan.train != EVERYTHING:
        check_start(updates, start, plan)
    total = sum(u.num_examples for u in updates)
    weights = [u.num_examples / total for u in updates]
    fitted = card(method).fits_target
    if state is None and server.step_size != 1 and not fitted:
        raise AggregationError(
            f"server.step_size: {method} steps from the factors that the round began with, and they are not known "
            f"without state; pass state, or use one of {able(lambda c: c.fits_target)}"
        )

    def look(name: str) -> View:
        weight, step_size = (base_weights or {}).get(name), server.step_size if fitted else None
        return _view(name, updates, weights, rank, alpha, state, step_size, weight)

    return _assemble(made, fitted, look, updates, weights, state, server, plan)


def _view(
    name: str,
    updates: Sequence[ClientUpdate],
    weights: Sequence[float],
    rank: int | None,
    alpha: float | None,
    state: GlobalState | None,
    step_size: float | None,
    weight: Tensor | None,
) -> View:
    """One module of all clients, before anything is aimed at; ``step_size`` is None for methods that average."""
    pairs = [u.adapter.pairs[name] for u in updates]
    # Ties go to the larger scaling, so that the order of clients decides nothing.
    largest = max(range(len(pairs)), key=lambda u: (pairs[u].rank, pairs[u].scaling))
    start = state.adapter.pairs[name] if state else None
    widest = start or pairs[largest]
    where = f"module {name}" if rank else f"client {updates[largest].client_id!r}: module {name}"
    rank = rank or widest.rank
    if rank > min(widest.shape):
        raise AggregationError(
            f"{where}: rank {rank} is above min(d_out, d_in) = {min(widest.shape)} of its "
            f"{widest.shape[0]} × {widest.shape[1]} weight; use a smaller rank"
        )
    if alpha is None:
        alpha = float(rank) if widest.hadamard else widest.alpha
    residual = state.residual.get(name) if state else None
    form: Form = LoraForm(pairs, start, residual)
    if weight is not None and widest.variant == "hira":
        form = hira_form(pairs, start, residual, weight)
    if weight is not None and widest.variant == "dora":
        plain = Module(name, pairs, weights, rank, alpha, widest.rslora).average
        try:
            form = dora_form(pairs, weights, start, residual, weight, plain, step_size)
        except AggregationError as error:
            raise AggregationError(f"module {name}: {error}") from error
    module = Module(
        name,
        form.pairs,
        weights,
        rank,
        alpha,
        widest.rslora,
        form.residual,
        form.start,
        state.initial.pairs[name] if state else None,
        metric=form.metric,
    )
    return View(module, form)


def _aimed(
    view: View, method: Method, state: GlobalState | None, server: ServerConfig
) -> tuple[Module, Product | None]:
    """The module with what the method and the server's add-ons aim at, and the add-ons' new momentum."""
    module, form = view
    if isinstance(method, Wants):
        module = replace(module, aim=method.wanted(module))
    if not server.changes_target:
        return module, None
    memory = state.memory.get(module.name, Memory()) if state else Memory()
    origin = form.start.product if form.start else None
    clients, average = [p.product for p in form.pairs], module.average.product
    aimed, momentum = aim(clients, module.weights, origin, memory, server, average, module.goal)
    return replace(module, aim=aimed), momentum


def _assemble(
    method: Method,
    fits_target: bool,
    look: Callable[[str], View],
    updates: Sequence[ClientUpdate],
    weights: Sequence[float],
    state: GlobalState | None,
    server: ServerConfig,
    plan: Plan,
) -> Aggregate:
    first = updates[0].adapter
    # One module after the other: a stack of all clients' factors is large.
    made = {
        name: _one(look(name), first.pairs[name], method, fits_target, state, server)
        for name in first.pairs
    }
    increment = {n: m.increment for n, m in made.items() if m.increment is not None}
    extras = {name: _mean(partial(_each, updates, name), weights) for name in first.extras}
    trained = replace(first, pairs={name: m.pair for name, m in made.items()}, extras=extras)
    if state is not None:  # what was not sent stays as it was, to the bit
        trained = trained.with_tensors(state.adapter.tensors(EVERYTHING - plan.sent))
    return Aggregate(
        trained,
        increment,
        add_increment(state.residual if state else {}, increment),
        {u.client_id: w for u, w in zip(updates, weights, strict=True)},
        {name: m.memory for name, m in made.items() if m.memory is not None},
        look,
        {name: m.solved for name, m in made.items()},
        state is None or not plan.home,
    )


class _One(NamedTuple):
    """What became of one module, without the clients' factors."""

    pair: LoraPair
    increment: Product | None
    memory: Memory | None
    solved: Mapping[str, lowrank.Svd | Product]


def _one(
    view: View,
    like: LoraPair,
    method: Method,
    fits_target: bool,
    state: GlobalState | None,
    server: ServerConfig,
) -> _One:
    module, momentum = _aimed(view, method, state, server)
    result = _in_dtype(view.form.finish(method(module)), module, like)
    if module.aim is not None and not fits_target and state is not None:
        start = state.adapter.pairs[module.name]
        result = result._replace(pair=_step(start, result.pair, server.step_size))
    memory = None
    if server.momentum > 0 or server.error_feedback:
        carried = _cut_off(module, result) if server.error_feedback else None
        memory = Memory(momentum, carried)
    return _One(result.pair, result.increment, memory, module.solved)


def _step(start: LoraPair, mean: LoraPair, step_size: float) -> LoraPair:
    """A method that averages factors takes the server's step on the factors: X_0 + η (X̄ − X_0)."""
    A = torch.lerp(start.A.double(), mean.A.double(), step_size).to(mean.A)
    B_0 = start.B.double() * (start.scaling / mean.scaling)
    B = torch.lerp(B_0, mean.B.double(), step_size).to(mean.B)
    if start.magnitude is None or mean.magnitude is None:
        return replace(mean, A=A, B=B)
    m = torch.lerp(start.magnitude.double(), mean.magnitude.double(), step_size)
    return replace(mean, A=A, B=B, magnitude=m.to(mean.magnitude))


def _cut_off(module: Module, result: ModuleResult) -> Product:
    """What the result lacks of the goal, to be asked for again in the next round."""
    made = [result.pair.product, *([result.increment] if result.increment is not None else [])]
    whole = lowrank.weighted_sum(made, [1.0] * len(made))
    return lowrank.add(module.goal, Product(-whole.B, whole.A))


def _in_dtype(result: ModuleResult, module: Module, like: LoraPair) -> ModuleResult:
    """Cast once, at the boundary, back to the dtype the clients sent."""
    pair, increment = in_dtype_of(result.pair, like), None
    tensors = [t for t in (pair.A, pair.B, pair.magnitude) if t is not None]
    if result.increment is not None:
        B, A = lowrank.compact(result.increment)
        increment = Product(B.to(like.B), A.to(like.A))
        tensors += increment
    if not all(torch.isfinite(t).all() for t in tensors):
        raise AggregationError(
            f"module {module.name}: the result does not fit into {like.A.dtype} at alpha "
            f"{module.alpha:g}; ask for a larger alpha, or send float32"
        )
    return ModuleResult(pair, increment)


def _each(updates: Sequence[ClientUpdate], name: str) -> Iterator[Tensor]:
    return (update.adapter.extras[name] for update in updates)


def _mean(tensors: Callable[[], Iterable[Tensor]], weights: Sequence[float]) -> Tensor:
    """The weighted mean of the clients' tensors, which are gone through twice, one at a time."""
    first = next(iter(tensors()))
    if all(torch.equal(tensor, first) for tensor in tensors()):
        return first.clone()  # to the bit, in float64 too
    mean = torch.zeros_like(first, dtype=torch.float64)
    for w, tensor in zip(weights, tensors(), strict=True):
        mean += w * tensor.double()
    return mean.to(first)
