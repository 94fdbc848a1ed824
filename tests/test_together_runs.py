"""Whole runs whose clients are trained at once: as one by one, resumed with the same bits, failures of one alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from causal_runs import run, speakers
from florana.config import load_config
from florana.errors import ConfigError, FederationError
from florana.experiments import runner
from florana.experiments.client import ClientWork
from florana.experiments.events import ClientLeftOut, ClientStarted, Event, Note, RoundRow
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, what_it_left, write_texts

EVERYBODY = "federation.participation=1.0"
TWO = "federation.clients_at_once=2"
"""Of three clients: one group of two, and one client alone."""


@pytest.fixture(scope="module")
def settings(kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny model with dropout, three clients, three rounds."""
    texts = write_texts(tmp_path_factory.mktemp("texts") / "texts.csv")
    return [*tiny_settings(kinds["own head"], texts), EVERYBODY, "federation.rounds=3"]


def adapter(run: Path) -> torch.Tensor:
    """All numbers of the final adapter."""
    tensors = load_file(run / "final" / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


METHODS = {
    "blend": ["method.name=florana-blend"],
    "B at home": ["method.name=fedsa-lora"],
    "a core": ["method.name=fed-sb"],
    "parts in turn": ["method.name=rolora"],
    "a residual": ["method.name=fedex-lora"],
    "unlike ranks": ["method.name=florana-opt", "lora.client_ranks=[1, 2, 4]"],
    "few bits": ["method.name=ideal", "federation.uplink=bfloat16"],
    "epochs": ["method.name=fedit", "training.epochs=1", "training.accumulation=2"],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_at_once_is_the_run_one_by_one(
    settings: list[str], tmp_path: Path, method: str
) -> None:
    """Adapters within 1e-4 after three rounds, the same clients and scores, and nobody was trained alone for a reason."""
    chosen = [*settings, *METHODS[method]]
    if method == "epochs":
        chosen = [s for s in chosen if not s.startswith("training.steps")]
    tiny_run(chosen, tmp_path / "one")
    _, events, _ = tiny_run(chosen, tmp_path / "two", TWO)
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert torch.linalg.vector_norm(one - two) <= 1e-4 * torch.linalg.vector_norm(one)
    started = [(e.server_round, e.client) for e in events if isinstance(e, ClientStarted)]
    assert started == [(t, c) for t in (1, 2, 3) for c in (0, 1, 2)]
    assert not [e for e in events if isinstance(e, Note)]
    first, second = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    assert [line.get("num-examples") for line in first] == [
        line.get("num-examples") for line in second
    ]


class Killed(BaseException):
    """What ends a run in the middle."""


@pytest.mark.parametrize("method", ["blend", "B at home"])
def test_a_run_that_was_broken_off_ends_with_the_bits_of_an_unbroken_one(
    settings: list[str], tmp_path: Path, method: str
) -> None:
    """Broken off in the second round's training, resumed with the same groups."""
    chosen = [*settings, *METHODS[method]]
    tiny_run(chosen, tmp_path / "whole", TWO)

    def break_off(event: Event) -> None:
        if isinstance(event, ClientStarted) and (event.server_round, event.client) == (2, 1):
            raise Killed

    config = load_config(None, [*chosen, TWO, f"output='{tmp_path / 'broken'}'"])
    with pytest.raises(Killed):
        runner.start(config, break_off)
    runner.resume(tmp_path / "broken", lambda _e: None)
    assert what_it_left(tmp_path / "broken") == what_it_left(tmp_path / "whole")


def test_what_was_measured_is_kept(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` is measured once per run: a resumed one reads it from its provenance."""
    auto = "federation.clients_at_once=auto"
    monkeypatch.setattr(runner, "choose", lambda *_given: 2)
    config = load_config(None, [*settings, auto, f"output='{tmp_path / 'run'}'"])

    def break_off(event: Event) -> None:
        if isinstance(event, RoundRow) and event.server_round == 1:
            raise Killed

    with pytest.raises(Killed):
        runner.start(config, break_off)
    machine = json.loads((tmp_path / "run" / "provenance.json").read_text())["machine"]
    assert machine["clients_at_once"] == 2
    monkeypatch.setattr(runner, "choose", lambda *_given: 1 / 0)
    runner.resume(tmp_path / "run", lambda _e: None)
    tiny_run(settings, tmp_path / "two", TWO)
    assert adapter(tmp_path / "run").equal(adapter(tmp_path / "two"))


def test_a_client_that_fails_is_left_out_alone(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is told by name; the other client of its group is used."""
    honest = ClientWork.train_together

    def sick(
        self: ClientWork, data: Any, starts: Any, plan: Any, server_round: int, clients: Any
    ) -> Sequence[Any]:
        done = honest(self, data, starts, plan, server_round, clients)
        done[0] = FederationError("the loss is nan")
        return done

    monkeypatch.setattr(ClientWork, "train_together", sick)
    _, events, _ = tiny_run(settings, tmp_path / "run", TWO)
    left = [e for e in events if isinstance(e, ClientLeftOut)]
    assert [(e.server_round, e.client) for e in left] == [(t, "node 1000") for t in (1, 2, 3)]
    assert all("the loss is nan" in e.reason for e in left)


@pytest.mark.parametrize("variant", ["dora", "hira"])
def test_what_cannot_be_trained_at_once_is_trained_one_by_one_with_a_note(
    settings: list[str], tmp_path: Path, variant: str
) -> None:
    """One note per run, with the reason; the bits are those of a run that did not ask."""
    chosen = [*settings, "method.name=fedit", f"lora.variant={variant}", "lora.alpha=4"]
    tiny_run(chosen, tmp_path / "one")
    _, events, _ = tiny_run(chosen, tmp_path / "two", TWO)
    notes = [e.text for e in events if isinstance(e, Note)]
    assert len(notes) == 1
    assert notes[0].startswith(f"clients are trained one by one: lora.variant '{variant}'")
    assert adapter(tmp_path / "one").equal(adapter(tmp_path / "two"))


def test_writers_are_trained_at_once(data_root: Path, tmp_path: Path) -> None:
    """Two rounds of a real Llama of four speakers, with losses over unequal numbers of tokens."""
    chosen = speakers(data_root, tmp_path)
    run(tmp_path / "one", *chosen)
    _, events = run(tmp_path / "four", *chosen, "federation.clients_at_once=4")
    one, four = adapter(tmp_path / "one"), adapter(tmp_path / "four")
    assert torch.linalg.vector_norm(one - four) <= 1e-4 * torch.linalg.vector_norm(one)
    assert not [e for e in events if isinstance(e, Note) and "one by one" in e.text]


def test_other_engines_refuse_to_train_clients_at_once(settings: list[str]) -> None:
    """There every client has a process of its own; nothing is ignored in silence."""
    with pytest.raises(ConfigError, match="clients_at_once = 2 is of engine 'local'"):
        load_config(None, [*settings, TWO, "federation.engine=simulation"])
