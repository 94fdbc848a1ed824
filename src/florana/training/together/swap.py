"""Puts the stacked layers in the places of PEFT's for the time of training, and takes them away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from florana.training.lora_model import LoraModel
from florana.training.together import attention
from florana.training.together.dropout import KeyedDropout
from florana.training.together.frozen_linear import FrozenLinear
from florana.training.together.layers import StackedLinear, StackedLora
from florana.training.together.reading import NOTHING, Reads, following
from florana.training.together.shared import PREFIX, Pass, Unfit


@dataclass(frozen=True, slots=True)
class Fit:
    """What was found of a model, see :func:`florana.training.together.fit`.

    Args:
        reason: why its clients cannot share a pass; None if they can.
        keyed_attention: whether its attention drops weights.
        reads: which of its layers are read at one token of each row alone.
    """

    reason: str | None
    keyed_attention: bool = False
    reads: Reads = NOTHING


@contextmanager
def stacked(model: LoraModel, shared: Pass, found: Fit) -> Iterator[nn.Module]:
    """The model inside PEFT's with stacked layers; PEFT's own are back afterwards.

    Args:
        model: the base model with LoRA.
        shared: what the layers look their rows and parameters up in.
        found: whether attention drops weights, and has to do so by key, and what is read where.

    Raises:
        Unfit: if a module cannot be stacked.
    """
    inner: Any = model.module.get_submodule(PREFIX[:-1])
    sites = {id(module): number for number, module in enumerate(inner.modules())}
    new = _replacements(model, inner, shared, sites, found.reads)
    old = {name: inner.get_submodule(name) for name in new}
    configs = _attention_configs(inner) if found.keyed_attention else {}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for name, module in new.items():
            put_module(inner, name, module)
        if found.keyed_attention:
            attention.register()
            attention.PLACES.update({place: (shared, site) for place, site in sites.items()})
        for config in configs.values():
            config._attn_implementation = attention.NAME
        with following(found.reads, inner, shared):
            yield inner
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        if found.keyed_attention:
            for place in sites:
                attention.PLACES.pop(place, None)
        for name, module in old.items():
            put_module(inner, name, module)


def _replacements(
    model: LoraModel, inner: nn.Module, shared: Pass, sites: dict[int, int], reads: Reads
) -> dict[str, nn.Module]:
    """Name inside the model -> what is put there."""
    new: dict[str, nn.Module] = {}
    pairs, extras = model.initial.pairs, model.initial.extras
    trained = {name.rpartition(".")[0] for name in extras}
    for name, pair in pairs.items():
        layer: Any = inner.get_submodule(name)
        linear = layer.get_base_layer()
        if type(linear) is not nn.Linear:
            raise Unfit(f"module {name} is a {type(linear).__name__}, no plain linear layer")
        dropout = getattr(layer.lora_dropout["default"], "p", 0.0)
        new[name] = StackedLora(
            name,
            linear,
            pair.scaling,
            dropout,
            sites[id(layer)],
            shared,
            narrow=name in reads.modules,
        )
    for name in trained:
        place = _place_of_extra(inner, name)
        layer = inner.get_submodule(place)
        if type(layer) is not nn.Linear:
            raise Unfit(f"module {name} is trained in full and is a {type(layer).__name__}")
        new[place] = StackedLinear(name, layer, shared)
    for name, module in inner.named_modules():
        if any(name == taken or name.startswith(f"{taken}.") for taken in new):
            continue
        if ".original_module" in f".{name}":  # PEFT's copy of a head that is not used
            continue
        if type(module) is nn.Dropout:
            new[name] = KeyedDropout(module.p, sites[id(module)], shared)
        elif type(module) is nn.Linear:
            new[name] = FrozenLinear(module, shared if name in reads.modules else None)
    return new


def _place_of_extra(inner: nn.Module, name: str) -> str:
    """Where a module that is trained in full lies: in PEFT's wrapper around it or around one of its parents."""
    head, tail = name, ""
    while head:
        try:
            wrapper: Any = inner.get_submodule(head)
        except AttributeError:
            wrapper = None
        if hasattr(wrapper, "modules_to_save"):
            return f"{head}.modules_to_save.default" + (f".{tail}" if tail else "")
        head, _, last = head.rpartition(".")
        tail = f"{last}.{tail}" if tail else last
    raise Unfit(f"module {name} is trained in full, and not by way of PEFT's modules_to_save")


def put_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = name.rpartition(".")
    holder = root.get_submodule(parent)
    holder._modules[child] = module  # setattr would refuse what is no child by attribute


def _attention_configs(inner: nn.Module) -> dict[int, Any]:
    """Every configuration that says which attention function a layer uses.

    Raises:
        Unfit: if one uses another function than torch's own.
    """
    found: dict[int, Any] = {}
    for module in inner.modules():
        config = getattr(module, "config", None)
        used = getattr(config, "_attn_implementation", None)
        if used is None:
            continue
        if used not in {"sdpa", "eager"}:
            raise Unfit(f"its attention is {used!r}, whose dropout cannot be drawn per client")
        found[id(config)] = config
    return found
