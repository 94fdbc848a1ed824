"""What PEFT trains or saves in full beside the pairs: heads, biases, token rows, tables.

Every one of them is averaged as it is, under the base model's parameter name. Only ``lora_bias`` needs more: its effect
is s · bias, so that is what an :class:`Adapter` holds, and it is divided by the scaling of the result on writing.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from florana.errors import AdapterError
from florana.peft_io.names import PREFIX
from florana.peft_io.settings import SUPPORTED, short, suffixes
from florana.peft_io.values import TensorInfo, check_finite

TOKENS = ".token_adapter.trainable_tokens_delta"
"""End of the name of trained token rows; which tokens they are, ``trainable_token_indices`` says."""
LORA_BIAS = ".lora_bias"
"""End of the name of s · bias, the effect of a bias on lora_B."""
TABLES = ("embed_tokens", "lm_head", "shared", "word_embeddings", "wte")
"""Modules whose whole weight PEFT saves where the vocabulary was resized or ``save_embedding_layers`` is set."""


@dataclass(frozen=True, slots=True)
class StoredExtra:
    """One tensor of the file that is no part of a pair.

    Args:
        parameter: its name in an :class:`Adapter`: the base model's, where the base model has it.
        key: its key in the file.
        written: its key without wrappers, as PEFT 0.21 writes it.
        info: its dtype and shape.
        module: the adapted module whose scaling it is to be multiplied with (``lora_bias``), or None.
        scaling: s of that module, else 1.
    """

    parameter: str
    key: str
    written: str
    info: TensorInfo
    module: str | None = None
    scaling: float = 1.0

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor of :attr:`key` as an :class:`Adapter` holds it: a copy, s · bias for ``lora_bias``.

        Raises:
            AdapterError: if it holds NaN or infinity.
        """
        check_finite(self.key, tensor)
        return scaled(tensor, self.scaling)

    def write(self, tensor: Tensor, scaling: float = 1.0) -> dict[str, Tensor]:
        """PEFT's key -> what PEFT stores for it.

        Args:
            tensor: the value, as :meth:`read` returns it.
            scaling: s of the pair that is written for :attr:`module`; not used where that is None.
        """
        return {self.written: scaled(tensor, 1 / scaling if self.module else 1.0)}


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """A contiguous copy, times a factor, in the tensor's own dtype."""
    tensor = tensor.detach()
    if factor == 1:
        return tensor.clone(memory_format=torch.contiguous_format)
    return (tensor.double() * factor).to(tensor.dtype).contiguous()


def read_extras(
    others: Mapping[str, str],
    infos: Mapping[str, TensorInfo],
    stems: Mapping[str, str],
    scalings: Mapping[str, float],
    tables: Set[str],
    settings: Mapping[str, Any],
) -> dict[str, StoredExtra]:
    """Parameter name -> what is stored for it.

    Args:
        others: name -> key of all that is no part of a pair.
        infos: key -> dtype and shape.
        stems: where PEFT keeps a pair -> the module's name.
        scalings: module -> s.
        tables: adapted embeddings, whose whole weight PEFT saves too.
        settings: as :func:`florana.peft_io.settings.read_settings` returns them.

    Raises:
        AdapterError: if the settings say nothing of a tensor, or two name one parameter.
    """
    heads = tuple(settings["modules_to_save"])
    dotted = [f".{head}." for head in heads]
    for adapted in stems.values():
        if any(head in f".{adapted}." for head in dotted):
            raise AdapterError(
                f"module {short(adapted)} has LoRA factors and is in modules_to_save too; expected one of the two"
            )
    extras: dict[str, StoredExtra] = {}
    module: str | None
    for name, key in others.items():
        if _is_in_head(name, heads) and _plain_twin(name) in others:
            continue
        info, owner = infos[key], name.removesuffix(".lora_B.bias")
        if owner != name and owner in stems and settings.get("lora_bias"):
            module, parameter = stems[owner], stems[owner] + LORA_BIAS
        else:
            module, parameter = None, base_name(name, stems)
            _check_expected(name, parameter, info, stems, heads, tables, settings)
        if parameter in extras:
            raise AdapterError(f"parameter {short(parameter)} comes twice; expected it once")
        written = PREFIX + (name if module else stored_name(parameter, stems))
        scaling = scalings[module] if module else 1.0
        extras[parameter] = StoredExtra(parameter, key, written, info, module, scaling)
    return extras


