"""Which modules of a base model are adapted, told from its shape alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from florana.config import LoraConfig
from florana.errors import ModelError
from florana.training.base_model import ModelSource
from florana.training.head import Head


def skeleton(source: ModelSource, head: Head) -> nn.Module:
    """The base model without its weights: modules and shapes, on the meta device.

    It takes neither the memory nor the time of loading, however large the model is.

    Args:
        source: which model.
        head: what it ends in.

    Raises:
        ModelError: if transformers does not know the architecture, or not with such a head.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    causal = head.kind == "causal"
    made: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    try:
        settings = AutoConfig.from_pretrained(source.path)
        if not causal:
            settings.num_labels = head.num_labels
        with torch.device("meta"):
            model: nn.Module = made.from_config(settings)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot make {source.name} from {source.path}: {error}") from error
    return model


def find_targets(
    base: nn.Module, source: ModelSource, config: LoraConfig
) -> Mapping[str, nn.Linear]:
    """The linear modules that get LoRA factors, by their full names.

    Args:
        base: the base model, or its :func:`skeleton`.
        source: which model it is.
        config: target modules, each a module's full name or its end, and the rank.

    Raises:
        ModelError: if a target is not there, naming those that are, or the rank is above min(d_out, d_in) of one.
    """
    linear = {name: m for name, m in base.named_modules() if isinstance(m, nn.Linear)}
    chosen: dict[str, nn.Linear] = {}
    for target in config.target_modules:
        found = {n: m for n, m in linear.items() if n == target or n.endswith(f".{target}")}
        if not found:
            endings = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise ModelError(
                f"{source.name} has no linear module {target!r}; lora.target_modules may name: {endings}"
            )
        for module in found.values():
            smaller = min(module.out_features, module.in_features)
            if config.rank > smaller:
                raise ModelError(
                    f"lora.rank {config.rank} is above min(d_out, d_in) = {smaller} "
                    f"of module {target!r} of {source.name}; choose a smaller rank"
                )
        chosen |= found
    return chosen


def factor_numbers(modules: Mapping[str, nn.Linear], config: LoraConfig) -> int:
    """Numbers in the factors of all adapted modules: r (d_in + d_out) each, and d_out more for DoRA's lengths.

    Example:
        >>> factor_numbers({"query": nn.Linear(12, 7)}, LoraConfig(rank=2))
        38
    """
    lengths = config.variant == "dora"
    return sum(
        config.rank * (m.in_features + m.out_features) + lengths * m.out_features
        for m in modules.values()
    )
