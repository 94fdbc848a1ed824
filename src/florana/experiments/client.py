"""The client half of a run: what is done with one client's data, on any engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from florana.adapter import Plan
from florana.aggregators import narrowed
from florana.config import RunConfig, TrainingConfig
from florana.errors import ConfigError, FederationError
from florana.experiments.metrics import own_score, received_score
from florana.federation.client_app import LocalResult
from florana.federation.records import Held
from florana.seeding import torch_seed
from florana.training import together
from florana.training.base_model import ModelSource, build_model
from florana.training.examples import Examples
from florana.training.loop import Place, train
from florana.training.lora_model import LoraModel
from florana.training.objectives import Head, Objective


@dataclass(frozen=True, slots=True, eq=False)
class ClientData:
    """A client's own examples: what it trains on and what it tests its own model on."""

    train: Examples
    test: Examples


@dataclass(frozen=True, slots=True, eq=False)
class ClientWork:
    """Local training and testing, with one model in memory for any number of clients.

    Args:
        config: the resolved configuration.
        model: the base model with LoRA.
        objective: what is trained for, and how it is scored.
        training: how a client trains; the configuration's, unless all clients are pooled.
    """

    config: RunConfig
    model: LoraModel
    objective: Objective
    training: TrainingConfig

    def train(
        self, data: ClientData, start: Held, plan: Plan, server_round: int, client: int
    ) -> LocalResult:
        """One client's part of a round: train, then test its own model on its own held-out data."""
        config = self.config
        place = Place(config.seed, server_round, config.federation.rounds, client)
        self._load(start, client)
        train_loss = train(self.model, data.train, self.objective, self.training, place, plan.train)
        return self._result(data, train_loss)

    def train_together(
        self,
        data: Sequence[ClientData],
        starts: Sequence[Held],
        plan: Plan,
        server_round: int,
        clients: Sequence[int],
    ) -> list[LocalResult | FederationError]:
        """Several clients' part of a round, trained at once; each one's result, or why it failed."""
        config = self.config
        jobs = []
        for client, own, start in zip(clients, data, starts, strict=True):
            self._load(start, client)
            place = Place(config.seed, server_round, config.federation.rounds, client)
            jobs.append(together.Job(together.held(self.model), own.train, place))
        found = together.fit(self.model, data[0].train, plan.train)
        done = together.train_together(
            self.model,
            jobs,
            self.objective,
            self.training,
            plan.train,
            found=found,
        )
        results: list[LocalResult | FederationError] = []
        for client, own, start, made in zip(clients, data, starts, done, strict=True):
            if made.error is not None:
                results.append(made.error)
                continue
            self._load(start, client)
            together.put(self.model, made.tensors)
            results.append(self._result(own, made.loss))
        return results

    def _result(self, data: ClientData, train_loss: float) -> LocalResult:
        """What the model now holds, with its score on the client's own held-out data."""
        with together.merged(self.model, data.test):
            score = self.objective.evaluate(self.model, data.test, bf16=self.config.training.bf16)
        metrics = {"train-loss": train_loss, **own_score(score)}
        return LocalResult(self.model.take(), len(data.train), metrics)

    def score(self, data: ClientData, start: Held, client: int) -> dict[str, float]:
        """A model that came, on the client's own held-out data."""
        self._load(start, client)
        with together.merged(self.model, data.test):
            score = self.objective.evaluate(self.model, data.test, bf16=self.config.training.bf16)
        return received_score(score)

    def _load(self, start: Held, client: int) -> None:
        """The client's share of the global model, if its rank is smaller."""
        rank = self.config.lora.rank_of(client)
        ranks = [min(rank, pair.rank) for pair in start.adapter.pairs.values()]
        narrow = narrowed(start.adapter, self.config.method.name, ranks)
        self.model.load(narrow, start.residual)


def build_lora_model(config: RunConfig, source: ModelSource, head: Head) -> LoraModel:
    """The base model with a fresh head and LoRA's own start, all numbers from the run's seed.

    Raises:
        ModelError: if it cannot be loaded or adapted.
    """
    seed = config.seed
    device = torch.device(choose_device(config))
    base = build_model(source, config.model, head, torch_seed(seed, "head"), device)
    return LoraModel(base, source, config.lora, torch_seed(seed, "factors"), device)


def choose_device(config: RunConfig) -> str:
    """Where to compute.

    Raises:
        ConfigError: if the configuration names a device that is not here.
    """
    if config.device != "auto":
        there = {
            "cpu": True,
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        if not there[config.device]:
            raise ConfigError(
                f"device = {config.device!r}, but torch {torch.__version__} finds no such device on this machine; set "
                "device = 'auto' or 'cpu', or install a driver and a build of torch for it"
            )
        return config.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
