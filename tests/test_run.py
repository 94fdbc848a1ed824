"""Whole runs: what they tell and write, on the real MiniLM, and what stops them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import florana
from crash import SMALL
from florana.config import RunConfig, load_config
from florana.errors import FloranaError, RunError
from florana.experiments import client, runner
from florana.experiments.events import ClientLeftOut, Event, Note, Prepared, RoundRow, Summary
from florana.experiments.run_folder import RunFolder
from florana.experiments.setup import prepare
from florana.training.base_model import ModelSource
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, what_it_left, write_texts


def small(output: Path, *overrides: str) -> RunConfig:
    """The quickstart in small."""
    return load_config(None, [*SMALL, f'output="{output}"', *overrides])


@pytest.fixture(scope="module")
def finished(
    minilm: ModelSource, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event], Summary]:
    """A finished small run with the events it told."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    events: list[Event] = []
    summary = runner.start(small(folder, "training.steps=4"), events.append)
    return folder, events, summary


def test_a_run_tells_its_plan_then_every_round(
    finished: tuple[Path, list[Event], Summary],
) -> None:
    """Notes, then the plan, then a row per round with round 0 for the untrained start, then the summary."""
    folder, events, summary = finished
    plan = next(event for event in events if not isinstance(event, Note))
    assert isinstance(plan, Prepared)
    assert plan.folder == folder
    assert [e.server_round for e in events if isinstance(e, RoundRow)] == [0, 1, 2, 3]
    assert events[-1] == summary


def test_metrics_have_a_line_per_round_and_client(
    finished: tuple[Path, list[Event], Summary],
) -> None:
    """metrics.jsonl holds the rows that were told, and one line for each sampled client of a round."""
    folder, events, summary = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round"]
    rows = [e for e in events if isinstance(e, RoundRow)]
    assert [(r["score"], r["error_used"]) for r in rounds] == [
        (e.score, e.error_used) for e in rows
    ]
    for server_round in (1, 2, 3):
        clients = [c for c in lines if c["kind"] == "client" and c["round"] == server_round]
        assert len(clients) == 2  # participation 0.67 of three
        assert sum(c["weight"] for c in clients) == pytest.approx(1)
    last = [c["global_score"] for c in lines if "global_score" in c]
    assert max(last) == summary.best_client_score


def test_error_of_the_row_is_ordered(finished: tuple[Path, list[Event], Summary]) -> None:
    """Optimum ≤ FLoRA-NA ≤ plain averaging in every round of a real run."""
    for row in finished[1]:
        if isinstance(row, RoundRow) and row.server_round:
            assert row.error_used is not None
            assert row.error_average is not None
            assert row.error_optimum is not None
            assert 0 < row.error_optimum <= row.error_used + 1e-6
            assert row.error_used <= row.error_average + 1e-6


