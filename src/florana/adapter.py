"""The vocabulary of the whole code base: LoRA pairs, adapters and client updates, all frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from florana.errors import AdapterError
from florana.lowrank import Product


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    r"""The low-rank update of one module, :math:`\Delta W = s B A`.

    Args:
        A: (r, d_in), LoRA's down projection.
        B: (d_out, r), LoRA's up projection.
        alpha: LoRA's alpha. The scaling is s = alpha / r, or alpha / √r with ``rslora``.
        rslora: whether rank-stabilised scaling is used (arXiv 2312.03732).

    Raises:
        AdapterError: if the shapes do not multiply, a dtype is not floating, or alpha is not a
            positive finite number.

    Example:
        >>> pair = LoraPair(A=torch.zeros(4, 16), B=torch.zeros(8, 4), alpha=8)
        >>> pair.rank, pair.shape, pair.scaling
        (4, (8, 16), 2.0)
    """

    A: Tensor
    B: Tensor
    alpha: float
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise AdapterError(
                f"factors do not multiply: A is {tuple(self.A.shape)}, B is {tuple(self.B.shape)}; "
                "expected A of shape (r, d_in) and B of shape (d_out, r)"
            )
        if self.A.shape[0] == 0:
            raise AdapterError("a LoRA pair needs rank 1 or more, got rank 0")
        if not (self.A.is_floating_point() and self.B.is_floating_point()):
            raise AdapterError(
                f"factors must be floating point, got A {self.A.dtype} and B {self.B.dtype}"
            )
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise AdapterError(f"alpha must be a positive finite number, got {self.alpha}")

    @property
    def rank(self) -> int:
        """Rank r of the pair."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_out, d_in) of the weight that the pair updates."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def scaling(self) -> float:
        """Scaling s = alpha / r, or alpha / √r with rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def product(self) -> Product:
        """ΔW = s B A in factored form, the scaling folded into B, in float64."""
        return Product(self.scaling * self.B.double(), self.A.double())

    def delta_w(self) -> Tensor:
        """ΔW = s B A as a dense (d_out, d_in) float64 matrix: for tests and small examples only."""
        return self.product.B @ self.product.A


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Everything that a client trains and sends, and nothing of the base model.

    Args:
        pairs: module name -> LoRA pair, as PEFT names modules (without ``base_model.model.``).
        extras: parameter name -> tensor for what is trained in full: classifier heads
            (``modules_to_save``) and biases.
        base_model: name of the base model, as PEFT's ``base_model_name_or_path`` has it.
        base_hash: hash of the base model's weights, or "" where it is not known.
        peft_config: PEFT's remaining settings (task type, target modules, ...), carried along so
            that the adapter can be written as a PEFT folder again.
    """

    pairs: Mapping[str, LoraPair]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    base_model: str = ""
    base_hash: str = ""
    peft_config: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("pairs", "extras", "peft_config"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by unique name: ``<module>.lora_A``, ``<module>.lora_B``, then the extras."""
        named: dict[str, Tensor] = {}
        for module, pair in self.pairs.items():
            named[f"{module}.lora_A"] = pair.A
            named[f"{module}.lora_B"] = pair.B
        return named | dict(self.extras)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Adapter:
        """A copy with the tensors of :meth:`tensors` replaced by those of the same names."""
        pairs = {
            module: replace(pair, A=tensors[f"{module}.lora_A"], B=tensors[f"{module}.lora_B"])
            for module, pair in self.pairs.items()
        }
        return replace(self, pairs=pairs, extras={name: tensors[name] for name in self.extras})


@dataclass(frozen=True, slots=True, eq=False)
class ClientUpdate:
    """What one client hands to the server after local training.

    Args:
        client_id: name of the client, used in every message about it.
        num_examples: size of its training data; its weight is w_u = num_examples / Σ num_examples.
        adapter: its factors and heads after local training.

    Raises:
        AdapterError: if num_examples is negative or not finite.
    """

    client_id: str
    num_examples: float
    adapter: Adapter

    def __post_init__(self) -> None:
        if not (math.isfinite(self.num_examples) and self.num_examples >= 0):
            raise AdapterError(
                f"client {self.client_id}: num_examples must be a finite number of 0 or more, "
                f"got {self.num_examples}"
            )


def first_non_finite(adapter: Adapter) -> str | None:
    """Name of the first tensor that holds NaN or infinity, or None if all values are finite."""
    for name, tensor in adapter.tensors().items():
        if not torch.isfinite(tensor).all():
            return name
    return None
