"""Frozen linear layers, multiplied by oneDNN where it is the faster library."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

TRIED = (5, 7, 3)
"""Rows, d_in and d_out of the product that oneDNN has to get right before it is used."""


@cache
def onednn_serves() -> bool:
    """Whether float32 products on this CPU go through oneDNN in place of torch's BLAS.

    On processors with AVX-512 oneDNN uses it; MKL, which torch's CPU builds come with, does so on Intel's only and takes
    about twice as long on AMD's (docs/performance.md). The rule looks at the processor and measures nothing, so that a
    resumed run computes with the same library as before.
    """
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not there or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    rows, d_in, d_out = TRIED
    x, weight = torch.linspace(-1, 1, rows * d_in).view(rows, d_in), torch.ones(d_out, d_in)
    try:
        made = _onednn(x, weight, None)
        back = _onednn(made, weight.t(), None)
    except (AttributeError, RuntimeError, TypeError):  # not a public operator: it may change
        return False
    return torch.allclose(made, x @ weight.t(), atol=1e-5) and torch.allclose(
        back, made @ weight, atol=1e-4
    )


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    r"""Compute x Wᵀ + b, with gradients to x alone.

    Args:
        x: (..., d_in).
        weight: W (d_out, d_in), frozen.
        bias: b (d_out,), frozen.
    """
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if not plain or torch.is_autocast_enabled("cpu") or not onednn_serves():
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        made: Tensor = _Frozen.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return made
    return _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


class _Frozen(torch.autograd.Function):
    """x Wᵀ + b, whose gradient to x is g W; W and b have none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        return _onednn(grads[0], weight.t(), None), None, None


class FrozenLinear(nn.Module):
    """Stands in the place of an ``nn.Linear`` that is not trained.

    Args:
        linear: the layer; its weight is looked up in every pass, so that what is added to it counts.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._own = (linear,)  # in a tuple: its parameters are not this module's

    @property
    def weight(self) -> Tensor:
        """The frozen W (d_out, d_in)."""
        return self._own[0].weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen b (d_out,)."""
        return self._own[0].bias

    def forward(self, x: Tensor) -> Tensor:
        """X Wᵀ + b."""
        return multiply(x, self.weight, self.bias)
