"""For evaluation: the factors inside the frozen weights, so that a pass costs what the bare base costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from florana.training.lora_model import LoraModel
from florana.training.quantization import is_placed
from florana.training.together.frozen_linear import FrozenLinear, multiply
from florana.training.together.swap import PREFIX, put_module

MOST_BYTES = 2**28
"""Adapted weights of more bytes are not copied to be merged."""


class Merged(nn.Module):
    r"""A linear layer with :math:`W + s B A` in one matrix.

    Args:
        weight: (d_out, d_in).
        bias: (d_out,).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """X (W + s B A)ᵀ + b."""
        return multiply(x, self.weight, self.bias)


@contextmanager
def merged(model: LoraModel) -> Iterator[None]:
    """Let ``model`` evaluate with merged weights; nothing may be trained or loaded before it is left.

    The frozen weights themselves are not touched, so that no rounding adds up over rounds. Adapted weights that are not
    float32, or more than :data:`MOST_BYTES` in all, stay with PEFT's layers, as do those of DoRA and HiRA and of
    quantised bases.

    Args:
        model: holds the adapter that is evaluated.
    """
    if is_placed(model.module):
        yield
        return
    inner = model.module.get_submodule(PREFIX[:-1])
    new = _replacements(model, inner)
    old = {name: inner.get_submodule(name) for name in new}
    try:
        for name, module in new.items():
            put_module(inner, name, module)
        yield
    finally:
        for name, module in old.items():
            put_module(inner, name, module)


def _replacements(model: LoraModel, inner: nn.Module) -> dict[str, nn.Module]:
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
                new[name] = Merged(torch.addmm(linear.weight, B, A, alpha=scaling), linear.bias)
    for name, module in inner.named_modules():
        inside = any(name.startswith(f"{layer}.") for layer in layers)
        if type(module) is nn.Linear and not inside:
            new[name] = FrozenLinear(module)
    return new
