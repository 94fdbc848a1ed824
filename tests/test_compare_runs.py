"""Comparisons at work: processes that die, runs that fail, and the command that goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import compare_workers
from comparisons import markdown_table, small_grid, strict_json
from crash import SMALL
from florana.config import load_config
from florana.errors import RunError
from florana.experiments import runner
from florana.experiments.compare import compare
from florana.experiments.comparison import pool, worker
from florana.experiments.comparison.progress import ComparisonEvent, Planned, RunFailed, RunFinished
from florana.experiments.comparison.render import to_markdown


def test_a_killed_worker_costs_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that it was at has failed, with the signal; another process does the others."""
    monkeypatch.setattr(pool, "work", compare_workers.killed_at_seed_1)
    cells = small_grid(tmp_path, methods=["fedit"], seeds=[0, 1, 2, 3]).cells
    events: list[Any] = []
    pool.do_runs(cells, 1, 1, tmp_path / "log", events.append)
    assert [(type(e), e.key.seed) for e in events] == [
        (RunFinished, 0),
        (RunFailed, 1),
        (RunFinished, 2),
        (RunFinished, 3),
    ]
    assert "was killed by SIGKILL" in events[1].message
    pids = [e.seconds for e in events if isinstance(e, RunFinished)]
    assert pids[1] == pids[2] != pids[0]
    assert not any(alive(int(pid)) for pid in pids)


def test_an_error_that_nobody_foresaw_costs_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback is in the log, and the process that had it does nothing more."""
    monkeypatch.setattr(pool, "work", compare_workers.raises_at_seed_1)
    cells = small_grid(tmp_path, methods=["fedit"]).cells
    events: list[Any] = []
    pool.do_runs(cells, 1, 1, tmp_path / "workers.log", events.append)
    first, failed, last = events
    assert failed.message.startswith("ZeroDivisionError: a bug; ")
    assert "Traceback" in (tmp_path / "workers.log").read_text()
    assert isinstance(first, RunFinished)
    assert isinstance(last, RunFinished)
    assert first.seconds != last.seconds


def test_two_comparisons_do_not_share_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that another process is at is refused while it is, and free afterwards."""
    monkeypatch.setattr(worker, "_PATIENCE", 0.2)
    with worker._alone_in(tmp_path):
        with (
            pytest.raises(RunError, match="another florana compare is at work in it"),
            worker._alone_in(tmp_path),
        ):
            pass
        with worker._alone_in(tmp_path / "other"):
            pass
    with worker._alone_in(tmp_path):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_busy_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """Also one that would tell nothing for ten minutes, when the parent can say no good-bye."""
    script = Path(compare_workers.__file__)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "log")])
    note = tmp_path / "busy"
    try:
        wait_for(lambda: note.exists() and note.read_text() != "")
        pid = int(note.read_text())
        assert alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not alive(pid), seconds=10)


def test_workers_that_cannot_start_end_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how a script has to call compare; nothing is tried for ever."""
    monkeypatch.setattr(pool, "work", compare_workers.never_ready)
    with pytest.raises(RunError, match=r"ended with code 3 before .*__main__"):
        pool.do_runs(small_grid(tmp_path).cells, 2, 1, tmp_path / "log", lambda _e: None)


def test_no_worker_outlives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the watcher raises ends everything, processes included."""
    monkeypatch.setattr(pool, "work", compare_workers.killed_at_seed_1)
    pids = []

    def watch(event: Any) -> None:
        pids.append(int(event.seconds))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.do_runs(small_grid(tmp_path, seeds=[0, 2]).cells, 2, 1, tmp_path / "log", watch)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Whether there is such a process, other than as a zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# The command, with real runs.

LONG = [*SMALL, "federation.rounds=6"]


