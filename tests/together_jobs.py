"""Clients for tests of training at once: models in float64, so that only another computation makes a difference."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from florana.adapter import EVERYTHING, Adapter, Part
from florana.config import LoraConfig, ModelConfig, TrainingConfig
from florana.lowrank import Product
from florana.training import together
from florana.training.base_model import build_model
from florana.training.examples import Examples
from florana.training.head import Head
from florana.training.loop import train_in_peft
from florana.training.lora_model import LoraModel
from florana.training.objectives.causal import Causal
from florana.training.together.training import Trained
from tiny_models import CPU, HERE, Kind, make, shaken, toy_examples

SIZES = (48, 20, 9)
"""Examples of three clients."""


@dataclass(frozen=True)
class Exact:
    """Cross-entropy in the numbers that the model has, for classes and for tokens."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over rows, or over tokens that are not -100."""
        if labels.ndim == 2:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, labels)


EXACT: Any = Exact()


def exact(kind: Kind, *, silent: bool = False, **lora: Any) -> LoraModel:
    """A tiny model in float64; ``silent``: without any dropout."""
    model = make(kind, **lora)
    model.module.double()
    if silent:
        hush(model)
    return model


def hush(model: LoraModel) -> None:
    """Take all dropout away."""
    for module in model.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def writer(kind: Kind, **lora: Any) -> tuple[LoraModel, list[Examples]]:
    """A causal model in float64, and three clients' prompts with responses."""
    base = build_model(kind.source, ModelConfig(), Head("causal", 0), 0)
    settings = {"target_modules": kind.targets, "rank": 4, "alpha": 8.0, **lora}
    model = LoraModel(base, kind.source, LoraConfig(**settings), 0, CPU)
    model.module.double()
    assert Causal(kind.source).head.kind == "causal"
    made = []
    for client, size in enumerate(SIZES):
        examples = toy_examples(kind, size, seed=client)
        prompts = torch.tensor([1 + i % (len(t) - 1) for i, t in enumerate(examples.token_ids)])
        made.append(replace(examples, labels=prompts, prompts=prompts))
    return model, made


def clients_of(kind: Kind, sizes: Sequence[int] = SIZES) -> list[Examples]:
    """Their examples."""
    return [toy_examples(kind, size, seed=client) for client, size in enumerate(sizes)]


def starts_of(model: LoraModel, count: int = len(SIZES)) -> list[Adapter]:
    """Unlike adapters to start from."""
    return [shaken(model, seed=1 + client) for client in range(count)]


def at_once(
    model: LoraModel,
    starts: Sequence[Adapter],
    data: Sequence[Examples],
    config: TrainingConfig,
    parts: Collection[Part] = EVERYTHING,
    *,
    objective: Any = EXACT,
    residual: dict[str, Product] | None = None,
    first: int = 0,
) -> list[Trained]:
    """Train them together."""
    jobs = []
    for client, (start, examples) in enumerate(zip(starts, data, strict=True)):
        model.load(start, residual)
        place = replace(HERE, client=first + client)
        jobs.append(together.Job(together.held(model), examples, place))
    found = together.fit(model, data[0], parts)
    assert found.reason is None
    return together.train_together(model, jobs, objective, config, parts, found=found)


def one_by_one(
    model: LoraModel,
    starts: Sequence[Adapter],
    data: Sequence[Examples],
    config: TrainingConfig,
    parts: Collection[Part] = EVERYTHING,
    *,
    objective: Any = EXACT,
    residual: dict[str, Product] | None = None,
) -> list[Trained]:
    """Train them each alone, in groups of one."""
    return [
        made
        for client in range(len(starts))
        for made in at_once(
            model,
            [starts[client]],
            [data[client]],
            config,
            parts,
            objective=objective,
            residual=residual,
            first=client,
        )
    ]


def in_peft(
    model: LoraModel,
    starts: Sequence[Adapter],
    data: Sequence[Examples],
    config: TrainingConfig,
    parts: Collection[Part] = EVERYTHING,
    residual: dict[str, Product] | None = None,
) -> list[Trained]:
    """Train them each alone, in PEFT's own layers with torch's own optimiser: the oracle."""
    done = []
    for client, (start, examples) in enumerate(zip(starts, data, strict=True)):
        model.load(start, residual)
        place = replace(HERE, client=client)
        loss = train_in_peft(model, examples, EXACT, config, place, parts)
        done.append(Trained(together.held(model), loss))
    return done


def assert_alike(made: Sequence[Trained], wanted: Sequence[Trained], within: float) -> None:
    """Every trained tensor within ``within``, relative to its norm, and the losses too."""
    for client, (one, other) in enumerate(zip(made, wanted, strict=True)):
        assert one.error is None
        for name, tensor in one.tensors.items():
            distance = torch.linalg.vector_norm(tensor - other.tensors[name])
            size = torch.linalg.vector_norm(other.tensors[name])
            assert distance <= within * size, (client, name, float(distance / size))
        assert abs(one.loss - other.loss) <= max(within, 1e-6) * abs(other.loss), client
