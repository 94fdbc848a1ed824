"""Wall time and bytes of a round on the three engines, with 4 and 16 clients on MiniLM.

    python benchmarks/engines.py                 # runs what is missing, then writes the table
    python benchmarks/engines.py --tables        # the table alone, from what is there
    python benchmarks/engines.py --clients 2 --rounds 2 --set "model.name='/tiny'" --set ... --work runs/try --results runs/try

The same configuration on all engines: the quickstart's, with every client in every round. `local` is `florana run`,
`simulation` the same with `--engine simulation`, one client per core, `deployment` is `florana app` on a
SuperLink and a SuperNode per client on loopback, without TLS, started by the tests' own harness (so it needs a checkout, and what
`make test` needs). Runs lie under runs/benchmark-engines; the table goes to benchmarks/results/engines.md and, run
by run, to engines.jsonl beside it. A run that is not finished is done anew.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ENGINES = ("local", "simulation", "deployment")
LIMIT = 4 * 3600.0
"""Seconds after which a run is given up."""


class Case(NamedTuple):
    """One run."""

    engine: str
    clients: int
    settings: tuple[str, ...]

    def folder(self, work: Path) -> Path:
        """Where it lies."""
        return work / f"{self.engine}-{self.clients}"


def do_case(case: Case, work: Path) -> None:
    """Do a run, unless it is finished, and note the wall time of it all."""
    folder = case.folder(work)
    if (folder / "wall.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    if case.engine == "deployment":
        deploy(case, folder)
    else:
        engine = ["--engine", case.engine, "--no-report", "--output", str(folder / "run")]
        florana("run", *told(case.settings), *engine)
    seconds = time.perf_counter() - began
    (folder / "wall.json").write_text(json.dumps({"seconds": seconds}))
    print(f"{folder.name}: {seconds:.0f} s", flush=True)


def deploy(case: Case, folder: Path) -> None:
    """The run on a SuperLink and SuperNodes that are started for it, and ended."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    harness: Any = importlib.import_module("deployment")
    florana("app", str(folder / "app"), *told((*case.settings, f"output='{folder / 'run'}'")))
    nodes = [
        f'partition-id={k} num-partitions={case.clients} state="{folder / f"state{k}"}"'
        for k in range(case.clients)
    ]
    with harness.federation(folder, nodes) as flower:
        status, streamed = flower.run(folder / "app", timeout=LIMIT)
    if status != "finished:completed":
        raise SystemExit(f"{folder.name}: {status}\n{streamed}")


def florana(*arguments: str) -> None:
    """The command line in a process of its own, with one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "florana", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def told(settings: Sequence[str]) -> list[str]:
    """Settings as options."""
    return [word for setting in settings for word in ("--set", setting)]


def read_case(case: Case, work: Path) -> dict[str, Any]:
    """The numbers of a finished run."""
    folder = case.folder(work)
    lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round" and line["round"]]
    parts = [json.loads(x) for x in (folder / "run" / "timings.jsonl").read_text().splitlines()]
    timed = [{k: v for k, v in part.items() if k != "round"} for part in parts if part["round"]]
    walls = [sum(part.values()) for part in timed]
    total = json.loads((folder / "wall.json").read_text())["seconds"]
    return {
        "engine": case.engine,
        "clients": case.clients,
        "rounds": len(rounds),
        "seconds_per_round": mean(walls),
        "slowest_round": max(walls),
        "training_per_round": mean(part["training"] for part in timed),
        "start_and_end": total - sum(walls),
        "bytes_up": mean(line["bytes_up"] for line in rounds),
        "bytes_down": mean(line["bytes_down"] for line in rounds),
        "accuracy": rounds[-1]["score"],
    }


def document(results: Sequence[dict[str, Any]]) -> str:
    """The Markdown page."""
    alone = {r["clients"]: r["training_per_round"] for r in results if r["engine"] == "local"}
    header = ["engine", "clients", "s per round", "slowest round", "training alone, s",
              "slowest client, s", "start and end, s", "MB up", "MB down", "accuracy"]  # fmt: skip
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for r in results:
        here = r["engine"] == "local"
        rows.append([
            r["engine"], str(r["clients"]), f"{r['seconds_per_round']:.1f}", f"{r['slowest_round']:.1f}",
            f"{alone[r['clients']]:.1f}" if r["clients"] in alone else "–",
            "–" if here else f"{r['training_per_round']:.1f}", f"{r['start_and_end']:.1f}",
            f"{r['bytes_up'] / 1e6:.2f}", f"{r['bytes_down'] / 1e6:.2f}", f"{r['accuracy']:.4f}",
        ])  # fmt: skip
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Engines

`python benchmarks/engines.py` on {os.cpu_count()} cores ({platform.machine()}, Python {platform.python_version()}), {results[0]["rounds"]} rounds, all clients in every
round; means over the rounds.

{table}

- training alone: what all clients' training takes in one process with one thread, one client after the other.
- slowest client: its own training and testing, once its process has loaded model and data; on Flower's engines clients run side by side, as many as Ray's share allows in the simulation, all at once in the deployment.
- start and end: the rest of the command's wall time: processes, data, model, and the last evaluation.
- MB: of all messages of a round, by florana's accounting.
"""


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", default="4,16", help="numbers of clients")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-engines"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--tables", action="store_true", help="only write the table")
    given = parser.parse_args()
    work = given.work.resolve()
    counts = [int(count) for count in given.clients.split(",")]
    cases = [
        Case(
            engine,
            count,
            ("threads=1", f"federation.rounds={given.rounds}", *given.set, f"federation.clients={count}"),
        )
        for count in counts
        for engine in given.engines.split(",")
    ]  # fmt: skip
    if not given.tables:
        for case in cases:
            do_case(case, work)
    results = [
        read_case(case, work) for case in cases if (case.folder(work) / "wall.json").exists()
    ]
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "engines.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))
    (given.results / "engines.md").write_text(document(results))


if __name__ == "__main__":
    main()
