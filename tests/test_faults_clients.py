"""Clients that fail in a real federation: the run goes on without them, and they come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployment import federation
from faulty_app import DAWDLE, KILL, RAISE, WAIT, Faults
from faulty_runs import assert_nothing_lost_or_twice, faulty_app, left_out, settings_of, unbroken
from tiny_models import Kind

pytestmark = pytest.mark.deployment

SETTINGS = [
    "federation.clients=4",
    "federation.min_clients=1",
    "federation.rounds=3",
    "federation.deadline_seconds=120",
    "federation.dirichlet_alpha=3.0",
    "method.name=fedex-lora",
]
"""FedEx-LoRA adds to the clients' base weights: who missed a round lacks a part that the others hold."""


def test_clients_that_raise_die_leave_or_dawdle_are_left_out_and_come_back(
    kinds: dict[str, Kind], tmp_path: Path
) -> None:
    """One deployment, four faults: an exception; SIGKILL of flwr-clientapp; SIGKILL of a SuperNode; ttl over.

    Each costs that client that round, by name, with the cause; the final adapter is that of an in-process run in
    which the same clients are left out of the same rounds.
    """
    settings = settings_of(kinds["own head"], tmp_path, *SETTINGS)
    app, run = faulty_app(tmp_path, settings), tmp_path / "run"
    faults = Faults(tmp_path / "faults")
    faults.order(
        client_0_round_1=RAISE, client_1_round_2=KILL, client_2_round_2=WAIT, client_3_round_2=DAWDLE
    )  # fmt: skip
    nodes = [
        f'partition-id={k} num-partitions=4 state="{tmp_path / f"state{k}"}"' for k in range(4)
    ]
    with federation(tmp_path, nodes) as flower:
        stream = flower.begin("run", app)
        flower.wait("client 2 trains", lambda: faults.obeyed("client_2_round_2"), "run", "node2")
        flower.kill("node2")
        flower.start_supernode(2, nodes[2])
        flower.wait("the run ends", lambda: stream.poll() is not None, "run")
        streamed = flower.log("run")
        assert flower.status() == "finished:completed", streamed
    missing = {(0, 1), (1, 2), (2, 2), (3, 2)}
    expected = unbroken(settings, tmp_path / "here", missing)
    assert_nothing_lost_or_twice(run, expected, rounds=3)
    assert left_out(run) == {1: {"client 0"}, 2: {"client 1", "client 2", "client 3"}, 3: set()}
    for line in (
        "round 1: client 0 left out: it failed: .*OSError.*the disk is gone",
        "round 2: client 1 left out: its process died",
        "round 2: client 2 left out: its SuperNode is gone",
        r"round 2: client 3 left out: no reply came before its message expired \(federation.deadline",
    ):
        assert re.search(line, streamed), (line, streamed)
