"""Whole runs of every method: what they report, what they write, and that it is the model they say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import florana
from florana.adapter import Plan
from florana.aggregators import build, cards, plan_of
from florana.config import RunConfig
from florana.experiments.checkpoint import Checkpoint
from florana.experiments.events import Event, RoundRow, Summary
from florana.experiments.run_folder import RunFolder
from florana.experiments.setup import Experiment, prepare
from strategies import assert_near
from tiny_models import Kind, logits, train
from tiny_runs import tiny_run, tiny_settings, write_texts

METHODS = list(cards())


@dataclass(frozen=True)
class Done:
    """A finished run of one method, and everything that it was made of."""

    method: str
    folder: Path
    summary: Summary
    events: list[Event]
    config: RunConfig
    experiment: Experiment

    @property
    def plan(self) -> Plan:
        """The method's plan for the first round."""
        return plan_of(build(self.method, {}), 1)

    @property
    def checkpoint(self) -> Checkpoint:
        """The state after the last round."""
        read = RunFolder.open(self.folder).read_checkpoint(self.experiment.first)
        assert read is not None
        return read

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]


@pytest.fixture(scope="module", params=METHODS)
def done(
    request: pytest.FixtureRequest, kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory
) -> Done:
    """A finished tiny run of each method in turn."""
    folder, method = tmp_path_factory.mktemp(request.param), request.param
    settings = tiny_settings(kinds["own head"], write_texts(folder / "texts.csv"))
    summary, events, config = tiny_run(settings, folder / "run", f"method.name={method}")
    return Done(method, folder / "run", summary, events, config, prepare(config))


def score(model: nn.Module, done: Done) -> tuple[float, float]:
    """Accuracy and loss on the global test set."""
    test = done.experiment.test
    said = logits(model, test)
    loss = nn.functional.cross_entropy(said, test.labels)
    return float((said.argmax(1) == test.labels).float().mean()), float(loss)


def own_folders(done: Done) -> list[Path]:
    """The folders of the clients' own models."""
    return sorted((done.folder / "clients").iterdir()) if (done.folder / "clients").exists() else []


def test_the_reported_score_is_that_of_the_models_that_were_written(done: Done) -> None:
    """A global method's: ``final``, loaded with PEFT. A personal one's: the mean over the clients' folders."""
    names = [f"clients/{path.name}" for path in own_folders(done)] or ["final"]
    scores = [score(florana.load_model(done.folder, name), done) for name in names]
    assert sum(a for a, _ in scores) / len(scores) == pytest.approx(done.summary.score)
    assert sum(loss for _, loss in scores) / len(scores) == pytest.approx(
        done.summary.loss, rel=1e-4
    )


def test_clients_have_folders_of_their_own_where_they_keep_a_part(done: Done) -> None:
    """As many as clients, all different; no other method writes any."""
    folders = own_folders(done)
    assert len(folders) == (3 if done.plan.home else 0)
    adapters = [florana.load_adapter(folder) for folder in folders]
    for part in done.plan.home & {"A", "B"}:
        first, *others = [
            torch.cat([t.flatten() for t in a.tensors({part}).values()]) for a in adapters
        ]
        assert all(not torch.equal(first, other) for other in others)


def test_final_is_the_state_and_what_was_added_to_the_base(done: Done) -> None:
    """ΔW of ``final`` is s B̂ Â + F of the last checkpoint, dense; what stays at home enters with its weighted mean."""
    state, final = done.checkpoint.state, florana.load_adapter(done.folder / "final")
    assert bool(state.residual) is cards()[done.method].keeps_residual
    adapter = state.adapter.with_tensors(mean_at_home(done))
    assert final.pairs.keys() == adapter.pairs.keys()
    for name, pair in adapter.pairs.items():
        expected = pair.folded().delta_w()
        if name in state.residual:
            F = state.residual[name]
            expected = expected + F.B.double() @ F.A.double()
        assert float(expected.norm()) > 0
        assert_near(final.pairs[name].delta_w(), expected, 1e-5)
    for name, head in adapter.extras.items():
        assert_near(final.extras[name], head, 1e-6)


