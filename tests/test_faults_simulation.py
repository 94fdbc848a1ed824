"""Faults in Flower's simulation: a client's process is killed, a client raises, and a run that fails says so."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployment import TESTS
from faulty_app import KILL, RAISE, Faults
from faulty_runs import assert_nothing_lost_or_twice, left_out, settings_of, unbroken
from tiny_models import Kind

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is missing: pip install 'florana[simulation]'",
    ),
]


def test_a_killed_actor_costs_nothing_and_a_failed_run_exits_with_2(
    kinds: dict[str, Kind], tmp_path: Path
) -> None:
    """SIGKILL of the Ray process that trains client 1, which Ray starts again; then all clients raise.

    The run stops with exit code 2 and every reason, and is resumed to the result of an unbroken one.
    """
    rounds = ["federation.rounds=2", "federation.dirichlet_alpha=3.0", "federation.min_clients=2"]
    settings = settings_of(kinds["own head"], tmp_path, *rounds)
    run, faults = tmp_path / "run", Faults(tmp_path / "faults")
    faults.order(client_1_round_1=KILL)
    faults.order(**{f"client_{k}_round_2": RAISE for k in range(3)})
    told = [word for setting in settings for word in ("--set", setting)]
    failed = florana(tmp_path, "run", *told, "--engine", "simulation", "--output", str(run))
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert faults.obeyed("client_1_round_1")
    assert "round 2: 0 usable replies, and federation.min_clients = 2" in failed.stderr
    assert "the disk is gone at client-2-round-2" in failed.stderr
    resumed = florana(tmp_path, "run", "--resume", str(run))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "going on after round 1" in resumed.stdout
    expected = unbroken(settings, tmp_path / "here")
    assert_nothing_lost_or_twice(run, expected, rounds=2)
    assert left_out(run) == {1: set(), 2: set()}


def florana(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, with clients that look for orders."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(TESTS),
        "FLORANA_FAULTS": str(folder / "faults"),
    }
    return subprocess.run(
        [sys.executable, str(TESTS / "faulty_simulation.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
