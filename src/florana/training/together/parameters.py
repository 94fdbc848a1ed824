"""The clients' parameters in one stack, with their gradients and AdamW's moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from florana.config import TrainingConfig


class Stack:
    r"""The trained numbers of U clients as rows of one matrix θ (U, n), and their gradients likewise.

    A tensor of the model is a view (k, ...) of the first k rows. Gradients are put beside each other once per step, so that
    clipping, FedProx's term and AdamW are a few operations each, however many tensors there are.

    Args:
        starts: each client's tensors by name, of the same shapes.
        trained: names of those that are trained; the others stay.
        device: where to compute.
        config: learning rate, weight decay, clipping, FedProx's μ.
    """

    def __init__(
        self,
        starts: Sequence[Mapping[str, Tensor]],
        trained: Sequence[str],
        device: torch.device,
        config: TrainingConfig,
    ) -> None:
        shapes = {name: starts[0][name].shape for name in trained}
        self._shapes, self._config = shapes, config
        self._theta = torch.cat(
            [torch.stack([s[n].detach().flatten() for s in starts]) for n in trained], dim=1
        ).to(device)
        self._gradient = torch.zeros_like(self._theta)
        self._start = self._theta.clone() if config.proximal else None
        self._fixed = {
            name: torch.stack([start[name].detach() for start in starts]).to(device)
            for name in starts[0]
            if name not in shapes
        }
        self._leaves: list[tuple[int, int, nn.Parameter]] = []
        self._rows = [nn.Parameter(row) for row in self._theta]
        self._adam = torch.optim.AdamW(
            [{"params": [row]} for row in self._rows],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=device.type in {"cpu", "cuda"},
        )

    def views(self, clients: int) -> dict[str, Tensor]:
        """Name -> (k, ...) of the first k clients, to be used until the number changes."""
        found = {name: tensor[:clients] for name, tensor in self._fixed.items()}
        self._leaves, begin = [], 0
        for name, shape in self._shapes.items():
            end = begin + shape.numel()
            leaf = nn.Parameter(self._theta[:clients, begin:end].view(clients, *shape))
            self._leaves.append((begin, end, leaf))
            found[name] = leaf
            begin = end
        return found

    def step(self, rates: Sequence[float]) -> None:
        """Add FedProx's term, clip each client's gradient to its own norm, do AdamW's step, forget the gradient.

        Args:
            rates: learning rates of the first k clients; the others are left as they are.
        """
        k = len(rates)
        gradient = self._gradient[:k]
        with torch.no_grad():
            for begin, end, leaf in self._leaves:
                if leaf.grad is None:
                    gradient[:, begin:end] = 0
                else:
                    gradient[:, begin:end] = leaf.grad.flatten(1)
                leaf.grad = None
            if self._start is not None:
                gradient.add_(self._theta[:k] - self._start[:k], alpha=self._config.proximal)
            norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient.mul_((self._config.clip / (norms + 1e-6)).clamp(max=1.0))
        for client, (row, group) in enumerate(
            zip(self._rows, self._adam.param_groups, strict=True)
        ):
            row.grad = self._gradient[client] if client < k else None
            group["lr"] = rates[client] if client < k else 0.0
        self._adam.step()

    def of(self, client: int) -> dict[str, Tensor]:
        """A client's trained tensors by name."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        pieces = torch.split(self._theta[client].detach(), sizes)
        return {
            name: piece.view(shape).clone()
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
