"""Whole federations of a real language model: held-out loss falls, whatever the method and the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import florana
from causal_models import CHAT, letters_model, lora_model, stories_folder
from causal_runs import losses, run, speakers
from florana.errors import DataError
from florana.experiments.events import Note, RoundRow
from florana.training.base_model import ModelSource

METHODS = ["fedit", "florana", "florana-opt", "ideal"]


@pytest.fixture
def play(data_root: Path, tmp_path: Path) -> list[str]:
    """Four speakers as four clients."""
    return speakers(data_root, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_shakespeares_speakers_learn_together(play: list[str], tmp_path: Path, method: str) -> None:
    """Stories260k over four speakers: the global model's held-out loss falls in every round."""
    summary, events = run(tmp_path / "run", *play, f"method.name={method}")
    told = losses(events)
    assert len(told) == 3
    assert told[0] > told[1] > told[2]
    assert summary.loss == told[2]
    assert summary.score == pytest.approx(torch.tensor(told[2]).double().exp().item())


@pytest.mark.parametrize("method", METHODS)
def test_dollys_categories_learn_together(data_root: Path, tmp_path: Path, method: str) -> None:
    """Stories260k over instructions, each category a client: loss on responses falls, and cuts are told."""
    rows = [
        json.loads(line)
        for file in sorted((data_root / "instruct" / "dolly").glob("*.jsonl"))
        for line in file.read_text("utf-8").splitlines()
    ]
    short = [r for r in rows if not r["context"] and len(r["response"]) < 200]
    names = sorted({row["category"] for row in short})
    few = [row for name in names for row in [r for r in short if r["category"] == name][:30]]
    file = tmp_path / "dolly.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in few))
    kept = [n for n in names if sum(r["category"] == n for r in few) >= 20]
    _, events = run(
        tmp_path / "run",
        f"model.name='{stories_folder()}'",
        "model.max_length=96",
        f"data.source='{file}'",
        "data.prompt='Instruction: {instruction}\\nResponse:'",
        "data.response=' {response}'",
        f"federation.clients={min(3, len(kept))}",
        "federation.column=category",
        f"method.name={method}",
    )
    told = losses(events)
    assert told[0] > told[1] > told[2]
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("are longer than model.max_length = 96 tokens" in note for note in notes)


def test_every_method_begins_alike(play: list[str], tmp_path: Path) -> None:
    """Round 0 is the base model, and the first round's clients are the same, whatever the server does."""
    firsts = set()
    for method in ("fedit", "florana-opt"):
        _, events = run(tmp_path / method, *play, f"method.name={method}", "federation.rounds=1")
        rows = [event for event in events if isinstance(event, RoundRow)]
        firsts.add((rows[0].loss, rows[1].client_score))
    assert len(firsts) == 1


def test_a_run_that_writes_answers_is_loaded_as_peft_loads_it(tmp_path: Path) -> None:
    """Sums, a scorer of numbers: answers judge rounds, and florana's and PEFT's way give one model."""
    source = letters_model(tmp_path / "base", chat=CHAT)
    file = tmp_path / "sums.jsonl"
    rows = [{"a": a, "b": b, "sum": a + b} for a in range(10) for b in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, events = run(
        tmp_path / "run",
        f"model.name='{source.path}'",
        f"data.source='{file}'",
        "data.prompt='{a}+{b}='",
        "data.response='{sum}'",
        "data.reference='{sum}'",
        "data.scorer=number",
        "evaluation.max_new_tokens=4",
        "federation.clients=2",
        "federation.partition=iid",
    )
    told = losses(events)
    assert told[0] > told[1] > told[2]
    assert 0 <= summary.score <= 1
    assert summary.metrics.keys() == {"perplexity", "token_accuracy"}
    base = AutoModelForCausalLM.from_pretrained(source.path)
    plain: Any = PeftModel.from_pretrained(base, str(tmp_path / "run" / "final"))
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        ours: Any = florana.load_model(tmp_path / "run")
        assert torch.equal(ours(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("key", ["data.prompt", "data.response"])
def test_a_template_over_a_missing_column_is_told(
    play: list[str], tmp_path: Path, key: str
) -> None:
    """Before training, with the columns that are there."""
    with pytest.raises(DataError, match="no column 'wisdom'; it has speaker, text"):
        run(tmp_path / "run", *play, f"{key}='{{wisdom}}'")


def test_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    """Gradient checkpointing under LoRA gives the factors the same gradients, none of them zero."""
    source = letters_model(tmp_path)
    grads = [_gradients(source, checkpointing) for checkpointing in (False, True)]
    assert grads[0].keys() == grads[1].keys()
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name], rtol=1e-4, atol=1e-6)
        assert bool(gradient.any()) != name.endswith("lora_A.default.weight")


def _gradients(source: ModelSource, checkpointing: bool) -> dict[str, torch.Tensor]:
    model = lora_model(source, gradient_checkpointing=checkpointing)
    ids = torch.arange(4, 24)[None]
    model.module.train()
    model.module(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    return {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}


def test_device_map_places_the_model_and_its_factors(tmp_path: Path) -> None:
    """Spread over what there is, the model trains from where its embeddings are."""
    pytest.importorskip("accelerate", reason="pip install 'florana[quantized]'")
    source = letters_model(tmp_path)
    model = lora_model(source, device_map="auto")
    where = next(model.module.parameters()).device
    assert model.device.type == where.type
    ids = torch.arange(4, 12, device=model.device)[None]
    model.module(input_ids=ids).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters)
