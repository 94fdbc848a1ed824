"""One base model in memory, with one set of LoRA factors that adapters are copied into and out of."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from florana.adapter import EVERYTHING, Adapter, Part
from florana.config import LoraConfig
from florana.errors import AdapterError, ModelError
from florana.lowrank import Product
from florana.peft_io.state_dict import adapter_from_state_dict
from florana.training.base_model import ModelSource
from florana.training.frozen import FrozenWeights
from florana.training.quantization import check_variant, is_placed
from florana.training.targets import find_targets


class LoraModel:
    """A PEFT model whose trainable parameters are known by the names of :meth:`Adapter.tensors`.

    Loading and taking an adapter are foreach copies over a map built once, so that one base model
    serves any number of clients.

    Args:
        base: the base model with its head, as :func:`build_model` makes it.
        source: which base model it is.
        config: variant, rank, alpha, rsLoRA, dropout and target modules.
        seed: of the first A factors.
        device: where to compute, unless loading the base has put it somewhere.

    Raises:
        ModelError: if a target module is not there, or the rank is above min(d_out, d_in) of one.
    """

    def __init__(
        self,
        base: nn.Module,
        source: ModelSource,
        config: LoraConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        placed = is_placed(base)
        self.source = source
        self.module, self.initial = _with_lora(base, source, config, seed)
        self.device = _first_device(self.module) if placed else device
        if not placed:
            self.module.to(device)
        self._parameters = _trainable(self.module, self.initial)
        self._frozen = FrozenWeights(self.module, self.initial.pairs, config.variant)
        self._loaded = self.initial

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained, as :meth:`train_only` left them."""
        return [p for p in self._parameters.values() if p.requires_grad]

    @property
    def base_weights(self) -> Mapping[str, Tensor]:
        """Module -> its frozen weight W (d_out, d_in), as the base model has it."""
        return self._frozen

    def load(self, adapter: Adapter, residual: Mapping[str, Product] | None = None) -> None:
        """Copy an adapter in, and set the frozen weights to W + F for its residual F, if any.

        HiRA's become W ⊙ (1 + F), while its factors go on acting through W.

        A pair of a smaller rank and the same scaling is filled up with zeros on both sides; these have no
        gradient and stay zero, so that one model serves clients of unlike ranks.

        Raises:
            AdapterError: if its variant, modules, shapes or scalings are not those of :attr:`initial`.
        """
        _check_same_form(adapter, self.initial)
        self._set_bases(adapter)
        filled = _filled_up(adapter, self.initial)
        with torch.no_grad():
            torch._foreach_copy_(
                list[Tensor](self._parameters.values()), [filled[name] for name in self._parameters]
            )
        self._frozen.add(residual or {})
        self._loaded = adapter

    def take(self) -> Adapter:
        """A copy of the current factors and heads, in the form of the adapter that was loaded."""
        tensors = {name: p.detach().float().cpu().clone() for name, p in self._parameters.items()}
        for name, pair in self._loaded.pairs.items():
            tensors[f"{name}.lora_A"] = tensors[f"{name}.lora_A"][: pair.rank]
            tensors[f"{name}.lora_B"] = tensors[f"{name}.lora_B"][:, : pair.rank]
        return self._loaded.with_tensors(tensors)

    def train_only(self, parts: Collection[Part]) -> None:
        """Freeze what is in none of these parts."""
        chosen = self._loaded.tensors(parts)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in chosen)

    def _set_bases(self, adapter: Adapter) -> None:
        """Put a core behind every pair's fixed basis, ΔW = s Q R A, or take it away again."""
        for name, pair in adapter.pairs.items():
            if pair.hadamard:  # has no basis, and no module to put one behind
                continue
            up: Any = self.module.get_submodule(f"base_model.model.{name}.lora_B.default")
            if parametrize.is_parametrized(up):
                parametrize.remove_parametrizations(up, "weight", leave_parametrized=False)
                up.weight = nn.Parameter(up.weight.new_zeros(self.initial.pairs[name].B.shape))
            if pair.basis is not None:
                up.weight = nn.Parameter(up.weight.new_zeros(pair.B.shape))
                basis = _Basis(pair.basis.to(up.weight))
                parametrize.register_parametrization(up, "weight", basis, unsafe=True)
                self._parameters[f"{name}.lora_B"] = up.parametrizations.weight.original
            else:
                self._parameters[f"{name}.lora_B"] = up.weight


