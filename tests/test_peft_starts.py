"""Starts that PEFT draws from the base model or from data: read as the plain LoRA that they are, or refused for a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import florana
import peft_clients
from florana.errors import AdapterError
from florana.peft_io import load_adapter, save_adapter
from peft_clients import mean, off, updates
from peft_models import LINEAR

# PEFT warns of missing configs and of what it sets by itself
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_start_that_changes_the_base_is_refused(start: str, tmp_path: Path) -> None:
    """The reason is real: PEFT's base weights are others afterwards; the message says so and what to do."""
    config = LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=start)
    model = get_peft_model(LINEAR(), config)
    changed = model.base_model.model.block.q.base_layer.weight
    assert not torch.allclose(changed, LINEAR().block.q.weight, atol=1e-3)
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=f"'{start}'.*path_initial_model_for_weight_conversion"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_converted_start_is_plain_lora(start: str, tmp_path: Path) -> None:
    """What the refusal advises works: PEFT's conversion writes rank 2r, and its aggregate is the mean of the models."""
    states, folders = [], []
    for client in range(3):
        config = LoraConfig(r=2, lora_alpha=6, target_modules=["q", "v"], init_lora_weights=start)
        model = get_peft_model(LINEAR(), config).eval()
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / f"start{client}")
        model.peft_config["default"].init_lora_weights = start
        generator = torch.Generator().manual_seed(client)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += 0.3 * noise
        folder = tmp_path / f"client{client}"
        model.save_pretrained(
            folder, path_initial_model_for_weight_conversion=tmp_path / f"start{client}"
        )
        folders.append(folder)
        states.append({n: t.double() for n, t in model.merge_and_unload().state_dict().items()})
    clients = updates(folders)
    assert {pair.rank for pair in clients[0].adapter.pairs.values()} == {4}
    made = florana.aggregate(clients, "ideal").adapter
    came = peft_clients.merged(LINEAR(), save_adapter(made, tmp_path / "made"))
    assert off(came, mean(states)) == {}
