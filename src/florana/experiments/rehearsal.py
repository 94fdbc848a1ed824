"""Everything about a run that can be told without training: data, partition, tokens, modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from florana.aggregators import build, plan_of
from florana.config import RunConfig
from florana.errors import ConfigError
from florana.experiments.client import choose_device
from florana.experiments.data import load_data, load_second_test, spread
from florana.experiments.run_folder import refuse_used
from florana.tasks.partition import PartitionSummary, summarise
from florana.training import objectives
from florana.training.base_model import ModelSource, find_model, load_tokenizer
from florana.training.quantization import loading_options
from florana.training.targets import factor_numbers, find_targets, skeleton


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a run would be made of.

    Args:
        config: the checked configuration.
        source: the base model.
        device: where it would compute.
        parameters: numbers of the base model.
        modules: how many of its modules would be adapted.
        factors: numbers in their factors, which a client trains beside a fresh head.
        data: name of the training data.
        train: examples that clients train on or test their own models on.
        test: examples of the global test set.
        partition: what each client would hold.
        notes: what people should know, such as that examples are cut.
    """

    config: RunConfig
    source: ModelSource
    device: str
    parameters: int
    modules: int
    factors: int
    data: str
    train: int
    test: int
    partition: PartitionSummary
    notes: tuple[str, ...]


def rehearse(config: RunConfig) -> Rehearsal:
    """Check all that can be checked before training, without loading the base model's weights into memory.

    Data are read, spread and tokenised as in the run; the base model is found and its files are hashed; its modules are
    looked at in a skeleton of it. Nothing is written.

    Raises:
        FloranaError: what the run would have raised before its first round.
    """
    if config.output is not None:
        refuse_used(Path(config.output))
    device = choose_device(config)
    loading_options(config.model, torch.device(device))  # refuses what this machine cannot hold
    data, test = load_data(config)
    splits = spread(config, data)
    source = find_model(config.model.name)
    tokenizer = load_tokenizer(source)
    objective = objectives.build(config, len(data.label_names), source)
    sets = (data, test, load_second_test(config, data.label_names))
    notes = [
        note
        for found in sets
        if found is not None
        for note in objective.tokenize(found, tokenizer, config.model.max_length).notes
    ]
    base = skeleton(source, objective.head)
    targets = find_targets(base, source, config.lora)
    _check_engine(config)
    counts = [np.bincount(data.labels[s.train], minlength=len(data.label_names)) for s in splits]
    return Rehearsal(
        config,
        source,
        device,
        sum(p.numel() for p in base.parameters()),
        len(targets),
        factor_numbers(targets, config.lora),
        data.name,
        len(data),
        len(test),
        summarise(np.array(counts), list(data.label_names), [len(s.test) for s in splits]),
        tuple(notes),
    )


def _check_engine(config: RunConfig) -> None:
    method = build(config.method.name, config.method.options)
    if config.federation.engine != "local" and plan_of(method, 1).pooled:
        raise ConfigError(
            f"{config.method.name} has all clients' data in one place; leave federation.engine at 'local'"
        )
