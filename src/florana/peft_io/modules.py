"""One module of a PEFT file: which keys make which pairs, and the way there and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from florana.adapter import LoraPair, Part
from florana.config import Variant
from florana.errors import AdapterError
from florana.peft_io.layouts import (
    EMBEDDING,
    IN_PROJ,
    LINEAR,
    OUT_PROJ,
    TRANSPOSED,
    Layout,
    convolution,
    experts,
)
from florana.peft_io.names import PREFIX, about
from florana.peft_io.scales import alike, pattern_names
from florana.peft_io.settings import resolve, short
from florana.peft_io.values import TensorInfo as TensorInfo
from florana.peft_io.values import check_finite


@dataclass(frozen=True, slots=True)
class StoredModule:
    """One set of keys in the file: one pair, or one for each expert of a stack.

    Args:
        name: the module, as PEFT names modules, without ``base_model.model.``.
        keys: part -> its key in the file.
        layout: how the pairs lie in these tensors.
        rank: r of each pair.
        alpha: LoRA's alpha; the rank for HiRA, which has no scaling.
        rslora: whether s is alpha / √r.
        variant: how the factors are read.
        pair_names: the pairs' names: ``(name,)``, or ``name[0]``, ``name[1]``, … for experts.
        shape: (d_out, d_in) of each pair.
        dtype: of the factors.
    """

    name: str
    keys: Mapping[Part, str]
    layout: Layout
    rank: int
    alpha: float
    rslora: bool
    variant: Variant
    pair_names: tuple[str, ...]
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def scaling(self) -> float:
        """Scaling s = alpha / r, or alpha / √r with rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def read(self, tensor: Callable[[str], Tensor]) -> dict[str, LoraPair]:
        """The module's pairs by name, contiguous.

        Args:
            tensor: key -> tensor, in memory that the pairs may keep; called for this module's own keys only.

        Raises:
            AdapterError: if a tensor holds NaN or infinity.
        """
        stored: dict[Part, Tensor] = {}
        for part, key in self.keys.items():
            stored[part] = tensor(key).detach()
            check_finite(key, stored[part])
        pairs = {}
        for name, parts in zip(self.pair_names, self.layout.split(stored), strict=True):
            A, B, *m = (parts[part].contiguous() for part in self.keys)
            hadamard = self.variant == "hira"
            magnitude = m[0] if m else None
            pairs[name] = LoraPair(
                A, B, self.alpha, self.rslora, magnitude=magnitude, hadamard=hadamard
            )
        return pairs

    def write(self, pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
        """PEFT's key -> tensor for the pairs of this module, which may have another rank than :attr:`rank`.

        Args:
            pairs: pair name -> pair; more than this module's own may be there.
        """
        return write_module(self.name, self.layout, pairs)


def read_module(
    stem: str,
    ends: Mapping[str, str],
    stems: Set[str],
    infos: Mapping[str, TensorInfo],
    settings: Mapping[str, Any],
) -> StoredModule:
    """What is stored below ``stem``.

    Args:
        stem: where PEFT keeps the keys: the module's name, but for what it moves below ``base_layer``.
        ends: end of the key -> key.
        stems: all such places.
        infos: key -> dtype and shape.
        settings: as :func:`florana.peft_io.settings.read_settings` returns them.

    Raises:
        AdapterError: if a part is missing or too much, or of another shape or dtype than expected.
    """
    variant: Variant = settings["variant"]
    with about(f"module {short(stem)}"):
        name, layout = _name_and_layout(stem, ends, stems, settings)
        keys = _keys(ends, layout, variant)
        A, B = infos[keys["A"]], infos[keys["B"]]
        if A.dtype != B.dtype:
            raise AdapterError(
                f"lora_A is {A.dtype}, lora_B is {B.dtype}; expected one dtype; cast it before saving"
            )
        parameters = settings.get("target_parameters", ())
        entries = pattern_names(name, layout, parameters)
        rank = int(_resolved("rank_pattern", settings, entries, settings["r"]))
        if variant == "hira":  # which PEFT 0.21 gives the rank r, whatever rank_pattern says
            rank = A.shape[0] if A.shape[0] in (rank, settings["r"]) else rank
        alpha = float(rank)
        if variant != "hira":
            alpha = float(_resolved("alpha_pattern", settings, entries, settings["lora_alpha"]))
        if entries != (name,) and not layout.below and A.shape[0] // rank > 1:
            layout = experts(A.shape[0] // rank)
        elif len(A.shape) > 2:
            layout = convolution(A.shape[2:])
        d_out, d_in = layout.pair_shape(A.shape, B.shape, rank)
        if variant == "dora" and infos[keys["magnitude"]].shape != layout.magnitude_shape(d_out):
            raise AdapterError(
                f"lora_magnitude_vector is {infos[keys['magnitude']].shape}; expected {layout.magnitude_shape(d_out)}, one "
                "number per row of the weight; save it again"
            )
        pairs, rslora = layout.pair_names(name), settings.get("use_rslora", False)
        return StoredModule(
            name, keys, layout, rank, alpha, rslora, variant, pairs, (d_out, d_in), A.dtype
        )


def _name_and_layout(
    stem: str, ends: Mapping[str, str], stems: Set[str], settings: Mapping[str, Any]
) -> tuple[str, Layout]:
    """The module's name and its layout, but for what its shapes say."""
    owner = stem.removesuffix(".base_layer.out_proj")
    if owner != stem and owner in stems:
        return f"{owner}.out_proj", OUT_PROJ
    if f"{stem}.base_layer.out_proj" in stems:
        return stem, IN_PROJ
    if any("embedding" in end for end in ends):
        return stem, EMBEDDING
    if "base_layer" in stem.split(".") and pattern_names(
        stem, LINEAR, settings.get("target_parameters", ())
    ) == (stem,):
        raise AdapterError(
            "is below a base_layer, and no parameter of target_parameters is there; expected PEFT's own names; save "
            "config and weights from one model"
        )
    return stem, TRANSPOSED if settings["fan_in_fan_out"] else LINEAR


def _keys(ends: Mapping[str, str], layout: Layout, variant: Variant) -> dict[Part, str]:
    expected = layout.keys(variant)
    for end, key in ends.items():
        if end not in expected.values():
            other = "HiRA" if end.startswith("hira") else "DoRA or LoRA"
            raise AdapterError(
                f"tensor {short(key)} belongs to {other}; expected {' and '.join(expected.values())}, as peft_type and "
                "use_dora have it; save config and weights from one model"
            )
    if len(ends) < len(expected):
        why = ", since use_dora is True and DoRA has all" if variant == "dora" else ""
        raise AdapterError(
            f"has {' and '.join(sorted(ends))} only; expected {' and '.join(expected.values())}{why}; save it again"
        )
    return {part: ends[end] for part, end in expected.items()}


def _resolved(
    setting: str, settings: Mapping[str, Any], entries: tuple[str, ...], default: float
) -> float:
    """Rank or alpha of a module, by whatever names PEFT may know it."""
    found = {name: resolve(settings[setting], name, default) for name in entries}
    if len({*found.values()}) > 1:
        raise AdapterError(
            f"{setting} has unlike values for {short(found)}, and the keys do not tell which of these parameters is which; "
            "train them with one rank and alpha"
        )
    return found[entries[0]]


def write_module(name: str, layout: Layout, pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
    """PEFT's key -> tensor for one module, copied. Experts of unlike rank or scaling are brought to one."""
    chosen = [pairs[each] for each in layout.pair_names(name)]
    if layout.experts:
        chosen = alike(chosen)
    keys = layout.keys(chosen[0].variant)
    parts: list[Mapping[Part, Tensor]] = [
        {part: getattr(pair, part) for part in keys} for pair in chosen
    ]
    joined = layout.join(parts)
    return {
        f"{PREFIX}{layout.stem(name)}.{end}": joined[part]
        .detach()
        .clone(memory_format=torch.contiguous_format)
        for part, end in keys.items()
    }
