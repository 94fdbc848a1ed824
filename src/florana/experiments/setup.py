"""From a configuration to everything a run needs: data, partitions, model."""

from __future__ import annotations

import importlib.metadata
import platform
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from florana.aggregators import GlobalState, build, first_state, plan_of
from florana.config import NODES, RunConfig, TrainingConfig, sampled_clients
from florana.errors import ConfigError
from florana.experiments.client import ClientData, ClientWork, build_lora_model, choose_device
from florana.experiments.data import load_data, load_second_test, load_test, spread
from florana.seeding import generator
from florana.tasks.dataset import TextDataset
from florana.tasks.partition import ClientSplit
from florana.training import load_libraries, objectives
from florana.training.base_model import ModelSource, find_model, load_tokenizer
from florana.training.examples import Examples
from florana.training.lora_model import LoraModel
from florana.training.objectives import Objective

RECORDED = (
    "florana",
    "torch",
    "transformers",
    "peft",
    "flwr",
    "safetensors",
    "tokenizers",
    "numpy",
)
"""Packages whose versions are written beside every result."""


@dataclass(frozen=True, slots=True, eq=False)
class ServerSide:
    """What the server half of a run needs, on any engine.

    Args:
        config: the resolved configuration.
        model: the base model with LoRA, holding the first adapter.
        objective: what is trained for, and how it is scored.
        first: the server's state before the first round.
        test: the global test set, which no client sees; None where the server has no data.
        second_test: another, whose scores are told and judge nothing.
        sizes: every client's number of training examples, where the server knows them.
        provenance: what the run was made of, to be kept beside its results.
        notes: what people should know before training starts.
    """

    config: RunConfig
    model: LoraModel
    objective: Objective
    first: GlobalState
    test: Examples | None
    second_test: Examples | None
    sizes: tuple[int, ...]
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """Everything that a run in this process needs, made from its configuration alone.

    Args:
        server: the server half.
        work: the client half; both share one model.
        clients: every client's examples; of a pooled method one client with everybody's.
    """

    server: ServerSide
    work: ClientWork
    clients: tuple[ClientData, ...]

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self.server.config

    @property
    def model(self) -> LoraModel:
        """The base model with LoRA, holding the first adapter."""
        return self.server.model

    @property
    def objective(self) -> Objective:
        """What is trained for."""
        return self.server.objective

    @property
    def first(self) -> GlobalState:
        """The server's state before the first round."""
        return self.server.first

    @property
    def test(self) -> Examples:
        """The global test set."""
        assert self.server.test is not None
        return self.server.test

    @property
    def training(self) -> TrainingConfig:
        """How a client trains; the step of a pooled client is as large as all clients' together."""
        return self.work.training

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run was made of."""
        return self.server.provenance


def prepare(config: RunConfig) -> Experiment:
    """Load data and model and spread the data over the clients of this process.

    Raises:
        ConfigError, DataError, ModelError: if something cannot be had or does not fit.
    """
    _set_up_machine(config)
    data, test = load_data(config)
    splits = spread(config, data)
    source = find_model(config.model.name)
    load_libraries()
    tokenizer = load_tokenizer(source)
    objective = objectives.build(config, len(data.label_names), source)
    examples = objective.tokenize(data, tokenizer, config.model.max_length)
    clients = tuple(ClientData(examples.take(s.train), examples.take(s.test)) for s in splits)
    training = config.training
    pooled = plan_of(build(config.method.name, config.method.options), 1).pooled
    if pooled:
        everyone = np.sort(np.concatenate([s.train for s in splits]))
        held_out = np.sort(np.concatenate([s.test for s in splits]))
        clients = (ClientData(examples.take(everyone), examples.take(held_out)),)
        accumulation = training.accumulation * sampled_clients(config.federation)
        training = training.model_copy(update={"accumulation": accumulation})
    side = _server_side(config, source, objective, data, test, splits)
    sizes = tuple(len(client.train) for client in clients)
    server = replace(side, sizes=sizes, notes=(*examples.notes, *side.notes))
    return Experiment(server, ClientWork(config, side.model, objective, training), clients)


def prepare_server(config: RunConfig) -> ServerSide:
    """What the server needs where clients are in other processes; only the test set is tokenised.

    Raises:
        ConfigError: if the method needs all clients in one place, or the device is not here.
        DataError, ModelError: if something cannot be had or does not fit.
    """
    _set_up_machine(config)
    if plan_of(build(config.method.name, config.method.options), 1).pooled:
        raise ConfigError(
            f"{config.method.name} has all clients' data in one place; leave federation.engine at 'local'"
        )
    data: TextDataset | None = None
    splits: Sequence[ClientSplit] = ()
    if config.data.source == NODES:
        test = load_test(config)
    else:
        data, test = load_data(config)
        splits = spread(config, data)
    source = find_model(config.model.name)
    load_libraries()
    objective = objectives.build(config, len(_labels(config, data)), source)
    return _server_side(config, source, objective, data, test, splits)


def _server_side(
    config: RunConfig,
    source: ModelSource,
    objective: Objective,
    data: TextDataset | None,
    test: TextDataset | None,
    splits: Sequence[ClientSplit],
) -> ServerSide:
    """The server half; ``data`` is None and ``splits`` empty where only the clients have them."""
    model = build_lora_model(config, source, objective.head)
    first_test, second_test = _tests(config, source, objective, test, _labels(config, data))
    return ServerSide(
        config,
        model,
        objective,
        _first(config, model),
        first_test,
        second_test,
        tuple(len(split.train) for split in splits),
        _provenance(config, source, objective, data, test, splits),
        tuple(
            note for made in (first_test, second_test) if made is not None for note in made.notes
        ),
    )


def _labels(config: RunConfig, data: TextDataset | None) -> Sequence[str]:
    """Names of the labels: the data's, or where the server has none those of the configuration."""
    return (config.data.labels or ()) if data is None else data.label_names