class _Basis(nn.Module):
    """weight = Q R, with the basis Q fixed and the core R trained."""

    def __init__(self, basis: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, core: Tensor) -> Tensor:
        return self.basis @ core  # type: ignore[operator]


def _with_lora(
    base: nn.Module, source: ModelSource, config: LoraConfig, seed: int
) -> tuple[nn.Module, Adapter]:
    import peft

    find_targets(base, source, config)
    check_variant(base, config.variant)
    shared: dict[str, Any] = {
        "r": config.rank,
        "target_modules": list(config.target_modules),
        "modules_to_save": list(base.fresh_modules) or None,  # type: ignore[arg-type]
        "task_type": base.task_type,
    }
    settings: peft.PeftConfig
    if config.variant == "hira":
        settings = peft.HiraConfig(hira_dropout=config.dropout, **shared)
    else:
        settings = peft.LoraConfig(
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            use_rslora=config.rslora,
            lora_dropout=config.dropout,
            use_dora=config.variant == "dora",
            **shared,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.get_peft_model(base, settings)
    settings.base_model_name_or_path = source.name
    # PEFT would look the embeddings up on the hub to see whether they were changed
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    copied = {name: tensor.detach().float().clone() for name, tensor in state.items()}
    chosen = settings.to_dict()
    return model, adapter_from_state_dict(copied, chosen, source.sha256)


def _first_device(model: nn.Module) -> torch.device:
    """Where a model that lies on several devices takes its token ids."""
    whole: Any = model
    device = whole.get_input_embeddings().weight.device
    assert isinstance(device, torch.device)
    return device


def _trainable(model: nn.Module, adapter: Adapter) -> dict[str, nn.Parameter]:
    """Adapter tensor name -> parameter, for every trainable parameter."""
    by_name = {
        name.removeprefix("base_model.model.")
        .replace(".lora_A.default.weight", ".lora_A")
        .replace(".lora_B.default.weight", ".lora_B")
        .replace(".lora_magnitude_vector.default.weight", ".lora_magnitude")
        .replace(".hira_A.default", ".lora_A")
        .replace(".hira_B.default", ".lora_B")
        .replace(".modules_to_save.default.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if by_name.keys() != adapter.tensors().keys():
        odd = sorted(by_name.keys() ^ adapter.tensors().keys())
        raise ModelError(f"cannot map the trainable parameters of the model: {odd[:3]}")
    return {name: by_name[name] for name in adapter.tensors()}


def _check_same_form(adapter: Adapter, own: Adapter) -> None:
    """Refuse what a copy would stretch to fit, or scale in another way."""
    odd = adapter.pairs.keys() ^ own.pairs.keys()
    if odd:
        raise AdapterError(f"module {min(odd)} is adapted on one side only")
    for name, pair in own.pairs.items():
        came = adapter.pairs[name]
        if came.variant != pair.variant:
            raise AdapterError(f"module {name} is {came.variant}, expected {pair.variant}")
        if came.shape != pair.shape or came.rank > pair.rank:
            raise AdapterError(
                f"module {name} is {came.shape} of rank {came.rank}, "
                f"expected {pair.shape} of rank {pair.rank} or less"
            )
        if not math.isclose(came.scaling, pair.scaling, rel_tol=1e-6):
            raise AdapterError(
                f"module {name} has scaling {came.scaling:g}, expected {pair.scaling:g}"
            )
    for name, tensor in own.extras.items():
        shape = adapter.extras[name].shape if name in adapter.extras else "missing"
        if shape != tensor.shape:
            raise AdapterError(f"{name} is {shape}, expected shape {tuple(tensor.shape)}")


def _filled_up(adapter: Adapter, own: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors with smaller ranks filled up with zeros to the model's own."""
    tensors = adapter.tensors(EVERYTHING - {"basis"})
    for name, pair in adapter.pairs.items():
        missing = own.pairs[name].rank - pair.rank
        if missing:
            tensors[f"{name}.lora_A"] = nn.functional.pad(pair.A, (0, 0, 0, missing))
            tensors[f"{name}.lora_B"] = nn.functional.pad(pair.B, (0, missing))
    return tensors
