"""The vocabulary of the whole code base: LoRA pairs, adapters, client updates and plans, all frozen."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from florana.errors import AdapterError
from florana.lowrank import Product

if TYPE_CHECKING:
    from florana.config import Variant
    from florana.peft_io.layouts import Layout

Part = Literal["A", "B", "basis", "magnitude", "heads"]
"""What an adapter is made of, as far as a method can train, send or keep it apart from the rest."""

PARTS: tuple[Part, ...] = get_args(Part)
EVERYTHING: frozenset[Part] = frozenset(PARTS)
OF_A_PAIR: tuple[Part, ...] = ("A", "B", "basis", "magnitude")
"""The parts that :class:`LoraPair` holds, under these names."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    r"""The low-rank update of one module, :math:`\Delta W = s B A`, or :math:`s\, Q B A` with a basis Q.

    Two variants read the same factors in another way, and need the frozen weight W for it:

    - DoRA (arXiv 2402.09353), with a ``magnitude`` m: :math:`W + \Delta W = D (W + s B A)`,
      :math:`D = \mathrm{diag}(m / \lVert W + s B A \rVert_\mathrm{row})`.
    - HiRA (ICLR 2025), ``hadamard``: :math:`\Delta W = W \odot (B A)`, without a scaling.

    Args:
        A: (r, d_in), LoRA's down projection.
        B: (d_out, r), LoRA's up projection; with a basis the core (k, r) between basis and A.
        alpha: LoRA's alpha. The scaling is s = alpha / r, or alpha / √r with ``rslora``.
        rslora: whether rank-stabilised scaling is used (arXiv 2312.03732).
        basis: Q (d_out, k), fixed, for methods that train a small core only (Fed-SB); else None.
        magnitude: m (d_out,), DoRA's length of every row of the weight; None without DoRA.
        hadamard: whether this is HiRA, which has no scaling: alpha must be the rank, so that s = 1.

    Raises:
        AdapterError: if the shapes do not multiply, a dtype is not floating, alpha is not a
            positive finite number, or two variants are mixed.

    Example:
        >>> pair = LoraPair(A=torch.zeros(4, 16), B=torch.zeros(8, 4), alpha=8)
        >>> pair.rank, pair.shape, pair.scaling
        (4, (8, 16), 2.0)
    """

    A: Tensor
    B: Tensor
    alpha: float
    rslora: bool = False
    basis: Tensor | None = None
    magnitude: Tensor | None = None
    hadamard: bool = False

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
        if self.basis is not None and (
            self.basis.ndim != 2 or self.basis.shape[1] != self.B.shape[0]
        ):
            raise AdapterError(
                f"basis {tuple(self.basis.shape)} does not multiply with core {tuple(self.B.shape)}; "
                "expected (d_out, k) and (k, r)"
            )
        self._check_variant()

    def _check_variant(self) -> None:
        if self.magnitude is not None and self.magnitude.shape != self.shape[:1]:
            raise AdapterError(
                f"magnitude is {tuple(self.magnitude.shape)}, expected one number per row of the "
                f"{self.shape[0]} × {self.shape[1]} weight"
            )
        if self.magnitude is not None and not self.magnitude.is_floating_point():
            raise AdapterError(f"magnitude must be floating point, got {self.magnitude.dtype}")
        if self.hadamard and not math.isclose(self.scaling, 1.0, rel_tol=1e-9):
            raise AdapterError(
                f"HiRA has no scaling, got {self.scaling:g}; give alpha = rank = {self.rank}, without rslora"
            )
        others = (self.basis is not None) + (self.magnitude is not None) + self.hadamard
        if others > 1:
            raise AdapterError("a pair can have one of basis, magnitude and hadamard, got several")

    @property
    def rank(self) -> int:
        """Rank r of the pair."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_out, d_in) of the weight that the pair updates."""
        up = self.B if self.basis is None else self.basis
        return up.shape[0], self.A.shape[1]

    @property
    def variant(self) -> Variant:
        """How the factors are read: ``"lora"``, ``"dora"`` or ``"hira"``."""
        if self.hadamard:
            return "hira"
        return "lora" if self.magnitude is None else "dora"

    @property
    def scaling(self) -> float:
        """Scaling s = alpha / r, or alpha / √r with rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def product(self) -> Product:
        """The product s B A in factored form, scaling and basis folded into B, in float64: ΔW, but for the variants."""
        return Product(self.scaling * self.folded().B.double(), self.A.double())

    def folded(self) -> LoraPair:
        """The same update as a plain pair: the basis multiplied into B."""
        if self.basis is None:
            return self
        B = (self.basis.double() @ self.B.double()).to(self.B.dtype)
        return replace(self, B=B, basis=None)

    def delta_w(self, weight: Tensor | None = None) -> Tensor:
        """ΔW as a dense (d_out, d_in) float64 matrix: for tests and small examples only.

        Args:
            weight: W (d_out, d_in), which DoRA and HiRA need.

        Raises:
            AdapterError: if it is needed and not given.

        Example:
            >>> pair = LoraPair(torch.ones(1, 2), torch.ones(2, 1), alpha=1, hadamard=True)
            >>> pair.delta_w(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
            [[1.0, 2.0], [3.0, 4.0]]
        """
        product = self.product.B @ self.product.A
        if self.variant == "lora":
            return product
        if weight is None:
            raise AdapterError(
                f"ΔW of {self.variant} follows from the frozen weight; give weight=W"
            )
        W = weight.double()
        if self.magnitude is None:
            return W * product
        V = W + product
        length: Tensor = torch.linalg.vector_norm(V, dim=1)
        return (self.magnitude.double() / length)[:, None] * V - W


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
        layouts: module -> how PEFT stores its pairs, where the module is not a plain linear layer. Experts of
            one parameter share a module: the pairs ``"experts[0]"``, ``"experts[1]"``, … have one layout, ``"experts"``.
    """

    pairs: Mapping[str, LoraPair]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    base_model: str = ""
    base_hash: str = ""
    peft_config: Mapping[str, object] = field(default_factory=dict)
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("pairs", "extras", "peft_config", "layouts"):
            given = getattr(self, name)
            # A read-only one stays as it is: nothing is copied, and pairs that are read from a disk stay there.
            if not isinstance(given, MappingProxyType):
                object.__setattr__(self, name, MappingProxyType(dict(given)))

    def tensors(self, parts: Collection[Part] = EVERYTHING) -> dict[str, Tensor]:
        """Tensors by unique name: ``<module>.lora_A``, ``<module>.lora_B``, …, then the extras.

        Args:
            parts: leave out what is in none of these; ``"heads"`` are the extras.
        """
        named: dict[str, Tensor] = {}
        for module, pair in self.pairs.items():
            for part in OF_A_PAIR:
                tensor: Tensor | None = getattr(pair, part)
                if tensor is not None and part in parts:
                    named[f"{module}.lora_{part}"] = tensor
        return named | (dict(self.extras) if "heads" in parts else {})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Adapter:
        """A copy in which the tensors of these names (see :meth:`tensors`) are replaced."""
        pairs = {
            module: replace(
                pair,
                A=tensors.get(f"{module}.lora_A", pair.A),
                B=tensors.get(f"{module}.lora_B", pair.B),
                basis=tensors.get(f"{module}.lora_basis", pair.basis),
                magnitude=tensors.get(f"{module}.lora_magnitude", pair.magnitude),
            )
            for module, pair in self.pairs.items()
        }
        extras = {name: tensors.get(name, tensor) for name, tensor in self.extras.items()}
        return replace(self, pairs=pairs, extras=extras)

    def folded(self) -> Adapter:
        """The same update with plain pairs only, as PEFT knows them."""
        return replace(self, pairs={module: pair.folded() for module, pair in self.pairs.items()})

    @property
    def variant(self) -> Variant:
        """The variant of the pairs; ``"lora"`` where there are none.

        Raises:
            AdapterError: if modules have unlike variants.
        """
        found = {pair.variant: module for module, pair in self.pairs.items()}
        if len(found) > 1:
            said = ", ".join(f"{module} is {variant}" for variant, module in found.items())
            raise AdapterError(f"an adapter is of one variant throughout, got {said}")
        return next(iter(found), "lora")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a client does in one round, as far as the method decides it.

    Args:
        train: parts that are trained; the others stay as the server sent them.
        home: parts of ``train`` that never leave the client, and that it goes on with next time.
        pooled: no federation at all: one place has all clients' data. The far end of the comparison.
    """

    train: frozenset[Part] = EVERYTHING
    home: frozenset[Part] = frozenset()
    pooled: bool = False

    @property
    def sent(self) -> frozenset[Part]:
        """Parts that go to the server."""
        return self.train - self.home


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
        # aminmax is ten times faster than isfinite, and lets NaN through.
        if tensor.numel() and not all(math.isfinite(end.item()) for end in torch.aminmax(tensor)):
            return name
    return None
