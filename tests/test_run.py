"""Whole runs on the real MiniLM: what they write, how they go on after kill -9, what stops them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import florana
from crash import SMALL
from florana.config import RunConfig, load_config
from florana.errors import FloranaError, RunError
from florana.experiments import runner
from florana.experiments.events import ClientLeftOut, Event, Prepared, RoundRow, Summary
from florana.experiments.run_folder import RunFolder
from florana.experiments.setup import prepare

pytestmark = pytest.mark.usefixtures("minilm")


def small(output: Path, *overrides: str) -> RunConfig:
    """The quickstart in small."""
    return load_config(None, [*SMALL, f'output="{output}"', *overrides])


def state(folder: Path) -> dict[str, bytes]:
    """The bytes of everything in a run folder that must not depend on how often it was interrupted."""
    names = ["metrics.jsonl", "checkpoint.safetensors", "summary.json"]
    names += [f"{a}/adapter_model.safetensors" for a in ("best", "final")]
    names += [f"{a}/adapter_config.json" for a in ("best", "final")]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], Summary]:
    """A finished small run with the events it told."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    events: list[Event] = []
    summary = runner.start(small(folder, "training.steps=4"), events.append)
    return folder, events, summary


def test_a_run_tells_its_plan_then_every_round(
    finished: tuple[Path, list[Event], Summary],
) -> None:
    """First the plan, then a row per round with round 0 for the untrained start, then the summary."""
    folder, events, summary = finished
    assert isinstance(events[0], Prepared)
    assert events[0].folder == folder
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
    assert [(r["accuracy"], r["error_used"]) for r in rounds] == [
        (e.accuracy, e.error_used) for e in rows
    ]
    for server_round in (1, 2, 3):
        clients = [c for c in lines if c["kind"] == "client" and c["round"] == server_round]
        assert len(clients) == 2  # participation 0.67 of three
        assert sum(c["weight"] for c in clients) == pytest.approx(1)
    last = [c["global_accuracy"] for c in lines if "global_accuracy" in c]
    assert max(last) == summary.best_client_accuracy


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
    expected = summary.accuracy if name == "final" else summary.best_accuracy
    assert right / len(test) == expected


def test_the_written_config_gives_the_same_run(
    finished: tuple[Path, list[Event], Summary], tmp_path: Path
) -> None:
    """config.toml of a run, run again elsewhere, gives the same bits."""
    folder = finished[0]
    again = tmp_path / "again"
    runner.start(load_config(folder / "config.toml", [f'output="{again}"']), lambda _e: None)
    assert state(again) == state(folder)


def test_resuming_a_finished_run_tells_its_summary(
    finished: tuple[Path, list[Event], Summary],
) -> None:
    """Nothing is done again, and nothing changes on disk."""
    folder, _, summary = finished
    before = state(folder)
    again = runner.resume(folder, lambda _e: None)
    assert again.accuracy == summary.accuracy
    assert state(folder) == before


MOMENTS = [
    "write_config:1:before",  # the folder is there and tells what it is, nothing else
    "append_metrics:1:before",  # before the untrained start was noted
    "append_metrics:2:after",  # metrics of round 1 are written, its checkpoint is not
    "write_adapter:1:before",  # a better model than the start, not yet in best/
    "write_checkpoint:3:before",  # round 2 done but for its checkpoint
    "write_checkpoint:3:after",  # just after round 2 counts
    "write_adapter:2:after",
    "write_summary:1:before",  # all rounds done, the end not yet told
]


@pytest.mark.parametrize("method", ["florana", "ideal"])
def test_resume_after_kill_is_bit_identical(tmp_path: Path, method: str) -> None:
    """A run that is killed with SIGKILL at any moment and resumed ends with the same bits."""
    moments = MOMENTS if method == "florana" else MOMENTS[4:6]
    script = Path(__file__).with_name("crash.py")
    command = [sys.executable, str(script), str(tmp_path), method, *moments]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = state(tmp_path / "unbroken")
    for moment in moments:
        assert state(tmp_path / moment) == expected, moment


def test_a_torn_line_of_metrics_is_cut_off(
    finished: tuple[Path, list[Event], Summary], tmp_path: Path
) -> None:
    """A kill in the middle of writing metrics leaves half a line; resuming cuts it and goes on."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "client", "rou')
    runner.resume(folder, lambda _e: None)
    assert state(folder) == state(finished[0])


def cut_in_half(path: Path) -> None:
    """What a failing disk leaves."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_its_state(path: Path) -> None:
    """A safetensors file of someone else."""
    save_file({"other": torch.zeros(1)}, path)


