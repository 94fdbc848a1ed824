"""Local training of several clients at once: one frozen base, every row with its own client's factors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from florana.adapter import EVERYTHING, Part
from florana.config import TrainingConfig
from florana.errors import FederationError
from florana.training.examples import Examples
from florana.training.lora_model import LoraModel
from florana.training.objectives import Objective
from florana.training.schedule import Place, learning_rate
from florana.training.together.allocator import keep_freed_memory
from florana.training.together.batches import TOKENS, Chunk, Reading, chunks, read
from florana.training.together.parameters import Stack
from florana.training.together.shared import Pass, Unfit
from florana.training.together.swap import Fit, stacked


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One client's training for a round.

    Args:
        tensors: what it starts from: see :func:`held`.
        examples: its training examples.
        place: client, round and seed.
    """

    tensors: Mapping[str, Tensor]
    examples: Examples
    place: Place


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What came of a job.

    Args:
        tensors: the trained tensors by name.
        loss: mean loss over the round's batches.
        error: why the client failed; its tensors are then of no use.
    """

    tensors: Mapping[str, Tensor]
    loss: float
    error: FederationError | None = None


def held(model: LoraModel) -> dict[str, Tensor]:
    """Copies of what ``model`` holds, as a job starts from it: factors at the model's own rank, heads, bases."""
    model.train_only(EVERYTHING)
    named = zip(model.initial.tensors(), model.parameters, strict=True)
    tensors = {name: parameter.detach().clone() for name, parameter in named}
    for name, pair in model.take().pairs.items():
        if pair.basis is not None:
            tensors[f"{name}.lora_basis"] = pair.basis.to(tensors[f"{name}.lora_B"])
    return tensors


def put(model: LoraModel, tensors: Mapping[str, Tensor]) -> None:
    """Write trained tensors over what ``model`` holds."""
    model.train_only(EVERYTHING)
    named = dict(zip(model.initial.tensors(), model.parameters, strict=True))
    with torch.no_grad():
        for name, tensor in tensors.items():
            named[name].copy_(tensor)


def train_together(
    model: LoraModel,
    jobs: Sequence[Job],
    objective: Objective,
    config: TrainingConfig,
    parts: Collection[Part] = EVERYTHING,
    *,
    found: Fit,
) -> list[Trained]:
    r"""Train several clients at once, with the results of training them one by one.

    Each client has its own batches, dropout masks, gradient norm, AdamW moments and learning rates; the loss is
    :math:`\sum_u \ell_u`, with ℓ_u the objective's mean over the rows of client u. A client that has done its steps leaves
    the batch. Rows never mix, so a client whose loss is not finite spoils no other.

    Args:
        model: the base model; what it holds is neither read nor changed.
        jobs: the clients, as many as may be.
        objective: whose loss is trained for.
        config: steps, batch size, learning rate, ...
        parts: the parts of the adapter that are trained; the others stay frozen.
        found: what :func:`florana.training.together.fit` found of the model.

    Returns:
        In the order of the jobs: tensors and loss, or the error.

    Raises:
        Unfit: if the model cannot be trained so.
    """
    readings = [read(job.examples, config, job.place) for job in jobs]
    order = sorted(range(len(jobs)), key=lambda i: -readings[i].steps)
    shared = Pass()
    keep_freed_memory()
    with stacked(model, shared, found) as inner:
        inner.train()
        group = _Group(
            model, inner, shared, [jobs[i] for i in order], [readings[i] for i in order], config
        )
        done = group.train(objective, parts)
    return [done[order.index(i)] for i in range(len(jobs))]


class _Group:
    """Clients sorted by their number of steps, the longest first: those still at work are always the first k."""

    def __init__(
        self,
        model: LoraModel,
        inner: nn.Module,
        shared: Pass,
        jobs: Sequence[Job],
        readings: Sequence[Reading],
        config: TrainingConfig,
    ) -> None:
        self._model, self._inner, self._shared = model, inner, shared
        self._jobs, self._readings, self._config = jobs, readings, config
        self._device = model.device
        self._totals = [0.0] * len(jobs)
        self._errors: list[FederationError | None] = [None] * len(jobs)

    def train(self, objective: Objective, parts: Collection[Part]) -> list[Trained]:
        starts = [job.tensors for job in self._jobs]
        stack = Stack(
            starts, trained_names(self._model, starts[0], parts), self._device, self._config
        )
        clients = 0
        for step in range(self._readings[0].steps):
            still = sum(reading.steps > step for reading in self._readings)
            if still != clients:
                clients = still
                self._shared.clients, self._shared.values = clients, stack.views(clients)
            self._note(step, self._losses(objective, step, clients))
            stack.step(
                [
                    learning_rate(self._config, job.place, step, reading.steps)
                    for job, reading in zip(
                        self._jobs[:clients], self._readings[:clients], strict=True
                    )
                ]
            )
        return [
            Trained(stack.of(i), self._totals[i] / reading.steps, self._errors[i])
            for i, reading in enumerate(self._readings)
        ]

    def _losses(self, objective: Objective, step: int, clients: int) -> list[float]:
        """Add up the gradients of one step's batches; each client's loss."""
        accumulation = self._config.accumulation
        losses = torch.zeros(clients, dtype=torch.float64)
        for number in range(step * accumulation, (step + 1) * accumulation):
            cut = chunks(
                self._readings[:clients], number, self._device, TOKENS.get(self._device.type, 1024)
            )
            totals = [0] * clients
            for share in (share for chunk in cut for share in chunk.shares):
                totals[share.client] += share.labels
            for chunk in cut:
                for client, part in self._backward(objective, chunk, totals).items():
                    losses[client] += part / accumulation
            losses[[total == 0 for total in totals]] = float("nan")  # nothing to learn from
        return losses.tolist()

    def _backward(
        self, objective: Objective, chunk: Chunk, totals: Sequence[int]
    ) -> dict[int, float]:
        """One chunk's share of its clients' mean losses, whose gradient is added up."""
        self._shared.keys, self._shared.owner = chunk.keys, chunk.owner
        told = [share for share in chunk.shares if share.labels]
        if not told:  # not a single token of a response
            return {}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.bf16):
            logits = self._inner(**chunk.inputs).logits
            parts = [
                objective.loss(logits[s.begin : s.end], chunk.labels[s.begin : s.end])
                * (s.labels / totals[s.client])
                for s in told
            ]
        losses = torch.stack(parts)
        (losses.sum() / self._config.accumulation).backward()  # type: ignore[no-untyped-call]
        return dict(zip((s.client for s in told), losses.tolist(), strict=True))

    def _note(self, step: int, losses: Sequence[float]) -> None:
        for client, loss in enumerate(losses):
            self._totals[client] += loss
            if not math.isfinite(loss) and self._errors[client] is None:
                self._errors[client] = not_finite(self._jobs[client].place, step, loss)


def not_finite(place: Place, step: int, loss: float) -> FederationError:
    """The error of a client whose loss is no number, or is infinite."""
    return FederationError(
        f"client {place.client}, round {place.server_round}, step {step + 1}: the loss is {loss}; "
        "lower training.learning_rate or turn bf16 off"
    )


def trained_names(
    model: LoraModel, tensors: Mapping[str, Tensor], parts: Collection[Part]
) -> list[str]:
    """Names of the tensors that are trained: those of the parts, but never a basis."""
    chosen = model.initial.tensors(parts)
    return [name for name in tensors if name in chosen]


__all__ = ["Job", "Trained", "Unfit", "held", "put", "train_together"]
