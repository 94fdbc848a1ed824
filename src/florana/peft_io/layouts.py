r"""How PEFT stores the low-rank pairs of one kind of module, as data, and the way to 2-D factors and back.

A :class:`Layout` is one row of the table below. All of them are read and written by the same four steps: flatten the
kernel of a convolution, cut the stack of an expert layer, and in reverse stack and unflatten.

=====================  ==============================================  =========================================
module                 as PEFT stores it                               ΔW of the base model's parameter
=====================  ==============================================  =========================================
``nn.Linear``          A (r, in), B (out, r)                           s B A
GPT-2's ``Conv1D``     the same                                        (s B A)ᵀ, of a parameter (in, out)
``nn.Embedding``       A (r, V), B (d, r), under names of their own    (s B A)ᵀ, of a table (V, d)
``nn.Conv1d/2d/3d``    A (r, in, k, …), B (out, r, 1, …)               s B A on flattened kernels (out, in · k · …)
MultiheadAttention     two pairs, ``in_proj`` and ``out_proj``         s B A each
target_parameters      A (E·r, in) expert-major, B (out, r·E) rank-    s B[:, e::E] A[e·r : (e+1)·r] for expert e
                       major
=====================  ==============================================  =========================================

A pair always is in the coordinates (d_out, d_in) in which s B A multiplies. :meth:`Layout.weight` brings the base
model's parameter there, which DoRA and HiRA need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from florana.adapter import Part
from florana.config import Variant
from florana.errors import AdapterError

Shape = tuple[int, ...]

_KEYS: Mapping[Variant, Mapping[Part, str]] = {
    "lora": {"A": "lora_A.weight", "B": "lora_B.weight"},
    "dora": {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"},
    "hira": {"A": "hira_A", "B": "hira_B"},
}
_EMBEDDING_KEYS: Mapping[Variant, Mapping[Part, str]] = {
    "lora": {"A": "lora_embedding_A", "B": "lora_embedding_B"},
    "dora": {
        "A": "lora_embedding_A",
        "B": "lora_embedding_B",
        "magnitude": "lora_magnitude_vector",
    },
    "hira": {"A": "hira_embedding_A", "B": "hira_embedding_B"},
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How PEFT stores the pairs of one module.

    Args:
        kernel: (k, …) of a convolution, which A has behind its channels; () elsewhere.
        experts: matrices that share one set of keys (``target_parameters``); 0 for a module of one matrix.
        transposed: whether the base model's parameter is (d_in, d_out): GPT-2's Conv1D and embeddings.
        embedding: whether the keys are those of an embedding.
        below: where PEFT keeps the keys, for a module whose last name it moves below ``base_layer``.
        parameter: last name of the base model's parameter.

    Example:
        >>> layout = convolution((3, 3))
        >>> layout.pair_shape((4, 8, 3, 3), (16, 4, 1, 1), rank=4)
        (16, 72)
        >>> experts(2).pair_names("mlp.experts")
        ('mlp.experts[0]', 'mlp.experts[1]')
    """

    kernel: Shape = ()
    experts: int = 0
    transposed: bool = False
    embedding: bool = False
    below: bool = False
    parameter: str = "weight"

    def keys(self, variant: Variant) -> Mapping[Part, str]:
        """Part -> the end of its key, below :meth:`stem`."""
        return (_EMBEDDING_KEYS if self.embedding else _KEYS)[variant]

    def stem(self, module: str) -> str:
        """Where PEFT keeps the module's keys: the module's name, or ``<owner>.base_layer.<last name>``."""
        owner, _, last = module.rpartition(".")
        return f"{owner}.base_layer.{last}" if self.below else module

    def pair_names(self, module: str) -> tuple[str, ...]:
        """Names of the module's pairs: its own, or ``module[0]``, ``module[1]``, … for experts."""
        return tuple(f"{module}[{e}]" for e in range(self.experts)) or (module,)

    def pair_shape(self, A: Shape, B: Shape, rank: int) -> tuple[int, int]:
        """Shape (d_out, d_in) of each pair.

        Args:
            A: shape of lora_A as stored.
            B: shape of lora_B as stored.
            rank: r, as the config has it.

        Raises:
            AdapterError: if such factors do not multiply to that rank in this layout.
        """
        ndim, width = 2 + len(self.kernel), rank * max(1, self.experts)
        if len(A) != ndim or len(B) != ndim:
            raise AdapterError(
                f"factors do not multiply: A is {A}, B is {B}; expected both with {ndim} dimensions; save it again"
            )
        if self.kernel and B[1] != A[0]:
            raise AdapterError(
                f"A is {A}, B is {B}: a grouped convolution is not supported, since PEFT itself cannot merge it; "
                "leave the module out of target_modules"
            )
        if A[0] != B[1] or any(k != 1 for k in B[2:]):
            raise AdapterError(
                f"factors do not multiply: A is {A}, B is {B}; expected A of shape (r, d_in, kernel) and B of shape "
                "(d_out, r) and a 1 for every dimension of the kernel; save it again"
            )
        if A[0] != width:
            each = f" for each of {self.experts} experts" if self.experts else ""
            raise AdapterError(
                f"A and B have rank {A[0]}; expected {width}{', ' + str(rank) + each if each else ''}, as r and "
                "rank_pattern have it; save config and weights from one model"
            )
        return B[0], math.prod(A[1:])

    def split(self, parts: Mapping[Part, Tensor]) -> tuple[dict[Part, Tensor], ...]:
        """Tensors as stored -> 2-D factors (and the 1-D magnitude) of every pair, as views where they can be."""
        A, B = parts["A"].flatten(1), parts["B"].flatten(1)
        if self.experts:
            return tuple(
                {"A": rows, "B": B[:, e :: self.experts]}
                for e, rows in enumerate(A.chunk(self.experts))
            )
        pair: dict[Part, Tensor] = {"A": A, "B": B}
        if "magnitude" in parts:
            pair["magnitude"] = parts["magnitude"].flatten()
        return (pair,)

    def join(self, pairs: Sequence[Mapping[Part, Tensor]]) -> dict[Part, Tensor]:
        """2-D factors of every pair, of one rank -> tensors as PEFT stores them."""
        A = torch.cat([pair["A"] for pair in pairs])
        B = torch.stack([pair["B"] for pair in pairs], dim=2).flatten(1)
        ones = (1,) * len(self.kernel)
        joined: dict[Part, Tensor] = {
            "A": A.reshape(len(A), -1, *self.kernel) if self.kernel else A,
            "B": B.reshape(*B.shape, *ones),
        }
        if "magnitude" in pairs[0]:
            m = pairs[0]["magnitude"]
            joined["magnitude"] = m.reshape(1, -1, *ones) if self.kernel else m
        return joined

    def magnitude_shape(self, d_out: int) -> Shape:
        """Shape of DoRA's magnitudes as stored: (d_out,), or (1, d_out, 1, …) in a convolution."""
        return (1, d_out, *(1,) * len(self.kernel)) if self.kernel else (d_out,)

    def weight(self, parameter: Tensor) -> Tensor:
        r"""The base model's parameter as the frozen weight W (d_out, d_in) that a pair of this layout updates.

        Args:
            parameter: (d_out, d_in), (d_in, d_out) if :attr:`transposed`, or (out, in, k, …) of a convolution.

        Returns:
            W, a view of the parameter where it can be one.

        Raises:
            AdapterError: if the parameter has another number of dimensions or kernel, or the layout is that of
                experts, which PEFT gives neither DoRA nor HiRA.

        Example:
            >>> convolution((3,)).weight(torch.zeros(4, 2, 3)).shape
            torch.Size([4, 6])
            >>> EMBEDDING.weight(torch.zeros(100, 8)).shape
            torch.Size([8, 100])
        """
        shape = tuple(parameter.shape)
        if self.experts or len(shape) != 2 + len(self.kernel) or shape[2:] != self.kernel:
            kernel = "".join(f", {k}" for k in self.kernel)
            expected = "no experts" if self.experts else f"(d_out, d_in{kernel})"
            raise AdapterError(
                f"the base model's parameter is {shape}; expected {expected}; give the base model that the adapter "
                "was trained on"
            )
        return parameter.T if self.transposed else parameter.flatten(1)


LINEAR = Layout()
"""``nn.Linear``, and what an adapter in memory has where it says nothing."""
TRANSPOSED = Layout(transposed=True)
"""GPT-2's ``Conv1D`` (``fan_in_fan_out``)."""
EMBEDDING = Layout(transposed=True, embedding=True)
"""``nn.Embedding``."""
IN_PROJ = Layout(parameter="in_proj_weight")
"""The joined query, key and value projection of ``nn.MultiheadAttention``."""
OUT_PROJ = Layout(below=True)
"""The output projection of ``nn.MultiheadAttention``, which PEFT adapts with it."""


def convolution(kernel: Shape) -> Layout:
    """``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` with a kernel of this size."""
    return Layout(kernel=kernel)


def experts(count: int) -> Layout:
    """A parameter (E, ·, ·) of ``target_parameters``: one matrix for each of E experts."""
    return Layout(experts=count)