@pytest.mark.parametrize("damage", [cut_in_half, without_its_state])
def test_a_damaged_checkpoint_is_refused(
    finished: tuple[Path, list[Event], Summary], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A checkpoint that cannot be read is named, with what to do, and nothing is guessed."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "summary.json").unlink()
    damage(folder / "checkpoint.safetensors")
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged"):
        runner.resume(folder, lambda _e: None)


def test_ideal_exports_its_residual(tmp_path: Path) -> None:
    """The final adapter of ideal is the exact global model: it scores what the run said."""
    from florana.training.evaluation import evaluate

    folder = tmp_path / "ideal"
    summary = runner.start(small(folder, "method.name=ideal"), lambda _e: None)
    exported = florana.load_adapter(folder / "final")
    assert max(pair.rank for pair in exported.pairs.values()) > 8
    config = small(folder, f"lora.rank={next(iter(exported.pairs.values())).rank}")
    checkpoint_model = prepare(small(folder)).model
    checkpoint = RunFolder.open(folder).read_checkpoint(checkpoint_model.initial)
    assert checkpoint is not None
    assert checkpoint.residual
    assert config.lora.rank > 8
    experiment = prepare(small(folder))
    experiment.model.load(checkpoint.adapter, checkpoint.residual)
    assert evaluate(experiment.model, experiment.test).accuracy == summary.accuracy


def test_another_run_in_the_folder_is_refused(
    finished: tuple[Path, list[Event], Summary],
) -> None:
    """A folder that holds a run is not written to, and the message says how to go on with it."""
    folder = finished[0]
    before = state(folder)
    with pytest.raises(RunError, match=r"holds another run.*--resume"):
        runner.start(small(folder), lambda _e: None)
    assert state(folder) == before


def test_a_run_of_other_data_is_not_resumed(tmp_path: Path) -> None:
    """A run whose data has changed since is refused, with what it was and what it is."""
    folder = tmp_path / "run"
    runner.start(small(folder, "federation.rounds=1"), lambda _e: None)
    (folder / "summary.json").unlink()
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["data"]["fingerprint"] = "0" * 64
    (folder / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(RunError, match="its data was"):
        runner.resume(folder, lambda _e: None)


def test_a_client_that_fails_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client that raises, and one that sends NaN, are named; the round goes on with the others."""
    events: list[Event] = []
    faulty: dict[int, Any] = {0: RuntimeError("the disk of client 0 is gone")}
    real = runner.train

    def train(model: Any, data: Any, config: Any, place: Any) -> float:
        if place.server_round == 2 and place.client in faulty:
            raise faulty[place.client]
        loss = real(model, data, config, place)
        if place.server_round == 2 and place.client == 1:
            model.parameters[0].data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(runner, "train", train)
    overrides = ["federation.clients=4", "federation.participation=1.0", "data.max_examples=300"]
    runner.start(small(tmp_path / "run", *overrides), events.append)
    left_out = {e.client: e.reason for e in events if isinstance(e, ClientLeftOut)}
    assert len(left_out) == 2
    assert "the disk of client 0 is gone" in " ".join(left_out.values())
    assert "NaN" in left_out["client 1"]
    assert [e.server_round for e in events if isinstance(e, RoundRow)] == [0, 1, 2, 3]


def test_too_few_clients_stop_the_run_and_it_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer than min_clients replies the run stops with every reason, and resumes when mended."""

    def broken(model: Any, data: Any, config: Any, place: Any) -> float:
        raise RuntimeError(f"client {place.client} is broken")

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(runner, "train", broken)
        with pytest.raises(FloranaError, match=r"0 usable replies[\s\S]*is broken"):
            runner.start(small(folder), lambda _e: None)
    assert runner.resume(folder, lambda _e: None).rounds == 3


def test_a_full_disk_is_told_and_the_run_goes_on_later(tmp_path: Path) -> None:
    """When writing fails the command ends with code 2 and one message; with space it resumes."""
    folder = tmp_path / "run"
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY));"
        f"sys.argv = ['florana', 'run', '--output', {str(folder)!r}"
        + "".join(f", '--set', {s!r}" for s in SMALL)
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
    assert runner.resume(folder, lambda _e: None).rounds == 3
