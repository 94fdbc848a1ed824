"""Configs and weights that belong together, and those that do not: prefixes, shapes, counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import florana
import peft_clients
from florana.errors import AdapterError
from florana.peft_io import adapter_to_state_dict, load_adapter, save_adapter
from peft_clients import SHARES, Row, off, updates
from peft_models import fixed, of
from peft_rows import MIXED, ROWS

# PEFT warns of missing configs and of what it sets by itself
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.mark.parametrize(
    "wrap",
    [
        "module.{}",
        "_orig_mod.{}",
        "_orig_mod.module.{}",
        "_fsdp_wrapped_module.{}",
        "{0}_orig_mod.{1}",
        "{0}_fsdp_wrapped_module._checkpoint_wrapped_module.{1}",
    ],
)
def test_prefixes_of_wrappers_are_taken_off(wrap: str, tmp_path: Path) -> None:
    """What torch.compile, DDP, FSDP and checkpointing put into keys changes nothing, and PEFT loads what is written."""
    row = ROWS["bias-lora-only"]
    folder = peft_clients.saved(row, tmp_path)[0]
    state = safetensors.torch.load_file(folder / WEIGHTS)
    head = "base_model.model."
    wrapped = {
        wrap.format(*((head, key.removeprefix(head)) if "{0}" in wrap else (key,))): tensor
        for key, tensor in state.items()
    }
    assert wrapped.keys().isdisjoint(state)
    shutil.copytree(folder, tmp_path / "wrapped")
    safetensors.torch.save_file(wrapped, tmp_path / "wrapped" / WEIGHTS)
    came, expected = load_adapter(tmp_path / "wrapped"), load_adapter(folder)
    assert came.tensors().keys() == expected.tensors().keys()
    assert all(torch.equal(t, expected.tensors()[name]) for name, t in came.tensors().items())
    again = save_adapter(came, tmp_path / "again")
    assert (
        off(peft_clients.merged(row.base(), again), peft_clients.merged(row.base(), folder)) == {}
    )


def test_a_module_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    """Only in front of the whole key is ``module.`` a wrapper."""
    base = fixed(lambda: of(module=nn.Linear(4, 4)))
    peft_clients.trained(Row(base, {"target_modules": ["module"]}), 0).save_pretrained(tmp_path)
    assert list(load_adapter(tmp_path).pairs) == ["block.module"]


def edited(folder: Path, change: dict[str, Any]) -> Path:
    """The folder with other settings."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | change))
    return folder


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "one token too many": ("trainable-tokens", {"trainable_token_indices": [1, 2, 3, 4]}, "one row for each of the 4"),
    "tokens of another module": ("trainable-tokens-by-module", {"trainable_token_indices": {"lm_head": [1]}}, "embed_tokens"),
    "tokens not told": ("trainable-tokens", {"trainable_token_indices": None}, "unexpected"),
    "parameters not told": ("experts-nested", {"target_parameters": None, "target_modules": ["experts"]}, "target_parameters"),
    "a parameter elsewhere": ("experts", {"target_parameters": ["mlp.up"]}, "mlp.up"),
    "rank of a stack": ("experts", {"r": 4}, "rank"),
    "unlike ranks of nested parameters": ("experts-nested", {"rank_pattern": {"experts.up": 2}}, "which of these parameters"),
    "lora_bias not told": ("lora-bias", {"lora_bias": False}, "lora_B.bias"),
    "another kernel": ("conv2d-dora", {"use_dora": False}, "lora_magnitude_vector"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_settings_that_do_not_fit_are_refused(
    name: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """A config from another model than the weights is refused in words."""
    folder = peft_clients.saved(ROWS[name], tmp_path)[0]
    load_adapter(folder)
    with pytest.raises(AdapterError, match=words):
        load_adapter(edited(folder, change))


@pytest.mark.parametrize("shape", [(12,), (1, 12), (1, 11, 1, 1), (12, 1, 1, 1)])
def test_magnitude_of_another_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    """A convolution's magnitudes are (1, out, 1, 1)."""
    folder = peft_clients.saved(ROWS["conv2d-dora"], tmp_path)[0]
    state = safetensors.torch.load_file(folder / WEIGHTS)
    state["base_model.model.block.c.lora_magnitude_vector"] = torch.ones(shape)
    safetensors.torch.save_file(state, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"block\.c.*lora_magnitude_vector.*\(1, 12, 1, 1\)"):
        load_adapter(folder)


def test_lora_bias_is_averaged_by_its_effect(tmp_path: Path) -> None:
    """With unlike scalings the mean of s · bias is written, not that of the biases."""
    clients = updates(peft_clients.saved(ROWS["lora-bias"], tmp_path))
    scalings = [client.adapter.pairs["block.q"].scaling for client in clients]
    assert len({*scalings}) == len(MIXED)
    made = florana.aggregate(clients, "florana-opt", rank=5, alpha=10).adapter
    state = adapter_to_state_dict(made)
    stored_biases = [
        safetensors.torch.load_file(tmp_path / f"client{u}" / WEIGHTS)[
            "base_model.model.block.q.lora_B.bias"
        ].double()
        for u in range(3)
    ]
    effect = sum(w * s * b for w, s, b in zip(SHARES, scalings, stored_biases, strict=True))
    came = made.pairs["block.q"].scaling * state["base_model.model.block.q.lora_B.bias"].double()
    torch.testing.assert_close(came, effect, rtol=1e-5, atol=1e-6)
