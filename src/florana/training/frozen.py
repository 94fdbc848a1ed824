"""The frozen weights under the LoRA layers, and what earlier rounds added to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from florana.config import Variant
from florana.errors import ModelError
from florana.lowrank import Product
from florana.training.hira_layer import add_residual
from florana.training.quantization import is_quantized, weight_of


class FrozenWeights(Mapping[str, Tensor]):
    """Module -> its frozen weight W (d_out, d_in), as the base model has it, whatever is added to it now.

    A quantised weight becomes a tensor when it is asked for, so that only methods that read weights pay for them.

    Args:
        model: the PEFT model.
        names: the adapted modules.
        variant: how their factors change the weight.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, Any], variant: Variant) -> None:
        self._layers: dict[str, Any] = {
            name: model.get_submodule(f"base_model.model.{name}") for name in names
        }
        self._variant = variant
        self._pristine: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def __getitem__(self, name: str) -> Tensor:
        if name in self._pristine:
            return self._pristine[name].detach()
        return weight_of(self._layers[name].get_base_layer())

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def add(self, residual: Mapping[str, Product]) -> None:
        """Compute with W + F from now on, in place of W + what was added before; HiRA's with W ⊙ (1 + F).

        Always from the pristine weights, so that rounding does not add up over rounds. A quantised weight stays as it is,
        and F's share of the output, F x, is added to it.

        Raises:
            ModelError: if a quantised module is DoRA's, whose W + F has to be one matrix.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for name in self._pristine.keys() - residual.keys():
            self._write(name, self._pristine.pop(name))
        for name, product in residual.items():
            layer = self._layers[name]
            if self._variant == "hira":
                self._hooks.append(add_residual(layer, self[name], product))
            elif is_quantized(layer.get_base_layer()):
                self._hooks.append(self._add_to_output(name, layer, product))
            else:
                pristine = self._pristine.setdefault(name, self[name].clone())
                B, A = (factor.to(pristine) for factor in product)
                self._write(name, torch.addmm(pristine, B, A))

    def _write(self, name: str, weight: Tensor) -> None:
        with torch.no_grad():
            self._layers[name].get_base_layer().weight.copy_(weight)

    def _add_to_output(self, name: str, layer: Any, product: Product) -> RemovableHandle:  # noqa: ANN401
        if self._variant != "lora":
            raise ModelError(
                f"module {name} is quantised and {self._variant}: the method adds a matrix to its frozen weight, whose rows "
                "the variant then scales; use lora.variant = 'lora', model.quantization = 'none', or a method without residual"
            )
        place: Any = layer.get_base_layer()
        B, A = (factor.to(place.weight.device) for factor in product)

        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inner = nn.functional.linear(inputs[0].to(A.dtype), A)
            return output + nn.functional.linear(inner, B).to(output.dtype)

        handle: RemovableHandle = layer.register_forward_hook(add)
        return handle
