"""Clients that PEFT trains, saves, merges and combines: what a :class:`Row` of ``peft_rows.py`` stands for, made real.

The numbers are random, in everything that training would have changed, so that no start at zero hides a mistake.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import HiraConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from florana.adapter import ClientUpdate
from florana.peft_io import load_adapter

SIZES = (100, 300, 600)
"""``num_examples`` of the three clients."""
SHARES = [size / sum(SIZES) for size in SIZES]
CLOSE = 3e-6
"""Gap that float32 leaves, relative to a tensor's size."""


@dataclass(frozen=True, slots=True)
class Row:
    """A base model, and what clients do with it.

    Args:
        base: makes the base model, the same one at every call.
        settings: what all clients' configs say.
        clients: what each client's config says beside that: by default ranks 2, 2, 2 and alpha 6.
        hira: whether the config is a ``HiraConfig``.
        cat: what PEFT's ``add_weighted_adapter(combination_type="cat")`` makes of it: ``"exact"``, ``"inexact"``, or the
            error that it raises.
        prepare: what is done to the PEFT model before it is trained: an initialisation from data.
        full: parameters, by the end of their names, that a client changes though PEFT does not train them.
        save: arguments of ``save_pretrained``.
    """

    base: Callable[[], nn.Module]
    settings: Mapping[str, Any]
    clients: Sequence[Mapping[str, Any]] = field(default=({}, {}, {}))
    hira: bool = False
    cat: str = "exact"
    prepare: Callable[[PeftModel, int], None] | None = None
    full: tuple[str, ...] = ()
    save: Mapping[str, Any] = field(default_factory=dict)

    def config(self, client: int) -> PeftConfig:
        """The config of one client."""
        given = {**self.settings, **self.clients[client]}
        if self.hira:
            return HiraConfig(**{"r": 2, **given})
        return LoraConfig(**{"r": 2, "lora_alpha": 6, **given})


def trained(row: Row, client: int) -> PeftModel:
    """One client's PEFT model, with random numbers in everything that training would have changed."""
    torch.manual_seed(client)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(row.base(), row.config(client)).eval()
        if row.prepare:
            row.prepare(model, client)
    generator = torch.Generator().manual_seed(client)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or name.endswith(row.full or ("\0",)):
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter.abs() + noise.abs() if "magnitude" in name else noise)
    return model


def saved(row: Row, folder: Path) -> list[Path]:
    """The clients' folders, as PEFT writes them."""
    folders = []
    for client in range(len(row.clients)):
        path = folder / f"client{client}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained(row, client).save_pretrained(path, **row.save)
        folders.append(path)
    return folders


def merged(base: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Every parameter of the base model with the adapter of a folder merged by PEFT, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="(?i).*(missing|unexpected|not found|already)")
        model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    return {name: tensor.double() for name, tensor in model.state_dict().items()}


def concatenated(base: nn.Module, folders: Sequence[Path], weights: Sequence[float]) -> nn.Module:
    """The clients' adapters combined by PEFT itself, by concatenation, and merged."""
    names = [f"c{i}" for i in range(len(folders))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base, folders[0], adapter_name=names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(folder, adapter_name=name)
        model.add_weighted_adapter(names, list(weights), "all", combination_type="cat")
        model.set_adapter("all")
        return model.merge_and_unload(adapter_names=["all"])


def updates(folders: list[Path]) -> list[ClientUpdate]:
    """The clients' folders as florana reads them."""
    return [
        ClientUpdate(path.name, size, load_adapter(path))
        for path, size in zip(folders, SIZES, strict=True)
    ]


def mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The dense float64 weighted mean of whole models."""
    return {
        name: sum((w * s[name] for w, s in zip(SHARES, states, strict=True)), torch.zeros(()))
        for name in states[0]
    }


def off(came: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Name -> gap, relative to the tensor's size, of what is not the same to float32's precision."""
    assert came.keys() == expected.keys()
    gaps = {
        name: float((came[name].double() - tensor).norm()) / max(1.0, float(tensor.norm()))
        for name, tensor in expected.items()
    }
    return {name: gap for name, gap in gaps.items() if gap > CLOSE}
