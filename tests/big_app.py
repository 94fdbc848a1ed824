"""A Flower app whose messages hold more than 300 MB each way; started by test_faults_size.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from florana.adapter import Adapter, LoraPair, Plan
from florana.federation import LoraStrategy
from florana.federation.client_app import LocalResult, build_client_app
from florana.federation.outcome import RoundOutcome
from florana.federation.records import Held

RANK, WIDTH = 64, 600_000


def make_adapter() -> Adapter:
    """One pair of 64 × 600 000 numbers twice: 307 MB in float32."""
    numbers = torch.Generator().manual_seed(1)
    A, B = (torch.rand(RANK, WIDTH, generator=numbers) for _ in range(2))
    pair = LoraPair(A, B.T.contiguous(), alpha=RANK)
    return Adapter({"wide": pair}, {}, "base", "1234")


def train_client(start: Held, plan: Plan, server_round: int, client: int) -> LocalResult:
    """Add 1 to everything."""
    tensors = {name: tensor + 1 for name, tensor in start.adapter.tensors().items()}
    return LocalResult(start.adapter.with_tensors(tensors), 10, {})


client_app = build_client_app(make_adapter(), train_client)
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Two rounds; what came of them goes into big.json."""
    outcomes: list[RoundOutcome] = []
    start = make_adapter()
    strategy = LoraStrategy(start, "fedit", min_clients=2, on_round=outcomes.append)
    strategy.start(grid, strategy.initial_arrays(), num_rounds=1)
    made = outcomes[-1].state.adapter.tensors()
    said = {
        "bytes_up": outcomes[-1].bytes_up,
        "bytes_down": outcomes[-1].bytes_down,
        "clients": len(outcomes[-1].updates),
        "error": max(float((made[n] - t - 1).abs().max()) for n, t in start.tensors().items()),
    }
    (Path(os.environ["FLORANA_FAULTS"]) / "big.json").write_text(json.dumps(said))
