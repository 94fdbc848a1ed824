"""One run on three engines: in this process, on Flower's simulation, and on a real federation with TLS and keys."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deployment import federation
from florana.errors import ConfigError
from florana.experiments import simulation
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, write_texts

pytestmark = pytest.mark.deployment

ROUNDS = "federation.rounds=2"
WITHOUT = {"bytes_up", "bytes_down"}
"""What differs: on Flower's engines a message names the run, and a reply says how long it took."""


@dataclass(frozen=True)
class Setting:
    """The same settings for all engines, and the run in this process."""

    settings: list[str]
    here: Path


@pytest.fixture(scope="module")
def setting(kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Two of three clients in each of two rounds, so that the draw of the clients counts."""
    folder = tmp_path_factory.mktemp("engines")
    texts = write_texts(folder / "texts.csv")
    settings = [*tiny_settings(kinds["own head"], texts), ROUNDS]
    tiny_run(settings, folder / "here")
    return Setting(settings, folder / "here")


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl but for the bytes."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in WITHOUT} for line in read]


def assert_same_run(run: Path, expected: Path) -> None:
    """The same clients, batches and numbers; adapters within 1e-5, relative to each tensor's norm."""
    for adapter in ("final", "best"):
        made = load_file(run / adapter / "adapter_model.safetensors")
        wanted = load_file(expected / adapter / "adapter_model.safetensors")
        assert made.keys() == wanted.keys()
        for name, tensor in wanted.items():
            distance = torch.linalg.vector_norm((made[name] - tensor).double())
            assert distance <= 1e-5 * torch.linalg.vector_norm(tensor.double()), name
    for line, other in zip(lines(run), lines(expected), strict=True):
        assert line.keys() == other.keys()
        for key in ("kind", "round", "client", "weight", "num-examples", "left_out"):
            assert line.get(key) == other.get(key), (key, line["round"])
        for key in ("score", "loss", "train-loss", "error_used", "error_optimum"):
            expected_number = other.get(key, 0.0) or 0.0  # None in round 0
            assert (line.get(key) or 0.0) == pytest.approx(expected_number, rel=1e-4, abs=1e-6), key


def partition(run: Path) -> object:
    """What each client has of each label."""
    return json.loads((run / "provenance.json").read_text())["partition"]


def processes_of_ray() -> set[str]:
    """Process ids of anything that Ray started on this machine."""
    found = set()
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else []:
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if entry.name.isdigit() and (b"raylet" in command or b"gcs_server" in command):
            found.add(entry.name)
    return found


def florana(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "florana", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is missing: pip install 'florana[simulation]'",
)


@needs_ray
def test_the_simulation_does_the_same_run_and_leaves_no_process(
    setting: Setting, tmp_path: Path
) -> None:
    """``florana run --engine simulation``: same partition, same clients, same adapters; Ray is gone afterwards."""
    before = processes_of_ray()
    overrides = [part for setting in setting.settings for part in ("--set", setting)]
    done = florana("run", *overrides, "--engine", "simulation", "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(tmp_path / "run", setting.here)
    assert partition(tmp_path / "run") == partition(setting.here)
    assert (tmp_path / "run" / "report.html").exists()
    assert "client 1 on node" in done.stdout
    assert processes_of_ray() <= before


@needs_ray
def test_a_simulation_that_fails_says_so_and_can_be_resumed(
    setting: Setting, tmp_path: Path
) -> None:
    """Every client is refused in round 1: exit code 2, every reason; the untrained start is saved."""
    overrides = [part for setting in setting.settings for part in ("--set", setting)]
    impossible = ["--set", "federation.max_norm=1e-9", "--output", str(tmp_path / "run")]
    done = florana("run", *overrides, "--engine", "simulation", *impossible, "--no-report")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "round 1: 0 usable replies" in done.stderr
    assert "more than federation.max_norm = 1e-09" in done.stderr
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_without_ray_the_extra_is_named(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install; nothing is left half made but the folder."""
    monkeypatch.setattr(simulation.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'florana\[simulation\]'"):
        tiny_run(setting.settings, tmp_path / "run", "federation.engine=simulation")


def test_a_deployment_with_tls_and_keys_does_the_same_run(setting: Setting, tmp_path: Path) -> None:
    """SuperLink and three SuperNodes with keys of their own; clients come in another order than partitions."""
    app = tmp_path / "app"
    overrides = [part for setting in setting.settings for part in ("--set", setting)]
    written = florana("app", str(app), *overrides, "--set", f"output='{tmp_path / 'run'}'")
    assert written.returncode == 0, written.stderr
    nodes = [
        f'partition-id={number} num-partitions=3 state="{tmp_path / f"state{number}"}"'
        for number in (2, 0, 1)
    ]
    with federation(tmp_path, nodes, tls=True) as flower:
        status, streamed = flower.run(app)
    assert status == "finished:completed", streamed
    assert_same_run(tmp_path / "run", setting.here)
    assert partition(tmp_path / "run") == partition(setting.here)
    assert "round 1: client 1 on node" in streamed
    assert list((tmp_path / "state1" / "cache").glob("*.safetensors"))
