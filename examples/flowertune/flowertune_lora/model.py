"""The base model with LoRA, the same on the server and on every client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def get_model(run_config: Mapping[str, Any]) -> PeftModel:
    """The model that the run config names, with fresh factors from a fixed seed."""
    base = AutoModelForCausalLM.from_pretrained(run_config["model.name"])
    torch.manual_seed(0)  # all start from one A
    return get_peft_model(
        base,
        LoraConfig(
            r=int(run_config["model.rank"]),
            lora_alpha=int(run_config["model.alpha"]),
            target_modules=str(run_config["model.targets"]).split(","),
            task_type="CAUSAL_LM",
        ),
    )
