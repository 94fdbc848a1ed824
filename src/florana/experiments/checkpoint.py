"""The state of a run after a finished round, as the bytes of one safetensors file and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from florana.adapter import Adapter
from florana.aggregators import GlobalState, Memory
from florana.federation.client_memory import freeze, thaw
from florana.federation.client_states import ClientStates
from florana.federation.outcome import Known
from florana.lowrank import Product

STRATEGY = -1
"""Stands among the partitions for the strategy."""

STATES = "states"
"""Name of the folder beside the checkpoint with the arrays that clients in this process remember."""

NOTHING: Mapping[str, Any] = {"arrays": {}, "configs": {}}
"""The description of an empty state."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after a finished round.

    Args:
        state: the server's.
        known: node -> what the server knows of it.
        clients: partition -> what that client remembers.
        strategy: what the strategy remembers beside the state.
        metrics_size: size of metrics.jsonl in bytes when the round was finished.
        best_round: round of the best global model so far.
        best_score: its score; None before any.
        unscored: the last round's line for metrics.jsonl where the clients score the global model, which they do
            when they get it, in the next round; None where the server does.
    """

    state: GlobalState
    known: Mapping[int, Known] = field(default_factory=dict)
    clients: Mapping[int, RecordDict] = field(default_factory=dict)
    strategy: RecordDict = field(default_factory=RecordDict)
    metrics_size: int = 0
    best_round: int = 0
    best_score: float | None = None
    unscored: Mapping[str, Any] | None = None


def encode(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as a safetensors file."""
    state = checkpoint.state
    if isinstance(checkpoint.clients, ClientStates):  # their arrays are in files of their own
        blobs, remembered = freeze({STRATEGY: checkpoint.strategy})
        remembered |= checkpoint.clients.said
    else:
        blobs, remembered = freeze({**checkpoint.clients, STRATEGY: checkpoint.strategy})
    tensors = {f"adapter/{name}": t for name, t in state.adapter.tensors().items()}
    tensors |= _products("residual", state.residual) | _products("increment", state.increment)
    for kind in ("momentum", "carried"):
        tensors |= _products(kind, _remembered(state.memory, kind))
    tensors |= {f"client/{digest}": blob for digest, blob in blobs.items()}
    described = {
        "server_round": state.server_round,
        "alphas": {name: pair.alpha for name, pair in state.adapter.pairs.items()},
        "memory": list(state.memory),
        "changed": dict(state.changed),
        "known": {str(node): list(known) for node, known in checkpoint.known.items()},
        "remembered": remembered,
        "metrics_size": checkpoint.metrics_size,
        "best_round": checkpoint.best_round,
        "best_score": checkpoint.best_score,
        "unscored": checkpoint.unscored,
    }
    # F and its first increment are the same tensors, which the format wants apart
    contiguous = {
        name: tensor.contiguous().clone() if name.startswith("increment") else tensor.contiguous()
        for name, tensor in tensors.items()
    }
    return save(contiguous, metadata={"state": json.dumps(described)})


def decode(path: Path, first: GlobalState) -> Checkpoint:
    """Read what :func:`encode` made.

    Args:
        path: the file.
        first: the state before the first round of the same run.

    Raises:
        OSError, SafetensorError, KeyError, TypeError, ValueError, AdapterError: if it is damaged, or an array that a client remembers is missing.
    """
    with safe_open(path, framework="pt") as file:
        said = json.loads((file.metadata() or {})["state"])
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    momentum, carried = _read_products("momentum", tensors), _read_products("carried", tensors)
    state = GlobalState(
        _adapter(first.adapter, said["alphas"], tensors),
        first.initial,
        said["server_round"],
        _read_products("residual", tensors),
        _read_products("increment", tensors),
        {name: Memory(momentum.get(name), carried.get(name)) for name in said["memory"]},
        said["changed"],
    )
    blobs = {n.removeprefix("client/"): t for n, t in tensors.items() if n.startswith("client/")}
    remembered = dict(said["remembered"])
    strategy = thaw(blobs, {str(STRATEGY): remembered.pop(str(STRATEGY), NOTHING)})[STRATEGY]
    clients = ClientStates(path.parent / STATES, remembered)
    if clients.missing:
        raise ValueError(f"{STATES}/{clients.missing[0]} is missing")
    return Checkpoint(
        state,
        {int(node): Known(r, tuple(ranks)) for node, (r, ranks) in said["known"].items()},
        clients,
        strategy,
        said["metrics_size"],
        said["best_round"],
        said["best_score"],
        said.get("unscored"),
    )


def _adapter(
    template: Adapter, alphas: Mapping[str, float], tensors: Mapping[str, Tensor]
) -> Adapter:
    pairs = {
        name: replace(
            pair,
            A=tensors[f"adapter/{name}.lora_A"],
            B=tensors[f"adapter/{name}.lora_B"],
            alpha=alphas[name],
            basis=tensors.get(f"adapter/{name}.lora_basis"),
            magnitude=tensors.get(f"adapter/{name}.lora_magnitude"),
        )
        for name, pair in template.pairs.items()
    }
    extras = {name: tensors[f"adapter/{name}"] for name in template.extras}
    return replace(template, pairs=pairs, extras=extras)


def _remembered(memory: Mapping[str, Memory], kind: str) -> dict[str, Product]:
    found: dict[str, Any] = {name: getattr(m, kind) for name, m in memory.items()}
    return {name: product for name, product in found.items() if product is not None}


def _products(kind: str, products: Mapping[str, Product]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, product in products.items():
        named[f"{kind}.B/{name}"], named[f"{kind}.A/{name}"] = product
    return named


def _read_products(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Product]:
    return {
        name.removeprefix(f"{kind}.B/"): Product(
            tensor, tensors[name.replace(f"{kind}.B/", f"{kind}.A/", 1)]
        )
        for name, tensor in tensors.items()
        if name.startswith(f"{kind}.B/")
    }
