"""One node of a federation: what it needs to answer a message, from its own settings and the run's."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import RecordDict

from florana.adapter import Adapter, Plan
from florana.config import NODES, RunConfig
from florana.errors import ConfigError, DataError
from florana.experiments.client import ClientData, ClientWork, build_lora_model
from florana.experiments.data import load_data, load_own, spread
from florana.experiments.metrics import SECONDS
from florana.experiments.node_cache import cached, key_of
from florana.federation.client_app import LocalResult, answer_evaluate, answer_train
from florana.federation.client_store import ClientStore
from florana.federation.records import Held
from florana.federation.views import configs_in, metrics_in
from florana.tasks.dataset import TextDataset
from florana.tasks.partition import ClientSplit
from florana.training import load_libraries, objectives
from florana.training.base_model import MINILM, ModelSource, find_model, load_tokenizer
from florana.training.examples import Examples
from florana.training.quantization import may_be_quantized


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node says of itself, in ``--node-config``.

    Args:
        partition: ``partition-id``, from 0.
        data: ``data``, a file or folder of the node's own, which is its whole partition then.
        model: ``model``, the folder of the base model on this node.
        state: ``state``, folder of what the node keeps: tokenised data, and what methods keep at home. By
            default ``$FLORANA_HOME``, or ``~/.florana``.
    """

    partition: int
    data: str | None
    model: str | None
    state: Path

    @classmethod
    def read(cls, node_config: Mapping[str, Any], clients: int) -> NodeSettings:
        """Check what Flower hands over.

        Raises:
            ConfigError: if the partition is missing or not one of ``clients``.
        """
        partition = node_config.get("partition-id")
        if type(partition) is not int or not 0 <= partition < clients:
            raise ConfigError(
                f"this node's partition-id is {partition!r}, expected 0 to {clients - 1} (federation.clients is "
                f"{clients}); start it with: flower-supernode --node-config 'partition-id=0 ...'"
            )
        state = node_config.get("state") or os.environ.get("FLORANA_HOME") or "~/.florana"
        return cls(
            partition,
            node_config.get("data") or None,
            node_config.get("model") or None,
            Path(str(state)).expanduser(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A node that is ready to train.

    Args:
        settings: the node's own.
        work: the model and how to train it.
        data: the client's examples.
    """

    settings: NodeSettings
    work: ClientWork
    data: ClientData

    def train(self, content: RecordDict) -> RecordDict:
        """Answer a ``train`` message; what has to be kept is on disk before the reply goes out."""
        began = time.perf_counter()
        config: Mapping[str, Any] = configs_in(content)["config"]
        partition, server_round = self.settings.partition, int(config["server-round"])
        store = self._store(config)
        state = store.read(server_round)
        reply = answer_train(
            content, state, partition, self._template, self._train_client, self._score_client
        )
        store.write(server_round, state)
        metrics_in(reply)["metrics"][SECONDS] = time.perf_counter() - began
        return reply

    def evaluate(self, content: RecordDict) -> RecordDict:
        """Answer an ``evaluate`` message."""
        config: Mapping[str, Any] = configs_in(content)["config"]
        state = self._store(config).read(int(config["server-round"]))
        return answer_evaluate(
            content, state, self.settings.partition, self._template, self._score_client
        )

    @property
    def _template(self) -> Adapter:
        return self.work.model.initial

    def _store(self, config: Mapping[str, Any]) -> ClientStore:
        key = str(config.get("run-key", ""))
        return ClientStore.of(self.settings.state, key, self.settings.partition)

    def _train_client(self, start: Held, plan: Plan, server_round: int, client: int) -> LocalResult:
        return self.work.train(self.data, start, plan, server_round, client)

    def _score_client(self, start: Held, client: int) -> dict[str, float]:
        return self.work.score(self.data, start, client)


def open_node(config: RunConfig, node_config: Mapping[str, Any]) -> Node:
    """Load what this node needs, and no more: its model by mmap, its examples from its cache.

    The model is kept for the next message where one process answers several, as Ray's actors do; nothing of
    a client is.

    Raises:
        ConfigError, DataError, ModelError: if something cannot be had or does not fit.
    """
    settings = NodeSettings.read(node_config, config.federation.clients)
    threads = config.threads or node_config.get("threads")
    if threads:
        torch.set_num_threads(int(threads))
    source = _find(config, settings.model)
    load_libraries(bitsandbytes=may_be_quantized(config.model, source.path))
    key = key_of(config, source, settings.partition, settings.data)
    data, labels = cached(
        settings.state / "cache", key, lambda: _tokenised(config, source, settings)
    )
    return Node(settings, _work(config.model_dump_json(), source, labels), data)


@lru_cache(maxsize=1)
def _work(config_json: str, source: ModelSource, labels: int) -> ClientWork:
    config = RunConfig.model_validate_json(config_json)
    objective = objectives.build(config, labels, source)
    model = build_lora_model(config, source, objective.head)
    return ClientWork(config, model, objective, config.training)


@lru_cache(maxsize=1)
def _common(config_json: str, source: ModelSource) -> tuple[Examples, list[ClientSplit], int]:
    """The examples that all clients have parts of, the parts, and the number of classes."""
    config = RunConfig.model_validate_json(config_json)
    data, _ = load_data(config)
    examples = _examples(config, source, data)
    return examples, spread(config, data), len(data.label_names)


def _examples(config: RunConfig, source: ModelSource, data: TextDataset) -> Examples:
    objective = objectives.build(config, len(data.label_names), source)
    return objective.tokenize(data, load_tokenizer(source), config.model.max_length)


def _find(config: RunConfig, folder: str | None) -> ModelSource:
    """The base model under the name that it has in the run, wherever it is on this node."""
    name = config.model.name
    source = find_model(folder or name)
    return replace(source, name=MINILM if name == "minilm" else name)


def _tokenised(
    config: RunConfig, source: ModelSource, settings: NodeSettings
) -> tuple[ClientData, int]:
    """The client's examples, and the number of classes."""
    client = settings.partition
    if settings.data is not None:
        data, split = load_own(config, settings.data, client)
        examples = _examples(config, source, data)
        labels = len(data.label_names)
    elif config.data.source == NODES:
        raise DataError(
            f"client {client} names no data, and data.source is 'nodes'; start its node with: flower-supernode "
            "--node-config 'partition-id=... data=\"/path/file.csv\"'"
        )
    else:
        examples, splits, labels = _common(config.model_dump_json(), source)
        split = splits[client]
    return ClientData(examples.take(split.train), examples.take(split.test)), labels