@pytest.mark.parametrize("name", ["best", "final"])
def test_adapters_load_with_peft(
    finished: tuple[Path, list[Event], Summary], name: str, recwarn: pytest.WarningsRecorder
) -> None:
    """The line that a run prints works, and the loaded model scores what the run said."""
    from peft import PeftModel

    folder, _, summary = finished
    model = PeftModel.from_pretrained(florana.load_base_model(folder), str(folder / name)).eval()
    assert not [w for w in recwarn if "missing" in str(w.message).lower()]
    ours = florana.load_model(folder, name)
    for (_, a), (_, b) in zip(model.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(a, b)
    test = prepare(
        RunConfig.model_validate(RunFolder.open(folder).read_provenance()["config"])
    ).test
    right = 0
    with torch.no_grad():
        for chosen in test.by_length(1):
            inputs, labels = test.batch(chosen, torch.device("cpu"))
            right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    expected = summary.score if name == "final" else summary.best_score
    assert right / len(test) == expected


def test_the_written_config_gives_the_same_run(settings: list[str], tmp_path: Path) -> None:
    """config.toml of a run, run again elsewhere, gives the same bits."""
    tiny_run(settings, tmp_path / "run", "method.name=florana-opt", "server.momentum=0.3")
    again = tmp_path / "again"
    runner.start(
        load_config(tmp_path / "run" / "config.toml", [f"output='{again}'"]), lambda _e: None
    )
    assert what_it_left(again) == what_it_left(tmp_path / "run")


@pytest.fixture(scope="module")
def settings(kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny model and its texts."""
    texts = write_texts(tmp_path_factory.mktemp("texts") / "texts.csv")
    return tiny_settings(kinds["own head"], texts)


def test_another_run_in_the_folder_is_refused(settings: list[str], tmp_path: Path) -> None:
    """A folder that holds a run is not written to, and the message says how to go on with it."""
    tiny_run(settings, tmp_path / "run", "federation.rounds=1")
    before = what_it_left(tmp_path / "run")
    with pytest.raises(RunError, match=r"holds another run.*--resume"):
        tiny_run(settings, tmp_path / "run")
    assert what_it_left(tmp_path / "run") == before


def test_a_client_that_fails_is_left_out_and_named(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client that raises, and one that sends NaN, are named; the round goes on with the others."""
    real = client.train

    def train(model: Any, data: Any, objective: Any, config: Any, place: Any, *more: Any) -> float:
        if (place.server_round, place.client) == (2, 0):
            raise RuntimeError("the disk of client 0 is gone")
        loss = real(model, data, objective, config, place, *more)
        if (place.server_round, place.client) == (2, 1):
            model.parameters[0].data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(client, "train", train)
    everyone = ["federation.clients=4", "federation.participation=1.0", "federation.partition=iid"]
    _, events, _ = tiny_run(settings, tmp_path / "run", *everyone)
    left_out = {e.client: e.reason for e in events if isinstance(e, ClientLeftOut)}
    assert len(left_out) == 2
    assert "the disk of client 0 is gone" in " ".join(left_out.values())
    assert "NaN" in left_out["client 1"]
    assert [e.server_round for e in events if isinstance(e, RoundRow)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["florana", "fedsa-lora", "fedex-lora"])
def test_too_few_clients_stop_the_run_and_it_can_go_on(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With fewer than min_clients replies the run stops with every reason, and ends as if it had not."""
    real = client.train

    def broken(model: Any, data: Any, objective: Any, config: Any, place: Any, *more: Any) -> float:
        if place.server_round == 3:
            raise RuntimeError(f"client {place.client} is broken")
        return real(model, data, objective, config, place, *more)

    chosen = f"method.name={method}"
    with monkeypatch.context() as patched:
        patched.setattr(client, "train", broken)
        with pytest.raises(FloranaError, match=r"round 3: 0 usable replies[\s\S]*is broken"):
            tiny_run(settings, tmp_path / "run", chosen)
    assert runner.resume(tmp_path / "run", lambda _e: None).rounds == 4
    tiny_run(settings, tmp_path / "unbroken", chosen)
    assert what_it_left(tmp_path / "run") == what_it_left(tmp_path / "unbroken")


def test_a_full_disk_is_told_and_the_run_goes_on_later(settings: list[str], tmp_path: Path) -> None:
    """When writing fails the command ends with code 2 and one message; with space it resumes."""
    folder = tmp_path / "run"
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY));"
        f"sys.argv = ['florana', 'run', '--output', {str(folder)!r}"
        + "".join(f", '--set', {s!r}" for s in [*settings, "lora.rank=16", "lora.alpha=32"])
        + "]; from florana.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write to" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "checkpoint.safetensors").exists()
    assert runner.resume(folder, lambda _e: None).rounds == 4


def test_a_folder_that_cannot_be_made_is_not_one_to_go_on_with(tmp_path: Path) -> None:
    """Resuming is named only where there is something to resume."""
    config = small(tmp_path / "a file" / "run")
    (tmp_path / "a file").touch()
    with pytest.raises(RunError, match=r"cannot write to .*, or choose another --output$"):
        RunFolder.create(tmp_path / "a file" / "run", config, {})


def test_clients_of_unlike_ranks_take_part_in_one_run(settings: list[str], tmp_path: Path) -> None:
    """Ranks are dealt out in turn; what a client sends is as wide as its rank, the result as wide as the largest."""
    everyone = ["federation.participation=1.0", "lora.client_ranks=[1, 4, 2]"]
    same = ["federation.participation=1.0"]
    _, mixed, _ = tiny_run(settings, tmp_path / "mixed", "method.name=florana-opt", *everyone)
    _, alike, _ = tiny_run(settings, tmp_path / "alike", "method.name=florana-opt", *same)
    up = [
        [e.bytes_up for e in events if isinstance(e, RoundRow) and e.server_round]
        for events in (mixed, alike)
    ]
    fewer = 4 * 2 * 2 * (16 + 16) * ((4 - 1) + (4 - 2))  # float32, layers × targets, both factors
    for little, much in zip(*up, strict=True):
        assert abs((much - little) - fewer) < 100  # the rest: digits in manifests and metrics
    final = florana.load_adapter(tmp_path / "mixed" / "final")
    assert {pair.rank for pair in final.pairs.values()} == {4}


def test_add_ons_reach_the_server_and_the_client(settings: list[str], tmp_path: Path) -> None:
    """Each setting of [server] and FedProx's changes the run; none of them changes the clients' batches."""
    losses = {}
    for name in (
        "server.step_size=0.5",
        "server.momentum=0.5",
        "server.error_feedback=true",
        "training.proximal=5",
        "seed=1",
    ):
        summary, _, _ = tiny_run(settings, tmp_path / name, "method.name=florana-opt", name)
        losses[name] = summary.loss
    assert len(set(losses.values())) == len(losses)


def test_the_start_is_the_best_where_no_round_was_better(
    settings: list[str], tmp_path: Path
) -> None:
    """A run that only got worse has the untrained start in best/, as it says; it loads like any other."""
    folder = tmp_path / "run"
    worse = ["training.learning_rate=1e-9", "federation.rounds=1"]
    summary, _, config = tiny_run(settings, folder, *worse)
    assert summary.best_round == 0
    best = florana.load_adapter(folder / "best")
    for name, tensor in prepare(config).first.adapter.tensors().items():
        assert torch.equal(best.tensors()[name], tensor)
    assert florana.load_model(folder, "best")
