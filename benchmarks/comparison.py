"""All methods on four tasks and three seeds, and the short table for the README.

    FLORANA_DATA=... python benchmarks/comparison.py            # runs what is missing, a few hours on two cores
    FLORANA_DATA=... python benchmarks/comparison.py --tables   # the tables alone, from what is there

FLORANA_DATA is a folder with nlu/sst2, nlu/banking77 and nlu/ag_news, each with a train.jsonl of text and label.
The runs are those of `florana compare` under runs/comparison; its table and its runs are copied to
benchmarks/results/comparison.{md,csv,jsonl}, and the short table to comparison-short.md beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TASKS = ("banking77", "docstrings", "ag_news", "sst2")
METHODS = (
    "fedit",
    "florana",
    "florana-opt",
    "florana-blend",
    "florana-opt:server.shrinkage=noise",
    "florana-opt:server.shrinkage=norm",
    "ideal",
    "florana-opt:gauge=balanced",
    "ffa-lora",
    "rolora",
    "fedsa-lora",
    "flora",
    "flexlora",
    "hetlora",
    "fedex-lora",
    "lora-fair",
    "frlora",
    "fed-sb",
    "florist",
    "local",
    "centralised",
)


def short_table(comparison: dict[str, Any]) -> str:
    """Mean accuracy by method and task, best mean difference to plain averaging first."""
    accuracy = {(r["task"], r["method"]): r["score"]["mean"] for r in comparison["rows"]}
    difference = {o["method"]: o["difference"] or 0.0 for o in comparison["overall"]}
    header = ["method", *TASKS, "mean difference to fedit"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for method in sorted(METHODS, key=lambda m: -difference[m]):
        values = [f"{accuracy[task, method]:.3f}" for task in TASKS]
        rows.append([f"`{method}`", *values, f"{100 * difference[method]:+.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.tables:
        configs = [str(HERE / "tasks" / f"{task}.toml") for task in TASKS]
        command = [sys.executable, "-m", "florana", "compare", *configs, "--seeds", "0,1,2"]
        command += ["--methods", ",".join(METHODS), "--set", "threads=1"]
        subprocess.run([*command, "--output", str(given.folder)], check=True)
    for source, kept in (
        ("comparison.md", "comparison.md"),
        ("comparison.csv", "comparison.csv"),
        ("runs.jsonl", "comparison.jsonl"),
    ):
        shutil.copyfile(given.folder / source, RESULTS / kept)
    table = short_table(json.loads((given.folder / "comparison.json").read_text()))
    (RESULTS / "comparison-short.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
