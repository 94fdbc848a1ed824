"""What is measured: every way of making one adapter of several, on the same tensors, with setting up kept out of the clock."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import florana
from florana import ClientUpdate, lowrank
from florana.lowrank import Product

RANK, ALPHA = 8, 16.0


@dataclass(frozen=True)
class Case:
    """Clients of two kinds near a common start, as after local training on two kinds of text, in float32.

    With z_u = ±1, the kind, A_u = A_0 + z_u D + noise and B_u = C + z_u E + noise, rows of A and columns of B falling in
    size. What plain averaging misses is E D.

    Args:
        size: d_in = d_out of the one module.
        clients: U; client u has 100 + u examples.
    """

    size: int
    clients: int

    @cached_property
    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """(A_u, B_u) of every client."""
        g, d = torch.Generator().manual_seed(0), self.size
        falling = 0.8 ** torch.arange(RANK)

        def normal() -> Tensor:
            columns: Tensor = torch.randn(d, RANK, generator=g) * falling / d**0.5
            return columns

        A, B, D, E = (normal() for _ in range(4))
        made = []
        for u in range(self.clients):
            kind = (-1) ** u
            A_u = A + 0.6 * kind * D + 0.3 * normal()
            made.append((A_u.T.contiguous(), B + 0.5 * kind * E + 0.5 * normal()))
        return made

    @property
    def weights(self) -> list[float]:
        """w_u, summing to 1."""
        sizes = [100 + u for u in range(self.clients)]
        return [n / sum(sizes) for n in sizes]

    @property
    def scaling(self) -> float:
        """Scaling s of all clients."""
        return ALPHA / RANK

    @cached_property
    def updates(self) -> list[ClientUpdate]:
        """The same for florana; no tensor is copied."""
        pairs = [florana.LoraPair(A, B, ALPHA) for A, B in self.factors]
        return [
            ClientUpdate(f"client-{u}", 100 + u, florana.Adapter({"layer": pair}))
            for u, pair in enumerate(pairs)
        ]

    def dense(self, dtype: torch.dtype) -> Tensor:
        """T = Σ w_u s B_u A_u."""
        total = torch.zeros(self.size, self.size, dtype=dtype)
        for w, (A, B) in zip(self.weights, self.factors, strict=True):
            total.addmm_(B.to(dtype), A.to(dtype), alpha=w * self.scaling)
        return total


@dataclass(frozen=True)
class Ready:
    """A contestant that is set up: ``call`` is what is measured, ``product`` reads its result, ``reset`` undoes it."""

    call: Callable[[], Any]
    product: Callable[[Any], Product]
    reset: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Contestant:
    """One way to aggregate.

    Args:
        title: how the table calls it.
        prepare: sets it up.
        optimal: whether its product must be the best of rank 8.
        exact: whether its product must be T itself.
        package: what has to be installed.
    """

    title: str
    prepare: Callable[[Case], Ready]
    optimal: bool = False
    exact: bool = False
    package: str = "torch"

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None


def bare_average(case: Case) -> Ready:
    """mean(A) and mean(B) in plain PyTorch, without a check of anything."""

    def call() -> Product:
        A = torch.zeros_like(case.factors[0][0])
        B = torch.zeros_like(case.factors[0][1])
        for w, (A_u, B_u) in zip(case.weights, case.factors, strict=True):
            A.add_(A_u, alpha=w)
            B.add_(B_u, alpha=w)
        return Product(B, A)

    return Ready(call, lambda made: Product(case.scaling * made.B, made.A))


def of_florana(method: str, report: bool = False) -> Callable[[Case], Ready]:
    """``florana.aggregate``, checks of the input included, with or without its error report."""

    def prepare(case: Case) -> Ready:
        updates = case.updates

        def call() -> florana.Aggregate:
            result = florana.aggregate(updates, method=method)
            if report:
                _ = result.errors
            return result

        return Ready(call, lambda made: made.adapter.pairs["layer"].product)

    return prepare


def streamed(power_iterations: int) -> Callable[[Case], Ready]:
    """The streaming path on terms that are in memory already, bound included."""

    def prepare(case: Case) -> Ready:
        terms = [
            (w * case.scaling, Product(B, A))
            for w, (A, B) in zip(case.weights, case.factors, strict=True)
        ]
        shape = (case.size, case.size)

        def call() -> lowrank.StreamedSvd:
            return lowrank.streamed_svd(
                lambda: terms, RANK, shape, power_iterations=power_iterations
            )

        return Ready(call, lambda made: lowrank.split(made.svd, RANK, "balanced"))

    return prepare


def of_peft(combination: str) -> Callable[[Case], Ready]:
    """PEFT's own ``add_weighted_adapter``, with all adapters loaded beforehand."""

    def prepare(case: Case) -> Ready:
        import peft

        base = torch.nn.Sequential()
        base.add_module("layer", torch.nn.Linear(case.size, case.size, bias=False))
        config = peft.LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["layer"])
        model: Any = peft.get_peft_model(base, config, adapter_name="client-0")
        layer = model.base_model.model.layer
        names = [f"client-{u}" for u in range(case.clients)]
        for name, (A, B) in zip(names, case.factors, strict=True):
            if name != "client-0":
                model.add_adapter(name, config)
            layer.lora_A[name].weight.data = A
            layer.lora_B[name].weight.data = B

        def call() -> None:
            with torch.no_grad():
                model.add_weighted_adapter(
                    names, case.weights, "merged", combination_type=combination
                )

        def product(_: object) -> Product:
            A, B = layer.lora_A["merged"].weight.data, layer.lora_B["merged"].weight.data
            return Product(layer.scaling["merged"] * B, A)

        return Ready(call, product, lambda: model.delete_adapter("merged"))

    return prepare


