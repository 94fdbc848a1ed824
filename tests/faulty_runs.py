"""What test_faults_*.py share: a tiny run as an app with faults, and the proof that nothing was lost or done twice."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from florana.cli.app import write_app
from florana.config import load_config
from florana.experiments import runner
from florana.experiments.client import ClientWork
from tiny_models import Kind
from tiny_runs import tiny_settings, write_texts

Missing = Collection[tuple[int, int]]
"""(client, round) of clients that are left out."""


def settings_of(kind: Kind, folder: Path, *overrides: str) -> list[str]:
    """Overrides of a tiny run with all clients in every round."""
    texts = write_texts(folder / "texts.csv")
    return [*tiny_settings(kind, texts), "federation.participation=1.0", *overrides]


def faulty_app(folder: Path, settings: list[str]) -> Path:
    """The app of ``florana app``, on :mod:`faulty_app` in place of :mod:`florana.flower_app`; its run is in folder/run."""
    app = folder / "app"
    write_app(app, None, [*settings, f"output='{folder / 'run'}'"])
    pyproject = app / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("florana.flower_app:", "faulty_app:"))
    return app


def unbroken(settings: list[str], output: Path, missing: Missing = ()) -> Path:
    """The same run in this process, without a fault but for clients that fail in some rounds."""
    work = ClientWork.train

    def train(self: ClientWork, *args: Any) -> Any:
        if (args[4], args[3]) in missing:
            raise OSError("left out here, too")
        return work(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientWork, "train", train)
        runner.start(load_config(None, [*settings, f"output='{output}'"]), lambda _event: None)
    return output


def assert_nothing_lost_or_twice(run: Path, expected: Path, rounds: int) -> None:
    """Every round and each of its clients stands once, with the numbers of the other run; adapters equal to 1e-5."""
    made, wanted = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, expected)
    )
    assert [line["round"] for line in made if line["kind"] == "round"] == list(range(rounds + 1))
    for line, other in zip(made, wanted, strict=True):
        for key in ("kind", "round", "client", "weight", "num-examples"):
            assert line.get(key) == other.get(key), (key, line["round"])
        for key in ("score", "loss", "train-loss", "error_used"):
            number = other.get(key, 0.0) or 0.0  # None in round 0
            assert (line.get(key) or 0.0) == pytest.approx(number, rel=1e-4, abs=1e-6), key
    for adapter in ("final", "best"):
        tensors = load_file(run / adapter / "adapter_model.safetensors")
        others = load_file(expected / adapter / "adapter_model.safetensors")
        assert tensors.keys() == others.keys()
        for name, tensor in others.items():
            distance = torch.linalg.vector_norm((tensors[name] - tensor).double())
            assert distance <= 1e-5 * torch.linalg.vector_norm(tensor.double()), name


def left_out(run: Path) -> dict[int, set[str]]:
    """Round -> who was left out, by metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        line["round"]: set(line["left_out"])
        for line in lines
        if line["kind"] == "round" and line["round"]
    }
