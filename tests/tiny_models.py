"""Tiny random base models on disk, and what training tests need around them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from florana.adapter import EVERYTHING, Adapter, Part
from florana.config import LoraConfig, ModelConfig, TrainingConfig
from florana.lowrank import Product
from florana.tasks.dataset import TextDataset
from florana.training import loop
from florana.training.base_model import ModelSource, build_model, find_model, load_tokenizer
from florana.training.evaluation import Score
from florana.training.examples import Examples, tokenize
from florana.training.loop import Place
from florana.training.lora_model import LoraModel
from florana.training.objectives import Classification

CPU = torch.device("cpu")
LABELS = 3
CLASSES = Classification(LABELS)
"""What the tiny models learn."""

WORDS = [f"w{i}" for i in range(24)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"]
SIZE: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


@dataclass(frozen=True)
class Kind:
    """A base model on disk, and what LoRA adapts in it."""

    source: ModelSource
    targets: tuple[str, ...]
    head: str


def write_tokenizer(folder: Path, **special: str) -> None:
    """A word-level tokenizer that puts [CLS] and [SEP] around a text."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    whole: Any = FastTokenizer
    whole(tokenizer_object=tokenizer, unk_token="[UNK]", **special).save_pretrained(folder)


def build_kinds(root: Path) -> dict[str, Kind]:
    """An encoder with its own head, a sentence encoder, and a decoder without a padding token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = BertModel(BertConfig(**SIZE, initializer_range=0.2))
        decoder = LlamaForCausalLM(LlamaConfig(**SIZE, initializer_range=0.2, eos_token_id=4))
    for name in ("own head", "sentence encoder"):
        encoder.save_pretrained(root / name)
        write_tokenizer(root / name, pad_token="[PAD]")
    decoder.save_pretrained(root / "decoder")
    write_tokenizer(root / "decoder", eos_token="[EOS]")
    write_pooling(root / "sentence encoder", mean=True)
    return {
        "own head": Kind(find_model(str(root / "own head")), ("query", "value"), "classifier"),
        "sentence encoder": Kind(
            find_model(str(root / "sentence encoder")), ("query", "value"), "classifier"
        ),
        "decoder": Kind(find_model(str(root / "decoder")), ("q_proj", "v_proj"), "score"),
    }


def write_pooling(folder: Path, *, mean: bool) -> None:
    """What a sentence encoder's folder says of its pooling."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {"pooling_mode_mean_tokens": mean, "pooling_mode_cls_token": not mean}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


def make(
    kind: Kind, seed: int = 0, model: ModelConfig | None = None, head_seed: int = 0, **lora: Any
) -> LoraModel:
    """A base model with LoRA."""
    base = build_model(kind.source, model or ModelConfig(), CLASSES.head, head_seed)
    settings = {"target_modules": kind.targets, "rank": 4, "alpha": 8.0, **lora}
    return LoraModel(base, kind.source, LoraConfig(**settings), seed, CPU)


def toy_text(count: int = 48, seed: int = 0) -> TextDataset:
    """Texts of one to nine words, most of them of the label's own vocabulary."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % LABELS
    texts = [
        " ".join(f"w{8 * label + rng.integers(8)}" for _ in range(rng.integers(1, 10)))
        for label in labels
    ]
    return TextDataset("toy", texts, labels, ["a", "b", "c"])


def toy_examples(kind: Kind, count: int = 48, seed: int = 0) -> Examples:
    """The same, tokenised."""
    return tokenize(toy_text(count, seed), load_tokenizer(kind.source), 16)


def steps(count: int = 3, **settings: Any) -> TrainingConfig:
    """A short training."""
    return TrainingConfig(**{"steps": count, "batch_size": 8, "learning_rate": 0.01, **settings})


def train(
    model: LoraModel,
    examples: Examples,
    config: TrainingConfig,
    place: Place,
    parts: Collection[Part] = EVERYTHING,
) -> float:
    """One client's training for a round, on classes."""
    return loop.train(model, examples, CLASSES, config, place, parts)


def evaluate(model: LoraModel, examples: Examples, *, bf16: bool = False) -> Score:
    """What a model scores on classes."""
    return CLASSES.evaluate(model, examples, bf16=bf16)


HERE = Place(seed=0, server_round=1, num_rounds=2, client=0)


def shaken(model: LoraModel, seed: int = 1) -> Adapter:
    """An adapter of the model's form with other numbers everywhere."""
    g = torch.Generator().manual_seed(seed)
    return model.initial.with_tensors(
        {n: 0.3 * torch.randn(t.shape, generator=g) for n, t in model.initial.tensors().items()}
    )


def shaken_residual(model: LoraModel, seed: int = 2) -> dict[str, Product]:
    """A residual of every adapted module."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: Product(
            torch.randn(pair.shape[0], 3, generator=g), torch.randn(3, pair.shape[1], generator=g)
        )
        for name, pair in model.initial.pairs.items()
    }


def assert_same(first: Adapter, second: Adapter) -> None:
    """Every tensor has the same bits."""
    assert first.tensors().keys() == second.tensors().keys()
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def differs(first: Adapter, second: Adapter) -> bool:
    """Whether any tensor differs."""
    other = second.tensors()
    return any(not torch.equal(t, other[name]) for name, t in first.tensors().items())


def clone(adapter: Adapter) -> Adapter:
    """A copy with memory of its own."""
    return adapter.with_tensors({name: t.clone() for name, t in adapter.tensors().items()})


def frozen(model: LoraModel) -> dict[str, Tensor]:
    """Copies of all weights that must never change."""
    return {
        name: p.detach().clone()
        for name, p in model.module.named_parameters()
        if not p.requires_grad
    }


def logits(module: nn.Module, examples: Examples, chosen: list[int] | None = None) -> Tensor:
    """What a model says of some examples, in one batch."""
    module.eval()
    indices = np.array(range(len(examples)) if chosen is None else chosen)
    with torch.no_grad():
        made: Tensor = module(**examples.batch(indices, CPU)[0]).logits
    return made


def trained(kind: Kind, config: TrainingConfig, place: Place = HERE, **model: Any) -> Adapter:
    """The adapter after a training from the model's own start."""
    made = make(kind, **model)
    train(made, toy_examples(kind), config, place)
    return made.take()


def weights(model: LoraModel) -> dict[str, Tensor]:
    """Copies of the base weights of the adapted modules."""
    found = {}
    for name in model.initial.pairs:
        layer: Any = model.module.get_submodule(f"base_model.model.{name}")
        found[name] = layer.get_base_layer().weight.detach().clone()
    return found
