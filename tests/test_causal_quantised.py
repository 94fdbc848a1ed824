"""Bases in 8 and 4 bits: whole rounds where bitsandbytes runs, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_models import letters_model, lora_model
from causal_runs import losses, run, speakers
from florana.config import ModelConfig
from florana.errors import ModelError
from florana.lowrank import Product
from florana.training.loop import train
from florana.training.objectives import Classification
from tiny_models import HERE, LABELS, Kind, make, steps, toy_examples
from tiny_runs import tiny_settings, write_texts


@pytest.fixture
def play(data_root: Path, tmp_path: Path) -> list[str]:
    """Four speakers as four clients."""
    return speakers(data_root, tmp_path)


@pytest.fixture(params=["8bit", "4bit"])
def bits(request: pytest.FixtureRequest) -> str:
    """Each number of bits that bitsandbytes knows, where it runs without a GPU."""
    pytest.importorskip("bitsandbytes", reason="pip install 'florana[quantized]'")
    return str(request.param)


@pytest.mark.parametrize("method", ["florana-opt", "fedex-lora", "frlora"])
def test_a_quantised_base_federates(
    play: list[str], tmp_path: Path, bits: str, method: str
) -> None:
    """Loss falls with a base in 8 or 4 bits, also where the method adds to the frozen weights or starts from them."""
    settings = [f"model.quantization={bits}", f"method.name={method}", "federation.rounds=1"]
    _, events = run(tmp_path / "run", *play, *settings)
    told = losses(events)
    assert told[0] > told[1]


def test_nothing_touches_a_quantised_base(tmp_path: Path, bits: str) -> None:
    """The same bytes in the base's weights before and after adapters and residuals came and went."""
    source = letters_model(tmp_path)
    model = lora_model(source, quantization=bits)
    before = _stored(model)
    assert any(weight.dtype in {torch.int8, torch.uint8} for weight in before.values())
    pairs = model.initial.pairs
    residual = {
        n: Product(torch.ones(p.shape[0], 1), torch.ones(1, p.shape[1])) for n, p in pairs.items()
    }
    model.load(model.initial, residual)
    model.load(model.initial)
    after = _stored(model)
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def _stored(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach().clone()
        for name, weight in model.module.named_parameters()
        if "lora_" not in name
    }


def test_a_residual_acts_on_a_quantised_base_as_on_its_numbers(tmp_path: Path, bits: str) -> None:
    """With F added, a layer's output is that of a plain layer whose weight is the stored numbers plus F."""
    source = letters_model(tmp_path)
    model = lora_model(source, quantization=bits)
    g = torch.Generator().manual_seed(0)
    pairs = model.initial.pairs
    residual = {
        n: Product(torch.randn(p.shape[0], 2, generator=g), torch.randn(2, p.shape[1], generator=g))
        for n, p in pairs.items()
    }
    name = min(pairs)
    layer: Any = model.module.get_submodule(f"base_model.model.{name}")
    x = torch.randn(3, pairs[name].shape[1], generator=g)
    weight = model.base_weights[name].clone()
    with torch.no_grad():
        plain = layer(x)
    torch.testing.assert_close(plain, x @ weight.T, rtol=0.05, atol=0.05 * float(plain.abs().max()))
    model.load(model.initial, residual)
    B, A = residual[name]
    torch.testing.assert_close(layer(x), plain + x @ (B @ A).T, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.base_weights[name], weight)
    model.load(model.initial)
    assert torch.equal(layer(x), plain)


@pytest.mark.parametrize("form", [("8bit", "hira"), ("4bit", "hira"), ("4bit", "dora")])
def test_variants_federate_on_a_quantised_base(
    play: list[str], tmp_path: Path, form: tuple[str, str]
) -> None:
    """DoRA and HiRA read the frozen weights, which are then taken back from their few bits."""
    pytest.importorskip("bitsandbytes", reason="pip install 'florana[quantized]'")
    settings = [f"model.quantization={form[0]}", f"lora.variant={form[1]}", "federation.rounds=1"]
    _, events = run(tmp_path / "run", *play, *settings)
    told = losses(events)
    assert told[0] > told[1]


