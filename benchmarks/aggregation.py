"""How long aggregation takes, how much memory, and how near to the best adapter of rank 8 it comes.

    python benchmarks/aggregation.py             # the cases that are missing, then table, plot and document
    python benchmarks/aggregation.py --units 2   # at most two more cases
    python benchmarks/aggregation.py --tables    # the tables alone, from what is there

One module of SIZE × SIZE, LoRA of rank 8 in float32, CLIENTS clients. Memory is measured first, one call in one process
for every contestant; then all of them that finished are timed in one process on the same tensors, in turn, and their
products are held against the dense mean in float64. A contestant that is optimal by its own account and is not within
1e-4 of the least error fails the run. What exceeds the time limit is not tried again at a larger size or with more
clients, and is listed with the reason, as is what is not installed (chorus-fl: pip install --no-deps chorus-fl==0.1.0).

Results go to benchmarks/results/aggregation.jsonl, one line per case and contestant, written when the case is finished:
the command can be interrupted and given again at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aggregation_contestants import CONTESTANTS
from aggregation_tables import CLIENTS, SIZES, write_all

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "aggregation.jsonl"

TOLERANCE = 1e-4
"""By so much of itself the error of an optimal contestant may be above the least; the target is 1e-5 for florana-opt."""

Row = dict[str, Any]


def child(arguments: Sequence[object], threads: int, limit: float) -> tuple[Row | None, str]:
    """What a worker printed, or None and the reason."""
    command = [sys.executable, str(HERE / "aggregation_worker.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            [*command, str(threads)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return None, f"more than {limit:g} s"
    if done.returncode == 0:
        found: Row = json.loads(done.stdout.splitlines()[-1])
        return found, ""
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if "allocate memory" in last or "MemoryError" in last:
        return None, "more than 12 GiB"
    raise SystemExit(f"{' '.join(map(str, arguments))} failed: {last}")


def measure(
    size: int, clients: int, names: Sequence[str], rows: Sequence[Row], given: argparse.Namespace
) -> list[Row]:
    """All contestants on one case."""
    measured: dict[str, Row] = {}
    for name in names:
        reason = known_reason(name, size, clients, rows)
        if not reason:
            found, reason = child(("memory", name, size, clients), given.threads, given.limit)
        measured[name] = {"skipped": reason} if reason else dict(found or {})
        print(f"{size} × {size}, {clients} clients, {name}: {measured[name]}", flush=True)
    able = [name for name in names if "skipped" not in measured[name]]
    # Setting up, 26 turns and the dense float64 oracle: whatever it takes.
    times, reason = child(
        ("time", ",".join(able), size, clients), given.threads, 3600 + 30 * given.limit
    )
    if times is None:
        raise SystemExit(f"timing {size} × {size} with {clients} clients took {reason}")
    for name in able:
        measured[name] |= times[name]
        check(name, measured[name])
    about = {"size": size, "clients": clients, "threads": given.threads, "machine": machine()}
    return [{**about, "contestant": name, **row} for name, row in measured.items()]


def known_reason(name: str, size: int, clients: int, rows: Sequence[Row]) -> str:
    """Why a contestant is not tried: not installed, or too slow or large for a smaller case already."""
    if not CONTESTANTS[name].installed:
        return f"{CONTESTANTS[name].package} is not installed"
    for row in rows:
        smaller = row["size"] <= size and row["clients"] <= clients
        if row["contestant"] == name and smaller and row.get("skipped", "").startswith("more than"):
            return str(row["skipped"])
    return ""


def check(name: str, row: Row) -> None:
    """Refuse to time what is not the same product."""
    least = row["least"] if CONTESTANTS[name].optimal else 0.0
    held = CONTESTANTS[name].optimal or CONTESTANTS[name].exact
    if held and not row["error"] <= least * (1 + TOLERANCE) + 1e-5:
        raise SystemExit(f"{name} has an error of {row['error']:.3e}, expected {least:.3e}")


def machine() -> str:
    """Processor and versions, as far as they decide times."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("florana", "torch", "peft"))
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def read_rows(path: Path) -> list[Row]:
    """The lines of a results file, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers."""
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    """Measure what is missing, then write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", type=numbers, default=SIZES)
    parser.add_argument("--clients", type=numbers, default=CLIENTS)
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument(
        "--limit", type=float, default=150.0, help="seconds for setting up and one call"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--units", type=int, help="most cases to measure now")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    given = parser.parse_args()
    rows, names = read_rows(given.results), given.contestants.split(",")
    cases = [(size, clients) for clients in given.clients for size in given.sizes]
    finished = {(row["size"], row["clients"]) for row in rows}
    missing = [] if given.tables else [case for case in cases if case not in finished]
    for size, clients in missing[: given.units]:
        new = measure(size, clients, names, rows, given)
        given.results.parent.mkdir(parents=True, exist_ok=True)
        with given.results.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        rows += new
    write_all(rows, given.results, document=given.results == RESULTS)


if __name__ == "__main__":
    main()
