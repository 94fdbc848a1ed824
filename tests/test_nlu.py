"""GLUE and its kin by name: columns, labels, metrics, regression; whole runs of each family of encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from florana.config import RunConfig, load_config
from florana.errors import ConfigError, DataError, FloranaError
from florana.experiments.data import load_data
from florana.experiments.events import Note, Prepared, RoundRow
from florana.experiments.setup import prepare
from florana.tasks import catalogue, tables
from florana.tasks.judging import judge_of
from tiny_encoders import ENCODERS, Encoder, build_encoders
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, write_texts

NLU = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "banking77", "ag_news")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    """A tiny random encoder of each family."""
    return build_encoders(tmp_path_factory.mktemp("encoders"))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def values(path: Path, count: int = 120, seed: int = 0) -> Path:
    """Pairs of texts and how many of their words are of the first vocabulary, from 0 to 5."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        value = int(rng.integers(0, 6))
        words = [f"w{rng.integers(8) + (0 if k < value else 8)}" for k in range(5)]
        rows.append({"text": " ".join(words[:3]), "text_pair": " ".join(words[3:]), "label": value})
    return write(path, rows)


@pytest.mark.parametrize("name", NLU)
def test_a_task_takes_one_key(name: str) -> None:
    """``data.task`` alone is a checked configuration, judged by the field's metric, with a labelled test set."""
    config = load_config(None, [f"data.task={name}"])
    task = catalogue.find(name)
    assert config.data.source == task.source
    assert config.data.test is not None
    assert config.data.metric == task.metrics[0] == judge_of(config).name
    expected = {"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}
    assert judge_of(config).name == expected.get(name, "accuracy")
    assert (config.data.second_test is not None) == (name == "mnli")


def test_what_is_set_wins_over_the_task() -> None:
    """Keys of the file stay; a source of one's own does not get the hub's test set."""
    config = load_config(
        None, ["data.task=mrpc", "data.source=mine.jsonl", "data.metric=accuracy", "data.text=a"]
    )
    assert (config.data.source, config.data.test) == ("mine.jsonl", None)
    assert (config.data.metric, config.data.text) == ("accuracy", "a")
    assert config.data.text_pair == ("sentence2", "text_pair")


def test_a_whole_file_takes_a_task(tmp_path: Path) -> None:
    """``florana config`` writes every key; those at their default give way to the task's."""
    from florana.cli.config import _as_toml

    path = tmp_path / "all.toml"
    path.write_text(_as_toml(), "utf-8")
    whole, bare = (load_config(p, ["data.task=stsb"]) for p in (path, None))
    assert whole == bare
    assert whole.data.family == "regression"


def test_a_configuration_with_a_task_reads_itself_back() -> None:
    """What a run folder keeps resolves to the same configuration again."""
    config = load_config(None, ["data.task=mnli"])
    again = load_config(
        None,
        [
            f"data.{k}={json.dumps(v)}"
            for k, v in config.model_dump(mode="json")["data"].items()
            if v is not None
        ],
    )
    assert again == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["data.task=msnli"], "there is no task 'msnli', did you mean 'mnli'?"),
        (["data.task=sst2", "data.metric=pearson"], "'pearson' is none of family 'classification'"),
        (["data.task=stsb", "data.labels=['a','b']"], "labels are of classification"),
        (["data.value_range=[0, 5]"], "value_range is of family = 'regression'"),
        (["data.task=stsb", "data.value_range=[5, 0]"], "expected [least, greatest]"),
        (["data.family=regression"], "needs data.source; docstrings have classes"),
    ],
)
def test_a_task_that_cannot_be_is_told_at_the_door(settings: list[str], told: str) -> None:
    """The message says what came and what was expected, before any data is read."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, settings)
    assert told in str(caught.value)


@pytest.mark.parametrize("style", ["hub numbers", "hub words", "local numbers", "local words"])
def test_hub_and_local_files_are_read_alike(tmp_path: Path, style: str) -> None:
    """MRPC under the hub's columns or those of local files, labels as numbers, as their text, or as words."""
    hub, numbers = style.split()[0] == "hub", style.endswith("numbers")
    first, second = ("sentence1", "sentence2") if hub else ("text", "text_pair")
    words = ["not_equivalent", "equivalent"]
    rows = [
        {
            first: f"a {i}",
            second: f"b {i}",
            "label": (i % 2 if hub else str(i % 2)) if numbers else words[i % 2],
        }
        for i in range(30)
    ]
    path = write(tmp_path / "mrpc.jsonl", rows)
    train, test = load_data(load_config(None, ["data.task=mrpc", f"data.source={path}"]))
    assert list(train.label_names) == words
    assert len(train) + len(test) == 30
    for part in (train, test):
        assert part.text_pairs is not None
        for text, pair, label in zip(part.texts, part.text_pairs, part.labels, strict=True):
            assert text.replace("a", "b") == pair
            assert int(text.split()[1]) % 2 == label