def of_chorus(case: Case) -> Ready:
    """chorus-fl's FedExLoRA. It knows no scaling, so s B_u is handed to it as B_u."""
    strategy = importlib.import_module("chorus.server.aggregation").FedExLoRA
    deltas = [
        {"layer.lora_A.weight": A, "layer.lora_B.weight": case.scaling * B} for A, B in case.factors
    ]
    return Ready(
        lambda: strategy().aggregate(deltas, case.weights),
        lambda made: Product(made["layer.lora_B.weight"], made["layer.lora_A.weight"]),
    )


def dense_svd(case: Case) -> Ready:
    """The mean formed, and torch.linalg.svd of it, in float32."""

    def call() -> Product:
        U, S, Vh = torch.linalg.svd(case.dense(torch.float32), full_matrices=False)
        return Product(U[:, :RANK] * S[:RANK], Vh[:RANK])

    return Ready(call, lambda made: made)


CONTESTANTS: Mapping[str, Contestant] = {
    "average": Contestant("plain averaging, bare PyTorch", bare_average),
    "fedit": Contestant("fedit (plain averaging)", of_florana("fedit")),
    "florana": Contestant("florana", of_florana("florana")),
    "florana-opt": Contestant("florana-opt", of_florana("florana-opt"), optimal=True),
    "florana-opt-report": Contestant(
        "florana-opt, with error report", of_florana("florana-opt", report=True), optimal=True
    ),
    "streamed": Contestant("streamed, 2 passes", streamed(0)),
    "streamed-4": Contestant("streamed, 4 passes", streamed(1)),
    "peft-cat": Contestant("PEFT, cat (rank Σ r)", of_peft("cat"), exact=True, package="peft"),
    "peft-svd": Contestant("PEFT, svd", of_peft("svd"), optimal=True, package="peft"),
    "chorus": Contestant("chorus-fl, FedExLoRA", of_chorus, optimal=True, package="chorus"),
    "dense-svd": Contestant("torch.linalg.svd of the mean", dense_svd, optimal=True),
}
