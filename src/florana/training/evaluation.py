"""Scores of a model on held-out examples; what is scored, and how, its objective says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from florana.training.examples import Examples, Indices
from florana.training.lora_model import LoraModel

BATCH_SIZE = 64
"""Examples that go through the model at a time, unless ``evaluation.batch_size`` says otherwise."""

NOTHING: Mapping[str, float] = MappingProxyType({})


class Score(NamedTuple):
    """What a model scores on held-out examples.

    Args:
        value: of the objective's first metric.
        loss: mean of the loss that is trained for: in nats; of a regression the mean squared error of its targets.
        examples: how many.
        others: name -> value of the further metrics.
    """

    value: float
    loss: float
    examples: int
    others: Mapping[str, float] = NOTHING


def forward(
    model: LoraModel, examples: Examples, *, bf16: bool = False, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Indices, Tensor, Tensor]]:
    """What the adapter that ``model`` holds says of every example, in batches of like length.

    Args:
        model: holds the adapter.
        examples: what to answer.
        bf16: compute matrix products in bfloat16, as training with that option does.
        batch_size: examples at a time.

    Yields:
        Indices of n examples, float32 logits (n, c) or (n, t, v), and their labels, on the model's device.
    """
    model.module.eval()
    for chosen in examples.by_length(batch_size):
        # entered anew for every batch: a generator must not hold them while its caller computes
        with (
            torch.inference_mode(),
            torch.autocast(model.device.type, torch.bfloat16, enabled=bf16),
        ):
            inputs, labels = examples.batch(chosen, model.device)
            logits = model.module(**inputs).logits.float()
        yield chosen, logits, labels
