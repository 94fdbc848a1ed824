"""Tokenised examples and the batches made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from florana.tasks.dataset import TextDataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Indices = NDArray[np.int64]


NO_LOSS = -100
"""The label of a token that no loss counts: of the prompt and of padding."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Token ids of unequal length with what is asked of each, and the id that pads them.

    Args:
        token_ids: n tensors (t,) of token ids.
        labels: n integers (classes) or float32 numbers (targets of a regression); of causal examples the number of prompt tokens.
        pad_id: what fills a batch up.
        segments: which sentence of a pair each token is of, where the model wants to know.
        prompts: causal: n integers, how many tokens of each example are prompt. The labels of a batch are then (n, t).
        references: n texts, what the scorer of generated answers needs.
        notes: what people should know of how they were made, such as that some were cut; parts of them have none.
    """

    token_ids: tuple[Tensor, ...]
    labels: Tensor
    pad_id: int
    segments: tuple[Tensor, ...] | None = None
    prompts: Tensor | None = None
    references: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)

    def take(self, chosen: Indices) -> Examples:
        """The examples at these indices."""
        rows = torch.from_numpy(chosen)
        return Examples(
            tuple(self.token_ids[i] for i in chosen),
            self.labels[rows],
            self.pad_id,
            tuple(self.segments[i] for i in chosen) if self.segments else None,
            None if self.prompts is None else self.prompts[rows],
            tuple(self.references[i] for i in chosen) if self.references else None,
        )

    def batch(self, chosen: Indices, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs, padded to the longest of the chosen examples, and their labels.

        The labels (n,) are those of the examples. With ``prompts`` they are (n, t): each token's own id where it is
        of a response, and :data:`NO_LOSS` in prompts and padding.
        """
        rows = torch.from_numpy(chosen)
        lengths = torch.tensor([len(self.token_ids[i]) for i in chosen])
        ids = _padded([self.token_ids[i] for i in chosen], self.pad_id)
        place = torch.arange(ids.shape[1])
        inputs = {
            "input_ids": ids,
            "attention_mask": (place < lengths[:, None]).long(),
        }
        if self.segments:
            inputs["token_type_ids"] = _padded([self.segments[i] for i in chosen], 0)
        labels = self.labels[rows]
        if self.prompts is not None:
            silent = (place < self.prompts[rows][:, None]) | (place >= lengths[:, None])
            labels = ids.masked_fill(silent, NO_LOSS)
        return {name: tensor.to(device) for name, tensor in inputs.items()}, labels.to(device)

    def by_length(self, size: int) -> Iterator[Indices]:
        """Indices in batches of like length, which wastes least on padding."""
        order = np.argsort([len(ids) for ids in self.token_ids], kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]


def tokenize(
    data: TextDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: Tensor | None = None,
) -> Examples:
    """Tokenise texts or pairs once, cutting what is longer than ``max_length`` tokens.

    Args:
        data: the texts.
        tokenizer: the base model's.
        max_length: most tokens of an example; how many were longer is told in ``notes``.
        labels: what is asked of each example; by default its class.
    """
    texts, pairs = list(data.texts), list(data.text_pairs) if data.text_pairs else None
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
    # An empty text can have no token at all; one that says nothing stands for it.
    ids = _tensors([row or [pad_id] for row in encoded["input_ids"]])
    segments = (
        _tensors(encoded["token_type_ids"]) if pairs and "token_type_ids" in encoded else None
    )
    full = [i for i, row in enumerate(ids) if len(row) >= max_length]
    cut = _longer(
        tokenizer, [texts[i] for i in full], pairs and [pairs[i] for i in full], max_length
    )
    note = (
        f"{data.name}: {cut:,} of {len(data):,} examples are longer than model.max_length = {max_length} tokens "
        "and are cut"
    )
    asked = torch.from_numpy(data.labels) if labels is None else labels
    return Examples(ids, asked, pad_id, segments, notes=(note,) if cut else ())


def _longer(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
) -> int:
    """How many texts or pairs have more tokens than ``max_length``."""
    if not texts:
        return 0
    whole = tokenizer(list(texts), list(pairs) if pairs else None, verbose=False)
    return sum(len(row) > max_length for row in whole["input_ids"])


def _tensors(rows: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(row, dtype=torch.long) for row in rows)


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def sample_batches(
    count: int, batch_size: int, steps: int, rng: np.random.Generator
) -> list[Indices]:
    """``steps`` batches from 0..count−1, in passes over a fresh permutation each."""
    needed = batch_size * steps
    passes = [rng.permutation(count) for _ in range(-(-needed // count))]
    order = np.concatenate(passes)[:needed]
    return np.split(order, steps)


def steps_per_epochs(count: int, batch_size: int, epochs: int) -> int:
    """Optimiser steps that ``epochs`` passes over ``count`` examples take."""
    return max(1, -(-count * epochs // batch_size))