def _tests(
    config: RunConfig,
    source: ModelSource,
    objective: Objective,
    test: TextDataset | None,
    labels: Sequence[str],
) -> tuple[Examples | None, Examples | None]:
    """What the server tests on: the parts of its test sets that ``evaluation.max_examples`` allows."""
    tokenizer = load_tokenizer(source)
    made: list[Examples | None] = []
    for number, data in enumerate((test, load_second_test(config, labels))):
        rng = generator(config.seed, "evaluated", number)
        chosen = None if data is None else data.head(config.evaluation.max_examples, rng)
        made.append(
            None
            if chosen is None
            else objective.tokenize(chosen, tokenizer, config.model.max_length)
        )
    first, second = made
    return first, second


def _set_up_machine(config: RunConfig) -> None:
    choose_device(config)  # refuses a device that is not here before anything is loaded
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _first(config: RunConfig, model: LoraModel) -> GlobalState:
    method = build(config.method.name, config.method.options)
    return first_state(model.initial, method, model.base_weights)


def _provenance(
    config: RunConfig,
    source: ModelSource,
    objective: Objective,
    data: TextDataset | None,
    test: TextDataset | None,
    splits: Sequence[ClientSplit],
) -> dict[str, Any]:
    labels = list(_labels(config, data))
    counts = [np.bincount(data.labels[s.train], minlength=len(labels)) for s in splits if data]
    return {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "key": secrets.token_hex(8),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in RECORDED},
        },
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "threads": torch.get_num_threads(),
            "device": choose_device(config),
        },
        "base_model": {"name": source.name, "sha256": source.sha256},
        "data": {
            "name": data.name if data else "the nodes' own",
            "examples": len(data) if data else 0,
            "fingerprint": data.fingerprint if data else "",
            "test_examples": len(test) if test else 0,
            "test_fingerprint": test.fingerprint if test else "",
        },
        "metric": asdict(objective.metrics[0]),
        "metrics": [metric.name for metric in objective.metrics],
        "labels": labels,
        "partition": [row.tolist() for row in counts],
        "held_out": [len(s.test) for s in splits],
    }
