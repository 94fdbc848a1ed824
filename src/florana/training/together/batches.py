"""What the clients of a group read in a step: the same batches as one by one, cut into chunks of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from florana.config import TrainingConfig
from florana.seeding import generator
from florana.training.examples import NO_LOSS, Examples, Indices, sample_batches, steps_per_epochs
from florana.training.schedule import Place

TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens that go through the model at a time, by device: as many as keep the processor busy."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one client reads in a round.

    Args:
        examples: its training examples.
        steps: how many steps it does.
        batches: ``accumulation`` batches per step, of ``batch_size`` examples each.
        keys: (batches, batch_size) int32: the key of each row's dropout.
    """

    examples: Examples
    steps: int
    batches: list[Indices]
    keys: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A part of the batches of k clients: as many rows of each, one client after the other.

    Args:
        inputs: of the model.
        labels: as :meth:`Examples.batch` gives them.
        keys: (n,) int32.
        counts: per client, over how many labels the loss of its rows is a mean.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    keys: Tensor
    counts: list[int]


def read(examples: Examples, config: TrainingConfig, place: Place) -> Reading:
    """A client's batches of a round, and its rows' keys: functions of its place alone."""
    size = config.batch_size * config.accumulation
    steps = config.steps or steps_per_epochs(len(examples), size, config.epochs or 1)
    rng = generator(place.seed, "batches", place.server_round, place.client)
    count = steps * config.accumulation
    batches = sample_batches(len(examples), config.batch_size, count, rng)
    hidden = generator(place.seed, "dropout", place.server_round, place.client)
    keys = hidden.integers(-(2**31), 2**31, (count, config.batch_size), dtype=np.int32)
    return Reading(examples, steps, batches, keys)


def chunks(
    readings: Sequence[Reading], number: int, device: torch.device, most_tokens: int
) -> list[Chunk]:
    """Batch ``number`` of each of these clients, its rows sorted by length, in chunks of about ``most_tokens``.

    A chunk has the same number of rows of every client: the shortest of each, then the next, and so on.
    """
    ordered = [_by_length(reading, number) for reading in readings]
    longest = max(
        len(r.examples.token_ids[o[0][-1]]) for r, o in zip(readings, ordered, strict=True)
    )
    rows = len(ordered[0][0])
    at_once = max(1, most_tokens // (len(readings) * longest))
    made = []
    for block in np.array_split(np.arange(rows), -(-rows // at_once)):
        parts = [r.examples.take(o[0][block]) for r, o in zip(readings, ordered, strict=True)]
        inputs, labels = joined(parts).batch(np.arange(len(block) * len(parts)), device)
        keys = torch.from_numpy(np.concatenate([o[1][block] for o in ordered])).to(device)
        counts = [_count(labels[i * len(block) :][: len(block)]) for i in range(len(parts))]
        made.append(Chunk(inputs, labels, keys, counts))
    return made


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of several clients in one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return replace(
        first,
        token_ids=tuple(ids for part in parts for ids in part.token_ids),
        labels=torch.cat([part.labels for part in parts]),
        segments=tuple(s for part in parts for s in part.segments or ())
        if first.segments
        else None,
        prompts=None
        if first.prompts is None
        else torch.cat([part.prompts for part in parts if part.prompts is not None]),
        references=None,
    )


def rows_of(chunk: Chunk, logits: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Every client's logits and labels in a chunk, and over how many labels their loss is a mean."""
    k = len(chunk.counts)
    yield from zip(logits.chunk(k), chunk.labels.chunk(k), chunk.counts, strict=True)


def _by_length(reading: Reading, number: int) -> tuple[Indices, NDArray[np.int32]]:
    chosen, keys = reading.batches[number], reading.keys[number]
    lengths = [len(reading.examples.token_ids[i]) for i in chosen]
    order = np.argsort(lengths, kind="stable")
    return chosen[order], keys[order]


def _count(labels: Tensor) -> int:
    """Labels that a mean loss is over: the rows, or of causal models the tokens of responses but a first one."""
    return len(labels) if labels.ndim == 1 else int((labels[:, 1:] != NO_LOSS).sum())
