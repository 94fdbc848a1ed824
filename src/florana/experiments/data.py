"""The run's text: where it comes from, and how it is spread over clients and test sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from florana.config import NODES, DataConfig, FederationConfig, RunConfig
from florana.errors import DataError
from florana.seeding import generator
from florana.tasks import catalogue, docstrings, tables
from florana.tasks.dataset import TextDataset
from florana.tasks.partition import ClientSplit, SizeLaw, hold_out, partition, split_clients


def load_data(config: RunConfig) -> tuple[TextDataset, TextDataset]:
    """Training data and global test set.

    Raises:
        DataError: if they cannot be read, or the labels are not those of ``data.labels``.
    """
    settings = config.data
    data = load_train(config)
    if settings.test is not None:
        return data, _load(settings, settings.test, None, data.label_names)
    kept, held = hold_out(len(data), settings.test_fraction, generator(config.seed, "test set"))
    return data.select(kept), data.select(held, "held-out test set")


def load_train(config: RunConfig) -> TextDataset:
    """All examples of the source, before a test set is taken out of them.

    Raises:
        DataError: if they cannot be read.
    """
    settings = config.data
    if settings.source == NODES:
        raise DataError(
            "data.source = 'nodes' means that every SuperNode of a deployment brings its own file, and this "
            "engine has no such nodes: set data.source, or deploy the run with: florana app DIR CONFIG"
        )
    data = _load(settings, settings.source, config.federation.column, settings.labels)
    return data.head(settings.max_examples, generator(config.seed, "examples"))


def load_test(config: RunConfig) -> TextDataset | None:
    """The server's test set where the nodes bring their own training data; None if it has none."""
    settings = config.data
    return None if settings.test is None else _load(settings, settings.test, None, settings.labels)


def load_second_test(config: RunConfig, labels: Sequence[str] | None) -> TextDataset | None:
    """The test set that is told beside the first; None if there is none.

    Args:
        config: the run's.
        labels: the classes of the training data.

    Raises:
        DataError: if it cannot be read.
    """
    settings, source = config.data, config.data.second_test
    if source is None:
        return None
    if source in catalogue.tasks() and not Path(source).exists():
        settings, source = _of_task(settings, source)
    return _load(settings, source, None, labels)


def _of_task(settings: DataConfig, name: str) -> tuple[DataConfig, str]:
    """The settings that read a known task's test set, and where it is."""
    task = catalogue.find(name)
    if (task.family, task.scorer) != (settings.family, settings.scorer):
        raise DataError(
            f"data.second_test = {name!r} is judged in another way: its family is {task.family!r}, its scorer {task.scorer!r}, "
            f"here they are {settings.family!r} and {settings.scorer!r}"
        )
    said = task.settings()
    own = {key: said.get(key) for key in ("prompt", "response", "reference", "text_pair")}
    own |= {key: said[key] for key in ("text", "label") if key in said}
    return settings.model_copy(update={"task": name, **own}), task.test or task.source


def spread(config: RunConfig, data: TextDataset) -> list[ClientSplit]:
    """Which examples each client trains on, and which it keeps to test its own model.

    Raises:
        DataError: if a client would be too poor.
    """
    seed, federation = config.seed, config.federation
    parts = partition(
        data.labels,
        federation.clients,
        federation.partition,
        generator(seed, "partition"),
        dirichlet_alpha=federation.dirichlet_alpha,
        labels_per_client=federation.labels_per_client,
        min_labels=federation.min_labels if config.data.family == "classification" else 1,
        groups=data.groups,
        sizes=_size_law(config.federation),
    )
    return split_clients(parts, config.data.local_test_fraction, generator(seed, "local test"))


def _size_law(federation: FederationConfig) -> SizeLaw | None:
    if federation.quantity is None:
        return None
    dirichlet = federation.quantity == "dirichlet"
    spread = federation.quantity_alpha if dirichlet else federation.quantity_sigma
    return SizeLaw(federation.quantity, spread)


def load_own(config: RunConfig, path: str, client: int) -> tuple[TextDataset, ClientSplit]:
    """A node's own file, which is the whole of its partition.

    Args:
        config: the run's; ``data.labels`` says what the classes are.
        path: the file, or folder of files.
        client: the node's partition.

    Raises:
        DataError: if it cannot be read, or holds too little.
    """
    settings = config.data
    if settings.labels is None and settings.family == "classification":
        raise DataError(
            f"client {client} has data of its own, {path}; data.labels has to name the classes, so that all "
            "clients mean the same by them"
        )
    data = _load(settings, path, None, settings.labels)
    data = data.head(settings.max_examples, generator(config.seed, "examples", client))
    rng = generator(config.seed, "local test", client)
    kept, held = hold_out(len(data), settings.local_test_fraction, rng)
    return data, ClientSplit(kept, held)


def expanded(source: str) -> str:
    """The source with environment variables filled in, so that a configuration can travel.

    Raises:
        DataError: if a variable is not set.
    """
    filled = os.path.expandvars(source)
    if "$" in filled and not Path(filled).exists():
        raise DataError(f"data source {source!r} names an environment variable that is not set")
    return filled


def _load(
    settings: DataConfig, source: str, group: str | None, labels: Sequence[str] | None = None
) -> TextDataset:
    names = None if labels is None else list(labels)
    if source == "docstrings":
        return _docstrings(group, names)
    path = expanded(source)
    if settings.family == "causal":
        task = catalogue.find(settings.task) if settings.task else None
        found = tables.load_responses(
            path,
            prompt=_prompt(settings, task),
            response=settings.response or "",
            reference=(task and task.reference_of) or settings.reference,
            group=group,
        )
        return replace(found, name=source)
    columns: dict[str, Any] = {
        "text": settings.text,
        "text_pair": settings.text_pair,
        "label": settings.label,
        "group": group,
    }
    if settings.family == "regression":
        found = tables.load_values(path, **columns, value_range=settings.value_range)
    else:
        found = tables.load(path, **columns, label_names=names)
    return replace(found, name=source)


def _prompt(
    settings: DataConfig, task: catalogue.NamedTask | None
) -> str | Callable[[catalogue.Row], str]:
    """The configuration's template, or what the task says; nothing of plain text."""
    if settings.prompt is None and task is not None and task.prompt_of is not None:
        return task.prompt_of
    return settings.prompt or ""


def _docstrings(group: str | None, names: Sequence[str] | None) -> TextDataset:
    if group is not None:
        raise DataError(
            f"the docstrings have no column {group!r}; leave federation.column out, or set data.source"
        )
    found = docstrings.load()
    if names is not None and list(found.label_names) != names:
        raise DataError(
            f"data.labels is {names}, the docstrings' labels are {list(found.label_names)}"
        )
    return found