def test_the_positive_class_of_f1_is_the_equivalent_one() -> None:
    """GLUE's F1 is of the class numbered 1, whatever the alphabet says."""
    for name, positive in (("mrpc", "equivalent"), ("qqp", "duplicate"), ("cola", "acceptable")):
        labels = catalogue.find(name).labels
        assert labels is not None
        assert labels[1] == positive


def test_values_that_are_none_are_told_with_their_line(tmp_path: Path) -> None:
    """No number, not finite, and out of the range that was told."""
    for label, told in (("high", "expected a number"), ("nan", "expected a number"), (7, "0 to 5")):
        rows = [{"text": "a", "label": 1.0}, {"text": "b", "label": label}]
        path = write(tmp_path / "values.jsonl", rows)
        with pytest.raises(DataError, match=f"example 2: column 'label' holds .*{told}"):
            tables.load_values(str(path), text="text", label="label", value_range=(0, 5))


def test_bins_of_values_have_like_counts() -> None:
    """Quantile bins, which partitions go by, keep the order of the values; ties stay in one bin."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=1000)
    bins, names = tables.quantile_bins(spread)
    assert np.bincount(bins).tolist() == [200] * 5
    assert len(names) == 5
    order = np.argsort(spread)
    assert (np.diff(bins[order]) >= 0).all()
    tied, names = tables.quantile_bins(np.array([0.0] * 50 + [1.0] * 50))
    assert len(set(tied[:50])) == len(set(tied[50:])) == 1
    assert len(names) == len(set(tied.tolist()))


def test_a_regression_is_federated_and_learns(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """Pearson judges, Spearman is told beside it, and the loss, of the targets from -1 to 1, falls below a constant's."""
    path = values(tmp_path / "values.jsonl", 240)
    settings = [s for s in tiny_settings(kinds["own head"], path) if "dropout" not in s]
    more = ["data.task=stsb", "training.steps=20", "training.batch_size=16", "federation.rounds=3"]
    summary, events, config = tiny_run(settings, tmp_path / "run", *more, "method.name=florana-opt")
    rows = [e for e in events if isinstance(e, RoundRow)]
    assert rows[-1].loss < rows[0].loss
    assert summary.score > 0.5
    assert set(summary.metrics) == {"spearman"}
    assert all(set(row.client_metrics) == {"spearman"} for row in rows[1:])
    experiment = prepare(config)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    final = experiment.work
    truth = [int(v) for v in load_data(config)[1].values.tolist()]  # type: ignore[union-attr]
    assert experiment.test.labels.tolist() == pytest.approx([(v - 2.5) / 2.5 for v in truth])
    assert lines[0]["loss"] == pytest.approx(
        final.objective.evaluate(_at(experiment), experiment.test).loss
    )
    spread = float(np.var(truth)) / 2.5**2
    assert rows[-1].loss < spread  # better than the best constant


def _at(experiment: Any) -> Any:
    """The model with the adapter that the run began with."""
    experiment.model.load(experiment.first.adapter)
    return experiment.model


