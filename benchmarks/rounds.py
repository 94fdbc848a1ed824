"""How fast the clients of a round train: florana one by one and at once, a plain PEFT loop, Flower's simulation.

    python benchmarks/rounds.py               # measures what is missing, then writes the table
    python benchmarks/rounds.py --short       # four clients, six steps, once; for CI
    python benchmarks/rounds.py --tables      # the table alone, from what is there

Every contestant trains the same clients, the quickstart's, for one round: it takes the global adapter, does 8 steps of 16
examples per client, and gives each client's adapter back. Nobody tests anything, but for the simulation, whose
clients also score their own held-out text. Contestants take turns, each time in a process of its own, which loads model and
data and trains one client before the clock starts. The plain loop (benchmarks/rounds_worker.py) has a DataLoader and an
AdamW per client and PEFT's state dicts in and out. Models: MiniLM, and a random Llama of 22 M parameters.

Measurements are added to benchmarks/results/rounds.jsonl, one line each; those that are there are not done again, so the
command can be broken off. Delete the file to begin anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
CONTESTANTS = ("peft", "one by one", "at once")
KEY = ("contestant", "model", "clients", "steps", "threads", "repeat")
LIMIT = 3600.0
"""Seconds after which a measurement is given up."""


def wanted(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The measurements, in the order in which they are done: contestants in turn."""
    cases = []
    for repeat in range(given.repeats):
        for model in given.models.split(","):
            for clients in (int(c) for c in given.clients.split(",")):
                contestants = list(CONTESTANTS)
                if repeat == 0 and not given.no_simulation:
                    contestants.append("simulation")
                cases += [
                    dict(
                        zip(
                            KEY,
                            (name, model, clients, given.steps, given.threads, repeat),
                            strict=True,
                        )
                    )
                    for name in contestants
                ]
    return cases


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Do one, in a process of its own."""
    options = [
        word for name in KEY[1:-1] for word in (f"--{name.replace('_', '-')}", str(case[name]))
    ]
    done = subprocess.run(
        [sys.executable, str(HERE / "rounds_worker.py"), case["contestant"], *options],
        env={**os.environ, "OMP_NUM_THREADS": str(case["threads"])},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{case}: {done.stdout}{done.stderr}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**told, "repeat": case["repeat"]}


def document(results: Sequence[dict[str, Any]]) -> str:
    """The Markdown page: medians over the repeats, ratios to the plain loop in the same numbers of clients."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        key = (result["model"], result["threads"], result["clients"], result["contestant"])
        groups.setdefault(key, []).append(result)
    head = ["model", "threads", "clients", "contestant", "examples/s", "CPU s per 1,000 examples", "peak MB",
            "times plain PEFT", "in CPU time"]  # fmt: skip
    rows = [head, ["---", "---:", "---:", "---", *["---:"] * 5]]
    for (model, threads, clients, contestant), made in sorted(groups.items(), key=_order):
        rate = median(m["examples"] / m["seconds"] for m in made)
        cpu = [1000 * m["cpu_seconds"] / m["examples"] for m in made if "cpu_seconds" in m]
        plain = groups.get((model, threads, clients, "peft"))
        base = median(m["examples"] / m["seconds"] for m in plain) if plain else None
        plain_cpu = [1000 * m["cpu_seconds"] / m["examples"] for m in plain or []]
        rows.append([
            model, str(threads), str(clients), contestant, f"{rate:.1f}",
            f"{median(cpu):.1f}" if cpu else "–", f"{max(m['peak_megabytes'] for m in made):.0f}",
            f"{rate / base:.2f}" if base else "–",
            f"{median(plain_cpu) / median(cpu):.2f}" if cpu and plain_cpu else "–",
        ])  # fmt: skip
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    repeats = 1 + max(r["repeat"] for r in results)
    steps = ", ".join(str(s) for s in sorted({r["steps"] for r in results}))
    return f"""# Rounds

`python benchmarks/rounds.py` on {os.cpu_count()} cores ({platform.machine()}, Python {platform.python_version()}): local training of one round, {steps} steps of 16 examples
per client, medians of {repeats}.

{table}

- at once: all clients of the round in one pass of the base.
- simulation: Flower's, one client per core side by side; wall time with messages and each client's test of its own model; its
  largest process.
"""


def _order(item: tuple[tuple[Any, ...], Any]) -> tuple[Any, ...]:
    model, threads, clients, contestant = item[0]
    return model != "minilm", threads, clients, [*CONTESTANTS, "simulation"].index(contestant)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", default="2,8,32", help="numbers of clients")
    parser.add_argument("--models", default="minilm,decoder")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-simulation", action="store_true")
    parser.add_argument("--short", action="store_true", help="four clients, six steps, once")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--tables", action="store_true", help="only write the table")
    given = parser.parse_args()
    name = "rounds"
    if given.short:
        given.clients, given.steps, given.repeats, given.no_simulation = "4", 6, 1, True
        name = "rounds-short"
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    results = [json.loads(line) for line in lines]
    done = {tuple(result[k] for k in KEY) for result in results}
    for case in [] if given.tables else wanted(given):
        if tuple(case[k] for k in KEY) in done:
            continue
        made = measure(case)
        results.append(made)
        with path.open("a") as stream:
            stream.write(json.dumps(made) + "\n")
        rate = made["examples"] / made["seconds"]
        print(
            f"{case['model']}, {case['clients']} clients, {case['contestant']}: {rate:.1f} examples/s",
            flush=True,
        )
    if not results:
        raise SystemExit(f"{path} holds no measurement yet")
    (given.results / f"{name}.md").write_text(document(results))
    print(document(results))


if __name__ == "__main__":
    main()