@pytest.mark.parametrize("kind", ["own head", "sentence encoder", "decoder"])
def test_a_quantised_classifier_learns(kinds: dict[str, Kind], bits: str, kind: str) -> None:
    """Classifiers go in few bits as well: their fresh heads keep full numbers, and the loss falls."""
    model = make(kinds[kind], model=ModelConfig.model_validate({"quantization": bits}))
    held = [type(p).__name__ for p in model.module.parameters() if not p.requires_grad]
    assert {"Int8Params", "Params4bit"} & set(held)
    examples = toy_examples(kinds[kind])
    objective = Classification(LABELS)
    before = objective.evaluate(model, examples).loss
    train(model, examples, objective, steps(12), HERE)
    assert objective.evaluate(model, examples).loss < before


@pytest.mark.parametrize("how", ["plain", "4bit", "stored"])
def test_a_node_imports_bitsandbytes_for_a_quantised_base_alone(
    kinds: dict[str, Kind], tmp_path: Path, how: str
) -> None:
    """A process answers one message, and most of PEFT's import is bitsandbytes; needed where the base's own folder says so, too."""
    pytest.importorskip("bitsandbytes", reason="pip install 'florana[quantized]'")
    kind = kinds["decoder"]
    settings = tiny_settings(kind, write_texts(tmp_path / "texts.csv"))
    settings.append("lora.target_modules=['q_proj']")
    if how == "4bit":
        settings.append("model.quantization=4bit")
    elif how == "stored":
        settings.append(f"model.name='{stored_in_4_bits(kind.source.path, tmp_path / 'base')}'")
    code = f"""
import sys
from florana.config import load_config
from florana.experiments.node import open_node
node = open_node(load_config(None, {settings!r}), {{"partition-id": 0, "state": {str(tmp_path)!r}}})
dtypes = {{str(weight.dtype) for weight in node.work.model.module.parameters()}}
print(sys.modules.get("bitsandbytes") is not None, "torch.uint8" in dtypes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    quantised = how != "plain"
    assert done.stdout.split() == [str(quantised)] * 2, done.stderr


def stored_in_4_bits(source: Path, folder: Path) -> Path:
    """A copy of a decoder whose weights lie in 4 bits on the disk."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    shutil.copytree(source, folder)
    options = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=options)
    model.save_pretrained(folder)
    return folder


def test_dora_on_eight_bits_without_a_gpu_is_refused(tmp_path: Path) -> None:
    """PEFT would lose the scales; the message says what goes."""
    pytest.importorskip("bitsandbytes", reason="pip install 'florana[quantized]'")
    with pytest.raises(ModelError, match="'8bit' needs a GPU; use '4bit' or another variant"):
        lora_model(letters_model(tmp_path), quantization="8bit", lora_variant="dora")


def test_a_quantised_dora_with_a_residual_is_refused(tmp_path: Path) -> None:
    """Its rows are scaled after F is added, so W + F has to be a matrix; the message says what goes."""
    pytest.importorskip("bitsandbytes", reason="pip install 'florana[quantized]'")
    model = lora_model(letters_model(tmp_path), quantization="4bit", lora_variant="dora")
    pairs = model.initial.pairs
    residual = {
        n: Product(torch.ones(p.shape[0], 1), torch.ones(1, p.shape[1])) for n, p in pairs.items()
    }
    with pytest.raises(ModelError, match=r"quantised and dora.*model\.quantization = 'none'"):
        model.load(model.initial, residual)


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_a_missing_package_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """With the extra that brings it."""
    source = letters_model(tmp_path)
    _hide(monkeypatch, package)
    with pytest.raises(ModelError, match=rf"needs the package {package}.*florana\[quantized\]"):
        lora_model(source, quantization="4bit")


def _hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == package else find(name, *a)
    )
