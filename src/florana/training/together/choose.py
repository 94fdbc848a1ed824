"""How many clients to train at once: the number with the fastest of a few short trainings, that fits into memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

import torch

from florana.config import TrainingConfig
from florana.training.examples import Examples
from florana.training.lora_model import LoraModel
from florana.training.objectives import Objective
from florana.training.schedule import Place
from florana.training.together.fit import fit
from florana.training.together.training import Job, held, train_together

SHARE = 0.25
"""Of the free memory, how much the clients' parameters, gradients and moments may take."""
COPIES = 6
"""Tensors of a client's parameters' size: where it starts, what it has, gradient, two moments, one to work in."""
PAYS = 0.97
"""A larger number is taken if it needs at most this share of the time."""


def choose(
    model: LoraModel, examples: Sequence[Examples], objective: Objective, config: TrainingConfig
) -> int:
    """Time one step of 1, 2, 4, ... clients, thrice each, and take the number with the least time per client.

    The measurement stops at the first number that does not pay. Tokens go through the model in chunks of a fixed size,
    so that what grows with the number is the clients' parameters alone; these must fit.

    Args:
        model: the base model with LoRA; what it holds is kept.
        examples: of the clients of a round.
        objective: whose loss is trained for.
        config: batch size, ...

    Returns:
        1 to the number of clients; 1 for a model that cannot train several.
    """
    found = fit(model, examples[0])
    if found.reason is not None:
        return 1
    best, fastest = 1, float("inf")
    short = config.model_copy(update={"steps": 1, "epochs": None})
    for size in _sizes(model, len(examples)):
        jobs = [
            Job(held(model), examples[client], Place(0, 1, 1, client)) for client in range(size)
        ]
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            train_together(model, jobs, objective, short, found=found)
            seconds.append(time.perf_counter() - began)
        each = min(seconds) / size
        if each > PAYS * fastest:
            break
        best, fastest = size, each
    return best


def _sizes(model: LoraModel, clients: int) -> Iterator[int]:
    """1, 2, 4, ... and the number of clients itself, as far as memory goes."""
    each = COPIES * sum(t.numel() * t.element_size() for t in model.initial.tensors().values())
    free = _free_bytes(model.device)
    size = 1
    while size <= clients and (size == 1 or size * each <= SHARE * free):
        yield size
        size = clients if size < clients < 2 * size else 2 * size


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not told on this system
        return 2**31
