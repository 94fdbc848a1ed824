"""Frozen linear layers, multiplied by oneDNN where it is the faster library."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from florana.training.together.shared import Pass

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


def at(x: Tensor, tokens: Tensor) -> Tensor:
    """Of x (n, t, d) the given tokens (n,), counted row after row: (n, 1, d)."""
    return x.reshape(-1, x.shape[-1]).index_select(0, tokens)[:, None]


def spread(y: Tensor, tokens: Tensor, shape: torch.Size) -> Tensor:
    """Zeros (n, t, d) with y (n, 1, d) at the given tokens; ``shape`` is (n, t, any)."""
    out = y.new_zeros(shape[:-1].numel(), y.shape[-1])
    return out.index_copy_(0, tokens, y[:, 0]).view(*shape[:-1], -1)


class Weights(Protocol):
    """What a linear layer is made of."""

    @property
    def weight(self) -> Tensor:
        """W (d_out, d_in)."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """The b (d_out,)."""
        ...


class FrozenLinear(nn.Module):
    """Stands in the place of a linear layer that is not trained.

    Args:
        linear: has weight W (d_out, d_in) and bias b; they are looked up in every pass, so that what is added to them counts.
        shared: knows the tokens whose output alone is read, if that is so of this layer; the others' is zero.
    """

    def __init__(self, linear: Weights, shared: Pass | None = None) -> None:
        super().__init__()
        self._own = (linear,)  # in a tuple: its parameters are not this module's
        self._shared = shared

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
        read = None if self._shared is None else self._shared.read_of(x)
        if read is None:
            return multiply(x, self.weight, self.bias)
        return spread(multiply(at(x, read), self.weight, self.bias), read, x.shape)