def _check_expected(
    name: str,
    parameter: str,
    info: TensorInfo,
    stems: Mapping[str, str],
    heads: tuple[str, ...],
    tables: Set[str],
    settings: Mapping[str, Any],
) -> None:
    bias = settings.get("bias", "none")
    if _is_in_head(name, heads) or is_trained_bias(parameter, bias, {*stems.values()}):
        return None
    if name.endswith(TOKENS) and settings.get("trainable_token_indices"):
        return check_tokens(name, info.shape, settings["trainable_token_indices"])
    if is_table(parameter, tables):
        return None
    raise AdapterError(
        f"tensor {short(PREFIX + name)} is unexpected with bias {bias!r} and modules_to_save {short(heads)}; {SUPPORTED}"
    )


def check_tokens(name: str, shape: tuple[int, ...], indices: object) -> None:
    """Refuse token rows of which there are not as many as indices, or of a module without any.

    Args:
        name: the tensor's name.
        shape: its shape.
        indices: ``trainable_token_indices``: the tokens of the input embedding, or module -> its tokens.

    Raises:
        AdapterError: naming the tensor.
    """
    owner, rows = name.removesuffix(TOKENS), indices
    if isinstance(indices, Mapping):
        rows = next((indices[end] for end in suffixes(owner) if end in indices), ())
    count = len(rows) if isinstance(rows, list | tuple) else 0
    if len(shape) != 2 or shape[0] != count:
        raise AdapterError(
            f"tensor {short(PREFIX + name)} is {shape}; expected one row for each of the {count} tokens of "
            "trainable_token_indices; save config and weights from one model"
        )


def base_name(name: str, stems: Mapping[str, str]) -> str:
    """The base model's name of a parameter: without the ``base_layer`` of what is adapted.

    Example:
        >>> base_name("x.q.base_layer.bias", {"x.q": "x.q"})
        'x.q.bias'
    """
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        if parts[depth - 1] == "base_layer" and ".".join(parts[: depth - 1]) in stems:
            del parts[depth - 1]
    return ".".join(parts)


def stored_name(parameter: str, stems: Set[str] | Mapping[str, str]) -> str:
    """PEFT's name of a base model's parameter: with a ``base_layer`` for each pair around it.

    Example:
        >>> stored_name("mha.out_proj.bias", {"mha", "mha.base_layer.out_proj"})
        'mha.base_layer.out_proj.base_layer.bias'
    """
    name, *rest = parameter.split(".")
    for part in rest:
        while name in stems:
            name += ".base_layer"
        name += f".{part}"
    return name


def is_trained_bias(parameter: str, bias: str, modules: Set[str]) -> bool:
    """Whether the setting ``bias`` has PEFT train a parameter of the base model."""
    owner, _, last = parameter.rpartition(".")
    return last == "bias" and (bias == "all" or (bias == "lora_only" and owner in modules))


def is_table(parameter: str, embeddings: Set[str]) -> bool:
    """Whether a parameter is the whole weight of an adapted embedding, or of what usually is one."""
    owner, _, last = parameter.rpartition(".")
    return last == "weight" and (owner in embeddings or owner.rpartition(".")[2] in TABLES)


def _plain_twin(name: str) -> str | None:
    """The plain name of what PEFT saves three times in a head: plain, wrapped, and as it was.

    It does so to biases with ``bias="all"`` and to tables with ``save_embedding_layers``, and loads the plain one.
    """
    parts = name.split(".")
    if {"modules_to_save", "original_module"}.isdisjoint(parts):
        return None
    return ".".join(part for part in parts if part not in ("modules_to_save", "original_module"))


def _is_in_head(name: str, heads: tuple[str, ...]) -> bool:
    """Whether a parameter is below a head; PEFT compares the ends of module names, whole word or not."""
    parts = name.split(".")
    return any(".".join(parts[:depth]).endswith(heads) for depth in range(1, len(parts)))
