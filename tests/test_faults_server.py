"""The server's processes die, and too few nodes are left: the run stops with all rounds saved, and is resumed."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from deployment import federation
from faulty_app import KILL, WAIT, Faults
from faulty_runs import assert_nothing_lost_or_twice, faulty_app, settings_of, unbroken
from florana.errors import RunError
from florana.experiments.run_folder import RunFolder
from tiny_models import Kind

pytestmark = pytest.mark.deployment

SETTINGS = [
    "federation.clients=2",
    "federation.min_clients=2",
    "federation.rounds=4",
    "federation.wait_seconds=30",
    "federation.dirichlet_alpha=3.0",
    "federation.uplink=int8",
    "method.name=fedex-lora",
]
"""int8 with error feedback: a round that a client does again from what it kept *after* it would show in the numbers."""


def nobody_holds(run: Path) -> bool:
    """Whether no server is at work on a run: one whose SuperLink is gone ends when its pause between two tries does."""
    try:
        with RunFolder.open(run).held():
            return True
    except RunError:
        return False


def test_a_run_outlives_its_server_its_superlink_and_its_nodes(
    kinds: dict[str, Kind], tmp_path: Path
) -> None:
    """One run in five pieces: its adapters and metrics are those of an unbroken one.

    SIGKILL of flwr-serverapp after a checkpoint, and in an aggregation; SIGKILL of the SuperLink in training, and its
    restart; a second server for a run that goes on, refused; nodes that leave, until the wait for them is over.
    """
    settings = settings_of(kinds["own head"], tmp_path, *SETTINGS)
    app, run = faulty_app(tmp_path, settings), tmp_path / "run"
    resume = f"resume='{run}'"
    faults = Faults(tmp_path / "faults")
    faults.order(done_1=KILL, start_2=KILL, client_1_round_3=WAIT, done_3=WAIT)
    nodes = [
        f'partition-id={k} num-partitions=2 state="{tmp_path / f"state{k}"}"' for k in range(2)
    ]
    with federation(tmp_path, nodes) as flower:
        flower.begin("run1", app)
        flower.wait("the server dies after round 1", lambda: faults.obeyed("done_1"), "run1")
        flower.kill("run1")
        flower.begin("run2", app, resume)
        flower.wait("it dies aggregating round 2", lambda: faults.obeyed("start_2"), "run2")
        flower.kill("run2")
        flower.begin("run3", app, resume)
        flower.wait("client 1 trains", lambda: faults.obeyed("client_1_round_3"), "run3")
        flower.kill_alone("superlink")
        flower.wait("its server ends, too", lambda: nobody_holds(run), "superlink")
        faults.let_go("client_1_round_3")
        flower.kill("run3")
        flower.start_superlink()
        flower.begin("run4", app, resume)
        flower.wait(
            "round 3 is done", lambda: faults.obeyed("done_3"), "run4", "superlink", "node0"
        )
        stopped = flower.flwr("run", str(app), "here", "--stream", "-c", resume)
        for node in ("node0", "node1"):
            flower.kill(node, signal.SIGTERM)
        faults.let_go("done_3")
        flower.wait("the run stops", lambda: flower.processes["run4"].poll() is not None, "run4")
        run4, second = flower.statuses()[-2:]
        assert run4.startswith("finished:failed"), flower.log("run4")
        assert second.startswith("finished:failed"), stopped.stdout
        for number, node in enumerate(nodes):
            flower.start_supernode(number, node)
        status, streamed = flower.run(app, resume)
        logs = [flower.log(f"run{k}") for k in (1, 2, 3, 4)]
        statuses = flower.statuses()
    assert status == "finished:completed", streamed
    assert "is at work in another process" in stopped.stdout + stopped.stderr
    expected = unbroken(settings, tmp_path / "here")
    assert_nothing_lost_or_twice(run, expected, rounds=4)
    for piece, done in ((logs[1], 1), (logs[2], 1), (logs[3], 2), (streamed, 3)):
        assert f"going on after round {done}" in " ".join(piece.split()), piece  # lines are wrapped
    assert re.search(r"round 4: 0 nodes of 2 are connected; waiting up to 30 s", logs[3])
    assert re.search(r"round 4: \d nodes are connected after 30 s, the round needs 2", logs[3])
    assert sum(status == "finished:completed" for status in statuses) == 1
