"""The one loop over modules: checks, weights, the method, and the error report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from florana import lowrank
from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.aggregators._checks import check_ranks, check_residual, check_updates
from florana.aggregators._contract import Method, Module, ModuleResult, build
from florana.errors import AggregationError
from florana.lowrank import Product


class Errors(NamedTuple):
    """How far an aggregate is from the ideal update T, relative to ‖T‖_F.

    ``used`` is what the method made, ``average`` what plain averaging of the factors would have
    made, ``optimum`` the least that any pair of the result's rank can reach. ``target_norm`` is ‖T‖_F.
    """

    used: float
    average: float
    optimum: float
    target_norm: float


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What the server made of one round.

    Args:
        trained: the adapter that clients go on training.
        residual: module -> frozen part of the global update beside ``trained``; empty for most methods.
        weights: client_id -> w_u.
    """

    trained: Adapter
    residual: Mapping[str, Product]
    weights: Mapping[str, float]
    _modules: Sequence[Module] = field(repr=False)

    @cached_property
    def adapter(self) -> Adapter:
        """The whole result as one adapter: ``trained``, with the residual appended to its pairs."""
        return with_residual(self.trained, self.residual)

    @cached_property
    def errors(self) -> Mapping[str, Errors]:
        """Module -> :class:`Errors` of what was really made, rounding included; worked out when first read."""
        return {m.name: _errors(m, self.adapter.pairs[m.name]) for m in self._modules}

    @cached_property
    def error(self) -> Errors:
        """The same over all modules at once: √Σ‖T − X‖² / √Σ‖T‖²."""
        if not self.errors:  # heads alone
            return Errors(0.0, 0.0, 0.0, 0.0)
        rows = torch.tensor(list(self.errors.values()), dtype=torch.float64)
        norms = rows[:, 3]
        total = torch.linalg.vector_norm(norms)
        if total == 0:
            used, average, optimum = rows[:, :3].amax(dim=0).tolist()
            return Errors(used, average, optimum, 0.0)
        absolute = torch.where(norms[:, None] > 0, rows[:, :3] * norms[:, None], 0.0)
        used, average, optimum = (torch.linalg.vector_norm(absolute, dim=0) / total).tolist()
        return Errors(used, average, optimum, float(total))


def with_residual(adapter: Adapter, residual: Mapping[str, Product]) -> Adapter:
    """One adapter whose pairs hold both a trained pair and a frozen residual; ranks add up."""
    if not residual:
        return adapter
    pairs = dict(adapter.pairs)
    for module, product in residual.items():
        pair = pairs[module]
        rank = pair.rank + product.width
        A = torch.cat([pair.A, product.A.to(pair.A.dtype)])
        B = torch.cat([pair.B, (product.B / pair.scaling).to(pair.B.dtype)], dim=1)
        alpha = pair.scaling * (rank**0.5 if pair.rslora else rank)
        pairs[module] = LoraPair(A, B, alpha, pair.rslora)
    return replace(adapter, pairs=pairs)


def _errors(module: Module, made: LoraPair) -> Errors:
    average = module.average.product
    if module.residual is not None:
        average = lowrank.weighted_sum([module.residual, average], [1.0, 1.0])
    return Errors(
        used=lowrank.relative_error(made.product, module.target),
        average=lowrank.relative_error(average, module.target),
        optimum=lowrank.truncation_error(module.svd, module.rank),
        target_norm=float(torch.linalg.vector_norm(module.svd.S)),
    )


