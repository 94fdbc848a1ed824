"""Accuracy of every method and gauge on the quickstart's task, the same seeds for all.

    python benchmarks/methods.py --seeds 0,1,2 --jobs 2

Each run is `florana run` in a process of its own with one thread, under runs/benchmark-methods. Runs that
are finished are skipped and interrupted ones resumed, so the command can be given again at any time.
The table goes to benchmarks/results/methods.md and, run by run, to methods.jsonl beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

VARIANTS: Mapping[str, Mapping[str, str]] = {
    "fedit": {"method.name": "fedit"},
    "florana (als)": {"method.name": "florana"},
    "florana-opt, balanced": {"method.name": "florana-opt", "method.gauge": "balanced"},
    "florana-opt, mean-aligned": {"method.name": "florana-opt", "method.gauge": "mean-aligned"},
    "florana-opt, orthonormal": {"method.name": "florana-opt", "method.gauge": "orthonormal"},
    "ideal, mean-aligned": {"method.name": "ideal", "method.gauge": "mean-aligned"},
}
RESULTS = Path(__file__).parent / "results"


def do_run(folder: Path, settings: Mapping[str, str]) -> None:
    """Make sure that the run in ``folder`` is finished."""
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, "-m", "florana", "run"]
    if (folder / "provenance.json").exists():
        command += ["--resume", str(folder)]
    else:
        command += ["--output", str(folder)]
        command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{folder.name}: {'done' if done.returncode == 0 else done.stderr}", flush=True)


def read_run(folder: Path, variant: str, seed: int) -> dict[str, Any]:
    """The numbers of a finished run that the table needs."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round" and line["round"]]
    return {
        "variant": variant,
        "seed": seed,
        "accuracy": summary["score"],
        "loss": summary["loss"],
        "best_client_accuracy": summary["best_client_score"],
        "accuracy_by_round": [line["score"] for line in rounds],
        "error_used_by_round": [line["error_used"] for line in rounds],
        "error_average_by_round": [line["error_average"] for line in rounds],
        "error_optimum_by_round": [line["error_optimum"] for line in rounds],
        "megabytes_up": sum(line["bytes_up"] for line in rounds) / 1e6,
        "megabytes_down": sum(line["bytes_down"] for line in rounds) / 1e6,
    }


def table(runs: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """The Markdown table: a row per variant."""
    header = [
        "variant",
        *(f"seed {s}" for s in seeds),
        "mean ± sd",
        "minus fedit",
        "round 1",
        "loss",
    ]
    header += ["over best client", "error r1", "MB up", "MB down"]
    rows = [header, ["---"] * len(header)]
    plain = {run["seed"]: run["accuracy"] for run in runs if run["variant"] == "fedit"}
    for variant in VARIANTS:
        of = {run["seed"]: run for run in runs if run["variant"] == variant}
        if of.keys() != set(seeds):
            continue
        accuracy = [of[s]["accuracy"] for s in seeds]
        lead = [of[s]["accuracy"] - of[s]["best_client_accuracy"] for s in seeds]
        against = (
            mean(of[s]["accuracy"] - plain[s] for s in seeds) if plain.keys() >= set(seeds) else 0
        )
        spread = stdev(accuracy) if len(accuracy) > 1 else 0.0
        rows.append(
            [
                variant,
                *(f"{a:.3f}" for a in accuracy),
                f"{mean(accuracy):.3f} ± {spread:.3f}",
                f"{against:+.3f}",
                f"{mean(of[s]['accuracy_by_round'][0] for s in seeds):.3f}",
                f"{mean(of[s]['loss'] for s in seeds):.3f}",
                f"{mean(lead):+.3f}",
                f"{mean(of[s]['error_used_by_round'][0] for s in seeds):.3f}",
                f"{mean(of[s]['megabytes_up'] for s in seeds):.1f}",
                f"{mean(of[s]['megabytes_down'] for s in seeds):.1f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-methods"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as florana run"
    )
    given = parser.parse_args()
    seeds = [int(s) for s in given.seeds.split(",")]
    extra = dict(item.split("=", 1) for item in given.set)
    jobs = {
        (variant, seed): given.folder / f"{variant.replace(', ', '-').replace(' ', '-')}-seed{seed}"
        for seed in seeds
        for variant in VARIANTS
    }
    with ThreadPoolExecutor(given.jobs) as pool:
        for (variant, seed), folder in jobs.items():
            settings = {**VARIANTS[variant], "seed": str(seed), "threads": "1", **extra}
            pool.submit(do_run, folder, settings)
    finished = {key: f for key, f in jobs.items() if (f / "summary.json").exists()}
    runs = [read_run(folder, variant, seed) for (variant, seed), folder in finished.items()]
    command = f"python benchmarks/methods.py --seeds {given.seeds}" + "".join(
        f" --set {item}" for item in given.set
    )
    text = f"{TITLE}\n\nMade by `{command}`.\n\n{table(runs, seeds)}\n\n{LEGEND}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "methods.md").write_text(text)
    (RESULTS / "methods.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    print(text)


TITLE = "# Methods and gauges on the quickstart's task"
LEGEND = """accuracy of the final global model on the global test set, by seed; `minus fedit`: mean paired
difference to plain averaging; `round 1`: mean accuracy after the first round; `loss`: mean final loss; `over best
client`: mean lead over the best client's own model before the last aggregation, both on the global test set;
`error r1`: relative aggregation error of what was used in round 1; MB: megabytes of the whole run, all clients."""

if __name__ == "__main__":
    main()
