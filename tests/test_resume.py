"""Runs that are killed with SIGKILL at any moment and resumed: they end with the bits of an unbroken one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from florana.errors import RunError
from florana.experiments import runner
from florana.experiments.run_folder import RunFolder
from florana.experiments.setup import prepare
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, what_it_left, write_texts

EVERYWHERE = [
    "write_config:1:before",  # the folder is there and tells what it is, nothing else
    "append_metrics:1:before",  # before the untrained start was noted
    "append_metrics:2:after",  # metrics of round 1 are written, its checkpoint is not
    "write_adapter:2:before",  # a better model than the start, not yet in best/
    "write_checkpoint:3:before",  # round 2 done but for its checkpoint
    "write_checkpoint:3:after",  # just after round 2 counts
    "write_adapter:3:after",  # best/ is that of a round that does not count yet
    "write_adapter:5:before",  # all rounds done, final/ not yet there
    "write_summary:1:before",  # all rounds done, the end not yet told
]
IN_BETWEEN = ["write_checkpoint:3:before", "write_checkpoint:3:after"]

CASES: dict[str, tuple[list[str], list[str]]] = {
    "florana": (["method.name=florana"], EVERYWHERE),
    "clients remember B": (["method.name=fedsa-lora"], [*IN_BETWEEN, "write_summary:1:before"]),
    "clients remember everything": (["method.name=local"], IN_BETWEEN[1:]),
    "a residual": (["method.name=fedex-lora"], IN_BETWEEN),
    "a start of its own": (["method.name=frlora"], IN_BETWEEN[1:]),
    "a core": (["method.name=fed-sb"], IN_BETWEEN),
    "parts in turn": (["method.name=rolora"], IN_BETWEEN[1:]),
    "unlike ranks": (
        ["method.name=florana-opt", "lora.client_ranks=[1, 2, 4]", "training.proximal=0.1"],
        IN_BETWEEN[1:],
    ),
    "the server remembers": (
        ["method.name=florana-opt", "server.momentum=0.5", "server.error_feedback=true"],
        IN_BETWEEN,
    ),
    "few bits": (
        ["method.name=ideal", "federation.uplink=int8", "federation.downlink=bfloat16"],
        IN_BETWEEN,
    ),
    "one place": (["method.name=centralised"], IN_BETWEEN[1:]),
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny model and its texts."""
    texts = write_texts(tmp_path_factory.mktemp("texts") / "texts.csv")
    return tiny_settings(kinds["own head"], texts)


@pytest.fixture(scope="module")
def crashed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, unbroken, killed and resumed, in one process that forks."""
    folder = tmp_path_factory.mktemp("crashed")
    cases = {
        name: {"settings": [*settings, *overrides], "moments": moments}
        for name, (overrides, moments) in CASES.items()
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("crash.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(folder / "cases.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_resume_after_kill_is_bit_identical(crashed: Path, case: str) -> None:
    """Metrics, checkpoint, summary and every adapter, the clients' own among them, have the same bytes."""
    expected = what_it_left(crashed / case / "unbroken")
    assert {"metrics.jsonl", "summary.json", "final/adapter_model.safetensors"} < expected.keys()
    for moment in CASES[case][1]:
        made = what_it_left(crashed / case / moment)
        assert made.keys() == expected.keys(), moment
        assert [name for name in made if made[name] != expected[name]] == [], moment


@pytest.mark.parametrize("case", ["a residual", "clients remember B", "the server remembers"])
def test_what_is_remembered_decides_what_comes_next(crashed: Path, case: str) -> None:
    """The kill tests above would not notice memory that changes nothing: these runs differ from plain ones."""
    plain = json.loads((crashed / "florana" / "unbroken" / "summary.json").read_text())
    other = json.loads((crashed / case / "unbroken" / "summary.json").read_text())
    assert plain["loss"] != other["loss"]


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tiny_run(settings, folder, "method.name=fedsa-lora")
    return folder


def test_resuming_a_finished_run_tells_its_summary(finished: Path) -> None:
    """Nothing is done again, and nothing changes on disk."""
    before = what_it_left(finished)
    again = runner.resume(finished, lambda _e: None)
    assert again.score == json.loads(before["summary.json"])["score"]
    assert again.seconds == 0
    assert what_it_left(finished) == before


def test_a_torn_line_of_metrics_is_cut_off(finished: Path, tmp_path: Path) -> None:
    """A kill in the middle of writing metrics leaves half a line; resuming cuts it and goes on."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "client", "rou')
    runner.resume(folder, lambda _e: None)
    assert what_it_left(folder) == what_it_left(finished)


def cut_in_half(path: Path) -> None:
    """What a failing disk leaves."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_its_state(path: Path) -> None:
    """A safetensors file of someone else."""
    save_file({"other": torch.zeros(1)}, path)


def without_a_client(path: Path) -> None:
    """One that names an array of a client which is not there."""
    next((path.parent / "states").iterdir()).unlink()


@pytest.mark.parametrize("damage", [cut_in_half, without_its_state, without_a_client])
def test_a_damaged_checkpoint_is_refused(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A checkpoint that cannot be read is named, with what to do, and nothing is guessed."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    damage(folder / "checkpoint.safetensors")
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged"):
        runner.resume(folder, lambda _e: None)


def test_a_run_of_other_data_is_not_resumed(settings: list[str], tmp_path: Path) -> None:
    """A run whose data has changed since is refused, with what it was and what it is."""
    texts = write_texts(tmp_path / "texts.csv")
    own = [*settings, f"data.source='{texts}'"]
    folder = tmp_path / "run"
    tiny_run(own, folder, "federation.rounds=1")
    (folder / "summary.json").unlink()
    write_texts(texts, seed=1)
    with pytest.raises(RunError, match="its data was"):
        runner.resume(folder, lambda _e: None)


def test_a_run_whose_model_has_changed_is_not_resumed(
    kinds: dict[str, Kind], settings: list[str], tmp_path: Path
) -> None:
    """Other weights under the same name are told by their hash."""
    shutil.copytree(kinds["own head"].source.path, tmp_path / "model")
    folder = tmp_path / "run"
    tiny_run(settings, folder, "federation.rounds=1", f"model.name='{tmp_path / 'model'}'")
    (folder / "summary.json").unlink()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match="its base_model was"):
        runner.resume(folder, lambda _e: None)


def test_what_all_clients_hold_is_kept_once(settings: list[str], tmp_path: Path) -> None:
    """Twelve clients that remember the global model have one array of it on disk, beside the checkpoint."""
    texts = write_texts(tmp_path / "texts.csv", 300)
    tiny_run(
        settings, tmp_path / "run", f"data.source='{texts}'", "method.name=ffa-lora", "federation.rounds=1",
        "federation.clients=12", "federation.participation=1.0", "federation.partition=iid",
    )  # fmt: skip
    assert len(list((tmp_path / "run" / "states").iterdir())) == 1
    folder = RunFolder.open(tmp_path / "run")
    checkpoint = folder.read_checkpoint(prepare(folder.read_config()).first)
    assert checkpoint is not None
    assert len(checkpoint.clients) == len(checkpoint.known) == 12
