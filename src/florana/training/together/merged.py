"""For evaluation: the factors inside the frozen weights, so that a pass costs what the bare base costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from florana.training.examples import Examples
from florana.training.lora_model import LoraModel
from florana.training.quantization import is_placed
from florana.training.together.allocator import keep_freed_memory
from florana.training.together.frozen_linear import FrozenLinear
from florana.training.together.reading import NOTHING, Reads, following, reads_of
from florana.training.together.shared import PREFIX, Pass
from florana.training.together.swap import put_module

MOST_BYTES = 2**28
"""Adapted weights of more bytes are not copied to be merged."""


class Merged(NamedTuple):
    r"""A matrix :math:`W + s B A` (d_out, d_in), and the bias (d_out,) of its layer."""

    weight: Tensor
    bias: Tensor | None


@contextmanager
def merged(model: LoraModel, examples: Examples) -> Iterator[None]:
    """Let ``model`` evaluate with merged weights; nothing may be trained or loaded before it is left.

    The frozen weights themselves are not touched, so that no rounding adds up over rounds. Adapted weights that are not
    float32, or more than :data:`MOST_BYTES` in all, stay with PEFT's layers, as do those of DoRA and HiRA and of
    quantised bases.

    Args:
        model: holds the adapter that is evaluated.
        examples: any that it is evaluated on, to see which tokens it reads.
    """
    if is_placed(model.module):
        yield
        return
    keep_freed_memory()
    inner, shared, reads = model.module.get_submodule(PREFIX[:-1]), Pass(), NOTHING
    if len(examples):
        reads = reads_of(model, examples)
    new = _replacements(model, inner, shared, reads)
    old = {name: inner.get_submodule(name) for name in new}
    try:
        for name, module in new.items():
            put_module(inner, name, module)
        with following(reads, model.module, shared):
            yield
    finally:
        for name, module in old.items():
            put_module(inner, name, module)


def _replacements(
    model: LoraModel, inner: nn.Module, shared: Pass, reads: Reads
) -> dict[str, nn.Module]:
    layers: dict[str, Any] = {name: inner.get_submodule(name) for name in model.initial.pairs}
    weights = [layer.get_base_layer().weight for layer in layers.values()]
    plain = model.initial.variant == "lora" and all(w.dtype == torch.float32 for w in weights)
    plain = plain and all(type(layer.get_base_layer()) is nn.Linear for layer in layers.values())
    new: dict[str, nn.Module] = {}
    if plain and sum(w.numel() * w.element_size() for w in weights) <= MOST_BYTES:
        with torch.no_grad():
            for name, layer in layers.items():
                linear, scaling = layer.get_base_layer(), model.initial.pairs[name].scaling
                A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                weight = torch.addmm(linear.weight, B, A, alpha=scaling)
                read = shared if name in reads.modules else None
                new[name] = FrozenLinear(Merged(weight, linear.bias), read)
    for name, module in inner.named_modules():
        inside = any(name.startswith(f"{layer}.") for layer in layers)
        if type(module) is nn.Linear and not inside:
            new[name] = FrozenLinear(module, shared if name in reads.modules else None)
    return new
