"""A small decoder that knows sums in signs, and addition and subtraction in words: the base of benchmarks/arithmetic.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arithmetic_problems import KNOWN, OPERATIONS, problem, vocabulary
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

PROMPT = "question : {question} answer :"
SPECIAL = ["<pad>", "<unk>", "<eos>"]
SIZE = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
}
"""2.7 million parameters."""


def write_tokenizer(folder: Path) -> Any:  # noqa: ANN401
    """A tokenizer of whole words and numbers, in Hugging Face form."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole: Any = FastTokenizer
    made = whole(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
    made.save_pretrained(folder)
    return made


def pretrain(folder: Path, steps: int, batch_size: int = 64, seed: int = 0) -> None:
    """Train the base from nothing on generated problems, and write it; half of them in signs, half in words.

    Args:
        folder: where the model and its tokenizer are written.
        steps: optimiser's steps, AdamW with a cosine schedule.
        batch_size: problems of a step, each new.
        seed: of everything random.
    """
    tokenizer = write_tokenizer(folder)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config: Any = LlamaConfig
    model: Any = LlamaForCausalLM(
        config(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0, bos_token_id=None, **SIZE)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    began = time.perf_counter()
    for step in range(steps):
        ids, labels = _batch(tokenizer, batch_size, rng)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 99:
            seconds = time.perf_counter() - began
            print(f"base, step {step + 1}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    model.save_pretrained(folder)


def _batch(tokenizer: Any, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """New problems: ids (n, t), and labels (n, t) that are -100 on questions and padding."""
    rows, counts = [], []
    for _ in range(size):
        words = bool(rng.random() < 0.4)
        made = problem(str(rng.choice(KNOWN if words else list(OPERATIONS))), rng, words=words)
        prompt = tokenizer(PROMPT.format(question=made.question))["input_ids"]
        rows.append(prompt + tokenizer(made.answer)["input_ids"] + [tokenizer.eos_token_id])
        counts.append(len(prompt))
    width = max(map(len, rows))
    ids = torch.zeros(size, width, dtype=torch.long)
    labels = torch.full((size, width), -100)
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, count : len(row)] = ids[i, count : len(row)]
    return ids, labels
