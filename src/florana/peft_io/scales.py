"""Ranks and alphas in PEFT's config: by which names it knows a module, and the patterns that say them again."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import mode
from typing import NamedTuple

from torch.nn import functional as F

from florana.adapter import LoraPair
from florana.config import Variant
from florana.errors import AdapterError
from florana.peft_io.layouts import LINEAR, Layout
from florana.peft_io.settings import short, suffixes


class Scale(NamedTuple):
    """Rank, alpha and rsLoRA flag of a module's pairs."""

    rank: int
    alpha: float
    rslora: bool = False

    @property
    def scaling(self) -> float:
        """Scaling s = alpha / r, or alpha / √r with rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def pattern_names(module: str, layout: Layout, parameters: Sequence[str]) -> tuple[str, ...]:
    """Names under which ``rank_pattern`` and ``alpha_pattern`` may speak of a module.

    Its own name; the owner's for the output projection of an attention, which PEFT adapts together with it; or, for
    ``target_parameters``, those of every parameter that may be the one, since keys do not tell parameters of one
    module apart: PEFT nests them in the order of the base model.

    Example:
        >>> from florana.peft_io.layouts import LINEAR, OUT_PROJ
        >>> pattern_names("mha.out_proj", OUT_PROJ, ())
        ('mha',)
        >>> pattern_names("mlp.experts.base_layer", LINEAR, ("experts.up", "experts.down"))
        ('mlp.experts.up', 'mlp.experts.down')
    """
    if layout.below:
        return (module.rpartition(".")[0],)
    if not parameters:
        return (module,)
    owner = module
    while owner.endswith(".base_layer"):
        owner = owner.removesuffix(".base_layer")
    below = _by_owner(tuple(parameters))
    found = {last: None for end in (*suffixes(owner), "") for last in below.get(end, ())}
    return tuple(f"{owner}.{last}" for last in found) or (module,)


@lru_cache(maxsize=4)
def _by_owner(parameters: tuple[str, ...]) -> dict[str, list[str]]:
    """End of a module's name -> the parameters that are named below it."""
    below: dict[str, list[str]] = {}
    for parameter in parameters:
        owner, _, last = parameter.rpartition(".")
        below.setdefault(owner, []).append(last)
    return below


def one_entry(module: str, layout: Layout, parameters: Sequence[str], variant: Variant) -> Hashable:
    """What modules have in common of which PEFT's config can give one rank and one alpha only.

    Those are the two projections of an attention, the parameters of one module, and with HiRA all modules: PEFT 0.21
    writes a ``rank_pattern`` for HiRA and does not read it (``hira.layer.dispatch_default`` takes ``config.r``).
    """
    return "" if variant == "hira" else pattern_names(module, layout, parameters)


def alike(pairs: Sequence[LoraPair]) -> list[LoraPair]:
    """The same products from pairs of one rank, alpha and rsLoRA flag, those of the largest; padded with zeros.

    What is padded in both A and B has gradients of zero: it is carried along, and never learns.

    Example:
        >>> import torch
        >>> small = LoraPair(torch.ones(1, 3), torch.ones(2, 1), alpha=3)
        >>> large = LoraPair(torch.ones(2, 3), torch.ones(2, 2), alpha=8)
        >>> made, _ = alike([small, large])
        >>> made.rank, made.scaling, made.delta_w()[0, 0].item()
        (2, 4.0, 3.0)
    """
    largest = max(pairs, key=lambda pair: (pair.rank, pair.scaling))
    return [_like(pair, largest) for pair in pairs]


def _like(pair: LoraPair, other: LoraPair) -> LoraPair:
    if (pair.rank, pair.alpha, pair.rslora) == (other.rank, other.alpha, other.rslora):
        return pair
    more, ratio = other.rank - pair.rank, pair.scaling / other.scaling
    A, B = F.pad(pair.A, (0, 0, 0, more)), F.pad(pair.B, (0, more))
    if ratio != 1:
        B = (B.double() * ratio).to(B.dtype)
    return replace(pair, A=A, B=B, alpha=other.alpha, rslora=other.rslora)


def ranks_and_alphas(
    scales: Mapping[str, Scale],
    layouts: Mapping[str, Layout],
    parameters: Sequence[str],
    variant: Variant,
) -> dict[str, object]:
    """PEFT's ``r``, ``lora_alpha``, ``use_rslora`` and patterns that give every module its rank and scaling.

    Args:
        scales: module -> what its pairs have.
        layouts: module -> layout, where it is not that of a linear layer.
        parameters: ``target_parameters``.
        variant: of all pairs.

    Raises:
        AdapterError: if modules of which PEFT has one rank and alpha have several; :func:`alike` mends that.
    """
    rslora = all(scale.rslora for scale in scales.values())
    sizes: dict[str, tuple[int, float]] = {}
    entries: dict[Hashable, tuple[int, float]] = {}
    for module, scale in scales.items():
        alpha = scale.alpha if scale.rslora == rslora else scale.scaling * scale.rank
        size = (scale.rank, int(alpha) if float(alpha).is_integer() else alpha)
        layout = layouts.get(module, LINEAR)
        expected = entries.setdefault(one_entry(module, layout, parameters, variant), size)
        if size != expected:
            raise AdapterError(
                f"module {short(module)} has rank {size[0]} and alpha {size[1]:g}; expected {expected[0]} and {expected[1]:g}, "
                "since PEFT has one of each for it and another module; ask for one rank and alpha"
            )
        sizes |= dict.fromkeys(pattern_names(module, layout, parameters), size)
    r, alpha = mode(sizes.values()) if sizes else (1, 1)
    # PEFT matches "(.*\.)?(key)$", where ^ leaves no room for a longer name
    return {
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "rank_pattern": {"^" + re.escape(n): rank for n, (rank, _) in sizes.items() if rank != r},
        "alpha_pattern": {"^" + re.escape(n): a for n, (_, a) in sizes.items() if a != alpha},
    }