def aggregate(
    updates: Sequence[ClientUpdate],
    method: str = "florana-opt",
    rank: int | None = None,
    alpha: float | None = None,
    residual: Mapping[str, Product] | None = None,
    **options: object,
) -> Aggregate:
    r"""Turn the clients' adapters into one.

    The ideal is the weighted mean of the clients' updates, for every adapted module

    .. math:: T = \sum_u w_u s_u B_u A_u, \qquad w_u = n_u / \sum_v n_v

    with n_u = ``num_examples``. Each method says how near to T it comes, and at what cost. Whatever is
    not a LoRA pair (heads, biases) is averaged with the same w_u, without s_u. No matrix of shape
    (d_out, d_in) is formed.

    Args:
        updates: the clients' updates; their order does not matter beyond rounding.
        method: a name from ``florana methods``.
        rank: rank of the result; by default the largest rank of the clients, module by module.
        alpha: alpha of the result; by default that of the client with the largest rank, and among
            those the largest scaling.
        residual: frozen part of the global update from the round before (``Aggregate.residual``),
            for methods that leave one.
        options: the method's own options, such as ``gauge=`` or ``solver=``.

    Returns:
        An :class:`Aggregate` with ``.adapter`` and ``.errors``.

    Raises:
        ConfigError: if the method or an option is not known.
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
    made = build(method, options)
    check_updates(updates)
    check_ranks(updates, method, rank)
    check_residual(residual or {}, updates[0].adapter, method)
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise AggregationError(f"alpha must be a positive finite number, got {alpha}")
    total = sum(u.num_examples for u in updates)
    weights = [u.num_examples / total for u in updates]
    modules = [
        _module(name, updates, weights, rank, alpha, (residual or {}).get(name))
        for name in updates[0].adapter.pairs
    ]
    return _assemble(made, modules, updates, weights)


def _module(
    name: str,
    updates: Sequence[ClientUpdate],
    weights: Sequence[float],
    rank: int | None,
    alpha: float | None,
    residual: Product | None,
) -> Module:
    pairs = [u.adapter.pairs[name] for u in updates]
    # Ties go to the larger scaling, so that the order of clients decides nothing.
    largest = max(range(len(pairs)), key=lambda u: (pairs[u].rank, pairs[u].scaling))
    widest = pairs[largest]
    where = f"module {name}" if rank else f"client {updates[largest].client_id!r}: module {name}"
    rank = rank or widest.rank
    if rank > min(widest.shape):
        raise AggregationError(
            f"{where}: rank {rank} is above min(d_out, d_in) = {min(widest.shape)} of its "
            f"{widest.shape[0]} × {widest.shape[1]} weight; use a smaller rank"
        )
    alpha = widest.alpha if alpha is None else alpha
    return Module(name, pairs, weights, rank, alpha, widest.rslora, residual)


def _assemble(
    method: Method,
    modules: Sequence[Module],
    updates: Sequence[ClientUpdate],
    weights: Sequence[float],
) -> Aggregate:
    first = updates[0].adapter
    pairs: dict[str, LoraPair] = {}
    residual: dict[str, Product] = {}
    for module in modules:
        result = _in_dtype(method(module), module)
        pairs[module.name] = result.pair
        if result.residual is not None:
            residual[module.name] = result.residual
    extras = {
        name: _mean([u.adapter.extras[name] for u in updates], weights) for name in first.extras
    }
    trained = replace(first, pairs=pairs, extras=extras)
    return Aggregate(
        trained,
        residual,
        {u.client_id: w for u, w in zip(updates, weights, strict=True)},
        modules,
    )


def _in_dtype(result: ModuleResult, module: Module) -> ModuleResult:
    """Cast once, at the boundary, back to the dtype the clients sent."""
    like = module.pairs[0]
    pair = replace(result.pair, A=result.pair.A.to(like.A), B=result.pair.B.to(like.B))
    if not (torch.isfinite(pair.A).all() and torch.isfinite(pair.B).all()):
        raise AggregationError(
            f"module {module.name}: the result does not fit into {like.A.dtype} at alpha "
            f"{module.alpha:g}; ask for a larger alpha, or send float32"
        )
    if result.residual is None:
        return ModuleResult(pair)
    B, A = result.residual
    return ModuleResult(pair, Product(B.to(like.B), A.to(like.A)))


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    mean = sum(w * t.double() for w, t in zip(weights, tensors, strict=True))
    assert isinstance(mean, Tensor)
    return mean.to(tensors[0])