def write_task(folder: Path, name: str) -> Path:
    """A task of sixty labelled texts, which is read faster than the docstrings."""
    rows = [{"text": f"text number {i}", "label": i % 2} for i in range(60)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = folder / f"{name}.toml"
    task.write_text(f'[data]\nsource = "{folder / "data.jsonl"}"\n')
    return task


def command(*arguments: str, sets: list[str]) -> list[str]:
    """``florana compare`` as a process."""
    return [
        *(sys.executable, "-m", "florana", "compare", *arguments),
        *(word for override in sets for word in ("--set", override)),
    ]


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until it is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Processes started by a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


ENVIRONMENT: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.usefixtures("minilm")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_comparison_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    """Workers end with a command that gets SIGKILL; the same command again goes on to the same end.

    That end is, bit for bit, the one of ``florana run``. Stdout has the table alone. A third call trains nothing.
    """
    task = write_task(tmp_path, "table")
    arguments = command(
        *(str(task), "--methods", "fedit,florana", "--seeds", "0", "--output", "out"), sets=LONG
    )
    metrics = tmp_path / "out" / "table" / "fedit" / "seed0" / "metrics.jsonl"
    first = subprocess.Popen(arguments, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: metrics.exists() and '"round", "round": 2,' in metrics.read_text())
        workers = children(first.pid)
        assert len(workers) >= 2
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    wait_for(lambda: not any(map(alive, workers)), seconds=10)
    assert not (metrics.parent / "summary.json").exists()
    started = (metrics.parent / "provenance.json").stat().st_mtime_ns

    again = subprocess.run(
        arguments, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == (tmp_path / "out" / "comparison.md").read_text()
    assert "2 of 2  table, f" in again.stderr
    assert (metrics.parent / "provenance.json").stat().st_mtime_ns == started  # it was resumed
    alone = load_config(task, [*LONG, "method.name=fedit", f'output="{tmp_path / "alone"}"'])
    runner.start(alone, lambda _event: None)
    assert metrics.read_bytes() == (tmp_path / "alone" / "metrics.jsonl").read_bytes()

    events: list[ComparisonEvent] = []
    third = compare(
        {"table": task},
        ["fedit", "florana"],
        [0],
        tmp_path / "out",
        overrides=LONG,
        watch=events.append,
    )
    (planned,) = events
    assert isinstance(planned, Planned)
    assert (planned.total, planned.finished, planned.rounds) == (2, 2, 0)
    assert markdown_table(to_markdown(third)) == markdown_table(again.stdout)


@pytest.mark.usefixtures("minilm")
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """A task without data fails by name and exit code 1; the other task is in the table all the same."""
    write_task(tmp_path, "good")
    (tmp_path / "bad.toml").write_text('[data]\nsource = "gone.jsonl"\n')
    small = [*SMALL, "federation.rounds=1"]
    arguments = command(
        *("bad.toml", "good.toml", "--methods", "fedit", "--seeds", "0", "--output", "out"),
        sets=small,
    )
    done = subprocess.run(
        arguments, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "failed: bad, fedit, seed 0: " in done.stderr
    assert "gone.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
    bad, good = markdown_table(done.stdout)
    assert (bad["seeds"], bad["accuracy"]) == ("0 of 1", "–")
    assert good["seeds"] == "1"
    assert 0 <= float(good["accuracy"]) <= 1
    content = strict_json((tmp_path / "out" / "comparison.json").read_text())
    assert content["failures"][0]["task"] == "bad"
    assert content["tasks"][0]["data"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "fedit,florna"], "unknown method 'florna'"),
        (["--seeds", "0,x"], "--seeds '0,x': expected whole numbers with commas between"),
        (["a/t.toml", "b/t.toml"], "would both be task 't'"),
        (["--jobs", "0", "--reach", "-1"], "reach is -1: expected a score above 0"),
        (["--reach", "60"], "reach is 60: accuracy is at most 1"),
        (["gone.toml"], "there is no configuration file gone.toml"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    arguments: list[str],
    expected: str,
) -> None:
    """Exit code 2, nothing on stdout, no traceback, nothing written."""
    from florana import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["florana", "compare", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    captured = capsys.readouterr()
    assert ending.value.code == 2
    assert captured.out == ""
    assert expected in captured.err
    assert not list(tmp_path.iterdir())
