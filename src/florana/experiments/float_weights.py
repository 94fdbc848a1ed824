"""The frozen weights as aggregation takes them: float32 on the CPU, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


class FloatWeights(Mapping[str, Tensor]):
    """Module -> its frozen weight in float32, converted when it is asked for and not kept.

    A base model of 7 billion parameters in bfloat16 would take twice its size again.

    Args:
        weights: module -> its frozen weight, in any dtype and place.

    Example:
        >>> import torch
        >>> FloatWeights({"layer": torch.ones(2, 2, dtype=torch.bfloat16)})["layer"].dtype
        torch.float32
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].float().cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
