"""Language understanding: six tasks, four ways to aggregate, three seeds.

    FLORANA_DATA=... python benchmarks/glue.py            # runs what is missing
    FLORANA_DATA=... python benchmarks/glue.py --tables   # the tables alone, from what is there

FLORANA_DATA is a folder with nlu/sst2, nlu/cola, nlu/mrpc, nlu/rte, nlu/banking77 and nlu/ag_news, each with a train.jsonl.
SST-2, RTE, BANKING77 and AG News are judged by accuracy, CoLA by Matthews correlation, MRPC by F1. The runs are those of
`florana compare` under runs/glue, on the configurations of benchmarks/tasks with the settings below; its table and its
runs are copied to benchmarks/results/nlu.{md,csv,jsonl}.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TASKS = ("sst2", "cola", "mrpc", "rte", "banking77", "ag_news")
METHODS = ("fedit", "florana", "florana-opt", "ideal")
SETTINGS = ("threads=1", "data.max_examples=2400")
"""On top of the tasks' files."""


def compare(folder: Path) -> None:
    """Every run that is missing, and the tables of all."""
    command = [sys.executable, "-m", "florana", "compare"]
    command += [os.path.relpath(HERE / "tasks" / f"{task}.toml") for task in TASKS]
    command += ["--methods", ",".join(METHODS), "--seeds", "0,1,2", "--output", str(folder)]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    subprocess.run(command, check=True)


def main() -> None:
    """Run what is missing, then copy the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("runs/glue"))
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.tables:
        compare(given.folder)
    for source, kept in (
        ("comparison.md", "nlu.md"),
        ("comparison.csv", "nlu.csv"),
        ("runs.jsonl", "nlu.jsonl"),
    ):
        shutil.copyfile(given.folder / source, RESULTS / kept)
    print((RESULTS / "nlu.md").read_text())


if __name__ == "__main__":
    main()
