"""What partitions are to a whole run: keys of the configuration, provenance, test sets by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from florana.config import RunConfig, load_config
from florana.errors import ConfigError, DataError
from florana.experiments.data import load_data, load_second_test, spread
from florana.experiments.setup import prepare
from florana.tasks import catalogue
from florana.tasks.catalogue import NamedTask
from florana.tasks.partition import MIN_EXAMPLES


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """600 questions of six subjects, without labels."""
    rows = [{"q": f"question {i}", "a": f"answer {i}", "subject": f"s{i % 6}"} for i in range(600)]
    return write(tmp_path / "questions.jsonl", rows)


def causal(source: Path, *overrides: str) -> RunConfig:
    """A run on questions, five clients."""
    settings = [
        "data.family=causal",
        f"data.source={source}",
        "data.prompt={q}",
        "data.response= {a}",
    ]
    return load_config(None, [*settings, "federation.clients=5", *overrides])


def sizes(config: RunConfig) -> list[int]:
    """What each client has, held-out examples too."""
    data, _ = load_data(config)
    return [len(s.train) + len(s.test) for s in spread(config, data)]


def test_quantity_skew_needs_no_labels(questions: Path) -> None:
    """Texts without labels: sizes by the law that is asked for, complete, none too small; the same again."""
    config = causal(questions, "federation.partition=iid", "federation.quantity=dirichlet")
    found = sizes(config)
    assert sum(found) == 540
    assert min(found) >= MIN_EXAMPLES
    assert max(found) > 1.3 * min(found)
    assert sizes(config) == found
    even = ["federation.quantity=lognormal", "federation.quantity_sigma=0.001"]
    assert np.ptp(sizes(causal(questions, "federation.partition=iid", *even))) <= 2


def test_dirichlet_over_a_column_needs_no_labels(questions: Path) -> None:
    """The Dirichlet law goes over the column's values, with and without sizes."""
    column = ["federation.column=subject", "federation.dirichlet_alpha=0.5"]
    for more in ([], ["federation.quantity=lognormal"]):
        config = causal(questions, *column, *more)
        data, _ = load_data(config)
        tops = [
            np.bincount(data.labels[s.train]).max() / len(s.train) for s in spread(config, data)
        ]
        assert float(np.mean(tops)) > 0.3  # even: 0.17


@pytest.mark.parametrize("partition", ["label", "column"])
def test_quantity_with_a_partition_that_has_sizes_is_refused(partition: str) -> None:
    """Told with the configuration, before any data are read."""
    keys = [
        f"federation.partition={partition}",
        "federation.column=x",
        "federation.quantity=dirichlet",
    ]
    with pytest.raises(ConfigError, match="quantity = 'dirichlet' is of partition = 'iid' or"):
        load_config(None, keys)


def test_provenance_has_what_clients_hold_out() -> None:
    """One number for each client, beside its counts of labels; together they are all training examples."""
    experiment = prepare(load_config(None, ["data.max_examples=600", "federation.clients=3"]))
    provenance = experiment.provenance
    assert provenance["held_out"] == [len(client.test) for client in experiment.clients]
    held = sum(provenance["held_out"]) + sum(map(sum, provenance["partition"]))
    assert held == provenance["data"]["examples"]


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of one task, with columns of its own."""
    source = write(
        tmp_path / "other.jsonl", [{"head": f"h{i}", "body": f"b{i}"} for i in range(12)]
    )
    task = NamedTask(
        "other", "causal", str(source), ("perplexity",), "", prompt="{head}", response="{body}"
    )
    monkeypatch.setattr(catalogue, "tasks", lambda: {"other": task})


@pytest.mark.usefixtures("named")
def test_a_second_test_may_be_a_task_with_columns_of_its_own(questions: Path) -> None:
    """HumanEval beside MBPP: its prompts and responses are made as that task says."""
    found = load_second_test(causal(questions, "data.second_test=other"), None)
    assert found is not None
    assert (found.texts[0], (found.responses or [""])[0]) == ("h0", "b0")


@pytest.mark.usefixtures("named")
def test_a_second_test_that_is_judged_otherwise_is_refused(questions: Path) -> None:
    """One objective scores both test sets, so family and scorer are the same."""
    scored = ["data.scorer=number", "data.reference={a}", "data.second_test=other"]
    with pytest.raises(DataError, match="judged in another way"):
        load_second_test(causal(questions, *scored), None)