def mean_at_home(done: Done) -> dict[str, Tensor]:
    """Σ n_c X_c / Σ n_c of the parts X that clients keep, from their folders."""
    own = [florana.load_adapter(folder).tensors(done.plan.home) for folder in own_folders(done)]
    sizes = [len(client.train) for client in done.experiment.clients]
    return {
        name: sum((n * t[name] for t, n in zip(own, sizes, strict=True)), torch.zeros(()))
        / sum(sizes)
        for name in (own[0] if own else {})
    }


def test_peft_loads_final_on_the_base_of_the_run(
    done: Done, recwarn: pytest.WarningsRecorder
) -> None:
    """Whatever the method: a plain LoRA folder, with no key missing."""
    loaded = PeftModel.from_pretrained(
        florana.load_base_model(done.folder), str(done.folder / "final")
    )
    assert not [w for w in recwarn if "missing" in str(w.message).lower()]
    ours = florana.load_model(done.folder)
    test = done.experiment.test
    assert torch.equal(logits(loaded, test), logits(ours, test))


def test_errors_are_told_where_the_server_sees_the_updates(done: Done) -> None:
    """Never for methods that keep a part at home; zero for exact ones; ordered for those in between."""
    rows = [e for e in done.events if isinstance(e, RoundRow) and e.server_round]
    assert len(rows) == 4
    rounds = [line for line in done.lines if line["kind"] == "round" and line["round"]]
    for row, line in zip(rows, rounds, strict=True):
        told = (row.error_used, row.error_average, row.error_optimum)
        if done.plan.home:
            assert told == (None, None, None)
            assert line["modules"] == line["spectra"] == {}
            continue
        assert None not in told
        assert line["modules"].keys() == done.experiment.model.initial.pairs.keys()
        exact = {"flora", "fedex-lora", "ideal", "frlora", "ffa-lora", "rolora", "centralised"}
        if done.method in exact or (done.method == "fed-sb" and row.server_round > 1):
            assert row.error_used is not None
            assert row.error_used < 1e-5


def test_bytes_of_a_run(done: Done) -> None:
    """Nothing for a pooled run, almost nothing up for a local one, numbers for all others; both in metrics.jsonl."""
    rows = [e for e in done.events if isinstance(e, RoundRow) and e.server_round]
    heads = 4 * sum(t.numel() for t in done.experiment.model.initial.extras.values())
    for row in rows:
        if done.plan.pooled:
            assert (row.bytes_up, row.bytes_down) == (0, 0)
        elif not done.plan.sent:
            assert 0 < row.bytes_up < 2 * 2000
        else:
            assert row.bytes_up > 2 * heads
            assert row.bytes_down > 2 * heads
    lines = [line for line in done.lines if line["kind"] == "round" and line["round"]]
    assert [(line["bytes_up"], line["bytes_down"]) for line in lines] == [
        (row.bytes_up, row.bytes_down) for row in rows
    ]


def test_a_pooled_run_has_everybodys_data_in_one_place(done: Done) -> None:
    """One client with all examples, and steps as large as all clients' of a round together."""
    clients = done.experiment.clients
    total = sum(map(sum, done.experiment.provenance["partition"]))
    assert sum(len(client.train) for client in clients) == total
    accumulation = done.experiment.training.accumulation
    assert (len(clients), accumulation) == ((1, 2) if done.plan.pooled else (3, 1))
    per_round = [line for line in done.lines if line["kind"] == "client" and line["round"] == 1]
    assert len(per_round) == (1 if done.plan.pooled else 2)


def test_clients_of_a_local_run_train_as_if_alone(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """Its clients' models are those of a training that knows of no federation, round after round."""
    from florana.training.loop import Place

    settings = tiny_settings(kinds["decoder"], write_texts(tmp_path / "texts.csv"))
    everyone = [*settings, "lora.target_modules=['q_proj']", "federation.participation=1.0"]
    _, _, config = tiny_run(everyone, tmp_path / "run", "method.name=local")
    experiment = prepare(config)
    for client, data in enumerate(experiment.clients):
        experiment.model.load(experiment.first.adapter)
        for server_round in range(1, 5):
            place = Place(config.seed, server_round, 4, client)
            train(experiment.model, data.train, config.training, place)
        alone = experiment.model.take()
        written = florana.load_adapter(tmp_path / "run" / "clients" / str(client))
        for name, tensor in alone.tensors().items():
            assert torch.equal(written.tensors()[name], tensor)
