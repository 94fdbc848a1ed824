"""What the clients of a group read in a step: the same batches as one by one, cut into chunks of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

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


class Share(NamedTuple):
    """The rows of one client in a chunk: ``begin`` to ``end``, whose mean loss is over so many labels."""

    client: int
    begin: int
    end: int
    labels: int


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A part of the batches of k clients, one client's rows after the other's.

    Args:
        inputs: of the model.
        labels: as :meth:`Examples.batch` gives them.
        keys: (n,) int32.
        owner: (n,) which client each row is of.
        shares: of the clients that have rows here.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    keys: Tensor
    owner: Tensor
    shares: list[Share]


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
    """Batch ``number`` of each of these clients, all rows sorted by length, in chunks of at most ``most_tokens``.

    Sorting wastes least on padding. What a row gives does not depend on the chunk that it is in.
    """
    rows = [
        (len(reading.examples.token_ids[i]), client, place)
        for client, reading in enumerate(readings)
        for place, i in enumerate(reading.batches[number])
    ]
    rows.sort(reverse=True)
    made = []
    while rows:
        size = max(1, most_tokens // rows[0][0])
        made.append(_chunk(readings, number, sorted(row[1:] for row in rows[:size]), device))
        rows = rows[size:]
    return made


def _chunk(
    readings: Sequence[Reading], number: int, rows: Sequence[tuple[int, int]], device: torch.device
) -> Chunk:
    """The rows (client, place in its batch), which are sorted."""
    parts, keys = [], []
    shares: list[Share] = []
    for client, mine in groupby(rows, key=lambda row: row[0]):
        reading, places = readings[client], np.array([place for _, place in mine])
        parts.append(reading.examples.take(reading.batches[number][places]))
        keys.append(reading.keys[number][places])
        begin = shares[-1].end if shares else 0
        shares.append(Share(client, begin, begin + len(places), 0))
    inputs, labels = joined(parts).batch(np.arange(len(rows)), torch.device("cpu"))
    return Chunk(
        {name: tensor.to(device) for name, tensor in inputs.items()},
        labels.to(device),
        torch.from_numpy(np.concatenate(keys)).to(device),
        torch.tensor([client for client, _ in rows], device=device),
        [s._replace(labels=_count(labels[s.begin : s.end])) for s in shares],
    )


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


def _count(labels: Tensor) -> int:
    """Labels that a mean loss is over: the rows, or of causal models the tokens of responses but a first one."""
    return len(labels) if labels.ndim == 1 else int((labels[:, 1:] != NO_LOSS).sum())
