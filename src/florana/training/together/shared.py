"""What the layers of a model share while the clients of a group go through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "base_model.model."
"""Where the model lies inside PEFT's."""


class Unfit(Exception):  # noqa: N818 (never leaves this package: it becomes a reason)
    """A model computes in a way that its clients cannot share; the message is the reason."""


class Pass:
    """A batch on its way through the model: rows by client, and every client's own parameters.

    Attributes:
        clients: k, how many clients the rows may be of.
        owner: (n,) which client each row is of.
        keys: (n,) int32, the key of every row's dropout.
        values: name -> (k, ...) the clients' own tensors, stacked.
        calls: place in the model -> times that it dropped numbers in this pass.
        tokens: how many the pass has, padding included.
        read: (n,) of these tokens, row after row, those that the answer is read from; None: it may be all.
    """

    def __init__(self) -> None:
        self.clients = 1
        self.owner = torch.zeros(1, dtype=torch.int64)
        self.keys = torch.zeros(1, dtype=torch.int32)
        self.values: Mapping[str, Tensor] = {}
        self.calls: Counter[int] = Counter()
        self.tokens = 0
        self.read: Tensor | None = None

    def own(self, name: str) -> Tensor | None:
        """Every row's own tensor (n, ...); (1, ...) where all rows are of one client; None if there is none of that name."""
        value = self.values.get(name)
        if value is None or self.clients == 1:
            return value
        if value.device.type == "cpu":
            return value.index_select(0, self.owner)
        return value[self.owner]  # whose gradient is added up in one order there

    def rows(self, x: Tensor, name: str) -> Tensor:
        """Rows (n, ..., d) as (n, tokens, d), to meet :meth:`own`; (1, all tokens, d) where all are of one client.

        Raises:
            Unfit: if the first axis is not that of the rows.
        """
        if x.ndim < 2 or x.shape[0] != len(self.keys):
            raise Unfit(
                f"module {name} gets {tuple(x.shape)} where the batch has {len(self.keys)} rows, so that "
                "a row cannot be told to be a client's"
            )
        return x.reshape(1 if self.clients == 1 else len(self.keys), -1, x.shape[-1])

    def read_of(self, x: Tensor) -> Tensor | None:
        """The tokens of x (n, t, d) that will be read, if x has this pass's tokens."""
        return self.read if x.shape[:-1].numel() == self.tokens else None

    def keys_for(self, x: Tensor, site: int) -> Tensor:
        """The keys of the rows of x (n, ..., d).

        Raises:
            Unfit: if the first axis is not that of the rows.
        """
        if x.ndim < 2 or x.shape[0] != len(self.keys):
            raise Unfit(f"dropout of {tuple(x.shape)} where the batch has {len(self.keys)} rows")
        self.calls[site] += 1
        return self.keys
