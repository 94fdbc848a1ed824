"""Layers in which every row of a batch meets its own client's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from florana.training.together.dropout import keep
from florana.training.together.frozen_linear import at, multiply, spread
from florana.training.together.shared import Pass


class StackedLora(nn.Module):
    r"""A frozen linear layer with the factors of k clients.

    .. math:: y_i = W x_i + b + s\, B_{u(i)} A_{u(i)}\, \mathrm{dropout}(x_i)

    for row i of client u(i). W x is one product for all clients; the others are batched over the clients. With a basis Q, B is
    Q R of the trained core R.

    Args:
        name: of the module.
        linear: the frozen layer.
        scaling: s.
        dropout: probability that a number of x is dropped on its way to A.
        site: which place in the model this is.
        shared: has the rows' clients and their factors.
        narrow: whether the output is read only at the tokens that ``shared`` says; the others' is zero.
    """

    def __init__(
        self,
        name: str,
        linear: nn.Linear,
        scaling: float,
        dropout: float,
        site: int,
        shared: Pass,
        *,
        narrow: bool = False,
    ) -> None:
        super().__init__()
        self._narrow = narrow
        self._name, self._own, self._shared = name, (linear,), shared
        self._scaling, self._dropout, self._site = scaling, dropout, site

    @property
    def weight(self) -> Tensor:
        """The frozen W."""
        return self._own[0].weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen b."""
        return self._own[0].bias

    def forward(self, x: Tensor) -> Tensor:
        """Y (n, ..., d_out) for x (n, ..., d_in)."""
        shared, name = self._shared, self._name
        A, B = shared.own(f"{name}.lora_A"), shared.own(f"{name}.lora_B")
        assert A is not None
        assert B is not None
        basis = shared.own(f"{name}.lora_basis")
        if basis is not None:
            B = torch.bmm(basis, B)
        up = B.transpose(
            1, 2
        ).contiguous()  # (k, r, d_out): its products' gradients are faster than B's
        whole, read = x.shape, shared.read_of(x) if self._narrow else None
        kept = x
        if self.training and self._dropout:
            keys = shared.keys_for(x, self._site)
            kept = x * keep(keys, self._site, x.shape, self._dropout, x.dtype)
        if read is not None:
            x, kept = at(x, read), at(kept, read)
        out = multiply(x, self.weight, self.bias)
        rows = shared.rows(kept, name)
        flat = out.view(rows.shape[0], -1, out.shape[-1])
        if rows.dtype == A.dtype == out.dtype or torch.is_autocast_enabled(x.device.type):
            inner = torch.bmm(rows, A.transpose(1, 2))
            made = torch.baddbmm(flat, inner, up, alpha=self._scaling)
        else:  # a base in half precision: the factors compute in their own
            inner = torch.bmm(rows.to(A.dtype), A.transpose(1, 2))
            made = flat + self._scaling * torch.bmm(inner, up)
        made = made.to(out.dtype).view(out.shape)
        return made if read is None else spread(made, read, whole)


class StackedLinear(nn.Module):
    """A linear layer that every client trains in full, such as its head.

    Args:
        name: of the module, as in the names of its parameters.
        linear: the layer in whose place this stands.
        shared: has the rows' clients and their weights.
    """

    def __init__(self, name: str, linear: nn.Linear, shared: Pass) -> None:
        super().__init__()
        self._name, self._own, self._shared = name, (linear,), shared

    @property
    def weight(self) -> Tensor:
        """Of the layer in whose place this stands; models look at its dtype."""
        return self._own[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """Y (n, ..., d_out) for x (n, ..., d_in)."""
        weight = self._shared.own(f"{self._name}.weight")
        assert weight is not None
        bias = self._shared.own(f"{self._name}.bias")
        rows = self._shared.rows(x, self._name)
        if not torch.is_autocast_enabled(x.device.type):
            rows = rows.to(weight.dtype)  # a base in half precision; heads are trained in float32
        if bias is None:
            made = torch.bmm(rows, weight.transpose(1, 2))
        else:
            made = torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))
        return made.view(*x.shape[:-1], made.shape[-1])
