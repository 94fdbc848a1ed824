"""Small models that write text: the real stories260k, and tiny random ones with tokenizers of every habit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

from florana.config import LoraConfig, ModelConfig
from florana.tasks.dataset import TextDataset
from florana.training.base_model import ModelSource, build_model, find_model, load_tokenizer
from florana.training.head import Head
from florana.training.lora_model import LoraModel

CAUSAL = Head("causal", 0)
CPU = torch.device("cpu")
REPOSITORY = Path(__file__).resolve().parent.parent
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789+-*/=?.:,<|>\n", " "]

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template as most models have it: a header, the words, a token that ends the turn, a new line."""


def stories_folder() -> Path:
    """The folder of stories260k, or a skip that says where it was looked for."""
    root = Path(os.environ.get("FLORANA_MODELS", REPOSITORY.parent / "shared" / "models"))
    folder = root / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no stories260k in {root}: set FLORANA_MODELS")
    return folder


def stories() -> ModelSource:
    """A real Llama of 260 K parameters."""
    return find_model(str(stories_folder()))


def write_letters(folder: Path, *, bos: bool = True, pad: bool = False, chat: str = "") -> None:
    """A tokenizer of single letters, which puts <bos> before a text if it is told to."""
    special = ["<unk>", "<bos>", "<eos>", "<end>"]
    vocabulary = {token: i for i, token in enumerate([*special, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    whole: Any = FastTokenizer
    made = whole(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<end>"],
        **({"pad_token": "<unk>"} if pad else {}),
    )
    if chat:
        made.chat_template = chat
    made.save_pretrained(folder)


def write_model(folder: Path, seed: int = 0, **settings: Any) -> ModelSource:
    """A tiny random Llama; large enough numbers that its answers differ."""
    config: dict[str, Any] = {
        "vocab_size": 4 + len(LETTERS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **settings,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**config))
    model.save_pretrained(folder)
    return find_model(str(folder))


def letters_model(folder: Path, **tokenizer: Any) -> ModelSource:
    """A tiny random Llama with a tokenizer of letters."""
    write_letters(folder, **tokenizer)
    return write_model(folder)


def lora_model(source: ModelSource, **settings: Any) -> LoraModel:
    """A causal model with LoRA; ``settings`` of the model, or of its factors as ``lora_...``."""
    lora = {k.removeprefix("lora_"): v for k, v in settings.items() if k.startswith("lora_")}
    model = {k: v for k, v in settings.items() if not k.startswith("lora_")}
    base = build_model(source, ModelConfig(**model), CAUSAL, 0, CPU)
    form = {"rank": 4, "alpha": 8.0, "target_modules": ("q_proj", "v_proj"), **lora}
    return LoraModel(base, source, LoraConfig(**form), 0, CPU)


def tokenizer_of(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer as a run loads it."""
    return load_tokenizer(source)


def responses(pairs: list[tuple[str, str]], references: list[str] | None = None) -> TextDataset:
    """Prompts and responses as a data set."""
    return TextDataset(
        "toy",
        [prompt for prompt, _ in pairs],
        np.zeros(len(pairs), dtype=np.int64),
        ["all"],
        responses=[response for _, response in pairs],
        references=references,
    )
