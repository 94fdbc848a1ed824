"""Tiny random encoders on disk, one of each family that language understanding is done with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DebertaV2Model,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from florana.training.base_model import find_model
from tiny_models import SIZE, Kind, write_pooling, write_tokenizer

LAYERS = SIZE["num_hidden_layers"]


@dataclass(frozen=True)
class Encoder:
    """An encoder, how it is pooled, and how many of its modules the targets name."""

    kind: Kind
    pooling: str
    modules: int


_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
    "max_relative_positions": 8,
    "position_biased_input": False,
}
ENCODERS: dict[str, tuple[type[Any], type[Any], dict[str, Any], tuple[str, ...]]] = {
    "BERT": (BertConfig, BertModel, {}, ("query", "value")),
    "RoBERTa": (RobertaConfig, RobertaModel, {"type_vocab_size": 1, "pad_token_id": 0}, ("query", "value")),
    "DeBERTa": (DebertaConfig, DebertaModel, _DEBERTA, ("in_proj",)),
    "DeBERTa-v2": (DebertaV2Config, DebertaV2Model, _DEBERTA, ("query_proj", "value_proj")),
    "ModernBERT": (
        ModernBertConfig,
        ModernBertModel,
        {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3},
        ("Wqkv",),
    ),
    "MiniLM": (BertConfig, BertModel, {}, ("query", "value")),
}  # fmt: skip
"""Name -> configuration, model, settings, and the modules that LoRA adapts in it."""


def build_encoders(root: Path) -> dict[str, Encoder]:
    """One of each on disk; MiniLM is a sentence encoder, whose folder says that it is pooled by the mean."""
    made = {}
    for name, (config, model, settings, targets) in ENCODERS.items():
        folder = root / name
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model(config(**{**SIZE, "initializer_range": 0.2, **settings})).save_pretrained(folder)
        write_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
        if name == "MiniLM":
            write_pooling(folder, mean=True)
        kind = Kind(find_model(str(folder)), targets, "classifier")
        made[name] = Encoder(kind, "auto", LAYERS * len(targets))
    return made
