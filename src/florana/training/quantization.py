"""How a base model is loaded: number format, 4 or 8 bits a weight by bitsandbytes, which devices."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from florana.config import ModelConfig, Variant
from florana.errors import ModelError

UNQUANTIZED = ("lm_head", "classifier", "score", "pooler")
"""Modules that keep their numbers: heads, which are small, or new and trained in full."""


def loading_options(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` is told.

    4 bits are NF4 with quantised block scales, as QLoRA has it (arXiv 2305.14314); 8 bits are LLM.int8 (arXiv
    2208.07339). Products are computed in ``config.dtype``; LoRA's factors stay float32.

    Args:
        config: the model's section.
        device: where to compute, unless ``device_map`` spreads the model.

    Raises:
        ModelError: if a library is missing, or the device cannot hold such weights.

    Example:
        >>> loading_options(ModelConfig(dtype="bfloat16"), torch.device("cpu"))
        {'dtype': torch.bfloat16}
    """
    dtype = getattr(torch, config.dtype)
    options: dict[str, Any] = {"dtype": dtype}
    if config.device_map is not None:
        _need("accelerate", "model.device_map")
        options["device_map"] = config.device_map
    if config.quantization == "none":
        return options
    _need("bitsandbytes", "model.quantization")
    _need("accelerate", "model.quantization")
    if device.type not in {"cpu", "cuda"}:
        raise ModelError(
            f"model.quantization = {config.quantization!r} computes on cuda or cpu, not on {device.type}; set device, or "
            "model.quantization = 'none'"
        )
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    shared = {"llm_int8_skip_modules": list(UNQUANTIZED)}
    if config.quantization == "8bit":
        options["quantization_config"] = make(load_in_8bit=True, **shared)
    else:
        options["quantization_config"] = make(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            **shared,
        )
    options.setdefault("device_map", {"": device})
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return options


def may_be_quantized(config: ModelConfig, folder: Path) -> bool:
    """Whether a base model comes in 8 or 4 bits, or is to be held so: by the run's configuration or by the model's own.

    Args:
        config: the model's section.
        folder: where its ``config.json`` is.
    """
    if config.quantization != "none":
        return True
    try:
        return "quantization_config" in (folder / "config.json").read_text()
    except (OSError, UnicodeDecodeError):  # told when it is loaded
        return True


def _need(package: str, key: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{key} needs the package {package}: pip install 'florana[quantized]'")


def settle(model: nn.Module) -> None:
    """Keep quantised weights as they are stored.

    On some processors bitsandbytes would repack 4-bit weights at the first evaluation, which only some shapes allow, and
    training on from there would not.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def check_variant(model: nn.Module, variant: Variant) -> None:
    """Refuse what PEFT cannot adapt.

    Raises:
        ModelError: for DoRA on 8-bit weights without a GPU, where PEFT loses their scales when it reads them.
    """
    held: Any = next((p for p in model.parameters() if type(p).__name__ == "Int8Params"), None)
    if variant == "dora" and held is not None and held.device.type == "cpu":
        raise ModelError(
            "lora.variant = 'dora' on model.quantization = '8bit' needs a GPU; use '4bit' or another variant"
        )


def is_placed(model: nn.Module) -> bool:
    """Whether loading put the model where it computes, so that it must not be moved."""
    return getattr(model, "hf_device_map", None) is not None


def is_quantized(layer: nn.Module) -> bool:
    """Whether a linear layer's weight is held in 4 or 8 bits."""
    return type(layer.weight).__name__ in {"Params4bit", "Int8Params"}


def weight_of(layer: nn.Module) -> Tensor:
    """The weight W (d_out, d_in) that a linear layer computes with; of a quantised one a new tensor.

    PEFT's own helper loses the scales of 8-bit weights that have not been used yet.
    """
    whole: Any = layer
    if not is_quantized(layer):
        weight: Tensor = whole.weight.detach()
        return weight
    from bitsandbytes import functional

    dequantize: Any = functional
    stored = whole.weight.data
    if type(whole.weight).__name__ == "Params4bit":
        weight = dequantize.dequantize_4bit(stored, whole.weight.quant_state)
    else:
        scales = whole.state.SCB if whole.state.SCB is not None else whole.weight.SCB
        weight = dequantize.int8_vectorwise_dequant(stored, scales.to(stored.device))
    return weight
