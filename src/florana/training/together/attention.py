"""Attention with keyed dropout, behind transformers' own interface."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from florana.training.together.dropout import keep
from florana.training.together.shared import Pass

NAME = "florana_keyed"
PLACES: dict[int, tuple[Pass, int]] = {}
"""Identity of a module of a model that is being trained -> its pass and its place in the model."""


def keyed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    r"""softmax(s Q Kᵀ + mask), dropped by key, times V.

    Args:
        module: the attention layer.
        query: Q (n, heads, t, d).
        key: K (n, key heads, t, d).
        value: V likewise.
        attention_mask: (n or 1, 1 or heads, t, t), boolean or added.
        dropout: probability that a weight is dropped.
        scaling: s; by default 1/√d.
        others: what only other attention functions use.

    Returns:
        (n, t, heads, d), and None for the weights.
    """
    if dropout == 0:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        made = sdpa_attention_forward(
            module, query, key, value, attention_mask, 0.0, scaling, **others
        )
        return made[0], None
    shared, site = PLACES[id(module)]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(
        -1, -2
    )
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, float("-inf"))
        else:
            scores = scores + attention_mask
    elif getattr(module, "is_causal", False) and query.shape[2] > 1:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    keys = shared.keys_for(weights, site)
    weights = weights * keep(keys, site, weights.shape, dropout, weights.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


@cache
def register() -> None:
    """Make the function known to transformers, with the masks that its ``sdpa`` gets."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, keyed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
