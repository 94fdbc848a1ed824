"""Local training: AdamW on the factors and the head."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from florana.adapter import EVERYTHING, Part
from florana.config import TrainingConfig
from florana.seeding import generator, torch_seed
from florana.training.examples import Examples, sample_batches, steps_per_epochs
from florana.training.lora_model import LoraModel
from florana.training.objectives import Objective
from florana.training.schedule import Place, learning_rate, learning_rate_factor
from florana.training.together import Job, fit, held, put, train_together
from florana.training.together.training import not_finite

__all__ = [
    "Place",
    "learning_rate",
    "learning_rate_factor",
    "pull_back",
    "train",
    "train_in_peft",
]


def train(
    model: LoraModel,
    examples: Examples,
    objective: Objective,
    config: TrainingConfig,
    place: Place,
    parts: Collection[Part] = EVERYTHING,
) -> float:
    r"""Train the adapter that ``model`` holds on one client's examples for one round.

    With ``config.proximal`` μ > 0 the loss has FedProx's term :math:`\frac{\mu}{2}\lVert\theta - \theta_0\rVert^2`
    (arXiv 1812.06127), θ the trained parameters and θ_0 their values at the start of the round. AdamW starts anew every
    round, since its moments belong to factors that the server replaced.

    This is :func:`florana.training.together.train_together` of one client, so that a client's result does not depend on
    how many are trained at once; a model that it cannot train goes through :func:`train_in_peft`.

    Args:
        model: holds the adapter that the round starts from.
        examples: the client's training examples.
        objective: whose loss is trained for.
        config: steps, batch size, learning rate, ...
        place: client, round and seed.
        parts: the parts of the adapter that are trained; the others stay frozen.

    Returns:
        Mean loss over the round's batches.

    Raises:
        FederationError: if the loss is not finite, naming client, round and step.
    """
    found = fit(model, examples, parts)
    if found.reason is not None:
        return train_in_peft(model, examples, objective, config, place, parts)
    job = Job(held(model), examples, place)
    (made,) = train_together(model, [job], objective, config, parts, found=found)
    put(model, made.tensors)
    model.train_only(parts)
    if made.error is not None:
        raise made.error
    return made.loss


def train_in_peft(
    model: LoraModel,
    examples: Examples,
    objective: Objective,
    config: TrainingConfig,
    place: Place,
    parts: Collection[Part] = EVERYTHING,
) -> float:
    """The same in PEFT's own layers and with torch's own dropout: for any model, and what :func:`train` is tested against.

    Args:
        model: holds the adapter that the round starts from.
        examples: the client's training examples.
        objective: whose loss is trained for.
        config: steps, batch size, learning rate, ...
        place: client, round and seed.
        parts: the parts of the adapter that are trained.

    Returns:
        Mean loss over the round's batches.

    Raises:
        FederationError: if the loss is not finite, naming client, round and step.
    """
    batch = config.batch_size * config.accumulation
    steps = config.steps or steps_per_epochs(len(examples), batch, config.epochs or 1)
    rng = generator(place.seed, "batches", place.server_round, place.client)
    micro = sample_batches(len(examples), config.batch_size, steps * config.accumulation, rng)
    model.train_only(parts)
    parameters = model.parameters
    start = [p.detach().clone() for p in parameters] if config.proximal else []
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=model.device.type in {"cpu", "cuda"},
    )
    model.module.train()
    total = 0.0
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(torch_seed(place.seed, "dropout", place.server_round, place.client))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate(config, place, step, steps)
            loss = 0.0
            for chosen in micro[step * config.accumulation : (step + 1) * config.accumulation]:
                inputs, labels = examples.batch(chosen, model.device)
                with torch.autocast(model.device.type, torch.bfloat16, enabled=config.bf16):
                    logits = model.module(**inputs).logits
                    part = objective.loss(logits, labels) / config.accumulation
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.item()
            if not loss < float("inf"):
                raise not_finite(place, step, loss)
            if config.proximal:
                pull_back(parameters, start, config.proximal)
            nn.utils.clip_grad_norm_(parameters, config.clip, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
            total += loss
    return total / steps


def pull_back(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], strength: float) -> None:
    """Add the gradient of FedProx's term, μ (θ − θ_0), to the parameters' gradients."""
    with torch.no_grad():
        for parameter, origin in zip(parameters, start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - origin, alpha=strength)
