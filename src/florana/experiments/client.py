"""The client half of a run: what is done with one client's data, on any engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from florana.adapter import Plan
from florana.aggregators import narrowed
from florana.config import RunConfig, TrainingConfig
from florana.federation.client_app import LocalResult
from florana.federation.records import Held
from florana.seeding import torch_seed
from florana.training.base_model import ModelSource, build_model
from florana.training.evaluation import evaluate
from florana.training.examples import Examples
from florana.training.loop import Place, train
from florana.training.lora_model import LoraModel


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
        training: how a client trains; the configuration's, unless all clients are pooled.
    """

    config: RunConfig
    model: LoraModel
    training: TrainingConfig

    def train(
        self, data: ClientData, start: Held, plan: Plan, server_round: int, client: int
    ) -> LocalResult:
        """One client's part of a round: train, then test its own model on its own held-out data."""
        config = self.config
        place = Place(config.seed, server_round, config.federation.rounds, client)
        self._load(start, client)
        train_loss = train(self.model, data.train, self.training, place, plan.train)
        score = evaluate(self.model, data.test, bf16=config.training.bf16)
        metrics = {"train-loss": train_loss, "accuracy": score.accuracy, "loss": score.loss}
        return LocalResult(self.model.take(), len(data.train), metrics)

    def score(self, data: ClientData, start: Held, client: int) -> dict[str, float]:
        """A model that came, on the client's own held-out data."""
        self._load(start, client)
        score = evaluate(self.model, data.test, bf16=self.config.training.bf16)
        return {
            "received-accuracy": score.accuracy,
            "received-loss": score.loss,
            "test-examples": score.examples,
        }

    def _load(self, start: Held, client: int) -> None:
        """The client's share of the global model, if its rank is smaller."""
        rank = self.config.lora.rank_of(client)
        ranks = [min(rank, pair.rank) for pair in start.adapter.pairs.values()]
        narrow = narrowed(start.adapter, self.config.method.name, ranks)
        self.model.load(narrow, start.residual)


def build_lora_model(config: RunConfig, source: ModelSource, num_labels: int) -> LoraModel:
    """The base model with a fresh head and LoRA's own start, all numbers from the run's seed.

    Raises:
        ModelError: if it cannot be loaded or adapted.
    """
    seed = config.seed
    base = build_model(source, config.model, num_labels, torch_seed(seed, "head"))
    device = torch.device(choose_device(config))
    return LoraModel(base, source, config.lora, torch_seed(seed, "factors"), device)


def choose_device(config: RunConfig) -> str:
    """Where to compute."""
    if config.device != "auto":
        return config.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
