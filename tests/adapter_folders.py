"""Adapter folders that PEFT itself writes, for a model small enough to be made in every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from florana import ClientUpdate, load_adapter

TARGETS = ["up", "down", "side"]


class Tower(nn.Module):
    """Rectangular linear layers, one of them with a bias, and a head."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "up": nn.Linear(6, 9),
                    "down": nn.Linear(9, 6, bias=False),
                    "side": nn.Linear(6, 6, bias=False),
                }
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Something that uses every layer."""
        for layer in self.layers:
            x = x + layer["down"](torch.tanh(layer["up"](x))) + layer["side"](x)
        return self.head(x)


def tower(layers: int = 2) -> Tower:
    """The one base model of all clients."""
    torch.manual_seed(0)
    return Tower(layers).eval()


def write(root: Path, name: str, seed: int = 1, layers: int = 2, **settings: Any) -> Path:
    """A folder as PEFT saves it, with random numbers in all that training would have changed."""
    dtype = settings.pop("dtype", torch.float32)
    chosen = {"r": 2, "lora_alpha": 6, "target_modules": TARGETS, **settings}
    model = get_peft_model(tower(layers), LoraConfig(**chosen))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))
    model.to(dtype).save_pretrained(root / name)
    return root / name


def clients(root: Path, count: int = 3, **settings: Any) -> list[Path]:
    """Folders ``site_0``, ``site_1``, … of unlike numbers."""
    return [write(root, f"site_{u}", seed=u + 1, **settings) for u in range(count)]


def updates(paths: list[Path], weights: list[float] | None = None) -> list[ClientUpdate]:
    """The same adapters in memory."""
    sizes = weights or [1.0] * len(paths)
    return [
        ClientUpdate(path.name, size, load_adapter(path))
        for path, size in zip(paths, sizes, strict=True)
    ]


def merged(folder: Path, layers: int = 2) -> dict[str, Tensor]:
    """The base model's weights after PEFT has loaded and merged a folder, in float64."""
    model = PeftModel.from_pretrained(tower(layers).double(), folder, autocast_adapter_dtype=False)
    state = model.double().merge_and_unload().state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def write_base(folder: Path, prefix: str = "", shards: int = 1, layers: int = 2) -> Path:
    """The base model as transformers saves it: one safetensors file, or several with an index."""
    import json

    folder.mkdir(parents=True)
    state = {f"{prefix}{name}": t.contiguous() for name, t in tower(layers).state_dict().items()}
    names = sorted(state)
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}
    for file in {*where.values()}:
        save_file({n: state[n] for n in names if where[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
