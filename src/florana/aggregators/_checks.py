"""What is refused before anything is aggregated, and in which words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from florana.adapter import Adapter, ClientUpdate, first_non_finite
from florana.aggregators._contract import card, cards
from florana.errors import AdapterError, AggregationError
from florana.lowrank import Product


def check_updates(updates: Sequence[ClientUpdate]) -> None:
    """Refuse updates that cannot be combined.

    Raises:
        AggregationError: naming the client, the module, what came and what was expected.
    """
    if not updates:
        raise AggregationError("there are no client updates to aggregate")
    seen: set[str] = set()
    for update in updates:
        if update.client_id in seen:
            raise AggregationError(
                f"client {update.client_id!r} appears twice; give every update its own client_id"
            )
        seen.add(update.client_id)
        try:
            check_compatible(update.adapter, updates[0].adapter)
            check_finite(update.adapter)
        except AdapterError as error:
            raise AggregationError(f"client {update.client_id!r}: {error}") from error
    total = sum(u.num_examples for u in updates)
    if not 0 < total < math.inf:
        raise AggregationError(
            f"the clients' num_examples sum to {total:g}; expected a finite number above 0"
        )


def check_finite(adapter: Adapter) -> None:
    """Refuse NaN and infinity.

    Raises:
        AdapterError: naming the first tensor that holds one.
    """
    name = first_non_finite(adapter)
    if name is not None:
        raise AdapterError(f"{name} holds NaN or infinity; leave this client out or train it again")


def check_compatible(adapter: Adapter, reference: Adapter) -> None:
    """Refuse an adapter for another base, other modules, shapes or dtypes; ranks may differ.

    Raises:
        AdapterError: naming the module, what came and what was expected.
    """
    for what, came, expected in (
        ("base model", adapter.base_model, reference.base_model),
        ("base model hash", adapter.base_hash, reference.base_hash),
    ):
        if came != expected:
            raise AdapterError(f"{what} is {came!r}, expected {expected!r}")
    _check_names("module", adapter.pairs, reference.pairs)
    _check_names("parameter", adapter.extras, reference.extras)
    for name, pair in adapter.pairs.items():
        expected_pair = reference.pairs[name]
        if pair.shape != expected_pair.shape:
            raise AdapterError(
                f"module {name} updates a {pair.shape} weight, expected {expected_pair.shape}"
            )
        for factor in ("A", "B"):
            _check_dtype(
                f"module {name}, factor {factor}",
                getattr(pair, factor),
                getattr(expected_pair, factor),
            )
    for name, tensor in adapter.extras.items():
        expected_tensor = reference.extras[name]
        if tensor.shape != expected_tensor.shape:
            raise AdapterError(
                f"parameter {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(expected_tensor.shape)}"
            )
        _check_dtype(f"parameter {name}", tensor, expected_tensor)


def _check_names(kind: str, came: Mapping[str, object], expected: Mapping[str, object]) -> None:
    missing, unknown = expected.keys() - came.keys(), came.keys() - expected.keys()
    if missing or unknown:
        parts = [f"lacks {kind} {name}" for name in sorted(missing)[:3]]
        parts += [f"has {kind} {name} that the others do not" for name in sorted(unknown)[:3]]
        raise AdapterError("; ".join(parts) + "; all clients must adapt the same modules")


def _check_dtype(where: str, came: Tensor, expected: Tensor) -> None:
    if came.dtype != expected.dtype:
        raise AdapterError(f"{where} is {came.dtype}, expected {expected.dtype}")


def check_ranks(updates: Sequence[ClientUpdate], method: str, rank: int | None) -> None:
    """Refuse unlike ranks, or another rank for the result, where the method cannot have them."""
    chosen = card(method)
    if rank is not None and rank < 1:
        raise AggregationError(f"rank must be 1 or more, got {rank}")
    for name in updates[0].adapter.pairs:
        ranks = {u.adapter.pairs[name].rank for u in updates}
        if len(ranks) > 1 and not chosen.mixed_ranks:
            able = ", ".join(c.name for c in cards().values() if c.mixed_ranks)
            raise AggregationError(
                f"module {name}: clients have ranks {sorted(ranks)}, and {method} needs one rank for "
                f"all; methods that take unlike ranks: {able}"
            )
        if rank not in (None, max(ranks)) and not chosen.chooses_rank:
            able = ", ".join(c.name for c in cards().values() if c.chooses_rank)
            raise AggregationError(
                f"module {name}: clients have rank {max(ranks)}, and {method} keeps it, so rank {rank} "
                f"cannot be had; methods that can choose the rank: {able}"
            )


def check_residual(residual: Mapping[str, Product], reference: Adapter, method: str) -> None:
    """Refuse a residual that the method would drop, or that does not fit the clients' modules.

    Raises:
        AggregationError: naming the module, what came and what was expected.
    """
    if residual and not card(method).keeps_residual:
        able = ", ".join(c.name for c in cards().values() if c.keeps_residual)
        raise AggregationError(
            f"{method} keeps no residual and would drop the one it was given; methods that keep it: {able}"
        )
    for name, product in residual.items():
        if name not in reference.pairs:
            raise AggregationError(
                f"the residual is of module {name!r}, which the clients do not adapt"
            )
        shape = (product.B.shape[0], product.A.shape[1])
        if shape != reference.pairs[name].shape:
            raise AggregationError(
                f"module {name}: the residual is of shape {shape}, expected {reference.pairs[name].shape}"
            )
