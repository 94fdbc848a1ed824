"""One base model in memory, with one set of LoRA factors that adapters are copied into and out of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from florana.adapter import Adapter
from florana.config import LoraConfig
from florana.errors import AdapterError, ModelError
from florana.lowrank import Product
from florana.peft_format import adapter_from_state_dict
from florana.training.base_model import MeanPooledClassifier, ModelSource


class LoraModel:
    """A PEFT model whose trainable parameters are known by the names of :meth:`Adapter.tensors`.

    Loading and taking an adapter are foreach copies over a map built once, so that one base model
    serves any number of clients.

    Args:
        base: the base model with its head.
        source: which base model it is.
        config: rank, alpha, rsLoRA, dropout and target modules.
        seed: of the first A factors.
        device: where to compute.

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
        self.device = device
        self.module, self.initial = _with_lora(base, source, config, seed)
        self.module.to(device)
        self._parameters = _trainable(self.module, self.initial)
        self._pristine: dict[str, Tensor] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return list(self._parameters.values())

    def load(self, adapter: Adapter, residual: Mapping[str, Product] | None = None) -> None:
        """Copy an adapter in, and set the frozen weights to W + F for its residual F, if any.

        Raises:
            AdapterError: if its modules, shapes or scalings are not those of :attr:`initial`.
        """
        _check_same_form(adapter, self.initial)
        tensors = adapter.tensors()
        with torch.no_grad():
            torch._foreach_copy_(
                list[Tensor](self.parameters), [tensors[name] for name in self._parameters]
            )
        self._set_residual(residual or {})

    def take(self) -> Adapter:
        """A copy of the current factors and heads as an adapter."""
        tensors = {name: p.detach().float().cpu().clone() for name, p in self._parameters.items()}
        return self.initial.with_tensors(tensors)

    def _set_residual(self, residual: Mapping[str, Product]) -> None:
        """Always from the pristine weights, so that rounding does not add up over rounds."""
        with torch.no_grad():
            for name in self._pristine.keys() - residual.keys():
                _base_weight(self.module, name).copy_(self._pristine.pop(name))
            for name, product in residual.items():
                weight = _base_weight(self.module, name)
                pristine = self._pristine.setdefault(name, weight.detach().clone())
                B, A = (factor.to(weight) for factor in product)
                weight.copy_(torch.addmm(pristine, B, A))


def _with_lora(
    base: nn.Module, source: ModelSource, config: LoraConfig, seed: int
) -> tuple[nn.Module, Adapter]:
    import peft

    _check_targets(base, source, config)
    pooled = isinstance(base, MeanPooledClassifier)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        use_rslora=config.rslora,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        modules_to_save=list(base.fresh_modules) or None,  # type: ignore[arg-type]
        task_type=None if pooled else "SEQ_CLS",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.get_peft_model(base, settings)
    settings.base_model_name_or_path = source.name
    # PEFT would look the embeddings up on the hub to see whether they were changed
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    copied = {name: tensor.detach().float().clone() for name, tensor in state.items()}
    chosen = settings.to_dict()  # type: ignore[no-untyped-call]
    return model, adapter_from_state_dict(copied, chosen, source.sha256)


def _check_targets(base: nn.Module, source: ModelSource, config: LoraConfig) -> None:
    linear = {name: m for name, m in base.named_modules() if isinstance(m, nn.Linear)}
    for target in config.target_modules:
        found = [m for name, m in linear.items() if name == target or name.endswith(f".{target}")]
        if not found:
            endings = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise ModelError(
                f"{source.name} has no linear module {target!r}; lora.target_modules may name: {endings}"
            )
        for module in found:
            if config.rank > min(module.weight.shape):
                raise ModelError(
                    f"lora.rank {config.rank} is above min(d_out, d_in) = {min(module.weight.shape)} "
                    f"of module {target!r} of {source.name}; choose a smaller rank"
                )


def _trainable(model: nn.Module, adapter: Adapter) -> dict[str, nn.Parameter]:
    """Adapter tensor name -> parameter, for every trainable parameter."""
    by_name = {
        name.removeprefix("base_model.model.")
        .replace(".lora_A.default.weight", ".lora_A")
        .replace(".lora_B.default.weight", ".lora_B")
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
    shapes = {name: tensor.shape for name, tensor in adapter.tensors().items()}
    for name, tensor in own.tensors().items():
        if shapes.get(name) != tensor.shape:
            came = tuple(shapes[name]) if name in shapes else "missing"
            raise AdapterError(f"{name} is {came}, expected shape {tuple(tensor.shape)}")
    for name, pair in own.pairs.items():
        scaling = adapter.pairs[name].scaling
        if not math.isclose(scaling, pair.scaling, rel_tol=1e-6):
            raise AdapterError(f"module {name} has scaling {scaling:g}, expected {pair.scaling:g}")


def _base_weight(model: nn.Module, name: str) -> Tensor:
    layer = model.get_submodule(f"base_model.model.{name}")
    weight = layer.get_base_layer().weight  # type: ignore[operator]
    assert isinstance(weight, Tensor)
    return weight
