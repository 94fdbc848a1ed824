"""What is refused before anything is aggregated, and in which words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from florana.adapter import EVERYTHING, OF_A_PAIR, Adapter, ClientUpdate, Plan, first_non_finite
from florana.aggregators._contract import plan_of
from florana.aggregators._registry import Card, able, card
from florana.config import ServerConfig, Variant
from florana.errors import AdapterError, AggregationError, ConfigError

NAMES: Mapping[Variant, str] = {"lora": "LoRA", "dora": "DoRA", "hira": "HiRA"}
"""The variants as people write them."""


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
            _ = update.adapter.variant  # one throughout
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
    _check_same_form(adapter, reference)
    for name, pair in adapter.pairs.items():
        expected_pair = reference.pairs[name]
        if pair.shape != expected_pair.shape:
            raise AdapterError(
                f"module {name} updates a {pair.shape} weight, expected {expected_pair.shape}"
            )
        if pair.variant != expected_pair.variant:
            raise AdapterError(
                f"module {name} is {NAMES[pair.variant]}, expected {NAMES[expected_pair.variant]}"
            )
        for factor in OF_A_PAIR:
            came_tensor, expected_tensor = getattr(pair, factor), getattr(expected_pair, factor)
            if came_tensor is not None and expected_tensor is not None:
                _check_dtype(f"module {name}, factor {factor}", came_tensor, expected_tensor)
    for name, tensor in adapter.extras.items():
        expected_tensor = reference.extras[name]
        if tensor.shape != expected_tensor.shape:
            raise AdapterError(
                f"parameter {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(expected_tensor.shape)}"
            )
        _check_dtype(f"parameter {name}", tensor, expected_tensor)


def _check_same_form(adapter: Adapter, reference: Adapter) -> None:
    """What shapes alone do not show: how PEFT stores a module, and settings that change what a tensor stands for."""
    for module in sorted(adapter.layouts.keys() | reference.layouts.keys()):
        if adapter.layouts.get(module) != reference.layouts.get(module):
            raise AdapterError(
                f"module {module} is stored as {adapter.layouts.get(module)}, expected "
                f"{reference.layouts.get(module)}; all clients must adapt the same model"
            )
    for setting in ("layer_replication", "trainable_token_indices"):
        came, expected = adapter.peft_config.get(setting), reference.peft_config.get(setting)
        if came != expected:
            raise AdapterError(
                f"{setting} is {came}, expected {expected}; train all clients with one setting"
            )


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
            raise AggregationError(
                f"module {name}: clients have ranks {sorted(ranks)}, and {method} needs one rank for "
                f"all; methods that take unlike ranks: {able(lambda c: c.mixed_ranks)}"
            )
        if rank not in (None, max(ranks)) and not chosen.chooses_rank:
            raise AggregationError(
                f"module {name}: clients have rank {max(ranks)}, and {method} keeps it, so rank {rank} "
                f"cannot be had; methods that can choose the rank: {able(lambda c: c.chooses_rank)}"
            )


def check_server(server: ServerConfig, method: str, variant: Variant = "lora") -> None:
    """Refuse a variant of LoRA that the method does not have, and add-ons that do not combine with the two.

    Raises:
        ConfigError: naming what was asked for, and the methods that can.
    """
    chosen, wanted = card(method), _fitting_add_ons(server)
    if variant not in chosen.variants:
        raise ConfigError(
            f"{method} cannot aggregate {NAMES[variant]}; methods that can: "
            f"{able(lambda c: variant in c.variants)}"
        )
    if wanted and not chosen.fits_target:
        raise ConfigError(
            f"server.{', server.'.join(wanted)}: {method} averages factors and fits nothing to a target, so this "
            f"cannot change its result; methods that can: {able(lambda c: c.fits_target)}"
        )
    if wanted and variant == "dora":
        raise ConfigError(
            f"server.{', server.'.join(wanted)}: DoRA's rows are scaled anew in every round, and what the server "
            "remembers of products does not follow; use server.step_size, or LoRA or HiRA"
        )


def _fitting_add_ons(server: ServerConfig) -> list[str]:
    """The add-ons that are on, but for the step size, which every method can take."""
    switches = {
        "momentum": server.momentum > 0,
        "shrinkage": server.shrinkage != "none",
        "error_feedback": server.error_feedback,
    }
    return [name for name, on in switches.items() if on]


def check_base_weights(adapter: Adapter, base_weights: Mapping[str, Tensor] | None) -> None:
    """Refuse DoRA and HiRA without the frozen weights that their updates follow from.

    Raises:
        AggregationError: naming the module, what came and what was expected.
    """
    if adapter.variant == "lora":
        return
    for name, pair in adapter.pairs.items():
        weight = (base_weights or {}).get(name)
        expected = f"base_weights[{name!r}] of shape {pair.shape}, the base model's frozen weight"
        if weight is None:
            raise AggregationError(
                f"module {name}: the mean of {NAMES[adapter.variant]} updates follows from the frozen weight, "
                f"which is not given; pass {expected}"
            )
        if tuple(weight.shape) != pair.shape or not weight.is_floating_point():
            raise AggregationError(
                f"module {name}: the frozen weight given is {weight.dtype} of shape {tuple(weight.shape)}; "
                f"expected {expected}, in floating point"
            )
        if not torch.isfinite(weight).all():
            raise AggregationError(f"module {name}: the frozen weight given holds NaN or infinity")


def check_start(updates: Sequence[ClientUpdate], start: Adapter, plan: Plan) -> None:
    """Refuse clients whose untrained parts are not those that the round began with.

    Where B is not trained, its scaling is one of them.

    Raises:
        AggregationError: naming the client, the tensor and the methods that train everything.
    """
    fixed = start.tensors(EVERYTHING - plan.train)
    for update in updates:
        came = update.adapter.tensors(EVERYTHING - plan.train)
        odd = [n for n, t in fixed.items() if n not in came or not torch.equal(came[n], t)]
        if "B" not in plan.train:
            odd += [
                f"the scaling of module {name}"
                for name, pair in update.adapter.pairs.items()
                if not math.isclose(pair.scaling, start.pairs[name].scaling, rel_tol=1e-6)
            ]
        if odd:
            raise AggregationError(
                f"client {update.client_id!r}: {odd[0]} is not what the round began with, and the method "
                f"trains {', '.join(sorted(plan.train))} only; train the clients by its plan, or use one of "
                f"{able(_trains_everything)}"
            )


def _trains_everything(chosen: Card) -> bool:
    """In the first round and later ones."""
    method = chosen.build()
    return all(plan_of(method, server_round).train == EVERYTHING for server_round in (1, 2))
