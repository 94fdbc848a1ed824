"""A reply that is lost on its way in a real federation: the server finds out, and has the client do the round again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from deployment import federation
from faulty_app import WAIT, Faults
from faulty_runs import assert_nothing_lost_or_twice, faulty_app, left_out, settings_of, unbroken
from tiny_models import Kind

pytestmark = pytest.mark.deployment

SETTINGS = [
    "federation.clients=2",
    "federation.min_clients=2",
    "federation.rounds=2",
    "federation.uplink=int8",
]
"""int8 with error feedback: a client that did the round again from what it kept *after* it would show in the numbers."""


def nodes_of(folder: Path) -> list[str]:
    """Two nodes."""
    return [f'partition-id={k} num-partitions=2 state="{folder / f"state{k}"}"' for k in range(2)]


def test_a_reply_that_the_superlink_refuses_is_lost(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """Its database is locked while client 1 sends; the SuperNode drops the reply and takes the next message."""
    settings = settings_of(kinds["own head"], tmp_path, *SETTINGS)
    app, run = faulty_app(tmp_path, settings), tmp_path / "run"
    faults = Faults(tmp_path / "faults")
    faults.order(client_0_round_1=WAIT, client_1_round_1=WAIT, ask_after="5")
    with federation(tmp_path, nodes_of(tmp_path)) as flower:
        flower.begin("run", app)  # the stream itself breaks when the SuperLink is busy
        for client in (0, 1):
            where = f"client_{client}_round_1"
            flower.wait(f"client {client} trains", lambda at=where: faults.obeyed(at), "run")  # type: ignore[misc]
        with closing(sqlite3.connect(tmp_path / "state.db", timeout=60)) as database:
            database.execute("BEGIN IMMEDIATE")
            faults.let_go("client_1_round_1")
            flower.wait(
                "the reply is refused",
                lambda: "Failed to send message" in flower.log("node1"),
                "node1",
                "superlink",
            )
            database.rollback()
        faults.let_go("client_0_round_1")
        flower.wait(
            "the run ends", lambda: flower.status() != "running", "run", "node1", "superlink"
        )
        assert flower.status() == "finished:completed", flower.log("run")
        assert "database is locked" in flower.log("superlink")
        assert flower.log("node0").count("Receiving: train message") == 2
        assert flower.log("node1").count("Receiving: train message") == 3  # round 1 twice
    assert left_out(run) == {1: set(), 2: set()}
    assert_nothing_lost_or_twice(run, unbroken(settings, tmp_path / "here"), rounds=2)
