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


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Token ids of unequal length with one label each, and the id that pads them.

    ``segments``: which sentence of a pair each token is of, where the model wants to know.
    """

    token_ids: tuple[Tensor, ...]
    labels: Tensor
    pad_id: int
    segments: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def take(self, chosen: Indices) -> Examples:
        """The examples at these indices."""
        return Examples(
            tuple(self.token_ids[i] for i in chosen),
            self.labels[torch.from_numpy(chosen)],
            self.pad_id,
            tuple(self.segments[i] for i in chosen) if self.segments else None,
        )

    def batch(self, chosen: Indices, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs, padded to the longest of the chosen examples, and their labels."""
        lengths = torch.tensor([len(self.token_ids[i]) for i in chosen])
        ids = _padded([self.token_ids[i] for i in chosen], self.pad_id)
        inputs = {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        }
        if self.segments:
            inputs["token_type_ids"] = _padded([self.segments[i] for i in chosen], 0)
        labels = self.labels[torch.from_numpy(chosen)].to(device)
        return {name: tensor.to(device) for name, tensor in inputs.items()}, labels

    def by_length(self, size: int) -> Iterator[Indices]:
        """Indices in batches of like length, which wastes least on padding."""
        order = np.argsort([len(ids) for ids in self.token_ids], kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]


def tokenize(data: TextDataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Examples:
    """Tokenise once, cutting what is longer than ``max_length`` tokens."""
    pairs = list(data.text_pairs) if data.text_pairs else None
    encoded = tokenizer(list(data.texts), pairs, truncation=True, max_length=max_length)
    pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
    # An empty text can have no token at all; one that says nothing stands for it.
    ids = _tensors([row or [pad_id] for row in encoded["input_ids"]])
    segments = (
        _tensors(encoded["token_type_ids"]) if pairs and "token_type_ids" in encoded else None
    )
    return Examples(ids, torch.from_numpy(data.labels), pad_id, segments)


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
