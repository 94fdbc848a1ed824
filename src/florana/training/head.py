"""What a base model ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Head:
    """What is put on a base model.

    Args:
        kind: ``classification``, a fresh layer with an output per class; ``regression``, one with a single
            output; ``causal``, the base model's own language head.
        num_labels: outputs of a fresh layer; 0 of ``causal``.
    """

    kind: Literal["classification", "regression", "causal"]
    num_labels: int