def test_metrics_land_beside_the_score(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """F1 judges MRPC, accuracy is told for the global model, the clients and in the summary; the gap is F1's."""
    rng = np.random.default_rng(0)
    rows = [
        {"text": f"w{rng.integers(8) + 8 * (i % 2)} w{rng.integers(24)}", "text_pair": f"w{rng.integers(24)}", "label": str(i % 2)}
        for i in range(150)
    ]  # fmt: skip
    path = write(tmp_path / "mrpc.jsonl", rows)
    more = ["data.task=mrpc", f"data.second_test='{path}'"]
    summary, events, _ = tiny_run(tiny_settings(kinds["own head"], path), tmp_path / "run", *more)
    assert set(summary.metrics) == {"accuracy", "f1 (second test)"}
    (plan,) = [e for e in events if isinstance(e, Prepared)]
    assert plan.provenance["metric"] == {"name": "f1", "higher_is_better": True, "percent": True}
    assert plan.provenance["metrics"] == ["f1", "accuracy"]
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    for line in lines:
        named = {"accuracy", "f1 (second test)"} if line["kind"] == "round" else {"accuracy"}
        assert set(line["metrics"]) == named
    last = lines[-1]
    clients = [c for c in lines if c["kind"] == "client" and c["round"] == last["round"]]
    assert last["client_score"] == pytest.approx(np.mean([c["score"] for c in clients]))
    assert last["worst_client"] == min(c["score"] for c in clients)
    assert last["gap"] == pytest.approx(last["client_score"] - last["score"])
    page = (tmp_path / "run" / "provenance.json").read_text()
    assert json.loads(page)["config"]["data"]["metric"] == "f1"


@pytest.mark.parametrize("name", ENCODERS)
def test_every_family_of_encoders_is_adapted_and_trained(
    encoders: dict[str, Encoder], tmp_path: Path, name: str
) -> None:
    """Two rounds on pairs of sentences: the target modules are found, the loss falls, the adapter loads again."""
    import florana

    encoder = encoders[name]
    rng = np.random.default_rng(0)
    rows = [
        {
            "text": " ".join(f"w{i % 2 * 8 + rng.integers(8)}" for _ in range(3)),
            "text_pair": f"w{16 + rng.integers(8)}",
            "label": i % 2,
        }
        for i in range(160)
    ]
    path = write(tmp_path / "pairs.jsonl", rows)
    settings = [
        *tiny_settings(encoder.kind, path),
        "data.text_pair=text_pair",
        "lora.dropout=0",
        f"lora.target_modules={list(encoder.kind.targets)}",
        "federation.rounds=2",
        "federation.partition=iid",
        "training.steps=12",
        "training.batch_size=16",
        f"model.pooling={encoder.pooling}",
    ]
    _, events, _ = tiny_run(settings, tmp_path / "run")
    losses = [e.loss for e in events if isinstance(e, RoundRow)]
    assert losses[-1] < losses[0]
    assert len(florana.load_adapter(tmp_path / "run" / "final").pairs) == encoder.modules
    assert florana.load_model(tmp_path / "run") is not None
    with pytest.raises(FloranaError) as caught:
        tiny_run([*settings, "lora.target_modules=['nowhere']"], tmp_path / "none")
    assert all(target in str(caught.value) for target in encoder.kind.targets)


def test_cut_examples_are_counted_before_training(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """A note per part says how many of its examples are cut, before the plan; without any there is no note."""
    path = write_texts(tmp_path / "texts.csv")
    settings = tiny_settings(kinds["own head"], path)
    _, events, config = tiny_run(settings, tmp_path / "run", "model.max_length=5")
    notes = [e.text for e in events if isinstance(e, Note)]
    train, test = load_data(config)
    for data, note in zip((train, test), notes, strict=True):
        long = sum(len(text.split()) + 2 > 5 for text in data.texts)
        assert note.startswith(f"{data.name}: {long:,} of {len(data):,} examples are longer than")
    before = [type(e) for e in events[: len(notes) + 1]]
    assert before == [Note] * len(notes) + [Prepared]
    _, events, _ = tiny_run(settings, tmp_path / "whole", "model.max_length=16")
    assert not [e for e in events if isinstance(e, Note)]


def test_a_test_set_with_an_unknown_label_is_refused(
    kinds: dict[str, Kind], tmp_path: Path
) -> None:
    """It is named, with those that the training data have."""
    train = write_texts(tmp_path / "texts.csv")
    test = write(tmp_path / "test.jsonl", [{"text": "w1", "label": x} for x in "abz"])
    config = load_config(None, [*tiny_settings(kinds["own head"], train), f"data.test='{test}'"])
    with pytest.raises(DataError, match=r"labels \['z'\] do not occur .*known: a, b, c"):
        prepare(config)


def test_a_device_that_is_not_here_is_refused_first(tmp_path: Path) -> None:
    """Before the data, which are not there either."""
    import torch

    absent = "mps" if torch.cuda.is_available() else "cuda"
    config = load_config(None, [f"device={absent}", f"data.source={tmp_path / 'gone.csv'}"])
    with pytest.raises(ConfigError, match=f"device = '{absent}', but torch .* set device = 'auto'"):
        prepare(config)


@pytest.mark.parametrize(
    ("name", "rows", "classes"),
    [("cola", 7695, 2), ("sst2", 6227, 2), ("mrpc", 3300, 2), ("rte", 2240, 2), ("stsb", 5173, 5),
     ("mnli", 8999, 3), ("banking77", 10003, 77), ("ag_news", 8000, 4)],
)  # fmt: skip
def test_the_real_sets_are_read_by_name(
    data_root: Path, name: str, rows: int, classes: int
) -> None:
    """Every row of the file has a text and a class or value; validation sets have the same classes."""
    folder = data_root / "nlu" / name
    settings = [f"data.task={name}", f"data.source='{folder / 'train.jsonl'}'"]
    if (folder / "validation.jsonl").exists():
        settings.append(f"data.test='{folder / 'validation.jsonl'}'")
    train, test = load_data(load_config(None, settings))
    held = 0 if len(settings) > 2 else len(test)
    assert (len(train) + held, len(train.label_names)) == (rows, classes)
    assert (train.values is not None) == (name == "stsb")
    assert (train.text_pairs is not None) == (name in {"mrpc", "rte", "stsb", "mnli"})
    assert set(np.unique(train.labels)) == set(range(classes))
